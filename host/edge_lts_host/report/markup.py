"""Words, lists and tables of words in the formats that people read: table, md, latex, html. `render` passes them on.

Every part is escaped for its format here. `table` is plain text for a terminal; other names of formats mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_lts_host.report import latex
from edge_lts_host.report.html import text as hypertext


def table(cells: Sequence[Sequence[str]], headings: Sequence[str], output: str) -> str:
    """Text cells as a table; `md` gives GitHub's, its cells escaped, as are those of `latex` and `html`."""
    if output == "latex":
        return latex.table(cells, headings)
    if output == "html":
        return hypertext.table(cells, headings)
    import tabulate

    tabulate.MIN_PADDING = 0  # a heading's own width is enough: wide tables wrap in a terminal
    if output == "md":
        cells = [[markdown(cell) for cell in row] for row in cells]
    formats = {"md": "github", "plain": "plain"}
    return tabulate.tabulate(
        cells, headers=list(headings), tablefmt=formats.get(output, "simple"), disable_numparse=True
    )


def bullets(lines: Sequence[str], output: str) -> str:
    """Lines as a list; `md`, `latex` and `html` escape them."""
    if output == "latex":
        return latex.bullets(lines)
    if output == "html":
        return hypertext.bullets(lines)
    return "\n".join(f"- {markdown(line) if output == 'md' else line}" for line in lines)


def title(text: str, output: str, level: int = 3) -> str:
    """A heading of level 1 to 4; a table for a terminal marks the first two."""
    if output == "latex":
        return latex.title(text, level)
    if output == "html":
        return hypertext.title(text, level)
    if output == "md":
        return f"{'#' * (level + 1)} {markdown(text)}"
    return f"== {text} ==" if level == 1 else text


def paragraph(text: str, output: str) -> str:
    """Words of our own around tables; in `latex` and `html` escaped, because they may quote a board."""
    if output == "latex":
        return latex.escape(text)
    return hypertext.paragraph(text) if output == "html" else text


def markdown(text: str) -> str:
    """Text that starts no HTML, code, link or column in a page that somebody may publish."""
    for sign in ("\\", "`", "<", ">", "|"):
        text = text.replace(sign, "\\" + sign)
    return text.replace("](", "]\\(")

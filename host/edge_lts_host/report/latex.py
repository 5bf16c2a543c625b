r"""Text and tables as LaTeX, for a paper: `tabular` with the rules of booktabs, everything from a board escaped.

What comes out needs `\usepackage{booktabs}` and UTF-8 input, and is no document of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"\(\pm\)",
    "µ": r"\(\mu\)",
    "…": r"\ldots{}",
    "[": r"{[}",  # behind \\ a bracket would be a distance, behind \item a label
    "]": r"{]}",
}


def escape(text: str) -> str:
    """One line that prints as it is and starts no command; line ends are blanks, because two would end a paragraph."""
    return "".join(_SIGNS.get(character, character) for character in " ".join(text.split()))


def table(cells: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """A tabular with its rules; columns of numbers to the right."""
    n_columns = max(map(len, (headings, *cells)), default=0)
    columns = "".join("r" if _is_numbers([row[at] for row in cells]) else "l" for at in range(n_columns))
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if headings:
        lines += [" & ".join(map(escape, headings)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def bullets(lines: Sequence[str]) -> str:
    return "\n".join([r"\begin{itemize}", *(rf"\item {escape(line)}" for line in lines), r"\end{itemize}"])


def title(text: str, level: int) -> str:
    return rf"\{('section', 'subsection', 'subsubsection', 'paragraph')[level - 1]}*{{{escape(text)}}}"


def _is_numbers(column: Sequence[str]) -> bool:
    return any(cell[:1].isdigit() for cell in column) and all(cell[:1].isdigit() or cell == "-" for cell in column)

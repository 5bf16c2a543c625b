"""Text and tables as HTML: everything is escaped here, and nothing else in this package writes text into a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as _escape


def escape(text: str) -> str:
    """Text that is nothing but text, in an element as in a quoted attribute."""
    return _escape(text, quote=True)


def table(cells: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """A table that the page's script makes sortable, in a box that scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>" for row in cells)
    top = f"<thead><tr>{head}</tr></thead>\n" if headings else ""
    return f'<div class="scroll"><table>{top}<tbody>\n{rows}\n</tbody></table></div>'


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def title(text: str, level: int) -> str:
    return f"<h{level + 1}>{escape(text)}</h{level + 1}>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"

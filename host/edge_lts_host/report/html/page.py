"""One HTML file: text, data, style and scripts, and a policy under which a browser runs and loads nothing else.

Text from a board reaches the page in two ways, and in neither can it become markup: through `text.escape`, and as JSON
in which every character that means something to an HTML parser is written as an escape; the scripts put it into the
page as text alone. Should either ever be wrong, the Content-Security-Policy still refuses every script and style but
those whose hashes stand in it, and all network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from edge_lts_host.report.html import text

_SCRIPTS = ("chart.js", "page.js")
_STYLE = "page.css"
# Of the characters that JSON may hold as they are: those that end an element, start an entity, or end a line in old
# JavaScript.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def report(data: Mapping[str, Any], sides: Sequence[Any], body: str) -> str:
    """The page of a report (compare.build_report); `body` is its text as html, `sides` the same runs."""
    from edge_lts_host.report.html import model

    runs = data["runs"]
    name = "edge-lts report: " + (runs[0]["run_id"] if len(runs) == 1 else f"{len(runs)} runs")
    return document(name, body, model.of_report(data, sides))


def comparison(
    data: Mapping[str, Any], sides: Sequence[Any], body: str, across: Sequence[str], letters: Mapping[str, str]
) -> str:
    """The page of a comparison (across.build_comparison); the arguments as above."""
    from edge_lts_host.report.html import model

    return document(f"edge-lts: {len(data['runs'])} runs compared", body, model.of_comparison(sides, across, letters))


def simple(name: str, body: str) -> str:
    """A page of text and tables, without charts."""
    return document(name, body, {"groups": []})


def document(name: str, body: str, data: Mapping[str, Any]) -> str:
    """The whole file. `name` is plain text, `body` html that was escaped where it was made, `data` plain JSON."""
    style, scripts = _asset(_STYLE), [_asset(script) for script in _SCRIPTS]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{text.escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{text.escape(name)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{text.escape(name)}</h1></header>",
        '<main><div id="charts"></div>',
        body,
        "</main>",
        f'<script type="application/json" id="data">{embedded(data)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines)


def embedded(data: Any) -> str:
    """JSON that an HTML parser sees nothing in. ASCII, so that no encoding can change it."""
    found = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(character, character) for character in found)


@cache
def _asset(name: str) -> str:
    return resources.files("edge_lts_host.report.html").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

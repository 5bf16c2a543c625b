"""What `edge-lts export` wrote, as table, md or json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_lts_host.report import render


def page(data: Mapping[str, Any], output: str) -> str:
    """json is {"schema_version", "arch_id", "decoder_params", "total_params", "formats": [...]}; a table has a line
    per format."""
    if output == "json":
        return render.dump_json({"schema_version": 1, **data})
    rows = [{**entry, "result": _result(entry)} for entry in data["formats"]]
    columns = (("format", "format", str), ("folder", "folder", str), ("result", "result", str))
    return render.records(rows, output, columns, "formats")


def _result(entry: Mapping[str, Any]) -> str:
    if entry["skipped"]:
        return f"skipped: {entry['skipped']}"
    checked = entry["checked"]
    if "max_difference" not in checked:
        return "written"
    return (
        f"written; {checked['n_positions']} positions differ from torch by at most {checked['max_difference']:.1e} "
        f"(scores up to {checked['max_score']:.2g})"
    )

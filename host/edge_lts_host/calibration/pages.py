"""What `proxies`, `validate` and `calibrate` print, as table, md, csv, json or jsonl. Layout only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts_host.calibration.statistics import TOPS
from edge_lts_host.report import render

_CATALOGUE: render.Columns = (
    ("name", "proxy", render.text),
    ("what", "what it is", lambda value: render.text(value, 120)),
    ("cost", "cost", lambda value: render.text(value, 120)),
    ("source", "source", lambda value: render.text(value, 120)),
    ("evidence", "evidence", lambda value: render.text(value, 120)),
)
STATISTICS = {
    "spearman": "Spearman's rho",
    "kendall_tau": "Kendall's tau-b",
    "equal_size_tau": "tau-b at equal size",
    "equal_size_tau_within_d_embed": "the same within one d_embed",
    "equal_total_params_tau": "tau-b at equal total size",
    **{f"common_ratio_top{percent}": f"best {percent} % in common" for percent in TOPS},
}
_CALIBRATED: render.Columns = (
    ("proxy", "written", render.text),
    ("name", "fitted to", render.text),
    ("digest", "digest", render.text),
    ("unit", "unit", render.text),
    ("backbone", "backbone", lambda value: render.text(value or "not known")),
    ("decoder_params", "decoder parameters", lambda value: f"{render.count(value[0])} to {render.count(value[1])}"),
    ("noise", "noise of a label", render.nats),
    ("error", "error, left out", render.nats),
    ("error_of_size_alone", "that of size alone", render.nats),
)


def catalogue(rows: Sequence[Mapping[str, Any]], output: str) -> str:
    return render.records(rows, output, _CATALOGUE, "proxies")


def calibrated(result: Mapping[str, Any], output: str) -> str:
    if output == "json":
        return render.dump_json({"schema_version": 1, **result})
    return render.record(result, output, _CALIBRATED)


def validated(results: Sequence[Mapping[str, Any]], output: str) -> str:
    """One result as it is, several as a list; a table has a row for each statistic and a column for each proxy."""
    if output == "json":
        several = {"schema_version": 1, "validations": list(results)}
        return render.dump_json(results[0] if len(results) == 1 else several)
    if output == "jsonl":
        return "\n".join(json.dumps(one, allow_nan=False) for one in results)
    if output == "csv":
        return render.to_csv([_csv_row(one) for one in results], tuple(_csv_row(results[0])))
    first = results[0]
    cells = [[words, *(_shown(one[key]) for one in results)] for key, words in STATISTICS.items()]
    headings = ["", *(render.text(one["proxy"]["name"], 40) for one in results)]
    panel = first["panel"]
    left_out = f", {first['n_left_out']} left out" if first["n_left_out"] else ""
    head = f"{render.text(panel['name'])}: {first['n_rows']} trained models{left_out}, by {render.text(panel['label'])}"
    pairs = [first[key]["n_pairs"] for key in STATISTICS if key.startswith("equal")]
    notes = [
        f"pairs of equal size: {pairs[0]}, of them within one d_embed {pairs[1]}; of equal total size: {pairs[2]}",
        "parentheses: 95 %, bootstrap over architectures",
    ]
    for one in results:
        if one.get("share_above_bound") is not None:
            name = render.text(one["proxy"]["name"], 40)
            notes.append(
                f"{name} is ranked by its lower bound: {render.percent(one['share_above_bound'])} of the models lie "
                f"above it, {render.percent(one['share_beyond_labels'])} are beyond its labels"
            )
    return "\n\n".join([head, render.table(cells, headings, output), render.bullets(notes, output)])


def _shown(statistic: Mapping[str, Any]) -> str:
    if statistic["value"] is None:
        return "-"
    interval = statistic["ci95"]
    bounds = f" ({render.nats(interval[0])}, {render.nats(interval[1])})" if interval else ""
    return f"{render.nats(statistic['value'])}{bounds}"


def _csv_row(one: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"proxy": one["proxy"]["name"], "panel": one["panel"]["name"], "n_rows": one["n_rows"]}
    for key in STATISTICS:
        low, high = one[key]["ci95"] or (None, None)
        row |= {key: one[key]["value"], f"{key}_ci95_low": low, f"{key}_ci95_high": high}
    return row

"""A report (compare.build_report) as table, md, csv, json or jsonl. Layout only: render.py turns numbers into words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES
from edge_lts.space_rules import VALIDATED
from edge_lts_host.report import decode_time, render
from edge_lts_host.report.compare import outside_share
from edge_lts_host.report.energy import meter_note, rejection_note
from edge_lts_host.report.facts import facts, protocol
from edge_lts_host.report.rows import CSV_KEYS as CSV_KEYS
from edge_lts_host.report.rows import csv_row, value_keys

LEGEND = (
    "[low, high]: where a fresh process would land, 95 % (from three processes on). "
    "(low, high): 95 % interval of\n"
    "the median on this occasion. predicted: what guided search expected before it measured, and its error.\n"
    "outside: share in embedding and head, not in the decoder."
)
LEGEND_PROBABLY = "~: dominated by the medians, but with less than 95 % certainty; it may belong to the frontier."
APART = "These runs measured differently; do not compare their numbers across the groups."
MEMBERS_SHOWN = 20
MEMBERS_NAMED = 5


def report(data: Mapping[str, Any], output: str, members: int = MEMBERS_SHOWN) -> str:
    """json and jsonl carry everything (jsonl one run per line), csv one frontier member per row.

    A table, for reading, shows `members` of each frontier, evenly spread over its order and its ends included; 0: all.
    """
    if output == "json":
        return render.dump_json(data)
    if output == "jsonl":
        return "\n".join(json.dumps(run, allow_nan=False) for run in data["runs"])
    if output == "csv":
        rows = [csv_row(run, member) for run in data["runs"] for member in run["frontier"]]
        own = dict.fromkeys(key for run in data["runs"] for name in _own_objectives(run) for key in value_keys(name))
        return render.to_csv(rows, (*CSV_KEYS, *own))
    return _pages(data, output, members)


def _pages(data: Mapping[str, Any], output: str, members: int) -> str:
    runs = {run["run_id"]: run for run in data["runs"]}
    groups = data["comparable"]
    parts = []
    if len(groups) > 1:
        parts.append(f"> {APART}" if output == "md" else APART)
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            how = protocol(runs[group[0]]["protocol"])
            parts.append(f"## Group {number}: {how}" if output == "md" else f"== group {number}: {how} ==")
        parts += [_page(runs[run_id], output, members) for run_id in group]
    if any(run["frontier"] for run in data["runs"]):
        parts.append("\n".join(_legend(data["runs"])))
    return "\n\n".join(parts)


def _legend(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the signs and columns mean that these runs have."""
    entries = [entry for run in runs for entry in run["frontier"]]
    lines = [LEGEND]
    if any(entry["probably_dominated"] for entry in entries):
        lines.append(LEGEND_PROBABLY)
    if any(decode_time.framework(entry) for entry in entries):
        lines.append(decode_time.LEGEND)
    return lines


def _page(run: Mapping[str, Any], output: str, members: int) -> str:
    known = facts(run)
    shown = _spread(run["frontier"], members)
    if len(shown) < len(run["frontier"]):
        known.append(("frontier", f"{len(shown)} of {len(run['frontier'])} members, evenly spread; --members 0: all"))
    if output == "md":
        head = f"### {render.text(run['run_id'])}\n\n{render.bullets([f'{k}: {v}' for k, v in known], output)}"
    else:
        width = max(len(name) for name, _ in known)
        head = f"{render.text(run['run_id'])}\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in known)
    frontier = run["frontier"]
    if not frontier:
        return f"{head}\n\nNothing measured yet that satisfies the constraints."
    headings, cells = _frontier_table(run, shown)
    page = f"{head}\n\n{render.table(cells, headings, output)}"
    notes = [f"energy: {meter_note(meter)}" for meter in run["energy"]]
    notes += [f"energy: {rejection_note(run['energy_rejected'])}"] if run["energy_rejected"] else []
    notes += [_certificate_note(item, run) for item in run["certificates"]]
    notes += [_health_note(note, run) for note in run["health"]]
    if notes:
        page += f"\n\n{render.bullets(notes, output)}"
    spent = decode_time.section(run, shown, output)
    return f"{page}\n\n{spent}" if spent else page


def _certificate_note(item: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """How much faster anything could be, in the terms that the frontier was searched in."""
    formulas = [name for name in ("decoder_params", "peak_memory_bytes") if name in run["spec"]["objectives"]]
    at = f" at a member's {' and '.join(formulas)}" if formulas else ""
    return (
        f"{item['objective']}: no architecture in this space is more than {render.percent(item['median_share'])} faster"
        f"{at} ({item['confidence']:.0%}; median member, {render.percent(item['largest_share'])} for any member)"
    )


def _health_note(note: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """One entry of `health` as a sentence that names gene or rule, and the first members."""
    ids, is_low = note["members"], note["side"] == "low"
    who = f"{len(ids)} of {len(run['frontier'])} members {'is' if len(ids) == 1 else 'are'}"
    named = ", ".join(ids[:MEMBERS_NAMED]) + (f" and {len(ids) - MEMBERS_NAMED} more" * (len(ids) > MEMBERS_NAMED))
    if note["kind"] == "unvalidated":
        where = f"{'below' if is_low else 'above'} {render.count(note['value'])}"
        return f"{note['rule']}: {who} {where} ({named}); the proxy was not checked there"
    bound = f"{'lower' if is_low else 'upper'} bound {note['value']}"
    return f"{note['gene']}: {who} at its {bound} ({named}); {_remedy(note, run['spec'])}"


def _remedy(note: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    lowest, _ = VALIDATED.get(note["gene"], (None, None))
    if note["side"] == "low" and lowest is not None and note["value"] <= lowest:
        return "beyond it the proxy was not checked"
    if note["side"] == "low" and note["gene"] in ("d_embed", "vocab_size"):
        return "no decoder parameters are lost by less of it"
    if spec["strategy"] != "guided" or spec["settings"].get("widen"):
        return "the space may be too small: take a larger one"
    return "the space may be too small: --widen"


def _spread(frontier: Sequence[Any], n: int) -> Sequence[Any]:
    if n == 0 or len(frontier) <= n:
        return frontier
    last = len(frontier) - 1
    return [frontier[round(last * i / max(1, n - 1))] for i in range(n)]


def _frontier_table(run: Mapping[str, Any], frontier: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    is_emulated = run["is_emulated"]
    known = [*OBJECTIVES, *_own_objectives(run)]
    names = [name for name in known if any(member["objectives"].get(name) is not None for member in frontier)]
    has_time = any("decode_s" in member["split"] for member in frontier)
    has_flags = any(member["flags"] for member in frontier)
    searched = [name for name in names if name.endswith("_s") and name in run["spec"]["objectives"]]
    predicted = [name for name in searched if any(name in member["predicted"] for member in frontier)]
    telling_keys = _telling_keys(run)
    headings = ["arch_id", "layers x d_model", "d_inner", "heads", *telling_keys]
    headings += [render.objective_heading(name, is_emulated=is_emulated) for name in names]
    headings += [f"predicted {name.split('_')[0]}" for name in predicted]
    headings += ["bytes outside"] + ["time outside"] * has_time + ["flags"] * has_flags
    cells = []
    for member in frontier:
        split = member["split"]
        row = [render.member(member), *_shape(member["architecture"])]
        row += [render.text(member["architecture"].get(key)) for key in telling_keys]
        row += [render.objective(name, member["objectives"].get(name)) for name in names]
        row += [
            render.predicted(name, member["predicted"].get(name), member["objectives"].get(name)) for name in predicted
        ]
        row.append(render.percent(outside_share(split["bytes"])))
        if has_time:
            row.append(render.percent(outside_share(split["decode_s"]) if "decode_s" in split else None))
        if has_flags:
            row.append(render.flag_words(member["flags"]))
        cells.append(row)
    return headings, cells


def _shape(architecture: Mapping[str, Any]) -> tuple[str, str, str]:
    layers = architecture["layers"]
    shape = f"{len(layers)} x {architecture['d_model']}"
    return shape, _range([layer["d_inner"] for layer in layers]), _range([layer["n_head"] for layer in layers])


def _telling_keys(run: Mapping[str, Any]) -> list[str]:
    """What tells members' embeddings apart besides their width, and a precision that is a gene."""
    architectures = [member["architecture"] for member in run["frontier"]]
    if all(architecture["d_embed"] == architecture["d_model"] for architecture in architectures):
        keys = ["vocab_size"]
    else:
        keys = ["d_embed", "vocab_size"]
    return [key for key in (*keys, "precision") if len({one.get(key) for one in architectures}) > 1]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _own_objectives(run: Mapping[str, Any]) -> list[str]:
    """Objectives that a command of the user's gave."""
    return [command["name"] for command in run["spec"].get("commands", [])]

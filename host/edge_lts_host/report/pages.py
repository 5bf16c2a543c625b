"""A report (compare.build_report) as table, md, latex, csv, json or jsonl, and the text of its html page. Layout only:
render.py turns numbers into words.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES, QUALITY
from edge_lts.space_rules import VALIDATED
from edge_lts.style import FAMILIES, STYLE_KEYS
from edge_lts_host.counts import evenly
from edge_lts_host.report import baselines, decode_time, proxy, render, shapes
from edge_lts_host.report.compare import outside_share
from edge_lts_host.report.energy import meter_note, rejection_note
from edge_lts_host.report.facts import facts, n_members, protocol
from edge_lts_host.report.rows import CSV_KEYS as CSV_KEYS
from edge_lts_host.report.rows import STYLED_KEYS, csv_row, value_keys

LEGEND = (
    "[low, high]: where a fresh process would land, 95 % (from three processes on). "
    "(low, high): 95 % interval of\n"
    "the median on this occasion. predicted: what guided search expected before it measured, and its error.\n"
    "outside: share in embedding and head, not in the decoder."
)
LEGEND_KNEE = "knee: beyond it, more size costs much more of that than before."
BEHIND = "Behind these numbers"
LEGEND_PROBABLY = "~: dominated by the medians, but with less than 95 % certainty; it may belong to the frontier."
APART = "These runs measured differently; do not compare their numbers across the groups."
NOTHING = "Nothing measured yet that satisfies the constraints."
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
        names = [QUALITY] if any(run.get("proxy") for run in data["runs"]) else []
        names += [name for run in data["runs"] for name in _own_objectives(run)]
        own = dict.fromkeys(key for name in names for key in value_keys(name))
        styled = [key for key in STYLED_KEYS if any(key in row for row in rows)]
        return render.to_csv(rows, (*CSV_KEYS, *styled, *own))
    return _pages(data, output, members)


def _pages(data: Mapping[str, Any], output: str, members: int) -> str:
    runs = {run["run_id"]: run for run in data["runs"]}
    groups = data["comparable"]
    parts = []
    if len(groups) > 1:
        parts.append(f"> {APART}" if output == "md" else render.paragraph(APART, output))
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            name = f"{'Group' if output == 'md' else 'group'} {number}: {protocol(runs[group[0]]['protocol'])}"
            parts.append(render.title(name, output, 1))
        parts += [_page(runs[run_id], output, members) for run_id in group]
    if any(run["frontier"] for run in data["runs"]):
        parts.append(render.paragraph("\n".join(_legend(data["runs"])), output))
    return "\n\n".join(parts)


def _legend(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the signs and columns mean that these runs have."""
    entries = [entry for run in runs for entry in run["frontier"]]
    lines = [LEGEND]
    if any(run.get("proxy") for run in runs):
        lines.append(proxy.LEGEND)
    if any(run["knees"] for run in runs):
        lines.append(LEGEND_KNEE)
    if any(entry["probably_dominated"] for entry in entries):
        lines.append(LEGEND_PROBABLY)
    if any(decode_time.framework(entry) for entry in entries):
        lines.append(decode_time.LEGEND)
    if any(run.get("baselines") for run in runs):
        lines.append(baselines.LEGEND)
    return lines


def _page(run: Mapping[str, Any], output: str, members: int) -> str:
    known, whole = facts(run), run["frontier"]
    shown = whole if output == "html" else _spread(whole, members, {one["arch_id"] for one in run["knees"]})
    known += _selected(run, len(shown))
    frontier = run["frontier"]
    if not frontier:
        why = "No member of the frontier is left." if run.get("selection") else NOTHING
        parts = [_head(run, known, output), render.paragraph(why, output), baselines.section(run, output)]
        return "\n\n".join(part for part in parts if part)
    headings, cells = _frontier_table(run, shown)
    spent = decode_time.section(run, shown, output)
    notes = [_knee_note(one, run) for one in run["knees"] if any(it["arch_id"] == one["arch_id"] for it in frontier)]
    notes += [
        f"every member: {render.flag_words([flag])}"
        for flag in _common_flags(run)
        if not (spent and flag == "framework_bound")
    ]
    notes += [f"energy: {meter_note(meter)}" for meter in run["energy"]]
    notes += [f"energy: {rejection_note(run['energy_rejected'])}"] if run["energy_rejected"] else []
    notes += [_certificate_note(item, run) for item in run["certificates"]]
    notes += [_health_note(note, run) for note in run["health"]]
    behind = _behind_table(run, shown)
    parts = [
        _head(run, known, output),
        render.table(cells, headings, output),
        render.bullets(notes, output) if notes else "",
        f"{render.title(BEHIND, output)}\n\n{render.table(behind[1], behind[0], output)}",
        spent,
        baselines.section(run, output),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(run: Mapping[str, Any], known: Sequence[tuple[str, str]], output: str) -> str:
    name = render.title(render.text(run["run_id"]), output, 2)
    if output == "table":
        width = max(len(key) for key, _ in known)
        return f"{name}\n" + "\n".join(f"  {key:<{width}}  {value}" for key, value in known)
    return f"{name}\n\n{render.bullets([f'{key}: {value}' for key, value in known], output)}"


def _selected(run: Mapping[str, Any], n_shown: int) -> list[tuple[str, str]]:
    """What of the frontier the table shows, where that is not all of it in its own order."""
    chosen, n_left = run.get("selection"), len(run["frontier"])
    lines = []
    if chosen:
        what = f"{n_left} of {chosen['n_frontier']} members"
        what += f" with {' and '.join(map(render.text, chosen['filters']))}" if chosen["filters"] else ""
        lines.append(("selected", what + (f", sorted by {render.text(chosen['sort'])}" if chosen["sort"] else "")))
    if n_shown < n_left:
        lines.append(("frontier", f"{n_shown} of {n_left} members, evenly spread; --members 0: all"))
    return lines


def _knee_note(one: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """A knee as a sentence: who it is, and what size costs on both sides of it."""
    entry = next(entry for entry in run["frontier"] if entry["arch_id"] == one["arch_id"])
    name = _short_name(one["objective"])
    text = f"knee by {name}: {render.text(one['arch_id'])}, {shapes.words(entry['architecture'])}"
    if one["before"] is not None and one["after"] is not None:
        gain = "less perplexity" if one["quality"] == QUALITY else f"more {_short_name(one['quality'])}"
        text += f"; one percent {gain} costs {one['before']:.2g} % more {name} up to it, {one['after']:.2g} % beyond it"
    if one["stability"] is None:
        return f"{text}; too few intervals to say how firm it is"
    near = "1 % of its perplexity" if one["quality"] == QUALITY else "10 % of this"
    return f"{text}; drawn anew within the intervals, it stays within {near} in {one['stability']:.0%} of cases"


def _short_name(objective: str) -> str:
    return render.objective_heading(objective, is_emulated=False).split()[0]


def _common_flags(run: Mapping[str, Any]) -> list[str]:
    """Flags of every member: said once instead of in each row."""
    members = run["frontier"]
    return [flag for flag in members[0]["flags"] if all(flag in one["flags"] for one in members)] if members[1:] else []


def _certificate_note(item: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """How much faster anything could be, in the terms that the frontier was searched in."""
    known = ("decoder_params", QUALITY, "peak_memory_bytes")
    formulas = [name for name in known if name in run["spec"]["objectives"]]
    at = f" at a member's {' and '.join(formulas)}" if formulas else ""
    return (
        f"{item['objective']}: no architecture in this space is more than {render.percent(item['median_share'])} faster"
        f"{at} ({item['confidence']:.0%}; median member, {render.percent(item['largest_share'])} for any member)"
    )


def _health_note(note: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """One entry of `health` as a sentence that names gene or rule, and the first members."""
    ids, is_low = note["members"], note.get("side") == "low"
    who = f"{len(ids)} of {n_members(run)} members {'is' if len(ids) == 1 else 'are'}"
    named = ", ".join(ids[:MEMBERS_NAMED]) + (f" and {len(ids) - MEMBERS_NAMED} more" * (len(ids) > MEMBERS_NAMED))
    if note["kind"] == "extrapolated":
        return f"quality: {who} beyond everything that the proxy was calibrated on ({named}): a guess with wide bounds"
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


def _spread(frontier: Sequence[Any], n: int, always: Collection[str] = ()) -> Sequence[Any]:
    """`n` members evenly spread, ends included, and those that are `always` shown; 0: all."""
    if n == 0 or len(frontier) <= n:
        return frontier
    chosen = set(evenly(len(frontier), n))
    chosen |= {index for index, one in enumerate(frontier) if always and one["arch_id"] in always}
    return [frontier[index] for index in sorted(chosen)]


def _frontier_table(run: Mapping[str, Any], frontier: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """What a person chooses by: shape, size, costs, and marks."""
    names = _measured_names(run, frontier)
    telling_keys, common = _telling_keys(run), _common_flags(run)
    marks = [_marks(run, member, common) for member in frontier]
    headings = ["arch_id", "layers x d_model", "d_inner", "heads", *telling_keys]
    headings += [render.objective_heading(name, is_emulated=run["is_emulated"]) for name in names]
    headings += ["marks"] * any(marks)
    cells = []
    for member, mark in zip(frontier, marks, strict=True):
        row = [render.member(member), *_shape(member["architecture"])]
        row += [render.text(_value(member["architecture"], key)) for key in telling_keys]
        row += [render.objective(name, member["objectives"].get(name)) for name in names]
        cells.append(row + [mark] * any(marks))
    return headings, cells


def _marks(run: Mapping[str, Any], member: Mapping[str, Any], common: Sequence[str]) -> str:
    knees = [_short_name(one["objective"]) for one in run["knees"] if one["arch_id"] == member["arch_id"]]
    words = [f"knee ({', '.join(knees)})"] if knees else []
    words += ["beyond the labels"] if proxy.is_extrapolated(member["objectives"].get(QUALITY)) else []
    own = [flag for flag in member["flags"] if flag not in common]
    return ", ".join([*words, render.flag_words(own)] if own else words)


def _behind_table(run: Mapping[str, Any], frontier: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """What a person checks: predictions, what lies outside the decoder, how often it was measured."""
    searched = [
        name for name in _measured_names(run, frontier) if name.endswith("_s") and name in run["spec"]["objectives"]
    ]
    predicted = [name for name in searched if any(name in member["predicted"] for member in frontier)]
    has_time = any("decode_s" in member["split"] for member in frontier)
    headings = ["arch_id", *(f"predicted {name.split('_')[0]}" for name in predicted), "bytes outside"]
    headings += ["time outside"] * has_time + ["processes"]
    cells = []
    for member in frontier:
        split = member["split"]
        row = [render.member(member)]
        row += [
            render.predicted(name, member["predicted"].get(name), member["objectives"].get(name)) for name in predicted
        ]
        row.append(render.percent(outside_share(split["bytes"])))
        if has_time:
            row.append(render.percent(outside_share(split["decode_s"]) if "decode_s" in split else None))
        cells.append([*row, render.text(member.get("n_processes"))])
    return headings, cells


def _measured_names(run: Mapping[str, Any], frontier: Sequence[Any]) -> list[str]:
    """The objectives that any of these has, searched or not."""
    known = [*OBJECTIVES, *_own_objectives(run)]
    return [name for name in known if any(member["objectives"].get(name) is not None for member in frontier)]


def _shape(architecture: Mapping[str, Any]) -> tuple[str, str, str]:
    layers = architecture["layers"]
    shape = f"{len(layers)} x {architecture['d_model']}"
    return shape, shapes.value_range([layer["d_inner"] for layer in layers]), shapes.heads(layers)


def _telling_keys(run: Mapping[str, Any]) -> list[str]:
    """What tells members' embeddings apart besides their width, and whatever else all layers share and is a gene."""
    architectures = [member["architecture"] for member in run["frontier"]]
    if all(architecture["d_embed"] == architecture["d_model"] for architecture in architectures):
        keys = ["vocab_size"]
    else:
        keys = ["d_embed", "vocab_size"]
    keys += ["precision", "d_head", *STYLE_KEYS]
    return [key for key in keys if len({_value(one, key) for one in architectures}) > 1]


def _value(architecture: Mapping[str, Any], key: str) -> Any:
    """What is written, or what the backbone has."""
    value = architecture.get(key)
    return getattr(FAMILIES[architecture["backbone"]], key) if value is None and key in STYLE_KEYS else value


def _own_objectives(run: Mapping[str, Any]) -> list[str]:
    """Objectives that a command of the user's gave."""
    return [command["name"] for command in run["spec"].get("commands", [])]

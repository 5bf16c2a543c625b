"""The runs as data for the page's script. All words and numbers are made here, by `render`; the script only draws.

    {"groups": [{"title", "runs": [run], "axes": [axis], "quality": axis, "volumes": [...]}]}

Runs of one group share their charts; numbers of different groups never meet in one. An axis is {"name", "label"};
values are in the unit of its label. A point is {"id", "kind", "at": {axis: [value, low, high, how]}, "words", "layers",
"facts": [[key, value]], "marks"}; `how` is what `Bounds.kind` says, low and high null where nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import Objective
from edge_lts.style import STYLE_KEYS
from edge_lts_host.report import along, render, shapes
from edge_lts_host.report.decode_time import framework, one_thread
from edge_lts_host.report.facts import facts, protocol
from edge_lts_host.report.points import Point, drawn_together, is_marked, labels, points, quality_and_costs
from edge_lts_host.report.sides import Side, shared_axes

BACKGROUND = 1500  # points of each run that are on no frontier


def of_report(data: Mapping[str, Any], sides: Sequence[Side]) -> dict[str, Any]:
    """Of a report, in which members may have been left out by a filter."""
    shown = {run["run_id"]: run for run in data["runs"]}
    groups = drawn_together([side for side in sides if side.run["frontier"]])
    return {"groups": [_group(group, shown, None) for group in groups]}


def of_comparison(sides: Sequence[Side], across: Sequence[str], letters: Mapping[str, str]) -> dict[str, Any]:
    shown = {side.run_id: side.run for side in sides}
    groups = drawn_together([side for side in sides if side.run["frontier"]], across)
    return {"groups": [_group(group, shown, letters) for group in groups]}


def _group(
    sides: Sequence[Side], shown: Mapping[str, Mapping[str, Any]], letters: Mapping[str, str] | None
) -> dict[str, Any]:
    quality, costs = quality_and_costs(sides)
    names = labels(sides, letters)
    return {
        "title": protocol(sides[0].run["protocol"]),
        "quality": _axis(quality, sides),
        "axes": [_axis(cost, sides) for cost in costs],
        "runs": [_run(side, shown[side.run_id], names[side.run_id], [quality, *costs]) for side in sides],
        "volumes": [
            {"run_id": one["run_id"], "at": list(zip(_short(one["spent_s"]), _short(one["share"]), strict=True))}
            for one in along.hypervolumes(sides, shared_axes(sides))
        ],
    }


def _axis(objective: Objective, sides: Sequence[Side]) -> dict[str, str]:
    heading = render.objective_heading(objective.name, is_emulated=is_marked(objective.name, sides))
    return {"name": objective.name, "label": heading}


def _run(side: Side, shown: Mapping[str, Any], label: str, axes: Sequence[Objective]) -> dict[str, Any]:
    entries = {entry["arch_id"]: entry for entry in shown["frontier"]}
    found = [one for one in points(side) if one.kind not in ("member", "probable") or one.arch_id in entries]
    besides = {one["arch_id"]: one for one in (shown.get("baselines") or {"members": []})["members"]}
    background = [one for one in found if one.kind == "measured"]
    kept = [one for one in found if one.kind != "measured"] + background[:: max(1, -(-len(background) // BACKGROUND))]
    return {
        "run_id": side.run_id,
        "label": label,
        "facts": [[key, value] for key, value in facts(side.run)],
        "points": [
            _point(one, (besides if one.kind == "baseline" else entries).get(one.arch_id), side, axes) for one in kept
        ],
    }


def _point(one: Point, entry: Mapping[str, Any] | None, side: Side, axes: Sequence[Objective]) -> dict[str, Any]:
    at = {}
    for axis in axes:
        if axis.name in one.values:
            unit = render.OBJECTIVE_UNITS[axis.name][2] if axis.name in render.OBJECTIVE_UNITS else 1.0
            where = one.bounds.get(axis.name)
            reach = [None, None, None] if where is None else [where.low / unit, where.high / unit, where.kind]
            at[axis.name] = [one.values[axis.name] / unit, *reach]
    point: dict[str, Any] = {"id": one.arch_id, "kind": one.kind, "at": at}
    if one.name:
        point["name"] = one.name
    if entry is not None:
        knees = [knee["objective"] for knee in side.run["knees"] if knee["arch_id"] == one.arch_id]
        point |= {
            "words": shapes.words(entry["architecture"]),
            "layers": [[layer["n_head"], layer["d_inner"]] for layer in entry["architecture"]["layers"]],
            "d_model": entry["architecture"]["d_model"],
            "knees": knees,
            "marks": [f"knee by {_heading(name)}" for name in knees],
            "facts": [[key, value] for key, value in _evidence(entry, side) if value != "-"],
        }
    return point


def _evidence(entry: Mapping[str, Any], side: Side) -> list[tuple[str, str]]:
    """What stands behind a member: every value with its interval, each process, predictions, doubts."""
    arch, is_emulated = entry["architecture"], side.is_emulated
    lines = []
    for name, value in entry["objectives"].items():
        heading, where = render.objective_heading(name, is_emulated=is_emulated), side.bounds(name, value)
        lines.append((heading, render.objective(name, value)))
        if where is not None and where.kind == "borrowed":
            reach = f"±[{render.objective(name, where.low)}, {render.objective(name, where.high)}]"
            lines.append((f"{_heading(name)}, as usual in this run", reach))
    for name, value in one_thread(entry).items():
        heading = render.objective_heading(name, is_emulated=is_emulated)
        lines.append((f"{heading}, 1 thread", render.objective(name, value)))
    for name, medians in entry.get("process_medians", {}).items():
        if name.endswith("_latency_s") and len(medians) > 1:
            shown = ", ".join(render.objective(name, value) for value in medians)
            lines.append((f"{_heading(name)} of each process, as measured", shown))
    for name, value in entry.get("predicted", {}).items():
        lines.append((f"{_heading(name)} predicted", render.predicted(name, value, entry["objectives"].get(name))))
    lines.append(("processes", render.text(entry.get("n_processes"))))
    share = framework(entry).get("dispatch_share")
    if isinstance(share, (int, float)):
        lines.append(("share of dispatching", render.percent(share)))
    parts = entry["split"]["bytes"] if "split" in entry else {}
    lines.append(("bytes", ", ".join(f"{name} {render.size(number)}" for name, number in parts.items()) or "-"))
    for key in ("backbone", "d_embed", "embedding_factor", "vocab_size", "max_seq_len", "precision"):
        lines.append((key, render.text(arch.get(key))))
    lines += [(key, render.text(arch[key])) for key in ("d_head", *STYLE_KEYS) if key in arch]
    if entry.get("probably_dominated"):
        lines.append(("~", "dominated by the medians, with less than 95 % certainty"))
    lines.append(("flags", render.flag_words(entry["flags"]) or "none"))
    return lines


def _heading(name: str) -> str:
    return render.objective_heading(name, is_emulated=False).split()[0]


def _short(values: Sequence[float]) -> list[float]:
    """Six digits, which is more than a screen has."""
    return [float(f"{value:.6g}") for value in values]

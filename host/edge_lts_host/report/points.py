"""What a picture or a chart shows of a run: its members, baselines and everything else measured, each with where its
values lie. Plain data in SI units, for `plots` and `html` alike, so that both show the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edge_lts.objectives import OBJECTIVES, QUALITY, Objective
from edge_lts_host.counts import evenly
from edge_lts_host.report import render
from edge_lts_host.report.along import measured
from edge_lts_host.report.intervals import Bounds, centre
from edge_lts_host.report.sides import Side, is_performance, partition

Kind = Literal["member", "probable", "baseline", "measured"]
MAX_BACKGROUND = 3000  # of what is measured and on no frontier


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One architecture: `values` by objective, `bounds` where an interval is known; `family` and `name` of a
    baseline."""

    arch_id: str
    kind: Kind
    values: Mapping[str, float]
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    family: str = ""
    name: str = ""


def points(side: Side) -> list[Point]:
    """Members in the report's order, then baselines, then at most MAX_BACKGROUND others, evenly chosen."""
    found = [_member(side, entry) for entry in side.run["frontier"]]
    found += baselines(side)
    known = {point.arch_id for point in found}
    others = [(arch_id, values) for arch_id, (_, values) in measured(side).items() if arch_id not in known]
    shown = [others[place] for place in evenly(len(others), MAX_BACKGROUND)]
    return found + [Point(arch_id=arch_id, kind="measured", values=values) for arch_id, values in shown]


def baselines(side: Side) -> list[Point]:
    """What was measured beside the search to compare with, as `baselines` has it; without those that failed."""
    entries = [one for one in (side.run.get("baselines") or {"members": []})["members"] if one["objectives"]]
    return [
        replace(
            _member(side, {**one, "probably_dominated": False}),
            kind="baseline",
            family=render.text(one["family"]),
            name=render.text(one["label"]),
        )
        for one in entries
    ]


def _member(side: Side, entry: Mapping[str, Any]) -> Point:
    values, reach = {}, {}
    for name, value in entry["objectives"].items():
        middle = centre(value)
        if middle is not None:
            values[name] = middle
            where = side.bounds(name, value)
            if where is not None and where.kind != "exact":
                reach[name] = where
    kind: Kind = "probable" if entry["probably_dominated"] else "member"
    return Point(arch_id=entry["arch_id"], kind=kind, values=values, bounds=reach)


def quality_and_costs(sides: Sequence[Side]) -> tuple[Objective, list[Objective]]:
    """What is drawn upwards, and what against it: all that the runs searched, and whatever else all have measured."""
    searched = sides[0].spec.resolved_objectives
    quality = next((one for one in searched if one.direction == "max"), OBJECTIVES["decoder_params"])
    known = dict.fromkeys([one.name for one in searched] + list(OBJECTIVES))
    axes = {**OBJECTIVES, **{one.name: one for one in searched}}
    costs = []
    for name in known:
        has = all(
            any(centre(entry["objectives"].get(name)) is not None for entry in side.run["frontier"]) for side in sides
        )
        if axes[name].direction == "min" and has:
            costs.append(axes[name])
    return quality, costs


def drawn_together(sides: Sequence[Side], across: Sequence[str] = ()) -> list[list[Side]]:
    """Runs that share a picture: they measured alike, an emulated board is never beside a real one, and what one proxy
    calls quality never beside what another one does."""
    groups: dict[tuple[int, bool, str], list[Side]] = {}
    for number, group in enumerate(partition(sides, across)):
        for side in sorted(group, key=lambda one: one.is_emulated):
            proxy = (side.run.get("proxy") or {}) if QUALITY in side.spec.objectives else {}
            groups.setdefault((number, side.is_emulated, str(proxy.get("digest", ""))), []).append(side)
    return list(groups.values())


def labels(sides: Sequence[Side], letters: Mapping[str, str] | None = None) -> dict[str, str]:
    """What each run is called in a picture: its letter, its board, and what tells it from the others."""
    words: dict[str, list[str]] = {}
    for side in sides:
        device, protocol = side.run["device"] or {}, side.run["protocol"]
        model = device.get("model") or device.get("cpu_model") or device.get("machine") or side.run["target"]
        words[side.run_id] = [
            render.text(model, 36) + (" (emulated)" if side.is_emulated else ""),
            f"{protocol['threads'] or 'all'} thread{'s' * (protocol['threads'] != 1)}",
            render.text(protocol["precision"]),
        ]
    keep = [at for at in range(3) if at == 0 or len({own[at] for own in words.values()}) > 1]
    named = {run_id: ", ".join(own[at] for at in keep) for run_id, own in words.items()}
    if len(set(named.values())) < len(named):
        named = {run_id: f"{name}, {run_id.rpartition('-')[2]}" for run_id, name in named.items()}
    return {run_id: f"{letters[run_id]}: {name}" if letters else name for run_id, name in named.items()}


def is_marked(cost: str, sides: Sequence[Side]) -> bool:
    """Whether that axis says nothing of performance because the board is emulated."""
    return is_performance(cost) and any(side.is_emulated for side in sides)

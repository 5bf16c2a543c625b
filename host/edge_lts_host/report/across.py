"""Several runs against one another, as plain data (`edge-lts compare`): what differs between boards, what only noise.

Runs are compared in groups that measured alike; numbers of different groups never meet. `across` names what may differ
in a group because it is part of what is compared, as two boards of one machine: `threads`, `precision`. Threads may
also where every run left them to its board. Within a group, on the axes that all runs searched:

    levels       the fastest (smallest, ...) member of each run that is at least so good, side by side, with ratios
    hypervolume  of each frontier on a common reference, as a share of what all frontiers reach together
    pairs        for any two runs: rank correlation over what both measured, ratios in short, and genes that differ
    transfers    what was re-timed from one board on another (`transfer`)

Timings of emulated boards are never compared. Differences inside the intervals are not called differences
(`intervals`). Knows records, not transports; formats nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from edge_lts.objectives import QUALITY, Objective
from edge_lts.records import Evaluation
from edge_lts_host.report import proxy
from edge_lts_host.report.intervals import Bounds, centre, ratio
from edge_lts_host.report.pairs import hypervolume, pair
from edge_lts_host.report.quality import LATENCIES
from edge_lts_host.report.sides import Side, differing, grouped, is_performance, load_sides, shared_axes
from edge_lts_host.report.transfer import Session, regrets
from edge_lts_host.store import RunFolder

COMPARISON_SCHEMA_VERSION = 1


def build_comparison(
    folders: Sequence[RunFolder],
    *,
    across: Collection[str] = (),
    n_levels: int = 6,
    sessions: Sequence[Session] = (),
) -> dict[str, Any]:
    """The comparison of these runs in the order given, each once. Raises UsageError where nothing can be compared."""
    return compare_sides(load_sides(folders), across=across, n_levels=n_levels, sessions=sessions)


def compare_sides(
    sides: Sequence[Side], *, across: Collection[str], n_levels: int, sessions: Sequence[Session] = ()
) -> dict[str, Any]:
    """The same of what was read already."""
    groups = grouped(sides, across)
    for side in sides:
        latest = [one for one in sessions if one.onto == side.run_id]
        side.transferred = [one for it in latest for _, one in it.outcomes if isinstance(one, Evaluation)]
    return {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "runs": [_summary(side) for side in sides],
        "groups": [_group(group, n_levels, sessions) for group in groups],
    }


def _summary(side: Side) -> dict[str, Any]:
    run = side.run
    keys = (
        "run_id",
        "target",
        "host",
        "boards",
        "device",
        "protocol",
        "state",
        "n_measured",
        "spent_s",
        "is_emulated",
        "warnings",
    )
    return {
        **{key: run[key] for key in keys},
        "proxy": run.get("proxy"),
        "objectives": list(side.spec.objectives),
        "space": side.spec.space.get("name"),
        "strategy": side.spec.strategy,
        "budget_s": side.spec.budget_s,
        "n_members": len(side.members),
        "n_probable": len(run["frontier"]) - len(side.members),
    }


def _group(sides: Sequence[Side], n_levels: int, sessions: Sequence[Session]) -> dict[str, Any]:
    axes = shared_axes(sides)
    data: dict[str, Any] = {
        "runs": [side.run_id for side in sides],
        "protocol": sides[0].run["protocol"],
        "differs": differing(sides),
        "axes": [axis.name for axis in axes],
        "warnings": _warnings(sides),
        "quality": None,
        "levels": [],
        "hypervolume": None,
        "pairs": [],
        "transfers": [],
    }
    if len(sides) == 1:
        return data
    quality = next((axis for axis in axes if axis.direction == "max"), None)
    costs = [axis for axis in axes if axis.direction == "min"]
    is_mixed = not _have_one_quality(sides)
    if quality is not None:
        data["quality"] = quality.name
        data["levels"] = _levels(sides, quality, costs, n_levels)
    data["hypervolume"] = None if is_mixed else hypervolume(sides, axes)
    combinations = list(itertools.combinations(sides, 2))
    data["pairs"] = [pair(a, b, data, len(combinations)) for a, b in combinations]
    ids = {side.run_id for side in sides}
    found = [one for session in sessions if session.onto in ids for one in regrets(session) if one["from"] in ids]
    data["transfers"] = list({(one["from"], one["onto"]): one for one in found}.values())  # the newest of each
    return data


def _have_one_quality(sides: Sequence[Side]) -> bool:
    """Whether they were all ranked by one proxy, or none by a calibrated one."""
    searched = [QUALITY in side.spec.objectives for side in sides]
    return not any(searched) or (all(searched) and proxy.is_shared(side.run for side in sides))


def _warnings(sides: Sequence[Side]) -> list[str]:
    """What makes the frontiers less than fully comparable, although their numbers are."""
    warnings = []

    def values(of: Iterable[Any]) -> list[str]:
        return sorted({str(one) for one in of})

    for what, found in (
        ("backbone", values(side.spec.space.get("backbone") for side in sides)),
        ("space", values(side.spec.space.get("name") for side in sides)),
        ("torch", values((side.run["device"] or {}).get("torch") for side in sides)),
    ):
        if len(found) > 1:
            warnings.append(f"{what} differs: {', '.join(found)}")
    if len({side.spec.constraints for side in sides}) > 1:
        warnings.append("the runs searched under different constraints, which cut their frontiers")
    if not _have_one_quality(sides):
        names = [f"{side.run_id} by {_ranked_by(side)}" for side in sides]
        warnings.append(f"the runs ranked architectures differently, so nothing is compared on it: {'; '.join(names)}")
    warnings += [f"{side.run_id} has no frontier" for side in sides if not side.members]
    warnings += [
        f"{side.run_id} is emulated: its timings are shown and compared with nothing"
        for side in sides
        if side.is_emulated
    ]
    warnings += [
        f"{side.run_id} is not over ({side.run['state']})"
        for side in sides
        if side.run["state"] not in ("done", "stopped")
    ]
    warnings += [note for side in sides for note in side.notes]
    loose = [side.run_id for side in sides if side.members and not any(name in side.widths for name in LATENCIES)]
    if loose:
        warnings.append(
            f"no member of {', '.join(loose)} was measured in three processes: nothing is known of its spread, so no "
            "difference in time is claimed"
        )
    return warnings


def _ranked_by(side: Side) -> str:
    found = side.run.get("proxy")
    if QUALITY not in side.spec.objectives or not found:
        return next((one.name for one in side.spec.resolved_objectives if one.direction == "max"), "nothing")
    return f"the proxy {found['name']} ({found['digest']})"


# Levels ---------------------------------------------------------------------------------------------------------------


def _levels(
    sides: Sequence[Side], quality: Objective, costs: Sequence[Objective], n_levels: int
) -> list[dict[str, Any]]:
    ranges = [
        [number for entry in side.members if (number := centre(entry["objectives"].get(quality.name))) is not None]
        for side in sides
    ]
    if not all(ranges):
        return []
    low, high = max(map(min, ranges)), min(map(max, ranges))
    return [
        {"quality": level, "cells": {cost.name: _cells(sides, quality.name, level, cost.name) for cost in costs}}
        for level in _spaced(low, high, n_levels)
    ]


def _spaced(low: float, high: float, n: int) -> list[float]:
    """`n` levels from low to high, in equal ratios where that is possible; none where the ranges do not meet."""
    if low > high:
        return []
    if low == high or n == 1:
        return [high]
    steps = [index / (n - 1) for index in range(1, n - 1)]
    between = (
        [low * (high / low) ** step for step in steps] if low > 0 else [low + (high - low) * step for step in steps]
    )
    return [low, *between, high]


def _cells(sides: Sequence[Side], quality: str, level: float, cost: str) -> list[dict[str, Any]]:
    """For each run the member that is at least so good and costs least, and its ratio to the first run's."""
    cells: list[dict[str, Any]] = []
    for side in sides:
        able = [
            (value, index, entry)
            for index, entry in enumerate(side.members)
            if (value := centre(entry["objectives"].get(cost))) is not None
            and (good := centre(entry["objectives"].get(quality))) is not None
            and good >= level
        ]
        if not able:
            cells.append({"run_id": side.run_id, "arch_id": None, "value": None, "interval": None, "ratio": None})
            continue
        value, _, entry = min(able)
        found = side.bounds(cost, entry["objectives"][cost])
        cell: dict[str, Any] = {
            "run_id": side.run_id,
            "arch_id": entry["arch_id"],
            "architecture": entry["architecture"],
            "value": value,
            "interval": None if found is None else found.to_json(),
            "ratio": None,
        }
        first = cells[0] if cells else None
        may_compare = not (is_performance(cost) and (side.is_emulated or sides[0].is_emulated))
        if first is not None and first["value"] is not None and may_compare:
            cell["ratio"] = ratio(value, found, first["value"], Bounds.from_json(first["interval"]))
        cells.append(cell)
    return cells

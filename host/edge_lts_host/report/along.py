"""What happened along a run, as plain data: the hypervolume reached by each moment, and the board's state then.

Hypervolume is that of everything measured so far, in logarithmic units up to a tenth beyond the worst value of any
frontier, as `pairs.hypervolume` has it; a share of what all runs drawn together reach in the end. Each architecture
counts from the moment of its first measurement with the value that all its processes gave in the end, so that a lucky
first sample makes no step that is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.frontier import Frontier
from edge_lts.objectives import Objective
from edge_lts.records import ASIDE, TAINTS, Evaluation, central
from edge_lts.speed import ANCHORS, MIN_PROCESSES, anchors_of, at_pool_speed
from edge_lts.stats import median
from edge_lts_host.report.quality import mapping, number
from edge_lts_host.report.sides import Side

MAX_STEPS = 200
MARGIN = 1.1  # the reference point lies so far beyond the worst value


def measured(side: Side) -> dict[str, tuple[float, dict[str, float]]]:
    """Each architecture that the run measured: seconds spent when it was first, and its values at the usual speed."""
    groups: dict[str, list[Evaluation]] = {}
    for outcome in side.outcomes:
        if isinstance(outcome, Evaluation) and outcome.purpose not in ASIDE:
            groups.setdefault(outcome.architecture.arch_id, []).append(outcome)
    frontier = Frontier(side.spec.resolved_objectives, side.spec.constraints)
    for arch_id, group in groups.items():
        for outcome in group:
            frontier.add(arch_id, outcome)
    return {
        member.arch_id: (
            groups[member.arch_id][0].spent_s,
            {name: float(it) for name, value in member.objectives.items() if (it := central(value)) is not None},
        )
        for member in frontier.combine(list(groups.items()), ())
    }


def hypervolumes(sides: Sequence[Side], axes: Sequence[Objective]) -> list[dict[str, Any]]:
    """For each run {"run_id", "spent_s": [...], "share": [...]}, steps at growing times up to its end.

    [] with fewer than two axes, or where nothing positive was measured.
    """
    import moocore  # type: ignore[import-untyped]  # it ships no types
    import numpy as np

    found = []
    for side in sides:
        allowed = {one.name: one for one in side.spec.constraints}
        rows = []
        for spent_s, values in measured(side).values():
            is_within = all(name in values and limit.allows(values[name]) for name, limit in allowed.items())
            logs = [axis.log(values[axis.name]) if axis.name in values else None for axis in axes]
            known = [axis.loss(log) for axis, log in zip(axes, logs, strict=True) if log is not None]
            if is_within and len(known) == len(axes):
                rows.append((spent_s, known))
        if rows:
            rows.sort(key=lambda row: row[0])
            found.append((side.run_id, np.array([row[0] for row in rows]), np.array([row[1] for row in rows])))
    if len(axes) < 2 or not found:
        return []
    fronts = [losses[moocore.is_nondominated(losses)] for _, _, losses in found]
    together = np.concatenate(fronts)
    corner = together.max(axis=0) + math.log(MARGIN)
    joint = float(moocore.hypervolume(together, ref=corner))
    curves = []
    for run_id, times, losses in found:
        ends = sorted({round(len(times) * (step + 1) / MAX_STEPS) for step in range(MAX_STEPS)} - {0})
        kept, start, shares = losses[:0], 0, []
        for end in ends:
            kept = np.concatenate((kept, losses[start:end]))
            kept, start = kept[moocore.is_nondominated(kept)], end
            shares.append(float(moocore.hypervolume(kept, ref=corner)) / joint)
        steps = [float(times[end - 1]) for end in ends]
        end_s = max(steps[-1], *(float(side.run["spent_s"]) for side in sides if side.run_id == run_id))
        curves.append({"run_id": run_id, "spent_s": [*steps, end_s], "share": [*shares, shares[-1]]})
    return curves


def conditions(side: Side) -> list[dict[str, Any]]:
    """The board's state at each process in the ledger's order; None for what could not be read.

    "slowdown": how much slower than usual the anchors were, the median over them; None with too few processes.
    """
    rows = [one for one in side.outcomes if isinstance(one, Evaluation)]
    # Those of a baseline may be of another kind than the run's.
    anchors = [{} if one.purpose == "baseline" else anchors_of(at_pool_speed(one)) for one in rows]
    usual = {
        name: median(seen)
        for name in ANCHORS
        if len(seen := [found[name] for found in anchors if name in found]) >= MIN_PROCESSES
    }
    found = []
    for row, its in zip(rows, anchors, strict=True):
        health = mapping(row.conditions.get("health"))
        clock, heat = mapping(health.get("frequency_hz")), mapping(health.get("temperature_c"))
        lows = [value for key in ("min", "after") if (value := number(clock.get(key))) is not None]
        slower = [its[name] / usual[name] for name in usual if name in its]
        found.append(
            {
                "spent_s": row.spent_s,
                "board": row.board,
                "temperature_c": _highest(heat, ("before", "max", "after")),
                "frequency_hz": min(lows, default=None),
                "slowdown": median(slower) if slower else None,
                "taints": [flag for flag in row.flags if flag in TAINTS],
            }
        )
    return found


def _highest(values: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    return max((value for key in keys if (value := number(values.get(key))) is not None), default=None)

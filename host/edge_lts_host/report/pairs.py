"""Frontiers against one another: hypervolume on a common reference, and what is said of any two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import Objective
from edge_lts.stats import median
from edge_lts_host.report.intervals import Bounds, centre, is_firm, ratio
from edge_lts_host.report.quality import LATENCIES
from edge_lts_host.report.ranks import Pair, rank_correlation
from edge_lts_host.report.shapes import differing_genes
from edge_lts_host.report.sides import Side, is_performance

_MOST_RANKED, _LEAST_RANKED = 400, 60  # architectures
_MARGIN = 1.1  # the reference point lies so far beyond the worst value


def hypervolume(sides: Sequence[Side], axes: Sequence[Objective]) -> dict[str, Any] | None:
    """Volumes in logarithmic units (a factor is a length) up to a tenth beyond the worst value of any frontier.

    `low` and `high`: all of a run's values at the bad or the good ends of their intervals at once, which is wide. None
    with fewer than two axes to compare on, or where a value has no logarithm.
    """
    import moocore  # type: ignore[import-untyped]  # it ships no types
    import numpy as np

    if any(side.is_emulated for side in sides):
        axes = [axis for axis in axes if not is_performance(axis.name)]
    sides = [side for side in sides if side.members]
    if len(axes) < 2 or len(sides) < 2:
        return None
    losses: dict[str, list[list[list[float]]]] = {"median": [], "low": [], "high": []}
    firm = []
    for side in sides:
        rows = [[_three(side, axis, entry) for axis in axes] for entry in side.members]
        for index, kind in enumerate(losses):
            logs = [
                [None if value is None else axis.log(value[index]) for axis, value in zip(axes, row, strict=True)]
                for row in rows
            ]
            known = [[axis.loss(log) for axis, log in zip(axes, row, strict=True) if log is not None] for row in logs]
            if any(len(row) < len(axes) for row in known):
                return None
            losses[kind].append(known)
        firm.append(
            all(
                is_firm(side.bounds(axis.name, entry["objectives"][axis.name]))
                for entry in side.members
                for axis in axes
            )
        )
    everything = np.array([row for rows in losses["median"] for row in rows])
    corner = everything.max(axis=0) + math.log(_MARGIN)
    joint = float(moocore.hypervolume(everything, ref=corner))
    shares = {
        kind: [float(moocore.hypervolume(np.array(rows), ref=corner)) / joint for rows in found]
        for kind, found in losses.items()
    }
    return {
        "axes": [axis.name for axis in axes],
        "reference": {axis.name: axis.from_log(axis.loss(float(at))) for axis, at in zip(axes, corner, strict=True)},
        "joint": joint,
        "runs": [
            {
                "run_id": side.run_id,
                "share": middle,
                "low": min(low, middle),
                "high": max(high, middle),
                "is_firm": sure,
            }
            for side, middle, low, high, sure in zip(
                sides, shares["median"], shares["low"], shares["high"], firm, strict=True
            )
        ],
    }


def _three(side: Side, axis: Objective, entry: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(median, the bad end, the good end) of a member on one axis."""
    value = entry["objectives"].get(axis.name)
    middle = centre(value)
    if middle is None:
        return None
    found = side.bounds(axis.name, value) or Bounds(middle, middle, "ci95")
    return (middle, found.high, found.low) if axis.direction == "min" else (middle, found.low, found.high)


def pair(a: Side, b: Side, group: Mapping[str, Any], n_pairs: int = 1) -> dict[str, Any]:
    """What is said of two runs of a `group` with `n_pairs` pairs: the more pairs, the fewer architectures rank each."""
    is_emulated = a.is_emulated or b.is_emulated
    return {
        "a": a.run_id,
        "b": b.run_id,
        "ratios": _ratios(a, b, group),
        "rank_correlation": {} if is_emulated else _correlations(a, b, n_pairs),
        "genes": [] if is_emulated else differing_genes(*(_sized(side) for side in (a, b))),
        "n_common_members": len({one["arch_id"] for one in a.members} & {one["arch_id"] for one in b.members}),
    }


def _sized(side: Side) -> list[tuple[float, Mapping[str, Any]]]:
    return [(float(entry["objectives"]["decoder_params"]), entry["architecture"]) for entry in side.members]


def _ratios(a: Side, b: Side, group: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By cost: b over a at each level in short. `n_different` of `n` levels, `n_open` where it cannot be told."""
    found: dict[str, dict[str, Any]] = {}
    for level in group["levels"]:
        for cost, cells in level["cells"].items():
            if is_performance(cost) and (a.is_emulated or b.is_emulated):
                continue
            one, other = ({cell["run_id"]: cell for cell in cells}[side.run_id] for side in (a, b))
            if one["value"] is None or other["value"] is None:
                continue
            its, of = Bounds.from_json(other["interval"]), Bounds.from_json(one["interval"])
            item = ratio(other["value"], its, one["value"], of)
            if item is not None:
                found.setdefault(cost, {"all": []})["all"].append(item)
    return {
        cost: {
            "n": len(items["all"]),
            "median": median([item["ratio"] for item in items["all"]]),
            "low": min(item["ratio"] for item in items["all"]),
            "high": max(item["ratio"] for item in items["all"]),
            "n_different": sum(item["is_different"] is True for item in items["all"]),
            "n_open": sum(item["is_different"] is None for item in items["all"]),
        }
        for cost, items in found.items()
    }


def _correlations(a: Side, b: Side, n_pairs: int) -> dict[str, dict[str, Any]]:
    """By latency: over every architecture that both boards measured, in a search or in a session of transfers.

    Of very many only some, because ranking is quadratic in them: those whose arch_id is first, which is as good as
    drawn by lot.
    """
    most = max(_LEAST_RANKED, int(_MOST_RANKED / math.sqrt(n_pairs)))
    both = a.shared_ids(b, most)
    values = [side.combined(both) for side in (a, b)]
    found = {}
    for name in LATENCIES:
        pairs = []
        for arch_id in both:
            one, other = (value[arch_id].to_json()["objectives"].get(name) for value in values)
            x, y = centre(one), centre(other)
            if x is not None and y is not None:
                size = float(values[0][arch_id].architecture.decoder_params)
                pairs.append(Pair(size, x, y, a.bounds(name, one), b.bounds(name, other)))
        found[name] = rank_correlation(pairs)
    return found

"""Frontiers as scatter plots: quality upwards, each cost to the right, both logarithmic, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.report import render
from edge_lts_host.report.plots import style
from edge_lts_host.report.points import Point, is_marked, labels, points, quality_and_costs
from edge_lts_host.report.sides import Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 4
NOTE = "bars: 95 %, where a fresh process would land; dotted: this occasion alone"


def draw(sides: Sequence[Side], folder: Path, name: str, letters: Mapping[str, str] | None = None) -> list[Path]:
    """One panel for each cost, all runs in each; [] where there is nothing to draw."""
    sides = [side for side in sides if side.run["frontier"]]
    if not sides:
        return []
    quality, costs = quality_and_costs(sides)
    costs = costs[:MAX_PANELS]
    if not costs:
        return []
    found = {side.run_id: points(side) for side in sides}
    names = labels(sides, letters)
    with style.settings():
        figure, grid = style.new_figure(len(costs))
        for panel, cost in zip(grid[0], costs, strict=True):
            reach: tuple[list[float], list[float]] = ([], [])
            for index, side in enumerate(sides):
                _run(panel, side, found[side.run_id], quality.name, cost.name, index, names, reach, len(sides) > 1)
            _axes(panel, quality.name, cost.name, reach, is_emulated=is_marked(cost.name, sides))
        style.legend(figure, grid[0], NOTE)
        figure.suptitle(_title(sides, names))
        return style.save(figure, folder, name)


def _title(sides: Sequence[Side], names: Mapping[str, str]) -> str:
    if len(sides) > 1:
        return "Frontiers on shared axes"
    return f"{names[sides[0].run_id]}  ({sides[0].run_id})"


def scale(name: str) -> float:
    """The unit of an axis in SI."""
    return render.OBJECTIVE_UNITS[name][2] if name in render.OBJECTIVE_UNITS else 1.0


def _axes(panel: Axes, quality: str, cost: str, reach: tuple[list[float], list[float]], *, is_emulated: bool) -> None:
    panel.set_xlabel(render.objective_heading(cost, is_emulated=is_emulated))
    panel.set_ylabel(render.objective_heading(quality, is_emulated=False))
    for axis, set_scale, values in zip(
        (panel.xaxis, panel.yaxis), (panel.set_xscale, panel.set_yscale), reach, strict=True
    ):
        if values and min(values) > 0:
            set_scale("log")
            style.ticks(axis, min(values), max(values))


def _run(
    panel: Axes,
    side: Side,
    found: Sequence[Point],
    quality: str,
    cost: str,
    index: int,
    names: Mapping[str, str],
    reach: tuple[list[float], list[float]],
    is_several: bool,
) -> None:
    colour, marker = style.COLOURS[index % len(style.COLOURS)], style.MARKERS[index % len(style.MARKERS)]
    x_unit, y_unit = scale(cost), scale(quality)
    drawn = [one for one in found if quality in one.values and cost in one.values]
    if not is_several:
        _dots(panel, [one for one in drawn if one.kind == "measured"], quality, cost)
    members = [one for one in drawn if one.kind == "member"]
    probable = [one for one in drawn if one.kind == "probable"]
    others = [one for one in drawn if one.kind == "baseline"]
    for one in (*members, *others):
        where = one.bounds.get(cost)
        y = one.values[quality] / y_unit
        if where is not None and where.low > 0:
            line: Any = "dotted" if where.kind == "ci95" else "solid"
            panel.hlines(y, where.low / x_unit, where.high / x_unit, colors=colour, linestyles=line, lw=0.8, alpha=0.45)
    label = names[side.run_id] if is_several else "member of the frontier"
    panel.plot(*_xy(members, cost, quality), marker, color=colour, ms=4.5, label=label)
    if probable:
        words = None if is_several else "probably dominated (~)"
        panel.plot(*_xy(probable, cost, quality), marker, mfc="white", mec=colour, ms=4, mew=0.9, label=words)
    for at, family in enumerate(dict.fromkeys(one.family for one in others)):
        own = [one for one in others if one.family == family]
        mark = style.MARKERS[-1 - at % 3]
        panel.plot(*_xy(own, cost, quality), mark, color="black", mec="white", ms=7, label=f"baseline {family}")
        for one in own if not is_several else ():
            _tag(panel, one, cost, quality, one.name.removeprefix(family).strip(), (5, -9))
    ids = {one["arch_id"] for one in side.run["knees"] if one["objective"] == cost}
    for one in members:
        if one.arch_id in ids:
            words = "_" if is_several and index else "knee"
            panel.plot(*_xy([one], cost, quality), "o", mfc="none", mec="black", ms=11, mew=1.2, label=words)
            if not is_several:
                _tag(panel, one, cost, quality, one.arch_id, (8, -3))
    for values, name in zip(reach, (cost, quality), strict=True):
        for one in (*members, *probable, *others):
            where = one.bounds.get(name)
            ends = [] if where is None else [where.low, where.high]
            values += [value / scale(name) for value in (one.values[name], *ends) if value > 0]


def _dots(panel: Axes, others: Sequence[Point], quality: str, cost: str) -> None:
    if others:
        panel.plot(*_xy(others, cost, quality), ".", color=style.GREY, ms=3, alpha=0.6, label="measured", zorder=1)


def _xy(found: Sequence[Point], cost: str, quality: str) -> tuple[list[float], list[float]]:
    return [one.values[cost] / scale(cost) for one in found], [one.values[quality] / scale(quality) for one in found]


def _tag(panel: Axes, one: Point, cost: str, quality: str, words: str, offset: tuple[int, int]) -> None:
    at = (one.values[cost] / scale(cost), one.values[quality] / scale(quality))
    panel.annotate(words, at, xytext=offset, textcoords="offset points", fontsize=7)

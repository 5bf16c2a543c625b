"""Latency by kind of layer as stacked bars, the measured whole beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.report import render
from edge_lts_host.report.intervals import centre
from edge_lts_host.report.layer_kinds import KINDS, breakdown
from edge_lts_host.report.plots import style
from edge_lts_host.report.plots.frontier import scale
from edge_lts_host.report.sides import Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 12
NOTE = "parts: the cost model fitted to this run, not a profile; diamonds: measured, 95 %"


def draw(side: Side, folder: Path, name: str) -> list[Path]:
    """One panel for each latency that the cost model knows; [] where too little was measured to fit one."""
    members = side.members
    last = len(members) - 1
    shown = (
        [members[at] for at in sorted({round(last * step / (MAX_BARS - 1)) for step in range(MAX_BARS)})]
        if members
        else []
    )
    parts = breakdown(side, shown) if shown else {}
    if not parts:
        return []
    with style.settings():
        figure, grid = style.new_figure(len(parts), size=(4.8, 1.7 + 0.32 * len(shown)))
        for panel, (cost, bars) in zip(grid[0], parts.items(), strict=True):
            _bars(panel, side, cost, bars, shown)
            if panel is not grid[0][0]:
                panel.tick_params(labelleft=False)
        style.legend(figure, [grid[0][0]], NOTE, 3)
        figure.suptitle(f"Where the time goes, by kind of layer ({side.run_id})")
        return style.save(figure, folder, name)


def _bars(
    panel: Axes, side: Side, cost: str, bars: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]
) -> None:
    unit, rows = scale(cost), range(len(bars))
    left = [0.0] * len(bars)
    for index, kind in enumerate(KINDS):
        widths = [bar["parts"][kind] / unit for bar in bars]
        colour, hatch = style.COLOURS[index], style.HATCHES[index % len(style.HATCHES)]
        panel.barh(
            rows, widths, left=left, height=0.7, color=colour, alpha=0.75, edgecolor="white", hatch=hatch, label=kind
        )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for row, entry in zip(rows, shown, strict=True):
        value = entry["objectives"].get(cost)
        middle, where = centre(value), side.bounds(cost, value)
        if middle is not None:
            if where is not None:
                panel.hlines(row, where.low / unit, where.high / unit, colors="black", lw=1.0)
            panel.plot(middle / unit, row, "D", color="black", mec="white", ms=5, label="measured" if row == 0 else "_")
    names = [f"{render.member(one)}  {one['objectives']['decoder_params'] / 1e6:.2f} M" for one in shown]
    panel.set_yticks(list(rows), names, fontsize=7, family="DejaVu Sans Mono")
    panel.grid(axis="y", visible=False)
    panel.set_xlim(left=0)
    panel.set_xlabel(render.objective_heading(cost, is_emulated=side.is_emulated))

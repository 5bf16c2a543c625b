"""A run over its time: the hypervolume reached, and temperature, clock and speed of its board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.report import along
from edge_lts_host.report.plots import style
from edge_lts_host.report.points import labels
from edge_lts_host.report.sides import Side, shared_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of along.conditions: (key, unit in SI, heading).
PANELS = (
    ("temperature_c", 1.0, "temperature, °C"),
    ("frequency_hz", 1e9, "lowest clock, GHz"),
    ("slowdown", 1.0, "time of the anchors,\nusual = 1"),
)
WIDE_INCHES = (7.0, 1.9)


def draw_hypervolume(
    sides: Sequence[Side], folder: Path, name: str, letters: Mapping[str, str] | None = None
) -> list[Path]:
    """Share of the joint hypervolume over the budget spent; [] where there is none."""
    curves = along.hypervolumes(sides, shared_axes(sides))
    if not curves:
        return []
    names = labels(sides, letters)
    with style.settings():
        figure, grid = style.new_figure(size=(6.4, 3.9))
        panel = grid[0][0]
        unit_s, unit = _time(max(curve["spent_s"][-1] for curve in curves))
        for index, curve in enumerate(curves):
            look = index % len(style.COLOURS)
            panel.step(
                [0.0, *(s / unit_s for s in curve["spent_s"])],
                [0.0, *curve["share"]],
                where="post",
                color=style.COLOURS[look],
                linestyle=style.LINES[look],
                lw=1.6,
                label=names[curve["run_id"]],
            )
        panel.set_ylim(0, 1.03)
        panel.set_xlim(left=0)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.set_xlabel(f"budget spent, {unit}")
        panel.set_ylabel("hypervolume, share of the end" if len(curves) == 1 else "hypervolume, share of all together")
        panel.legend(loc="lower right")
        panel.set_title(
            f"Hypervolume over time ({curves[0]['run_id']})" if len(curves) == 1 else "Hypervolume over time"
        )
        return style.save(figure, folder, name)


def draw_conditions(side: Side, folder: Path, name: str) -> list[Path]:
    """Whatever of temperature, clock and speed the board could say; [] where it could say nothing."""
    rows = along.conditions(side)
    panels = [panel for panel in PANELS if any(row[panel[0]] is not None for row in rows)]
    if not panels:
        return []
    unit_s, unit = _time(max(row["spent_s"] for row in rows))
    boards = list(dict.fromkeys(row["board"] for row in rows))
    with style.settings():
        figure, grid = style.new_figure(1, len(panels), size=(WIDE_INCHES[0], WIDE_INCHES[1] + 1.0 / len(panels)))
        for (key, scale, heading), panel in zip(panels, grid[:, 0], strict=True):
            for index, board in enumerate(boards):
                own = [row for row in rows if row["board"] == board and row[key] is not None]
                _line(panel, own, key, scale, unit_s, index, board)
            _disturbed(panel, rows, unit_s)
            panel.set_ylabel(heading)
            panel.set_xlim(0, max(row["spent_s"] for row in rows) / unit_s)
        grid[-1, 0].set_xlabel(f"budget spent, {unit}")
        style.legend(figure, grid[:, 0])
        lacking = [heading.split(",")[0] for key, _, heading in PANELS[:2] if key not in [one[0] for one in panels]]
        said = f"; not readable: {', '.join(lacking)}" if lacking else ""
        figure.suptitle(f"Along the run {side.run_id}{said}")
        return style.save(figure, folder, name)


def _line(
    panel: Axes, rows: Sequence[Mapping[str, Any]], key: str, scale: float, unit_s: float, index: int, board: str
) -> None:
    look = index % len(style.COLOURS)
    panel.plot(
        [row["spent_s"] / unit_s for row in rows],
        [row[key] / scale for row in rows],
        color=style.COLOURS[look],
        linestyle=style.LINES[look],
        marker=style.MARKERS[look],
        ms=2.5,
        lw=1.0,
        label=board or "_each process",
    )


def _disturbed(panel: Axes, rows: Sequence[Mapping[str, Any]], unit_s: float) -> None:
    """A tick at the bottom for each process that something disturbed."""
    at = [row["spent_s"] / unit_s for row in rows if row["taints"]]
    if at:
        bottom = panel.get_xaxis_transform()
        panel.plot(at, [0.03] * len(at), "|", color="black", ms=7, mew=1.2, transform=bottom, label="disturbed process")


def _time(longest_s: float) -> tuple[float, str]:
    """A unit for that much time, and its name."""
    if longest_s < 300:
        return 1.0, "s"
    return (60.0, "minutes") if longest_s < 3 * 3600 else (3600.0, "hours")

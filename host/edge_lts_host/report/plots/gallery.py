"""Which pictures a report or a comparison gets. Every one is NAME.png and NAME.svg in the folder of `--plots`:

frontier-RUN      its frontier against each cost       layers-RUN    latency by kind of layer
hypervolume-RUN   what it had reached by when          along-RUN     temperature, clock and speed
devices-N         runs that measured alike, on shared axes; hypervolume-N their progress, on a common reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_lts_host.report.plots import frontier, kinds, progress, style
from edge_lts_host.report.points import drawn_together
from edge_lts_host.report.sides import Side


def draw(
    sides: Sequence[Side], folder: Path, *, across: Sequence[str] = (), letters: Mapping[str, str] | None = None
) -> list[Path]:
    """All pictures of these runs, one by one and together where they may be compared. Raises UsageError without
    matplotlib, before anything is written."""
    style.require_matplotlib()
    paths = []
    for side in sides:
        paths += frontier.draw([side], folder, f"frontier-{side.run_id}")
        paths += progress.draw_hypervolume([side], folder, f"hypervolume-{side.run_id}")
        paths += progress.draw_conditions(side, folder, f"along-{side.run_id}")
        paths += kinds.draw(side, folder, f"layers-{side.run_id}")
    several = [group for group in drawn_together(sides, across) if len(group) > 1]
    for number, group in enumerate(several, 1):
        paths += frontier.draw(group, folder, f"devices-{number}", letters)
        paths += progress.draw_hypervolume(group, folder, f"hypervolume-{number}", letters)
    return paths

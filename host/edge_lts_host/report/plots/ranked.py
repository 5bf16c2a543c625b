"""What proxies say against what training showed: a panel for each proxy, a point for each trained model.

Points are lighter the larger the model: where a proxy is size alone the shades are in order from left to right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_lts_host.report import render
from edge_lts_host.report.plots import style

if TYPE_CHECKING:
    from edge_lts_host.calibration.validation import Points

MAX_PANELS = 4


def draw(points: Sequence[Points], panel: str, folder: Path) -> list[Path]:
    """One picture, `validated-PANEL`, of the first MAX_PANELS proxies. Raises UsageError without matplotlib."""
    style.require_matplotlib()
    points = points[:MAX_PANELS]
    with style.settings():
        figure, grid = style.new_figure(len(points))
        for axes, one in zip(grid[0], points, strict=True):
            shades = [math.log(size) for size in one.decoder_params]
            axes.scatter(one.score, one.quality, c=shades, cmap="viridis", s=12, linewidths=0)
            axes.set_title(f"{render.text(one.name, 50)}\ntau-b at equal size {render.nats(one.equal_size_tau)}")
            axes.set_xlabel("score")
            axes.set_ylabel(f"-log perplexity, {one.unit}")
            if min(one.score) > 0 and max(one.score) > 10 * min(one.score):
                axes.set_xscale("log")
                style.ticks(axes.xaxis, float(min(one.score)), float(max(one.score)))
        figure.suptitle(f"{render.text(panel)}: {len(points[0].quality)} trained models; lighter is larger")
        return style.save(figure, folder, f"validated-{panel}")

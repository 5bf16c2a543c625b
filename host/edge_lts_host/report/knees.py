"""Knee points of a frontier: the members beyond which more quality costs much more than before, as plain data.

For each searched cost the members that are undominated in quality and that cost alone are drawn in logarithms (a factor
counts the same everywhere), scaled so that their ends are (0, 0) and (1, 1). The knee is the member farthest above the
straight line between the ends (Satopaa et al. 2011, "kneedle", without its smoothing). A frontier that is nearly
straight has none. A quality that is a logarithm already is taken as it is.

One lucky measurement can make a knee, so the costs are drawn anew within their intervals: `stability` is how often a
member within 10 % of its quality is the knee then; None where intervals are not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_lts.objectives import Objective
from edge_lts_host.report.intervals import Bounds, bounds, centre, usual_widths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MIN_MEMBERS = 5
MIN_HEIGHT = 0.05  # above the straight line; less is called straight
NEAR = 1.1  # as a factor of quality
NEAR_LOG = 0.01  # of a quality that is a logarithm: 1 % of perplexity
_N_DRAWS = 200
_SEED = 0x6B6E


def knees(
    entries: Sequence[Mapping[str, Any]], axes: Sequence[Objective], device: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """For each cost among `axes` that has one: {"objective", "quality", "arch_id", "height", "stability", "before",
    "after"}. Members that are only probably dominated are left out.

    `before` and `after`: by how many percent the cost grows for one percent more quality, from the frontier's lower end
    to the knee and from the knee to its upper end.
    """
    quality = next((axis for axis in axes if axis.direction == "max"), None)
    if quality is None:
        return []
    sure = [entry for entry in entries if not entry["probably_dominated"]]
    widths = usual_widths(entries)
    found = []
    for cost in axes:
        if cost.direction == "min":
            one = _knee(sure, quality, cost.name, lambda name, value: bounds(name, value, widths, device))
            if one is not None:
                found.append(one)
    return found


def _knee(
    entries: Sequence[Mapping[str, Any]], quality: Objective, cost: str, reach: Callable[[str, Any], Bounds | None]
) -> dict[str, Any] | None:
    import numpy as np

    points = []
    for entry in entries:
        value, paid = (centre(entry["objectives"].get(name)) for name in (quality.name, cost))
        good = None if value is None else quality.log(value)
        if good is not None and paid is not None and paid > 0:
            points.append((good, math.log(paid), entry))
    if len(points) < MIN_MEMBERS:
        return None
    goods, costs = np.array([one[0] for one in points]), np.array([one[1] for one in points])
    at, height = _farthest(goods, costs)
    if at is None or height < MIN_HEIGHT:
        return None
    steps = _undominated(goods, costs)
    low, high = int(steps[0]), int(steps[-1])
    return {
        "objective": cost,
        "quality": quality.name,
        "arch_id": points[at][2]["arch_id"],
        "height": height,
        "stability": _stability(
            points,
            goods,
            at,
            [reach(cost, one[2]["objectives"][cost]) for one in points],
            NEAR_LOG if quality.is_log else math.log(NEAR),
        ),
        "before": _slope(goods, costs, low, at),
        "after": _slope(goods, costs, at, high),
    }


def _undominated(goods: Numbers, costs: Numbers) -> NDArray[np.int64]:
    """Who is on the frontier of these two alone, by growing cost."""
    import numpy as np

    order = np.lexsort((-goods, costs))
    best = np.maximum.accumulate(goods[order])
    is_better = np.concatenate(([True], goods[order][1:] > best[:-1]))
    return order[is_better]


def _farthest(goods: Numbers, costs: Numbers) -> tuple[int | None, float]:
    """(index, height) of the one farthest above the line between the ends."""
    import numpy as np

    steps = _undominated(goods, costs)
    if len(steps) < MIN_MEMBERS:
        return None, 0.0
    x, y = costs[steps], goods[steps]
    heights = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    best = int(np.argmax(heights))
    return int(steps[best]), float(heights[best])


def _slope(goods: Numbers, costs: Numbers, a: int, b: int) -> float | None:
    gained = float(goods[b] - goods[a])
    return float(costs[b] - costs[a]) / gained if gained > 0 else None


def _stability(
    points: Sequence[tuple[float, float, Mapping[str, Any]]],
    goods: Numbers,
    at: int,
    found: Sequence[Bounds | None],
    near: float,
) -> float | None:
    """How often the knee stays within `near` of where it is while costs are drawn from normal distributions."""
    import numpy as np

    if any(one is None or not one.is_firm or one.low <= 0 for one in found):
        return None
    middle = np.array([cost for _, cost, _ in points])
    spread = np.array([math.log(one.high / one.low) / 3.92 for one in found if one is not None])
    rng = np.random.default_rng(_SEED)
    n_near = 0
    for _ in range(_N_DRAWS):
        there, _height = _farthest(goods, middle + spread * rng.standard_normal(len(middle)))
        n_near += there is not None and abs(float(goods[there] - goods[at])) <= near
    return n_near / _N_DRAWS

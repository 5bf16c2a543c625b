"""Dominance, crowding distance and hypervolume in numpy, for the board. Everything is minimised.

Tests hold the results equal to moocore, which the workstation uses. Losses are arrays of shape (n, k): n points, k
objectives, each column in a unit of its own. NaN is refused: what was not measured has no place in a comparison.
Sources: Deb et al. 2002 (NSGA-II) for crowding; While et al. 2012 (WFG) for hypervolume above three objectives.
"""

import bisect

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _checked(losses: ArrayLike) -> Array:
    points = np.asarray(losses, dtype=np.float64) + 0.0  # makes a copy, and -0.0 equal to 0.0 bit by bit
    if points.ndim != 2 or points.shape[1] < 1:
        raise ValueError(f"losses must have shape (n, k) with k >= 1, not {points.shape}")
    if np.isnan(points).any():
        raise ValueError("losses must not hold NaN")
    return points


def nondominated(losses: ArrayLike) -> NDArray[np.bool_]:
    """Mask (n,) of the Pareto frontier of `losses` (n, k).

    A point is dropped if another is at most as large in every column and smaller in one (weak dominance). Exact
    duplicates do not dominate each other: all of them stay. O(n log n) for k <= 2, O(n f) above for a frontier of f.
    Raises ValueError on NaN or on an array of another rank.
    """
    points = _checked(losses)
    if len(points) == 0:
        return np.zeros(0, dtype=np.bool_)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)  # sorted by the first column, then the second, ...
    keep = _frontier_2d(unique) if unique.shape[1] <= 2 else _frontier_nd(unique)
    mask: NDArray[np.bool_] = keep[inverse.reshape(-1)]
    return mask


def _frontier_2d(unique: Array) -> NDArray[np.bool_]:
    """Of distinct sorted points (n, 1 or 2): those whose last column is below that of all points before."""
    last = unique[:, -1]
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(last)[:-1]))
    keep = last < best_before
    keep[0] = True  # the first in order is on the frontier even where its last column is infinite
    if unique.shape[1] == 1:
        keep[1:] = False
    return keep


def _frontier_nd(unique: Array) -> NDArray[np.bool_]:
    """Of distinct sorted points (n, k): each survivor removes what it dominates; nobody is dominated by a later one."""
    alive = np.arange(len(unique))
    position = 0
    while position < len(alive):
        later = alive[position + 1 :]
        is_free = (unique[later] < unique[alive[position]]).any(axis=1)
        alive = np.concatenate((alive[: position + 1], later[is_free]))
        position += 1
    keep = np.zeros(len(unique), dtype=np.bool_)
    keep[alive] = True
    return keep


def dominance_probability(losses: ArrayLike, spreads: ArrayLike, by: ArrayLike) -> Array:
    """For each point (n,) the probability with which the surest of the rows `by` (indexes) truly dominates it.

    `spreads` (n, k) are standard errors, 0 for what is known exactly, where being worse rules domination out. Errors
    are taken as normal and independent. Rows equal in all columns do not dominate each other.
    """
    points, errors = _checked(losses), np.asarray(spreads, dtype=np.float64)
    surest = np.zeros(len(points))
    for index in np.asarray(by, dtype=int):
        gap = points - points[index]  # positive where the other one is better
        error = np.hypot(errors, errors[index])
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.clip(np.where(error > 0, gap / error, np.where(gap >= 0, 9.0, -9.0)), -9.0, 9.0)
        # The normal distribution after Page 1977: off by less than 0.0002, and numpy has no erf.
        chance = (0.5 + 0.5 * np.tanh(z * (0.797885 + 0.0356774 * z * z))).prod(axis=1)
        surest = np.maximum(surest, np.where((gap != 0).any(axis=1), chance, 0.0))
    return surest


def crowding_distance(losses: ArrayLike) -> Array:
    """Distances (n,) of Deb et al. 2002: for each column the gap between a point's neighbours over the column's range.

    The smallest and the largest of each column are infinitely far; a column without range adds nothing. Equal values
    keep their order, so the result depends on the order of rows only among ties. Meant for one frontier at a time.
    Raises ValueError on NaN or infinity.
    """
    points = _checked(losses)
    if not np.isfinite(points).all():
        raise ValueError("crowding distance needs finite losses")
    distance = np.zeros(len(points))
    for column in points.T:
        if len(column) == 0 or column.max() == column.min():
            continue
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    if len(points) <= 2:
        distance[:] = np.inf
    return distance


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """Volume dominated by `losses` (n, k) and bounded by `reference` (k,); larger is better.

    Points not below the reference in every column add nothing; duplicates and dominated points change nothing. The unit
    is the product of the columns' units. O(n log n) for k = 2, a sweep of O(n log n) to O(n^2) for k = 3, WFG above.
    Raises ValueError on NaN, on minus infinity and on a reference that is not finite. While et al. 2012.
    """
    points, corner = _checked(losses), np.asarray(reference, dtype=np.float64)
    if corner.shape != (points.shape[1],):
        raise ValueError(f"reference must have shape ({points.shape[1]},), not {corner.shape}")
    if not np.isfinite(corner).all():
        raise ValueError("reference must be finite")
    if np.isneginf(points).any():
        raise ValueError("losses must not hold minus infinity")
    points = points[(points < corner).all(axis=1)]
    if len(points) == 0:
        return 0.0
    points = np.unique(points[nondominated(points)], axis=0)
    return float(_volume(corner - points))


def _volume(extents: Array) -> float:
    """Volume of the union of boxes [0, extent], rows distinct and none inside another."""
    n, k = extents.shape
    if n == 1:
        return float(extents[0].prod())
    if k == 1:
        return float(extents.max())
    if k == 2:
        return _area(extents)
    if k == 3:
        return _volume_3d(extents)
    # WFG: taken by ascending last extent, each box adds what the later ones, all at least as long there, leave free.
    ordered = extents[np.argsort(extents[:, -1], kind="stable")]
    total = 0.0
    for index, box in enumerate(ordered):
        base = float(box[:-1].prod())
        shared = np.minimum(ordered[index + 1 :, :-1], box[:-1])
        if len(shared):
            base -= _volume(np.unique(shared[nondominated(-shared)], axis=0))
        total += float(box[-1]) * base
    return total


def _area(extents: Array) -> float:
    ordered = extents[np.argsort(-extents[:, 0], kind="stable")]  # wide and low first, each next one higher
    heights = np.diff(ordered[:, 1], prepend=0.0)
    return float((ordered[:, 0] * heights).sum())


def _volume_3d(extents: Array) -> float:
    """Sweep down the last column, keeping the staircase of the boxes met so far and its area."""
    total = area = 0.0
    widths = [0.0]  # ascending, with heights descending: the corners of the staircase between two sentinels
    heights = [float("inf")]
    ordered = extents[np.argsort(-extents[:, 2], kind="stable")]
    depths = [*ordered[:, 2].tolist(), 0.0]
    for index, (width, height, depth) in enumerate(ordered.tolist()):
        at = bisect.bisect_left(widths, width)
        right = heights[at] if at < len(heights) else 0.0
        if height > right:
            floor, previous = right, width  # walk left over the corners that the new box covers
            start = at
            while heights[start - 1] <= height:
                start -= 1
                area += (previous - widths[start]) * (height - floor)
                previous, floor = widths[start], heights[start]
            area += (previous - widths[start - 1]) * (height - floor)
            end = at + 1 if at < len(widths) and widths[at] == width else at
            widths[start:end], heights[start:end] = [width], [height]
        total += area * (depth - depths[index + 1])
    return total

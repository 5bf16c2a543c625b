"""The exact frontier of a space whose cost is a sum over layers, by dynamic programming over multisets of layers.

At one width the state is a vector of exact integers: depth, sum of d_inner in steps, and whatever else the objectives
need as sums over layers (`features`). Layer shapes are taken by ascending `level`, which is whatever only the largest
layer of a stack decides (its d_inner, or the memory it works in), each any number of times (an unbounded knapsack). So
after the shapes of a level the table holds the optimum for "no layer beyond this level", and what improved at a level
is kept as a state of its own, because a leaner largest layer saves working memory at the same sums.

A second additive cost is carried as one more integer feature: each layer's cost in units of e times the cheapest
layer's, after a linear trend in d_inner has been taken off (the trend is a function of the state already, and residuals
are small). Rounding then moves a total by at most e/2 either way, so the states are a (1 + e) cover; the word exact is
for one cost.

Cost: O(shapes x depth x states) additions in numpy. Nothing here measures, and nothing here knows torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import LayerSpec
from edge_lts.errors import SpaceError

MAX_STATES = 4_000_000  # numbers of each table; some 100 MB for two costs
MAX_IMPROVEMENTS = 12_000_000  # each is remembered in four bytes
MAX_CHUNK = 60_000  # states that are judged at a time

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """What one width offers: m layer shapes with their additive costs.

    costs (m, k), the first column is minimised exactly; features (m, q) non-negative integers that add up over layers;
    levels (m,) integers of which a stack has the largest, None for d_inner. `step` divides every d_inner. `depths` are
    the numbers of layers allowed.
    """

    d_model: int
    step: int
    depths: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    costs: Floats
    features: Integers
    levels: Integers | None = None

    def __post_init__(self) -> None:
        m = len(self.layers)
        if not m or not self.depths:
            raise SpaceError(f"width {self.d_model} offers no layer shape or no depth")
        if self.costs.ndim != 2 or self.costs.shape[0] != m or self.costs.shape[1] < 1:
            raise ValueError(f"costs must be ({m}, k), not {self.costs.shape}")
        if self.features.ndim != 2 or self.features.shape[0] != m or (self.features < 0).any():
            raise ValueError(f"features must be ({m}, q) and not negative")
        if not np.isfinite(self.costs).all():
            raise ValueError("costs must be finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Optimal states of one width: n rows; `costs` (n, k) are sums over layers of the table's true costs, `level` (n,)
    is that of the largest layer allowed."""

    table: LayerTable
    depth: Integers
    d_inner_sum: Integers
    level: Integers
    features: Integers
    costs: Floats
    _chain: "_Events"
    _key: Integers

    def __len__(self) -> int:
        return int(self.depth.shape[0])

    def take(self, rows: Integers) -> "States":
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def layers(self, row: int) -> tuple[LayerSpec, ...]:
        """The multiset behind a state, in canonical order."""
        chosen = self._chain.walk(int(self._key[row, 0]), int(self._key[row, 1]), int(self._key[row, 2]))
        return tuple(sorted(self.table.layers[index] for index in chosen))


_COLUMNS = ("depth", "d_inner_sum", "level", "features", "costs", "_key")


@dataclass(slots=True)
class _Events:
    """Every improvement in order: (item, depth) -> sorted flat states that it improved."""

    offsets: Integers
    order: Integers
    improved: dict[tuple[int, int], NDArray[np.int32]] = field(default_factory=dict)

    def walk(self, item: int, depth: int, state: int) -> Iterator[int]:
        """Table rows of one optimal multiset, found backwards from its last improvement."""
        while depth > 0:
            while True:
                states = self.improved.get((item, depth))
                if states is not None:
                    place = int(np.searchsorted(states, state))
                    if place < states.shape[0] and int(states[place]) == state:
                        break
                item -= 1
            yield int(self.order[item])
            state -= int(self.offsets[item])
            depth -= 1


Keep = Callable[[States], Integers]


def solve(table: LayerTable, *, epsilon: float | None = 0.005, keep: Keep | None = None) -> States:
    """All optimal states of one width: one per (depth, d_inner sum, features), and per level that improves it.

    With k = 1 exact. With k > 1 the states cover every trade-off within a factor 1 + `epsilon` in each further cost;
    with `epsilon` None the further costs are only summed along the optimum of the first. `keep` is shown the states in
    chunks and says which rows are wanted: a large width has millions.
    Raises SpaceError when the state space would pass MAX_STATES or the improvements MAX_IMPROVEMENTS (a proxy with too
    fine a feature).
    """
    units = np.array([layer.d_inner for layer in table.layers], dtype=np.int64) // table.step
    levels = units * table.step if table.levels is None else table.levels
    further_columns = range(1, table.costs.shape[1]) if epsilon is not None else ()
    quantised = [_residual_units(table.costs[:, column], units, epsilon or 1.0) for column in further_columns]
    narrowest = int(units.min())  # what every layer has of it is known from the depth
    vectors = np.column_stack([units - narrowest, table.features, *quantised]).astype(np.int64)
    rows = _useful(vectors, table.costs[:, 0], levels)
    order = rows[np.lexsort((table.costs[rows, 0], units[rows], levels[rows]))]
    vectors, costs, levels = vectors[order], table.costs[order], levels[order]

    max_depth = max(table.depths)
    sizes = vectors.max(axis=0) * max_depth + 1
    n_states = int(np.prod(sizes.astype(np.float64)))
    if n_states * (max_depth + 1) > MAX_STATES:
        raise SpaceError(
            f"the solver's state at width {table.d_model} has {n_states * (max_depth + 1):,} values, more than "
            f"{MAX_STATES:,}: coarsen d_inner's step or leave out a feature"
        )
    strides = np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int64)
    offsets = vectors @ strides

    best = np.full((max_depth + 1, n_states), np.inf)
    best[0, 0] = 0.0
    carried = np.zeros((table.costs.shape[1] - 1, max_depth + 1, n_states))
    is_new = np.zeros((max_depth + 1, n_states), dtype=np.bool_)  # improved at this level
    events = _Events(offsets=offsets, order=order)
    found: list[States] = []
    waiting: list[States] = []  # collected, not judged yet
    n_improved, widest = 0, int(offsets.max())
    for item, (offset, cost) in enumerate(zip(offsets.tolist(), costs[:, 0].tolist(), strict=True)):
        further = costs[item, 1:, None]
        for depth in range(1, max_depth + 1):
            end = min(n_states - offset, (depth - 1) * widest + 1)  # beyond that no stack of depth - 1 reaches
            reach = best[depth - 1, :end] + cost
            target = best[depth, offset : offset + end]
            better = np.flatnonzero(reach < target)
            if better.size:
                target[better] = reach[better]
                carried[:, depth, better + offset] = carried[:, depth - 1, better] + further
                is_new[depth, better + offset] = True
                events.improved[item, depth] = (better + offset).astype(np.int32)
                n_improved += better.size
        if n_improved > MAX_IMPROVEMENTS:
            raise SpaceError(
                f"the solver's tables at width {table.d_model} have more than {MAX_IMPROVEMENTS:,} improvements: "
                "coarsen d_inner's step or leave out a feature"
            )
        if item == len(order) - 1 or levels[item + 1] > levels[item]:
            for chosen in _chunks(is_new, table.depths):
                layout = (sizes, strides, narrowest * table.step)
                waiting.append(_collect(table, events, item, int(levels[item]), chosen, best, carried, layout))
                if item == len(order) - 1 or sum(map(len, waiting)) >= MAX_CHUNK:
                    states = _joined(waiting)
                    found.append(states if keep is None else states.take(keep(states)))
                    waiting = []
            is_new[:] = False
    return _joined([*found, *waiting])


def _chunks(is_new: NDArray[np.bool_], depths: tuple[int, ...]) -> Iterator[list[tuple[int, Integers]]]:
    """What improved, as (depth, flat states), some depths at a time."""
    chunk: list[tuple[int, Integers]] = []
    for depth in depths:
        flat = np.flatnonzero(is_new[depth])
        if chunk and flat.size + sum(states.size for _, states in chunk) > MAX_CHUNK:
            yield chunk
            chunk = []
        chunk.append((depth, flat))
    yield chunk


def _residual_units(cost: Floats, units: Integers, epsilon: float) -> Integers:
    """A further cost in whole units of `epsilon` x the cheapest layer, its linear trend in d_inner removed, from 0
    up."""
    unit = epsilon * float(cost.min())
    if unit <= 0:
        raise ValueError("a further cost must be positive")
    slope = np.polyfit(units.astype(np.float64), cost, 1)[0] if np.unique(units).size > 1 else 0.0
    residual = np.rint((cost - slope * units) / unit).astype(np.int64)
    shifted: Integers = residual - residual.min()
    return shifted


def _useful(vectors: Integers, costs: Floats, levels: Integers) -> Integers:
    """Row numbers of the layers that no other of the same state vector replaces: as low a level, and no dearer. Ties go
    to the earlier row."""
    order = np.lexsort((np.arange(vectors.shape[0]), costs, levels, *vectors.T[::-1]))
    cheapest: dict[tuple[int, ...], float] = {}
    kept = []
    for row in order.tolist():
        vector = tuple(vectors[row].tolist())
        if costs[row] < cheapest.get(vector, np.inf):
            cheapest[vector] = float(costs[row])
            kept.append(row)
    return np.sort(np.array(kept, dtype=np.int64))


def _collect(
    table: LayerTable,
    events: _Events,
    item: int,
    level: int,
    chosen: list[tuple[int, Integers]],
    best: Floats,
    carried: Floats,
    layout: tuple[Integers, Integers, int],
) -> States:
    """The states at these places of the tables, as they stand after `item`; `layout` is sizes, strides and the least
    d_inner."""
    n_features, (sizes, strides, least) = table.features.shape[1], layout
    depth = np.repeat([one for one, _ in chosen], [flat.size for _, flat in chosen]).astype(np.int64)
    flat = np.concatenate([flat for _, flat in chosen]).astype(np.int64)
    parts = (flat[:, None] // strides[None, :]) % sizes[None, :]
    return States(
        table=table,
        depth=depth,
        d_inner_sum=parts[:, 0] * table.step + depth * least,
        level=np.full(flat.size, level, dtype=np.int64),
        features=parts[:, 1 : 1 + n_features],
        costs=np.vstack([best[depth, flat][None], carried[:, depth, flat]]).T,
        _chain=events,
        _key=np.column_stack([np.full(flat.size, item, dtype=np.int64), depth, flat]),
    )


def _joined(found: list[States]) -> States:
    first = found[0]
    columns: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in found]) for name in _COLUMNS}
    return replace(first, **columns)

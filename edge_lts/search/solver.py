"""The exact frontier of a space whose cost is a sum over layers, by dynamic programming over multisets of layers.

At one width the state is a vector of exact integers: depth, sum of d_inner in steps, and whatever else the objectives
need as sums over layers (`features`). The value of a state is the least additive cost of any multiset of layers that
reaches it. Layer shapes are taken in ascending d_inner, each any number of times (an unbounded knapsack), so that after
the shapes up to some d_inner the table holds the optimum for "largest d_inner allowed = this one"; every improvement is
kept as a state of its own, because a leaner largest layer saves working memory at the same sum.

A second additive cost is carried as one more integer feature: each layer's cost in units of e times the cheapest
layer's, after a linear trend in d_inner has been taken off (the trend is a function of the state already, and residuals
are small). Rounding then moves a total by at most e/2 either way, so the states are a (1 + e) cover; the word exact is
for one cost.

Cost: O(shapes x depth x states) additions in numpy. Nothing here measures, and nothing here knows torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import LayerSpec
from edge_lts.errors import SpaceError

MAX_STATES = 4_000_000  # numbers of each table; some 100 MB for two costs
MAX_IMPROVEMENTS = 600_000  # each a row of the result; some 150 MB while they are collected

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """What one width offers: m layer shapes with their additive costs.

    costs (m, k), the first column is minimised exactly; features (m, q) non-negative integers that add up over layers.
    `step` divides every d_inner. `depths` are the numbers of layers allowed.
    """

    d_model: int
    step: int
    depths: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    costs: Floats
    features: Integers

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
    """Optimal states of one width: n rows; `costs` (n, k) are sums over layers of the table's true costs."""

    table: LayerTable
    depth: Integers
    d_inner_sum: Integers
    d_inner_max: Integers
    features: Integers
    costs: Floats
    _chain: "_Events"
    _key: Integers

    def __len__(self) -> int:
        return int(self.depth.shape[0])

    def layers(self, row: int) -> tuple[LayerSpec, ...]:
        """The multiset behind a state, in canonical order."""
        chosen = self._chain.walk(int(self._key[row, 0]), int(self._key[row, 1]), int(self._key[row, 2]))
        return tuple(sorted(self.table.layers[index] for index in chosen))


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


def solve(table: LayerTable, *, epsilon: float | None = 0.005) -> States:
    """All optimal states of one width: one per (depth, d_inner sum, features), and per largest d_inner that improves
    it.

    With k = 1 exact. With k > 1 the states cover every trade-off within a factor 1 + `epsilon` in each further cost;
    with `epsilon` None the further costs are only summed along the optimum of the first.
    Raises SpaceError when the state space would pass MAX_STATES or the result MAX_IMPROVEMENTS (a proxy with too fine a
    feature).
    """
    units = np.array([layer.d_inner for layer in table.layers], dtype=np.int64) // table.step
    further_columns = range(1, table.costs.shape[1]) if epsilon is not None else ()
    quantised = [_residual_units(table.costs[:, column], units, epsilon or 1.0) for column in further_columns]
    vectors = np.column_stack([units, table.features, *quantised]).astype(np.int64)
    rows = _cheapest_of_each(vectors, table.costs)
    order = rows[np.lexsort((table.costs[rows, 0], units[rows]))]
    vectors, costs = vectors[order], table.costs[order]

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
    events = _Events(offsets=offsets, order=order)
    found: list[tuple[int, int, NDArray[np.int32], Floats]] = []
    n_found = 0
    for item, (offset, cost) in enumerate(zip(offsets.tolist(), costs[:, 0].tolist(), strict=True)):
        further = costs[item, 1:, None]
        for depth in range(1, max_depth + 1):
            reach = best[depth - 1, : n_states - offset] + cost
            target = best[depth, offset:]
            better = np.flatnonzero(reach < target)
            if better.size:
                target[better] = reach[better]
                carried[:, depth, better + offset] = carried[:, depth - 1, better] + further
                states = (better + offset).astype(np.int32)
                events.improved[item, depth] = states
                if depth in table.depths:
                    reached = np.vstack([reach[None, better], carried[:, depth, better + offset]]).T
                    found.append((item, depth, states, reached))
                    n_found += states.size
        if n_found > MAX_IMPROVEMENTS:
            raise SpaceError(
                f"the solver's result at width {table.d_model} has more than {MAX_IMPROVEMENTS:,} rows: coarsen "
                "d_inner's step or leave out a feature"
            )
    return _collect(table, events, found, sizes, strides)


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


def _cheapest_of_each(vectors: Integers, costs: Floats) -> Integers:
    """Row numbers of the cheapest layer for each distinct state vector; ties go to the earlier row."""
    order = np.lexsort((np.arange(vectors.shape[0]), costs[:, 0], *vectors.T[::-1]))
    ordered = vectors[order]
    first = np.ones(order.shape[0], dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[first])


def _collect(
    table: LayerTable,
    events: _Events,
    found: list[tuple[int, int, NDArray[np.int32], Floats]],
    sizes: Integers,
    strides: Integers,
) -> States:
    n_features, k = table.features.shape[1], table.costs.shape[1]
    d_inner = np.array([layer.d_inner for layer in table.layers], dtype=np.int64)
    lengths = [states.shape[0] for _, _, states, _ in found]
    item = np.repeat([entry[0] for entry in found], lengths).astype(np.int64)
    depth = np.repeat([entry[1] for entry in found], lengths).astype(np.int64)
    flat = np.concatenate([entry[2] for entry in found]).astype(np.int64) if found else np.zeros(0, dtype=np.int64)
    costs = np.concatenate([entry[3] for entry in found]) if found else np.zeros((0, k))
    largest = d_inner[events.order][item]
    # Within one largest d_inner a later item may improve a state again; only its last value is the optimum.
    newest = np.lexsort((-item, flat, depth, largest))
    key = np.column_stack([largest, depth, flat])[newest]
    keep = np.ones(newest.shape[0], dtype=bool)
    keep[1:] = (key[1:] != key[:-1]).any(axis=1)
    rows = np.sort(newest[keep])
    item, depth, flat, largest = item[rows], depth[rows], flat[rows], largest[rows]
    parts = (flat[:, None] // strides[None, :]) % sizes[None, :]
    return States(
        table=table,
        depth=depth,
        d_inner_sum=parts[:, 0] * table.step,
        d_inner_max=largest,
        features=parts[:, 1 : 1 + n_features],
        costs=costs[rows],
        _chain=events,
        _key=np.column_stack([item, depth, flat]),
    )

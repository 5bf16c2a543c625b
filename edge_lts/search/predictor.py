"""What was learned of a board, and the frontier that it predicts over a whole space.

Decode and prefill come from their cost models, decoder_params from its formula, peak memory from the formula of
`footprint` with a slope and an offset fitted to what was measured. `frontier` solves for every width of the space with
`solver`, evaluates all states in all objectives and filters them, so that a leaner model at equal latency is not lost.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError
from edge_lts.footprint import (
    BYTES_PER_NUMBER,
    cache_bytes,
    cache_tokens,
    decoder_bytes,
    float32_bytes,
    place_bytes,
    predicted_bytes,
    working_set_bytes,
)
from edge_lts.objectives import Constraint, Objective
from edge_lts.pareto import nondominated
from edge_lts.records import Evaluation, Protocol, central
from edge_lts.search.cost_model import (
    COSTS,
    Conditions,
    CostModel,
    Observation,
    fit,
    nonnegative_least_squares,
    observation_of,
)
from edge_lts.search.solver import LayerTable, States, solve
from edge_lts.space import SearchSpace
from edge_lts.space_table import WidthTable

Floats = NDArray[np.float64]

SOLVED = ("decoder_params", "decode_latency_s", "prefill_latency_s", "peak_memory_bytes")
SLACK = 1.05  # a predicted value may break a bound by this factor and still be measured
WEIGHTINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIN_OBSERVATIONS = 6
MIN_MEMORY_READINGS = 4
RESOLUTION = 1.01  # squared for two costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted frontier: losses (n, k) in the objectives' order, and where to find the architectures behind
    them. `cover` says how it was solved: exact, within 0.5 % (two costs), or by weightings (two costs, large space)."""

    space: SearchSpace
    losses: Floats
    sources: tuple[tuple[WidthTable, tuple[int, ...]], ...]
    cover: str

    def __len__(self) -> int:
        return len(self.losses)

    def architecture(self, index: int) -> Architecture:
        table, picks = self.sources[index]
        return self.space.build(table, list(picks))


class Predictor:
    """Tell it evaluations, then `fit`; after that it predicts. Deterministic in what it was told, in that order."""

    def __init__(self, protocol: Protocol, last_level_cache_bytes: int | None = None) -> None:
        self.protocol = protocol
        # the cost model compares it with float32 weights: of what fits the cache in 8 bits there are four times as many
        cache = last_level_cache_bytes
        self.conditions = Conditions.of(protocol, None if cache is None else float32_bytes(cache, protocol.precision))
        self.models: Mapping[str, CostModel] = {}
        self._observed: dict[str, list[Observation]] = {cost: [] for cost in COSTS}
        self._memory: list[tuple[Architecture, float]] = []
        self._memory_fit = (1.0, 0.0)

    def tell(self, outcome: Evaluation) -> None:
        for cost in COSTS:
            observation = observation_of(outcome, cost)
            if observation is not None:
                self._observed[cost].append(observation)
        memory = central(outcome.objectives.get("peak_memory_bytes"))
        if memory is not None:
            self._memory.append((outcome.architecture, memory))

    def fit(self, needed: Iterable[str] = ()) -> bool:
        """Fit every cost that was observed often enough; False if that is none, or one of `needed` is not among
        them."""
        enough = {cost: seen for cost, seen in self._observed.items() if len(seen) >= MIN_OBSERVATIONS}
        if not enough or any(cost in COSTS and cost not in enough for cost in needed):
            return False
        self.models = {cost: fit(cost, seen, self.conditions) for cost, seen in enough.items()}
        if len(self._memory) >= MIN_MEMORY_READINGS:
            formula = np.array([predicted_bytes(arch, self.protocol) for arch, _ in self._memory], dtype=np.float64)
            working = np.array([working_set_bytes(arch, self.protocol) for arch, _ in self._memory], dtype=np.float64)
            target = np.array([value for _, value in self._memory]) - (formula - working)
            slope, offset = nonnegative_least_squares(np.column_stack([working, np.ones(len(working))]), target)
            self._memory_fit = (float(slope), float(offset))
        return True

    def predict(self, arch: Architecture) -> dict[str, float]:
        """Seconds and bytes of an architecture; empty before the first fit."""
        if not self.models:
            return {}
        predicted = {cost: model.predict(arch) for cost, model in self.models.items()}
        slope, offset = self._memory_fit
        working = working_set_bytes(arch, self.protocol)
        predicted["peak_memory_bytes"] = predicted_bytes(arch, self.protocol) - working + slope * working + offset
        return predicted

    def frontier(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        margin: float = 0.0,
        avoided: Collection[tuple[int, LayerSpec]] = (),
    ) -> Prediction:
        """The frontier of the predicted objectives over the whole space; exact for one additive measured cost.

        With `margin` each layer and each base costs that many standard deviations of its deviation more (or, negative,
        less). `avoided` are layers, with their d_model, that no member may have. Raises SpaceError where a space is too
        large to solve.
        """
        names = [objective.name for objective in objectives]
        bounded = [constraint.name for constraint in constraints if constraint.name not in names]
        costs = [name for name in (*names, *bounded) if name in COSTS] or list(self.models)[:1]
        thinned = next((index for index, name in enumerate(names) if name in COSTS), None)
        signs = np.array([objective.loss(1.0) for objective in objectives])
        found: list[Floats] = []
        sources: list[tuple[WidthTable, tuple[int, ...]]] = []
        cover = "exact" if len(costs) == 1 else "0.5 %"
        for table in space.tables:
            one = space.build(table, [0])
            kept = [index for index, layer in enumerate(table.shapes) if (table.d_model, layer) not in avoided]
            if not kept:
                continue
            standing, written = np.zeros((0, len(names))), list[tuple[int, ...]]()
            for is_beyond in self._regimes(table):
                matrix, base = self._costs(table, one, costs, is_beyond, margin)
                solutions = _solutions(table, kept, matrix[kept])
                if len(solutions) > 1 and not table.is_homogeneous:
                    cover = "weightings"
                for states in solutions:
                    totals = (states.costs[:, -len(costs) :] + base).T
                    values = self._values(table, one, states) | dict(zip(costs, totals, strict=True))
                    losses = np.column_stack([values[name] for name in names]) * signs
                    losses[~self._allowed(table, values, constraints, is_beyond)] = np.inf
                    best = _thinned_frontier(losses, thinned, RESOLUTION if len(costs) == 1 else RESOLUTION**2)
                    # What stands on this width's frontier so far is written out as layers: states take much memory.
                    together = np.concatenate([standing, losses[best]])
                    keep = np.flatnonzero(nondominated(together))
                    n_before = len(standing)
                    written = [
                        written[row] if row < n_before else _picks(table, states, int(best[row - n_before]))
                        for row in keep
                    ]
                    standing = together[keep]
            found.append(standing)
            sources += [(table, picks) for picks in written]
        losses = np.concatenate(found) if found else np.zeros((0, len(names)))
        keep = np.flatnonzero(nondominated(losses))
        return Prediction(space=space, losses=losses[keep], sources=tuple(sources[i] for i in keep), cover=cover)

    def _costs(
        self, table: WidthTable, one: Architecture, costs: Sequence[str], is_beyond: bool, margin: float
    ) -> tuple[Floats, Floats]:
        """Seconds (m, k) of each layer shape and (k,) of what lies outside the layers."""
        models = [self.models[cost] for cost in costs]
        layers = [model.layer_costs(table.d_model, table.shapes, is_beyond, margin) for model in models]
        base = [model.base_cost(one, is_beyond, margin) for model in models]
        return np.maximum(np.column_stack(layers), 1e-12), np.maximum(np.array(base), 0.0)

    def _regimes(self, table: WidthTable) -> tuple[bool, ...]:
        size = self.conditions.cache_bytes
        if size is None:
            return (False,)
        low, high = (BYTES_PER_NUMBER * (value + table.outside) for value in table.extent())
        return tuple(regime for regime, exists in ((False, low <= size), (True, high > size)) if exists)

    def _values(self, table: WidthTable, one: Architecture, states: States) -> dict[str, Floats]:
        """(n,) of what a formula gives: decoder_params and peak memory."""
        decoder = table.decoder_params(states.depth, states.d_inner_sum)
        working = np.zeros(len(states))
        for value in np.unique(states.d_inner_max):
            widest = one.replace(layers=(LayerSpec(d_inner=int(value), n_head=table.n_head[0]),))
            working[states.d_inner_max == value] = working_set_bytes(widest, self.protocol)
        slope, offset = self._memory_fit
        precision = self.protocol.precision
        places = place_bytes(one, precision)
        weights = decoder_bytes(one, decoder, states.depth, states.d_inner_sum, precision)
        weights = weights + sum(places.values()) - places["decoder"]
        cache = states.depth * cache_bytes(one, cache_tokens(one, self.protocol), precision)
        return {
            "decoder_params": decoder.astype(np.float64),
            "peak_memory_bytes": weights + cache + slope * working + offset,
        }

    def _allowed(
        self, table: WidthTable, values: Mapping[str, Floats], constraints: Sequence[Constraint], is_beyond: bool
    ) -> NDArray[np.bool_]:
        """Which states keep the space's bounds, the constraints (within SLACK) and the regime they were solved for."""
        decoder = values["decoder_params"]
        allowed: NDArray[np.bool_] = (decoder >= table.low) & (decoder <= table.high)
        if self.conditions.cache_bytes is not None:
            weights = BYTES_PER_NUMBER * (decoder + table.outside)
            allowed &= (weights > self.conditions.cache_bytes) == is_beyond
        for constraint in constraints:
            if constraint.name in values:
                slack = 1.0 if constraint.name == "decoder_params" else SLACK
                if constraint.maximum is not None:
                    allowed &= values[constraint.name] <= constraint.maximum * slack
                if constraint.minimum is not None:
                    allowed &= values[constraint.name] >= constraint.minimum / slack
        return allowed


def _picks(table: WidthTable, states: States, row: int) -> tuple[int, ...]:
    return tuple(table.index(layer.d_inner, layer.n_head) for layer in states.layers(row))


def _thinned_frontier(losses: Floats, cost: int | None, resolution: float) -> NDArray[np.int64]:
    """Rows of the frontier at a `resolution` such as 1.01: of rows alike in all objectives but column `cost`, to
    within that factor, only the best stands. Far finer than what can be measured, and thousands of rows fewer."""
    allowed = np.flatnonzero(np.isfinite(losses).all(axis=1))
    if not allowed.size:
        return allowed
    cells = np.rint(log_points(losses[allowed]) / math.log(resolution)).astype(np.int64)
    if cost is not None:
        cells[:, cost] = 0
    order = np.lexsort((losses[allowed, cost or 0], *cells.T))
    cells = cells[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (cells[1:] != cells[:-1]).any(axis=1)
    kept = allowed[order[first]]
    return kept[nondominated(losses[kept])]


def log_points(losses: Floats) -> Floats:
    """Logarithms of the objectives' absolute values."""
    points: Floats = np.log(np.maximum(np.abs(losses), 1e-12))
    return points


def _solutions(table: WidthTable, kept: Sequence[int], matrix: Floats) -> list[States]:
    """Optimal states of a width for the additive costs (m, k) of the shapes `kept`; for two, a cover within 0.5 % or,
    where that is too large, the optima of several weightings."""
    shapes = tuple(table.shapes[index] for index in kept)
    shared: dict[str, Any] = {
        "d_model": table.d_model,
        "step": math.gcd(*table.d_inner),
        "depths": table.depths,
        "layers": shapes,
        "features": np.zeros((len(shapes), 0), dtype=np.int64),
    }
    if table.is_homogeneous:
        return [
            solve(LayerTable(**{**shared, "layers": (shape,), "features": shared["features"][:1]}, costs=costs[None]))
            for shape, costs in zip(shapes, matrix, strict=True)
        ]
    try:
        return [solve(LayerTable(**shared, costs=matrix))]
    except SpaceError:
        if matrix.shape[1] == 1:
            raise
        relative = matrix / matrix.mean(axis=0)
        mixes = [share * relative[:, :1] + (1 - share) * relative[:, 1:2] for share in WEIGHTINGS]
        return [solve(LayerTable(**shared, costs=np.hstack([mix, matrix])), epsilon=None) for mix in mixes]

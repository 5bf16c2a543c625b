"""What was learned of a board, and the frontier that it predicts over a whole space.

Decode and prefill come from their cost models, decoder_params and a calibrated proxy's quality from their formulas,
peak memory from the formula of `footprint` with a slope and an offset fitted to what was measured. `frontier` solves
for every width of the space with `solver`, evaluates all states in all objectives and filters them, so that a leaner
model at equal latency is not lost.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError
from edge_lts.estimating import estimate
from edge_lts.footprint import BYTES_PER_NUMBER, float32_bytes, predicted_bytes, working_set_bytes
from edge_lts.objectives import QUALITY, Constraint, Objective
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
from edge_lts.search.layout import Layout
from edge_lts.search.solver import LayerTable, States, solve
from edge_lts.space import SearchSpace
from edge_lts.space_table import WidthTable

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

Floats = NDArray[np.float64]

SOLVED = ("decoder_params", QUALITY, "decode_latency_s", "prefill_latency_s", "peak_memory_bytes")
EXACT = ("decoder_params", QUALITY)  # known before anything is measured
SLACK = 1.05  # a predicted value may break a bound by this factor and still be measured
WEIGHTINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEAD_WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.1)  # shares of a layer's cost that a ln n_head may be worth
MIN_OBSERVATIONS = 6
MIN_MEMORY_READINGS = 4
RESOLUTION = 1.01  # squared for two costs
LOG_RESOLUTION = 0.001  # of what is a logarithm already: 0.1 % of perplexity
MAX_GUARDS = 512  # members so far that many new states are held against, before they are sorted
MAX_GUARD_CELLS = 1 << 16  # of the table by which that is done


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted frontier: losses (n, k) in the objectives' order, and where to find the architectures behind
    them. `cover` says how it was solved: exact, within 0.5 % (two costs), or by weightings (where a space is too large
    for either)."""

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

    def __init__(
        self,
        protocol: Protocol,
        last_level_cache_bytes: int | None = None,
        proxy: "CalibratedProxy | None" = None,
    ) -> None:
        self.protocol = protocol
        self.proxy = proxy
        # the cost model compares it with float32 weights: of what fits the cache in 8 bits there are four times as many
        cache = last_level_cache_bytes
        self.conditions = Conditions.of(protocol, None if cache is None else float32_bytes(cache, protocol.precision))
        self.models: Mapping[str, CostModel] = {}
        self._observed: dict[str, list[Observation]] = {cost: [] for cost in COSTS}
        self._memory: list[tuple[Architecture, float]] = []
        self._memory_fit = (1.0, 0.0)
        self._layouts: dict[tuple[Any, ...], Layout] = {}

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

    def by_formula(self, arch: Architecture) -> dict[str, float]:
        """What is known of an architecture without measuring: its size and, with a proxy, its quality."""
        known = {"decoder_params": float(arch.decoder_params)}
        if self.proxy is not None and (value := estimate(self.proxy, arch)) is not None:
            known[QUALITY] = value.low
        return known

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
        steps = (1 if len(costs) == 1 else 2) * log_steps(objectives)
        is_memory_solved = "peak_memory_bytes" in (*names, *bounded)
        found: list[Floats] = []
        sources: list[tuple[WidthTable, tuple[int, ...]]] = []
        cover = "exact" if len(costs) == 1 else "0.5 %"
        for table in space.tables:
            one = space.build(table, [table.frame])
            kept = [index for index, layer in enumerate(table.shapes) if (table.d_model, layer) not in avoided]
            if not kept:
                continue
            layout = self._layout(table, one)
            levels = self._levels(layout) if is_memory_solved else np.zeros(len(table.shapes), dtype=np.int64)
            standing, written = np.zeros((0, len(names))), list[tuple[int, ...]]()
            for is_beyond in self._regimes(table):
                matrix, base = self._costs(table, one, costs, is_beyond, margin)
                losses_of = partial(
                    self._losses, table, layout, dict(zip(costs, base, strict=True)), objectives, constraints, is_beyond
                )
                guards = _Guards(np.concatenate([*found, standing]), thinned or 0)
                keep = partial(_kept, losses_of, objectives, thinned, steps, guards)
                solutions = _solutions(table, layout, kept, matrix[kept], levels[kept], keep)
                if len(solutions) > 1 and not table.is_homogeneous:
                    cover = "weightings"
                for states in solutions:
                    losses = losses_of(states)
                    rows = _thinned(losses, objectives, thinned, steps)
                    best = rows[nondominated(losses[rows])]
                    # What stands on this width's frontier so far is written out as layers: states take much memory.
                    together = np.concatenate([standing, losses[best]])
                    stays = np.flatnonzero(nondominated(together))
                    n_before = len(standing)
                    written = [
                        written[row] if row < n_before else _picks(table, states, int(best[row - n_before]))
                        for row in stays
                    ]
                    standing = together[stays]
            found.append(standing)
            sources += [(table, picks) for picks in written]
        losses = np.concatenate(found) if found else np.zeros((0, len(names)))
        stays = np.flatnonzero(nondominated(losses))
        return Prediction(space=space, losses=losses[stays], sources=tuple(sources[i] for i in stays), cover=cover)

    def _layout(self, table: WidthTable, one: Architecture) -> Layout:
        key = (one, table.shapes, table.depths)
        if key not in self._layouts:
            self._layouts[key] = Layout(table, one, self.protocol, self.proxy)
        return self._layouts[key]

    def _levels(self, layout: Layout) -> NDArray[np.int64]:
        """(m,) what working in each shape takes, bytes, in groups that differ by less than the frontier's resolution
        tells apart: each group stands for its largest."""
        slope, offset = self._memory_fit
        least = slope * layout.levels.min() + offset + layout.least_bytes
        step = 0.5 * (RESOLUTION - 1) * max(least, 1.0) / slope if slope > 0 else np.inf
        groups = np.floor((layout.levels - layout.levels.min()) / step)
        levels: NDArray[np.int64] = layout.levels.copy()
        for group in np.unique(groups):
            levels[groups == group] = layout.levels[groups == group].max()
        return levels

    def _costs(
        self, table: WidthTable, one: Architecture, costs: Sequence[str], is_beyond: bool, margin: float
    ) -> tuple[Floats, Floats]:
        """Seconds (m, k) of each layer shape and (k,) of what lies outside the layers."""
        models = [self.models[cost] for cost in costs]
        layers = [model.layer_costs(one, table.shapes, is_beyond, margin) for model in models]
        base = [model.base_cost(one, is_beyond, margin) for model in models]
        return np.maximum(np.column_stack(layers), 1e-12), np.maximum(np.array(base), 0.0)

    def _regimes(self, table: WidthTable) -> tuple[bool, ...]:
        size = self.conditions.cache_bytes
        if size is None:
            return (False,)
        low, high = (BYTES_PER_NUMBER * (value + table.outside) for value in table.extent())
        return tuple(regime for regime, exists in ((False, low <= size), (True, high > size)) if exists)

    def _losses(
        self,
        table: WidthTable,
        layout: Layout,
        base: Mapping[str, float],
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        is_beyond: bool,
        states: States,
    ) -> Floats:
        """(n, k) losses of states in the objectives' order, infinite where they break a bound, a constraint (beyond
        SLACK) or the regime they were solved for. `base` is what lies outside the layers, by cost."""
        slope, offset = self._memory_fit
        used = {*(item.name for item in objectives), *(item.name for item in constraints)}
        values = {"decoder_params": layout.decoder_params(states)}
        if "peak_memory_bytes" in used:
            values["peak_memory_bytes"] = layout.stored_bytes(states) + slope * states.level + offset
        if QUALITY in used:
            is_along_the_way = states.costs.shape[1] == len(base) + 2
            values[QUALITY] = layout.quality(states, states.costs[:, 1] if is_along_the_way else None)
        own = states.costs[:, -len(base) :]  # a weighting, and ln n_head, come before
        values |= {name: own[:, index] + outside for index, (name, outside) in enumerate(base.items())}
        decoder = values["decoder_params"]
        allowed: NDArray[np.bool_] = (decoder >= table.low) & (decoder <= table.high)
        if self.conditions.cache_bytes is not None:
            weights = BYTES_PER_NUMBER * (decoder + table.outside)
            allowed &= (weights > self.conditions.cache_bytes) == is_beyond
        for constraint in constraints:
            if constraint.name in values:
                slack = 1.0 if constraint.name in EXACT else SLACK
                if constraint.maximum is not None:
                    allowed &= values[constraint.name] <= constraint.maximum * slack
                if constraint.minimum is not None:
                    allowed &= values[constraint.name] >= constraint.minimum / slack
        losses: Floats = np.column_stack([values[item.name] for item in objectives]).astype(np.float64)
        losses *= [item.loss(1.0) for item in objectives]
        losses[~allowed] = np.inf
        return losses


def _picks(table: WidthTable, states: States, row: int) -> tuple[int, ...]:
    return tuple(table.index_of(layer) for layer in states.layers(row))


class _Guards:
    """Members so far, (n, k) losses, as a table that says whether any of them beats a state.

    A cell is a number of the guards' values in each column but `axis`, and holds the least of `axis` among guards that
    have no more of anything: a state is beaten where it has more than its cell. (Guards equal in `axis` are let pass.)
    """

    def __init__(self, losses: Floats, axis: int) -> None:
        n_others = max(1, losses.shape[1] - 1)
        guards = _evenly(losses, min(MAX_GUARDS, int(MAX_GUARD_CELLS ** (1 / n_others)) - 1))
        self._axis = axis
        self._others = [column for column in range(losses.shape[1]) if column != axis]
        self._values = [np.unique(guards[:, column]) for column in self._others]
        self._least: Floats = np.full([len(values) + 1 for values in self._values], np.inf)  # 0: below all guards
        np.minimum.at(self._least, self._cells(guards), guards[:, axis])
        for dimension in range(self._least.ndim):
            np.minimum.accumulate(self._least, axis=dimension, out=self._least)

    def let_pass(self, losses: Floats) -> NDArray[np.bool_]:
        passed: NDArray[np.bool_] = losses[:, self._axis] <= self._least[self._cells(losses)]
        return passed

    def _cells(self, losses: Floats) -> tuple[NDArray[np.int64], ...]:
        return tuple(
            np.searchsorted(values, losses[:, column], side="right")
            for column, values in zip(self._others, self._values, strict=True)
        )


def _kept(
    losses_of: Callable[[States], Floats],
    objectives: Sequence[Objective],
    cost: int | None,
    steps: Floats,
    guards: _Guards,
    states: States,
) -> NDArray[np.int64]:
    """Rows of a chunk of states that may stand on the frontier, as far as its resolution tells them apart: those that
    none of the `guards` beats, thinned."""
    losses = losses_of(states)
    rows = np.flatnonzero(np.isfinite(losses[:, 0]))
    rows = rows[guards.let_pass(losses[rows])]
    return rows[_thinned(losses[rows], objectives, cost, steps)]


def _evenly(losses: Floats, n: int) -> Floats:
    """At most `n` of these, evenly spread over the order of the first column."""
    if len(losses) <= n:
        return losses
    order = np.argsort(losses[:, 0], kind="stable")
    spread: Floats = losses[order[np.linspace(0, len(order) - 1, n).round().astype(int)]]
    return spread


def _thinned(losses: Floats, objectives: Sequence[Objective], cost: int | None, steps: Floats) -> NDArray[np.int64]:
    """Rows at a resolution of `steps`: of rows alike in all objectives but column `cost`, to within a step, only the
    best stands. Far finer than what can be measured, and thousands of rows fewer."""
    allowed = np.flatnonzero(np.isfinite(losses).all(axis=1))
    if not allowed.size:
        return allowed
    cells = np.rint(log_losses(losses[allowed], objectives) / steps).astype(np.int64)
    if cost is not None:
        cells[:, cost] = 0
    order = np.lexsort((losses[allowed, cost or 0], *cells.T))
    cells = cells[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (cells[1:] != cells[:-1]).any(axis=1)
    rows: NDArray[np.int64] = allowed[order[first]]
    return rows


def log_losses(losses: Floats, objectives: Sequence[Objective]) -> Floats:
    """Losses on scales where equal factors are equal steps, still to be minimised; (n, k) or (k,)."""
    points = np.array(losses, dtype=np.float64)
    for column, objective in enumerate(objectives):
        if not objective.is_log:
            logs = np.log(np.maximum(np.abs(points[..., column]), 1e-12))
            points[..., column] = objective.loss(1.0) * logs
    return points


def log_steps(objectives: Sequence[Objective]) -> Floats:
    """(k,) how far apart on these scales what the solution tells apart lies."""
    return np.array([LOG_RESOLUTION if objective.is_log else math.log(RESOLUTION) for objective in objectives])


def relaxed(objective: Objective, loss: float) -> float:
    """The largest loss of what a kept point may stand for."""
    return loss + LOG_RESOLUTION if objective.is_log else max(loss * RESOLUTION, loss / RESOLUTION)


def _solutions(
    table: WidthTable,
    layout: Layout,
    kept: Sequence[int],
    matrix: Floats,
    levels: NDArray[np.int64],
    keep: Callable[[States], NDArray[np.int64]],
) -> list[States]:
    """Optimal states of a width for the additive costs (m, k) of the shapes `kept`; for two, a cover within 0.5 %.

    Where that is too large, the optima of weightings of what makes it so: of the two costs, or of cost and heads.
    """
    shapes, features = tuple(table.shapes[index] for index in kept), layout.features[kept]
    shared: dict[str, Any] = {"d_model": table.d_model, "step": math.gcd(*table.d_inner), "depths": table.depths}
    if table.is_homogeneous:
        each = [slice(row, row + 1) for row in range(len(shapes))]
        tables = [
            LayerTable(**shared, layers=shapes[row], costs=matrix[row], features=features[row], levels=levels[row])
            for row in each
        ]
        return [solve(one, keep=keep) for one in tables]
    shared |= {"layers": shapes, "levels": levels}
    relative = matrix / matrix.mean(axis=0)

    def weighted(mixes: Sequence[Floats], features: NDArray[np.int64]) -> list[States]:
        tables = [LayerTable(**shared, costs=np.hstack([mix, matrix]), features=features) for mix in mixes]
        return [solve(one, epsilon=None, keep=keep) for one in tables]

    heads = np.sign(layout.heads_gain) * layout.log_heads[kept, None]
    steps: list[Callable[[], list[States]]] = [
        lambda: [solve(LayerTable(**shared, costs=matrix, features=features), keep=keep)]
    ]
    if matrix.shape[1] > 1:
        mixes = [share * relative[:, :1] + (1 - share) * relative[:, 1:2] for share in WEIGHTINGS]
        steps.append(lambda: weighted(mixes, features))
    if features.shape[1] > layout.n_widths:
        logs = layout.log_heads[kept, None]
        worth = [np.hstack([relative.mean(axis=1, keepdims=True) - weight * heads, logs]) for weight in HEAD_WEIGHTS]
        steps.append(lambda: weighted(worth, features[:, : layout.n_widths]))
    for step in steps[:-1]:
        try:
            return step()
        except SpaceError:
            continue
    return steps[-1]()

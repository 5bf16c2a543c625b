"""Guided search: learn what layers cost here, solve for the frontier, measure along it, correct, repeat.

LiteTransformerSearch breeds its frontier from thousands of whole models. But a decoder is a stack: decoder_params is
exactly a sum over layers, latency nearly one, memory a sum plus one working set. So the frontier of the *predicted*
costs can be solved exactly (`solver`), and models need to be measured only to learn the costs (`cost_model`) and to
stand on the frontier. Every measurement is of a member of the space; only measured architectures are ever reported.

    design    a few members that tell most about the cost terms per second of measuring (greedy D-optimal), homogeneous
              stacks among them: layers are timed in place, inside whole models
    rounds    fit, solve, take members spread along the predicted frontier and one random member, measure, fit again
    stop      when the frontier has been measured without gaps and its hypervolume moves no more

The random members are there to know the model's error where nobody selected: the optimiser prefers whatever the model
flatters, so the error along the frontier is another one, and both are recorded (`origin`).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError, SpecError
from edge_lts.footprint import BYTES_PER_NUMBER, cache_bytes, cache_tokens, predicted_bytes, working_set_bytes
from edge_lts.objectives import Constraint, Objective
from edge_lts.pareto import hypervolume, nondominated
from edge_lts.records import Evaluation, Outcome, Protocol, central
from edge_lts.search.base import BaseSearcher, Candidate, known_settings
from edge_lts.search.cost_model import (
    COSTS,
    Conditions,
    CostModel,
    Observation,
    fit,
    nonnegative_least_squares,
    observation_of,
    terms_of,
)
from edge_lts.search.solver import LayerTable, States, solve
from edge_lts.space import SearchSpace
from edge_lts.space_table import WidthTable

Floats = NDArray[np.float64]

SOLVED = ("decoder_params", "decode_latency_s", "prefill_latency_s", "peak_memory_bytes")
N_POOL = 200
SLACK = 1.05  # a predicted value may break a bound by this factor and still be measured
WEIGHTINGS = (0.0, 0.15, 0.35, 0.5, 0.65, 0.85, 1.0)
MIN_OBSERVATIONS = 6
RESOLUTION = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedSettings:
    """`design` members first, then rounds of `batch`; stop after `patience` rounds that move the frontier's log
    hypervolume by less than `tolerance` and leave no gap wider than `gap` (share of the frontier's extent)."""

    design: int = 24
    batch: int = 8
    tolerance: float = 0.002
    gap: float = 0.03
    patience: int = 3
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("design", MIN_OBSERVATIONS), ("batch", 1), ("patience", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 10_000:
                raise SpecError(f"guided: {name} must be an integer from {minimum} to 10000, not {value!r:.40}")
        for name in ("tolerance", "gap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise SpecError(f"guided: {name} must lie between 0 and 1, not {value!r:.40}")
        size = self.cache_bytes
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise SpecError(f"guided: cache_bytes must be a positive number of bytes or null, not {size!r:.40}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GuidedSettings":
        return cls(**known_settings("guided", cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted frontier: losses (n, k) in the objectives' order, and where to find the architectures behind
    them."""

    losses: Floats
    sources: tuple[tuple[States, int], ...]
    is_exact: bool

    def layers(self, index: int) -> tuple[int, tuple[LayerSpec, ...]]:
        """d_model and layers of one member."""
        states, row = self.sources[index]
        return states.table.d_model, states.layers(row)


class GuidedSearcher(BaseSearcher):
    """Proposals of a round are fixed when its first candidate is asked, from all that was told by then."""

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        settings: GuidedSettings | None = None,
        constraints: tuple[Constraint, ...] = (),
        protocol: Protocol | None = None,
    ) -> None:
        super().__init__(space, objectives, seed, constraints)
        for objective in objectives:
            if objective.name not in SOLVED:
                raise SpecError(
                    f"guided cannot solve for {objective.name}: it is no sum over layers; use --strategy evolution"
                )
        self._settings = settings or GuidedSettings()
        self._protocol = protocol or Protocol()
        self._conditions = Conditions.of(self._protocol, self._settings.cache_bytes)
        self._plan: deque[tuple[Architecture, str]] = deque()
        self._origin: dict[Architecture, str] = {}
        self._observed: dict[str, list[Observation]] = {cost: [] for cost in COSTS}
        self._memory: list[tuple[Architecture, float]] = []
        self._models: dict[str, CostModel] = {}
        self._memory_fit = (1.0, 0.0)
        self._volumes: list[float] = []
        self._has_design = False

    # -- ask and tell --------------------------------------------------------------------------------------------------

    def ask(self, n: int = 1) -> list[Candidate]:
        return [
            Candidate(
                candidate_id=item.candidate_id,
                architecture=item.architecture,
                predicted=self.predict(item.architecture),
                origin=self._origin.get(item.architecture, "random"),
            )
            for item in super().ask(n)
        ]

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        super().tell(candidate_id, outcome)
        if not isinstance(outcome, Evaluation):
            return
        for cost in COSTS:
            observation = observation_of(outcome, cost)
            if observation is not None:
                self._observed[cost].append(observation)
        memory = central(outcome.objectives.get("peak_memory_bytes"))
        if memory is not None:
            self._memory.append((outcome.architecture, memory))

    def predict(self, arch: Architecture) -> dict[str, float]:
        """What the model says of an architecture; empty before the first fit."""
        if not self._models:
            return {}
        predicted = {cost: model.predict(arch) for cost, model in self._models.items()}
        slope, offset = self._memory_fit
        working = working_set_bytes(arch, self._protocol)
        predicted["peak_memory_bytes"] = predicted_bytes(arch, self._protocol) - working + slope * working + offset
        return predicted

    @property
    def models(self) -> Mapping[str, CostModel]:
        return self._models

    def _wants_tells(self) -> bool:
        return not self._plan

    def _propose(self) -> Architecture | None:
        while True:
            if not self._plan:
                self._plan_round()
            if self._reasons:
                return None
            if not self._plan:
                return self._fresh()
            arch, origin = self._plan.popleft()
            if arch not in self._seen:
                self._origin[arch] = origin
                return arch

    def _plan_round(self) -> None:
        if not self._has_design:
            self._has_design = True
            self._plan.extend((arch, "design") for arch in self._design())
            return
        if not self._fit():
            return  # too little was measured, or most of it failed: random members until it is enough
        prediction = self.solve()
        if not len(prediction.losses):
            return
        chosen, gap = self._spread(prediction)
        is_still = self._moves_no_more(prediction)
        if not chosen:
            self._reasons = ("frontier measured",)
        elif is_still and gap <= self._settings.gap:
            self._reasons = ("frontier stable",)
        else:
            self._plan.extend((arch, "frontier") for arch in chosen)
            control = self._fresh()
            self._reasons = ()
            if control is not None:
                self._plan.append((control, "random"))

    # -- what to learn from first --------------------------------------------------------------------------------------

    def _design(self) -> list[Architecture]:
        """Greedy D-optimal choice from a pool of homogeneous stacks and random members, by information per second.

        Rows are the terms of both costs over the operations' prior time; each choice adds the most to the logarithm of
        the information's determinant for the square root of its time.
        """
        pool = list(dict.fromkeys([*self._stacks(), *(self._space.sample(self._rng) for _ in range(N_POOL))]))
        rows, prior = [], []
        for arch in pool:
            terms = [terms_of(cost, arch, self._conditions) for cost in COSTS]
            seconds = [1e-10 * float(term.sum()) + 1e-4 for term in terms]
            rows.append([term / second for term, second in zip(terms, seconds, strict=True)])
            prior.append(sum(seconds))
        matrices = np.array(rows)
        scale = np.abs(matrices).max(axis=0)
        matrices = matrices / np.where(scale > 0, scale, 1.0)
        n_terms = matrices.shape[2]
        inverse = np.stack([np.eye(n_terms) * 1e6 for _ in COSTS])
        chosen: list[int] = []
        weight = 1.0 / np.sqrt(np.array(prior))
        for _ in range(min(self._settings.design, len(pool))):
            gain = np.zeros(len(pool))
            for which in range(len(COSTS)):
                x = matrices[:, which]
                gain += np.log1p(np.einsum("ij,jk,ik->i", x, inverse[which], x))
            gain = gain * weight
            gain[chosen] = -np.inf
            best = int(gain.argmax())
            chosen.append(best)
            for which in range(len(COSTS)):
                x = inverse[which] @ matrices[best, which]
                inverse[which] -= np.outer(x, x) / (1.0 + float(matrices[best, which] @ x))
        return [pool[index] for index in chosen]

    def _stacks(self) -> list[Architecture]:
        stacks = []
        for table in self._space.tables:
            for depth in {table.depths[0], table.depths[len(table.depths) // 2], table.depths[-1]}:
                for inner in {table.d_inner[0], table.d_inner[len(table.d_inner) // 2], table.d_inner[-1]}:
                    for head in {table.n_head[0], table.n_head[-1]}:
                        picks = [table.index(inner, head)] * depth
                        if table.is_within(picks):
                            stacks.append(self._space.build(table, picks))
        return sorted(stacks, key=lambda arch: arch.canonical_json())

    # -- fitting and solving -------------------------------------------------------------------------------------------

    def _fit(self) -> bool:
        enough = {cost: seen for cost, seen in self._observed.items() if len(seen) >= MIN_OBSERVATIONS}
        needed = [objective.name for objective in self._objectives if objective.name in COSTS]
        if not enough or any(cost not in enough for cost in needed):
            return False
        self._models = {cost: fit(cost, seen, self._conditions) for cost, seen in enough.items()}
        if len(self._memory) >= 4:
            working = np.array([working_set_bytes(arch, self._protocol) for arch, _ in self._memory], dtype=np.float64)
            rest = np.array([predicted_bytes(arch, self._protocol) for arch, _ in self._memory]) - working
            target = np.array([value for _, value in self._memory]) - rest
            slope, offset = nonnegative_least_squares(np.column_stack([working, np.ones(len(working))]), target)
            self._memory_fit = (float(slope), float(offset))
        return True

    def solve(self) -> Prediction:
        """The frontier of the predicted objectives over the whole space; exact for one additive measured cost."""
        costs = [objective.name for objective in self._objectives if objective.name in COSTS]
        found: list[tuple[States, NDArray[np.int64], Floats]] = []
        is_exact = len(costs) <= 1
        for table in self._space.tables:
            for states, losses in self._solve_width(table, costs or list(self._models)[:1]):
                best = _thinned_frontier(losses)
                found.append((states, best, losses[best]))
        losses = np.concatenate([item[2] for item in found]) if found else np.zeros((0, len(self._objectives)))
        sources = [(states, int(row)) for states, rows, _ in found for row in rows]
        keep = np.flatnonzero(nondominated(losses))
        return Prediction(losses=losses[keep], sources=tuple(sources[i] for i in keep), is_exact=is_exact)

    def architecture(self, prediction: Prediction, index: int) -> Architecture:
        d_model, layers = prediction.layers(index)
        table = self._space.table(d_model)
        return self._space.build(table, [table.index(layer.d_inner, layer.n_head) for layer in layers])

    def _solve_width(self, table: WidthTable, costs: list[str]) -> list[tuple[States, Floats]]:
        step = math.gcd(*table.d_inner)
        one = self._space.build(table, [0])
        results = []
        for is_beyond in self._regimes(table):
            columns = [self._models[cost].layer_costs(table.d_model, table.shapes, is_beyond)[0] for cost in costs]
            matrix = np.maximum(np.column_stack(columns), 1e-12)
            base = np.array([self._models[cost].base_cost(one, is_beyond) for cost in costs])
            for states in _solutions(table, step, matrix):
                further = states.costs[:, -len(costs) :]
                losses = self._losses(table, one, states, further + base, costs, is_beyond)
                results.append((states, losses))
        return results

    def _regimes(self, table: WidthTable) -> tuple[bool, ...]:
        size = self._settings.cache_bytes
        if size is None:
            return (False,)
        low, high = (BYTES_PER_NUMBER * (value + table.outside) for value in table.extent())
        return tuple(regime for regime, exists in ((False, low <= size), (True, high > size)) if exists)

    def _losses(
        self, table: WidthTable, one: Architecture, states: States, costs: Floats, names: list[str], is_beyond: bool
    ) -> Floats:
        """(n, k) losses of states; infinite where a bound or the regime is broken."""
        protocol = self._protocol
        inner = table.d_inner
        slope = (table.costs[-1] - table.costs[0]) // (inner[-1] - inner[0]) if len(inner) > 1 else 0
        first = table.costs[0] - slope * inner[0]
        decoder = table.base + states.depth * first + slope * states.d_inner_sum
        weights = BYTES_PER_NUMBER * (decoder + table.outside)
        cache = states.depth * cache_bytes(one, cache_tokens(one, protocol))
        working = np.zeros(len(states))
        for value in np.unique(states.d_inner_max):
            widest = one.replace(layers=(LayerSpec(d_inner=int(value), n_head=table.n_head[0]),))
            working[states.d_inner_max == value] = working_set_bytes(widest, protocol)
        factor, offset = self._memory_fit
        values: dict[str, Floats] = {
            "decoder_params": decoder.astype(np.float64),
            "peak_memory_bytes": weights + cache + factor * working + offset,
            **{name: costs[:, column] for column, name in enumerate(names)},
        }
        allowed = (decoder >= table.low) & (decoder <= table.high)
        if self._settings.cache_bytes is not None:
            allowed &= (weights > self._settings.cache_bytes) == is_beyond
        for constraint in self._constraints:
            if constraint.name in values:
                slack = SLACK if constraint.name != "decoder_params" else 1.0
                if constraint.maximum is not None:
                    allowed &= values[constraint.name] <= constraint.maximum * slack
                if constraint.minimum is not None:
                    allowed &= values[constraint.name] >= constraint.minimum / slack
        losses = np.column_stack(
            [values[objective.name] * (1.0 if objective.direction == "min" else -1.0) for objective in self._objectives]
        )
        losses[~allowed] = np.inf
        return losses

    # -- what to measure next ------------------------------------------------------------------------------------------

    def _spread(self, prediction: Prediction) -> tuple[list[Architecture], float]:
        """Up to `batch` unmeasured members near the predicted frontier, farthest first, and the widest gap before them.

        Distance is Euclidean in the logarithms of the objectives, each divided by its extent over the frontier.
        """
        points = _log_points(prediction.losses)
        low, extent = points.min(axis=0), np.maximum(points.max(axis=0) - points.min(axis=0), 1e-9)
        points = (points - low) / extent
        nearest = np.full(len(points), np.inf)
        for candidate_id, score in self._scores.items():
            if score is not None and self._origin.get(self._asked[candidate_id]) != "random":
                measured = (_log_points(np.array(score.losses)) - low) / extent
                nearest = np.minimum(nearest, np.linalg.norm(points - measured, axis=1))
        gap = float(nearest.max(initial=0.0))
        chosen: list[Architecture] = []
        ends = deque(int(column.argmin()) for column in points.T)
        while len(chosen) < self._settings.batch and nearest.max(initial=0.0) > 0:
            index = ends.popleft() if ends else int(nearest.argmax())
            if nearest[index] <= 0:
                continue
            arch = self._plainest(self.architecture(prediction, index))
            if arch not in self._seen and arch not in chosen:
                chosen.append(arch)
                nearest = np.minimum(nearest, np.linalg.norm(points - points[index], axis=1))
            nearest[index] = -1.0
        return chosen, gap

    def _plainest(self, arch: Architecture) -> Architecture:
        """The homogeneous stack of the same sum if there is one and the model cannot tell it from `arch`."""
        total = sum(layer.d_inner for layer in arch.layers)
        if total % arch.n_layer or len({layer.d_inner for layer in arch.layers}) == 1:
            return arch
        heads = arch.layers[0].n_head
        plain = arch.replace(layers=(LayerSpec(d_inner=total // arch.n_layer, n_head=heads),) * arch.n_layer)
        if not self._space.contains(plain):
            return arch
        one, other = self.predict(arch), self.predict(plain)
        is_alike = all(other[cost] <= one[cost] * (1 + model.noise) for cost, model in self._models.items())
        return plain if is_alike else arch

    def _moves_no_more(self, prediction: Prediction) -> bool:
        """Whether the predicted frontier's hypervolume, in logarithms, has been still for `patience` rounds."""
        points = _log_points(prediction.losses)
        signs = np.array([1.0 if objective.direction == "min" else -1.0 for objective in self._objectives])
        oriented = points * signs
        reference = oriented.max(axis=0) + 0.1
        self._volumes.append(hypervolume(oriented[:: max(1, len(oriented) // 300)], reference))
        recent = self._volumes[-(self._settings.patience + 1) :]
        if len(recent) <= self._settings.patience:
            return False
        return max(recent) - min(recent) <= self._settings.tolerance * max(recent)


def _thinned_frontier(losses: Floats) -> NDArray[np.int64]:
    """Rows of the frontier at a resolution of `RESOLUTION`: of rows alike in all objectives but the first measured one,
    to within that factor, only the best stands. Far finer than what can be measured, and thousands of rows fewer."""
    allowed = np.flatnonzero(np.isfinite(losses).all(axis=1))
    if not allowed.size:
        return allowed
    cells = np.rint(_log_points(losses[allowed]) / math.log(RESOLUTION)).astype(np.int64)
    cells[:, 1] = 0
    order = np.lexsort((losses[allowed, 1], *cells.T))
    cells = cells[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (cells[1:] != cells[:-1]).any(axis=1)
    kept = allowed[order[first]]
    return kept[nondominated(losses[kept])]


def _log_points(losses: Floats) -> Floats:
    points: Floats = np.log(np.maximum(np.abs(losses), 1e-12))
    return points


def _solutions(table: WidthTable, step: int, matrix: Floats) -> list[States]:
    """Optimal states of a width for its additive costs (m, k); for two, a cover within 0.5 % or, where that is too
    large, the optima of several weightings."""
    shared: dict[str, Any] = {
        "d_model": table.d_model,
        "step": step,
        "depths": table.depths,
        "layers": table.shapes,
        "features": np.zeros((len(table.shapes), 0), dtype=np.int64),
    }
    if table.is_homogeneous:
        return [
            solve(LayerTable(**{**shared, "layers": (shape,), "features": shared["features"][:1]}, costs=costs[None]))
            for shape, costs in zip(table.shapes, matrix, strict=True)
        ]
    try:
        return [solve(LayerTable(**shared, costs=matrix))]
    except SpaceError:
        if matrix.shape[1] == 1:
            raise
        relative = matrix / matrix.mean(axis=0)
        mixes = [share * relative[:, :1] + (1 - share) * relative[:, 1:2] for share in WEIGHTINGS]
        return [solve(LayerTable(**shared, costs=np.hstack([mix, matrix])), epsilon=None) for mix in mixes]

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

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpecError
from edge_lts.objectives import QUALITY, Constraint, Objective
from edge_lts.pareto import hypervolume, nondominated
from edge_lts.records import Evaluation, Outcome, Protocol
from edge_lts.search.base import BaseSearcher, Candidate, known_settings
from edge_lts.search.cost_model import CostModel
from edge_lts.search.design import choose_design
from edge_lts.search.predictor import MIN_OBSERVATIONS, SOLVED, Prediction, Predictor, log_losses
from edge_lts.space import SearchSpace
from edge_lts.space_rules import VALIDATED

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

Floats = NDArray[np.float64]

MIN_DESIGN = 10  # of a run whose budget has room for few candidates
MAX_WIDENINGS = 4
BOUND_SHARE = 0.1
MAX_ALIKE = 0.02  # a plainer shape may be predicted to be that much slower, if that is within twice the model's noise


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedSettings:
    """`design` members first, then rounds of `batch`; stop after `patience` rounds that move the frontier's log
    hypervolume by less than `tolerance` and leave no gap wider than `gap` (share of the frontier's extent).

    expected_candidates: how many the budget is expected to have room for; the design takes at most half of them.
    widen: instead of stopping, extend the space wherever the frontier sits on its bounds, a few times.
    """

    design: int = 24
    batch: int = 8
    tolerance: float = 0.002
    gap: float = 0.03
    patience: int = 3
    cache_bytes: int | None = None
    expected_candidates: int | None = None
    widen: bool = False

    @property
    def design_size(self) -> int:
        """Members of the design: fewer where the budget has room for few candidates."""
        expected = self.expected_candidates
        return self.design if expected is None else min(self.design, max(MIN_DESIGN, expected // 2))

    def __post_init__(self) -> None:
        for name, minimum in (("design", MIN_OBSERVATIONS), ("batch", 1), ("patience", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 10_000:
                raise SpecError(f"guided: {name} must be an integer from {minimum} to 10000, not {value!r:.40}")
        for name in ("tolerance", "gap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise SpecError(f"guided: {name} must lie between 0 and 1, not {value!r:.40}")
        for name, what in (("cache_bytes", "number of bytes"), ("expected_candidates", "integer")):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SpecError(f"guided: {name} must be a positive {what} or null, not {value!r:.40}")
        if not isinstance(self.widen, bool):
            raise SpecError(f"guided: widen must be true or false, not {self.widen!r:.40}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GuidedSettings":
        return cls(**known_settings("guided", cls, data))


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
        proxy: "CalibratedProxy | None" = None,
    ) -> None:
        super().__init__(space, objectives, seed, constraints)
        if space.genes.precision:
            raise SpecError("guided models the costs of one precision, and here it is a gene; use --strategy evolution")
        for objective in objectives:
            if objective.name == QUALITY and proxy is None:
                raise SpecError("guided cannot solve for quality without the calibrated proxy that gives it")
            if objective.name not in SOLVED:
                raise SpecError(
                    f"guided cannot solve for {objective.name}: it is no sum over layers; use --strategy evolution"
                )
        self._settings = settings or GuidedSettings()
        self._predictor = Predictor(protocol or Protocol(), self._settings.cache_bytes, proxy)
        self._plan: deque[tuple[Architecture, str]] = deque()
        self._origin: dict[Architecture, str] = {}
        self._worked: set[tuple[int, LayerSpec]] = set()
        self._failed: set[tuple[int, LayerSpec]] = set()
        self._volumes: list[float] = []
        self._has_design = False
        self._n_widenings = 0

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
        shapes = {(outcome.architecture.d_model, layer) for layer in outcome.architecture.layers}
        if isinstance(outcome, Evaluation):
            self._predictor.tell(outcome)
            self._worked |= shapes
        elif outcome.kind != "oom":
            self._failed |= shapes

    def predict(self, arch: Architecture) -> dict[str, float]:
        """What the model says of an architecture; empty before the first fit."""
        return self._predictor.predict(arch)

    @property
    def models(self) -> Mapping[str, CostModel]:
        return self._predictor.models

    def solve(self) -> Prediction:
        """The predicted frontier of the whole space; needs a fitted model."""
        suspects = self._failed - self._worked  # layers that were in a failure and never in a success
        return self._predictor.frontier(self._space, self._objectives, self._constraints, avoided=suspects)

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
            design = choose_design(self._space, self._predictor.conditions, self._settings.design_size, self._rng)
            self._plan.extend((arch, "design") for arch in design)
            return
        if not self._predictor.fit(objective.name for objective in self._objectives):
            return  # too little was measured, or most of it failed: random members until it is enough
        prediction = self.solve()
        if not len(prediction):
            return
        chosen, gap = self._spread(prediction)
        is_still = self._moves_no_more(prediction)
        if chosen and not (is_still and gap <= self._settings.gap):
            self._plan.extend((arch, "frontier") for arch in chosen)
            control = self._fresh()
            self._reasons = ()
            if control is not None:
                self._plan.append((control, "random"))
        elif self._widen():
            self._plan_round()
        else:
            self._reasons = ("frontier stable" if chosen else "frontier measured",)

    def _widen(self) -> bool:
        """Extend the genes on whose bounds more than a few members of the measured frontier sit; whether that did
        anything.

        Not vocabularies and embeddings downwards: decoder_params sees neither, so every frontier sits there; quality
        does not see vocabularies.
        """
        if not self._settings.widen or self._n_widenings >= MAX_WIDENINGS:
            return False
        scored = [(index, score) for index, score in self._scores.items() if score is not None and not score.violation]
        if not scored:
            return False
        on_frontier = np.flatnonzero(nondominated(np.array([score.losses for _, score in scored])))
        members = [self._asked[scored[row][0]] for row in on_frontier]
        touched = [
            bound for arch in members for bound in {(gene, side) for gene, _, side in self._space.bounds_of(arch)}
        ]
        space = self._space
        searches_quality = any(objective.name == QUALITY for objective in self._objectives)
        unseen = ("vocab_size",) if searches_quality else ("vocab_size", "d_embed")
        for gene, side in sorted(set(touched)):
            is_seen = side == "high" or gene not in unseen
            if is_seen and touched.count((gene, side)) > BOUND_SHARE * len(members):
                space = space.widened(gene, side) or space
        if space == self._space:
            return False
        self._n_widenings += 1
        self._space, self._listing = space, None
        self._volumes.clear()
        return True

    # -- what to measure next ------------------------------------------------------------------------------------------

    def _spread(self, prediction: Prediction) -> tuple[list[Architecture], float]:
        """Up to `batch` unmeasured members near the predicted frontier, farthest first, and the widest gap before them.

        Distance is Euclidean in the logarithms of the objectives, each divided by its extent over the frontier.
        """
        points = log_losses(prediction.losses, self._objectives)
        low, extent = points.min(axis=0), np.maximum(points.max(axis=0) - points.min(axis=0), 1e-9)
        points = (points - low) / extent
        nearest = np.full(len(points), np.inf)
        for candidate_id, score in self._scores.items():
            arch = self._asked[candidate_id]
            if score is not None and self._origin.get(arch) != "random":
                # Where the model sees it, not where a slow minute put it.
                known = {**self.predict(arch), **self._predictor.by_formula(arch)}
                losses = np.array([objective.loss(known[objective.name]) for objective in self._objectives])
                its = (log_losses(losses, self._objectives) - low) / extent
                nearest = np.minimum(nearest, np.linalg.norm(points - its, axis=1))
        gap = float(nearest.max(initial=0.0))
        chosen: list[Architecture] = []
        ends = deque(int(column.argmin()) for column in points.T)
        while len(chosen) < self._settings.batch and nearest.max(initial=0.0) > 0:
            index = ends.popleft() if ends else int(nearest.argmax())
            if nearest[index] <= 0:
                continue
            arch = self._plainest(prediction.architecture(index))
            if arch not in self._seen and arch not in chosen:
                chosen.append(arch)
                nearest = np.minimum(nearest, np.linalg.norm(points - points[index], axis=1))
            nearest[index] = -1.0
        return chosen, gap

    def _plainest(self, arch: Architecture) -> Architecture:
        """The plainest shape of the same decoder_params, and of no less quality where that is searched, that the model
        cannot tell from `arch`: homogeneous if there is such a stack, with heads of a validated width if the space has
        them."""
        predicted = self.predict(arch)
        names = {objective.name for objective in self._objectives}
        allowed = {name: 1 + min(2 * model.noise, MAX_ALIKE) for name, model in self.models.items() if name in names}
        quality = self._predictor.by_formula(arch).get(QUALITY, -np.inf) if QUALITY in names else -np.inf
        for plain in self._plainer(arch):
            other = self.predict(plain)
            is_as_good = quality == -np.inf or self._predictor.by_formula(plain)[QUALITY] >= quality
            if is_as_good and all(other[name] <= predicted[name] * factor for name, factor in allowed.items()):
                return plain
        return arch

    def _plainer(self, arch: Architecture) -> Iterator[Architecture]:
        """Members of the same depth, widths and sum of d_inner, the plainest first."""
        total, heads = sum(layer.d_inner for layer in arch.layers), {(one.n_head, one.n_kv_head) for one in arch.layers}
        even = None if total % arch.n_layer else total // arch.n_layer
        low, high = VALIDATED["d_head"]
        table = self._space.table_of(arch)
        width = table.style[0]
        sound = [
            pair for pair in table.heads if (low or 0) <= (width or arch.d_model // pair[0]) <= (high or arch.d_model)
        ]
        for pair in dict.fromkeys([*sound, *(heads if len(heads) == 1 else ())]):
            for inner in (even, None):
                layers = tuple(
                    LayerSpec(d_inner=inner or layer.d_inner, n_head=pair[0], n_kv_head=pair[1])
                    for layer in arch.layers
                )
                plain = arch.replace(layers=tuple(sorted(layers)), d_head=width)
                if (inner is None and pair not in sound) or (even is None and inner is not None):
                    continue
                if plain != arch and plain.width_sums == arch.width_sums and self._space.contains(plain):
                    yield plain

    def _moves_no_more(self, prediction: Prediction) -> bool:
        """Whether the predicted frontier's hypervolume, in logarithms, has been still for `patience` rounds."""
        oriented = log_losses(prediction.losses, self._objectives)
        reference = oriented.max(axis=0) + 0.1
        self._volumes.append(hypervolume(oriented[:: max(1, len(oriented) // 300)], reference))
        recent = self._volumes[-(self._settings.patience + 1) :]
        if len(recent) <= self._settings.patience:
            return False
        return max(recent) - min(recent) <= self._settings.tolerance * max(recent)

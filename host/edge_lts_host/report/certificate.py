"""How much faster anything in a space could be than the members that a run found: a bound with 95 % confidence.

A member's time is what was measured or what the model makes of it, whichever is more: the fastest of many measurements
is a lucky one. The frontier is solved again with every layer shape, and what lies outside the layers, at the lower ends
of their simultaneous intervals. Whatever the space holds is then no faster than that solution, at a member's
decoder_params (or quality) and in its predicted peak memory, unless some cost lies below its interval, which happens in
one of twenty runs at most if the model's assumptions hold: costs add up, deviations are normal, and the model's spread
is as honest about shapes that were not measured as it is about measured models left out. Where left-out errors are
larger than the model expects, its spread is widened by as much. `benchmarks/bench_oracle.py` counts how often the bound
holds where the truth is known.

Simultaneous by Bonferroni's inequality over all shapes and widths, one-sided. A whole model may also be faster than the
sum of its layers. How much cannot be told from the noise of measuring, so all of the noise counts as that: the bound is
lowered by its one-sided 95 % quantile once more. On a busy machine this is most of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from edge_lts.arch import Architecture
from edge_lts.errors import SpaceError
from edge_lts.objectives import QUALITY, Constraint, Objective
from edge_lts.preparation import load_proxy
from edge_lts.records import DeviceInfo, Evaluation, Outcome, Protocol, RunSpec
from edge_lts.search.base import narrowed
from edge_lts.search.cost_model import COSTS
from edge_lts.search.predictor import Predictor, relaxed
from edge_lts.space import SearchSpace
from edge_lts.stats import median

CONFIDENCE = 0.95
MIN_EVALUATIONS = 12
BY_FORMULA = ("decoder_params", QUALITY, "peak_memory_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Nothing takes less than (1 - share) of a member's time, per member of the frontier in the order given.

    `margin` is the number of standard deviations that the costs were lowered by.
    """

    cost: str
    margin: float
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "objective": self.cost,
            "confidence": CONFIDENCE,
            "margin": self.margin,
            "median_share": median(self.shares),
            "largest_share": max(self.shares),
            "shares": list(self.shares),
        }


def fitted(
    spec: RunSpec, device: DeviceInfo | None, outcomes: Sequence[Outcome], protocol: Protocol
) -> Predictor | None:
    """The cost models of guided search, fitted to all that a run's search measured; None where that is too little.

    `protocol` with its threads resolved.
    """
    size = spec.settings.get("cache_bytes", None if device is None else device.extra.get("last_level_cache_bytes"))
    predictor = Predictor(protocol, size if isinstance(size, int) else None, load_proxy(spec))
    n_told = 0
    for outcome in outcomes:
        if isinstance(outcome, Evaluation) and outcome.purpose == "search":
            predictor.tell(outcome)
            n_told += 1
    return predictor if n_told >= MIN_EVALUATIONS and predictor.fit() else None


def certificates(
    spec: RunSpec,
    device: DeviceInfo | None,
    outcomes: Sequence[Outcome],
    protocol: Protocol,
    members: Sequence[tuple[Architecture, Mapping[str, float]]],
) -> list[Certificate]:
    """What can be said of a run's frontier, in the space that the run was given and its board's memory could hold."""
    predictor = fitted(spec, device, outcomes, protocol)
    if predictor is None or not members:
        return []
    limit = None if device is None else device.extra.get("memory_limit_bytes")
    try:
        space = narrowed(SearchSpace.from_json(spec.space), spec.constraints)
        if isinstance(limit, int):
            space = space.restricted(max_weight_bytes=limit, precision=spec.protocol.precision)
        return certify(predictor, space, spec.resolved_objectives, spec.constraints, members)
    except SpaceError:  # nothing left, or too large to solve
        return []


def certify(
    predictor: Predictor,
    space: SearchSpace,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    members: Sequence[tuple[Architecture, Mapping[str, float]]],
) -> list[Certificate]:
    """A certificate for each searched latency that the predictor has a model of. `members` with measured medians."""
    formulas = [objective for objective in objectives if objective.name in BY_FORMULA]
    n_costs = sum(len(table.shapes) + 1 for table in space.tables)
    quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / n_costs)
    found = []
    for cost in objectives:
        measured = [values[cost.name] for _, values in members if cost.name in values]
        if cost.name not in COSTS or cost.name not in predictor.models or not members or len(measured) < len(members):
            continue
        model = predictor.models[cost.name]
        margin = quantile * model.overconfidence
        lucky = max(0.0, 1 - NormalDist().inv_cdf(CONFIDENCE) * model.noise)
        lowest = predictor.frontier(space, [*formulas, cost], constraints, margin=-margin).losses.tolist()
        shares = []
        for (arch, values), seconds in zip(members, measured, strict=True):
            predicted = predictor.predict(arch)
            known = {**values, **predicted, **predictor.by_formula(arch)}
            # The solution is kept at a resolution; a point that far off may stand for a better one.
            limits = [relaxed(objective, objective.loss(known[objective.name])) for objective in formulas]
            no_worse = [row for row in lowest if all(loss <= limit for loss, limit in zip(row, limits, strict=False))]
            longest = max(seconds, predicted[cost.name])  # a lucky measurement is no proof
            floor = min((row[-1] for row in no_worse), default=longest) * lucky
            shares.append(max(0.0, 1 - floor / longest) if longest else 0.0)
        found.append(Certificate(cost=cost.name, margin=margin, shares=tuple(shares)))
    return found

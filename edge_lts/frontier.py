"""The Pareto frontier of a run: each architecture's processes combined into one value, then the non-dominated ones.

How several processes of one architecture become one value:
    median  median of the process medians, so that a process with more samples has no louder voice
    mad     of all samples together
    ci95    order-statistic interval of all samples together, widened where needed to hold `median`; None where a
            process kept no samples. It speaks of the occasions that were seen.
    pi95    what a fresh process later would show: from three processes on, with the between-process spread pooled over
            all members (`stats.pooled_pi95`)
    n       samples in total
Dominance is decided by the run's objectives alone; every objective that was measured is carried along. Predictions and
probabilities are not this module's business.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.objectives import Constraint, Objective
from edge_lts.records import Evaluation, Measurement, Outcome, Value, central, value_to_json
from edge_lts.stats import ci95_of_median, mad, median, pooled_pi95


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One architecture of the frontier with what its processes say together."""

    arch_id: str
    architecture: Architecture
    objectives: dict[str, Value]
    n_processes: int
    predicted: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    probably_dominated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "arch_id": self.arch_id,
            "architecture": self.architecture.to_json(),
            "objectives": {name: value_to_json(value) for name, value in self.objectives.items()},
            "predicted": self.predicted,
            "flags": list(self.flags),
            "probably_dominated": self.probably_dominated,
            "n_processes": self.n_processes,
        }


def members(
    outcomes: Iterable[Outcome], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> list[Member]:
    """The non-dominated architectures that satisfy every constraint, in the order in which they were first measured.

    Failures, architectures with an objective of the run not measured, and those outside a constraint are left out.
    """
    frontier = Frontier(objectives, constraints)
    for outcome in outcomes:
        if isinstance(outcome, Evaluation):
            frontier.add(outcome.architecture.arch_id, outcome)
    return frontier.members()


Recall = Callable[[Collection[str]], Mapping[str, list[Evaluation]]]


class Frontier:
    """`members` for outcomes that arrive one by one.

    What dominance needs is kept as a few numbers per architecture. With `recall`, which finds the processes of given
    architectures again, those that are dominated are forgotten; only a confirmation can bring one back.
    """

    def __init__(
        self, objectives: Sequence[Objective], constraints: Sequence[Constraint] = (), recall: Recall | None = None
    ) -> None:
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._recall = recall
        self._groups: dict[str, list[Evaluation]] = {}
        self._losses: dict[str, list[float] | None] = {}  # None: no member whatever the others do

    def add(self, arch_id: str, evaluation: Evaluation) -> None:
        """One more process of one architecture."""
        group = self._groups.get(arch_id, [])
        if arch_id in self._losses and not group and self._recall is not None:
            group = self._recall([arch_id])[arch_id]
        self._groups[arch_id] = [*group, evaluation]
        self._losses[arch_id] = _losses(self._groups[arch_id], self._objectives, self._constraints)

    def member_ids(self) -> list[str]:
        """Who stands on the frontier now, in the order in which the architectures were first added."""
        chosen = self._nondominated()
        if self._recall is not None:
            lacking = [arch_id for arch_id in chosen if arch_id not in self._groups]
            kept = {**self._groups, **(self._recall(lacking) if lacking else {})}
            self._groups = {arch_id: kept[arch_id] for arch_id in chosen}
        return chosen

    def processes(self, arch_id: str) -> list[Evaluation]:
        """The processes of a member."""
        return self._groups[arch_id]

    def members(self) -> list[Member]:
        return combine([(arch_id, self._groups[arch_id]) for arch_id in self.member_ids()])

    def _nondominated(self) -> list[str]:
        import numpy as np

        from edge_lts.pareto import nondominated

        eligible = [(arch_id, losses) for arch_id, losses in self._losses.items() if losses is not None]
        if not eligible:
            return []
        mask = nondominated(np.array([losses for _, losses in eligible], dtype=float))
        return [arch_id for (arch_id, _), is_member in zip(eligible, mask, strict=True) if is_member]


def _losses(
    group: Sequence[Evaluation], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> list[float] | None:
    """What dominance is decided on: a number to minimise for each objective. None for what cannot be a member."""
    for constraint in constraints:
        value = _central(group, constraint.name)
        if value is None or not constraint.allows(value):
            return None
    losses = []
    for objective in objectives:
        value = _central(group, objective.name)
        if value is None:
            return None
        losses.append(objective.loss(value))
    return losses


def _values(group: Sequence[Evaluation], name: str) -> list[int | float | Measurement]:
    return [value for evaluation in group if (value := evaluation.objectives.get(name)) is not None]


def _central(group: Sequence[Evaluation], name: str) -> float | None:
    numbers = [found for value in _values(group, name) if (found := central(value)) is not None]
    return median(numbers) if numbers else None


def _combine(arch_id: str, group: Sequence[Evaluation]) -> Member:
    names = dict.fromkeys(name for evaluation in group for name in evaluation.objectives)
    predicted: dict[str, float] = {}
    for evaluation in group:
        predicted.update(evaluation.predicted)
    return Member(
        arch_id=arch_id,
        architecture=group[0].architecture,
        objectives={name: _combine_value(group, name) for name in names},
        n_processes=len(group),
        predicted=predicted,
        flags=tuple(sorted({flag for evaluation in group for flag in evaluation.flags})),
    )


def _combine_value(group: Sequence[Evaluation], name: str) -> Value:
    values = _values(group, name)
    if not values:
        return None
    measured = [value for value in values if isinstance(value, Measurement)]
    if not measured or len(values) == 1:
        return values[0]
    centre = median([value.median for value in measured])
    samples = _all_samples(group, name)
    spread = interval = None
    if samples is not None:
        spread, interval = mad(samples), ci95_of_median(samples)
    if interval is not None:
        interval = (min(interval[0], centre), max(interval[1], centre))
    return Measurement(median=centre, mad=spread, ci95=interval, n=sum(value.n for value in measured))


def _all_samples(group: Sequence[Evaluation], name: str) -> list[float] | None:
    """Samples of all processes, a single reading counting as its own sample; None where one kept none."""
    samples: list[float] = []
    for evaluation in group:
        value = evaluation.objectives.get(name)
        if not isinstance(value, Measurement):
            continue
        own = evaluation.samples.get(name) or ([value.median] if value.n == 1 else [])
        if not own:
            return None
        samples += own
    return samples


def combine(chosen: Sequence[tuple[str, Sequence[Evaluation]]]) -> list[Member]:
    """Members from the processes of each chosen (arch_id, processes); `pi95` is pooled over all of them."""
    groups = [group for _, group in chosen]
    combined = [_combine(arch_id, group) for arch_id, group in chosen]
    names = dict.fromkeys(name for member in combined for name in member.objectives)
    objectives = [dict(member.objectives) for member in combined]
    for name in names:
        medians = [
            [value.median for value in _values(group, name) if isinstance(value, Measurement)] for group in groups
        ]
        for values, interval in zip(objectives, pooled_pi95(medians), strict=True):
            value = values.get(name)
            if interval is not None and isinstance(value, Measurement):
                values[name] = replace(value, pi95=interval)
    return [replace(member, objectives=values) for member, values in zip(combined, objectives, strict=True)]

"""The Pareto frontier of a run: each architecture's processes combined into one value, then the non-dominated ones.

How several processes of one architecture become one value:
    median  median of the process medians, so that a process with more samples has no louder voice; latencies at the
            machine's usual speed in this run (`edge_lts.speed`), as are their intervals
    mad     of all samples together
    ci95    order-statistic interval of all samples together, widened where needed to hold `median`; None where a
            process kept no samples. It speaks of the occasions that were seen.
    pi95    what a fresh process later would show: from three processes on, with the between-process spread pooled over
            all members (`stats.pooled_pi95`); the spread is that of the times as measured, since a later process gets
            the machine's speed of its own moment
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
from edge_lts.speed import Anchors, UsualSpeed, anchors_of
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
        self._speed = UsualSpeed()
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._names = {item.name for item in self._objectives} | {item.name for item in self._constraints}
        self._recall = recall
        self._groups: dict[str, list[Evaluation]] = {}
        self._values: dict[str, list[tuple[dict[str, float], Anchors]]] = {}  # of each process; for dominance

    def add(self, arch_id: str, evaluation: Evaluation) -> None:
        """One more process of one architecture."""
        group = self._groups.get(arch_id, [])
        if arch_id in self._values and not group and self._recall is not None:
            group = self._recall([arch_id])[arch_id]
        self._groups[arch_id] = [*group, evaluation]
        anchors = anchors_of(evaluation)
        self._speed.add(anchors)
        found = {name: central(evaluation.objectives.get(name)) for name in self._names}
        kept = {name: float(value) for name, value in found.items() if value is not None}
        self._values.setdefault(arch_id, []).append((kept, anchors))

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
        return self.combine([(arch_id, self._groups[arch_id]) for arch_id in self.member_ids()])

    def combine(self, chosen: Sequence[tuple[str, Sequence[Evaluation]]]) -> list[Member]:
        """Members from the processes of each chosen (arch_id, processes); `pi95` is pooled over all of them."""
        raw = [[process.objectives for process in group] for _, group in chosen]
        usual = [(arch_id, [self._at_usual_speed(process) for process in group]) for arch_id, group in chosen]
        return _combine_all(usual, raw)

    def _at_usual_speed(self, process: Evaluation) -> Evaluation:
        anchors = anchors_of(process)
        slowdowns = {name: self._speed.slowdown(name, anchors) for name in process.objectives}
        return replace(
            process,
            objectives={name: _divided(value, slowdowns[name]) for name, value in process.objectives.items()},
            samples={
                name: [sample / slowdowns.get(name, 1.0) for sample in samples]
                for name, samples in process.samples.items()
            },
        )

    def _nondominated(self) -> list[str]:
        import numpy as np

        from edge_lts.pareto import nondominated

        found = [(arch_id, self._losses(processes)) for arch_id, processes in self._values.items()]
        eligible = [(arch_id, losses) for arch_id, losses in found if losses is not None]
        if not eligible:
            return []
        mask = nondominated(np.array([losses for _, losses in eligible], dtype=float))
        return [arch_id for (arch_id, _), is_member in zip(eligible, mask, strict=True) if is_member]

    def _losses(self, processes: Sequence[tuple[dict[str, float], Anchors]]) -> list[float] | None:
        """What dominance is decided on: a number to minimise for each objective. None for what cannot be a member."""
        for constraint in self._constraints:
            value = self._central(processes, constraint.name)
            if value is None or not constraint.allows(value):
                return None
        losses = []
        for objective in self._objectives:
            value = self._central(processes, objective.name)
            if value is None:
                return None
            losses.append(objective.loss(value))
        return losses

    def _central(self, processes: Sequence[tuple[dict[str, float], Anchors]], name: str) -> float | None:
        speed = self._speed
        numbers = [values[name] / speed.slowdown(name, anchors) for values, anchors in processes if name in values]
        return median(numbers) if numbers else None


def _divided(value: Value, slowdown: float) -> Value:
    """A measured value at another speed; anything else as it is."""
    if slowdown == 1.0 or not isinstance(value, Measurement):
        return value
    low_high = None if value.ci95 is None else (value.ci95[0] / slowdown, value.ci95[1] / slowdown)
    spread = None if value.mad is None else value.mad / slowdown
    return replace(value, median=value.median / slowdown, mad=spread, ci95=low_high)


def _values(group: Sequence[Evaluation], name: str) -> list[int | float | Measurement]:
    return [value for evaluation in group if (value := evaluation.objectives.get(name)) is not None]


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


def _combine_all(
    chosen: Sequence[tuple[str, Sequence[Evaluation]]], raw: Sequence[Sequence[Mapping[str, Value]]]
) -> list[Member]:
    """Members from processes at the usual speed; the spread for `pi95` comes from the `raw` objectives."""
    combined = [_combine(arch_id, group) for arch_id, group in chosen]
    names = dict.fromkeys(name for member in combined for name in member.objectives)
    objectives = [dict(member.objectives) for member in combined]
    for name in names:
        medians = [
            [value.median for own in processes if isinstance(value := own.get(name), Measurement)] for processes in raw
        ]
        for values, interval, measured in zip(objectives, pooled_pi95(medians), medians, strict=True):
            value = values.get(name)
            if interval is not None and isinstance(value, Measurement):
                moved = value.median / median(measured) if median(measured) else 1.0
                values[name] = replace(value, pi95=(interval[0] * moved, interval[1] * moved))
    return [replace(member, objectives=values) for member, values in zip(combined, objectives, strict=True)]

"""The Pareto frontier of a run: each architecture's processes combined into one value, then the non-dominated ones.

How several processes of one architecture become one value:
    median  median of the process medians, so that a process with more samples has no louder voice; latencies at the
            machine's usual speed in this run (`edge_lts.speed`), as are their intervals
    mad     of all samples together
    ci95    order-statistic interval of all samples together, widened where needed to hold `median`; None where a
            process kept no samples. It speaks of the occasions that were seen.
    pi95    what a fresh process later would measure: from three processes on, around `median` with the spread of all
            members' processes as measured (`edge_lts.bootstrap`), since a later one gets the speed of its own moment
    n       samples in total
An exact or an estimated value is that of the first process: it belongs to the architecture. Dominance is decided by the
run's objectives alone, of estimates by their lower bounds; every objective that was measured is carried along.

Medians of a few processes are uncertain, so being dominated by medians may be chance. Who is dominated with less than
95 % by each single member is `probably_dominated`: kept after the members, the closest calls and at most half as many.
The relative spread between processes is pooled over all architectures that were measured more than once. It starts from
a guess that weighs as much as five processes of one: what samples scatter by, and a floor for what they never show.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.bootstrap import Process, pi95, sampling_sd
from edge_lts.objectives import Constraint, Objective
from edge_lts.records import NOTES, Estimate, Evaluation, Measurement, Outcome, Value, central, value_to_json
from edge_lts.speed import Anchors, UsualSpeed, anchors_of, at_pool_speed, divided
from edge_lts.stats import CONFIDENCE, ci95_of_median, mad, median

MAX_PROBABLE = 30
_FLOORS = {"s": 0.01, "J": 0.01, "B": 0.001}  # relative, by unit; a user's command may well be exact
_FLOOR_FREEDOM = 4
_MEDIAN_OVER_MEAN = 1.35  # variance of the median of three or more over that of their mean


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
    process_medians: dict[str, list[float]] = field(default_factory=dict)  # as measured, in order of time
    one_thread: dict[str, Measurement] = field(default_factory=dict)
    framework: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "arch_id": self.arch_id,
            "architecture": self.architecture.to_json(),
            "objectives": {name: value_to_json(value) for name, value in self.objectives.items()},
            "predicted": self.predicted,
            "flags": list(self.flags),
            "probably_dominated": self.probably_dominated,
            "n_processes": self.n_processes,
            "process_medians": self.process_medians,
            "one_thread": {name: value.to_json() for name, value in self.one_thread.items()},
            "framework": self.framework,
        }


def latencies(evaluation: Evaluation) -> dict[str, Measurement]:
    """The latencies among its objectives that were measured, by name."""
    return {
        name: value
        for name, value in evaluation.objectives.items()
        if name.endswith("_latency_s") and isinstance(value, Measurement)
    }


def members(
    outcomes: Iterable[Outcome], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> list[Member]:
    """The non-dominated architectures that satisfy every constraint, in the order in which they were first measured.

    After them come, marked, those that are only probably dominated.

    Failures, architectures with an objective of the run not measured, and those outside a constraint are left out.
    """
    frontier = Frontier(objectives, constraints)
    for outcome in outcomes:
        if isinstance(outcome, Evaluation) and outcome.purpose != "baseline":
            add = frontier.add_one_thread if outcome.purpose == "one_thread" else frontier.add
            add(outcome.architecture.arch_id, outcome)
    return frontier.members()


# Of one process: central values by name, the variance of each that its samples leave (relative), and its anchors.
_Known = tuple[dict[str, float], dict[str, float], Anchors]
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
        self._values: dict[str, list[_Known]] = {}  # of each process; for dominance
        self._probable: list[str] = []
        self._one_thread: dict[str, dict[str, Measurement]] = {}

    def add(self, arch_id: str, evaluation: Evaluation) -> None:
        """One more process of one architecture."""
        group = self._groups.get(arch_id, [])
        if arch_id in self._values and not group and self._recall is not None:
            group = self._recall([arch_id])[arch_id]
        self._groups[arch_id] = [*group, evaluation]
        evaluation = at_pool_speed(evaluation)
        anchors = anchors_of(evaluation)
        self._speed.add(anchors)
        found = {name: evaluation.objectives.get(name) for name in self._names}
        kept = {name: float(number) for name, value in found.items() if (number := central(value)) is not None}
        sampling = {
            name: sampling_sd(value.ci95) ** 2 for name, value in found.items() if isinstance(value, Measurement)
        }
        self._values.setdefault(arch_id, []).append((kept, sampling, anchors))

    def add_one_thread(self, arch_id: str, evaluation: Evaluation) -> None:
        """A process on one thread: shown beside a member's values and part of none of them. The last one counts."""
        self._one_thread[arch_id] = latencies(evaluation)

    def has_one_thread(self, arch_id: str) -> bool:
        return arch_id in self._one_thread

    def member_ids(self) -> list[str]:
        """Who stands on the frontier now, in the order in which the architectures were first added."""
        chosen, self._probable = self._judged()
        everyone = chosen + self._probable
        if self._recall is not None:
            lacking = [arch_id for arch_id in everyone if arch_id not in self._groups]
            kept = {**self._groups, **(self._recall(lacking) if lacking else {})}
            self._groups = {arch_id: kept[arch_id] for arch_id in everyone}
        return chosen

    def probable_ids(self) -> list[str]:
        """Who was only probably dominated when `member_ids` was asked last, in the same order."""
        return list(self._probable)

    def processes(self, arch_id: str) -> list[Evaluation]:
        """The processes of a member or of one that is only probably dominated."""
        return self._groups[arch_id]

    def members(self, names: Collection[str] | None = None) -> list[Member]:
        """Members, and after them those probably dominated, both in the order in which they were first added.

        `pi95` is worked out for the objectives `names` alone, None for all.
        """
        chosen = self.member_ids() + self._probable
        return self.combine([(arch_id, self._groups[arch_id]) for arch_id in chosen], names)

    def combine(
        self, chosen: Sequence[tuple[str, Sequence[Evaluation]]], names: Collection[str] | None = None
    ) -> list[Member]:
        """Members from the processes of each chosen (arch_id, processes); `pi95` is pooled over all of them."""
        probable = set(self._probable)
        pooled = [[at_pool_speed(process) for process in group] for _, group in chosen]
        usual = [[self._at_usual_speed(process) for process in group] for group in pooled]
        found = [
            replace(_combine(arch_id, group, at_usual), probably_dominated=arch_id in probable)
            for (arch_id, group), at_usual in zip(chosen, usual, strict=True)
        ]
        objectives = [dict(member.objectives) for member in found]
        for name in dict.fromkeys(name for values in objectives for name in values if names is None or name in names):
            processes = [_processes(group, own, name) for group, own in zip(pooled, usual, strict=True)]
            for values, interval in zip(objectives, pi95(processes), strict=True):
                value = values.get(name)
                if interval is not None and isinstance(value, Measurement):
                    values[name] = replace(value, pi95=interval)
        return [
            replace(member, objectives=values, one_thread=self._one_thread.get(member.arch_id, {}))
            for member, values in zip(found, objectives, strict=True)
        ]

    def _at_usual_speed(self, process: Evaluation) -> Evaluation:
        anchors = anchors_of(process)
        slowdowns = {name: self._speed.slowdown(name, anchors) for name in process.objectives}
        return replace(
            process,
            objectives={name: divided(value, slowdowns[name]) for name, value in process.objectives.items()},
            samples={
                name: [sample / slowdowns.get(name, 1.0) for sample in samples]
                for name, samples in process.samples.items()
            },
        )

    def _judged(self) -> tuple[list[str], list[str]]:
        """(members, those only probably dominated)."""
        import numpy as np

        from edge_lts.pareto import dominance_probability, nondominated

        found = [(arch_id, self._losses(processes)) for arch_id, processes in self._values.items()]
        eligible = [(arch_id, losses) for arch_id, losses in found if losses is not None]
        if not eligible:
            return [], []
        names = [arch_id for arch_id, _ in eligible]
        losses = np.array([losses for _, losses in eligible], dtype=float)
        mask = nondominated(losses)
        chosen = np.flatnonzero(mask)
        spreads = np.array([self._errors(names)]).reshape(len(self._objectives), -1).T * np.abs(losses)
        chance = np.where(mask, 1.0, dominance_probability(losses, spreads, chosen))
        closest = np.argsort(chance, kind="stable")[: min(MAX_PROBABLE, (len(chosen) + 1) // 2)]
        probable = sorted(int(row) for row in closest if chance[row] < CONFIDENCE)
        return [names[row] for row in chosen], [names[row] for row in probable]

    def _errors(self, arch_ids: Sequence[str]) -> list[list[float]]:
        """By objective: the relative standard error of each architecture's value."""
        return [self._errors_of(item, arch_ids) for item in self._objectives]

    def _errors_of(self, objective: Objective, arch_ids: Sequence[str]) -> list[float]:
        name, squares, freedom = objective.name, 0.0, 0
        groups = [self._values[arch_id] for arch_id in arch_ids]
        sampling = [_mean([known[1].get(name, 0.0) for known in group]) for group in groups]
        for group in groups:
            if len(group) > 1:
                numbers = self._numbers(group, name)
                mean = _mean(numbers)
                squares += math.fsum((number / mean - 1) ** 2 for number in numbers) if mean else 0.0
                freedom += len(numbers) - 1
        usual = median(sampling)
        guess = _FLOORS.get(objective.unit, 0.0) ** 2 + usual if objective.is_measured else 0.0
        variance = (_FLOOR_FREEDOM * guess + squares) / (_FLOOR_FREEDOM + freedom)
        return [
            math.sqrt((variance + max(0.0, own - usual)) / len(group) * (_MEDIAN_OVER_MEAN if len(group) > 2 else 1.0))
            for group, own in zip(groups, sampling, strict=True)
        ]

    def _losses(self, processes: Sequence[_Known]) -> list[float] | None:
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

    def _central(self, processes: Sequence[_Known], name: str) -> float | None:
        numbers = self._numbers(processes, name)
        return median(numbers) if numbers else None

    def _numbers(self, processes: Sequence[_Known], name: str) -> list[float]:
        """At the usual speed."""
        slowdown = self._speed.slowdown
        return [values[name] / slowdown(name, anchors) for values, _, anchors in processes if name in values]


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _flags(group: Sequence[Evaluation]) -> tuple[str, ...]:
    """Taints of at least half of the processes, because a median withstands fewer; notes of any."""
    counts = Counter(flag for evaluation in group for flag in set(evaluation.flags))
    return tuple(sorted(flag for flag, n in counts.items() if flag in NOTES or 2 * n >= len(group)))


def _values(group: Sequence[Evaluation], name: str) -> list[int | float | Measurement | Estimate]:
    return [value for evaluation in group if (value := evaluation.objectives.get(name)) is not None]


def _combine(arch_id: str, raw: Sequence[Evaluation], group: Sequence[Evaluation]) -> Member:
    """A member from its processes, as measured and at the usual speed; without `pi95`."""
    names = dict.fromkeys(name for evaluation in group for name in evaluation.objectives)
    predicted: dict[str, float] = {}
    for evaluation in group:
        predicted.update(evaluation.predicted)
    medians = {name: [value.median for value in _values(raw, name) if isinstance(value, Measurement)] for name in names}
    framework: dict[str, list[float]] = {}
    for evaluation in group:
        facts = evaluation.conditions.get("framework")
        for name, fact in facts.items() if isinstance(facts, Mapping) else ():
            if isinstance(fact, (int, float)) and math.isfinite(fact):
                framework.setdefault(name, []).append(fact)
    return Member(
        arch_id=arch_id,
        architecture=group[0].architecture,
        objectives={name: _combine_value(group, name) for name in names},
        n_processes=len(group),
        predicted=predicted,
        flags=_flags(group),
        process_medians={name: values for name, values in medians.items() if values},
        framework={name: median(values) for name, values in framework.items()},
    )


def _processes(raw: Sequence[Evaluation], usual: Sequence[Evaluation], name: str) -> list[Process]:
    return [
        Process(one.spent_s, value.median, corrected.median, sampling_sd(value.ci95))
        for one, other in zip(raw, usual, strict=True)
        if isinstance(value := one.objectives.get(name), Measurement)
        and isinstance(corrected := other.objectives.get(name), Measurement)
    ]


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

"""Which baseline of a run is measured next, and when.

Baselines get a fifth of the budget. While the run searches and confirms, one is due whenever they have taken less than
a fifth of the time so far: spread over the run, they meet the same good and bad minutes as the candidates. They are
measured in rounds, each in a random order of its own that depends on the seed alone, in three processes each, which is
what `pi95` needs. Whoever was not measured once when the search ends comes before the frontier is confirmed; what of
the budget is left after that goes to those short of three.

One that fails is not tried again: it does not fit the memory, or takes longer than a candidate may.
"""

from collections.abc import Collection, Iterable

from edge_lts.arch import Architecture
from edge_lts.budget import Budget, Durations
from edge_lts.footprint import predicted_bytes
from edge_lts.progress import Progress
from edge_lts.records import RunSpec
from edge_lts.stats import MIN_PROCESSES_PI95

SHARE = 0.2  # of the budget
_STREAM = 0x62617365  # "base": keeps these draws apart from the searcher's


class Baselining:
    """Decides over what `progress` holds at the time of asking; measures nothing. Baselines go by their number in the
    spec, which is also the `candidate_id` of their records."""

    def __init__(self, spec: RunSpec, progress: Progress, durations: Durations) -> None:
        self._seed = spec.seed
        self._share_s = SHARE * spec.budget_s
        self._architectures = [one.architecture for one in spec.baselines]
        self._progress = progress
        self._others = durations
        self._own = Durations()
        self._protocol = spec.protocol
        self.memory_limit_bytes: int | None = None  # of a candidate

    def architecture(self, number: int) -> Architecture:
        return self._architectures[number]

    def saw(self, arch: Architecture, duration_s: float) -> None:
        """How long one of them took."""
        self._own.add(arch.arch_id, arch.total_params, duration_s)

    def reserved_s(self) -> float:
        """Seconds of the budget that the search leaves to them and that they have not used."""
        used_s = self._progress.baseline_s
        return max(0.0, self._share_s - used_s) if self._waiting(()) else 0.0

    def due(self, budget: Budget, busy: Collection[int] = ()) -> int | None:
        """The one to measure now, while the run searches or confirms; none of `busy`."""
        used_s = self._progress.baseline_s
        if used_s > SHARE * budget.spent_s():
            return None
        return self._first_that_fits(self._waiting(busy), self._share_s - used_s)

    def lacking(self, budget: Budget, busy: Collection[int] = ()) -> int | None:
        """The next that was not measured once."""
        left_s = min(budget.left_s(), self._share_s - self._progress.baseline_s)
        return self._first_that_fits([n for n in self._waiting(busy) if not self._attempts(n)], left_s)

    def rest(self, budget: Budget, busy: Collection[int] = ()) -> int | None:
        """The next one when there is nothing else to measure."""
        return self._first_that_fits(self._waiting(busy), budget.left_s())

    def reasons(self) -> tuple[str, ...]:
        """What to say at the end."""
        n, n_lacking = len(self._architectures), sum(not self._attempts(one) for one in self._waiting(()))
        return (f"no time for {n_lacking} of {n} baselines",) if n_lacking else ()

    def _waiting(self, busy: Collection[int]) -> list[int]:
        return [
            number
            for number, arch in enumerate(self._architectures)
            if number not in busy
            and arch.arch_id not in self._progress.failed_baselines
            and self._attempts(number) < MIN_PROCESSES_PI95
        ]

    def _attempts(self, number: int) -> int:
        return self._progress.baseline_processes[self._architectures[number].arch_id]

    def _first_that_fits(self, waiting: Iterable[int], left_s: float) -> int | None:
        """Fewest processes first. As with candidates, more than half of it has to fit."""
        fitting = [number for number in waiting if left_s > 0 and self._estimate_s(number) <= 2 * left_s]
        if not fitting:
            return None
        import numpy as np

        done = min(map(self._attempts, fitting))
        order = np.random.default_rng([self._seed, _STREAM, done]).permutation(len(self._architectures)).tolist()
        return min((number for number in fitting if self._attempts(number) == done), key=order.index)

    def _estimate_s(self, number: int) -> float:
        """By other baselines, or by candidates until one was measured. What fits no memory is refused at once."""
        limit = self.memory_limit_bytes
        if limit is not None and predicted_bytes(self._architectures[number], self._protocol) > limit:
            return 0.0
        size = self._architectures[number].total_params
        return self._own.scaled_estimate_s(size) or self._others.scaled_estimate_s(size)

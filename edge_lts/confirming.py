"""Which member of the frontier is measured again next, in a fresh process, and when that has been done often enough.

First every member is brought to three processes, which is what `pi95` needs. What is left of the budget then tightens
the intervals: in rounds, fewest processes first, until the `pi95` of every searched latency reaches no farther than 2 %
to either side, or each member has been tried in ten. The limit of ten matters: `pi95` speaks of one fresh process, so
on a board whose processes differ by more than 1 % it never gets that narrow, however many there were.

The order within a round is random, drawn from a generator that depends on the seed and the number of confirmations
alone: a resumed run draws what an uninterrupted one would, and the search does not depend on it. Those who are only
probably dominated are brought to three processes as well, once all members are.

All of that at the end would be one occasion. So a third of the time for confirming is spent along the way: once ten
candidates are known, a member is measured again after a search measurement now and then. When and which is drawn from a
generator that depends on the seed and the number of candidates.
"""

from typing import TYPE_CHECKING

from edge_lts.budget import Durations
from edge_lts.progress import Progress
from edge_lts.records import Measurement, RunSpec
from edge_lts.stats import MIN_PROCESSES_PI95

if TYPE_CHECKING:
    import numpy as np

MAX_PROCESSES = 10
TIGHT = 0.02
MIN_CANDIDATES_ALONG = 10
SHARE_ALONG = 1 / 3  # of the time for confirming
_STREAM = 0x636F6E66  # "conf": keeps these draws apart from the searcher's
_STREAM_ALONG = 0x616C6F6E  # "alon"


class Confirming:
    """Decides over what `progress` and `durations` hold at the time of asking; measures nothing."""

    def __init__(self, spec: RunSpec, progress: Progress, durations: Durations) -> None:
        self._seed = spec.seed
        self._along_s = SHARE_ALONG * spec.confirm_fraction * spec.budget_s
        # As many as fit, were all measurements equally long.
        self._chance_along = min(0.5, SHARE_ALONG * spec.confirm_fraction / max(1e-9, 1 - spec.confirm_fraction))
        self._progress = progress
        self._durations = durations
        self._latencies = [item.name for item in spec.resolved_objectives if item.is_measured and item.unit == "s"]

    def waiting(self) -> list[str]:
        """Whom to measure again: members short of three processes, then those probably dominated, then the loose."""
        return self._progress.unconfirmed() or self._progress.unconfirmed_probable() or self._loose()

    def along_the_way(self, left_s: float) -> str | None:
        """The member to measure again before the next candidate; mostly None. One at most between two candidates."""
        progress = self._progress
        if (
            progress.is_last_confirmed
            or progress.n_search < MIN_CANDIDATES_ALONG
            or progress.confirm_s >= self._along_s
        ):
            return None
        import numpy as np

        rng = np.random.default_rng([self._seed, _STREAM_ALONG, progress.n_search])
        waiting = [arch_id for arch_id in progress.member_ids if progress.n_attempts(arch_id) < MAX_PROCESSES]
        if rng.random() >= self._chance_along or not waiting:
            return None
        return self._fewest_first(waiting, rng, left_s)

    def choose(self, waiting: list[str], left_s: float) -> str | None:
        """The member of `waiting` whose turn it is; None where what is left of the budget does not hold it."""
        import numpy as np

        progress = self._progress
        if any(progress.n_attempts(arch_id) < MIN_PROCESSES_PI95 for arch_id in waiting):
            waiting = self._affordable(waiting, left_s)
        rng = np.random.default_rng([self._seed, _STREAM, progress.n_confirmations])
        return self._fewest_first(waiting, rng, left_s)

    def _fewest_first(self, waiting: list[str], rng: "np.random.Generator", left_s: float) -> str | None:
        progress = self._progress
        fewest = min(progress.n_attempts(arch_id) for arch_id in waiting)
        turn = sorted(arch_id for arch_id in waiting if progress.n_attempts(arch_id) == fewest)
        arch_id = turn[int(rng.integers(len(turn)))]
        return arch_id if self._durations.fits(arch_id, progress.architecture(arch_id).total_params, left_s) else None

    def reasons(self) -> tuple[str, ...]:
        """What to say of the frontier once nothing more is confirmed."""
        n_members, n_unconfirmed = len(self._progress.member_ids), len(self._progress.unconfirmed())
        if n_unconfirmed:
            return (f"no time to confirm {n_unconfirmed} of {n_members} members",)
        return ("frontier confirmed",) if n_members else ()

    def _loose(self) -> list[str]:
        """Members with an interval that more processes may narrow; who has none failed to be confirmed already."""
        if not self._latencies:
            return []
        return [
            member.arch_id
            for member in self._progress.members(self._latencies)
            if not member.probably_dominated
            and self._progress.n_attempts(member.arch_id) < MAX_PROCESSES
            and any(_is_loose(member.objectives.get(name)) for name in self._latencies)
        ]

    def _affordable(self, waiting: list[str], left_s: float) -> list[str]:
        """Those members that what is left of the budget can bring to three processes; at least one.

        Without time for all, a few with a `pi95` are worth more than all with two processes and none. Members nearer to
        three come first, then any fixed order: ids are hashes.
        """
        chosen: list[str] = []
        for arch_id in sorted(waiting, key=lambda member: (-self._progress.n_attempts(member), member)):
            arch = self._progress.architecture(arch_id)
            n_missing = MIN_PROCESSES_PI95 - self._progress.n_attempts(arch_id)
            left_s -= n_missing * self._durations.estimate_s(arch_id, arch.total_params)
            if left_s < 0 and chosen:
                break
            chosen.append(arch_id)
        return chosen


def _is_loose(value: object) -> bool:
    if not isinstance(value, Measurement) or value.pi95 is None:
        return False
    low, high = value.pi95
    return (high - low) / 2 > TIGHT * value.median

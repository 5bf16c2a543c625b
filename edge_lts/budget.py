"""Time that a run may spend, and how long the next measurement will take.

The budget counts a monotonic clock plus what was spent before a reboot; the wall clock of a board without RTC jumps.
Time between two lives of a run is not counted.
"""

from collections.abc import Callable

from edge_lts.stats import median

NEIGHBOURS = 5


class Budget:
    """Seconds of a run: `total_s` of them, `spent_before_s` already gone when this process began at `begun_s`."""

    def __init__(
        self, total_s: float, *, spent_before_s: float, clock: Callable[[], float], begun_s: float | None = None
    ) -> None:
        self.total_s = total_s
        self._clock = clock
        self._begun_s = (clock() if begun_s is None else begun_s) - spent_before_s

    def spent_s(self) -> float:
        return self._clock() - self._begun_s

    def left_s(self, fraction: float = 1.0) -> float:
        """Seconds until `fraction` of the budget is spent; negative afterwards."""
        return self.total_s * fraction - self.spent_s()


class Durations:
    """How long measurements took, and what that says about the next one: a nearest-neighbour estimate in total
    parameters.

    An architecture measured before is its own nearest neighbour. No model of the board is assumed; a ledger with few
    entries gives a rough number, and the worst that a bad one costs is a single measurement beyond the budget.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, str, float]] = []

    def add(self, arch_id: str, total_params: int, duration_s: float) -> None:
        self._seen.append((total_params, arch_id, duration_s))

    def estimate_s(self, arch_id: str, total_params: int) -> float:
        """Expected seconds; 0 when nothing is known yet."""
        own = [duration for _, other, duration in self._seen if other == arch_id]
        if own:
            return max(own)
        nearest = sorted(self._seen, key=lambda entry: (abs(entry[0] - total_params), entry))[:NEIGHBOURS]
        return median([duration for _, _, duration in nearest]) if nearest else 0.0

    def scaled_estimate_s(self, total_params: int) -> float:
        """As long as the nearest in size took, and longer by as much as this is larger: for sizes beyond all that were
        seen. 0 when nothing is known yet."""
        if not self._seen:
            return 0.0
        size, _, seconds = min(self._seen, key=lambda entry: (abs(entry[0] - total_params), entry))
        return seconds * max(1.0, total_params / size)

    def fits(self, arch_id: str, total_params: int, left_s: float) -> bool:
        """Whether to begin a measurement with `left_s` to go: there is time left and more than half of it fits."""
        return left_s > 0 and self.estimate_s(arch_id, total_params) <= 2 * left_s

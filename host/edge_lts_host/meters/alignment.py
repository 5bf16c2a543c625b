"""Where a board's clock lies against this machine's, found in what the meter showed of the board's load steps.

The board says when, on its monotonic clock, it was idle and when it was busy. Slid along the meter's readings, that
pattern fits in one place: the offset with the largest multiple correlation between power and (busy in a step, busy in
the long window), both passed through a first-order lag, since meters smooth. The offset so contains the meter's own
delay, which is what cutting its readings needs. Its uncertainty is the range over which the squared error stays within
what chance allows (profile likelihood), at least half of the time between two readings.

It refuses (`Rejection`, with the reason as data) rather than guesses: poor correlation, two places that fit alike, a
gap in the readings, too short a busy window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Interval = tuple[float, float]

COARSE_S, FINE_S = 0.2, 0.02  # steps of the offset
COARSE_GRID_S, GRID_S = 0.3, 0.1  # steps of the pattern
LAGS_S = (0.0, 0.1, 0.2, 0.35, 0.5, 0.8)
DRIFT = 2e-4  # two clocks, each some 50 parts in a million off, with room
_CHUNK = 2000
_REST_BEFORE_S = 1.5  # before the first step
_LONGEST_REST_S = 10.0  # or else something else may have happened in between
_AMBIGUOUS = 0.03
_MIN_COVERED = 0.95  # of a pattern by readings; the windows that count are looked at closer
_CHI2 = 3.84
_MOST_TOGETHER = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is asked of a recording before a number is made of it."""

    min_busy_s: float = 10.0
    min_idle_s: float = 1.0
    min_correlation: float = 0.8
    max_gap_s: float = 2.0
    settle_s: float = 0.7  # UM25C and TC66C need up to half a second
    max_uncertainty_s: float = 1.0
    min_readings: int = 6


class Rejection(Exception):
    """Why there is no number: `reason` is one of no_windows, no_readings, gap, too_short, poor_correlation, ambiguous,
    uncertain, not_above_idle."""

    def __init__(self, *, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """What the board did when, in its own monotonic seconds. `steps` are the busy parts of the load pattern.

    Where there is an `idle_after`, the windows are those of edge_lts.profile.energy, which says more: the board rests
    before the first step and from the last one to the end of `idle`; then it is busy without a pause to the end of
    `busy`; then it rests to the end of `idle_after`.
    """

    steps: tuple[Interval, ...]
    idle: Interval
    busy: Interval
    n_tokens: int
    idle_after: Interval | None = None
    boot_id: str | None = None

    @classmethod
    def from_json(cls, data: object) -> Windows:
        """`windows` of a record's conditions["energy"]. Raises Rejection("no_windows") for what makes no sense."""
        try:
            if not isinstance(data, Mapping) or data.get("clock") != "monotonic":
                raise ValueError("they are not on the board's monotonic clock")
            steps = tuple(_interval(item) for item in data["steps"])
            n_tokens, boot = data["n_tokens"], data.get("boot_id")
            if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 1:
                raise ValueError(f"n_tokens is {n_tokens!r:.40}")
            if any(later[0] < earlier[1] for earlier, later in itertools.pairwise(steps)):
                raise ValueError("the steps are out of order")
            return cls(
                steps=steps,
                idle=_interval(data["idle"]),
                busy=_interval(data["busy"]),
                n_tokens=n_tokens,
                idle_after=_interval(data["idle_after"]) if data.get("idle_after") is not None else None,
                boot_id=boot if isinstance(boot, str) else None,
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise Rejection(reason="no_windows", detail=f"the board's windows make no sense: {exc!s:.120}") from exc

    @property
    def span(self) -> Interval:
        every = self.known
        return min(each[0] for each, _ in every), max(each[1] for each, _ in every)

    @property
    def known(self) -> list[tuple[Interval, int]]:
        """What the board did: 0 rest, 1 a step, 2 the long load. Later entries overrule earlier ones."""
        found: list[tuple[Interval, int]] = []
        if self.steps:
            found.append(((self.steps[0][0], self.steps[-1][1]), 0))
        if self.idle_after is not None:
            if self.steps and 0 <= self.idle[0] - self.steps[-1][1] < _LONGEST_REST_S:
                found.append(((self.steps[0][0] - _REST_BEFORE_S, self.idle[1]), 0))
            if 0 <= self.busy[0] - self.idle[1] < _LONGEST_REST_S:
                found.append(((self.idle[1], self.busy[1]), 2))
            if 0 <= self.idle_after[0] - self.busy[1] < _LONGEST_REST_S:
                found.append(((self.busy[1], self.idle_after[1]), 0))
        found += [(step, 1) for step in self.steps]
        return [*found, (self.idle, 0), (self.busy, 2)]

    def settled(self, interval: Interval, settle_s: float) -> Interval:
        """`interval` without what comes less than `settle_s` after the change of load before it."""
        changes = [start for known, _ in self.known for start in known if start <= interval[0]]
        at_s = interval[0]
        if self.idle_after is not None:
            at_s = max((each for each in changes if each < interval[0]), default=interval[0])
        return max(interval[0], at_s + settle_s), interval[1]


def _interval(value: object) -> Interval:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r:.60} is no interval")
    low, high = float(value[0]), float(value[1])
    if not (math.isfinite(low) and math.isfinite(high)) or not low < high <= low + 86_400:
        raise ValueError(f"{value!r:.60} is no interval")
    return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Readings of one boot of this machine, in the order of time."""

    t_s: Array
    power_w: Array

    @classmethod
    def of(cls, readings: Sequence[tuple[float, float]]) -> Series:
        import numpy as np

        table = np.array(sorted(readings), dtype=np.float64).reshape(-1, 2)
        return cls(t_s=table[:, 0], power_w=table[:, 1])

    def within(self, low_s: float, high_s: float) -> Series:
        import numpy as np

        first, last = np.searchsorted(self.t_s, [low_s, high_s])
        return Series(t_s=self.t_s[first:last], power_w=self.power_w[first:last])


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """`offset_s` is this machine's clock minus the board's, the meter's delay included."""

    offset_s: float
    uncertainty_s: float
    correlation: float
    lag_s: float

    def to_json(self) -> dict[str, float]:
        return {
            "offset_s": round(self.offset_s, 4),
            "uncertainty_s": round(self.uncertainty_s, 4),
            "correlation": round(self.correlation, 4),
            "lag_s": self.lag_s,
        }


class Pattern:
    """What the power should have looked like, on a grid of the board's clock, for each lag."""

    def __init__(self, windows: Windows, grid_s: float = GRID_S) -> None:
        import numpy as np

        start_s, end_s = windows.span
        self.grid_s = grid_s
        self.t_s = np.arange(start_s, end_s, grid_s) + grid_s / 2
        columns = np.zeros((2, len(self.t_s)))
        self.is_known = np.zeros(len(self.t_s), dtype=bool)
        for interval, level in windows.known:
            self.is_known |= self._in(interval)
            columns[:, self._in(interval)] = [[float(level == 1)], [float(level == 2)]]
        self.t_known_s = self.t_s[self.is_known]
        self.bases = {lag_s: self._basis(columns, lag_s) for lag_s in LAGS_S}

    def _in(self, interval: Interval) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (self.t_s >= interval[0]) & (self.t_s < interval[1])
        return inside

    def _basis(self, columns: Array, lag_s: float) -> tuple[Array, Array]:
        """QR of the lagged columns at the known moments, each without its mean."""
        import numpy as np

        share = 1.0 if lag_s == 0 else 1 - math.exp(-self.grid_s / lag_s)
        lagged, state, held = np.empty_like(columns), columns[:, 0].copy(), columns[:, 0]
        for i in range(columns.shape[1]):
            if self.is_known[i]:  # in between, whatever was last known goes on
                held = columns[:, i]
            state = state + share * (held - state)
            lagged[:, i] = state
        known = lagged[:, self.is_known]
        design = known[np.ptp(known, axis=1) > 0].T
        return np.linalg.qr(design - design.mean(axis=0))

    def scores(self, series: Series, offsets_s: Array, lag_s: float, max_gap_s: float) -> tuple[Array, Array]:
        """Multiple correlation at each offset, and the share of the pattern for which there are readings.

        Where readings are missing the mean stands in, which can only lower the correlation. It is 0 where a load would
        have *lowered* power.
        """
        import numpy as np

        q, r = self.bases[lag_s]
        if not q.shape[1] or len(series.t_s) < 2:
            return np.zeros(len(offsets_s)), np.zeros(len(offsets_s))
        found, covered = np.zeros(len(offsets_s)), np.zeros(len(offsets_s))
        for first in range(0, len(offsets_s), _CHUNK):
            at = self.t_known_s[None, :] + offsets_s[first : first + _CHUNK, None]
            power = np.interp(at, series.t_s, series.power_w)
            after = np.clip(np.searchsorted(series.t_s, at), 1, len(series.t_s) - 1)
            is_missing = (series.t_s[after] - series.t_s[after - 1] > max_gap_s) | (at < series.t_s[0])
            is_missing |= at > series.t_s[-1]
            n_there = (~is_missing).sum(axis=1)
            mean = np.where(is_missing, 0.0, power).sum(axis=1) / np.maximum(1, n_there)
            power = np.where(is_missing, 0.0, power - mean[:, None])
            total = (power**2).sum(axis=1)
            shares = power @ q
            rises = np.linalg.solve(r, shares.T).T
            r2 = np.divide((shares**2).sum(axis=1), total, out=np.zeros_like(total), where=total > 1e-12)
            r2[(rises <= 0).any(axis=1)] = 0.0
            found[first : first + _CHUNK] = np.sqrt(np.clip(r2, 0, 1))
            covered[first : first + _CHUNK] = n_there / is_missing.shape[1]
        return found, covered


def align(
    windows: Sequence[Windows], series: Series, ranges: Sequence[Interval], limits: Limits
) -> list[Alignment | Rejection]:
    """One result per window, all of one boot of the board, against readings of one boot of this machine.

    `ranges` are the offsets to search, the likeliest first; the next is tried where one holds nothing that fits. All
    windows are slid together first, because one pattern alone looks like any other candidate's; then each by itself,
    as far as two clocks may drift apart.
    """
    some = windows[:: max(1, math.ceil(len(windows) / _MOST_TOGETHER))]
    together = [Pattern(item, COARSE_GRID_S) for item in some]
    rough: float | Rejection = Rejection(reason="no_readings", detail="no readings of the meter at that time")
    for interval in ranges:
        rough = _together(together, series, interval, limits)
        if not isinstance(rough, Rejection):
            break
    if isinstance(rough, Rejection):
        return [rough] * len(windows)
    middle_s = sum(item.span[0] for item in windows) / len(windows)
    return [
        _alone(Pattern(item), series, rough, 1.5 + DRIFT * abs(item.span[0] - middle_s), limits) for item in windows
    ]


def _together(patterns: Sequence[Pattern], series: Series, interval: Interval, limits: Limits) -> float | Rejection:
    """The offset at which all patterns fit best on average."""
    import numpy as np

    offsets = np.arange(interval[0], interval[1] + COARSE_S, COARSE_S)
    lag_s = LAGS_S[2]
    scores, seen = np.zeros(len(offsets)), np.zeros(len(offsets))
    for pattern in patterns:
        each, covered = pattern.scores(series, offsets, lag_s, limits.max_gap_s)
        scores += each * covered / len(patterns)
        seen += np.where(each > 0, covered, 0.0) / len(patterns)
    best = int(scores.argmax())
    if not scores[best]:
        return Rejection(
            reason="no_readings", detail="no readings of the meter at that time, or none that rise with load"
        )
    # Part of the windows may lie outside of the recording; each is judged by itself later.
    if scores[best] / seen[best] < limits.min_correlation:
        return Rejection(
            reason="poor_correlation",
            detail=f"the meter does not follow the board's load: correlation {scores[best] / seen[best]:.2f}",
        )
    is_far = np.abs(offsets - offsets[best]) > 1.5
    peaks = np.flatnonzero(is_far & (scores >= np.roll(scores, 1)) & (scores >= np.roll(scores, -1)))
    rival = float(scores[peaks].max(initial=0.0))
    if rival > scores[best] - _AMBIGUOUS:
        other = float(offsets[peaks[int(scores[peaks].argmax())]])
        return Rejection(
            reason="ambiguous",
            detail=f"two places fit alike, {abs(other - offsets[best]):.1f} s apart ({scores[best]:.2f}, {rival:.2f})",
        )
    return float(offsets[best])


def _alone(pattern: Pattern, series: Series, rough_s: float, reach_s: float, limits: Limits) -> Alignment | Rejection:
    """Offset and lag of one window, near `rough_s`."""
    import numpy as np

    offsets = np.arange(rough_s - reach_s, rough_s + reach_s + FINE_S, FINE_S)
    table = {}
    for lag_s in LAGS_S:
        scores, covered = pattern.scores(series, offsets, lag_s, limits.max_gap_s)
        table[lag_s] = np.where(covered >= _MIN_COVERED, scores, 0.0)
    lag_s = max(table, key=lambda each: float(table[each].max()))
    scores = table[lag_s]
    correlation = float(scores.max())
    if not correlation:
        return Rejection(reason="no_readings", detail="no readings of the meter at that time")
    if correlation < limits.min_correlation:
        return Rejection(
            reason="poor_correlation",
            detail=f"the meter does not follow the board's load: correlation {correlation:.2f}",
        )
    offset_s = float(offsets[int(scores.argmax())])
    inside = series.within(pattern.t_s[0] + offset_s, pattern.t_s[-1] + offset_s)
    if len(inside.t_s) < 2 * limits.min_readings:
        return Rejection(reason="no_readings", detail=f"only {len(inside.t_s)} readings of the meter at that time")
    n_free = max(1, len(inside.t_s) - 5)
    error = np.min([1 - each**2 for each in table.values()], axis=0)  # each offset with the lag that suits it best
    fits = offsets[error <= max(1e-9, float(error.min())) * (1 + _CHI2 / n_free)]
    half_s = max(float(fits.max()) - offset_s, offset_s - float(fits.min()))
    uncertainty_s = max(half_s, float(np.median(np.diff(inside.t_s))) / 2)
    if uncertainty_s > limits.max_uncertainty_s:
        return Rejection(
            reason="uncertain",
            detail=f"the clocks are aligned only to {uncertainty_s:.1f} s: too few edges, or too noisy",
        )
    return Alignment(offset_s=offset_s, uncertainty_s=uncertainty_s, correlation=correlation, lag_s=lag_s)


def mean_power(series: Series, low_s: float, high_s: float) -> tuple[float, list[float], int]:
    """Mean over an interval by trapezoids, means of its parts, number of readings. `series` covers the interval."""
    import numpy as np

    inside = series.within(low_s, high_s)
    if len(inside.t_s) < 2:
        return float(inside.power_w.mean()) if len(inside.t_s) else math.nan, [], len(inside.t_s)
    widths = np.diff(inside.t_s)
    middles = (inside.power_w[1:] + inside.power_w[:-1]) / 2
    n_parts = min(8, len(inside.t_s) // 3)
    parts = [float(part.mean()) for part in np.array_split(inside.power_w, n_parts)] if n_parts > 1 else []
    return float((middles * widths).sum() / widths.sum()), parts, len(inside.t_s)


def largest_gap(series: Series, low_s: float, high_s: float) -> float:
    """The longest time without a reading in an interval, its ends included."""
    import numpy as np

    inside = series.within(low_s, high_s)
    return float(np.diff(np.concatenate([[low_s], inside.t_s, [high_s]])).max())

"""`pi95`: where the median of one fresh process at another time lies, by a hierarchical bootstrap over a run's members.

Predicted is what such a process would *measure*, uncorrected; the member's value, around which the interval lies, is
at the machine's usual speed (edge_lts.speed). The deviations of all members' processes are pooled on the log scale,
because three alone say little of their spread, and spread belongs to the board far more than to the candidate:

    d = log(raw / usual) + sqrt(n / (n - 1)) * (log usual - mean of the member's n)

Three levels, from the slowest to the fastest; a draw takes a step on each and subtracts the error of the centre:
    occasions   the run's processes in order of time, cut into thirds. What the thirds differ by beyond chance is drift:
                it shifts all members alike, so that there are three of it and not as many as there are processes.
    processes   what deviates within a third, drawn with replacement, smoothed (Silverman 1986, §6.4.1)
    samples     a process's own `ci95` says how much of that comes from having few and scattered samples. The other
                deviations are scaled to a member whose samples scatter more or less, and none is believed to be
                steadier than its samples.
With few of a level, its variance is itself uncertain: both levels are drawn with the tails of Student's distribution
(Hahn and Meeker 1991, Statistical Intervals, §4.7). The centre is the median of processes drawn as the member's were.

What it does not see: changes slower than the run, and a machine that is used otherwise later.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_lts.records import Interval
from edge_lts.stats import MIN_PROCESSES_PI95, median

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_N_OCCASIONS = 3
_GOES_ON = 2.0  # a later time lies outside the thirds: what moved between them has moved on
_N_DRAWS = 2000
_SEED = 0x7069  # the same data always give the same interval


class Process(NamedTuple):
    """What one process says of one quantity: its raw median, the same at the usual speed, when, and how surely."""

    at_s: float
    raw: float
    usual: float
    sampling_sd: float = 0.0  # of the median, on the log scale


def sampling_sd(interval: Interval | None) -> float:
    """The standard deviation on the log scale that a 95 % interval of a positive quantity stands for; 0 without one."""
    if interval is None or interval[0] <= 0:
        return 0.0
    return math.log(interval[1] / interval[0]) / (2 * 1.96)


def pi95(members: Sequence[Sequence[Process]]) -> list[Interval | None]:
    """For each member with at least three processes its interval; None for the others.

    Members with two processes add to what is known of the spread. A value that is not positive has no logarithm, and
    its member no interval.
    """
    import numpy as np

    known = [
        (index, processes)
        for index, processes in enumerate(members)
        if len(processes) > 1 and all(0 < value < math.inf for one in processes for value in (one.raw, one.usual))
    ]
    intervals: list[Interval | None] = [None] * len(members)
    if not any(len(processes) >= MIN_PROCESSES_PI95 for _, processes in known):
        return intervals
    rows = []
    for _, processes in known:
        logs = [math.log(one.usual) for one in processes]
        mean, inflation = math.fsum(logs) / len(logs), math.sqrt(len(logs) / (len(logs) - 1))
        for one, log in zip(processes, logs, strict=True):
            rows.append((one.at_s, math.log(one.raw) - log, inflation * (log - mean), one.sampling_sd**2))
    rows.sort(key=lambda row: row[0])
    at_s, slowdown, own, sampling = np.array(rows).T
    deviation = slowdown + own
    shift = float(deviation.mean())
    within, process_variance, freedom, drift_variance = _levels(at_s, deviation - shift, len(known))

    # Each deviation as if its process had the usual sampling error; then scaled to that of each member.
    usual_sampling = float(sampling.mean())
    process_variance = max(process_variance, usual_sampling)
    own_variance = max(float(own @ own) / len(own), usual_sampling)

    def scale(variances: Any) -> Any:
        found = (process_variance - usual_sampling + variances) / process_variance if process_variance else 1.0
        return np.maximum(np.sqrt(found), 0.1)

    rng = np.random.default_rng(_SEED)
    counts = sorted({len(processes) for _, processes in known})
    fresh = _drawn(rng, within / scale(sampling), process_variance, (_N_DRAWS,))
    fresh *= np.sqrt(freedom / rng.chisquare(freedom, _N_DRAWS))
    drift = math.sqrt(drift_variance) * rng.standard_t(_N_OCCASIONS - 1, _N_DRAWS)
    seen = _drawn(rng, own / scale(sampling), own_variance, (counts[-1], _N_DRAWS))
    errors = {count: fresh - np.median(seen[:count], axis=0) for count in counts}
    for index, processes in known:
        if len(processes) < MIN_PROCESSES_PI95:
            continue
        own_scale = scale(math.fsum(one.sampling_sd**2 for one in processes) / len(processes))
        low, high = np.quantile(shift + drift + own_scale * errors[len(processes)], [0.025, 0.975])
        centre = math.log(median([one.usual for one in processes]))
        with contextlib.suppress(OverflowError):  # a spread beyond all numbers says nothing
            intervals[index] = (math.exp(centre + min(0.0, float(low))), math.exp(centre + max(0.0, float(high))))
    return intervals


def _levels(at_s: "Numbers", deviation: "Numbers", n_members: int) -> tuple["Numbers", float, int, float]:
    """Deviations within the occasions, their variance and its degrees of freedom, and the variance between occasions.

    `deviation` is in order of time and has the mean 0. Unless the occasions differ by more than chance would make
    them, or when they cannot be told apart, all is within.
    """
    import numpy as np

    n, freedom = len(deviation), len(deviation) - n_members
    if n >= _N_OCCASIONS**2 and at_s[0] < at_s[-1]:
        parts = np.array_split(deviation, _N_OCCASIONS)
        within = np.concatenate([part - part.mean() for part in parts])
        variance = float(within @ within) / (n - _N_OCCASIONS + 1)
        between = sum(len(part) * float(part.mean()) ** 2 for part in parts) / (_N_OCCASIONS - 1)
        if between > variance:
            drift_variance = _GOES_ON * (between - variance) * _N_OCCASIONS / n
            return within, variance, max(1, freedom - _N_OCCASIONS + 1), drift_variance
    return deviation, float(deviation @ deviation) / n, freedom, 0.0


def _drawn(rng: "np.random.Generator", values: "Numbers", variance: float, shape: tuple[int, ...]) -> "Numbers":
    """Drawn with replacement and smoothed, with the given variance: what the smoothing adds is taken off the rest."""
    spread = float(values @ values) / len(values)
    smoothing = len(values) ** -0.2 if spread else 1.0
    resampled = rng.choice(values, shape) * math.sqrt((1 - smoothing**2) / (spread or 1.0))
    found: Numbers = math.sqrt(variance) * (resampled + smoothing * rng.standard_normal(shape))
    return found

"""Statistics of repeated timings: median, spread, and what may be said with 95 % confidence.

Everything is exact, deterministic and free of numpy. Nothing here removes outliers.

What the intervals assume, and what they do not see:
    `ci95` treats the samples of one process as independent. Timings are serially correlated (governor, temperature, a
    neighbour on the same core), so it is an optimistic statement about this occasion only. What a fresh process shows
    later is `pi95`, which comes from the spread *between* processes and is the interval to compare boards with.

Sources: order-statistic interval of the median, David and Nagaraja 2003, Order Statistics, §7.1; Student's distribution
in closed form, Abramowitz and Stegun 1964, 26.7.3 and 26.7.4; prediction interval with pooled variance, Hahn and Meeker
1991, Statistical Intervals, §4.7.
"""

import functools
import math
from collections.abc import Sequence

from edge_lts.records import Interval, Measurement

CONFIDENCE = 0.95
MIN_SAMPLES_CI95 = 6  # 1 - 2 / 2**6 = 96.9 %; five samples only reach 93.75 %
MIN_PROCESSES_PI95 = 3


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two middle ones. Raises ValueError without samples or on NaN."""
    if not samples:
        raise ValueError("a median needs at least one sample")
    if any(math.isnan(sample) for sample in samples):
        raise ValueError("a median of NaN has no meaning")
    ordered = sorted(samples)  # the statistics module gives the same and costs the supervisor 0.7 MB
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def quantile(samples: Sequence[float], share: float) -> float:
    """The sample that `share` of all lie below; no interpolation. Raises IndexError without samples."""
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]


def mad(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median, unscaled (multiply by 1.4826 for a normal's standard deviation)."""
    centre = median(samples)
    return median([abs(sample - centre) for sample in samples])


def ci95_of_median(samples: Sequence[float]) -> Interval | None:
    """Distribution-free interval of the median: the k-th smallest and the k-th largest sample.

    k is the largest rank with P(Binomial(n, 1/2) < k) <= 2.5 %, so that coverage is at least 95 % for independent
    samples of any distribution. None below six samples, where even the extremes do not cover 95 %.
    """
    n = len(samples)
    if n < MIN_SAMPLES_CI95:
        return None
    tail, k = 0, 0
    limit = 2**n * (1 - CONFIDENCE) / 2 if n < 1000 else None
    if limit is None:  # the normal approximation, rounded outwards: off by less than one rank at this size
        k = max(1, math.floor(n / 2 - 1.96 * math.sqrt(n) / 2))
    else:
        while tail + math.comb(n, k) <= limit:
            tail += math.comb(n, k)
            k += 1
    ordered = sorted(float(sample) for sample in samples)
    return (ordered[k - 1], ordered[n - k])


def summarise(samples: Sequence[float]) -> Measurement:
    """Median, MAD and `ci95` of one process's samples; `pi95` needs several processes and stays None.

    A single reading has neither MAD nor interval. Raises ValueError without samples or on NaN.
    """
    return Measurement(
        median=median(samples),
        mad=mad(samples) if len(samples) > 1 else None,
        ci95=ci95_of_median(samples),
        n=len(samples),
    )


def pooled_pi95(process_medians_per_member: Sequence[Sequence[float]]) -> list[Interval | None]:
    """For each member, the interval that holds the median of one fresh process later with 95 % probability.

    On the log scale, x_ij = mu_i + e_ij with one between-process variance for all members (relative spread is a
    property of the board far more than of the candidate, and three processes alone would leave two degrees of
    freedom):

        s^2 = sum_ij (x_ij - mean_i)^2 / v,   v = sum_i (n_i - 1)
        exp(mean_i +- t(0.975, v) * s * sqrt(1 + 1 / n_i))

    Members with two processes add to s and v; only those with three or more get an interval. A member with a value that
    is not positive has no logarithm and gets None.
    """
    logs = [
        [math.log(value) for value in medians] if all(value > 0 for value in medians) else []
        for medians in process_medians_per_member
    ]
    means = [math.fsum(values) / len(values) if values else 0.0 for values in logs]
    freedom = sum(len(values) - 1 for values in logs if values)
    if freedom < 1:
        return [None] * len(logs)
    squares = math.fsum((value - mean) ** 2 for values, mean in zip(logs, means, strict=True) for value in values)
    reach = student_t_quantile(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(squares / freedom)
    intervals: list[Interval | None] = []
    for values, mean in zip(logs, means, strict=True):
        if len(values) < MIN_PROCESSES_PI95:
            intervals.append(None)
            continue
        half = reach * math.sqrt(1 + 1 / len(values))
        try:
            intervals.append((math.exp(mean - half), math.exp(mean + half)))
        except OverflowError:  # a spread beyond all numbers says nothing
            intervals.append(None)
    return intervals


@functools.lru_cache(maxsize=256)
def student_t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees stays below with `probability` (0.5 <= probability < 1)."""
    if freedom < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no quantile for probability {probability} with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0 as the finite series of Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine_squared = math.cos(theta) ** 2
    term, series = 1.0, 0.0
    if freedom % 2:
        for step in range((freedom - 1) // 2):
            term = math.cos(theta) if step == 0 else term * cosine_squared * 2 * step / (2 * step + 1)
            series += term
        inside = 2 / math.pi * (theta + math.sin(theta) * series)
    else:
        for step in range(freedom // 2):
            term = 1.0 if step == 0 else term * cosine_squared * (2 * step - 1) / (2 * step)
            series += term
        inside = math.sin(theta) * series
    return 0.5 + inside / 2

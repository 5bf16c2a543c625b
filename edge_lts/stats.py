"""Statistics of repeated timings: median, spread, and what may be said with 95 % confidence.

Everything is exact, deterministic and free of numpy. Nothing here removes outliers.

What the intervals assume, and what they do not see:
    `ci95` treats the samples of one process as independent. Timings are serially correlated (governor, temperature, a
    neighbour on the same core), so it is an optimistic statement about this occasion only. What a fresh process shows
    later is `pi95` (edge_lts.bootstrap), which comes from the spread *between* processes and is the interval to compare
    boards with.

Source: order-statistic interval of the median, David and Nagaraja 2003, Order Statistics, §7.1.
"""

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

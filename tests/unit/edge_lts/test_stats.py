import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.stats import ci95_of_median, mad, median, summarise

FINITE = st.floats(min_value=1e-9, max_value=1e9)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40)])
def test_ci95_uses_the_ranks_of_the_sign_test(n: int, rank: int) -> None:
    assert ci95_of_median(list(range(1, n + 1))) == (rank, n + 1 - rank)


def test_ci95_needs_six_samples() -> None:
    assert ci95_of_median([1.0] * 5) is None
    assert ci95_of_median([1.0] * 6) == (1.0, 1.0)


def test_the_approximate_ranks_of_large_samples_are_not_narrower_than_the_exact_ones() -> None:
    exact, approximate = ci95_of_median(list(range(999))), ci95_of_median(list(range(1000)))
    assert exact is not None
    assert approximate is not None
    assert approximate[0] - exact[0] <= 1
    assert approximate[1] >= exact[1]


def test_ci95_covers_the_true_median_of_a_skewed_distribution() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(2000):
        interval = ci95_of_median([rng.expovariate(1.0) for _ in range(20)])
        assert interval is not None
        hits += interval[0] <= math.log(2) <= interval[1]
    assert 0.945 <= hits / 2000 <= 0.985


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_summary_is_consistent_and_does_not_depend_on_order(samples: list[float]) -> None:
    summary = summarise(samples)
    assert summary == summarise(sorted(samples, reverse=True))
    assert summary.median == statistics.median(samples)
    assert summary.n == len(samples)
    assert (summary.mad is None) == (len(samples) == 1)
    assert (summary.ci95 is None) == (len(samples) < 6)
    if summary.ci95 is not None:
        assert summary.ci95[0] <= summary.median <= summary.ci95[1]


def test_nan_and_nothing_are_refused() -> None:
    for samples in ([], [math.nan], [1.0, math.nan]):
        with pytest.raises(ValueError, match="median"):
            median(samples)
    assert mad([1.0, 2.0, 4.0]) == 1.0

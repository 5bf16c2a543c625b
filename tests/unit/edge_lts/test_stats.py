import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.stats import ci95_of_median, mad, median, pooled_pi95, student_t_quantile, summarise

FINITE = st.floats(min_value=1e-9, max_value=1e9)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        (1, 12.7062047364),
        (2, 4.3026527297),
        (3, 3.1824463053),
        (4, 2.7764451052),
        (10, 2.2281388520),
        (121, 1.9797637625),
    ],
)
def test_t_quantile_equals_the_published_table(freedom: int, expected: float) -> None:
    assert student_t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-9)


def test_t_quantile_refuses_what_has_none() -> None:
    for probability, freedom in ((0.975, 0), (1.0, 3), (0.2, 3)):
        with pytest.raises(ValueError, match="no quantile"):
            student_t_quantile(probability, freedom)


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


def test_pi95_pools_the_spread_of_all_members() -> None:
    first, second = [1.0, 1.01, 1.02], [2.0, 2.5, 3.0]
    alone = pooled_pi95([first])[0]
    pooled = pooled_pi95([first, second])
    assert alone is not None
    assert pooled[0] is not None
    logs = [math.log(value) for value in first]
    mean = statistics.fmean(logs)
    half = 4.3026527297 * statistics.stdev(logs) * math.sqrt(4 / 3)
    assert alone == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-9)
    squares = sum(statistics.variance([math.log(v) for v in member]) * 2 for member in (first, second))
    half = 2.7764451052 * math.sqrt(squares / 4) * math.sqrt(4 / 3)
    assert pooled[0] == pytest.approx((math.exp(mean - half), math.exp(mean + half)), rel=1e-9)


def test_pi95_is_for_three_processes_and_positive_values_only() -> None:
    assert pooled_pi95([]) == []
    assert pooled_pi95([[1.0], [2.0]]) == [None, None]
    found = pooled_pi95([[1.0, 1.1], [2.0, 2.1, 2.2], [0.0, 1.0, 2.0]])
    assert found[0] is None
    assert found[1] is not None
    assert found[2] is None


def test_pi95_holds_a_fresh_process_95_percent_of_the_time() -> None:
    rng = random.Random(7)
    hits = total = 0
    for _ in range(400):
        members = [[math.exp(rng.gauss(mu, 0.05)) for _ in range(3)] for mu in (0.0, 1.0, 2.0, 3.0)]
        for mu, interval in zip((0.0, 1.0, 2.0, 3.0), pooled_pi95(members), strict=True):
            assert interval is not None
            hits += interval[0] <= math.exp(rng.gauss(mu, 0.05)) <= interval[1]
            total += 1
    assert 0.93 <= hits / total <= 0.97

"""Dominance, crowding and hypervolume: by hand, and equal to moocore on thousands of random sets with ties."""

import math

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_lts.pareto import crowding_distance, dominance_probability, hypervolume, nondominated

# A coarse grid makes ties and duplicates common; the fine one makes them rare.
GRID = st.integers(0, 4).map(float)
FINE = st.floats(0, 4, allow_nan=False, width=32)


def point_sets(elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[np.float64]]:
    shapes = st.tuples(st.integers(1, 14), st.integers(2, 5))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=elements))


def by_definition(points: NDArray[np.float64]) -> list[bool]:
    return [not any((q <= p).all() and (q < p).any() for q in points) for p in points]


@settings(deadline=None, max_examples=80)
@given(point_sets(GRID) | point_sets(FINE))
def test_nondominated_equals_definition_and_moocore(points: NDArray[np.float64]) -> None:
    mask = nondominated(points)
    assert mask.tolist() == by_definition(points)
    assert mask.tolist() == moocore.is_nondominated(points, keep_weakly=True).tolist()


@settings(deadline=None, max_examples=80)
@given(point_sets(GRID) | point_sets(FINE))
def test_hypervolume_equals_moocore(points: NDArray[np.float64]) -> None:
    reference = np.full(points.shape[1], 3.5)  # some points lie beyond it
    assert hypervolume(points, reference) == pytest.approx(moocore.hypervolume(points, ref=reference), rel=1e-9)


@pytest.mark.parametrize(("n", "k"), [(2000, 2), (400, 3), (60, 4), (30, 5)])
def test_large_sets_equal_moocore(n: int, k: int) -> None:
    points = np.random.default_rng(k).random((n, k))
    points /= np.linalg.norm(points, axis=1, keepdims=True)  # most of them on the frontier
    points = 1.5 - points
    assert nondominated(points).tolist() == moocore.is_nondominated(points).tolist()
    reference = np.full(k, 1.6)
    assert hypervolume(points, reference) == pytest.approx(moocore.hypervolume(points, ref=reference), rel=1e-9)


def test_duplicates_stay_and_points_tied_in_one_column_go() -> None:
    assert nondominated([[1, 2], [1, 2], [1, 3], [0, 5], [2, 2]]).tolist() == [True, True, False, True, False]
    assert nondominated([[1, 2, 3], [1, 2, 3], [1, 2, 4]]).tolist() == [True, True, False]
    assert nondominated([[3], [1], [1]]).tolist() == [False, True, True]
    assert nondominated([[0.0, 1.0], [-0.0, 1.0]]).tolist() == [True, True]


def test_infinite_losses_can_be_compared() -> None:
    inf = math.inf
    assert nondominated([[1, inf], [2, inf], [0.5, inf]]).tolist() == [False, False, True]
    assert nondominated([[-inf, 5, 1], [0, 5, 1], [inf, 0, 1]]).tolist() == [True, False, True]


def test_no_points() -> None:
    assert nondominated(np.zeros((0, 3))).tolist() == []
    assert crowding_distance(np.zeros((0, 3))).tolist() == []
    assert hypervolume(np.zeros((0, 3)), [1, 1, 1]) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_staircases_have_their_known_volume(n: int) -> None:
    steps = np.arange(n, dtype=np.float64)
    stairs = np.column_stack([steps, n - 1 - steps])  # boxes of widths n..1 and heights 1..n
    assert hypervolume(stairs, [n, n]) == n * (n + 1) / 2
    # Two copies of the staircase at depths 1 and 3: the deeper one alone counts between them.
    both = np.vstack([np.column_stack([stairs, np.full(n, depth)]) for depth in (1.0, 3.0)])
    assert hypervolume(both, [n, n, 4]) == n * (n + 1) / 2 * 3


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_two_boxes_by_inclusion_and_exclusion(k: int) -> None:
    one, other = np.full(k, 1.0), np.full(k, 1.0)
    one[0], other[-1] = 0.0, 0.0
    assert hypervolume([one], [3.0] * k) == 3 * 2 ** (k - 1)
    if k > 1:
        assert hypervolume([one, other, one], [3.0] * k) == 2 * 3 * 2 ** (k - 1) - 2**k


def test_points_at_or_beyond_the_reference_add_nothing() -> None:
    assert hypervolume([[1, 1], [0, 2], [2, 0], [5, 5]], [2, 2]) == 1
    assert hypervolume([[2, 2, 2]], [2, 2, 2]) == 0
    assert hypervolume([[0, math.inf]], [1, 1]) == 0


def test_crowding_distance_by_hand() -> None:
    points = [[0, 4], [1, 2], [2, 1], [4, 0]]
    assert crowding_distance(points).tolist() == [math.inf, 2 / 4 + 3 / 4, 3 / 4 + 2 / 4, math.inf]
    assert crowding_distance([[1, 2]]).tolist() == [math.inf]
    assert crowding_distance([[1, 5], [2, 5], [4, 5]]).tolist() == [math.inf, 1.0, math.inf]
    assert crowding_distance([[1, 1], [1, 1], [1, 1]]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [[[math.nan, 1.0]], [1.0, 2.0], [[[1.0]]]])
def test_nan_and_wrong_shapes_are_refused(bad: list[object]) -> None:
    for function in (nondominated, crowding_distance, lambda points: hypervolume(points, [2.0, 2.0])):
        with pytest.raises(ValueError, match=r"NaN|shape"):
            function(bad)


def test_hypervolume_refuses_what_has_no_volume() -> None:
    for losses, reference in (
        ([[0, 0]], [1, math.nan]),
        ([[0, 0]], [1, math.inf]),
        ([[0, 0]], [1]),
        ([[-math.inf, 0]], [1, 1]),
    ):
        with pytest.raises(ValueError, match=r"reference|infinity"):
            hypervolume(losses, reference)
    with pytest.raises(ValueError, match="finite"):
        crowding_distance([[0, math.inf]])


def test_the_probability_of_being_dominated() -> None:
    points = [[1.0, 1.0], [1.0, 1.1], [1.0, 1.0], [0.9, 2.0], [2.0, 2.0]]
    spreads = [[0.0, 0.05]] * 5
    found = dominance_probability(points, spreads, [0])
    z = 0.1 / math.hypot(0.05, 0.05)
    assert found[1] == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=5e-4)
    assert found[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]  # itself, its double, and one better in what is exact
    assert found[4] == pytest.approx(1.0)
    assert dominance_probability(points, np.zeros((5, 2)), [0]).tolist() == [0, 1, 0, 0, 1]
    both = dominance_probability([[1.0, 1.0], [1.1, 1.1]], [[0.05, 0.05]] * 2, [0])
    assert both[1] == pytest.approx(found[1] ** 2, abs=1e-6)  # better in both

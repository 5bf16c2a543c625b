"""The exact solver against brute force on small spaces, and its size and time on the paper's."""

import itertools
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_lts.arch import LayerSpec
from edge_lts.errors import SpaceError
from edge_lts.search.solver import LayerTable, States, solve

Key = tuple[int, int, tuple[int, ...], int]


@st.composite
def small_tables(draw: st.DrawFn, n_costs: int = 1) -> LayerTable:
    shapes = draw(
        st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4])), min_size=1, max_size=6, unique=True)
    )
    m = len(shapes)
    cost = st.integers(100, 200)
    costs = [[draw(cost) / 64 for _ in range(n_costs)] for _ in range(m)]
    n_features = draw(st.integers(0, 2))
    features = [[draw(st.integers(0, 2)) for _ in range(n_features)] for _ in range(m)]
    return LayerTable(
        d_model=64,
        step=16,
        depths=tuple(sorted(draw(st.sets(st.integers(1, 4), min_size=1)))),
        layers=tuple(LayerSpec(d_inner=16 * units, n_head=heads) for units, heads in shapes),
        costs=np.array(costs).reshape(m, n_costs),
        features=np.array(features, dtype=np.int64).reshape(m, n_features),
    )


def every_multiset(table: LayerTable) -> list[tuple[Key, np.ndarray]]:
    found = []
    for depth in table.depths:
        for combination in itertools.combinations_with_replacement(range(len(table.layers)), depth):
            rows = list(combination)
            d_inner = [table.layers[row].d_inner for row in rows]
            features = tuple(int(value) for value in table.features[rows].sum(axis=0))
            found.append(((depth, sum(d_inner), features, max(d_inner)), table.costs[rows].sum(axis=0)))
    return found


@given(small_tables())
@settings(max_examples=80, deadline=None)
def test_one_cost_is_exact_for_every_state_and_every_largest_layer(table: LayerTable) -> None:
    states = solve(table)
    multisets = every_multiset(table)
    depths, sums, largest_ones = states.depth.tolist(), states.d_inner_sum.tolist(), states.level.tolist()
    features_of = [tuple(row) for row in states.features.tolist()]
    got = dict(zip(zip(depths, sums, features_of, largest_ones, strict=True), states.costs[:, 0].tolist(), strict=True))
    assert len(got) == len(states)
    for depth, total, features, largest in {key for key, _ in multisets}:
        optimum = min(
            float(cost[0]) for key, cost in multisets if key[:3] == (depth, total, features) and key[3] <= largest
        )
        reached = [got.get((depth, total, features, smaller), np.inf) for smaller in range(16, largest + 1, 16)]
        assert min(reached) == pytest.approx(optimum)


@given(small_tables())
@settings(max_examples=60, deadline=None)
def test_layers_reproduce_their_state(table: LayerTable) -> None:
    states = solve(table)
    index = {layer: row for row, layer in enumerate(table.layers)}
    for row in range(len(states)):
        layers = states.layers(row)
        assert len(layers) == states.depth[row]
        assert list(layers) == sorted(layers)
        assert sum(layer.d_inner for layer in layers) == states.d_inner_sum[row]
        rows = [index[layer] for layer in layers]
        assert table.costs[rows, 0].sum() == pytest.approx(float(states.costs[row, 0]))
        assert table.features[rows].sum(axis=0).tolist() == states.features[row].tolist()


@given(small_tables(n_costs=2))
@settings(max_examples=60, deadline=None)
def test_two_costs_cover_every_trade_off_within_epsilon(table: LayerTable) -> None:
    states = solve(table, epsilon=0.01)
    for key, cost in every_multiset(table):
        same = (states.depth == key[0]) & (states.d_inner_sum == key[1]) & (states.level <= key[3])
        same &= (states.features == np.array(key[2], dtype=np.int64)).all(axis=1)
        offered = states.costs[same]
        assert ((offered[:, 0] <= cost[0] * 1.0000001) & (offered[:, 1] <= cost[1] * 1.01)).any()


@given(small_tables(), st.data())
@settings(max_examples=60, deadline=None)
def test_levels_may_be_anything_that_the_largest_layer_decides(table: LayerTable, data: st.DataObject) -> None:
    """Every optimum for "no layer beyond this level" is offered, at that level or below."""
    m = len(table.layers)
    levels = data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m))
    table = replace(table, levels=np.array(levels, dtype=np.int64))
    states = solve(table)
    for depth in table.depths:
        best: dict[tuple[object, ...], float] = {}
        for combination in itertools.combinations_with_replacement(range(m), depth):
            rows = list(combination)
            key = (
                sum(table.layers[row].d_inner for row in rows),
                tuple(table.features[rows].sum(axis=0).tolist()),
                max(levels[row] for row in rows),
            )
            best[key] = min(best.get(key, np.inf), float(table.costs[rows, 0].sum()))
        for (total, features, level), cost in best.items():
            same = (states.depth == depth) & (states.d_inner_sum == total) & (states.level <= level)
            same &= (states.features == np.array(features, dtype=np.int64)).all(axis=1)
            assert states.costs[same, 0].min() <= cost * (1 + 1e-12)
    for row in range(len(states)):
        own = [levels[table.layers.index(layer)] for layer in states.layers(row)]
        assert max(own) <= states.level[row]


@given(small_tables())
@settings(max_examples=40, deadline=None)
def test_what_is_kept_of_each_chunk_is_what_comes_out(table: LayerTable) -> None:
    whole = solve(table)

    def keep(states: States) -> NDArray[np.int64]:
        assert len(states.costs) == len(states)
        return np.flatnonzero(states.depth % 2 == 1)

    kept = solve(table, keep=keep)
    expected = whole.take(np.flatnonzero(whole.depth % 2 == 1))
    assert kept.costs.tolist() == expected.costs.tolist()
    assert [kept.layers(row) for row in range(len(kept))] == [expected.layers(row) for row in range(len(expected))]


def test_too_fine_a_feature_is_refused_with_what_to_do() -> None:
    table = LayerTable(
        d_model=64,
        step=16,
        depths=(15,),
        layers=(LayerSpec(d_inner=16, n_head=1), LayerSpec(d_inner=16000, n_head=1)),
        costs=np.array([[1.0], [2.0]]),
        features=np.array([[0], [10**6]]),
    )
    with pytest.raises(SpaceError, match="coarsen"):
        solve(table)


PAPER = """
import time
import numpy as np
from edge_lts.arch import LayerSpec
from edge_lts.search.solver import LayerTable, solve

rng = np.random.default_rng(0)
start, n = time.perf_counter(), 0
for d_model in range(128, 961, 64):
    layers = tuple(
        LayerSpec(d_inner=f, n_head=h) for f in range(128, 4033, 64) if f > 1.7 * d_model for h in (2, 4, 8)
    )
    flops = np.array([4 * d_model**2 + 2 * d_model * layer.d_inner for layer in layers])
    costs = (flops * rng.uniform(0.92, 1.08, len(layers)))[:, None]
    table = LayerTable(d_model=d_model, step=64, depths=tuple(range(2, 16)), layers=layers, costs=costs,
                       features=np.zeros((len(layers), 0), dtype=np.int64))
    n += len(solve(table))
seconds = time.perf_counter() - start
# Not ru_maxrss: a child's begins at its parent's peak.
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak_kb / 1024, n)
"""


def test_the_papers_space_takes_under_five_seconds_and_200_mb() -> None:
    start = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", PAPER], check=True, capture_output=True, text=True, timeout=60)
    seconds, peak_mb, n_states = (float(word) for word in output.stdout.split())
    assert n_states > 100_000
    assert seconds < 5, f"took {seconds} s ({time.perf_counter() - start} s with imports)"
    assert peak_mb < 200

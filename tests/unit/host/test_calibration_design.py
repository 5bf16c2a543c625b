"""Choosing what to train: a quarter from the frontier, more information than chance, nothing that is too large."""

from __future__ import annotations

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.space import SearchSpace
from edge_lts.training import Recipe
from edge_lts_host import spaces
from edge_lts_host.calibration import design
from edge_lts_host.errors import UsageError


@pytest.fixture(scope="module")
def pool() -> list[Architecture]:
    space = SearchSpace.from_json(spaces.load_space("demo")[0])
    return design.draw_pool(space, 2_000_000, np.random.default_rng(1))


def test_the_pool_keeps_to_the_space_and_the_size(pool: list[Architecture]) -> None:
    space = SearchSpace.from_json(spaces.load_space("demo")[0])
    assert len(pool) == len(set(pool)) > 500
    assert all(space.contains(arch) and arch.decoder_params <= 2_000_000 for arch in pool)
    with pytest.raises(UsageError, match="no member below 1000 decoder parameters"):
        design.draw_pool(space, 1000, np.random.default_rng(1))


def test_a_guessed_frontier_is_beaten_by_nobody_in_the_pool(pool: list[Architecture]) -> None:
    frontier = design.provisional_frontier(pool)
    assert 0 < len(frontier) < len(pool) / 2
    largest = max(arch.decoder_params for arch in pool)
    assert max(arch.decoder_params for arch in frontier) == largest


@pytest.mark.parametrize("n", [6, 16, 40])
def test_a_quarter_comes_from_the_frontier_and_all_are_different(pool: list[Architecture], n: int) -> None:
    frontier = design.provisional_frontier(pool)
    chosen = design.choose(pool, frontier, n)
    assert len(set(chosen)) == n
    assert sum(arch in set(frontier) for arch in chosen) >= n / 4
    assert [arch.decoder_params for arch in chosen] == sorted(arch.decoder_params for arch in chosen)
    assert design.choose(pool, frontier, n) == chosen


def test_the_design_says_more_than_chance(pool: list[Architecture]) -> None:
    rows = design.standardised_terms(pool)
    place = {arch: index for index, arch in enumerate(pool)}
    chosen = design.choose(pool, design.provisional_frontier(pool), 16)
    rng = np.random.default_rng(0)
    by_chance = [design.information(rows[rng.choice(len(pool), 16, replace=False)]) for _ in range(100)]
    assert design.information(rows[[place[arch] for arch in chosen]]) > max(by_chance)


def test_the_middle_is_chosen_too_and_not_the_extremes_alone(pool: list[Architecture]) -> None:
    chosen = design.choose(pool, design.provisional_frontier(pool), 16)
    for values in ([arch.n_layer for arch in chosen], [arch.d_model for arch in chosen]):
        assert any(min(values) < value < max(values) for value in values)


def test_terms_that_do_not_vary_are_left_out(pool: list[Architecture]) -> None:
    same_width = [arch for arch in pool if arch.d_model == 128]
    assert design.standardised_terms(same_width).shape[1] == design.standardised_terms(pool).shape[1] - 3
    assert np.linalg.matrix_rank(design.standardised_terms(pool)) >= 5


def test_a_small_frontier_is_taken_whole_and_too_few_architectures_are_refused(pool: list[Architecture]) -> None:
    frontier = sorted(pool, key=lambda arch: arch.decoder_params)[-2:]
    assert set(frontier) <= set(design.choose(pool[:200], frontier, 16))
    with pytest.raises(UsageError, match="only 5 architectures"):
        design.choose(pool[:5], [], 6)


def test_repeats_are_spread_over_the_sizes(pool: list[Architecture]) -> None:
    archs = design.choose(pool, [], 16)
    assert design.spread(archs, 4) == [archs[2], archs[6], archs[10], archs[14]]
    assert design.spread(archs, 16) == archs
    assert design.spread(archs, 0) == []
    assert len(design.spread(archs, 99)) == 16


def test_a_trainable_copy_has_the_same_decoder(pool: list[Architecture]) -> None:
    arch = pool[0].replace(vocab_size=50257, embedding_factor=4, max_seq_len=1024, precision="bfloat16")
    copy = design.trainable(arch, 256, Recipe())
    assert copy.decoder_params == arch.decoder_params
    assert copy.layers == arch.layers
    assert (copy.vocab_size, copy.embedding_factor, copy.max_seq_len, copy.precision) == (256, 1, 64, None)


def test_more_budget_allows_larger_models() -> None:
    assert design.most_params(7200, 20, 2) == 2 * design.most_params(3600, 20, 2) == 2 * design.most_params(7200, 20, 1)
    assert design.most_params(7200, 1, 8) == design.most_params(7200, 1, 1)

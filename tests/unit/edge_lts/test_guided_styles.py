"""Guided search over shared keys and values, head widths and styles: exact against brute force, and fast."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.objectives import resolve_objectives
from edge_lts.search import predictor
from edge_lts.search.cost_model import COSTS, Conditions, terms_of
from edge_lts.search.design import choose_design
from edge_lts.search.guided import GuidedSearcher
from edge_lts.search.predictor import Predictor
from edge_lts.space import SearchSpace
from tests.pretended import OBJECTIVES, PROTOCOL, Machine, drive
from tests.unit.edge_lts.test_guided_quality import every_loss, same_frontier
from tests.unit.edge_lts.test_space import builtin
from tests.unit.edge_lts.test_space_styles import space

MORE: dict[str, Any] = {"n_layer": [2, 3], "d_model": [64, 128], "d_inner": [128, 256, 384], "n_head": [2, 4]}
SPACES = {
    "shared": space("llama", **MORE, n_kv_head=[1, 2, 4]),
    "wide": space("gpt2", **{**MORE, "d_inner": [128, 256]}, n_kv_head=[1, 2], d_head=[32, 48]),
    "styled": space("gpt2", **{**MORE, "n_head": [2]}, activation=["gelu", "relu2"], is_gated=[False, True]),
    "primers": space("primer-ez", **MORE, qkv_conv=[0, 3], position=["learned", "rotary"]),
}


class Styled(Machine):
    """A pretended machine on which styles and shared keys have a price, too."""

    def measure(self, candidate_id: int, arch: Architecture) -> Any:
        outcome = super().measure(candidate_id, arch)
        factor = 1 + 0.1 * bool(arch.is_gated) + 0.05 * bool(arch.qkv_conv) + 0.03 * (arch.position == "rotary")
        factor += 0.2 * arch.width_sums["kv_width"] / arch.width_sums["q_width"]
        for cost in COSTS:
            value: Any = outcome.objectives[cost]
            median = value.median * factor
            outcome.objectives[cost] = type(value)(median=median, ci95=(median * 0.99, median * 1.01), n=20)
        return outcome


def fitted(one: SearchSpace, n: int = 60) -> Predictor:
    found, machine, rng = Predictor(PROTOCOL), Styled(drift=0.0), np.random.default_rng(3)
    for index in range(n):
        found.tell(machine.measure(index, one.sample(rng)))
    assert found.fit()
    return found


@pytest.mark.parametrize(
    "names", [("decoder_params", "decode_latency_s"), ("decoder_params", "decode_latency_s", "peak_memory_bytes")]
)
@pytest.mark.parametrize("name", SPACES)
def test_the_solved_frontier_is_that_of_every_member(
    name: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "RESOLUTION", 1 + 1e-10)
    one, objectives = SPACES[name], resolve_objectives(names)
    found = fitted(one)
    prediction = found.frontier(one, objectives)
    assert prediction.cover == "exact"
    same_frontier(prediction, every_loss(found, one, objectives))
    for index in range(len(prediction)):
        assert one.contains(prediction.architecture(index))


@pytest.mark.parametrize("name", SPACES)
def test_the_model_learns_what_styles_and_shared_keys_cost(name: str) -> None:
    one = SPACES[name]
    found, machine, rng = fitted(one, 120), Styled(noise=0.0, drift=0.0), np.random.default_rng(9)
    errors = []
    for index in range(60):
        arch = one.sample(rng)
        truth = machine.measure(index, arch).objectives["decode_latency_s"].median
        errors.append(found.predict(arch)["decode_latency_s"] / truth - 1)
    assert np.median(np.abs(np.array(errors) - np.median(errors))) < 0.03


def test_terms_of_the_old_backbones_are_what_they_were() -> None:
    """The new terms are nothing for a plain decoder, so its rates and predictions stay."""
    layers = (LayerSpec(d_inner=512, n_head=4), LayerSpec(d_inner=1024, n_head=8))
    for backbone in ("gpt2", "opt", "transformer-xl"):
        arch = Architecture(backbone=backbone, d_model=256, layers=layers, vocab_size=1000)
        decode = terms_of("decode_latency_s", arch, Conditions())
        assert decode[:8].tolist() == [2, 2 * 256**2, 256 * 1536, 2 * 192 * 256, 12, 1536, 0, 0]
        prefill = terms_of("prefill_latency_s", arch, Conditions())
        t = 192
        assert prefill[:8].tolist() == [
            *(2, 2 * t * 256**2, t * 256 * 1536, 2 * t * t * 256, 12 * t * t, 1536 * t),
            *(0, 0),
        ]


def test_shared_keys_are_fewer_projections_and_less_cache() -> None:
    def terms(n_kv_head: int) -> Any:
        layers = (LayerSpec(d_inner=512, n_head=8, n_kv_head=n_kv_head),)
        arch = Architecture(backbone="llama", d_model=256, layers=layers, vocab_size=1000)
        return terms_of("decode_latency_s", arch, Conditions())

    whole, half = terms(8), terms(4)
    assert half[1] == 0.75 * whole[1]  # of q, k, v and output, half of two
    assert half[3] == 0.5 * whole[3]


def test_a_design_holds_both_ends_of_sharing_and_every_style() -> None:
    for name in ("shared", "styled"):
        one = SPACES[name]
        chosen = choose_design(one, Conditions(), 16, np.random.default_rng(0))
        pairs = {(layer.n_head, layer.n_kv_head) for arch in chosen for layer in arch.layers}
        assert {pair for table in one.tables for pair in (table.heads[0], table.heads[-1])} <= pairs
        assert {one.table_of(arch).style for arch in chosen} == {table.style for table in one.tables}


def test_guided_searches_the_edge_space_and_solves_it_within_seconds() -> None:
    edge = builtin("edge")
    searcher = GuidedSearcher(edge, OBJECTIVES, 1, protocol=PROTOCOL)
    found = drive(searcher, Styled(), 45)
    assert all(edge.contains(arch) for arch in found)
    started = time.process_time()
    prediction = searcher.solve()
    assert time.process_time() - started < 30  # some 5 s on an idle 2020s core
    assert prediction.cover == "exact"
    members = [prediction.architecture(index) for index in range(0, len(prediction), 40)]
    assert {layer.n_kv_head for arch in members for layer in arch.layers} == {2, 4}

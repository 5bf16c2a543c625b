"""Precision as a choice of the run and as a gene: identity, bytes, spaces and strategies."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edge_lts import records
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import ArchitectureError, SpaceError, SpecError
from edge_lts.footprint import (
    cache_bytes,
    decoder_bytes,
    place_bytes,
    precision_of,
    predicted_bytes,
    read_bytes,
    weight_bytes,
    working_set_bytes,
)
from edge_lts.objectives import resolve_objectives
from edge_lts.precision import ACTIVATION_BYTES, PRECISIONS, WEIGHT_BYTES, is_emulated_precision
from edge_lts.records import Protocol
from edge_lts.search import make_searcher
from edge_lts.search.predictor import Predictor
from edge_lts.space import SearchSpace

LAYERS = (LayerSpec(d_inner=128, n_head=2), LayerSpec(d_inner=256, n_head=4))
ARCH = Architecture(backbone="gpt2", d_model=64, layers=LAYERS, vocab_size=1000, max_seq_len=256)
GENES: dict[str, Any] = {"n_layer": [1, 2], "d_model": [64, 128], "d_inner": [64, 128, 256], "n_head": [2, 4]}
NAMES = ["int8-qnnpack", "float32"]


def space(**genes: Any) -> SearchSpace:
    fixed = {"vocab_size": 1000, "max_seq_len": 256}
    return SearchSpace.from_json({"name": "s", "backbone": "gpt2", "genes": {**GENES, **genes}, "fixed": fixed})


def test_the_names_are_the_same_everywhere() -> None:
    assert PRECISIONS == records.PRECISIONS == tuple(WEIGHT_BYTES) == tuple(ACTIVATION_BYTES)


def test_an_architecture_without_a_precision_is_what_it_was_before_there_were_any() -> None:
    assert "precision" not in ARCH.canonical_json()
    assert ARCH.replace(backbone="gpt2").arch_id == ARCH.arch_id == "7ea894a84205"
    assert Architecture.from_json(ARCH.to_json()) == ARCH


def test_a_precision_is_part_of_the_identity_and_goes_before_the_runs() -> None:
    eight = ARCH.replace(precision="int8-onednn")
    assert eight.arch_id != ARCH.arch_id
    assert Architecture.from_json(eight.to_json()) == eight == eight.canonical()
    assert precision_of(ARCH, Protocol(precision="bfloat16")) == "bfloat16"
    assert precision_of(eight, Protocol(precision="bfloat16")) == "int8-onednn"
    assert weight_bytes(eight) == weight_bytes(ARCH, "int8-onednn") < weight_bytes(ARCH) / 3
    with pytest.raises(ArchitectureError, match="int4"):
        ARCH.replace(precision="int4")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backbone", ["gpt2", "opt", "transformer-xl"])
def test_bytes_follow_the_precision(precision: str, backbone: str) -> None:
    arch, protocol = ARCH.replace(backbone=backbone), Protocol(precision=precision)
    wide = precision != "bfloat16"
    assert cache_bytes(arch, 10, precision) == cache_bytes(arch, 10) // (1 if wide else 2)
    parts = weight_bytes(arch, precision) + working_set_bytes(arch, protocol)
    assert predicted_bytes(arch, protocol) == parts + cache_bytes(arch, 193, precision)
    places = place_bytes(arch, precision)
    assert sum(places.values()) == weight_bytes(arch, precision)
    count = arch.parameter_count
    if WEIGHT_BYTES[precision] > 1:
        assert places["decoder"] == WEIGHT_BYTES[precision] * count.decoder
        assert working_set_bytes(arch, protocol) == working_set_bytes(arch, Protocol()) * WEIGHT_BYTES[precision] // 4
    else:
        per_layer, once = {"gpt2": (9, 2), "opt": (9, 0), "transformer-xl": (7, 0)}[backbone]
        norms_and_biases = 2 * per_layer * 64 + 128 + 256 + once * 64
        assert places["decoder"] == count.decoder + 3 * norms_and_biases
        assert places["embedding"] == count.embedding + 4 * 1000
        assert working_set_bytes(arch, protocol) > working_set_bytes(arch, Protocol())
    positions = 2 * 64 * 64 * WEIGHT_BYTES[precision] if backbone == "transformer-xl" else 0
    assert read_bytes(arch, precision) == sum(places.values()) - places["position"] - positions
    untied = arch.replace(tie_embeddings=False)
    assert weight_bytes(untied, precision) - weight_bytes(arch, precision) == place_bytes(untied, precision)["head"]


def test_decoder_bytes_take_arrays() -> None:
    counts = [ARCH.replace(layers=LAYERS[:n]) for n in (1, 2)]
    found = decoder_bytes(
        ARCH,
        np.array([arch.decoder_params for arch in counts]),
        np.array([1, 2]),
        np.array([128, 384]),
        "int8-qnnpack",
    )
    assert found.tolist() == [place_bytes(arch, "int8-qnnpack")["decoder"] for arch in counts]


def test_only_bfloat16_without_its_instructions_is_emulated() -> None:
    a72, neoverse = ("fp", "asimd", "crc32"), ("asimd", "asimddp", "i8mm", "bf16")
    assert is_emulated_precision("bfloat16", a72)
    assert not is_emulated_precision("bfloat16", neoverse)
    assert not is_emulated_precision("bfloat16", ("avx2", "avx512_bf16"))
    assert not any(is_emulated_precision(precision, a72) for precision in PRECISIONS if precision != "bfloat16")


def test_a_space_with_the_gene_counts_lists_and_holds_each_member_once_per_precision() -> None:
    one, two = space(), space(precision=NAMES)
    assert two.size() == 2 * int(one.size())
    members = list(two.enumerate())
    assert len(set(members)) == len(members) == two.size()
    assert all(two.contains(member) for member in members)
    assert Counter(member.precision for member in members) == dict.fromkeys(NAMES, one.size())
    assert {member.replace(precision=None) for member in members} == set(one.enumerate())
    assert two.violation(members[0].replace(precision=None)) == "precision"
    assert two.violation(members[0].replace(precision="bfloat16")) == "precision"
    assert one.violation(members[0]) == "precision"


def test_a_space_with_the_gene_is_its_json_whatever_the_order_of_the_names() -> None:
    both = space(precision=NAMES)
    assert SearchSpace.from_json(both.to_json()) == both == space(precision=NAMES[::-1])
    assert "precision" not in space().to_json()["genes"]
    for wrong in ([], ["int4"], ["float32", "float32"], "float32", [["float32"]]):
        with pytest.raises(SpaceError, match=r"genes\.precision"):
            space(precision=wrong)


def test_drawing_changing_and_joining_reach_every_precision_and_stay_inside() -> None:
    both, rng = space(precision=NAMES), np.random.default_rng(1)
    drawn = [both.sample(rng) for _ in range(60)]
    assert {arch.precision for arch in drawn} == set(NAMES)
    parent = drawn[0]
    mutants = [both.mutate(parent, rng) for _ in range(60)]
    kept = sum(1 for arch in mutants if arch is not None and arch.precision == parent.precision)
    assert 40 <= kept < 60  # redrawn with probability 0.3, and then the same in half of the cases
    other = next(arch for arch in drawn if arch.precision != parent.precision)
    assert {child.precision for _ in range(40) if (child := both.crossover(parent, other, rng))} == set(NAMES)
    assert {child.precision for _ in range(9) if (child := both.crossover(parent, parent, rng))} == {parent.precision}
    for child in (*mutants, both.crossover(parent, other, rng)):
        assert child is not None
        assert both.contains(child)


def test_draws_of_a_space_without_the_gene_are_those_they_were() -> None:
    rng = np.random.default_rng(7)
    plain, before = space(), np.random.default_rng(7)
    for _ in range(5):
        plain.sample(rng)
        table, depth = plain._pairs[int(before.integers(len(plain._pairs)))]
        table.draw(depth, before)
    assert rng.integers(1 << 40) == before.integers(1 << 40)


def test_memory_cuts_a_space_by_the_bytes_of_its_precision() -> None:
    limit = 4 * min(arch.total_params for arch in space().enumerate())
    assert all(4 * arch.total_params <= limit for arch in space().restricted(max_weight_bytes=limit).enumerate())
    half = space().restricted(max_weight_bytes=limit, precision="bfloat16")
    assert max(2 * arch.total_params for arch in half.enumerate()) <= limit
    assert max(4 * arch.total_params for arch in half.enumerate()) > limit
    eight = space(precision=NAMES).restricted(max_weight_bytes=limit)
    assert max(arch.total_params for arch in eight.enumerate()) > limit / 4


def test_random_and_evolution_search_the_gene_and_guided_says_who_does() -> None:
    objectives = resolve_objectives(("decoder_params", "decode_latency_s"))
    for strategy in ("random", "evolution"):
        searcher = make_searcher(strategy, space(precision=NAMES), objectives, 3, {}, (), Protocol())
        assert {candidate.architecture.precision for candidate in searcher.ask(20)} == set(NAMES)
    with pytest.raises(SpecError, match="evolution"):
        make_searcher("guided", space(precision=NAMES), objectives, 3, {}, (), Protocol())


def test_the_predictor_expects_a_quarter_of_the_weights_in_eight_bits_and_four_times_as_many_in_the_cache() -> None:
    eight = Predictor(Protocol(precision="int8-qnnpack"), 1 << 20)
    assert eight.conditions.cache_bytes == 4 << 20
    assert Predictor(Protocol(), 1 << 20).conditions.cache_bytes == 1 << 20
    assert Predictor(Protocol()).conditions.cache_bytes is None

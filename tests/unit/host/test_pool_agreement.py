"""How boards compare that measured the same anchors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.records import Evaluation, Measurement
from edge_lts.speed import BOARD_FACTOR, at_pool_speed
from edge_lts_host.errors import PreflightError
from edge_lts_host.pool import agreement
from edge_lts_host.pool.agreement import Values, agree, check

ARCHS = [
    Architecture(backbone="gpt2", d_model=32 * n, layers=(LayerSpec(n_head=2, d_inner=64),) * n) for n in (1, 2, 3)
]


def measured(arch: Architecture, slow: float, *, memory: float = 1.0) -> Evaluation:
    latency_s = 1e-3 * arch.n_layer * slow
    return Evaluation(
        candidate_id=0,
        architecture=arch,
        objectives={
            "decoder_params": arch.decoder_params,
            "decode_latency_s": Measurement(median=latency_s, mad=1e-5, ci95=(latency_s * 0.9, latency_s * 1.1)),
            "prefill_latency_s": Measurement(median=10 * latency_s),
            "peak_memory_bytes": Measurement(median=1e6 * arch.n_layer * memory),
        },
        samples={"decode_latency_s": [latency_s, 2 * latency_s]},
        conditions={"anchor_s": {"decode_latency_s": 1e-4 * slow, "stream_s": 2e-4 * slow}, "threads": 1},
    )


def board(slow: float, errors: Mapping[int, float] | None = None, memory: float = 1.0) -> Values:
    values: Values = {}
    for index, arch in enumerate(ARCHS):
        agreement.add(values, measured(arch, slow * (errors or {}).get(index, 1.0), memory=memory))
    return values


def test_factors_are_relative_to_the_average_board() -> None:
    factors = agree({"a": board(1.0), "b": board(1.1)}).factors
    for name in ("decode_latency_s", "prefill_latency_s"):
        assert factors["b"][name] / factors["a"][name] == pytest.approx(1.1)
        assert factors["b"][name] * factors["a"][name] == pytest.approx(1.0)
    assert factors["b"]["anchor_s"]["stream_s"] / factors["a"]["anchor_s"]["stream_s"] == pytest.approx(1.1)
    assert "prefill_latency_s" not in factors["a"]["anchor_s"], "which nobody timed"


def test_a_factor_that_errors_alone_would_make_is_left_out() -> None:
    errors = {0: 1.03, 1: 0.97, 2: 1.002}
    assert agree({"a": board(1.0), "b": board(1.0, errors)}).factors["b"]["decode_latency_s"] == 1.0


def test_alike_boards_are_one_pool() -> None:
    check(agree({"a": board(1.0), "b": board(1.09)}), 0.1)
    check(agree({"a": board(1.0)}), 0.1)


def test_the_error_names_the_two_that_differ_most_and_by_how_much() -> None:
    found = agree({"a": board(1.0), "b": board(1.02), "c": board(1.2)})
    with pytest.raises(PreflightError, match=r"c and a cannot share a search: c takes 20\.0% more in decode") as caught:
        check(found, 0.1)
    assert "10.0% is what a pool tolerates" in str(caught.value)
    assert "--pool-tolerance" in str(caught.value)
    check(found, 0.21)


def test_a_board_that_is_slow_on_one_anchor_alone_is_told() -> None:
    with pytest.raises(PreflightError, match=r"of [0-9a-f]+, after correction"):
        check(agree({"a": board(1.0), "b": board(1.0, {2: 1.3})}), 0.1)


def test_a_board_that_needs_more_memory_is_told() -> None:
    with pytest.raises(PreflightError, match="more in the memory of"):
        check(agree({"a": board(1.0), "b": board(1.0, memory=1.3)}), 0.1)


def test_without_anchors_in_common_nothing_can_be_told() -> None:
    lacking: Values = {}
    agreement.add(lacking, measured(ARCHS[0], 1.0))
    with pytest.raises(PreflightError, match="only 1 of the anchors"):
        agree({"a": board(1.0), "b": lacking})


def test_several_processes_are_one_number() -> None:
    values = board(1.0)
    for arch in ARCHS:
        for slow in (1.0, 7.0):
            agreement.add(values, measured(arch, slow))
    assert agree({"a": board(1.0), "b": values}).factors["b"]["decode_latency_s"] == 1.0


def test_a_board_that_joins_later_is_relative_to_what_the_run_has() -> None:
    first = agree({"a": board(1.0), "b": board(1.1)}).factors
    values = {"a": board(1.0), "b": board(1.1), "c": board(1.05)}
    later = agreement.continued(agree(values).factors, first)
    assert (later["a"], later["b"]) == (first["a"], first["b"])
    for name in ("decode_latency_s", "prefill_latency_s"):
        assert later["c"][name] / later["a"][name] == pytest.approx(1.05)
    assert later["c"]["anchor_s"]["stream_s"] / later["a"]["anchor_s"]["stream_s"] == pytest.approx(1.05)


def test_a_record_at_pool_speed_is_divided_once_and_in_everything_that_is_time() -> None:
    raw = measured(ARCHS[0], 1.1)
    factor = {"decode_latency_s": 1.1, "anchor_s": {"stream_s": 1.1}}
    one = dataclasses.replace(raw, conditions={**raw.conditions, BOARD_FACTOR: factor})
    at = at_pool_speed(one)
    decode = at.objectives["decode_latency_s"]
    assert isinstance(decode, Measurement)
    assert decode.median == pytest.approx(1e-3)
    assert decode.mad == pytest.approx(1e-5 / 1.1)
    assert decode.ci95 == pytest.approx((0.9e-3, 1.1e-3))
    assert at.samples["decode_latency_s"] == pytest.approx([1e-3, 2e-3])
    assert at.conditions["anchor_s"] == pytest.approx({"decode_latency_s": 1.1e-4, "stream_s": 2e-4})
    assert at.objectives["prefill_latency_s"] == raw.objectives["prefill_latency_s"]
    assert at.objectives["peak_memory_bytes"] == raw.objectives["peak_memory_bytes"]
    assert at_pool_speed(at) is at
    assert at_pool_speed(raw) is raw
    for broken in (math.nan, 0, -1, "x", None):
        odd = dataclasses.replace(raw, conditions={BOARD_FACTOR: {"decode_latency_s": broken}})
        assert at_pool_speed(odd).objectives == raw.objectives


def test_a_factor_in_words() -> None:
    assert agreement.tabulated({"decode_latency_s": 1.021, "prefill_latency_s": 0.996, "anchor_s": {}}) == (
        "decode +2.1%, prefill -0.4%"
    )

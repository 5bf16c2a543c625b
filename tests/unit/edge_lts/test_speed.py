"""A run's usual speed, and the frontier at that speed."""

import math
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.frontier import members
from edge_lts.objectives import resolve_objectives
from edge_lts.records import Evaluation, Measurement
from edge_lts.speed import ANCHORS, MIN_PROCESSES, UsualSpeed, anchors_of

OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s"])
USUAL = {"prefill_latency_s": 3e-3, "decode_latency_s": 4e-4, "stream_s": 1e-3}


def arch(n_layer: int) -> Architecture:
    return Architecture(
        backbone="gpt2", d_model=128, layers=(LayerSpec(d_inner=512, n_head=4),) * n_layer, vocab_size=1000
    )


def process(n_layer: int, seconds: float, speed: float, *, jitter: float = 0.0, **conditions: Any) -> Evaluation:
    """A model timed while the machine was `speed` times as slow as usual."""
    anchors = {name: usual * speed * math.exp(jitter) for name, usual in USUAL.items()}
    value = seconds * speed
    return Evaluation(
        candidate_id=n_layer,
        architecture=arch(n_layer),
        objectives={
            "decoder_params": arch(n_layer).decoder_params,
            "decode_latency_s": Measurement(median=value, mad=value / 100, ci95=(value * 0.98, value * 1.02), n=20),
        },
        samples={},
        conditions={"anchor_s": anchors, **conditions},
    )


def test_the_slowdown_is_what_the_anchors_say() -> None:
    speed = UsualSpeed()
    for index in range(21):
        speed.add({name: usual * math.exp(0.05 * (index - 10)) for name, usual in USUAL.items()})
    twice = {name: 2 * usual for name, usual in USUAL.items()}
    assert speed.slowdown("decode_latency_s", USUAL) == pytest.approx(1.0)
    assert speed.slowdown("decode_latency_s", twice) == pytest.approx(2**1.2, rel=0.01)
    assert speed.slowdown("prefill_latency_s", twice) == pytest.approx(2**0.9, rel=0.01)
    assert speed.slowdown("peak_memory_bytes", twice) == 1.0
    assert speed.slowdown("decode_latency_s", {}) == 1.0


def test_nothing_is_corrected_on_a_steady_machine_or_after_a_few_processes() -> None:
    rng = np.random.default_rng(1)
    steady, short = UsualSpeed(), UsualSpeed()
    for _ in range(40):
        steady.add({name: usual * math.exp(0.004 * rng.standard_normal()) for name, usual in USUAL.items()})
    for index in range(MIN_PROCESSES - 1):
        short.add({name: usual * math.exp(0.2 * index) for name, usual in USUAL.items()})
    slow = {name: 1.02 * usual for name, usual in USUAL.items()}
    assert steady.slowdown("decode_latency_s", slow) == 1.0
    assert short.slowdown("decode_latency_s", slow) == 1.0


def test_records_without_usable_anchors_say_nothing() -> None:
    outcome = process(2, 1e-3, 1.0)
    assert anchors_of(outcome) == pytest.approx(USUAL)
    for broken in (None, "fast", {}, {"decode_latency_s": 0}, {"stream_s": math.inf}, {"stream_s": True}, {"cpu": 1.0}):
        assert anchors_of(process(2, 1e-3, 1.0, anchor_s=broken)) == {}


def test_a_disturbed_anchor_does_not_make_the_fastest_member() -> None:
    speed = UsualSpeed()
    for i in range(2 * MIN_PROCESSES):
        speed.add({name: s * (1.1 if i % 2 else 1 / 1.1) for name, s in USUAL.items()})
    disturbed = {**USUAL, "decode_latency_s": 36 * USUAL["decode_latency_s"]}
    limit = 1.1 ** (3 * 1.4826)  # three robust standard deviations
    assert 1.1 < speed.slowdown("decode_latency_s", disturbed) <= limit**0.5
    assert speed.slowdown("decode_latency_s", {name: s / 36 for name, s in disturbed.items()}) >= 1 / limit**1.2


def test_a_lucky_minute_does_not_make_a_member() -> None:
    """Six layers timed in a fast minute beat five in a slow one; at one speed they do not. Values are at that speed."""
    outcomes = [process(n_layer, 1e-3 * n_layer, 1.0 + 0.1 * (n_layer % 3)) for n_layer in range(10, 24)]
    outcomes += [process(5, 5e-3, 1.5), process(6, 6e-3, 0.7), process(7, 5.8e-3, 1.4)]
    found = {member.architecture.n_layer: member for member in members(outcomes, OBJECTIVES)}
    assert set(found) == {5, 7, *range(10, 24)}  # seven layers are truly faster than six
    usual = float(np.median([1.0 + 0.1 * (n % 3) for n in range(10, 24)] + [1.5, 0.7, 1.4]))
    value = found[7].objectives["decode_latency_s"]
    assert isinstance(value, Measurement)
    assert value.median == pytest.approx(5.8e-3 * usual, rel=0.1)
    assert value.ci95 == pytest.approx((0.98 * value.median, 1.02 * value.median))
    assert value.mad == pytest.approx(value.median / 100)
    assert set(anchors_of(outcomes[0])) == set(ANCHORS)


def test_pi95_spreads_as_the_times_did() -> None:
    """The value is steady at the usual speed; a later process still gets the speed of its own moment."""
    outcomes = [process(n, 1e-3 * n, speed) for n in range(3, 9) for speed in (0.8, 1.0, 1.25)]
    for member in members(outcomes, OBJECTIVES):
        value = member.objectives["decode_latency_s"]
        assert isinstance(value, Measurement)
        assert value.pi95 is not None
        assert value.median == pytest.approx(1e-3 * member.architecture.n_layer, rel=0.01)
        assert value.pi95[0] < 0.75 * value.median
        assert value.pi95[1] > 1.3 * value.median

"""How a run's anchors explain the machine's speed."""

import math

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.search.drift import Drift, refit, usual_anchors


def arch(d_model: int) -> Architecture:
    return Architecture(
        backbone="gpt2", d_model=d_model, layers=(LayerSpec(d_inner=4 * d_model, n_head=2),) * 4, vocab_size=1000
    )


ARCHS = [arch(64 * (1 + index % 8)) for index in range(80)]


def anchors_at(moment: int) -> dict[str, float]:
    """Computing and streaming slow down at different times."""
    return {
        "prefill_latency_s": 3e-3 * math.exp(0.2 * math.sin(moment / 5)),
        "decode_latency_s": 4e-4 * math.exp(0.3 * math.cos(moment / 3)),
        "stream_s": 1e-3 * math.exp(0.3 * math.sin(moment)),
    }


def test_exponents_are_found_and_follow_the_size_of_the_weights() -> None:
    """Small weights slow down with the anchor in the caches, large ones with the one that streams."""
    rng = np.random.default_rng(1)
    moments = [anchors_at(moment) for moment in range(80)]
    prior = usual_anchors(ARCHS, moments, "decode_latency_s")
    terms = np.array([prior.terms(*pair) for pair in zip(ARCHS, moments, strict=True)])
    z = terms[:, 3:] / np.where(terms[:, :3] == 0, 1, terms[:, :3])
    errors = terms[:, 1] * (0.5 - 0.3 * z[:, 1]) + terms[:, 2] * (0.5 + 0.3 * z[:, 2])
    errors = errors + 0.01 * rng.standard_normal(80)
    errors[::20] += 1.0  # a few disturbed processes
    found = refit(prior, terms, errors).to_json()
    assert found["decode_latency_s"]["exponent"] == pytest.approx(0.5, abs=0.05)
    assert found["decode_latency_s"]["per_size"] == pytest.approx(-0.3, abs=0.05)
    assert found["stream_s"]["per_size"] == pytest.approx(0.3, abs=0.05)
    assert abs(found["prefill_latency_s"]["exponent"]) < 0.05


def test_without_evidence_the_prior_stands() -> None:
    prior = usual_anchors(ARCHS[:5], [anchors_at(0)] * 5, "prefill_latency_s")
    terms = np.array([prior.terms(item, anchors_at(0)) for item in ARCHS[:5]])
    found = refit(prior, terms, np.array([0.1, -0.2, 0.0, 0.3, -0.1]))
    np.testing.assert_allclose(found.exponents, prior.exponents, atol=1e-9)
    assert found.to_json()["prefill_latency_s"]["exponent"] == pytest.approx(0.9)


def test_the_factor_is_the_slowdown_and_missing_anchors_say_nothing() -> None:
    prior = usual_anchors(ARCHS, [anchors_at(moment) for moment in range(80)], "prefill_latency_s")
    usual = prior.usual_s
    assert prior.factor(ARCHS[0], usual) == pytest.approx(1.0)
    slow = {name: 2 * seconds for name, seconds in usual.items()}
    assert prior.factor(ARCHS[0], slow) == pytest.approx(2**0.9)
    assert prior.factor(ARCHS[0], {}) == 1.0
    assert usual_anchors(ARCHS, [{} for _ in ARCHS], "prefill_latency_s").factor(ARCHS[0], slow) == 1.0
    assert Drift.none().to_json() == {}


def test_an_older_record_has_the_anchor_of_its_own_kind_only() -> None:
    """Exponents of anchors that were not timed go to those that were."""
    moments = [{"decode_latency_s": 4e-4}] * len(ARCHS)
    found = usual_anchors(ARCHS, moments, "decode_latency_s").to_json()
    assert found["decode_latency_s"]["exponent"] == pytest.approx(1.0)
    assert set(found) == {"decode_latency_s"}

"""Quality as a value of a record and as a part of a run's spec."""

import contextlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from edge_lts.errors import EdgeLtsError, LedgerError, SpecError
from edge_lts.estimating import estimate, with_quality
from edge_lts.frontier import members
from edge_lts.objectives import OBJECTIVES, PROXY_OBJECTIVES, QUALITY, resolve_objectives
from edge_lts.preparation import load_proxy
from edge_lts.proxies.shape import Shape
from edge_lts.records import Estimate, RunSpec, central, outcome_from_json, value_from_json, value_to_json
from tests.calibrated import proxy
from tests.fake_agent import SPACE, evaluation, failure
from tests.unit.edge_lts.test_ledger import ARCH, JSON

SPEC = RunSpec(run_id="r", space=SPACE, budget_s=60.0, target="local")


def test_an_estimate_is_compared_by_its_lower_bound_and_survives_json() -> None:
    value = Estimate(mean=-3.5, low=-3.6, high=-3.4, is_extrapolated=True)
    assert central(value) == -3.6
    assert value_from_json(json.loads(json.dumps(value_to_json(value)))) == value


@pytest.mark.parametrize(
    "data",
    [
        {"mean": 1.0},
        {"mean": 1.0, "low": 2.0, "high": 1.0, "is_extrapolated": False},
        {"mean": math.nan, "low": 0.0, "high": 1.0, "is_extrapolated": False},
        {"mean": 0.5, "low": 0.0, "high": 1.0, "is_extrapolated": 1},
    ],
)
def test_what_is_no_estimate_is_a_ledger_error(data: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        value_from_json(data)


@settings(max_examples=100)
@given(JSON)
def test_fuzzed_estimates_raise_only_declared_errors(data: object) -> None:
    with contextlib.suppress(EdgeLtsError):
        value_from_json({"mean": data, "low": data, "high": 1.0, "is_extrapolated": False})


def test_quality_is_a_logarithm_to_be_made_large() -> None:
    quality, size = OBJECTIVES[QUALITY], OBJECTIVES["decoder_params"]
    assert (quality.direction, quality.is_measured, quality.unit) == ("max", False, "1")
    assert (quality.log(-3.5), quality.from_log(-3.5)) == (-3.5, -3.5)
    assert size.log(-1.0) is None
    assert size.from_log(math.log(10.0)) == pytest.approx(10.0)


def test_a_record_gets_what_the_proxy_says_and_marks_what_lies_beyond_its_labels() -> None:
    one = proxy()
    outcome = with_quality(evaluation(ARCH), one)
    value = outcome.objectives[QUALITY]  # type: ignore[union-attr]
    assert isinstance(value, Estimate)
    mean, low, high = one.predict(Shape.of(ARCH))
    assert (value.mean, value.low, value.high) == (float(mean), float(low), float(high))
    assert value.low < value.mean < value.high
    assert value.is_extrapolated == bool(one.is_beyond(Shape.of(ARCH)))
    large = ARCH.replace(d_model=2048, d_embed=2048, layers=ARCH.layers * 20)
    found = estimate(one, large)
    assert found is not None
    assert found.is_extrapolated
    assert outcome_from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_a_proxy_says_nothing_of_another_backbone_and_of_failures() -> None:
    other = ARCH.replace(backbone="opt")
    outcome = with_quality(evaluation(other), proxy())
    assert outcome.objectives[QUALITY] is None  # type: ignore[union-attr]
    assert estimate(proxy(backbone=None), other) is not None
    assert with_quality(failure(ARCH, 3), proxy()) == failure(ARCH, 3)
    assert with_quality(evaluation(ARCH), None) == evaluation(ARCH)


def test_a_proxy_is_part_of_a_spec_and_absent_where_there_is_none() -> None:
    assert "proxy" not in SPEC.to_json()
    spec = replace(SPEC, objectives=PROXY_OBJECTIVES, proxy=proxy().to_json())
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert load_proxy(spec) == proxy()
    assert load_proxy(SPEC) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": list(PROXY_OBJECTIVES)}, "comes from a calibrated proxy"),
        ({"constraints": [{"name": "quality", "minimum": -4.0}]}, "comes from a calibrated proxy"),
        ({"proxy": []}, "proxy must be an object"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RunSpec.from_json({**SPEC.to_json(), **changes})


def test_a_proxy_that_cannot_judge_the_space_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(SpecError, match="backbone opt, the space builds gpt2"):
        load_proxy(replace(SPEC, proxy=proxy(backbone="opt").to_json()))
    with pytest.raises(SpecError):
        load_proxy(replace(SPEC, proxy={**proxy().to_json(), "noise": "loud"}))


def test_a_frontier_by_quality_is_one_of_lower_bounds() -> None:
    """Of two alike in size and cost the one that is better known stands."""
    wide, one = evaluation(ARCH), Estimate(mean=-3.0, low=-3.5, high=-2.5)
    other = ARCH.replace(vocab_size=ARCH.vocab_size + 1)
    values = {name: value for name, value in wide.objectives.items() if name != "peak_memory_bytes"}
    found = [
        replace(wide, objectives={**values, QUALITY: one}),
        replace(wide, architecture=other, objectives={**values, QUALITY: replace(one, mean=-3.2, low=-3.3)}),
    ]
    (member,) = [
        one for one in members(found, resolve_objectives([QUALITY, "decode_latency_s"])) if not one.probably_dominated
    ]
    assert member.architecture == other
    assert member.to_json()["objectives"][QUALITY] == {
        "mean": -3.2,
        "low": -3.3,
        "high": -2.5,
        "is_extrapolated": False,
    }

"""Stored records: they survive a round trip, and whatever else is read raises what is declared."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.errors import EdgeLtsError, LedgerError, SpecError
from edge_lts.objectives import CommandObjective
from edge_lts.records import DeviceInfo, Measurement, Protocol, RunSpec, check_run_id, outcome_from_json
from tests.fake_agent import SPACE, device_info, evaluation, failure
from tests.unit.edge_lts.test_ledger import ARCH, JSON

SPEC = RunSpec(run_id="r", space=SPACE, budget_s=60.0, target="local", protocol=Protocol.named("lts"))


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
    return result


def test_everything_survives_json() -> None:
    assert RunSpec.from_json(through_json(SPEC.to_json())) == SPEC
    assert DeviceInfo.from_json(through_json(device_info().to_json())) == device_info()
    for outcome in (evaluation(ARCH), failure(ARCH, 3, "timeout")):
        assert outcome_from_json(through_json(outcome.to_json())) == outcome
    measurement = Measurement(median=1.0, mad=0.1, ci95=(0.9, 1.1), pi95=(0.5, 2.0), n=9)
    assert Measurement.from_json(through_json(measurement.to_json())) == measurement


def test_commands_are_part_of_a_spec_and_absent_where_there_are_none() -> None:
    assert "commands" not in SPEC.to_json()
    score = CommandObjective(name="score", direction="max", command="./score --of -")
    spec = replace(SPEC, objectives=("decoder_params", "score"), commands=(score,))
    assert RunSpec.from_json(through_json(spec.to_json())) == spec
    assert [objective.direction for objective in spec.resolved_objectives] == ["max", "max"]
    with pytest.raises(SpecError, match="unknown objective 'score'"):
        replace(spec, commands=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "upgrade"),
        ({"schema_version": None}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"budget_s": 0}, "budget_s"),
        ({"budget_s": 10**400}, "budget_s"),
        ({"confirm_fraction": 1}, "confirm_fraction"),
        ({"seed": -1}, "seed"),
        ({"max_candidates": 0}, "max_candidates"),
        ({"run_id": "../x"}, "run id"),
        ({"objectives": ["decoder_params"]}, "two to five"),
        ({"constraints": [{"name": "decode_latency_s", "maximum": 10**400}]}, "finite"),
        ({"protocol": {"context_tokens": "many"}}, "context_tokens"),
        ({"commands": {}}, "commands must be a list"),
        ({"commands": ["echo 1"]}, "name, direction and command"),
        ({"commands": [{"name": "score", "direction": "min", "command": "x"}]}, "not among the objectives"),
    ],
)
def test_a_wrong_spec_names_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RunSpec.from_json({**SPEC.to_json(), **changes})


@pytest.mark.parametrize("run_id", ["", ".", "..", "-x", ".hidden", "a/b", "A", "a" * 101, "a\n", None, 5])
def test_a_run_id_is_a_plain_file_name(run_id: object) -> None:
    with pytest.raises(SpecError, match="is no run id"):
        check_run_id(run_id)


@pytest.mark.parametrize(
    "changes", [{"arch_id": "0" * 12}, {"purpose": "fun"}, {"candidate_id": True}, {"kind": None}, {"flags": "noisy"}]
)
def test_a_wrong_ledger_record_is_a_ledger_error(changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        outcome_from_json({**evaluation(ARCH).to_json(), **changes})


@settings(max_examples=100)
@given(JSON)
def test_fuzzed_values_raise_only_declared_errors(data: object) -> None:
    for read in (outcome_from_json, Measurement.from_json, DeviceInfo.from_json, Protocol.from_json):
        with contextlib.suppress(EdgeLtsError):
            read(data)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(sorted([*SPEC.to_json(), "commands"])), JSON, min_size=1, max_size=3))
def test_a_fuzzed_spec_raises_only_spec_errors(changes: dict[str, Any]) -> None:
    with contextlib.suppress(SpecError):
        RunSpec.from_json({**SPEC.to_json(), **changes})

from dataclasses import replace

import pytest

from edge_lts.arch import Architecture
from edge_lts.frontier import Member, members
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.records import Evaluation, Measurement, Outcome, Purpose
from edge_lts.stats import summarise
from tests.fake_agent import evaluation, failure

OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s"])


def arch(d_inner: int) -> Architecture:
    return Architecture.from_json({"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": d_inner}]})


def measured(d_inner: int, latency_s: float, *, purpose: Purpose = "search", n: int = 8) -> Evaluation:
    samples = [latency_s * (1 + 0.001 * index) for index in range(n)]
    return replace(
        evaluation(arch(d_inner), purpose=purpose),
        objectives={
            "decoder_params": arch(d_inner).decoder_params,
            "decode_latency_s": summarise(samples),
            "peak_memory_bytes": Measurement(median=1000.0 * latency_s),
        },
        samples={"decode_latency_s": samples},
    )


def latency(member: Member) -> Measurement:
    value = member.objectives["decode_latency_s"]
    assert isinstance(value, Measurement)
    return value


def test_only_what_nothing_dominates_is_a_member_in_order_of_measuring() -> None:
    outcomes: list[Outcome] = [measured(256, 2.0), measured(128, 3.0), measured(64, 1.0), failure(arch(512), 3)]
    assert [member.architecture for member in members(outcomes, OBJECTIVES)] == [arch(256), arch(64)]


def test_objectives_of_the_run_alone_decide_and_all_that_was_measured_is_carried() -> None:
    outcomes = [measured(256, 1.0), measured(128, 1.0)]  # the second only wins nothing: fewer parameters, same latency
    found = members(outcomes, OBJECTIVES)
    assert [member.architecture for member in found] == [arch(256)]
    assert set(found[0].to_json()["objectives"]) == {"decoder_params", "decode_latency_s", "peak_memory_bytes"}


def test_members_satisfy_the_constraints() -> None:
    outcomes = [measured(256, 2.0), measured(64, 1.0)]
    found = members(outcomes, OBJECTIVES, [Constraint(name="decode_latency_s", maximum=1.5)])
    assert [member.architecture for member in found] == [arch(64)]
    assert members(outcomes, OBJECTIVES, [Constraint(name="prefill_latency_s", maximum=1.0)]) == []


def test_what_was_not_measured_is_no_member() -> None:
    lacking = replace(measured(256, 1.0), objectives={"decoder_params": 5, "decode_latency_s": None})
    assert members([lacking], OBJECTIVES) == []
    assert members([], OBJECTIVES) == []


def test_processes_are_combined_by_the_median_of_their_medians() -> None:
    outcomes = [measured(64, 1.0, n=20), measured(64, 1.2, purpose="confirm"), measured(64, 1.3, purpose="confirm")]
    (member,) = members(outcomes, OBJECTIVES)
    value = latency(member)
    assert member.n_processes == 3
    assert value.median == latency(members([outcomes[1]], OBJECTIVES)[0]).median
    assert value.n == 36
    assert value.ci95 is not None
    assert value.ci95[0] <= value.median <= value.ci95[1]
    assert value.pi95 is not None
    assert value.pi95[0] < 1.0 < 1.3 < value.pi95[1]
    memory = member.objectives["peak_memory_bytes"]
    assert isinstance(memory, Measurement)
    assert (memory.median, memory.n, memory.ci95) == (1200.0, 3, None)


def test_two_processes_have_no_pi95_and_one_keeps_its_own_ci95() -> None:
    single = measured(64, 1.0)
    (member,) = members([single], OBJECTIVES)
    assert latency(member) == single.objectives["decode_latency_s"]
    (member,) = members([single, measured(64, 1.1, purpose="confirm")], OBJECTIVES)
    assert latency(member).pi95 is None


def test_without_samples_several_processes_have_no_ci95() -> None:
    outcomes = [replace(measured(64, 1.0 + index / 10), samples={}) for index in range(3)]
    (member,) = members(outcomes, OBJECTIVES)
    assert latency(member).ci95 is None
    assert latency(member).pi95 is not None


def test_a_confirmation_can_take_a_member_off_the_frontier() -> None:
    lucky = [measured(64, 1.0), measured(64, 3.0, purpose="confirm"), measured(64, 3.0, purpose="confirm")]
    assert [member.architecture for member in members([*lucky, measured(128, 2.0)], OBJECTIVES)] == [arch(128)]


def test_member_json_is_the_contract() -> None:
    flagged = replace(measured(64, 1.0), flags=("noisy",), predicted={"decode_latency_s": 0.9})
    (member,) = members([flagged, replace(measured(64, 1.0), flags=("contended",))], OBJECTIVES)
    data = member.to_json()
    assert list(data) == [
        "arch_id",
        "architecture",
        "objectives",
        "predicted",
        "flags",
        "probably_dominated",
        "n_processes",
    ]
    assert data["flags"] == ["contended", "noisy"]
    assert data["predicted"] == {"decode_latency_s": 0.9}
    assert data["objectives"]["decoder_params"] == pytest.approx(arch(64).decoder_params)

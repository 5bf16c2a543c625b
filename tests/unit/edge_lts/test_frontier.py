from dataclasses import replace

import pytest

from edge_lts.arch import Architecture
from edge_lts.frontier import Member, members
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.records import Evaluation, Measurement, Outcome, Purpose, value_to_json
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


def certain(found: list[Member]) -> list[Architecture]:
    return [member.architecture for member in found if not member.probably_dominated]


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
    assert certain(found) == [arch(256)]
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
    found = members([*lucky, measured(128, 2.0)], OBJECTIVES)
    assert certain(found) == [arch(128)]
    assert found[1].probably_dominated  # processes that differ so much leave room for chance


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
        "process_medians",
        "one_thread",
        "framework",
    ]
    assert set(data["process_medians"]) == {"decode_latency_s", "peak_memory_bytes"}
    assert data["process_medians"]["peak_memory_bytes"] == [1000.0, 1000.0]
    assert (data["one_thread"], data["framework"]) == ({}, {})
    assert data["flags"] == ["contended", "noisy"]
    assert data["predicted"] == {"decode_latency_s": 0.9}
    assert data["objectives"]["decoder_params"] == pytest.approx(arch(64).decoder_params)


def test_what_is_slower_beyond_doubt_is_dropped_and_what_may_be_chance_is_marked() -> None:
    outcomes = [measured(256, 1.0), measured(128, 1.005), measured(64, 1.2)]
    found = members(outcomes, OBJECTIVES)
    assert [(member.architecture, member.probably_dominated) for member in found] == [
        (arch(256), False),
        (arch(128), True),
    ]


def test_the_spread_between_processes_of_all_decides_what_is_beyond_doubt() -> None:
    """3 % between single processes is certain on a board whose processes repeat, and chance on one whose do not."""
    rivals = [measured(256, 1.0), measured(128, 1.03)]
    for step, is_certain in ((0.0005, True), (0.08, False)):
        others = [measured(32, 3.0 * (1 + step * index), purpose="confirm") for index in range(9)]
        found = members([*rivals, *others], OBJECTIVES)
        assert (arch(128) not in [member.architecture for member in found]) is is_certain
        assert certain(found) == [arch(256)]


def test_more_processes_settle_a_close_call() -> None:
    few = [measured(256, 1.0), measured(128, 1.02)]
    assert len(members(few, OBJECTIVES)) == 2
    assert certain(members(few * 8, OBJECTIVES)) == [arch(256)]
    assert len(members(few * 8, OBJECTIVES)) == 1


def test_being_worse_in_what_is_known_exactly_is_certain_and_memory_is_steadier_than_time() -> None:
    by_memory = resolve_objectives(["decoder_params", "peak_memory_bytes"])
    outcomes = [measured(256, 1.0), measured(128, 1.01)]
    assert len(members(outcomes, by_memory)) == 1
    assert len(members(outcomes, OBJECTIVES)) == 2
    assert certain(members([measured(256, 1.01), measured(128, 1.0)], OBJECTIVES)) == [arch(256), arch(128)]


def test_those_marked_are_at_most_half_as_many_as_the_members() -> None:
    ladder = [measured(512, 1.0), *(measured(256 - 8 * index, 1.0 + 0.0002 * (index + 1)) for index in range(12))]
    found = members(ladder, OBJECTIVES)
    assert len(certain(found)) == 1
    assert [member.architecture for member in found if member.probably_dominated] == [arch(256)]


def test_framework_is_a_median_over_the_processes_that_have_it() -> None:
    def process(seconds: float, **conditions: object) -> Evaluation:
        return replace(measured(64, 1.0), conditions={"threads": 2, **conditions}, spent_s=seconds)

    outcomes = [process(1.0)]
    for number in (2.0, 3.0, 7.0):
        facts = {"width8_decode_s": number / 10, "dispatch_share": None, "bandwidth_floor_s": float("nan")}
        outcomes.append(process(number, framework=facts))
    (member,) = members(outcomes, OBJECTIVES)
    assert member.framework == {"width8_decode_s": pytest.approx(0.3)}


def test_a_process_on_one_thread_is_shown_and_part_of_nothing_else() -> None:
    usual = [measured(64, 1.0), measured(32, 2.0)]
    alone = replace(measured(64, 9.0), purpose="one_thread")
    plain, shown = members(usual, OBJECTIVES), members([*usual, alone], OBJECTIVES)
    assert shown[0].to_json()["one_thread"] == {"decode_latency_s": value_to_json(alone.objectives["decode_latency_s"])}
    assert [replace(member, one_thread={}) for member in shown] == plain


def test_a_taint_needs_half_of_the_processes_and_a_note_only_one() -> None:
    def processes(*flags: tuple[str, ...]) -> list[Evaluation]:
        return [replace(measured(64, 1.0), flags=one) for one in flags]

    (member,) = members(processes(("noisy", "framework_bound"), ()), OBJECTIVES)
    assert member.flags == ("framework_bound", "noisy")
    (member,) = members(processes(("noisy", "framework_bound"), (), ()), OBJECTIVES)
    assert member.flags == ("framework_bound",)

"""A report says at a glance how undisturbed a run was, and `--strict` turns away what was not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts.records import NOTES, TAINTS, Evaluation, outcome_from_json
from edge_lts_host import store, waiting
from edge_lts_host.cli import main
from edge_lts_host.report import render
from edge_lts_host.report.facts import health_line
from edge_lts_host.report.quality import REMEDIES, quality, strict_error
from tests.unit.host.sample_runs import architecture, change_evaluations, evaluation, observed, write_run

RUN = "20261122-101530-rpi5-ab12"
OTHER = "20261123-101530-rpi5-cd34"


def one(**changes: Any) -> Evaluation:
    data = evaluation(0, architecture(4, 64, 256)).to_json()
    data["conditions"].update(observed(**changes))
    outcome = outcome_from_json(data)
    assert isinstance(outcome, Evaluation)
    return outcome


def line(*evaluations: Evaluation, entries: Any = (), n_members: int | None = None) -> str:
    found = quality(evaluations, entries)
    assert found is not None
    return health_line(found, n_members)


def observe(run_id: str = RUN, flags: tuple[str, ...] = (), **changes: Any) -> Path:
    """A run that a board judged; `flags` on the two confirmations of one member."""
    folder = write_run(store.runs_root(), run_id)

    def change(record: dict[str, Any]) -> None:
        record["conditions"].update(observed(**changes))
        record["flags"] = list(flags) if record["purpose"] == "confirm" else []

    change_evaluations(folder, change)
    return folder


def report(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    assert main(["report", *words]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_every_taint_and_note_has_words_and_every_taint_a_remedy() -> None:
    assert set(TAINTS) | set(NOTES) == set(render.FLAG_WORDS)
    assert set(TAINTS) == set(REMEDIES)
    assert render.flag_words(["throttled", "from_the_future"]) == "throttled, from the future"


def test_the_health_of_a_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    observe(flags=("contended", "framework_bound"))
    words = (
        "90% of 140 samples undisturbed (14 shared its cores), 14 taken again, 1 of 4 members flagged; 71 C at most, "
        "clock 1.5 GHz throughout, no throttling, governor ondemand, pressure 0.2%, other processes 1.0%"
    )
    text, _ = report(capsys)
    assert f"\n  health    {words}\n" in text
    assert text.count("governor") == 1  # not the one from before the run besides
    assert f"\n- health: {words}\n" in report(capsys, "-o", "md")[0]


def test_json_has_the_numbers_behind_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    observe(flags=("contended", "framework_bound"))
    [entry] = json.loads(report(capsys, "-o", "json")[0])["runs"]
    assert entry["quality"] == {
        "n_processes": 7,
        "n_samples": 140,
        "n_disturbed": 14,
        "n_retried": 14,
        "taints": {"contended": 14},
        "n_flagged_members": 1,
        "temperature_c_max": 71.4,
        "frequency_hz": {"min": 1.5e9, "max": 1.5e9},
        "throttle": {"now": 0, "since": 0, "before": 0, "source": "vcio"},
        "governors": ["ondemand"],
        "steal_share": 0.0,
        "others_share": pytest.approx(0.01),
        "cpu_pressure_share": pytest.approx(0.002),
        "memory_pressure_share": 0.0,
        "swap_ins": 0,
        "monitoring_s": pytest.approx(0.07),
    }


def test_runs_of_before_the_gate_have_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(store.runs_root(), RUN)
    assert "health" not in report(capsys)[0]
    assert json.loads(report(capsys, "-o", "json")[0])["runs"][0]["quality"] is None


def test_what_could_not_be_read_is_said_and_is_no_flag() -> None:
    nothing = {
        "temperature_c": {"before": None, "max": None, "after": None},
        "frequency_hz": {"before": None, "min": None, "after": None},
        "throttle": {"now": None, "before": None, "after": None, "source": None},
        "governor": None,
    }
    blind = one(health=nothing, quality={"cpu_pressure_share": None, "others_share": None, "steal_share": 0.034})
    assert line(blind) == (
        "90% of 20 samples undisturbed (2 shared its cores), 2 taken again; steal 3.4%; "
        "not readable: temperature, clock, throttling, pressure"
    )
    found = quality([blind])
    assert found is not None
    assert (found["temperature_c_max"], found["frequency_hz"], found["throttle"]) == (None, None, None)


def test_only_sensors_or_only_the_gate_are_enough_for_a_line() -> None:
    gate, sensors = one(), one()
    del gate.conditions["health"], sensors.conditions["quality"]
    assert line(gate).startswith("90% of 20 samples")
    assert line(sensors) == (
        "71 C at most, clock 1.5 GHz throughout, no throttling, governor ondemand; not readable: pressure"
    )
    assert quality([sensors]) == {**(quality([sensors]) or {}), "n_samples": None, "n_disturbed": None}
    assert line(gate, sensors).startswith("90% of 20 samples")


def test_undisturbed_samples_read_so_and_few_disturbed_ones_do_not() -> None:
    calm = one(quality={"n_retried": 0, "taints": {}, "tainted_samples": {}})
    assert line(calm, calm).startswith("40 samples, all undisturbed; 71 C")
    assert line(*[calm] * 99, one()).startswith("99.9% of 2,000 samples undisturbed (2 shared its cores), 2 taken")
    flagged = [{"flags": ["framework_bound"]}, {"flags": []}]
    assert "none of 2 members flagged" in line(calm, entries=flagged, n_members=2)


def test_a_clock_that_fell_and_a_firmware_that_spoke_up() -> None:
    hot = one(
        health={
            "frequency_hz": {"before": 600e6, "min": 1.2e9, "after": 1.8e9},
            "throttle": {"now": 4, "before": 1, "after": 0x9, "source": "sysfs"},
        }
    )
    assert "clock 1.2 to 1.8 GHz, throttled, soft temperature limit reported, governor" in line(hot)
    before = one(health={"throttle": {"now": 0, "before": 1, "after": 1, "source": "sysfs"}})
    assert "no throttling (before this run: undervoltage)" in line(before)
    between = one(health={"throttle": {"now": 0, "before": 2, "after": 2, "source": "sysfs"}})
    assert "clock capped reported" in line(one(), between)  # set between two processes
    assert "throttled reported" in line(one(health={"throttle": {"now": 4, "source": None}}))  # cooling, not on a Pi


def test_a_governor_that_changed_is_named_with_the_other() -> None:
    assert "governor ondemand, performance" in line(one(), one(health={"governor": "performance"}))


@pytest.mark.parametrize(
    "conditions",
    [
        {"quality": 7, "health": [1]},
        {"quality": {"taints": ["x"], "tainted_samples": {"decode_latency_s": 3}, "n_retried": "many"}},
        {"quality": {"taints": {"x": True}, "tainted_samples": {"decode_latency_s": [-1, 10, 2.5, "a", True]}}},
        {"quality": {"steal_share": float("nan"), "n_retried": float("inf"), "swap_ins": True}},
        {"quality": {"steal_share": 10**400, "n_retried": -(10**400)}, "health": {"temperature_c": {"max": 10**400}}},
        {"health": {"temperature_c": 5, "frequency_hz": {"min": "fast"}, "throttle": "no", "governor": 4}},
        {"health": {"throttle": {"now": -1, "before": 2.5, "after": "x", "source": "s"}, "governor": "\x1b[2J"}},
    ],
)
def test_a_strange_record_neither_breaks_nor_counts(
    capsys: pytest.CaptureFixture[str], conditions: dict[str, Any]
) -> None:
    folder = write_run(store.runs_root(), RUN)
    change_evaluations(folder, lambda record: record["conditions"].update(conditions))
    for output in ("table", "md", "csv", "json", "jsonl"):
        text, _ = report(capsys, "-o", output)
        assert all(character == "\n" or character.isprintable() for character in text)
    found = json.loads(text)["quality"]
    assert found is None or not found["n_disturbed"]
    assert found is None or not found["taints"]


def test_strict_prints_the_report_and_ends_with_6(capsys: pytest.CaptureFixture[str]) -> None:
    observe(flags=("throttled", "contended"))
    text, error = report(capsys, "--strict", status=6)
    assert text == report(capsys)[0]
    assert error == (
        f"edge-lts: {RUN}: 1 of 4 frontier members were disturbed while they were measured (1 shared its cores, "
        "1 throttled): 7725f1c2b0be; next: cool the board (heatsink, fan), stop what else runs there; edge-lts doctor "
        "says what disturbs a board; edge-lts resume measures members again while budget is left\n"
    )
    assert json.loads(report(capsys, "--strict", "-o", "json", status=6)[0])["runs"]


def test_strict_takes_no_offence_at_notes_conditions_and_dominated_candidates(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = observe(flags=("framework_bound", "emulated_precision"))

    def change(record: dict[str, Any]) -> None:
        if record["candidate_id"] == 4:  # dominated
            record["flags"] = ["frozen"]

    change_evaluations(folder, change)
    text, error = report(capsys, "--strict")
    assert "precision emulated by this CPU, bound by the framework" in text
    assert error == ""
    (folder / "ledger.jsonl").unlink()
    assert report(capsys, "--strict") == report(capsys)  # no frontier, nothing to reject


def test_strict_does_not_go_with_the_cost_model(capsys: pytest.CaptureFixture[str]) -> None:
    observe()
    assert "leave out one of them" in report(capsys, "--strict", "--cost-model", status=2)[1]


def test_a_long_list_of_flagged_members_is_cut_and_each_run_named() -> None:
    entries = [{"arch_id": f"{index:012x}", "flags": ["stolen"]} for index in range(7)]
    runs = [{"run_id": RUN, "frontier": entries}, {"run_id": OTHER, "frontier": [{"arch_id": "a", "flags": ["noisy"]}]}]
    error = strict_error({"runs": runs})
    assert error is not None
    assert error.exit_code == 6
    assert "000000000004 and 2 more; 20261123-101530-rpi5-cd34: 1 of 1 frontier members" in str(error)
    assert "next: stop what else runs there, measure on a machine that is not shared; " in str(error)


class Job:
    """As much of follow.Job as showing a frontier needs."""

    is_local = True

    def __init__(self, folder: store.RunFolder) -> None:
        self.folder, self.run_id = folder, folder.run_id


@pytest.mark.parametrize(
    ("words", "state", "expected"),
    [
        (["--strict"], "done", 6),
        ([], "done", 0),
        (["--strict"], "failed", 1),
    ],
)
def test_waiting_strictly_ends_with_6_unless_something_worse_happened(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    state: str,
    expected: int,
) -> None:
    class Follower:
        def __init__(self, job: Job, *_: object, **__: object) -> None: ...

        def until_over(self, timeout_s: float | None) -> dict[str, Any]:
            return {"state": state}

    monkeypatch.setattr("edge_lts_host.follow.Follower", Follower)
    monkeypatch.setattr("edge_lts_host.commands.common.ssh_options", lambda args: None)
    folder = observe(flags=("throttled",))
    parser = argparse.ArgumentParser()
    waiting.add_arguments(parser)
    args = parser.parse_args(words)
    args.output = "table"
    show: Callable[..., int] = waiting.wait
    assert show(args, [Job(store.RunFolder(folder))]) == expected
    captured = capsys.readouterr()
    assert "7725f1c2b0be" in captured.out
    assert ("1 of 4 frontier members were disturbed" in captured.err) == bool(words)


def test_strict_without_waiting_says_when_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    waiting.add_arguments(parser)
    start: Callable[..., int] = waiting.after_start
    args = parser.parse_args(["--strict", "--detach"])
    assert start(args, [Job(store.RunFolder(Path(RUN)))]) == 0
    assert f"edge-lts report --strict {RUN}" in capsys.readouterr().err

"""The verbs around runs: what is resolved before a board is asked, what following says, what Ctrl-C does."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts.errors import SpecError
from edge_lts.records import RunSpec
from edge_lts.search.guided import GuidedSettings
from edge_lts_host import follow, launch, waiting
from edge_lts_host.agent_protocol import PROTOCOL
from edge_lts_host.cli import build_parser, main
from edge_lts_host.counts import parse_count
from edge_lts_host.errors import AuthenticationError, ConnectError, UsageError
from edge_lts_host.hosts import LOCAL_HOST, HostEntry, remember
from edge_lts_host.session import Place
from edge_lts_host.store import RunFolder, runs_root
from edge_lts_host.targets import load_targets
from edge_lts_host.transport.base import Transport
from edge_lts_host.transport.fake import FakeCall, FakeTransport, Pause
from edge_lts_host.transport.ssh_config import SshOptions

PLACE = Place(name="pi", root="/r", python="/py", site=None, agent="/r/agents/a.pyz")
ENTRY = HostEntry(
    name="pi",
    destination="pi@board",
    target="rpi5",
    root="/r",
    python="/py",
    agent="/r/agents/a.pyz",
    deployed_at="2026-11-22T00:00:00Z",
    device={"memory_available_bytes": 3_000_000_000},
)
SPEC = RunSpec(run_id="run-1", space={"name": "tiny"}, budget_s=100.0, target="rpi5")


def arguments(*words: str) -> argparse.Namespace:
    return build_parser(("run",)).parse_args(["run", "--budget", "1h", *words])


def spec(*words: str, entry: HostEntry = ENTRY) -> RunSpec:
    targets = load_targets()
    target = launch.target_of(entry, targets)
    return launch.make_spec(arguments("--space", "tiny", *words), entry, target, "run-1", lambda text: None)


# What is resolved before a board is asked


def test_the_target_gives_what_its_class_implies() -> None:
    target = load_targets()["rpi5"]
    found = spec()
    assert found.target == "rpi5"
    assert found.memory_headroom == target.memory_headroom
    assert found.protocol.threads == target.threads
    assert found.strategy == "guided"
    assert spec("--threads", "2").protocol.threads == 2


def test_the_papers_protocol_keeps_its_one_thread() -> None:
    found = spec("--protocol", "lts").protocol
    assert (found.logits, found.threads) == ("all", 1)


def test_emulated_boards_are_marked_and_get_more_time() -> None:
    entry = HostEntry(name="e", destination="e", target="emulated-arm64", deployed_at="x")
    found = spec(entry=entry)
    assert found.is_emulated
    assert found.candidate_timeout_s > spec().candidate_timeout_s


def test_constraints_come_from_flags() -> None:
    found = spec(
        *("--max-peak-memory", "512MiB", "--max-decode-latency", "50ms", "--max-prefill-latency", "2s"),
        *("--min-decoder-params", "6M", "--max-decoder-params", "0.1G"),
    )
    bounds = {constraint.name: (constraint.minimum, constraint.maximum) for constraint in found.constraints}
    assert bounds == {
        "peak_memory_bytes": (None, 512 << 20),
        "decode_latency_s": (None, 0.05),
        "prefill_latency_s": (None, 2.0),
        "decoder_params": (6_000_000, 100_000_000),
    }
    with pytest.raises(SpecError, match="decoder_params exclude everything"):
        spec("--min-decoder-params", "7M", "--max-decoder-params", "6M")


def test_bad_flags_are_usage_errors() -> None:
    for text in ("6X", "-1", "", "six", "6 M"):
        with pytest.raises(UsageError):
            parse_count(text, "--min-decoder-params")
    with pytest.raises(UsageError, match="bred"):
        arguments("--strategy", "bred")
    with pytest.raises(SpecError, match="unknown objective 'speed'"):
        spec("--objectives", "decoder_params,speed")
    with pytest.raises(SpecError, match="prompt_tokens"):
        spec("--prompt-tokens", "0")


def spoken(*words: str, entry: HostEntry = ENTRY) -> tuple[RunSpec, list[str]]:
    said: list[str] = []
    target = launch.target_of(entry, load_targets())
    return launch.make_spec(arguments("--space", "tiny", *words), entry, target, "run-1", said.append), said


def test_a_command_is_a_further_objective_and_makes_the_search_evolution() -> None:
    found, said = spoken("--objective-command", "score=max:./score --model a=b:c", "--objective-command", "n=min:wc -c")
    assert [one.to_json() for one in found.commands] == [
        {"name": "score", "direction": "max", "command": "./score --model a=b:c"},
        {"name": "n", "direction": "min", "command": "wc -c"},
    ]
    assert found.objectives == ("decoder_params", "decode_latency_s", "peak_memory_bytes", "score", "n")
    assert found.strategy == "evolution"
    assert found.settings == {}
    assert said == ["pi: --strategy evolution: guided cannot predict score, whose values come from a command"]
    found, said = spoken(
        "--objective-command", "n=min:wc -c", "--objectives", "n,decoder_params", "--strategy", "random"
    )
    assert (found.objectives, found.strategy, said) == (("n", "decoder_params"), "random", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective-command", "score=./score"], "must be NAME=min:COMMAND"),
        (["--objective-command", "score=up:./score"], "must be NAME=min:COMMAND"),
        (["--objective-command", "score"], "must be NAME=min:COMMAND"),
        (["--objective-command", "Score=min:x"], "cannot name an objective"),
        (["--objective-command", "score=min: "], "a line for /bin/sh"),
        (["--objective-command", "decode_latency_s=min:x"], "is a built-in objective"),
        (["--objective-command", "state=min:x"], "another column state"),
        (["--objective-command", "a=min:x", "--objective-command", "a=max:y"], "two commands define one objective"),
        ([f"--objective-command={name}=min:x" for name in "abc"], "two to five objectives, not 6"),
        (["--objective-command", "a=min:x", "--strategy", "guided"], "--strategy guided cannot predict a, "),
        (["--widen", "--strategy", "evolution"], "--widen is for --strategy guided, not for evolution"),
        (["--widen", "--objective-command", "a=min:x"], "--widen is for --strategy guided, not for evolution"),
    ],
)
def test_a_strategy_or_a_command_that_makes_no_sense_is_refused_before_a_board_is_asked(
    words: list[str], message: str
) -> None:
    with pytest.raises((SpecError, UsageError)) as caught:
        spoken(*words)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_widening_is_a_setting_of_guided_search() -> None:
    assert spoken("--widen")[0].settings == {"widen": True}
    assert spoken()[0].settings == {}


@pytest.mark.parametrize(
    ("n", "settings", "words"),
    [
        (11, {"expected_candidates": 11}, "use --strategy evolution, a smaller --space or more --budget"),
        (12, {"expected_candidates": 12}, "its design shrinks to 10"),
        (32, {"expected_candidates": 32}, "its design shrinks to 16"),
        (33, {"expected_candidates": 33}, None),
        (65, {"expected_candidates": 65}, None),
        (66, {}, None),
    ],
)
def test_guided_search_is_told_when_few_candidates_are_expected(
    n: int, settings: dict[str, Any], words: str | None
) -> None:
    found, said = spoken("--max-candidates", str(n))
    assert found.settings == settings
    expected = f"pi: about {n} candidates are expected, but guided search learns a board from 33: {words}"
    assert said == ([] if words is None else [expected])
    assert GuidedSettings.from_json(found.settings).design_size == min(24, max(10, n // 2))
    for strategy in ("evolution", "random"):
        found, said = spoken("--max-candidates", str(n), "--strategy", strategy)
        assert (found.settings, said) == ({}, [])


def test_how_many_are_expected_follows_the_budget_and_the_board() -> None:
    def n_expected(*words: str, entry: HostEntry = ENTRY) -> int:
        found: int = spoken(*words, entry=entry)[0].settings.get("expected_candidates", 66)
        return found

    assert n_expected() == 66
    assert 1 <= n_expected("--budget", "15s") < n_expected("--budget", "30s") < 66
    emulated = HostEntry(name="e", destination="e", target="emulated-arm64", deployed_at="x")
    assert n_expected("--budget", "4m", entry=emulated) < n_expected("--budget", "4m")
    tiny_memory = replace(ENTRY, device={"memory_available_bytes": 1000})  # the board will say what does not fit
    assert n_expected("--budget", "15s", entry=tiny_memory) == 66


def test_without_a_space_the_choice_is_said() -> None:
    said: list[str] = []
    target = load_targets()["rpi5"]
    found = launch.make_spec(arguments(), ENTRY, target, "run-1", said.append)
    assert found.space["name"] in said[0]
    assert "--space" in said[0]


def test_a_dry_run_prints_the_resolved_spec_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    remember(ENTRY)
    assert main(["run", "--target", "arm64", "--budget", "1h30m", "--space", "tiny", "--dry-run"]) == 0
    found = RunSpec.from_json(json.loads(capsys.readouterr().out))
    assert (found.budget_s, found.target) == (5400.0, "rpi5")
    assert not runs_root().exists()


def test_one_run_id_cannot_name_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        remember(HostEntry(name=name, destination=name, target="rpi5", deployed_at="x"))
    assert main(["run", "--target", "arm64", "--budget", "1h", "--run-id", "mine"]) == 2
    assert "--run-id names one run, but 2 boards" in capsys.readouterr().err


def test_verbs_without_any_run_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "watch", "logs", "stop", "resume", "pull"):
        assert main([verb]) == 2
        assert "there are no runs" in capsys.readouterr().err
    assert main(["status", "--all"]) == 0


def test_clean_without_a_terminal_wants_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(ENTRY)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert main(["clean", "--host", "pi"]) == 2
    assert "--yes" in capsys.readouterr().err


def test_deploy_flags_that_contradict_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = ["deploy", "--host", "pi@board"]
    for words, message in (
        (["--online", "--wheelhouse", str(tmp_path)], "exclude each other"),
        (["--torch-index", "file:///x"], "needs --online"),
        (["--wheelhouse", str(tmp_path / "none")], "not a directory"),
        (["--root", "relative"], "must be absolute"),
        (["--target", "nonsense"], "nonsense"),
    ):
        assert main([*base, *words]) == 2
        assert message in capsys.readouterr().err


# Following


class RunningBoard:
    """A scripted board whose run goes through `states`; the link can break between them."""

    def __init__(self, *states: dict[str, Any] | Exception) -> None:
        self.states = list(states)
        self.now = 0.0
        self.n_opened = 0

    def open(self, entry: HostEntry, options: SshOptions) -> Transport:
        self.n_opened += 1
        if isinstance(self.states[0], Exception):
            raise self.states.pop(0)  # type: ignore[misc]
        transport = FakeTransport("pi@board")
        transport.on(["/py", "-I", PLACE.agent, "status"], self._status)
        transport.reply(["/py", "-I", PLACE.agent, "pull"], stdout=self._lines({"event": "pulled"}))
        self.transport = transport
        return transport

    def _lines(self, event: dict[str, Any]) -> bytes:
        hello = {"protocol": PROTOCOL, "event": "hello", "verb": "x"}
        return "".join(json.dumps(each) + "\n" for each in (hello, event)).encode()

    def _status(self, call: FakeCall) -> Generator[bytes | Pause, None, int]:
        state = self.states.pop(0)
        if isinstance(state, Exception):
            self.transport.cut()
            yield b""
            return 0
        yield self._lines({"event": "status", "run_id": "run-1", "budget_s": 100.0, **state})
        return 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def job() -> follow.Job:
    folder = RunFolder(runs_root() / "run-1")
    folder.create()
    folder.write_spec(SPEC.to_json())
    folder.write_host_meta(
        {"host": "pi", "destination": "pi@board", "target": "rpi5", "run_dir": "x", **PLACE.to_json()}
    )
    return follow.Job(folder=folder, entry=ENTRY, place=PLACE)


def following(job: follow.Job, board: RunningBoard) -> tuple[follow.Follower, list[str]]:
    said: list[str] = []
    follower = follow.Follower(
        job,
        SshOptions(),
        said.append,
        clock=lambda: board.now,
        sleep=board.sleep,
        open=board.open,
        uniform=lambda: 1.0,
    )
    return follower, said


def test_following_says_each_change_once_and_ends_with_the_run(job: follow.Job) -> None:
    running = {"state": "running", "n_measured": 1, "n_frontier": 1, "spent_s": 10}
    board = RunningBoard({"state": "starting"}, running, running, {**running, "n_measured": 2}, {"state": "done"})
    follower, said = following(job, board)
    status = follower.until_over()
    assert status is not None
    assert status["state"] == "done"
    assert len(said) == 3
    assert "10% of 100 s running: 1 measured, frontier 1" in said[1]


def test_a_broken_link_is_tried_again_and_is_no_failed_run(job: follow.Job) -> None:
    lost = ConnectError("pi@board", "no answer")
    board = RunningBoard({"state": "running"}, lost, lost, lost, {"state": "done"})
    follower, said = following(job, board)
    status = follower.until_over()
    assert status is not None
    assert status["state"] == "done"
    told = [line for line in said if "the run goes on on the board" in line]
    assert [line.split("again in ")[1] for line in told] == ["4 s", "8 s", "16 s"]


def test_a_run_that_goes_on_after_a_reboot_is_followed_on(job: follow.Job) -> None:
    rebooted = {"state": "interrupted", "goes_on_by_itself": True}
    board = RunningBoard({"state": "running"}, rebooted, rebooted, {"state": "running"}, {"state": "done"})
    follower, said = following(job, board)
    assert (follower.until_over() or {})["state"] == "done"
    assert len([line for line in said if "about to go on with the run" in line]) == 1


def test_a_run_that_does_not_go_on_after_all_is_interrupted(job: follow.Job) -> None:
    board = RunningBoard(*[{"state": "interrupted", "goes_on_by_itself": True}] * 1000)
    follower, _ = following(job, board)
    assert (follower.until_over() or {})["state"] == "interrupted"
    assert follow.BOOT_PATIENCE_S <= board.now < follow.BOOT_PATIENCE_S + 10
    follower, _ = following(job, RunningBoard(*[{"state": "interrupted", "goes_on_by_itself": True}] * 100))
    assert follower.until_over(timeout_s=20) is None


def test_a_refused_login_is_not_tried_for_ever(job: follow.Job) -> None:
    follower, _ = following(job, RunningBoard(AuthenticationError("pi@board", "no key")))
    with pytest.raises(AuthenticationError):
        follower.until_over()


def test_a_timeout_ends_the_looking_only(job: follow.Job, capsys: pytest.CaptureFixture[str]) -> None:
    board = RunningBoard(*[{"state": "running"}] * 100)
    follower, _ = following(job, board)
    assert follower.until_over(timeout_s=5) is None
    assert board.now <= 5
    assert waiting.conclude(job, None) == 124
    assert "the run goes on on the board" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("done", 0, "done"),
        ("stopped", 0, "stopped"),
        ("failed", 1, "edge-lts logs"),
        ("interrupted", 1, "edge-lts resume run-1"),
    ],
)
def test_how_a_run_ended_is_said_and_has_a_code(
    job: follow.Job, capsys: pytest.CaptureFixture[str], state: str, code: int, words: str
) -> None:
    assert waiting.conclude(job, {"state": state, "reasons": ["budget spent"]}) == code
    assert words in capsys.readouterr().err


def test_ctrl_c_on_a_board_only_ends_the_waiting(job: follow.Job, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(output="table")
    assert waiting.interrupt([job], {}, args) == 130
    captured = capsys.readouterr()
    assert "goes on on pi" in captured.err
    assert captured.out == ""


def test_a_second_ctrl_c_kills_a_local_run(
    job: follow.Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = follow.Job(folder=job.folder, entry=LOCAL_HOST, place=PLACE)
    killed: list[str] = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_lts_host.session.Session.stop", interrupted)
    monkeypatch.setattr(waiting, "kill_local", lambda each: killed.append(each.run_id))
    waiting.end_local(local)
    assert killed == ["run-1"]
    assert "was killed" in capsys.readouterr().err


def test_status_asks_once_per_host_and_an_unreachable_one_keeps_its_last_word(
    job: follow.Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job.folder.append_pulled("status.json", 0, json.dumps({"state": "running", "n_measured": 5}).encode())

    def refuse(entry: HostEntry, options: SshOptions) -> Transport:
        raise ConnectError("pi@board", "no answer", "the run goes on on the board")

    monkeypatch.setattr(follow, "open_transport", refuse)
    assert main(["status", "-o", "json"]) == 4
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)["runs"]
    assert (row["state"], row["n_measured"], row["is_reachable"]) == ("running", 5, False)
    assert "goes on on the board" in captured.err


# Logs and lines


def test_log_lines_are_readable_and_harmless(job: follow.Job) -> None:
    event = {"event": "measured", "time": "2026-11-22T00:00:00Z", "spent_s": 12.3, "flags": ["x"], "who": "\x1b[2J"}
    job.folder.append_pulled("events.jsonl", 0, json.dumps(event).encode() + b"\ntorn")
    job.folder.append_pulled("log.txt", 0, b"\x1b]0;evil\x07\n")
    reader = follow.LogReader(job.folder)
    lines = list(reader.new_lines())
    assert lines == [
        '2026-11-22T00:00:00Z +12s measured flags=["x"] who=\\x1b[2J',
        "log: \\x1b]0;evil\\x07",
    ]
    assert list(reader.new_lines()) == []
    job.folder.append_pulled("events.jsonl", len(json.dumps(event)) + 1, b"torn\n")
    assert list(reader.new_lines()) == ["torn"]


def test_the_bar_is_as_full_as_the_budget() -> None:
    line = follow.progress_line({"state": "running", "spent_s": 50, "budget_s": 100, "n_measured": 3, "n_failed": 1})
    assert line.startswith("[############............]  50% of 100 s running: 3 measured, 1 failed")
    assert follow.progress_line({}).endswith("unknown: 0 measured, frontier 0")


def test_a_status_with_an_endless_budget_is_shown(job: follow.Job) -> None:
    (job.folder / "status.json").write_text('{"state": "running", "spent_s": 1e999, "budget_s": 1e999}')
    assert "unknown" in follow.progress_line(job.folder.status())


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk\n",
        b"[1]\n",
        b'{"kind": "failure"}\n',
        b'{"kind": "failure", "error": [1]}\n',
        b'{"objectives": {"decoder_params": "x"}}\n',
        b'{"objectives": [1]}\n',
    ],
)
def test_the_latest_measurement_of_a_strange_ledger_is_nothing(job: follow.Job, junk: bytes) -> None:
    (job.folder / "ledger.jsonl").write_bytes(junk)
    assert follow.latest_measurement(job.folder) == ""

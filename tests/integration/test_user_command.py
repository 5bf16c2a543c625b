"""A user's own command as an objective: what it gets, what its number becomes, and that nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts import device
from edge_lts.arch import Architecture
from edge_lts.errors import EvaluationError, Interrupted
from edge_lts.frontier import members
from edge_lts.objectives import CommandObjective
from edge_lts.records import Evaluation, Failure, Measurement, Outcome, Protocol, RunSpec, outcome_from_json
from edge_lts.user_command import CommandMeasurer
from tests.fake_agent import Board, Clock, FakeMeasurer, write_spec
from tests.support import require

REPOSITORY = Path(__file__).parents[2]
ARCH = Architecture.from_json({"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": 64}]})
OBJECTIVES = ("decoder_params", "score")
# Counts the layers and adds the width: something that a test can work out by itself.
COUNT = 'python3 -c \'import json, sys; a = json.load(sys.stdin); print(len(a["layers"]) + a["d_model"] / 1000)\''


def command(line: str, direction: Any = "min") -> CommandObjective:
    return CommandObjective(name="score", direction=direction, command=line)


def expected(arch: Architecture) -> float:
    return len(arch.layers) + arch.d_model / 1000


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; empty again after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def measurer(line: str, *, timeout_s: float = 60.0) -> CommandMeasurer:
    return CommandMeasurer(FakeMeasurer(Clock()), [command(line)], run_dir=Path("/the/run"), timeout_s=timeout_s)


def measure(line: str, *, timeout_s: float = 60.0) -> Outcome:
    return measurer(line, timeout_s=timeout_s).measure(3, ARCH)


def value(line: str) -> float:
    outcome = measure(line)
    assert isinstance(outcome, Evaluation), outcome
    found = outcome.objectives["score"]
    assert isinstance(found, Measurement)
    assert (found.n, found.ci95) == (1, None)
    assert outcome.conditions["command_s"]["score"] > 0
    assert outcome.conditions["threads"] == 1
    return found.median


def failure(line: str, *, timeout_s: float = 60.0) -> Failure:
    outcome = measure(line, timeout_s=timeout_s)
    assert isinstance(outcome, Failure), outcome
    assert (outcome.candidate_id, outcome.architecture) == (3, ARCH)
    return outcome


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.02)


def wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "the command did not begin"
        time.sleep(0.02)
    return int(path.read_text())


def test_the_last_line_that_says_something_is_the_value() -> None:
    assert value("echo 5") == 5.0
    assert value("echo loading; echo -2.5e-3; echo; echo '  '") == -0.0025
    assert value("printf '7'") == 7.0
    assert value("echo 99999999; head -c 300000 /dev/zero | tr '\\0' '\\n' >&2; echo .5") == 0.5


def test_the_command_gets_the_architecture_and_where_it_is(tmp_path: Path, temporary: Path) -> None:
    out = tmp_path / "out"
    assert value(f"cat > {out}; echo $EDGE_LTS_ARCH_ID $EDGE_LTS_RUN >> {out}; pwd >> {out}; echo 1") == 1.0
    architecture, identity, folder = out.read_text().splitlines()
    assert architecture == ARCH.canonical_json()
    assert identity == f"{ARCH.arch_id} /the/run"
    assert Path(folder).parent == temporary
    assert value(COUNT) == expected(ARCH)


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("echo 5; echo no such corpus >&2; echo >&2; exit 3", "crash", "ended with exit status 3: no such corpus"),
        ("exit 1", "crash", "ended with exit status 1: it said nothing"),
        ("kill -9 $$", "crash", "was killed by SIGKILL"),
        ("no-such-program-at-all", "crash", "not found"),
        ("echo 5; echo done", "crash", "printed 'done'; its last line must be one number"),
        ("echo 1 2", "crash", "printed '1 2'"),
        ("echo 1_000", "crash", "printed '1_000'"),
        ("true", "crash", "printed nothing; its last line must be one number"),
        ("echo NaN", "nonfinite", "printed NaN, which is not finite"),
        ("echo -inf", "nonfinite", "printed -inf"),
        ("echo 1e999", "nonfinite", "printed 1e999"),
    ],
)
def test_anything_but_one_number_is_a_failure_that_says_what_came(line: str, kind: str, message: str) -> None:
    found = failure(line)
    assert found.kind == kind
    assert found.message.startswith("the command for score ")
    assert message in found.message


def test_a_command_without_end_is_a_timeout_and_takes_its_children_along(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = failure(f"sleep 600 & echo $! > {tmp_path / 'pid'}; wait", timeout_s=0.5)
    assert (found.kind, found.message) == ("timeout", "the command for score was not finished after 0.5 s")
    assert time.monotonic() - begun < 60
    wait_until_gone(wait_for_pid(tmp_path / "pid"))


def test_what_a_command_leaves_in_the_background_is_ended(tmp_path: Path) -> None:
    assert value(f"sleep 600 & echo $! > {tmp_path / 'pid'}; echo 4") == 4.0
    wait_until_gone(wait_for_pid(tmp_path / "pid"))


def test_cancelling_ends_the_command_and_raises(tmp_path: Path) -> None:
    one = measurer(f"sleep 600 & echo $! > {tmp_path / 'pid'}; wait")

    def cancel() -> None:
        wait_for_pid(tmp_path / "pid")
        one.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted):
        one.measure(0, ARCH)
    thread.join()
    wait_until_gone(wait_for_pid(tmp_path / "pid"))
    with pytest.raises(Interrupted):
        one.measure(1, ARCH)


def test_a_candidate_that_was_not_measured_is_not_given_to_the_command(tmp_path: Path) -> None:
    inner = FakeMeasurer(Clock())
    oom = Failure(candidate_id=0, architecture=ARCH, kind="oom", message="too large")
    inner.before = lambda *_: oom
    one = CommandMeasurer(inner, [command(f"touch {tmp_path / 'ran'}; echo 1")], run_dir=tmp_path, timeout_s=60)
    assert one.measure(0, ARCH) == oom
    assert not (tmp_path / "ran").exists()


# A whole run over the fake board


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def board(tmp_path: Path, line: str, direction: Any = "min", **changes: Any) -> Board:
    settings = {"objectives": OBJECTIVES, "commands": (command(line, direction),), "strategy": "evolution", **changes}
    return Board(write_spec(tmp_path, **settings))


@pytest.mark.usefixtures("free_memory")
@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_run_searches_and_confirms_by_the_command_in_its_direction(tmp_path: Path, direction: str) -> None:
    one = board(tmp_path, COUNT, direction, max_candidates=8)
    one.run()
    outcomes = [outcome_from_json(record) for record in one.records()]
    assert {outcome.purpose for outcome in outcomes} == {"search", "confirm"}
    for outcome in outcomes:
        assert isinstance(outcome, Evaluation)
        score = outcome.objectives["score"]
        assert isinstance(score, Measurement)
        assert score.median == expected(outcome.architecture)
    sign = 1 if direction == "min" else -1
    points = {
        o.architecture.arch_id: (-o.architecture.decoder_params, sign * expected(o.architecture)) for o in outcomes
    }
    best = {
        arch_id
        for arch_id, own in points.items()
        if not any(o[0] <= own[0] and o[1] <= own[1] and o != own for o in points.values())
    }
    frontier = one.json("frontier.json")["frontier"]
    assert {member["arch_id"] for member in frontier} == best
    assert {member["objectives"]["score"]["n"] for member in frontier} == {3}
    spec = RunSpec.from_json(one.json("spec.json"))
    assert {member.arch_id for member in members(outcomes, spec.resolved_objectives)} == best


@pytest.mark.usefixtures("free_memory")
def test_a_failing_command_fails_candidates_and_the_search_goes_on(tmp_path: Path) -> None:
    line = "grep -q '\"d_model\":32,' && { echo 'too narrow' >&2; exit 9; }; echo 1"
    one = board(tmp_path, line, max_candidates=12)
    one.run()
    records = [record for record in one.records() if record["purpose"] == "search"]
    for record in records:
        is_narrow = record["architecture"]["d_model"] == 32
        assert record["kind"] == ("failure" if is_narrow else "evaluation")
        if is_narrow:
            message = "the command for score ended with exit status 9: too narrow"
            assert record["error"] == {"kind": "crash", "message": message}
    assert {record["kind"] for record in records} == {"failure", "evaluation"}
    assert one.json("status.json")["state"] == "done"


@pytest.mark.usefixtures("free_memory")
def test_a_command_that_always_fails_ends_the_run_with_its_words(tmp_path: Path) -> None:
    one = board(tmp_path, "echo no corpus here >&2; exit 1", budget_s=1e6)
    with pytest.raises(EvaluationError, match=r"50 candidates failed in a row.*exit status 1: no corpus here"):
        one.run()


# The real thing


@pytest.mark.torch
def test_a_search_on_this_machine_has_the_commands_numbers_and_stops_cleanly_within_one(tmp_path: Path) -> None:
    require("torch", importlib.util.find_spec("torch"), "the measuring server imports it")
    pid_file, block = tmp_path / "pid", tmp_path / "block"
    line = f"if test -e {block}; then sleep 600 & echo $! > {pid_file}; wait; fi; {COUNT}"
    quick = Protocol(prompt_tokens=8, context_tokens=8, threads=1, prefill_samples=2, decode_samples=2)
    folder = write_spec(
        tmp_path,
        budget_s=3600.0,
        strategy="evolution",
        protocol=quick,
        max_candidates=4,
        objectives=OBJECTIVES,
        commands=(command(line, "max"),),
    )
    argv = [sys.executable, "-m", "edge_lts", "search", str(folder.path)]
    environ = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    block.touch()
    with subprocess.Popen(argv, cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL) as process:
        pid = wait_for_pid(pid_file)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    wait_until_gone(pid)
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    assert (folder / "ledger.jsonl").read_bytes() == b""
    block.unlink()
    subprocess.run(argv, cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL, timeout=180, check=True)
    records = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for record in records:
        architecture = Architecture.from_json(record["architecture"])
        assert record["objectives"]["score"]["median"] == expected(architecture)
        assert record["objectives"]["decode_latency_s"]["median"] > 0
    frontier = json.loads((folder / "frontier.json").read_text())["frontier"]
    assert frontier
    assert min(member["n_processes"] for member in frontier) == 3

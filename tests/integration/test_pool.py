"""One search on two boards, through the command line: two real SSH servers on loopback, each with a root of its own.

Both boards are this machine. One test measures with torch; in the others the boards sleep instead
(tests/pool_agent.py), and everything else is real.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts.job import Lock, is_locked
from edge_lts.runfolder import BOARD_LOCK
from edge_lts_host import hosts
from edge_lts_host.cli import main
from edge_lts_host.errors import ConnectionLostError
from edge_lts_host.payload import build_payload
from edge_lts_host.transport.base import Transport
from edge_lts_host.transport.local import LocalTransport
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.sshd import Sshd, kill_tree, processes_with, wait_until
from tests.support import require

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(900)]

PATIENCE_S = 240.0
SMALL = ["--space", "tiny", "--prompt-tokens", "8", "--context-tokens", "8", "--threads", "1", "--strategy", "random"]
ALIKE = ["--pool-tolerance", "1000"]  # two boards of one busy machine
REPOSITORY = Path(__file__).parents[2]


# -- a conversation, which is what carries requests to a board -------------------------------------------------------


def conversation(transport: Transport) -> None:
    """stdin that has nothing to say for a while, and says the next line only when the last one came back."""
    answers: list[bytes] = []
    n_asked = 0

    def stdin() -> Iterator[bytes]:
        nonlocal n_asked
        for index in range(3):
            while len(b"".join(answers).splitlines()) < index:
                n_asked += 1
                yield b""
            yield b"line %d\n" % index
        while len(b"".join(answers).splitlines()) < 3:
            yield b""

    begun_s, cpu_s = time.monotonic(), time.process_time()
    with transport.stream(["sh", "-c", "while read -r line; do sleep 0.3; echo $line; done"], stdin=stdin()) as stream:
        answers += stream
    assert b"".join(answers) == b"line 0\nline 1\nline 2\n"
    assert stream.exit_status == 0
    assert n_asked < 200, "it is not asked all the time"
    assert time.process_time() - cpu_s < 0.5 * (time.monotonic() - begun_s)


def test_a_conversation_with_this_machine() -> None:
    conversation(LocalTransport())


def test_a_conversation_over_ssh(sshd: Sshd, ssh_options: Callable[..., SshOptions]) -> None:
    with SshTransport(sshd.destination, ssh_options()) as transport:
        conversation(transport)
        conversation(transport)


def test_stdin_that_raises_ends_the_command(sshd: Sshd, ssh_options: Callable[..., SshOptions]) -> None:
    def stdin() -> Iterator[bytes]:
        yield b"x\n"
        yield b""
        raise ConnectionLostError("pool", "broken off")

    with (
        SshTransport(sshd.destination, ssh_options()) as transport,
        pytest.raises(ConnectionLostError, match="broken off"),
        transport.stream(["sh", "-c", "read -r line; sleep 1000"], stdin=stdin()) as stream,
    ):
        b"".join(stream)
    assert wait_until(lambda: not processes_with(sshd.token))


# -- the command line --------------------------------------------------------------------------------------------------


class Shelf:
    """Two boards, and the command line with a home of its own."""

    def __init__(self, home: Path, boards: list[Sshd], capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.boards, self.capsys = home, boards, capsys
        self.out = self.err = ""
        known_hosts = home / "known_hosts"
        known_hosts.write_text("".join(board.known_hosts_line() for board in boards))
        keys = [word for board in boards for word in ("--identity", str(board.client_key))]
        self.connection = [*keys, "--known-hosts", str(known_hosts)]
        self.roots = [home / f"board{index}" / "edge-lts" for index in range(len(boards))]
        self.hosts = [word for board in boards for word in ("--host", board.destination)]

    def __call__(self, *argv: str, connects: bool = True) -> int:
        self.capsys.readouterr()
        status = main([*argv, *(self.connection if connects else [])])
        self.out, self.err = self.capsys.readouterr()
        return status

    def deploy(self) -> None:
        for board, root in zip(self.boards, self.roots, strict=True):
            where = ["--host", board.destination, "--root", str(root), "--python", sys.executable]
            assert self("deploy", *where) == 0, self.err

    def pretend(self, *duration_s: float) -> None:
        """Boards that are deployed to already and sleep so long instead of measuring."""
        for index, (board, root) in enumerate(zip(self.boards, self.roots, strict=True)):
            python = self.home / f"python{index}"
            path = f"{REPOSITORY}:{REPOSITORY / 'host'}"
            program = f"-m tests.pool_agent {sys.executable} {duration_s[index]}"
            python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} {program} "$@"\n')
            python.chmod(0o755)
            root.mkdir(parents=True)
            hosts.remember(
                hosts.HostEntry(
                    name=board.destination,
                    destination=board.destination,
                    target="x86_64",
                    root=str(root),
                    python=str(python),
                    agent=str(root / "agents" / "any.pyz"),
                    deployed_at="2026-11-22T00:00:00Z",
                )
            )

    def argv(self, *more: str) -> list[str]:
        return ["run", "--pool", *self.hosts, "--budget", "10m", *SMALL, *ALIKE, "-o", "json", *more]

    @property
    def names(self) -> list[str]:
        return [board.destination for board in self.boards]

    @property
    def run_dir(self) -> Path:
        (found,) = (self.home / "runs").iterdir()
        return found

    def records(self, purpose: str | None = None) -> list[dict[str, Any]]:
        lines = self._lines("ledger.jsonl")
        return [one for one in lines if purpose in (None, one["purpose"])]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self._lines("events.jsonl") if one["event"] == name]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        try:
            data = (self.run_dir / name).read_bytes()
        except (FileNotFoundError, ValueError):
            return []
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def when(self, condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
        """`act` beside the test as soon as `condition` holds."""
        thread = threading.Thread(target=lambda: wait_until(condition, PATIENCE_S) and act())
        thread.start()
        return thread

    def assert_nothing_runs(self) -> None:
        for board, root in zip(self.boards, self.roots, strict=True):
            assert wait_until(lambda board=board: not processes_with(board.token), 20)  # type: ignore[misc]
            assert not is_locked(root / BOARD_LOCK)


@pytest.fixture
def shelf(
    tmp_path: Path,
    make_sshd: Callable[..., Sshd],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Shelf]:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    built = build_payload()  # one agent per test, also while somebody edits the sources
    monkeypatch.setattr("edge_lts_host.payload.build_payload", lambda *asked: built)
    found = Shelf(tmp_path, [make_sshd(), make_sshd()], capsys)
    yield found
    found.assert_nothing_runs()


@pytest.mark.torch
def test_two_boards_share_one_search(shelf: Shelf) -> None:
    """With everything real: deployed to, torch measuring."""
    require("torch", importlib.util.find_spec("torch"), "torch is not installed (pip install 'edge-lts[local]')")
    shelf.deploy()
    assert shelf(*shelf.argv("--max-candidates", "6")) == 0, shelf.err
    names = set(shelf.names)
    assert {one["board"] for one in shelf.records()} == names
    assert sorted(one["candidate_id"] for one in shelf.records("search")) == list(range(6))
    assert all("board_factor" in one["conditions"] for one in shelf.records("search"))
    (run,) = json.loads(shelf.out)["runs"]
    assert run["frontier"]
    tried: dict[str, set[str]] = {}
    for one in shelf.records():
        tried.setdefault(one["arch_id"], set()).add(one["board"])
    sure = [member["arch_id"] for member in run["frontier"] if not member["probably_dominated"]]
    assert all(tried[arch_id] == names for arch_id in sure)
    assert all(f"{name}: decode " in shelf.err for name in names)
    device = json.loads((shelf.run_dir / "device.json").read_text())
    assert set(device["extra"]["pool"]["boards"]) == names
    for root in shelf.roots:
        assert not list((root / "runs").glob("*")), "no run is on a board"


def test_two_boards_take_about_half_the_time_of_one(shelf: Shelf) -> None:
    """Boards that sleep, so that the machine hardly matters: a search of 10 candidates takes one board 10 s."""
    shelf.pretend(1.0, 1.0)
    assert shelf(*shelf.argv("--max-candidates", "10")) == 0, shelf.err
    spent_s = [one["spent_s"] for one in shelf.records("search")]
    assert len(spent_s) == 10
    assert max(spent_s) - min(spent_s) < 0.75 * 9
    # It is a run of this machine like any other.
    assert shelf("status", "-o", "json") == 0, shelf.err
    (status,) = json.loads(shelf.out)["runs"]
    assert (status["state"], status["n_measured"]) == ("done", 10)
    n_records = len(shelf.records())
    assert shelf("resume") == 0, shelf.err
    assert len(shelf.records()) == n_records


@pytest.mark.parametrize("lost", [0, 1])
def test_the_search_survives_the_loss_of_either_board(shelf: Shelf, lost: int) -> None:
    shelf.pretend(0.3, 0.3)
    thread = shelf.when(lambda: len(shelf.records()) >= 2, shelf.boards[lost].stop)
    assert shelf(*shelf.argv("--max-candidates", "12")) == 0, shelf.err
    thread.join()
    assert sorted(one["candidate_id"] for one in shelf.records("search")) == list(range(12))
    assert f"{shelf.names[lost]} is lost, the others go on" in shelf.err
    assert shelf.records()[-1]["board"] == shelf.names[1 - lost]


def test_a_board_that_was_cut_off_comes_back(shelf: Shelf) -> None:
    shelf.pretend(0.3, 0.3)

    def cut() -> None:
        for pid in shelf.boards[1].connections():
            kill_tree(pid)

    thread = shelf.when(lambda: len(shelf.records()) >= 2, cut)
    assert shelf(*shelf.argv("--max-candidates", "60")) == 0, shelf.err
    thread.join()
    assert f"{shelf.names[1]} is back" in shelf.err
    (back,) = shelf.events("board_back")
    assert shelf.names[1] in {one["board"] for one in shelf.records() if one["spent_s"] > back["spent_s"]}
    searched = [one["candidate_id"] for one in shelf.records("search")]
    assert sorted(searched) == list(range(60)), "once each"


@pytest.mark.parametrize("how", ["SIGINT", "stop"])
def test_an_end_leaves_nothing_on_the_boards_and_resume_goes_on(shelf: Shelf, how: str) -> None:
    shelf.pretend(0.3, 0.3)
    command = [sys.executable, "-m", "edge_lts_host", *shelf.argv("--max-candidates", "30"), *shelf.connection]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'host'}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert wait_until(lambda: len(shelf.records()) >= 3, PATIENCE_S)
            assert all(is_locked(root / BOARD_LOCK) for root in shelf.roots)
            if how == "stop":
                assert shelf("stop") == 0, shelf.err
            else:
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    shelf.assert_nothing_runs()
    assert "edge-lts resume" in err
    assert json.loads(out)["runs"][0]["frontier"]
    before = shelf.records()
    assert 3 <= len(before) < 30
    assert shelf("resume") == 0, shelf.err
    assert shelf.records()[: len(before)] == before
    assert sorted(one["candidate_id"] for one in shelf.records("search")) == list(range(30))


def test_a_controller_that_is_killed_leaves_nothing_on_the_boards(shelf: Shelf) -> None:
    shelf.pretend(0.3, 0.3)
    command = [sys.executable, "-m", "edge_lts_host", *shelf.argv("--max-candidates", "60"), *shelf.connection]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'host'}"}
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=null, stderr=null) as process:
        assert wait_until(lambda: len(shelf.records()) >= 3, PATIENCE_S)
        process.kill()
    shelf.assert_nothing_runs()
    assert shelf("resume") == 0, shelf.err
    assert sorted(one["candidate_id"] for one in shelf.records("search")) == list(range(60))


def test_a_board_that_is_in_use_is_refused_and_leaves_no_run(shelf: Shelf) -> None:
    shelf.pretend(0.1, 0.1)
    with Lock(shelf.roots[1] / BOARD_LOCK, run_id="someone", what="this board"):
        assert shelf(*shelf.argv("--max-candidates", "2")) == 7
    assert "someone" in shelf.err
    assert not list((shelf.home / "runs").iterdir())


def test_boards_that_differ_beyond_the_tolerance_are_refused(shelf: Shelf) -> None:
    shelf.pretend(0.1, 0.1)  # which differ by a percent, because their numbers come from their process ids
    assert shelf(*shelf.argv("--max-candidates", "2", "--pool-tolerance", "0.000001")) == 5
    assert "cannot share a search" in shelf.err
    assert not list((shelf.home / "runs").iterdir())

"""From deploy to clean through the command line, against a real sshd on loopback and this machine's own Python.

The environment is "an existing one on the host": the Python that runs the tests has torch, so no wheels are moved.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host.cli import main
from edge_lts_host.hosts import load_hosts
from edge_lts_host.payload import build_payload
from edge_lts_host.transport import files
from edge_lts_host.transport.base import Transport
from tests.integration.sshd import Sshd, processes_with, wait_until
from tests.support import require

pytestmark = [pytest.mark.sshd, pytest.mark.torch]

PATIENCE_S = 180.0
TIGHT = ["--space", "tiny", "--prompt-tokens", "8", "--context-tokens", "8", "--threads", "1"]


@pytest.fixture(autouse=True)
def _torch() -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed (pip install 'edge-lts[local]')")


class Workstation:
    """The command line with a home of its own; `out` is what the last command wrote to stdout."""

    def __init__(self, home: Path, sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.sshd = sshd
        self.capsys = capsys
        self.out = self.err = ""
        known_hosts = home / "known_hosts"
        known_hosts.write_text(sshd.known_hosts_line())
        self.connection = ["--identity", str(sshd.client_key), "--known-hosts", str(known_hosts)]
        self.root = home / "board" / "edge-lts"

    def __call__(self, *argv: str, connects: bool = True) -> int:
        self.capsys.readouterr()
        status = main([*argv, *(self.connection if connects else [])])
        self.out, self.err = self.capsys.readouterr()
        return status

    def deploy(self, *more: str) -> int:
        where = ["--host", self.sshd.destination, "--root", str(self.root), "--python", sys.executable]
        return self("deploy", *where, *more)

    def start(self, *more: str) -> str:
        assert self("run", "--host", self.sshd.destination, "--budget", "10m", *TIGHT, *more) == 0, self.err
        return self.out.strip()

    def status(self, run_id: str) -> dict[str, Any]:
        assert self("status", run_id, "-o", "json") == 0, self.err
        (run,) = json.loads(self.out)["runs"]
        return dict(run)

    def wait_for(self, run_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            status = self.status(run_id)
            if condition(status):
                return status
            time.sleep(0.3)
        raise AssertionError(f"not in time: {status}")

    def folder(self, run_id: str) -> Path:
        return self.home / "runs" / run_id

    def board_run(self, run_id: str) -> Path:
        return self.root / "runs" / run_id


@pytest.fixture
def work(
    tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Workstation]:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    built = build_payload()  # one agent per test, also while somebody edits the sources
    monkeypatch.setattr("edge_lts_host.payload.build_payload", lambda *asked: built)
    yield Workstation(tmp_path, sshd, capsys)
    for path in (tmp_path / "board" / "edge-lts" / "runs").glob("*/lock"):
        pid = json.loads(path.read_text() or "{}").get("pid")
        if isinstance(pid, int) and pid in processes_with(sshd.token):
            os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: not processes_with(sshd.token), 30)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "ledger.jsonl").read_bytes().splitlines()]


@pytest.fixture
def n_puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that files were put to, from now on."""
    paths: list[str] = []
    real = files.put

    def counted(transport: Transport, source: Path | bytes, remote_path: str, **options: Any) -> Any:
        paths.append(remote_path)
        return real(transport, source, remote_path, **options)

    monkeypatch.setattr(files, "put", counted)
    return paths


def test_the_whole_way_on_a_host_with_torch(work: Workstation, n_puts: list[str]) -> None:
    assert work.deploy() == 0, work.err
    assert "ready in" in work.out
    entry = load_hosts()[work.sshd.destination]
    assert (entry.target, entry.site) == ("x86_64", None)
    assert work.root.stat().st_mode & 0o777 == 0o700
    n_puts.clear()
    assert work.deploy() == 0
    assert "nothing to do" in work.out
    assert n_puts == []

    run_id = work.start()
    going = work.wait_for(run_id, lambda status: status.get("n_measured", 0) >= 2)
    assert going["state"] == "running"
    assert going["is_alive"]
    assert work("run", "--host", work.sshd.destination, "--budget", "1m", *TIGHT) == 7
    assert run_id in work.err
    assert [path.name for path in work.folder(run_id).parent.iterdir()] == [run_id], "a refused run leaves no folder"

    assert work("pull", run_id) == 0, work.err
    n_pulled = len(records(work.folder(run_id)))
    assert n_pulled >= 2
    assert work("stop") == 0, work.err
    assert work.status(run_id)["state"] == "stopped"
    n_stopped = len(records(work.board_run(run_id)))
    assert work("resume", run_id) == 0, work.err
    work.wait_for(run_id, lambda status: status.get("n_measured", 0) > n_stopped)
    assert work("stop", run_id) == 0, work.err
    measured = records(work.folder(run_id))
    assert len(measured) > n_stopped
    assert (work.folder(run_id) / "ledger.jsonl").read_bytes() == (work.board_run(run_id) / "ledger.jsonl").read_bytes()
    searched = [record["arch_id"] for record in measured if record["purpose"] == "search"]
    assert len(searched) == len(set(searched))

    assert work("logs", run_id) == 0
    assert "finished" in work.out
    assert work("report", run_id, "-o", "json", connects=False) == 0
    (report,) = json.loads(work.out)["runs"]
    assert report["frontier"]
    assert report["host"] == work.sshd.destination

    architecture = work.home / "arch.json"
    architecture.write_text(json.dumps(report["frontier"][0]["architecture"]))
    assert work("measure", str(architecture), "--host", work.sshd.destination, *TIGHT[2:], "-o", "json") == 0, work.err
    record = json.loads(work.out)
    assert record["arch_id"] == report["frontier"][0]["arch_id"]
    assert isinstance(record["flags"], list)

    assert work("clean", "--host", work.sshd.destination) == 2
    assert "--yes" in work.err
    assert work("clean", "--host", work.sshd.destination, "--dry-run", "-o", "json") == 0
    (cleaned,) = json.loads(work.out)["hosts"]
    assert cleaned["runs"] > 0
    assert cleaned["removed"] == []
    assert work("clean", "--host", work.sshd.destination, "--keep-runs", "-y") == 0, work.err
    assert work.board_run(run_id).is_dir()
    assert not list(work.root.glob("agents/*"))
    assert work("clean", "--host", work.sshd.destination, "-y") == 0, work.err
    assert not work.root.exists()
    assert load_hosts() == {}


def test_a_killed_agent_is_interrupted_and_resumed_without_duplicates(work: Workstation) -> None:
    assert work.deploy() == 0, work.err
    run_id = work.start("--max-candidates", "12")
    work.wait_for(run_id, lambda status: status.get("n_measured", 0) >= 2)
    os.kill(json.loads((work.board_run(run_id) / "lock").read_text())["pid"], signal.SIGKILL)
    assert work.wait_for(run_id, lambda status: not status["is_alive"])["state"] == "interrupted"
    assert work("resume", run_id, "--wait") == 0, work.err
    searched = [record["arch_id"] for record in records(work.folder(run_id)) if record["purpose"] == "search"]
    assert len(searched) == len(set(searched)) == 12


def test_one_dead_host_stops_nobody_and_the_exit_code_says_so(work: Workstation) -> None:
    dead = f"{work.sshd.user}@127.0.0.1:1"
    assert work.deploy("--host", dead, "--connect-timeout", "2s") == 3
    assert "ready in" in work.out
    assert dead in work.err
    assert set(load_hosts()) == {work.sshd.destination}
    run_id = work.start("--max-candidates", "1")
    work.wait_for(run_id, lambda status: status["state"] == "done")


def test_a_host_that_cannot_be_reached_says_that_the_run_goes_on(work: Workstation) -> None:
    assert work.deploy() == 0, work.err
    run_id = work.start("--max-candidates", "3")
    meta = work.folder(run_id) / "host.json"
    meta.write_text(meta.read_text().replace(f":{work.sshd.port}", ":1"))
    assert work("status", run_id, "-o", "json") == 4
    (row,) = json.loads(work.out)["runs"]
    assert row["is_reachable"] is False
    meta.write_text(meta.read_text().replace('127.0.0.1:1"', f'127.0.0.1:{work.sshd.port}"'))
    work.wait_for(run_id, lambda status: status["state"] == "done")


def test_watch_and_wait_end_with_the_run_and_time_out_without_ending_it(work: Workstation) -> None:
    assert work.deploy() == 0, work.err
    run_id = work.start()
    work.wait_for(run_id, lambda status: status.get("n_measured", 0) >= 1)
    assert work("watch", run_id, "--poll", "200ms", "--timeout", "1s") == 124
    assert "the run goes on on the board" in work.err
    assert work.status(run_id)["is_alive"]
    assert work("stop", run_id) == 0
    assert work("watch", run_id) == 0
    assert "stopped" in work.err


def test_ctrl_c_on_a_local_run_ends_it_cleanly_with_a_frontier(tmp_path: Path) -> None:
    paths = [str(Path(__file__).resolve().parents[2] / name) for name in ("", "host")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EDGE_LTS_RUNS": str(tmp_path / "data" / "runs")}
    argv = [sys.executable, "-m", "edge_lts_host", "run", "--target", "local", "--budget", "10m", *TIGHT]
    child = subprocess.Popen(
        argv,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    runs = tmp_path / "data" / "runs"
    try:
        assert wait_until(lambda: any(path.stat().st_size for path in runs.glob("*/ledger.jsonl")), PATIENCE_S)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, err
    (folder,) = runs.iterdir()
    assert f"edge-lts resume {folder.name}" in err
    assert folder.name in out
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"

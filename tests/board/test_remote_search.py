"""The whole way on a 64-bit ARM userland: deploy offline, search, lose link, agent and controller, report, clean.

One board is deployed to once and then shared, in the order of this file; the last test cleans it. The command line
runs as a process of its own from a copy of the sources, so that it can be killed and always pushes the same agent.
Timings and memory are the emulator's and are not looked at; how long to wait follows from how long torch takes to
import there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import wheelhouse
from tests.board.conftest import MakeBoard
from tests.board.emulated import REPOSITORY, EmulatedBoard

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

PYTHON = "3.11"  # Debian 12's, which is what the emulated board runs
ROOT = ".local/share/edge-lts"
SMALL = ["--space", "tiny", "--prompt-tokens", "4", "--context-tokens", "4", "--candidate-timeout", "10m"]
OFFLINE_S = 60.0


@dataclass(kw_only=True)
class Workstation:
    """The command line with a home of its own, without any package index."""

    home: Path
    board: EmulatedBoard
    import_s: float = 60.0
    deployed: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"{self.board.user}@{self.board.address}"

    @property
    def patience_s(self) -> float:
        return 120.0 + 10.0 * self.import_s

    def argv(self, *words: str, connects: bool = True) -> list[str]:
        connection = ["--identity", str(self.board.identity_file), "--known-hosts", str(self.board.known_hosts)]
        return [sys.executable, "-m", "edge_lts_host", *words, *(connection if connects else [])]

    @property
    def environment(self) -> dict[str, str]:
        source = self.home / "source"
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PYTHONPATH": f"{source}{os.pathsep}{source / 'host'}",
            "EDGE_LTS_RUNS": str(self.home / "runs"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def __call__(self, *words: str, status: int = 0, connects: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words, connects=connects),
            env=self.environment,
            cwd=self.home,  # not the checkout, which -m would put in front of the copy
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
        assert done.returncode == status, f"{words[0]} ended with {done.returncode}: {done.stderr[-3000:]}"
        return done

    def json(self, *words: str, connects: bool = True) -> Any:
        return json.loads(self(*words, "-o", "json", connects=connects).stdout)

    def status(self, run_id: str) -> dict[str, Any]:
        (run,) = self.json("status", run_id)["runs"]
        return dict(run)

    def on_board(self, run_id: str) -> Path:
        return self.board.home / ROOT / "runs" / run_id

    def here(self, run_id: str) -> Path:
        return self.home / "runs" / run_id

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < end, f"not within {self.patience_s:.0f} s: {what}"
            time.sleep(0.5)


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a ledger; none while there is no ledger."""
    try:
        data = (run / "ledger.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def copy_sources(home: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("edge_lts", "host", "targets", "spaces"):
        shutil.copytree(REPOSITORY / name, home / "source" / name, ignore=ignore)


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The locked wheels for the board in this machine's cache: fetched by the first run ever, 122 MB."""
    wheel_set = wheelhouse.load_lock()[PYTHON, "aarch64"]
    found = wheelhouse.obtain(wheel_set.all_wheels, PYTHON, "aarch64")
    return next(iter(found.values())).parent


@pytest.fixture(scope="session")
def work(board: EmulatedBoard, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workstation]:
    """A workstation that has deployed to the board."""
    home = tmp_path_factory.mktemp("workstation")
    copy_sources(home)
    workstation = Workstation(home=home, board=board)
    (outcome,) = workstation.json("deploy", "--host", workstation.host, "--wheelhouse", str(wheels))["hosts"]
    workstation.deployed = outcome
    state = json.loads((home / "state" / "edge-lts" / "hosts.json").read_text())
    workstation.import_s = float(state["hosts"][workstation.host]["extra"]["torch_import_s"])
    yield workstation
    board.restore_link()
    board.kill_processes("agents/")


def test_deploy_installs_torch_without_network_root_or_pip(work: Workstation) -> None:
    assert work.deployed["target"] == "emulated-arm64"
    assert work.deployed["torch"] == "2.9.1"
    root = work.board.home / ROOT
    assert (root.stat().st_mode & 0o777, root.stat().st_uid) == (0o700, 1000)
    lock_id = wheelhouse.load_lock()[PYTHON, "aarch64"].lock_id
    assert sorted(path.name for path in (root / "env").iterdir() if path.is_dir()) == [lock_id]
    (device,) = work.json("devices", connects=False)["devices"]
    assert device["device"]["machine"] == "aarch64"
    assert device["device"]["torch"].startswith("2.9.1")


def test_a_second_deploy_moves_nothing(work: Workstation, wheels: Path) -> None:
    (outcome,) = work.json("deploy", "--host", work.host, "--wheelhouse", str(wheels))["hosts"]
    assert outcome["steps"] == []
    assert outcome["n_bytes_sent"] == 0
    (again,) = work.json("deploy", "--host", work.host)["hosts"]
    assert again["steps"] == []


def test_a_search_survives_link_controller_and_agent(work: Workstation) -> None:
    board = work.board
    run_id = work("run", "--target", "arm64", "--budget", "1h", *SMALL).stdout.strip()
    remote, local = work.on_board(run_id), work.here(run_id)
    work.wait_for(lambda: len(records(remote)) >= 2, "two measurements")

    # Pulled while it runs: a prefix of the board's ledger, then more of it.
    work("pull", run_id)
    first = (local / "ledger.jsonl").read_bytes()
    assert first
    assert (remote / "ledger.jsonl").read_bytes().startswith(first)
    assert work.status(run_id)["is_alive"]

    # The controller dies and the cable is cut: the board goes on.
    controller = subprocess.Popen(
        work.argv("watch", run_id),
        env=work.environment,
        cwd=work.home,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(3)
    board.cut_link()
    try:
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        before = len(records(remote))
        time.sleep(OFFLINE_S)
        work.wait_for(lambda: len(records(remote)) > before, "a measurement without a link")
        done = subprocess.run(
            work.argv("status", run_id, "--connect-timeout", "2s"),
            env=work.environment,
            cwd=work.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 4, done.stderr
    finally:
        board.restore_link()
    assert work.status(run_id)["state"] == "running"

    # The agent is killed: interrupted, not failed; resumed without measuring anything twice.
    assert board.kill_processes("agents/.* search ")
    work.wait_for(lambda: not work.status(run_id)["is_alive"], "the end of the killed agent")
    assert work.status(run_id)["state"] == "interrupted"
    n_killed = len(records(remote))
    work("resume", run_id)
    work.wait_for(lambda: len(records(remote)) > n_killed, "a measurement after resuming")
    work("stop", run_id, "--timeout", "10m")
    assert work.status(run_id)["state"] == "stopped"

    assert (local / "ledger.jsonl").read_bytes() == (remote / "ledger.jsonl").read_bytes()
    assert (local / "ledger.jsonl").read_bytes().startswith(first)
    searched = [record["arch_id"] for record in records(local) if record["purpose"] == "search"]
    assert len(searched) == len(set(searched)) > n_killed - 1
    device = json.loads((local / "device.json").read_text())
    assert device["machine"] == "aarch64"
    assert device["torch"].startswith("2.9.1")
    assert device["is_emulated"] is True


def test_the_report_marks_emulated_timings(work: Workstation) -> None:
    (run,) = work.json("report", connects=False)["runs"]
    assert run["frontier"]
    assert run["host"] == work.host
    assert run["spec"]["is_emulated"] is True
    assert "emulated: timings are not performance" in work("report", connects=False).stdout


def test_a_member_of_the_frontier_can_be_measured_again(work: Workstation) -> None:
    (run,) = work.json("report", connects=False)["runs"]
    member = run["frontier"][0]
    path = work.home / "arch.json"
    path.write_text(json.dumps(member["architecture"]))
    tokens = SMALL[2:6]
    record = work.json("measure", str(path), "--host", work.host, *tokens)
    assert record["kind"] == "evaluation"
    assert record["arch_id"] == member["arch_id"]
    assert record["objectives"]["decoder_params"] == member["objectives"]["decoder_params"]
    assert record["objectives"]["decode_latency_s"]["median"] > 0
    assert "flags" in record


def test_a_small_disk_is_refused_before_anything_is_pushed(
    work: Workstation, wheels: Path, make_board: MakeBoard
) -> None:
    with_small_disk = make_board(disk_bytes=300_000_000)
    other = Workstation(home=work.home, board=with_small_disk)
    done = other("deploy", "--host", other.host, "--wheelhouse", str(wheels), status=5)
    assert "1500 MB are needed" in done.stderr
    assert not (with_small_disk.home / ROOT).exists()


def test_clean_shows_sizes_and_removes_everything(work: Workstation) -> None:
    (sizes,) = work.json("clean", "--host", work.host, "--dry-run")["hosts"]
    assert sizes["env"] > 300_000_000
    assert sizes["runs"] > 0
    (kept,) = work.json("clean", "--host", work.host, "--yes", "--keep-runs")["hosts"]
    assert sorted(kept["removed"]) == ["agents", "env"]
    assert [path.name for path in (work.board.home / ROOT / "runs").iterdir()]
    work("clean", "--host", work.host, "--yes")
    assert not (work.board.home / ROOT).exists()

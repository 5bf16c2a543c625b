"""The whole way on a 64-bit ARM userland: deploy offline, search, lose link, agent and controller, report, clean.

One board is deployed to once and then shared, in the order of this file; the last test cleans it. The command line
runs as a process of its own from a copy of the sources, so that it can be killed and always pushes the same agent.
Timings and memory are the emulator's and are not looked at; how long to wait follows from how long torch takes to
import there.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts_host import wheelhouse
from tests.board.conftest import MakeBoard
from tests.board.emulated import EmulatedBoard
from tests.board.workstation import ROOT, SMALL, Workstation, copy_sources, records

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

PYTHON = "3.11"  # Debian 12's, which is what the emulated board runs
OFFLINE_S = 60.0


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The locked wheels for the board in this machine's cache: fetched by the first run ever, 122 MB."""
    wheel_set = wheelhouse.load_lock()[PYTHON, "aarch64"]
    found = wheelhouse.obtain(wheel_set.all_wheels, PYTHON, "aarch64")
    return next(iter(found.values())).parent


@pytest.fixture(scope="session")
def work(
    board: EmulatedBoard, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workstation[EmulatedBoard]]:
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


def test_deploy_installs_torch_without_network_root_or_pip(work: Workstation[EmulatedBoard]) -> None:
    assert work.deployed["target"] == "emulated-arm64"
    assert work.deployed["torch"] == "2.9.1"
    root = work.board.home / ROOT
    assert (root.stat().st_mode & 0o777, root.stat().st_uid) == (0o700, 1000)
    lock_id = wheelhouse.load_lock()[PYTHON, "aarch64"].lock_id
    assert sorted(path.name for path in (root / "env").iterdir() if path.is_dir()) == [lock_id]
    (device,) = work.json("devices", connects=False)["devices"]
    assert device["device"]["machine"] == "aarch64"
    assert device["device"]["torch"].startswith("2.9.1")


def test_a_second_deploy_moves_nothing(work: Workstation[EmulatedBoard], wheels: Path) -> None:
    (outcome,) = work.json("deploy", "--host", work.host, "--wheelhouse", str(wheels))["hosts"]
    assert outcome["steps"] == []
    assert outcome["n_bytes_sent"] == 0
    (again,) = work.json("deploy", "--host", work.host)["hosts"]
    assert again["steps"] == []


def test_a_search_survives_link_controller_and_agent(work: Workstation[EmulatedBoard]) -> None:
    board = work.board
    run_id = work("run", "--target", "arm64", "--budget", "1h", *SMALL).stdout.strip()
    remote, local = board.home / ROOT / "runs" / run_id, work.here(run_id)
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


def test_the_report_marks_emulated_timings(work: Workstation[EmulatedBoard]) -> None:
    (run,) = work.json("report", connects=False)["runs"]
    assert run["frontier"]
    assert run["host"] == work.host
    assert run["spec"]["is_emulated"] is True
    assert "emulated: timings are not performance" in work("report", connects=False).stdout


def test_a_member_of_the_frontier_can_be_measured_again(work: Workstation[EmulatedBoard]) -> None:
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


def test_blocks_of_today_are_scored_trained_resumed_and_measured_there(work: Workstation[EmulatedBoard]) -> None:
    """torch 2.9.1 on arm64: the fused AdamW, heads that share keys and values, gates, rotations, convolutions."""
    from tests.board.blocks import MEASURED, architectures

    agents = work.board.home / ROOT / "agents"
    base = {path.name for path in agents.iterdir()}
    paths = [work.home / f"block{index}.json" for index in range(2)]
    for path, arch in zip(paths, architectures(), strict=False):
        path.write_text(json.dumps(arch.to_json()))
    rows = work.json("proxies", *map(str, paths), "--host", work.host)["architectures"]
    assert [row["error"] for row in rows] == [None, None]
    (full,) = {path.name for path in agents.iterdir()} - base  # that of trainings came when it was asked for

    shutil.copy(Path(__file__).with_name("blocks.py"), work.board.home / "blocks.py")
    (site,) = (path for path in (work.board.home / ROOT / "env").iterdir() if path.is_dir())
    words = ["python3", "-I", "blocks.py", f"{ROOT}/agents/{full}", f"{ROOT}/env/{site.name}", "."]
    said = work.board.ssh(shlex.join(words), timeout_s=work.patience_s).stdout
    found = {one["backbone"]: one for one in map(json.loads, said.splitlines())}
    assert set(found) == {arch.backbone for arch in architectures()}
    for backbone, one in found.items():
        training = one["trained"]
        assert training["error"] is None, backbone
        assert training["losses"][-1] < training["losses"][0], backbone
        assert training["resumed"] == training["losses"], backbone
        assert 0 < training["n_saved"] < training["n_steps"] == 16, backbone
        assert all(math.isfinite(score) for score in one["scores"].values()), backbone
        assert ("measured" in one) == (backbone in MEASURED)
    for backbone in MEASURED:
        assert all(value > 0 for value in found[backbone]["measured"].values()), backbone
    by_agent = {name: rows[0][name] for name in found["gpt2"]["scores"]}
    assert by_agent == pytest.approx(found["gpt2"]["scores"], rel=1e-3)


def test_a_small_disk_is_refused_before_anything_is_pushed(
    work: Workstation[EmulatedBoard], wheels: Path, make_board: MakeBoard
) -> None:
    with_small_disk = make_board(disk_bytes=300_000_000)
    other = Workstation(home=work.home, board=with_small_disk)
    done = other("deploy", "--host", other.host, "--wheelhouse", str(wheels), status=5)
    assert "1500 MB are needed" in done.stderr
    assert not (with_small_disk.home / ROOT).exists()


def test_clean_shows_sizes_and_removes_everything(work: Workstation[EmulatedBoard]) -> None:
    (sizes,) = work.json("clean", "--host", work.host, "--dry-run")["hosts"]
    assert sizes["env"] > 300_000_000
    assert sizes["runs"] > 0
    (kept,) = work.json("clean", "--host", work.host, "--yes", "--keep-runs")["hosts"]
    assert sorted(kept["removed"]) == ["agents", "env"]
    assert [path.name for path in (work.board.home / ROOT / "runs").iterdir()]
    work("clean", "--host", work.host, "--yes")
    assert not (work.board.home / ROOT).exists()

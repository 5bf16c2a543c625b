"""Power on a whole board: a plug that is pulled, a run that goes on after the boot, an SD card that becomes read-only.

One board with torch on it, one run, in the order of this file. `benchmarks/bench_soak.py` pulls the plug thirty times
more, and tests/integration/test_power_faults.py has what needs no kernel of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.board.whole import TARGET, WholeBoard, deployed_board, remember_deployed
from tests.board.workstation import ROOT, SMALL, Workstation, copy_sources

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800), pytest.mark.long]

Work = Workstation[WholeBoard]
LINGERING = "/var/lib/systemd/linger/pi"
UNITS = ".config/systemd/user"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    home = tmp_path_factory.mktemp("power")
    copy_sources(home)
    with deployed_board() as board:
        remember_deployed(board, home / "state")
        yield Workstation(home=home, board=board)


@pytest.fixture(scope="module")
def run_id(work: Work) -> str:
    """A run that goes on after a reboot."""
    done = work("run", "--target", TARGET, "--budget", "1h", "--on-boot", *SMALL)
    assert "goes on by itself (a systemd user unit)" in done.stderr
    return done.stdout.strip()


def ledger_bytes(work: Work, run_id: str) -> str:
    return work.board.ssh(f"cat {ROOT}/runs/{run_id}/ledger.jsonl", check=False).stdout


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for_records(work: Work, run_id: str, n: int) -> str:
    end = time.monotonic() + work.patience_s
    while len(records(text := ledger_bytes(work, run_id))) < n:
        assert time.monotonic() < end, f"no {n} records: {text[-500:]}"
        time.sleep(1.0)
    return text


def spent_s(work: Work, run_id: str) -> float:
    return float(json.loads(work.board.ssh(f"cat {ROOT}/runs/{run_id}/status.json").stdout)["spent_s"])


def test_after_a_power_cut_the_board_goes_on_by_itself(work: Work, run_id: str) -> None:
    before = wait_for_records(work, run_id, 1)
    work("pull", run_id)
    pulled = (work.here(run_id) / "ledger.jsonl").read_text()
    assert pulled.startswith(before)
    counted_s = records(pulled)[-1]["spent_s"]
    work.board.reboot()
    after = ledger_bytes(work, run_id)
    assert after.startswith(pulled)
    wait_for_records(work, run_id, len(records(pulled)) + 1)
    status = work.status(run_id)
    assert status["state"] == "running"
    assert status["spent_s"] > counted_s
    found = records(ledger_bytes(work, run_id))
    searched = [record["arch_id"] for record in found if record["purpose"] == "search"]
    assert len(searched) == len(set(searched))
    assert [record["spent_s"] for record in found] == sorted(record["spent_s"] for record in found)
    group = work.board.ssh(f"cat /proc/$(pgrep -o -f 'search .*{run_id}')/cgroup").stdout
    assert f"edge-lts-{run_id}.service" in group  # it was the unit, and nobody who resumed it


def test_a_second_start_is_refused_while_it_goes_on_by_itself(work: Work, run_id: str) -> None:
    done = work("resume", run_id, status=7)
    assert run_id in done.stderr


def test_a_card_that_becomes_read_only_is_reported_and_nothing_is_changed(work: Work, run_id: str) -> None:
    """As ext4 does it when the card returns errors: from one moment to the next, with files open."""
    held = ledger_bytes(work, run_id)
    work.board.ssh("sudo sh -c 'echo u > /proc/sysrq-trigger'")
    work.wait_for(lambda: not work.status(run_id)["is_alive"], "the end of the run on a read-only disk")
    status = work.status(run_id)
    assert status["state"] == "interrupted"
    assert "read-only" in status["message"]
    done = work("resume", run_id, status=5)
    assert "repair or replace the card" in done.stderr
    work("pull", run_id)
    on_board = ledger_bytes(work, run_id)
    assert on_board.startswith(held)
    assert (work.here(run_id) / "ledger.jsonl").read_text() == on_board[: on_board.rfind("\n") + 1]
    work.board.reboot()
    n_held = len(records(on_board))
    text = wait_for_records(work, run_id, n_held + 1)
    assert text.startswith(on_board[: on_board.rfind("\n") + 1])


def test_a_stopped_run_does_not_come_back(work: Work, run_id: str) -> None:
    board = work.board
    assert board.ssh(f"ls {UNITS}/edge-lts-{run_id}.service {LINGERING}", check=False).returncode == 0
    work("stop", run_id, "--timeout", "5m")
    assert work.status(run_id)["state"] == "stopped"
    assert board.ssh(f"find {UNITS} -name '*edge-lts*'").stdout == ""
    assert board.ssh(f"ls {LINGERING}", check=False).returncode != 0  # it was off before


def test_a_full_disk_is_reported_before_anything_is_begun(work: Work, run_id: str) -> None:
    board = work.board
    board.ssh("sudo fallocate -l $(( $(df --output=avail -B1 / | tail -1) - 32768 )) /filler")
    done = work("resume", run_id, status=5)
    assert "full" in done.stderr
    assert "free some space" in done.stderr
    board.ssh("sudo rm /filler")

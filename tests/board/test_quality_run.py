"""A search ranked by a calibrated proxy on a 64-bit ARM userland: from proxy.json to the report, resumed in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_lts.arch import Architecture
from edge_lts.estimating import estimate
from edge_lts.objectives import PROXY_OBJECTIVES, QUALITY
from edge_lts_host import wheelhouse
from tests.board.emulated import EmulatedBoard
from tests.board.workstation import ROOT, SMALL, Workstation, copy_sources, records
from tests.calibrated import proxy

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

PYTHON = "3.11"
JUDGE = proxy(heads=0.05)


@pytest.fixture
def work(fresh_board: EmulatedBoard, tmp_path: Path) -> Workstation[EmulatedBoard]:
    """A workstation that has deployed to the board."""
    copy_sources(tmp_path)
    (tmp_path / "proxy.json").write_text(json.dumps(JUDGE.to_json()))
    wheels = wheelhouse.obtain(wheelhouse.load_lock()[PYTHON, "aarch64"].all_wheels, PYTHON, "aarch64")
    workstation = Workstation(home=tmp_path, board=fresh_board)
    folder = str(next(iter(wheels.values())).parent)
    (workstation.deployed,) = workstation.json("deploy", "--host", workstation.host, "--wheelhouse", folder)["hosts"]
    state = json.loads((tmp_path / "state" / "edge-lts" / "hosts.json").read_text())
    workstation.import_s = float(state["hosts"][workstation.host]["extra"]["torch_import_s"])
    return workstation


def test_a_board_ranks_by_the_proxy_that_was_sent_to_it(work: Workstation[EmulatedBoard]) -> None:
    run_id = work("run", "--target", "arm64", "--budget", "1h", "--proxy", "proxy.json", *SMALL).stdout.strip()
    remote = work.board.home / ROOT / "runs" / run_id
    work.wait_for(lambda: len(records(remote)) >= 2, "two measurements")
    assert work.board.kill_processes("agents/.* search ")
    work.wait_for(lambda: not work.status(run_id)["is_alive"], "the end of the killed agent")
    n_killed = len(records(remote))
    work("resume", run_id)
    work.wait_for(lambda: len(records(remote)) > n_killed, "a measurement after resuming")
    work("stop", run_id, "--timeout", "10m")
    (run,) = work.json("report", run_id, connects=False)["runs"]
    assert run["spec"]["objectives"] == list(PROXY_OBJECTIVES)
    assert run["proxy"]["digest"] == JUDGE.digest
    assert run["frontier"]
    for record in records(work.here(run_id)):
        # The board's numpy may round the last digit otherwise.
        found = estimate(JUDGE, Architecture.from_json(record["architecture"]))
        assert found is not None
        assert record["objectives"][QUALITY] == pytest.approx(found.to_json(), rel=1e-9)

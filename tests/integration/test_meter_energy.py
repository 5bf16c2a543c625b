"""From a meter's bytes to joules per token, in real time: a pty, the recorder, the alignment, the truth known."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from edge_lts.arch import Architecture
from edge_lts.records import Evaluation
from edge_lts_host import meters
from edge_lts_host.meters.alignment import Limits
from edge_lts_host.meters.energy import Energy, energies, energy_of, read_log
from edge_lts_host.meters.recorder import METER_LOG, Recorder
from edge_lts_host.store import RunFolder
from tests.integration.sshd import no_leaks
from tests.meters_simulated import SimulatedUm, plugged_in

IDLE_W, LOAD_W, VOLTS = 2.2, 4.7, 5.1
OFFSET_S = 7654.321  # this machine's clock minus the board's
N_TOKENS = 90
SHORT = Limits(min_busy_s=3.5, min_idle_s=1.0)


class Board:
    """Draws power when busy; its clock is not ours."""

    def __init__(self) -> None:
        self.watts = IDLE_W

    def load(self, _: float) -> tuple[float, float]:
        return VOLTS, self.watts / VOLTS

    def clock(self) -> float:
        return time.monotonic() - OFFSET_S

    def be(self, watts: float, seconds: float) -> list[float]:
        """[begin, end] in the board's time."""
        self.watts = watts
        began_s = self.clock()
        time.sleep(seconds)
        return [began_s, self.clock()]

    def measure(self) -> dict[str, object]:
        """What edge_lts.profile.energy does for an external meter, faster."""
        steps = []
        for rest_s, busy_s in ((2.0, 1.5), (1.0, 0.7)):
            self.be(IDLE_W, rest_s)
            steps.append(self.be(LOAD_W, busy_s))
        self.be(IDLE_W, 2.5)
        idle = self.be(IDLE_W, 2.0)
        self.be(LOAD_W, 1.0)
        busy = self.be(LOAD_W, 4.0)
        self.be(IDLE_W, 1.0)
        after = self.be(IDLE_W, 1.5)
        return {
            "clock": "monotonic", "steps": steps, "idle": idle, "busy": busy, "idle_after": after,
            "n_tokens": N_TOKENS, "boot_id": "the board's",
        }  # fmt: skip


@pytest.mark.parametrize(("refresh_s", "lag_s"), [(0.5, 0.0), (0.1, 0.25)])
def test_energy_of_a_simulated_board_is_found_without_knowing_its_clock(
    tmp_path: Path, refresh_s: float, lag_s: float
) -> None:
    board = Board()
    simulated = SimulatedUm("UM25C", board.load, refresh_s=refresh_s, lag_s=lag_s)
    simulated.piece_bytes, simulated.pause_s = 20, 0.002
    with no_leaks(), plugged_in(simulated), meters.recording(f"um25c:{simulated.path}", tmp_path):
        windows = board.measure()
        time.sleep(1.0)
    true_j = (LOAD_W - IDLE_W) * (windows["busy"][1] - windows["busy"][0]) / N_TOKENS  # type: ignore[index]
    found = energies({0: {"windows": windows}}, read_log(tmp_path / METER_LOG), SHORT)[0]
    assert isinstance(found, Energy), found
    assert found.value.median == pytest.approx(true_j, rel=0.03)
    assert found.conditions["idle_w"] == pytest.approx(IDLE_W, rel=0.02)
    assert found.conditions["meter"] == "UM25C"
    where = found.conditions["alignment"]
    # Beyond the clocks' difference lies the meter's own delay: its refresh, its lag, its answer.
    assert -0.35 < where["offset_s"] - OFFSET_S < 0.8
    assert where["uncertainty_s"] < 0.5


def test_meter_unplugged_half_way_costs_the_later_window_only(tmp_path: Path) -> None:
    """Two candidates; the meter dies during the second. The first keeps its energy, and the folder's report says so."""
    board = Board()
    simulated = SimulatedUm("UM25C", board.load, refresh_s=0.1)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    arch = Architecture.from_json({"backbone": "gpt2", "d_model": 64, "layers": [{"n_head": 2, "d_inner": 128}]})
    recorder = Recorder(f"um25c:{simulated.path}", folder.path)
    recorder.start()
    try:
        first = board.measure()
        pulling = threading.Timer(6.0, simulated.unplug)
        pulling.start()
        second = board.measure()
        pulling.join()
    finally:
        recorder.stop()
        simulated.unplug()
    found = energies({0: {"windows": first}, 1: {"windows": second}}, read_log(folder / METER_LOG), SHORT)
    assert isinstance(found[0], Energy), found[0]
    assert not isinstance(found[1], Energy)
    records = [
        Evaluation(
            candidate_id=1, architecture=arch, objectives={}, samples={}, conditions={"energy": {"windows": each}}
        ).to_json()
        for each in (first, second)
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert energy_of(folder) == {}  # four seconds are too few by the usual limits

"""Aligning a meter with a board's clock, and what is made of it: simulated power, no meter and no waiting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.records import Evaluation, Measurement
from edge_lts_host import meters
from edge_lts_host.errors import UsageError
from edge_lts_host.meters import energy
from edge_lts_host.meters.alignment import Alignment, Limits, Rejection, Series, Windows, align
from edge_lts_host.meters.base import MeterError
from edge_lts_host.meters.hwmon import HwmonMeter
from edge_lts_host.meters.recorder import METER_LOG
from edge_lts_host.store import RunFolder
from tests.meters_simulated import fake_hwmon

IDLE_W, STEP_W, BUSY_W, N_TOKENS = 2.6, 5.4, 4.9, 240
ARCH = Architecture.from_json({"backbone": "gpt2", "d_model": 64, "layers": [{"n_head": 2, "d_inner": 128}]})


def make_windows(start_s: float, busy_s: float = 15.0, boot_id: str | None = "board") -> dict[str, Any]:
    """Idle 4 s, steps of 1, 2 and 1 s, busy for `busy_s`, on the board's clock."""
    at = start_s
    idle = [at, at + 4]
    steps = [[at + 4, at + 5], [at + 6.5, at + 8.5], [at + 9.5, at + 10.5]]
    busy = [at + 12, at + 12 + busy_s]
    data = {"clock": "monotonic", "steps": steps, "idle": idle, "busy": busy, "n_tokens": N_TOKENS}
    return data if boot_id is None else {**data, "boot_id": boot_id}


def boards_windows(start_s: float, busy_s: float = 10.4) -> dict[str, Any]:
    """As edge_lts.profile.energy lays them out: two steps, rest, idle, 1 s of load, busy, rest, idle again."""
    steps = [[start_s + 2.0, start_s + 3.5], [start_s + 4.5, start_s + 5.2]]
    idle = [start_s + 8.2, start_s + 11.2]
    busy = [start_s + 12.2, start_s + 12.2 + busy_s]
    after = [busy[1] + 1.0, busy[1] + 3.0]
    return {
        "clock": "monotonic", "steps": steps, "idle": idle, "busy": busy, "idle_after": after, "n_tokens": N_TOKENS,
        "parts": [],
    }  # fmt: skip


@dataclass
class Bench:
    """A board and a meter whose clocks differ by `offset_s` and drift apart by `drift`."""

    offset_s: float = 8123.4
    drift: float = 0.0
    lag_s: float = 0.3
    refresh_s: float = 0.5
    noise_w: float = 0.02
    windows: list[dict[str, Any]] = field(default_factory=list)
    extra: list[tuple[float, float]] = field(default_factory=list)  # busy besides, on the board's clock

    def readings(self, start_s: float, end_s: float, poll_s: float = 0.25, seed: int = 1) -> list[tuple[float, float]]:
        """What the meter shows from board second `start_s` to `end_s`, at seconds of this machine's clock."""
        rng = np.random.default_rng(seed)
        fine_s = 0.01
        board = np.arange(start_s - 10, end_s, fine_s)
        power = np.full(len(board), IDLE_W)
        for each in self.windows:
            for low, high in each["steps"]:
                power[(board >= low) & (board < high)] = STEP_W
            began = each["idle"][1] if "idle_after" in each else each["busy"][0]
            power[(board >= began) & (board < each["busy"][1])] = BUSY_W
        for low, high in self.extra:
            power[(board >= low) & (board < high)] = STEP_W
        share = 1 - np.exp(-fine_s / self.lag_s) if self.lag_s else 1.0
        shown, state, held, held_s = np.empty_like(power), power[0], power[0], -1e9
        for i, target in enumerate(power):
            state += share * (target - state)
            if board[i] - held_s >= self.refresh_s:
                held, held_s = state + rng.normal(0, self.noise_w), board[i]
            shown[i] = held
        polls = np.arange(start_s, end_s - fine_s, poll_s) + rng.uniform(0, 0.02)
        values = shown[np.searchsorted(board, polls)]
        host = polls * (1 + self.drift) + self.offset_s
        return [(float(t), round(float(p), 3)) for t, p in zip(host, values, strict=True)]

    def true_offset(self, at_s: float) -> float:
        return self.offset_s + self.drift * at_s


TRUE_J = (BUSY_W - IDLE_W) * 15.0 / N_TOKENS


def aligned(bench: Bench, readings: Sequence[tuple[float, float]], limits: Limits | None = None) -> Any:
    windows = [Windows.from_json(each) for each in bench.windows]
    recording = energy.Recording(
        boot_id="host", meter="um25c", model="UM25C", scope="board-input", readings=list(readings)
    )
    series = Series.of(readings)
    return align(windows, series, energy.search_ranges(recording, windows), limits or Limits())


def energies(bench: Bench, readings: Sequence[tuple[float, float]], **changes: Any) -> list[Any]:
    recording = energy.Recording(
        boot_id="host", meter="um25c", model="UM25C", scope="board-input", readings=list(readings), **changes
    )
    described = {index: {"windows": each} for index, each in enumerate(bench.windows)}
    return list(energy.energies(described, [recording]).values())


@pytest.mark.parametrize("lag_s", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("offset_s", [-5000.0, 0.0, 8123.4])
def test_offset_is_found_anywhere_in_the_log(lag_s: float, offset_s: float) -> None:
    bench = Bench(offset_s=offset_s, lag_s=lag_s, windows=[make_windows(300)])
    (found,) = aligned(bench, bench.readings(200, 600))
    assert isinstance(found, Alignment)
    # The screen shows what was up to half a second ago; that delay belongs to the offset.
    assert found.offset_s - offset_s == pytest.approx(0.25, abs=0.4)
    assert 0 < found.uncertainty_s < 0.6
    assert found.correlation > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_energy_is_within_two_percent_and_the_interval_holds_the_truth(seed: int) -> None:
    bench = Bench(windows=[make_windows(300)])
    (found,) = energies(bench, bench.readings(250, 400, seed=seed))
    assert isinstance(found, energy.Energy)
    assert found.value.median == pytest.approx(TRUE_J, rel=0.02)
    assert found.value.ci95 is not None
    assert found.value.ci95[0] - 0.005 * TRUE_J <= TRUE_J <= found.value.ci95[1] + 0.005 * TRUE_J
    assert found.conditions["idle_w"] == pytest.approx(IDLE_W, rel=0.01)
    assert found.conditions["busy_w"] == pytest.approx(BUSY_W, rel=0.01)
    assert (found.conditions["meter"], found.conditions["scope"]) == ("UM25C", "board-input")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lag_s", [0.0, 0.4])
def test_the_boards_own_layout_gives_energy_in_the_midst_of_a_search(seed: int, lag_s: float) -> None:
    windows = [boards_windows(300), boards_windows(420), boards_windows(1000)]
    bench = Bench(lag_s=lag_s, windows=windows, drift=4e-5)
    rng = np.random.default_rng(seed)
    bench.extra = [(float(at), float(at + rng.uniform(0.1, 6))) for at in rng.uniform(330, 410, 12)]
    bench.extra += [(float(at), float(at + rng.uniform(0.1, 6))) for at in rng.uniform(450, 990, 60)]
    found = energies(bench, bench.readings(280, 1040, seed=seed))
    true_j = (BUSY_W - IDLE_W) * 10.4 / N_TOKENS
    for each in found:
        assert isinstance(each, energy.Energy), each
        assert each.value.median == pytest.approx(true_j, rel=0.02)
        assert each.value.ci95 is not None
        assert each.value.ci95[0] - 0.005 * true_j <= true_j <= each.value.ci95[1] + 0.005 * true_j
        assert each.conditions["notes"] == []


def test_idle_power_that_moves_is_noted_and_widens_the_interval() -> None:
    bench = Bench(windows=[boards_windows(300)])
    readings = bench.readings(280, 340)
    end_s = bench.windows[0]["busy"][1] + bench.offset_s + 0.5
    moved = [(t, p + 0.5 if t > end_s else p) for t, p in readings]
    (still,), (found,) = energies(bench, readings), energies(bench, moved)
    assert isinstance(found, energy.Energy)
    assert found.conditions["notes"] == ["idle_drift"]
    assert found.conditions["idle_w"] == pytest.approx(IDLE_W + 0.25, abs=0.05)
    assert found.value.ci95 is not None
    assert still.value.ci95 is not None
    assert found.value.ci95[1] - found.value.ci95[0] > 2 * (still.value.ci95[1] - still.value.ci95[0])


def test_many_equal_patterns_are_not_mistaken_for_one_another_though_the_clocks_drift() -> None:
    starts = [100, 160, 235, 290, 1500, 1571]
    bench = Bench(drift=2e-4, windows=[make_windows(start) for start in starts])
    found = aligned(bench, bench.readings(50, 1700, poll_s=0.5))
    for start, each in zip(starts, found, strict=True):
        assert isinstance(each, Alignment), each
        assert each.offset_s - bench.true_offset(start) == pytest.approx(0.25, abs=0.45)


def test_one_of_several_equal_patterns_is_told_by_the_boards_clock_marks_and_refused_without() -> None:
    bench = Bench(windows=[make_windows(100), make_windows(160), make_windows(220)])
    readings = bench.readings(50, 300)
    bench.windows = bench.windows[1:2]
    (found,) = energies(bench, readings)
    assert isinstance(found, Rejection)
    assert found.reason == "ambiguous"
    marks = {"board": [bench.offset_s + late for late in (6.0, 2.5, 4.0)], "earlier boot": [1.0]}
    (found,) = energies(bench, readings, marks=marks)
    assert isinstance(found, energy.Energy)
    assert found.conditions["alignment"]["offset_s"] == pytest.approx(bench.offset_s + 0.25, abs=0.4)


def test_board_that_is_this_machine_needs_no_search() -> None:
    bench = Bench(offset_s=0.0, windows=[make_windows(start, boot_id="host") for start in (100, 160, 220)])
    readings = bench.readings(50, 300)
    bench.windows = bench.windows[1:2]
    (found,) = energies(bench, readings)
    assert isinstance(found, energy.Energy)


def test_search_noise_around_the_windows_does_not_disturb() -> None:
    rng = np.random.default_rng(3)
    bench = Bench(windows=[make_windows(300)])
    starts = [float(at) for at in rng.uniform(200, 290, 25)] + [float(at) for at in rng.uniform(330, 400, 25)]
    bench.extra = [(at, at + float(rng.uniform(0.1, 3))) for at in starts if not 296 < at < 328]
    bench.extra = [(low, min(high, 299.0) if low < 300 else high) for low, high in bench.extra]
    (found,) = energies(bench, bench.readings(190, 420))
    assert isinstance(found, energy.Energy)
    assert found.value.median == pytest.approx(TRUE_J, rel=0.03)


def reason(found: Any) -> str:
    assert isinstance(found, Rejection), found
    return found.reason


def test_power_that_does_not_follow_the_load_is_refused() -> None:
    bench = Bench(windows=[make_windows(300)])
    flat = replace(bench, windows=[], noise_w=0.3).readings(250, 400)
    assert reason(energies(bench, flat)[0]) in ("poor_correlation", "no_readings")


def test_power_that_falls_with_load_is_refused() -> None:
    bench = Bench(windows=[make_windows(300)])
    upside_down = [(t, 8.0 - p) for t, p in bench.readings(290, 340)]
    assert reason(energies(bench, upside_down, marks={"board": [bench.offset_s + 1]})[0]) in (
        "no_readings",
        "poor_correlation",
    )


@pytest.mark.parametrize(("low", "high", "expected"), [(315, 319, "gap"), (313, 326, "no_readings")])
def test_gap_in_the_readings_is_refused(low: float, high: float, expected: str) -> None:
    bench = Bench(windows=[make_windows(300), make_windows(400), make_windows(470)])
    readings = [each for each in bench.readings(250, 550) if not low < each[0] - bench.offset_s < high]
    found = energies(bench, readings)
    assert reason(found[0]) in (expected, "no_readings")
    assert all(isinstance(each, energy.Energy) for each in found[1:])


def test_small_gap_is_a_gap() -> None:
    bench = Bench(windows=[make_windows(300, busy_s=60)])
    readings = [each for each in bench.readings(250, 400) if not 340 < each[0] - bench.offset_s < 342.6]
    assert reason(energies(bench, readings)[0]) == "gap"


def test_short_busy_window_is_refused_unless_the_limits_say_otherwise() -> None:
    bench = Bench(windows=[make_windows(300, busy_s=9.0)])
    assert reason(energies(bench, bench.readings(250, 400))[0]) == "too_short"


def test_recording_that_ended_before_is_refused() -> None:
    bench = Bench(windows=[make_windows(300)])
    assert reason(energies(bench, bench.readings(250, 305))[0]) in ("no_readings", "poor_correlation")


def test_recordings_of_two_boots_of_this_machine_are_not_mixed(tmp_path: Path) -> None:
    bench = Bench(offset_s=50.0, windows=[make_windows(100), make_windows(1000)])
    path = tmp_path / METER_LOG
    rebooted = replace(bench, offset_s=-900.0)
    for each, start_s, boot_id in ((bench, 90, "first"), (rebooted, 990, "second")):
        write_log(path, each.readings(start_s, start_s + 50), boot_id=boot_id)
        with path.open("a") as file:
            mark = {"kind": "clock", "t_s": start_s + each.offset_s + 3, "board_s": start_s, "boot_id": "board"}
            file.write(json.dumps(mark) + "\n")
    recordings = energy.read_log(path)
    assert [(each.boot_id, len(each.readings) > 100) for each in recordings] == [("first", True), ("second", True)]
    found = energy.energies({index: {"windows": each} for index, each in enumerate(bench.windows)}, recordings)
    for each in found.values():
        assert isinstance(each, energy.Energy), each
        assert each.value.median == pytest.approx(TRUE_J, rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"clock": "wall"},
        {"steps": [[2, 1]]},
        {"steps": [[5, 6], [1, 2]]},
        {"steps": 7},
        {"idle": [1]},
        {"busy": [float("nan"), 2]},
        {"busy": [0, 1e9]},
        {"n_tokens": 0},
        {"n_tokens": True},
        {"n_tokens": "9"},
    ],
)
def test_windows_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Rejection) as caught:
        Windows.from_json({**make_windows(1), **change})
    assert caught.value.reason == "no_windows"


# The run's folder ---------------------------------------------------------------------------------------------------


def write_log(path: Path, readings: Sequence[tuple[float, float]], boot_id: str = "host", **header: Any) -> None:
    first = {
        "kind": "header", "schema_version": 1, "meter": "um25c", "model": "UM25C", "scope": "board-input",
        "clock": "monotonic", "boot_id": boot_id, **header,
    }  # fmt: skip
    records = [first, *({"t_s": t, "power_w": p, "voltage_v": 5.0, "current_a": p / 5} for t, p in readings)]
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def make_record(windows: dict[str, Any] | None, candidate_id: int = 1, purpose: Any = "search") -> dict[str, Any]:
    conditions = {} if windows is None else {"energy": {"windows": windows}}
    return Evaluation(
        candidate_id=candidate_id,
        architecture=ARCH,
        objectives={"decoder_params": ARCH.decoder_params},
        samples={},
        conditions=conditions,
        purpose=purpose,
    ).to_json()


def make_folder(tmp_path: Path, bench: Bench) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    purposes = ["search", *["confirm"] * len(bench.windows)]
    records = [make_record(None), *map(make_record, bench.windows, range(1, 99), purposes)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_folder_without_a_recording_has_no_energy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, Bench(windows=[make_windows(100)]))
    assert energy.energy_of(folder) == {}
    assert energy.rejections(folder) == {}
    assert not (folder / energy.ENERGY_FILE).exists()


def test_energy_of_a_folder_is_stored_and_worked_out_again_when_it_grows(tmp_path: Path) -> None:
    bench = Bench(windows=[make_windows(100), make_windows(160), make_windows(300, busy_s=5)])
    folder = make_folder(tmp_path, bench)
    write_log(folder / METER_LOG, bench.readings(90, 200))
    (found,) = energy.energy_of(folder).values()
    assert (found["meter"], found["scope"], found["n_windows"]) == ("UM25C", "board-input", 2)
    assert found["idle_w"] == pytest.approx(IDLE_W, rel=0.01)
    value = Measurement.from_json(found["value"])
    assert value.median == pytest.approx(TRUE_J, rel=0.02)
    assert value.ci95 is not None
    assert value.ci95[0] <= value.median <= value.ci95[1]
    assert energy.rejections(folder) == {"no_readings": 1}
    stored = json.loads((folder / energy.ENERGY_FILE).read_bytes())
    assert [record["index"] for record in stored["records"]] == [1, 2, 3]
    (folder / energy.ENERGY_FILE).write_text(json.dumps({**stored, "records": []}))
    assert energy.energy_of(folder) == {}  # nothing has changed: what is stored is believed
    write_log(folder / METER_LOG, bench.readings(210, 330))
    assert energy.energy_of(folder)[ARCH.arch_id]["n_windows"] == 2
    assert energy.rejections(folder) == {"too_short": 1}


def test_damaged_lines_of_the_log_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / METER_LOG
    path.write_text('{"t_s": 1, "power_w": 2}\n')  # before any header: nobody knows of which boot
    write_log(path, [(5.0, 1.0)])
    with path.open("a") as file:
        file.write(
            '{"t_s": 6, "pow\n[1]\n{"t_s": "7", "power_w": 1}\n{"kind": "error", "t_s": 8}\n{"t_s": 9, "power_w": 2}\n'
        )
    (recording,) = energy.read_log(path)
    assert recording.readings == [(5.0, 1.0), (9.0, 2.0)]


def test_measure_gets_its_energy_or_the_reason_why_not(tmp_path: Path) -> None:
    bench = Bench(windows=[make_windows(100)])
    record = make_record(bench.windows[0])
    path = tmp_path / METER_LOG
    without = energy.with_energy(record, path)
    assert meters.ENERGY not in without["objectives"]
    assert without["conditions"]["energy"]["rejected"]["reason"] == "no_readings"
    write_log(path, bench.readings(90, 140))
    found = energy.with_energy(record, path)
    assert found["objectives"][meters.ENERGY]["median"] == pytest.approx(TRUE_J, rel=0.02)
    assert found["conditions"]["energy"]["meter"] == "UM25C"
    assert record["objectives"] == {"decoder_params": ARCH.decoder_params}
    assert energy.with_energy(make_record(None), path)["conditions"]["energy"]["rejected"]["reason"] == "no_windows"


# The command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "board"),
    [
        ("auto", "auto"), ("none", "none"), ("pmic", "pmic"), ("pmic:1.14,0.59", "pmic:1.14,0.59"), ("ina", "ina"),
        ("um25c:/dev/rfcomm0", "external"), ("TC66C:/dev/ttyACM0", "external"), ("host-powerz", "external"),
        ("yzx:/dev/serial/by-id/usb-1a86:7523", "external"),
    ],
)  # fmt: skip
def test_the_board_is_told_of_its_own_meter_or_that_there_is_one_elsewhere(text: str, board: str) -> None:
    assert meters.board_meter(text) == board
    assert meters.is_on_host(text) == (board == "external")


@pytest.mark.parametrize("text", ["", "um26c:/dev/x", "um25c", "tc66c:", "yzx", "none:x", "auto:"])
def test_meter_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--meter"):
        meters.parse(text)


def test_meter_of_this_machine_needs_waiting_one_board_and_no_objective() -> None:
    meters.check(["auto", "auto"], is_waiting=False, objectives=[meters.ENERGY])
    meters.check(["um25c:/dev/a", "um25c:/dev/b"], is_waiting=True)
    with pytest.raises(UsageError, match="must be waited for: add --wait"):
        meters.check(["um25c:/dev/a"], is_waiting=False)
    with pytest.raises(UsageError, match="one meter measures one board, but 2"):
        meters.check(["um25c:/dev/a", "um25c:/dev/a"], is_waiting=True)
    with pytest.raises(UsageError, match="cannot steer the search"):
        meters.check(["um25c:/dev/a"], is_waiting=True, objectives=["decoder_params", meters.ENERGY])


# Meters that the kernel reads ---------------------------------------------------------------------------------------


def test_kernel_meters_are_read_through_the_boards_own_code(tmp_path: Path) -> None:
    fake_hwmon(tmp_path, "k10temp", {"temp1_input": 40000}, number=0)
    fake_hwmon(tmp_path, "powerz", {"in0_input": 5123, "curr1_input": -613}, number=1)
    fake_hwmon(tmp_path, "ina226", {"in0_input": 3, "in1_input": 5100, "curr1_input": 600, "power1_input": 3062500}, 2)
    powerz = HwmonMeter("powerz", root=tmp_path, clock=lambda: 7.0)
    reading = powerz.read()
    assert (reading.t_s, reading.voltage_v) == (7.0, None)
    assert reading.power_w == pytest.approx(5.123 * 0.613)
    assert (powerz.scope, powerz.model) == ("board-input", "powerz (hwmon1)")
    assert HwmonMeter("ina", root=tmp_path).read().power_w == 3.0625


def test_kernel_meter_that_is_missing_gone_or_absurd(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"no POWER-Z"):
        HwmonMeter("powerz", root=tmp_path)
    folder = fake_hwmon(tmp_path, "powerz", {"in0_input": 5123, "curr1_input": 613}, number=1)
    meter = HwmonMeter("powerz", root=tmp_path)
    (folder / "curr1_input").write_text("613000000\n")
    with pytest.raises(MeterError, match=r"reads .* W"):
        meter.read()
    (folder / "curr1_input").unlink()
    with pytest.raises(MeterError, match=r"curr1_input.*still plugged in"):
        meter.read()

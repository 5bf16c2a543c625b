"""Meters on pseudo-terminals, well-behaved and not: exact values, clear errors, a recording that survives."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import meters
from edge_lts_host.errors import HostError
from edge_lts_host.meters.base import MeterError
from edge_lts_host.meters.energy import read_log
from edge_lts_host.meters.port import SerialMeter, mapped
from edge_lts_host.meters.recorder import METER_LOG, Recorder
from edge_lts_host.meters.tc66c import crc16_modbus
from tests.integration.sshd import no_leaks, wait_until
from tests.meters_simulated import SimulatedMeter, SimulatedTc66c, SimulatedUm, SimulatedYzx, plugged_in

KINDS: dict[str, Callable[[], SimulatedMeter]] = {
    "um24c": lambda: SimulatedUm("UM24C"),
    "um25c": lambda: SimulatedUm("UM25C"),
    "um34c": lambda: SimulatedUm("UM34C"),
    "tc66c": SimulatedTc66c,
    "yzx": SimulatedYzx,
}
# What 5.123 V and 0.6127 A look like at each meter's resolution; volts, amperes, watts.
SHOWN = {
    "um24c": (5.12, 0.613, 3.139),
    "um25c": (5.123, 0.6127, 3.139),
    "um34c": (5.12, 0.613, 3.139),
    "tc66c": (5.123, 0.6127, 3.1389),
    "yzx": (5.123, 0.6127, 5.123 * 0.6127),
}
MODELS = {"um24c": "UM24C", "um25c": "UM25C", "um34c": "UM34C", "tc66c": "TC66", "yzx": "YZXStudio"}


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with no_leaks():
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SerialMeter, "timeout_s", 0.4)


@pytest.fixture(params=sorted(KINDS))
def device(request: pytest.FixtureRequest) -> Iterator[tuple[str, SimulatedMeter]]:
    with plugged_in(KINDS[request.param]()) as meter:
        yield request.param, meter


def read(kind: str, path: str) -> tuple[float, float, float]:
    with meters.open_meter(f"{kind}:{path}") as meter:
        reading = meter.read()
        assert meter.model == MODELS[kind]
        return reading.voltage_v, reading.current_a, reading.power_w


def test_values_are_exact(device: tuple[str, SimulatedMeter]) -> None:
    kind, simulated = device
    assert read(kind, simulated.path) == pytest.approx(SHOWN[kind], rel=1e-12)
    assert not simulated.unknown


def test_reading_is_stamped_with_this_machines_monotonic_clock(device: tuple[str, SimulatedMeter]) -> None:
    kind, simulated = device
    with meters.open_meter(f"{kind}:{simulated.path}") as meter:
        before_s = time.monotonic()
        first, second = meter.read(), meter.read()
    assert before_s <= first.t_s < second.t_s <= time.monotonic()


@pytest.mark.parametrize("piece_bytes", [1, 7, 20])
def test_split_frames_are_put_together(device: tuple[str, SimulatedMeter], piece_bytes: int) -> None:
    kind, simulated = device
    simulated.piece_bytes, simulated.pause_s = piece_bytes, 0.02 if piece_bytes > 1 else 0.001
    assert read(kind, simulated.path) == pytest.approx(SHOWN[kind], rel=1e-12)


@pytest.mark.parametrize("noise", [b"\xf1", b"\x09\xc9\x00\xab\xab", bytes(range(200))])
def test_noise_before_the_frame_is_passed_over(device: tuple[str, SimulatedMeter], noise: bytes) -> None:
    kind, simulated = device
    simulated.noise = noise
    assert read(kind, simulated.path) == pytest.approx(SHOWN[kind], rel=1e-12)


DAMAGES = [
    *(("um24c", at) for at in (128, 129, 6)),
    *(("um25c", at) for at in (128, 129, 2, 4, 7)),
    *(("um34c", at) for at in (129, 3, 7, 127)),
    *(("tc66c", at) for at in (0, 50, 70, 190)),
    *(("yzx", at) for at in (0, 1, 3, 12, 27)),
]


@pytest.mark.parametrize(("kind", "at"), DAMAGES)
def test_damaged_answer_is_asked_for_again(kind: str, at: int) -> None:
    with plugged_in(KINDS[kind]()) as simulated:
        simulated.damage_at, simulated.n_damaged = at, 2 if kind != "yzx" else 1
        assert read(kind, simulated.path) == pytest.approx(SHOWN[kind], rel=1e-12)
        assert simulated.n_damaged == 0


@pytest.mark.usefixtures("impatient")
def test_answers_that_stay_damaged_are_an_error(device: tuple[str, SimulatedMeter]) -> None:
    kind, simulated = device
    simulated.damage_at, simulated.n_damaged = {"um34c": 3, "tc66c": 50, "yzx": 5}.get(kind, 128), 1000
    with meters.open_meter(f"{kind}:{simulated.path}") as meter:
        with pytest.raises(MeterError, match=r"damaged|no sound frame") as caught:
            meter.read()
        assert simulated.path in str(caught.value)
        assert caught.value.remedy
        simulated.n_damaged = 0
        assert meter.read().voltage_v == pytest.approx(SHOWN[kind][0])  # the same port recovers


@pytest.mark.usefixtures("impatient")
def test_silence_is_an_error_within_the_time_and_says_what_to_look_at(device: tuple[str, SimulatedMeter]) -> None:
    kind, simulated = device
    simulated.is_silent = True
    with meters.open_meter(f"{kind}:{simulated.path}") as meter:
        began_s = time.monotonic()
        with pytest.raises(
            MeterError, match=r"no answer within 0\.4 s, 3 times; is it the right port, is the meter on"
        ):
            meter.read()
        assert time.monotonic() - began_s < 2.5


@pytest.mark.usefixtures("impatient")
def test_half_an_answer_and_no_more_is_an_error() -> None:
    with plugged_in(SimulatedUm()) as simulated:
        simulated.frame = lambda: bytes.fromhex("09c9") + bytes(62)  # type: ignore[method-assign]
        with (
            meters.open_meter(f"um25c:{simulated.path}") as meter,
            pytest.raises(MeterError, match="only 64 of 130 bytes"),
        ):
            meter.read()


@pytest.mark.parametrize("label", ["um24c", "um25c", "um34c"])
@pytest.mark.parametrize("model", ["UM24C", "UM25C", "UM34C"])
def test_the_models_own_scale_is_used_whatever_it_was_called(label: str, model: str) -> None:
    with plugged_in(SimulatedUm(model)) as simulated:
        said, reading = meters.try_meter(f"{label}:{simulated.path}")
        assert (reading.voltage_v, reading.current_a) == pytest.approx(SHOWN[model.lower()][:2], rel=1e-12)
    assert said.startswith(f"{model} at /dev/")
    assert ("its scale is used" in said) == (label.upper() != model)


def test_unknown_model_is_refused_by_its_number() -> None:
    with plugged_in(SimulatedUm("UM25C")) as simulated:
        simulated.model_id = 0x1234  # type: ignore[attr-defined]
        with (
            meters.open_meter(f"um25c:{simulated.path}") as meter,
            pytest.raises(MeterError, match=r"unknown model 0x1234; known: UM24C, UM25C, UM34C"),
        ):
            meter.read()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("asked", "there"), [("um25c", "tc66c"), ("um25c", "yzx"), ("tc66c", "um25c"), ("tc66c", "yzx"), ("yzx", "um25c")]
)
def test_meter_of_another_family_is_an_error(asked: str, there: str) -> None:
    with (
        plugged_in(KINDS[there]()) as simulated,
        meters.open_meter(f"{asked}:{simulated.path}") as meter,
        pytest.raises(MeterError) as caught,
    ):
        meter.read()
    assert caught.value.remedy


def test_unplugged_half_way_is_a_meter_error(device: tuple[str, SimulatedMeter]) -> None:
    kind, simulated = device
    simulated.unplug_after = 1
    with meters.open_meter(f"{kind}:{simulated.path}") as meter:
        meter.read()
        with pytest.raises(MeterError, match=r"still plugged in|is it the right port") as caught:
            meter.read()
        assert caught.value.where == simulated.path
        with pytest.raises(MeterError):
            meter.read()


def test_port_that_is_not_there_or_no_terminal_or_taken(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"No such file.*is it plugged in, or bound with rfcomm"):
        meters.open_meter("um25c:/dev/no-such-port")
    plain = tmp_path / "file"
    plain.write_bytes(b"")
    with pytest.raises(MeterError, match="cannot open it"):
        meters.open_meter(f"tc66c:{plain}")
    with (
        plugged_in(SimulatedUm()) as simulated,
        meters.open_meter(f"um25c:{simulated.path}"),
        pytest.raises(MeterError, match="another program has the port"),
    ):
        meters.open_meter(f"um25c:{simulated.path}")


def test_every_error_of_pyserial_becomes_a_meter_error() -> None:
    import termios

    import serial

    every = [value for value in vars(serial).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert serial.SerialTimeoutException in every
    for kind in (*every, serial.serialutil.PortNotOpenError, OSError, termios.error, ValueError):
        with pytest.raises(MeterError, match="/dev/x: it was lost"), mapped("/dev/x", "it was lost"):
            raise kind()
    assert issubclass(MeterError, HostError)


def test_crc_is_modbus() -> None:
    assert crc16_modbus(b"123456789") == 0x4B37


# Recording ----------------------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / METER_LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_recorder_writes_a_header_and_readings(tmp_path: Path) -> None:
    with plugged_in(SimulatedUm()) as simulated, meters.recording(f"um24c:{simulated.path}", tmp_path):
        assert wait_until(lambda: len(lines(tmp_path)) >= 4, 5)
    header, *readings = lines(tmp_path)
    assert header["kind"] == "header"
    assert (header["meter"], header["model"], header["scope"]) == ("um24c", "UM25C", "board-input")
    assert header["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert set(readings[0]) == {"t_s", "power_w", "voltage_v", "current_a"}
    assert readings[0]["power_w"] == 3.139
    assert [each["t_s"] for each in readings] == sorted(each["t_s"] for each in readings)
    (recording,) = read_log(tmp_path / METER_LOG)
    assert recording.readings == [(each["t_s"], each["power_w"]) for each in readings]


def test_recorder_keeps_what_it_has_when_unplugged_and_goes_on_when_plugged_in_again(tmp_path: Path) -> None:
    link, said = tmp_path / "port", list[str]()
    first = SimulatedUm()
    link.symlink_to(first.path)
    recorder = Recorder(f"um25c:{link}", tmp_path, warn=said.append, wait=lambda s: time.sleep(min(s, 0.05)) or False)
    recorder.start()
    try:
        assert wait_until(lambda: recorder.n_readings >= 3, 5)
        first.unplug()
        assert wait_until(lambda: any(line.get("kind") == "error" for line in lines(tmp_path)), 5)
        n_before = recorder.n_readings
        link.unlink()
        with plugged_in(SimulatedUm("UM24C")) as second:
            link.symlink_to(second.path)
            assert wait_until(lambda: recorder.n_readings >= n_before + 3, 10)
            recorder.stop()
    finally:
        recorder.stop()
    assert [line["model"] for line in lines(tmp_path) if line.get("kind") == "header"] == ["UM25C", "UM24C"]
    assert len(said) == 2
    assert "is not read" in said[0]
    assert "UM24C" in said[1]
    assert [(each.model, len(each.readings) >= 3) for each in read_log(tmp_path / METER_LOG)] == [
        ("UM25C", True),
        ("UM24C", True),
    ]


def test_recorder_of_a_meter_that_is_not_there_warns_once_and_raises_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with meters.recording("um25c:/dev/no-such-port", tmp_path, said.append):
        assert wait_until(lambda: bool(lines(tmp_path)), 5)
    assert len(said) == 1
    assert {line["kind"] for line in lines(tmp_path)} == {"error"}
    assert read_log(tmp_path / METER_LOG) == []


def test_recorder_survives_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    said: list[str] = []
    with plugged_in(SimulatedUm()) as simulated:
        recorder = Recorder(f"um25c:{simulated.path}", tmp_path / "gone", warn=said.append)
        recorder.start()
        assert wait_until(lambda: recorder.n_readings >= 2, 5)
        recorder.stop()
    assert [text for text in said if "energy will be missing" in text]
    assert len(said) == 1


def test_recorder_notes_where_the_boards_clock_is(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"heartbeat_monotonic_s": 77.5, "boot_id": "board"}))
    with plugged_in(SimulatedUm()) as simulated, meters.recording(f"um25c:{simulated.path}", tmp_path):
        assert wait_until(lambda: any(line.get("kind") == "clock" for line in lines(tmp_path)), 5)
    (recording,) = read_log(tmp_path / METER_LOG)
    (difference_s,) = recording.marks["board"]
    assert difference_s == pytest.approx(time.monotonic() - 77.5, abs=10)


def test_recorder_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / METER_LOG).write_bytes(b'{"t_s": 1.0, "pow')
    with plugged_in(SimulatedUm()) as simulated, meters.recording(f"um25c:{simulated.path}", tmp_path):
        assert wait_until(lambda: (tmp_path / METER_LOG).read_bytes().count(b"\n") >= 4, 5)
    assert len(read_log(tmp_path / METER_LOG)[0].readings) >= 2


@pytest.mark.parametrize("text", [None, "auto", "none", "pmic", "powerz"])
def test_meters_of_the_board_are_not_recorded_here(tmp_path: Path, text: str | None) -> None:
    n_threads = threading.active_count()
    with meters.recording(text, tmp_path):
        assert threading.active_count() == n_threads
    assert os.listdir(tmp_path) == []

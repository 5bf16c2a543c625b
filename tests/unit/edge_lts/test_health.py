import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from edge_lts import health
from edge_lts.health import Health, Sensors, health_json, taints_between, throttle_c, was_throttled
from tests.support import board

FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
POLICY = "sys/devices/system/cpu/cpufreq/policy"
ZONE = "sys/class/thermal/thermal_zone"


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    return board(
        tmp_path,
        {
            FIRMWARE: "50000\n",
            f"{ZONE}0/type": "cpu-thermal\n",
            f"{ZONE}0/temp": "61234\n",
            f"{ZONE}1/type": "gpu-thermal\n",
            f"{ZONE}1/temp": "91000\n",
            f"{POLICY}0/related_cpus": "0 1\n",
            f"{POLICY}0/scaling_cur_freq": "600000\n",
            f"{POLICY}0/scaling_governor": "ondemand\n",
            f"{POLICY}2/related_cpus": "2 3\n",
            f"{POLICY}2/scaling_cur_freq": "2400000\n",
            f"{POLICY}2/scaling_governor": "performance\n",
        },
    )


class Mailbox:
    """A firmware behind an ioctl: answers commands by the layout of vcgencmd.c, counts what it was asked."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.error: OSError | None = None

    def __call__(self, fd: int, request: int, message: bytearray) -> int:
        assert os.fstat(fd)
        assert request == 0xC0006400 | struct.calcsize("P") << 16
        size, code, tag, n_bytes, _, _ = struct.unpack_from("=6I", message)
        assert (size, code, tag, n_bytes, len(message)) == (1052, 0, 0x00030080, 1024, 1052)
        if self.error is not None:
            raise self.error
        command = bytes(message[24:1048]).split(b"\0")[0].decode()
        self.asked.append(command)
        answer = self.answers.get(command, 'error=1 error_msg="Command not registered"').encode()
        struct.pack_into("=6I1024s", message, 0, size, 0x80000000, tag, n_bytes, len(answer), 0, answer)
        return 0


def write(root: Path, name: str, text: str) -> None:
    """Into the same file, as a kernel would: readers keep it open."""
    with (root / name).open("r+") as file:
        file.truncate(0)
        file.write(text)


def test_a_pi_is_read_from_sysfs(pi: Path) -> None:
    sensors = Sensors(pi)
    assert sensors.throttle_source == "sysfs"
    assert sensors.read() == Health(
        temperature_c=61.234, frequency_hz=2_400_000_000, throttle_now=0, throttle_since_boot=5
    )
    write(pi, FIRMWARE, "50005\n")
    write(pi, f"{ZONE}0/temp", "85000\n")
    reading = sensors.read()
    assert (reading.throttle_now, reading.throttle_since_boot, reading.temperature_c) == (5, 5, 85.0)


def test_the_clock_is_the_slowest_of_the_cpus_in_use(pi: Path) -> None:
    assert Sensors(pi, cpus=[0, 2]).read().frequency_hz == 600_000_000
    assert Sensors(pi, cpus=[3]).read().frequency_hz == 2_400_000_000
    assert Sensors(pi, cpus=[3]).governor == "performance"
    assert Sensors(pi).governor == "ondemand+performance"
    assert Sensors(pi, cpus=[9]).read().frequency_hz is None


def test_without_sysfs_the_mailbox_tells_of_throttling_and_of_the_real_clock(pi: Path) -> None:
    (pi / FIRMWARE).unlink()
    device = board(pi, {"dev/vcio": ""}) / "dev/vcio"
    mailbox = Mailbox({"get_throttled": "throttled=0xe0008", "measure_clock arm": "frequency(48)=1500345728"})
    sensors = Sensors(pi, vcio=device, ioctl=mailbox)
    assert sensors.throttle_source == "vcio"
    reading = sensors.read()
    assert (reading.throttle_now, reading.throttle_since_boot) == (8, 14)
    assert reading.frequency_hz == 1_500_345_728
    mailbox.answers["measure_clock arm"] = "frequency(0)=2400033792"  # as a Pi 5 says it
    assert sensors.read().frequency_hz == 2_400_033_792
    mailbox.error = OSError(errno.EIO, "broken")
    assert sensors.read() == Health(temperature_c=61.234)  # and not the kernel's clock, which would look like a drop


def test_sysfs_goes_before_the_mailbox(pi: Path) -> None:
    device = board(pi, {"dev/vcio": ""}) / "dev/vcio"
    mailbox = Mailbox({"get_throttled": "throttled=0x5", "measure_clock arm": "frequency(48)=1500000000"})
    sensors = Sensors(pi, vcio=device, ioctl=mailbox)
    assert (sensors.throttle_source, sensors.read().throttle_now) == ("sysfs", 0)
    assert "get_throttled" not in mailbox.asked


def test_a_mailbox_that_fails_is_unknown_and_not_throttled(pi: Path) -> None:
    write(pi, FIRMWARE, "80000001\n")
    device = board(pi, {"dev/vcio": ""}) / "dev/vcio"
    sensors = Sensors(pi, vcio=device, ioctl=Mailbox({"get_throttled": "throttled=0x80000001"}))
    assert sensors.throttle_source is None
    assert sensors.read().throttle_now is None
    write(pi, FIRMWARE, "0\n")
    sensors = Sensors(pi)
    write(pi, FIRMWARE, "80000001\n")
    assert sensors.read().throttle_since_boot is None


def test_the_program_is_asked_last_and_at_most_every_two_seconds(pi: Path) -> None:
    (pi / FIRMWARE).unlink()
    board(pi, {"usr/bin/vcgencmd": f'#!/bin/sh\necho x >>{pi}/asked\necho "throttled=0x10001"\n'})
    (pi / "usr/bin/vcgencmd").chmod(0o755)
    times_s = [100.0]
    sensors = Sensors(pi, clock=lambda: times_s[-1])
    assert sensors.throttle_source == "vcgencmd"
    for now_s in (100.5, 101.0, 101.9, 102.1, 103.0):
        times_s.append(now_s)
        assert (sensors.read().throttle_now, sensors.read().throttle_since_boot) == (1, 1)
    assert (pi / "asked").read_text().count("x") == 2


def test_other_boards_raise_bits_but_never_say_that_all_is_well(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "sys/class/hwmon/hwmon3/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon3/in0_lcrit_alarm": "0\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "thermal-cpufreq-0\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
        },
    )
    sensors = Sensors(root)
    assert sensors.read() == Health()
    write(root, "sys/class/hwmon/hwmon3/in0_lcrit_alarm", "1\n")
    assert sensors.read().throttle_now == health.UNDERVOLTED
    write(root, "sys/class/thermal/cooling_device1/cur_state", "2\n")
    assert sensors.read().throttle_now == health.UNDERVOLTED | health.THROTTLED
    assert sensors.throttle_source is None


def test_a_board_without_sensors_says_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    assert sensors.read() == Health()
    assert (sensors.governor, sensors.throttle_source) == (None, None)


def test_temperature_falls_back_to_any_zone_and_then_to_the_cpus_hwmon(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "sys/class/hwmon/hwmon0/name": "nvme\n",
            "sys/class/hwmon/hwmon0/temp1_input": "70000\n",
            "sys/class/hwmon/hwmon1/name": "k10temp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "48000\n",
        },
    )
    assert Sensors(root).read().temperature_c == 48.0
    board(root, {f"{ZONE}0/type": "acpitz\n", f"{ZONE}0/temp": "30000\n", f"{ZONE}1/temp": "-274000\n"})
    assert Sensors(root).read().temperature_c == 30.0


def test_files_that_vanish_or_fail_are_none_and_may_come_back(pi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = Sensors(pi)
    sensors.read()
    real = os.pread

    def broken(*args: Any) -> bytes:
        raise OSError(errno.ENODEV, "unplugged")

    monkeypatch.setattr(os, "pread", broken)
    assert sensors.read() == Health()
    monkeypatch.setattr(os, "pread", real)
    assert sensors.read().temperature_c == 61.234
    sensors.close()
    (pi / f"{ZONE}0/temp").unlink()
    assert sensors.read().temperature_c is None
    write(pi, f"{POLICY}2/scaling_cur_freq", "<unsupported>\n")
    write(pi, f"{POLICY}0/scaling_cur_freq", "0\n")
    assert sensors.read().frequency_hz is None


def test_reading_opens_nothing_and_closing_leaves_nothing_open(pi: Path) -> None:
    n_open = len(os.listdir("/proc/self/fd"))
    sensors = Sensors(pi)
    sensors.read()
    n_reading = len(os.listdir("/proc/self/fd"))
    sensors.read()
    assert len(os.listdir("/proc/self/fd")) == n_reading > n_open
    sensors.close()
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_where_throttling_begins_is_the_lowest_passive_trip_point_of_the_cpu(pi: Path) -> None:
    assert throttle_c(pi) == 80.0
    board(
        pi,
        {
            f"{ZONE}0/trip_point_0_type": "active\n",
            f"{ZONE}0/trip_point_0_temp": "50000\n",
            f"{ZONE}0/trip_point_1_type": "passive\n",
            f"{ZONE}0/trip_point_1_temp": "75000\n",
            f"{ZONE}0/trip_point_2_type": "hot\n",
            f"{ZONE}0/trip_point_2_temp": "85000\n",
            f"{ZONE}0/trip_point_3_type": "passive\n",
            f"{ZONE}0/trip_point_3_temp": "0\n",
            f"{ZONE}1/trip_point_0_type": "passive\n",
            f"{ZONE}1/trip_point_0_temp": "60000\n",
        },
    )
    assert throttle_c(pi) == 75.0


# What happened between readings


def readings(**columns: list[Any]) -> list[Health]:
    names = {"c": "temperature_c", "hz": "frequency_hz", "now": "throttle_now", "sticky": "throttle_since_boot"}
    rows = zip(*columns.values(), strict=True)
    return [Health(**{names[key]: value for key, value in zip(columns, row, strict=True)}) for row in rows]


@pytest.mark.parametrize("heat", ["burst", "sustained"])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"now": [0, 0, 0], "sticky": [5, 5, 5]}, ()),
        ({"now": [0, 4, 0]}, ("throttled",)),
        ({"now": [0, 0, 8]}, ("throttled",)),
        ({"sticky": [0, 0, 4]}, ("throttled",)),
        ({"sticky": [None, 0, 8]}, ("throttled",)),
        ({"sticky": [4, 0, 4]}, ()),
        ({"now": [0, 1, 0]}, ("undervolted",)),
        ({"now": [1, 1, 1]}, ("undervolted",)),
        ({"sticky": [4, 4, 5]}, ("undervolted",)),
        ({"now": [0, 2, 0]}, ("slowed_clock",)),
        ({"now": [0, 5, 0]}, ("throttled", "undervolted")),
        ({"now": [None, None, None], "sticky": [None, None, None]}, ()),
        ({"hz": [6e8, 18e8, 18e8]}, ()),
        ({"hz": [18e8, 18e8, 6e8]}, ("slowed_clock",)),
        ({"hz": [18e8, 18e8, 172e7]}, ()),
        ({"hz": [18e8, 18e8, None]}, ()),
        ({"hz": [6e8, 18e8, 15e8], "c": [50, 60, 69]}, ("slowed_clock",)),
        ({"hz": [6e8, 18e8, 15e8], "c": [50, 80, 82]}, ("throttled", "slowed_clock")),
    ],
)
def test_what_happened_while_measuring_is_named(
    heat: str, columns: dict[str, list[Any]], expected: tuple[str, ...]
) -> None:
    assert taints_between(readings(**columns), heat) == expected


def test_steady_throttling_is_a_taint_in_burst_and_a_condition_in_sustained_heat() -> None:
    throttled = readings(now=[4, 4, 4], sticky=[4, 4, 4], hz=[10e8, 10e8, 10e8])
    assert taints_between(throttled, "burst") == ("throttled",)
    assert taints_between(throttled, "sustained") == ()
    capped = readings(now=[0, 6, 6], sticky=[6, 6, 6])  # it rested before the first reading
    assert taints_between(capped, "burst") == ("throttled", "slowed_clock")
    assert taints_between(capped, "sustained") == ()
    assert taints_between(readings(now=[4, 4, 0]), "sustained") == ("throttled",)
    assert taints_between([], "burst") == ()


def test_under_a_fixed_governor_the_first_reading_counts() -> None:
    fallen = readings(hz=[24e8, 15e8])
    assert taints_between(fallen, "burst") == ()
    assert taints_between(fallen, "burst", governor="performance") == ("slowed_clock",)


def test_the_record_holds_before_worst_and_after(pi: Path) -> None:
    sensors = Sensors(pi)
    found = readings(c=[50.0, 82.0, 80.0], hz=[6e8, 24e8, 15e8], now=[0, 4, 0], sticky=[0, 4, 4])
    assert health_json(found, sensors) == {
        "temperature_c": {"before": 50.0, "max": 82.0, "after": 80.0},
        "frequency_hz": {"before": 6e8, "min": 15e8, "after": 15e8},
        "throttle": {"now": 4, "before": 0, "after": 4, "source": "sysfs"},
        "governor": "ondemand+performance",
    }
    assert was_throttled(health_json(found, sensors))
    assert not was_throttled(health_json(readings(now=[0, 0], sticky=[4, 4]), sensors))
    nothing = health_json([Health()], Sensors(pi / "none"))
    assert nothing["throttle"] == {"now": None, "before": None, "after": None, "source": None}
    assert nothing["temperature_c"] == {"before": None, "max": None, "after": None}
    assert not was_throttled(nothing)
    assert health_json([], sensors)["frequency_hz"]["min"] is None

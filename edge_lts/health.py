"""How a board is doing: temperature, real clock, throttling and undervoltage, read while something is measured.

Everything is None where the board does not say. A Raspberry Pi's firmware throttles behind the kernel's back, so its
own words count most: sysfs, then the mailbox device, then the program `vcgencmd`. What works is found once; after that
a reading is a few pread calls and, on a Pi, one or two mailbox messages.

Bits of `throttle_now`: 1 undervoltage, 2 clock capped, 4 throttled, 8 soft temperature limit; `throttle_since_boot` has
the same for any time since boot. Elsewhere than on a Pi, the kernel's own cooling of the CPU raises bit 4 and the
rpi_volt alarm bit 1; such a board never says that all is well, so without a bit the answer is None.

Sources: raspberrypi/documentation (get_throttled), raspberrypi/linux#2512 (scaling_cur_freq is the request), kernel
docs cpu-freq, thermal/sysfs-api, hwmon/raspberrypi-hwmon.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

from edge_lts import firmware
from edge_lts.device import SYSTEM, children, read_integer, read_text

UNDERVOLTED, CAPPED, THROTTLED, SOFT_LIMIT = 1, 2, 4, 8
THROTTLE_C = 80.0  # where a Raspberry Pi begins to throttle, and what is assumed of boards without trip points
HOT_C = 70.0  # a clock that falls at less than that has another reason than heat
CLOCK_DROP = 0.05
PROGRAM_PERIOD_S = 2.0
_CPU_ZONE = re.compile(r"cpu|core|soc|pkg|package|^tj")
_CPU_COOLER = re.compile(r"cpufreq|^Processor")
_Ask = Callable[[str], "str | None"]
_CPU_HWMON = ("coretemp", "k10temp", "cpu_thermal", "zenpower")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One reading; see the top of this file for the bits."""

    temperature_c: float | None = None
    frequency_hz: int | None = None
    throttle_now: int | None = None
    throttle_since_boot: int | None = None


class _File:
    """A kernel file that is kept open; opened again after an error, as a driver may come back."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    def text(self) -> str:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
        except OSError:
            self.close()
            return ""

    def number(self, base: int = 10) -> int | None:
        try:
            return int(self.text(), base)
        except ValueError:
            return None

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


class Sensors:
    """The sensors of this board. `cpus` are those that the measured threads run on; None: all that there are."""

    def __init__(
        self,
        root: Path = SYSTEM,
        *,
        vcio: Path | None = None,
        cpus: Sequence[int] | None = None,
        ioctl: firmware.Ioctl = fcntl.ioctl,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._cpus = None if cpus is None else set(cpus)
        self._clock = clock
        self._asked_s = -PROGRAM_PERIOD_S
        self._answer: int | None = None
        policies = _policies(root, self._cpus)
        self._governors = [_File(policy / "scaling_governor") for policy in policies]
        self._clocks = [_File(policy / "scaling_cur_freq") for policy in policies]
        self._temperatures = [_File(path) for path in _temperature_files(root)]
        self._coolers = [
            _File(cooler / "cur_state")
            for cooler in children(root / "sys/class/thermal", "cooling_device")
            if _CPU_COOLER.search(read_text(cooler / "type") or "")
        ]
        self._alarms = [
            _File(path / "in0_lcrit_alarm")
            for path in children(root / "sys/class/hwmon", "hwmon")
            if read_text(path / "name") == "rpi_volt"
        ]
        device = root / "dev/vcio" if vcio is None else vcio
        program = root / firmware.PROGRAM.relative_to("/")
        self._ask: _Ask = lambda command: firmware.gencmd(command, device=device, ioctl=ioctl)
        self._run: _Ask = lambda command: firmware.vcgencmd(command, program=program)
        self._has_real_clock = self._real_clock() is not None
        platform = root / "sys/devices/platform"
        files = [_File(path) for path in sorted(platform.glob("soc*/*firmware*/get_throttled"))]
        self._sysfs = next((file for file in files if _bits(file.number(16))), None)
        self.throttle_source = next((name for name in ("sysfs", "vcio", "vcgencmd") if self._throttled(name)), None)

    def read(self) -> Health:
        now, since_boot = self._throttled(self.throttle_source) or (None, None)
        raised = UNDERVOLTED if any(alarm.number() for alarm in self._alarms) else 0
        raised |= THROTTLED if any((cooler.number() or 0) > 0 for cooler in self._coolers) else 0
        found = [value for file in self._temperatures if -40_000 < (value := file.number() or -99_999) < 200_000]
        return Health(
            temperature_c=max(found) / 1000 if found else None,
            frequency_hz=self._frequency_hz(),
            throttle_now=now | raised if now is not None else raised or None,
            throttle_since_boot=since_boot,
        )

    @property
    def governor(self) -> str | None:
        """Of the CPUs in use; several are joined by a plus sign."""
        return "+".join(sorted({text for file in self._governors if (text := file.text())})) or None

    def close(self) -> None:
        for file in (*self._governors, *self._clocks, *self._temperatures, *self._coolers, *self._alarms, self._sysfs):
            if file is not None:
                file.close()

    def _frequency_hz(self) -> int | None:
        """The slowest of the clocks in use. Without `cpus`, which cores are busy is not known: the fastest."""
        if self._has_real_clock:
            return self._real_clock()
        clocks = [value for file in self._clocks if (value := file.number() or 0) > 0]
        return (max(clocks) if self._cpus is None else min(clocks)) * 1000 if clocks else None

    def _real_clock(self) -> int | None:
        match = re.fullmatch(r"frequency\(\d+\)=(\d+)", self._ask("measure_clock arm") or "")
        return int(match[1]) or None if match else None

    def _throttled(self, source: str | None) -> tuple[int, int] | None:
        if source == "sysfs":
            return _bits(self._sysfs.number(16)) if self._sysfs else None
        if source == "vcio":
            return _bits(_throttled_value(self._ask("get_throttled")))
        if source == "vcgencmd":
            if self._clock() - self._asked_s >= PROGRAM_PERIOD_S:
                self._answer = _throttled_value(self._run("get_throttled"))
                self._asked_s = self._clock()
            return _bits(self._answer)
        return None


def _throttled_value(answer: str | None) -> int | None:
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", answer or "")
    return int(match[1], 16) if match else None


def _bits(value: int | None) -> tuple[int, int] | None:
    """(now, since boot); None for values like 0x80000001, with which a mailbox says that it failed."""
    return None if value is None or value >> 20 else (value & 15, value >> 16 & 15)


def _policies(root: Path, cpus: set[int] | None) -> list[Path]:
    found = children(root / "sys/devices/system/cpu/cpufreq", "policy")
    related = [set(map(int, re.findall(r"\d+", read_text(one / "related_cpus") or ""))) for one in found]
    return [one for one, own in zip(found, related, strict=True) if cpus is None or cpus & own]


def _zones(root: Path) -> list[Path]:
    """The thermal zones of the CPU; all of them where none is called so."""
    zones = children(root / "sys/class/thermal", "thermal_zone")
    return [zone for zone in zones if _CPU_ZONE.search((read_text(zone / "type") or "").lower())] or zones


def _temperature_files(root: Path) -> list[Path]:
    hwmons = children(root / "sys/class/hwmon", "hwmon")
    found = [zone / "temp" for zone in _zones(root)]
    return found or [path / "temp1_input" for path in hwmons if read_text(path / "name") in _CPU_HWMON]


def throttle_c(root: Path = SYSTEM) -> float:
    """Where throttling begins: the lowest passive or hot trip point of the CPU's zones, else 80 C."""
    points = []
    for zone in _zones(root):
        for path in children(zone, "trip_point_"):
            if path.name.endswith("_type") and read_text(path) in ("passive", "hot"):
                points.append(read_integer(path.with_name(path.name.replace("_type", "_temp"))) or 0)
    return min((point / 1000 for point in points if 45_000 <= point < 150_000), default=THROTTLE_C)


def taints_between(readings: Sequence[Health], heat: str, *, governor: str | None = None) -> tuple[str, ...]:
    """Which of throttled, slowed_clock and undervolted happened during a measurement.

    The first reading is from before the load: a clock that had not risen yet is no drop, so it counts only under a
    governor with a fixed clock. With `heat` "sustained" a throttled state that stays the same is the condition that was
    asked for, and only its changes under load are taints. Undervoltage always is one. A clock that drops while it is
    hot counts as throttled, too: not every board has bits.
    """
    loaded = readings[1:] or readings
    states = [one.throttle_now for one in (loaded if heat == "sustained" else readings) if one.throttle_now is not None]
    seen = reduce(or_, states, 0)
    sticky = [one.throttle_since_boot for one in readings if one.throttle_since_boot is not None]
    bits = reduce(or_, sticky, 0) & ~sticky[0] if sticky else 0
    bits |= seen & ~(reduce(and_, states, 15) & ~UNDERVOLTED) if heat == "sustained" else seen
    steady = readings if governor in ("performance", "userspace") else readings[1:]
    floor_hz = max((one.frequency_hz or 0 for one in steady), default=0) * (1 - CLOCK_DROP)
    slow = [one for one in steady if one.frequency_hz and one.frequency_hz < floor_hz]
    found = {
        "throttled": bits & (THROTTLED | SOFT_LIMIT) or any((one.temperature_c or 0) >= HOT_C for one in slow),
        "slowed_clock": bits & CAPPED or slow,
        "undervolted": bits & UNDERVOLTED,
    }
    return tuple(name for name, is_there in found.items() if is_there)


def health_json(readings: Sequence[Health], sensors: Sensors) -> dict[str, Any]:
    """`conditions["health"]` of a record. `min` of the clock leaves out the reading from before the load."""
    first, last = (readings[0], readings[-1]) if readings else (Health(), Health())
    temperatures = [one.temperature_c for one in readings if one.temperature_c is not None]
    clocks = [one.frequency_hz for one in readings[1:] or readings if one.frequency_hz is not None]
    states = [one.throttle_now for one in readings if one.throttle_now is not None]
    return {
        "temperature_c": {
            "before": first.temperature_c,
            "max": max(temperatures, default=None),
            "after": last.temperature_c,
        },
        "frequency_hz": {"before": first.frequency_hz, "min": min(clocks, default=None), "after": last.frequency_hz},
        "throttle": {
            "now": reduce(or_, states) if states else None,
            "before": first.throttle_since_boot,
            "after": last.throttle_since_boot,
            "source": sensors.throttle_source,
        },
        "governor": sensors.governor,
    }


def was_throttled(health: Mapping[str, Any]) -> bool:
    """Whether `conditions["health"]` of a record speaks of throttling by heat."""
    throttle = health.get("throttle") or {}
    new = (throttle.get("after") or 0) & ~(throttle.get("before") or 0)
    return bool(((throttle.get("now") or 0) | new) & (THROTTLED | SOFT_LIMIT))

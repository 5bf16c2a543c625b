"""Power and energy as the sensors of this machine report them.

A meter either reads power or counts energy. What it sees is its `scope`: `soc-rails` (what the power chip feeds: no
USB, fan, NVMe, converter losses), `board-input` (what the supply delivers), `package` (an x86 processor), `wall`.
Nothing here estimates: a meter that is missing, silent or absurd gives an error, never a number and never 0.
`edge_lts.profile.energy` integrates over time.

Sources: raspberrypi/utils vcgencmd (`pmic_read_adc`; a linear fit of board input on the sum of rails is published in
jfikar/RPi5-power), kernel documentation hwmon/{ina2xx,ina3221,sysfs-interface} and power/powercap, and
drivers/hwmon/powerz.c.
"""

import fcntl
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_lts import firmware
from edge_lts.device import SYSTEM
from edge_lts.errors import EdgeLtsError, SpecError

Scope = Literal["soc-rails", "board-input", "package", "wall"]

PERIOD_S = 0.1
PROGRAM_PERIOD_S = 0.5  # where each reading costs a process
SLOWEST_PERIOD_S = 2.0
MAX_POWER_W = 1000.0

_INA2XX = ("ina219", "ina220", "ina226", "ina230", "ina231")
_RAIL = re.compile(r"(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(-?\d+\.\d+)[AV]")


class MeterError(EdgeLtsError):
    """A meter that went silent, vanished or says what cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Has one of the two: power now, or energy since some moment, which never falls. Either raises MeterError.

    `period_s` is how often it is worth asking. No file stays open between readings.
    """

    name: str
    scope: Scope = "board-input"
    period_s: float = PERIOD_S
    read_power_w: Callable[[], float] | None = None
    read_energy_j: Callable[[], float] | None = None


def find_meter(spec: str, root: Path = SYSTEM, ioctl: firmware.Ioctl = fcntl.ioctl) -> Meter | None:
    """The meter that `spec` names: `auto`, `none`, `external` (on the workstation, so none here), or a kind, which may
    have an argument: `ina:3` and `ina:ina226` (hwmon number or chip), `pmic:A,B` (board input = A * rails + B).

    Raises SpecError, with the remedy, for a named meter that is not there; `auto` gives None instead.
    """
    kind, _, argument = spec.partition(":")
    if spec == "auto":
        for open_one in _OPEN.values():
            try:
                meter = open_one("", root, ioctl)
                if meter.read_power_w is None or plausible_w(meter.read_power_w()) > 0:
                    return meter
            except (SpecError, MeterError):
                continue
    elif kind in _OPEN:
        return _OPEN[kind](argument, root, ioctl)
    elif spec not in ("none", "external"):
        raise SpecError(f"unknown meter {spec!r:.40}; known: auto, none, external, {', '.join(_OPEN)}")
    return None


def plausible_w(power_w: float) -> float:
    """`power_w`, or MeterError where no board can draw that."""
    if not 0 <= power_w <= MAX_POWER_W:
        raise MeterError(f"reads {power_w:g} W")
    return power_w


def _read(path: Path) -> float:
    try:
        return float(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MeterError(f"{path}: {getattr(error, 'strerror', None) or 'no number'}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _hwmon(root: Path, argument: str, names: Sequence[str]) -> list[tuple[str, Path]]:
    """(chip, folder) of the wanted chips by rising number; `argument` narrows them to a number or a chip."""
    folders = {
        folder.name: folder
        for pattern in ("bus/i2c/drivers/ina3221/*/hwmon", "class/hwmon")
        for folder in root.glob(f"sys/{pattern}/hwmon*")
    }
    return [
        (chip, folder)
        for name, folder in sorted(folders.items(), key=lambda item: (len(item[0]), item[0]))
        if (chip := _text(folder / "name")) in names and argument in ("", chip, name, name[5:])
    ]


def _of_files(name: str, terms: Sequence[tuple[Path, ...]], scope: Scope = "board-input") -> Meter:
    """Kernel files whose numbers, multiplied within a term and then summed, are microwatts (as is mV times mA)."""
    folder = terms[0][0].parent
    interval = folder / "update_interval"
    period_s = max(PERIOD_S, _read(interval) / 1000 if interval.exists() else 0.0)
    if period_s > SLOWEST_PERIOD_S:
        raise SpecError(f"{name} updates every {period_s:g} s; echo 100 | sudo tee {interval}")

    def read_power_w() -> float:
        total = sum(math.prod(map(_read, term)) for term in terms) * 1e-6
        return abs(total) if name == "powerz" else total  # its current is signed: its two ends may be swapped

    return Meter(name=f"{name} ({folder.name})", scope=scope, period_s=period_s, read_power_w=read_power_w)


def _open_ina(argument: str, root: Path, _: firmware.Ioctl) -> Meter:
    """One channel that is the board's input (Jetson: VDD_IN), else one chip, else every channel of the INA3221s."""
    chips = _hwmon(root, argument, (*_INA2XX, "ina3221"))
    channels = {
        (folder / f"in{i}_input", folder / f"curr{i}_input"): _text(folder / f"in{i}_label")
        for chip, folder in chips
        for i in (1, 2, 3)
        if chip == "ina3221" and (folder / f"curr{i}_input").exists() and _text(folder / f"in{i}_enable") != "0"
    }
    for files, label in channels.items():
        if label.upper().endswith("_IN"):
            return _of_files(f"ina3221 {label}", [files])
    for chip, folder in chips:
        if chip in _INA2XX:
            return _of_files(chip, [(folder / "power1_input",)])
    if not channels:
        raise SpecError(
            f"no INA2xx or INA3221 {argument} in /sys/class/hwmon; on a Raspberry Pi put dtparam=i2c_arm=on and "
            "dtoverlay=i2c-sensor,ina219,addr=0x40 into /boot/firmware/config.txt"
        )
    return _of_files("ina3221", list(channels), "soc-rails" if any(channels.values()) else "board-input")


def _open_powerz(argument: str, root: Path, _: firmware.Ioctl) -> Meter:
    for chip, folder in _hwmon(root, argument, ("powerz",)):
        return _of_files(chip, [(folder / "in0_input", folder / "curr1_input")])
    raise SpecError("no POWER-Z in /sys/class/hwmon; plug in a KM002C or KM003C and sudo modprobe powerz")


def _open_pmic(argument: str, root: Path, ioctl: firmware.Ioctl) -> Meter:
    """The power chip of a Raspberry Pi 5: volts times amperes, summed over the rails that report both."""
    try:
        a, b = map(float, (argument or "1,0").split(","))
    except ValueError:
        a = b = math.nan
    if not (0 < a < math.inf and math.isfinite(b)):
        raise SpecError(f"pmic:A,B needs two numbers, A above 0, not {argument!r:.40}")
    mailbox, program = (root / path.relative_to("/") for path in (firmware.MAILBOX, firmware.PROGRAM))
    is_direct = firmware.gencmd("pmic_read_adc", device=mailbox, ioctl=ioctl) is not None
    known: set[str] = set()

    def read_power_w() -> float:
        text = (
            firmware.gencmd("pmic_read_adc", device=mailbox, ioctl=ioctl)
            if is_direct
            else firmware.vcgencmd("pmic_read_adc", program=program)
        )
        found = {(rail, unit): float(value) for rail, unit, value in _RAIL.findall(text or "")}
        rails = {rail for rail, unit in found if unit == "A" and (rail, "V") in found}
        if not rails or rails != (known or rails):  # an answer cut short would pass for a lower power
            raise MeterError(f"pmic_read_adc gave {len(rails)} rails, {len(known)} before")
        known.update(rails)
        return a * math.fsum(found[rail, "A"] * found[rail, "V"] for rail in rails) + b

    try:
        read_power_w()
    except MeterError as error:
        raise SpecError(
            "the firmware gives no currents: only a Raspberry Pi 5 measures them, and only for the group video: "
            "sudo usermod -aG video $USER, then log in again"
        ) from error
    return Meter(
        name="pmic",
        scope="board-input" if argument else "soc-rails",
        period_s=PERIOD_S if is_direct else PROGRAM_PERIOD_S,
        read_power_w=read_power_w,
    )


def _open_rapl(argument: str, root: Path, _: firmware.Ioctl) -> Meter:
    """The energy counters of all x86 packages, each of which starts again at 0 after its range."""
    folders = [
        folder
        for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        if _text(folder / "name").startswith("package-")
    ]
    if not folders:
        raise SpecError("no package-* in /sys/class/powercap: RAPL is for x86 processors; sudo modprobe intel_rapl_msr")
    files = [folder / "energy_uj" for folder in folders]
    try:
        ranges, last = [_read(folder / "max_energy_range_uj") for folder in folders], list(map(_read, files))
    except MeterError as error:
        raise SpecError(f"{error}; until the next boot: sudo chmod a+r {' '.join(map(str, files))}") from error
    total_uj = 0.0

    def read_energy_j() -> float:
        nonlocal total_uj
        for i, file in enumerate(files):
            now = _read(file)
            total_uj += now - last[i] + (ranges[i] if now < last[i] else 0)
            last[i] = now
        return total_uj * 1e-6

    return Meter(name="rapl", scope="package", period_s=0.01, read_energy_j=read_energy_j)


# In the order that `auto` prefers them in.
_OPEN: dict[str, Callable[[str, Path, firmware.Ioctl], Meter]] = {
    "ina": _open_ina,
    "powerz": _open_powerz,
    "pmic": _open_pmic,
    "rapl": _open_rapl,
}
KINDS = tuple(_OPEN)

"""Meters in recorded and invented kernel trees: which one is taken, what it reads, and what it says when it cannot."""

import math
import struct
from pathlib import Path

import pytest

from edge_lts.energy import KINDS, Meter, MeterError, find_meter, plausible_w
from edge_lts.errors import SpecError

# A Pi 5's answer: currents, then volts; the numbers in brackets are not aligned, and two rails have no current.
RAILS = {
    "3V7_WL_SW": (0, 8, 0.09758240, 3.71742000),
    "3V3_SYS": (1, 9, 0.07026696, 3.31368800),
    "1V8_SYS": (2, 10, 0.18152310, 1.80879000),
    "DDR_VDD2": (3, 11, 0.00000000, 1.10671300),
    "DDR_VDDQ": (4, 12, 0.06666720, 0.60366240),
    "1V1_SYS": (5, 13, 0.17957100, 1.11171200),
    "0V8_SW": (6, 14, 0.37865870, 0.80329600),
    "VDD_CORE": (7, 15, 10.87674000, 0.89745940),
    "3V3_DAC": (17, 20, 0.00006105, 3.31013400),
    "3V3_ADC": (18, 21, 0.00030525, 3.30647100),
    "0V8_AON": (16, 19, 0.00488400, 0.79845000),
    "HDMI": (22, 23, 0.02173140, 5.11500000),
}
PMIC_W = math.fsum(amperes * volts for _, _, amperes, volts in RAILS.values())


def pmic_text(rails: dict[str, tuple[int, int, float, float]] = RAILS) -> str:
    lines = [f"{name + '_A':>12} current({i})={amperes:.8f}A" for name, (i, _, amperes, _) in rails.items()]
    lines += [f"{name + '_V':>12} volt({i})={volts:.8f}V" for name, (_, i, _, volts) in rails.items()]
    return "\n".join([*lines, "     EXT5V_V volt(24)=5.09066000V", "      BATT_V volt(25)=0.00000000V"])


class Firmware:
    """A /dev/vcio that answers every command with `text`."""

    def __init__(self, root: Path, text: str) -> None:
        self.text = text
        (root / "dev").mkdir(parents=True, exist_ok=True)
        (root / "dev/vcio").touch()

    def __call__(self, _: int, __: int, message: bytearray) -> int:
        reply = self.text.encode()
        assert len(reply) < 1024
        struct.pack_into("=I", message, 4, 0x80000000)
        message[24 : 24 + len(reply) + 1] = reply + b"\0"
        return 0


def add_files(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def add_hwmon(root: Path, number: int, **files: object) -> Path:
    return add_files(root / f"sys/class/hwmon/hwmon{number}", **files)


def add_rapl(root: Path, name: str, zone: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    return add_files(root / f"sys/class/powercap/{name}", name=zone, energy_uj=energy_uj, max_energy_range_uj=range_uj)


def found(spec: str, root: Path, *more: Firmware) -> Meter:
    meter = find_meter(spec, root, *more)
    assert meter is not None
    return meter


def power_of(meter: Meter) -> float:
    assert meter.read_power_w is not None
    assert meter.read_energy_j is None
    return meter.read_power_w()


def energy_of(meter: Meter) -> float:
    assert meter.read_energy_j is not None
    assert meter.read_power_w is None
    return meter.read_energy_j()


def test_pmic_sums_volts_times_amperes_of_rails_joined_by_name(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path, pmic_text())
    meter = found("pmic", tmp_path, firmware)
    assert (meter.name, meter.scope, meter.period_s) == ("pmic", "soc-rails", 0.1)
    assert power_of(found("pmic", tmp_path, firmware)) == pytest.approx(PMIC_W, rel=1e-9)


def test_pmic_rail_without_a_current_adds_nothing(tmp_path: Path) -> None:
    # Were rails joined by position or number, EXT5V's 5 V would multiply somebody's amperes.
    two = {"VDD_CORE": (7, 15, 2.0, 0.9), "0V8_AON": (16, 19, 0.5, 0.8)}
    assert power_of(found("pmic", tmp_path, Firmware(tmp_path, pmic_text(two)))) == pytest.approx(2.2)


def test_pmic_calibration_gives_board_input(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path, pmic_text())
    meter = found("pmic:1.1451,0.5879", tmp_path, firmware)
    assert meter.scope == "board-input"
    assert power_of(meter) == pytest.approx(1.1451 * PMIC_W + 0.5879)


@pytest.mark.parametrize("argument", ["1.1451", "a,b", "0,1", "-1,0", "nan,1", "1,inf", "1,2,3"])
def test_pmic_calibration_that_is_none_is_refused(tmp_path: Path, argument: str) -> None:
    with pytest.raises(SpecError, match="two numbers"):
        find_meter(f"pmic:{argument}", tmp_path, Firmware(tmp_path, pmic_text()))


def test_pmic_answer_cut_short_is_an_error_and_not_a_lower_power(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path, pmic_text())
    meter = found("pmic", tmp_path, firmware)
    firmware.text = firmware.text[:800]
    with pytest.raises(MeterError, match="12 before"):
        power_of(meter)


def test_pmic_through_the_program_where_the_mailbox_is_closed(tmp_path: Path) -> None:
    program = tmp_path / "usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ntest \"$1\" = pmic_read_adc && cat <<'END'\n{pmic_text()}\nEND\n")
    program.chmod(0o755)
    meter = found("pmic", tmp_path)
    assert power_of(meter) == pytest.approx(PMIC_W)
    assert meter.period_s == 0.5  # a process for each reading is not for ten times a second


def test_pi_4_without_currents_names_the_remedy(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path, 'error=1 error_msg="Command not registered"')
    with pytest.raises(SpecError, match=r"Raspberry Pi 5.*usermod -aG video"):
        find_meter("pmic", tmp_path, firmware)
    assert find_meter("auto", tmp_path, firmware) is None


@pytest.mark.parametrize("chip", ["ina219", "ina220", "ina226", "ina230", "ina231"])
def test_ina2xx_power_is_in_microwatts(tmp_path: Path, chip: str) -> None:
    add_hwmon(tmp_path, 0, name="cpu_thermal", temp1_input=48000)
    add_hwmon(tmp_path, 3, name=chip, power1_input=4_321_000, in1_input=5100, curr1_input=847)
    meter = found("ina", tmp_path)
    assert (meter.name, meter.scope) == (f"{chip} (hwmon3)", "board-input")
    assert power_of(found("ina", tmp_path)) == pytest.approx(4.321)


def test_ina_argument_is_a_number_or_a_chip(tmp_path: Path) -> None:
    add_hwmon(tmp_path, 2, name="ina219", power1_input=1_000_000)
    add_hwmon(tmp_path, 10, name="ina226", power1_input=2_000_000)
    assert power_of(found("ina", tmp_path)) == 1.0  # 2 comes before 10
    assert (
        power_of(found("ina:10", tmp_path))
        == power_of(found("ina:hwmon10", tmp_path))
        == power_of(found("ina:ina226", tmp_path))
        == 2.0
    )
    with pytest.raises(SpecError, match=r"ina231.*dtoverlay=i2c-sensor"):
        find_meter("ina:ina231", tmp_path)


def test_meter_that_updates_slowly_is_asked_slowly(tmp_path: Path) -> None:
    folder = add_hwmon(tmp_path, 1, name="ina226", power1_input=1, update_interval=1500)
    meter = found("ina", tmp_path)
    assert meter.period_s == 1.5
    (folder / "update_interval").write_text("8512\n")
    with pytest.raises(SpecError, match=r"every 8\.512 s; echo 100 \| sudo tee .*update_interval"):
        find_meter("ina", tmp_path)


def add_ina3221(folder: Path, channels: list[tuple[str | None, int, int]]) -> Path:
    files: dict[str, object] = {"name": "ina3221"}
    for i, (label, millivolts, milliamperes) in enumerate(channels, start=1):
        files |= {f"in{i}_input": millivolts, f"curr{i}_input": milliamperes, f"in{i + 3}_input": 80}
        files |= {f"in{i}_label": label} if label else {}
    return add_files(folder, **files, curr4_input=9999)


def test_jetson_total_is_vdd_in_and_not_the_sum(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    add_ina3221(folder, [("VDD_IN", 19_800, 500), ("VDD_CPU_GPU_CV", 19_800, 200), ("VDD_SOC", 19_800, 100)])
    meter = found("auto", tmp_path)
    assert (meter.name, meter.scope) == ("ina3221 VDD_IN (hwmon4)", "board-input")
    assert power_of(found("auto", tmp_path)) == pytest.approx(9.9)


def test_ina3221_seen_through_two_folders_counts_once(tmp_path: Path) -> None:
    for folder in ("sys/class/hwmon/hwmon4", "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"):
        add_ina3221(tmp_path / folder, [("GPU", 5000, 100), ("CPU", 5000, 300)])
    assert power_of(found("ina", tmp_path)) == pytest.approx(2.0)


def test_ina3221_without_an_input_channel_sums_what_is_enabled(tmp_path: Path) -> None:
    folder = add_ina3221(tmp_path / "sys/class/hwmon/hwmon1", [(None, 5000, 100), (None, 5000, 300), (None, 5000, 700)])
    (folder / "in3_enable").write_text("0\n")
    meter = found("ina", tmp_path)
    assert meter.scope == "board-input"  # somebody wired it there
    assert power_of(found("ina", tmp_path)) == pytest.approx(2.0)
    (folder / "in1_label").write_text("VDD_GPU_SOC\n")
    labelled = found("ina", tmp_path)
    assert labelled.scope == "soc-rails"


def test_powerz_current_may_flow_either_way(tmp_path: Path) -> None:
    folder = add_hwmon(tmp_path, 5, name="powerz", in0_input=5120, curr1_input=-912)
    assert power_of(found("powerz", tmp_path)) == pytest.approx(5.12 * 0.912)
    (folder / "curr1_input").write_text("912\n")
    assert power_of(found("powerz", tmp_path)) == pytest.approx(5.12 * 0.912)
    (folder / "name").write_text("ina219\n")
    with pytest.raises(SpecError, match="modprobe powerz"):
        find_meter("powerz", tmp_path)


def test_auto_prefers_ina_then_powerz_then_pmic_then_rapl(tmp_path: Path) -> None:
    names = []
    add_rapl(tmp_path, "intel-rapl:0", "package-0", 5)
    nothing = Firmware(tmp_path, "")
    names.append(find_meter("auto", tmp_path, nothing))
    firmware = Firmware(tmp_path, pmic_text())
    names.append(find_meter("auto", tmp_path, firmware))
    add_hwmon(tmp_path, 1, name="powerz", in0_input=5000, curr1_input=500)
    names.append(find_meter("auto", tmp_path, firmware))
    add_hwmon(tmp_path, 0, name="ina219", power1_input=2_000_000)
    names.append(find_meter("auto", tmp_path, firmware))
    assert KINDS == ("ina", "powerz", "pmic", "rapl")
    assert [meter and meter.name for meter in names] == ["rapl", "pmic", "powerz (hwmon1)", "ina219 (hwmon0)"]


@pytest.mark.parametrize("power_uw", ["0", "-5000000", "5000000000", "nonsense", None])
def test_auto_passes_over_a_meter_that_reads_nonsense(tmp_path: Path, power_uw: str | None) -> None:
    folder = add_hwmon(tmp_path, 0, name="ina219")
    if power_uw is not None:
        add_files(folder, power1_input=power_uw)
    add_rapl(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = found("auto", tmp_path)
    assert meter.name == "rapl"


def test_none_external_and_a_bare_board_have_no_meter(tmp_path: Path) -> None:
    add_rapl(tmp_path, "intel-rapl:0", "package-0", 5)
    assert find_meter("none", tmp_path) is None
    assert find_meter("external", tmp_path) is None
    assert find_meter("auto", tmp_path / "absent") is None
    with pytest.raises(SpecError, match=r"unknown meter 'um25c'.*pmic"):
        find_meter("um25c", tmp_path)


def test_rapl_sums_packages_and_leaves_out_their_parts(tmp_path: Path) -> None:
    first = add_rapl(tmp_path, "intel-rapl:0", "package-0", 10_000_000)
    second = add_rapl(tmp_path, "intel-rapl:1", "package-1", 70_000_000)
    inner = add_rapl(tmp_path, "intel-rapl:0:0", "core", 0)
    board = add_rapl(tmp_path, "intel-rapl:2", "psys", 0)
    meter = found("rapl", tmp_path)
    assert meter.scope == "package"
    assert energy_of(meter) == 0.0
    for folder, energy_uj in ((first, 12_500_000), (second, 71_000_000), (inner, 9**9), (board, 9**9)):
        add_files(folder, energy_uj=energy_uj)
    assert energy_of(meter) == pytest.approx(3.5)


def test_rapl_counter_that_wraps_never_falls(tmp_path: Path) -> None:
    folder = add_rapl(tmp_path, "intel-rapl:0", "package-0", 99_000_000, range_uj=100_000_000)
    meter = found("rapl", tmp_path)
    readings = []
    for energy_uj in (99_500_000, 1_000_000, 98_000_000, 0):
        add_files(folder, energy_uj=energy_uj)
        readings.append(energy_of(meter))
    assert readings == pytest.approx([0.5, 2.0, 99.0, 101.0])


def test_unreadable_rapl_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = add_rapl(tmp_path, "intel-rapl:0", "package-0", 5)
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:  # as the kernel does to everybody but root; tests may run as root
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SpecError, match=rf"Permission denied; .* sudo chmod a\+r {folder}/energy_uj"):
        find_meter("rapl", tmp_path)
    assert find_meter("auto", tmp_path) is None
    with pytest.raises(SpecError, match="RAPL is for x86"):
        find_meter("rapl", tmp_path / "absent")


def test_meter_that_vanishes_is_an_error_with_the_file(tmp_path: Path) -> None:
    folder = add_hwmon(tmp_path, 0, name="ina219", power1_input=2_000_000)
    meter = found("ina", tmp_path)
    (folder / "power1_input").unlink()
    with pytest.raises(MeterError, match="power1_input: No such file"):
        power_of(meter)


@pytest.mark.parametrize("power_w", [-0.1, 1000.1, math.nan, math.inf])
def test_power_that_no_board_draws_is_refused(power_w: float) -> None:
    with pytest.raises(MeterError, match="reads"):
        plausible_w(power_w)
    assert plausible_w(0.0) == 0.0

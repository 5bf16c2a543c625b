import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_lts import checkup as module
from edge_lts.__main__ import main
from edge_lts.checkup import MIB, Finding, checkup
from edge_lts.job import Lock
from edge_lts.records import DeviceInfo
from tests.fake_agent import device_info

GIB = 1 << 30
YEAR_2026_S = 1_790_000_000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLICY = "sys/devices/system/cpu/cpufreq/policy0/"
HEALTHY = {
    "proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 3145728 kB\nSwapTotal: 102400 kB\nSwapFree: 102400 kB\n",
    "proc/loadavg": "0.10 0.20 0.30 1/100 1234\n",
    "proc/stat": "cpu 100 0 100 9000 0 0 0 0 0 0\ncpu0 1 1\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.10 avg300=0.00 total=1\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/self/clear_refs": "",
    "proc/self/mounts": "/dev/root / ext4 rw 0 0\n",
    "proc/swaps": "Filename Type Size Used Priority\n/var/swap file 102400 0 -2\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
    "sys/class/rtc/rtc0/name": "rtc\n",
    "sys/class/hwmon/hwmon0/name": "ina231\n",
    "sys/class/hwmon/hwmon0/power1_input": "4200000\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
    POLICY + "related_cpus": "0 1 2 3\n",
    POLICY + "scaling_governor": "performance\n",
    POLICY + "scaling_cur_freq": "1800000\n",
    POLICY + "scaling_driver": "cpufreq-dt\n",
    "sys/devices/system/cpu/isolated": "\n",
}
INFO = device_info(memory_total_bytes=4 * GIB, memory_available_bytes=3 * GIB, governor="performance")


def put(root: Path, files: dict[str, str | None]) -> None:
    for name, text in files.items():
        path = root / name
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "distribution_version", lambda name: "9.9")
    monkeypatch.setattr(module, "time", SimpleNamespace(gmtime=lambda: time.gmtime(YEAR_2026_S)))
    monkeypatch.delenv("TMPDIR", raising=False)
    put(tmp_path, dict(HEALTHY))
    return tmp_path


def examine(root: Path, *, sleep: Callable[[float], None] = lambda _: None, **settings: Any) -> dict[str, Finding]:
    findings = checkup(root, sleep=sleep, **{"info": INFO, **settings})
    ranks = [module.SEVERITIES.index(one.severity) for one in findings]
    assert ranks == sorted(ranks)
    found = {one.code: one for one in findings}
    assert len(found) == len(findings)
    return found


def process(pid: int, name: str, ticks: int, cmdline: str = "") -> dict[str, str | None]:
    stat = f"{pid} ({name}) S 1 1 1 0 -1 4194560 100 0 0 0 {ticks} {ticks} 0 0 20 0 1 0 100 0 0\n"
    return {f"proc/{pid}/stat": stat, f"proc/{pid}/cmdline": cmdline.replace(" ", "\0")}


def test_nothing_is_found_on_a_healthy_board(root: Path, tmp_path: Path) -> None:
    put(root, process(10, "init", 500))
    assert examine(root, run_root=tmp_path, prove=lambda: {"ok": True, "is_cuda_build": False}) == {}


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"python_bits": 32}, "python_32bit", "error"),
        ({"python": "3.9.2"}, "python_old", "error"),
        ({"libc": "musl 1.2.4"}, "libc_musl", "error"),
        ({"is_emulated": True}, "emulated", "warning"),
        ({"memory_total_bytes": 300 * MIB}, "memory_small", "error"),
        ({"memory_total_bytes": 440 * MIB}, "memory_small", "warning"),
        ({"memory_total_bytes": None}, "memory_unknown", "warning"),
        ({"memory_available_bytes": 600 * MIB}, "memory_full", "warning"),
        ({"memory_available_bytes": 100 * MIB}, "memory_full", "error"),
        ({"page_size_bytes": 16384}, "page_size", "note"),
    ],
)
def test_what_the_probe_says_is_judged(root: Path, changes: dict[str, Any], code: str, severity: str) -> None:
    info: DeviceInfo = replace(INFO, **changes)
    found = examine(root, info=info)
    assert [(one.code, one.severity) for one in found.values()] == [(code, severity)]


@pytest.mark.parametrize(
    ("files", "code", "severity", "data"),
    [
        ({"proc/loadavg": "1.50 1 1 1/1 1\n"}, "background_load", "warning", {"load_1min": 1.5, "n_cores": 4}),
        ({"proc/pressure/cpu": "some avg10=0 avg60=12.50 avg300=0\n"}, "pressure_cpu", "warning", {"share": 0.125}),
        ({"proc/pressure/memory": "some avg10=0 avg60=2.00 a\n"}, "pressure_memory", "warning", {"share": 0.02}),
        ({"proc/pressure/cpu": None}, "no_pressure", "note", {"kernel": "6.0"}),
        (
            {"proc/stat": "cpu 100 0 0 800 0 0 0 100 0 0\n"},
            "steal",
            "warning",
            {"share": 0.0, "share_since_boot": 0.1},
        ),
        ({"proc/self/clear_refs": None}, "no_clear_refs", "note", {"kernel": "6.0"}),
        (
            {"proc/meminfo": "SwapTotal: 900000 kB\nSwapFree: 800000 kB\n"},
            "swap_used",
            "warning",
            {"used_bytes": 102400000},
        ),
        (
            {"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1000 0 100\n"},
            "swap_zram",
            "warning",
            {"size_bytes": 1024000},
        ),
        ({"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"}, "huge_pages_always", "note", {}),
        ({POLICY + "scaling_governor": "ondemand\n"}, "governor", "note", {"governor": "ondemand"}),
        ({POLICY + "scaling_governor": "powersave\n"}, "governor", "warning", {"governor": "powersave"}),
        (
            {POLICY + "scaling_governor": "powersave\n", POLICY + "scaling_driver": "intel_pstate\n"},
            "governor",
            "note",
            {"governor": "powersave"},
        ),
        (
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
            "cpu_quota",
            "warning",
            {"cores": 1.5},
        ),
        ({"sys/devices/system/cpu/isolated": "2-3\n"}, "isolated_cpus", "note", {"cpus": "2-3"}),
        (
            {"sys/class/thermal/thermal_zone0/temp": "71000\n"},
            "hot",
            "warning",
            {"temperature_c": 71.0, "limit_c": 80.0},
        ),
        ({"sys/class/thermal/thermal_zone0/temp": None}, "no_temperature", "note", {}),
        ({POLICY + "scaling_cur_freq": None}, "no_clock", "note", {}),
        ({"sys/class/hwmon/hwmon0/name": "nvme\n"}, "no_meter", "note", {}),
    ],
)
def test_what_the_kernel_says_is_judged(
    root: Path, files: dict[str, str | None], code: str, severity: str, data: dict[str, Any]
) -> None:
    put(root, files)
    found = [one.to_json() for one in examine(root).values()]
    assert found == [{"code": code, "severity": severity, "data": data}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("50005", {"undervolted_now": "error", "throttled_now": "warning"}),
        ("50000", {"undervolted_since_boot": "warning", "throttled_since_boot": "warning"}),
        ("80008", {"throttled_now": "warning"}),
        ("20000", {"throttled_since_boot": "warning"}),
        ("80000001", {}),
    ],
)
def test_the_firmwares_bits_are_told_apart(root: Path, value: str, expected: dict[str, str]) -> None:
    put(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": value})
    assert {one.code: one.severity for one in examine(root).values()} == expected


def test_a_raspberry_that_cannot_be_asked_is_noted(root: Path) -> None:
    put(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": None})
    assert examine(root) == {}
    assert list(examine(root, info=replace(INFO, model="Raspberry Pi 4 Model B Rev 1.4"))) == ["no_throttle_bits"]


def test_the_process_that_takes_the_cpu_is_named_with_its_share(root: Path) -> None:
    own = os.getpid()
    put(root, process(20, "kswapd) 1 (x", 100) | process(21, "chromium", 50) | process(own, "python", 0))

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        n = round(0.1 * TICKS_PER_S)  # user and system time each: 40 % of half a second
        put(root, process(20, "kswapd) 1 (x", 101) | process(21, "chromium", 50 + n) | process(own, "python", 999))
        put(root, process(22, "late", 999))

    found = examine(root, sleep=sleep)
    assert found["busy_process"].data == {"pid": 21, "name": "chromium", "share": 0.4}
    assert list(found) == ["busy_process"]


def test_steal_while_looking_is_found(root: Path) -> None:
    def sleep(seconds: float) -> None:
        put(root, {"proc/stat": "cpu 150 0 100 9045 0 0 0 5 999 999\n"})

    assert examine(root, sleep=sleep)["steal"].data == {"share": 0.05, "share_since_boot": 0.0005}


def test_updates_and_desktops_are_found_but_not_what_waits_for_the_shutdown(root: Path) -> None:
    idle = "/usr/bin/python3 /usr/share/unattended-upgrades/unattended-upgrade-shutdown --wait-for-signal"
    put(root, process(30, "unattended-upgr", 5, idle))
    assert examine(root) == {}
    put(root, process(31, "dpkg", 5, "/usr/bin/dpkg --status") | process(32, "labwc", 5) | process(33, "Xwayland", 5))
    put(root, process(34, "unattended-upgr", 5, "/usr/bin/python3 /usr/bin/unattended-upgrade"))
    found = examine(root)
    assert {code: one.data["names"] for code, one in found.items()} == {
        "updates_running": ["dpkg", "unattended-upgr"],
        "desktop_running": ["Xwayland", "labwc"],
    }


def test_torch_is_looked_for_and_then_proven(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"ok": False, "signal": 4, "message": "a\nIllegal instruction\n"}
    assert examine(root, prove=lambda: broken)["torch_broken"].data == {"signal": 4, "message": "Illegal instruction"}
    cuda = {"ok": True, "is_cuda_build": True, "version": "2.13.0+cu130"}
    assert examine(root, prove=lambda: cuda)["torch_cuda"].data == {"version": "2.13.0+cu130"}
    monkeypatch.setattr(module, "distribution_version", lambda name: None if name == "numpy" else "9.9")
    assert list(examine(root, prove=lambda: pytest.fail("nothing to prove"))) == ["numpy_missing"]
    monkeypatch.setattr(module, "distribution_version", lambda name: None)
    assert list(examine(root)) == ["torch_missing"]


def test_disk_is_asked_for_where_runs_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/data/edge-lts")
    for free, site, expected in (
        (100 * MIB, None, {"disk_full": "error"}),
        (300 * MIB, None, {}),
        (300 * MIB, Path("/env"), {"disk_small": "note"}),
        (2000 * MIB, Path("/env"), {}),
        (None, None, {}),
    ):
        monkeypatch.setattr(module, "disk_free_bytes", lambda path, free=free: free)
        found = examine(root, run_root=folder, site=site)
        assert {one.code: one.severity for one in found.values()} == expected


def test_a_temporary_folder_in_memory_is_scarce_on_a_small_board(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, {"proc/self/mounts": "/dev/root / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\ntmpfs /run tmpfs rw 0 0\n"})
    assert examine(root)["tmp_in_memory"].to_json() == {
        "code": "tmp_in_memory",
        "severity": "note",
        "data": {"path": "/tmp"},
    }
    small = replace(INFO, memory_total_bytes=GIB)
    assert examine(root, info=small)["tmp_in_memory"].severity == "warning"
    monkeypatch.setenv("TMPDIR", "/home/pi/tmp")
    assert examine(root) == {}
    monkeypatch.setenv("TMPDIR", "/run/user/1000")
    assert "tmp_in_memory" in examine(root)


def test_a_board_in_use_says_by_whom(root: Path, tmp_path: Path) -> None:
    with Lock(tmp_path / "board.lock", run_id="run-7", what="it"):
        found = examine(root, run_root=tmp_path)
    assert found["board_busy"].data == {"run_id": "run-7", "pid": os.getpid()}
    assert examine(root, run_root=tmp_path) == {}


def test_what_a_crashed_run_left_tuned_is_told(root: Path) -> None:
    found = examine(root, left_tuned=lambda: {"governors": ["ondemand"]})
    assert found["left_tuned"].data == {"governors": ["ondemand"]}


def test_fast_cores_that_cannot_be_chosen_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        put(root, {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": "1024\n" if cpu > 1 else "400\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    assert examine(root) == {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert examine(root)["cannot_pin"].data == {"fastest": [2, 3], "allowed": [0, 1]}

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert examine(root)["cannot_pin"].data["allowed"] == []


def test_a_wrong_clock_is_told_before_one_that_nothing_keeps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "sys/class/rtc/rtc0/name").unlink()
    (root / "sys/class/rtc/rtc0").rmdir()
    assert list(examine(root)) == ["clock_not_synchronised"]
    put(root, process(40, "chronyd", 1))
    assert examine(root) == {}
    monkeypatch.setattr(module, "time", SimpleNamespace(gmtime=lambda: time.gmtime(0)))
    assert examine(root)["clock_unset"].data == {"year": 1970}


def test_a_board_without_any_files_is_examined_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "distribution_version", lambda name: "9.9")
    found = examine(tmp_path)
    assert {one.severity for one in found.values()} == {"note"}


def test_the_agent_tells_its_findings_in_one_event(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fake(**settings: Any) -> list[Finding]:
        asked.update(settings)
        return [Finding(code="hot", severity="warning", data={"limit_c": 80.0})]

    monkeypatch.setattr(module, "checkup", fake)
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    hello, event = (json.loads(line) for line in capfdbinary.readouterr().out.splitlines())
    assert hello["verb"] == "doctor"
    assert event == {
        "event": "findings",
        "findings": [{"code": "hot", "severity": "warning", "data": {"limit_c": 80.0}}],
    }
    assert (asked["run_root"], asked["site"]) == (tmp_path, None)

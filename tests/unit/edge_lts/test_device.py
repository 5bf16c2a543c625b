import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edge_lts import device
from edge_lts.records import DeviceInfo
from tests.support import board

PI_CPUINFO = "\n\n".join(
    f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd crc32\nCPU implementer\t: 0x41\nCPU part\t: {part}"
    for index, part in enumerate(["0xd05", "0xd05", "0xd0b", "0xd0b"])
)
X86_CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: sse avx2 hypervisor\n\n"
    "processor\t: 1\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: sse avx2 hypervisor\n"
)
MEMINFO = (
    "MemTotal:        4000000 kB\nMemFree:          100000 kB\nMemAvailable:    3000000 kB\nSwapTotal:  102396 kB\n"
)


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    policy = "sys/devices/system/cpu/cpufreq/policy"
    return board(
        tmp_path,
        {
            "proc/cpuinfo": PI_CPUINFO,
            "proc/meminfo": MEMINFO,
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
            "proc/loadavg": "0.50 0.40 0.30 1/100 1234\n",
            f"{policy}0/scaling_governor": "ondemand\n",
            f"{policy}0/cpuinfo_max_freq": "1800000\n",
            f"{policy}2/scaling_governor": "performance\n",
            f"{policy}2/cpuinfo_max_freq": "2400000\n",
            "sys/class/thermal/thermal_zone0/temp": "51234\n",
            "sys/class/thermal/thermal_zone1/temp": "garbage\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        },
    )


def test_a_pi_is_described_by_its_own_files(pi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    info = device.probe(root=pi)
    assert info.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert info.cpu_model == "2x Cortex-A55 + 2x Cortex-A76"
    assert info.cpu_features == ("asimd", "crc32", "fp")
    assert info.governor == "ondemand+performance"
    assert info.memory_total_bytes == 4_000_000 * 1024
    assert info.memory_available_bytes == 3_000_000 * 1024
    assert info.is_emulated is None
    assert info.extra["max_frequency_hz"] == 2_400_000_000
    assert info.extra["temperature_c"] == 51.234
    assert DeviceInfo.from_json(info.to_json()) == info


def test_an_arm_python_above_an_x86_kernel_is_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = board(tmp_path, {"proc/cpuinfo": X86_CPUINFO, "proc/meminfo": MEMINFO})
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert device.probe(root=root).is_emulated is True
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    info = device.probe(root=root)
    assert info.is_emulated is None
    assert info.cpu_model == "Intel(R) Xeon(R)"
    assert info.extra["virtual_machine"] == "unknown hypervisor"
    assert device.probe(root=root, is_emulated=True).is_emulated is True


def test_the_bus_of_the_processor_also_gives_an_emulator_away(pi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    board(pi, {"sys/devices/system/cpu/modalias": "cpu:type:x86,ven0000fam0006mod008F:feature:,0000\n"})
    assert device.probe(root=pi).is_emulated is True


def test_memory_is_cut_by_every_cgroup_above_the_process(pi: Path) -> None:
    board(
        pi,
        {
            "sys/fs/cgroup/user.slice/memory.max": "1000000000\n",
            "sys/fs/cgroup/user.slice/memory.current": "600000000\n",
            "sys/fs/cgroup/user.slice/memory.stat": "anon 1\ninactive_file 100000000\n",
            "sys/fs/cgroup/user.slice/session-1.scope/memory.max": "max\n",
        },
    )
    assert device.memory_total_bytes(pi) == 1_000_000_000
    assert device.memory_available_bytes(pi) == 500_000_000


def test_cgroup_v1_limits_count_and_its_unlimited_does_not(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert device.memory_available_bytes(root) == 1_500_000_000
    assert device.cpu_count(root) == 1
    board(root, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert device.memory_available_bytes(root) == 3_000_000 * 1024


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("x", 8)]
)
def test_cores_are_cut_by_affinity_and_quota(
    pi: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    board(pi, {"sys/fs/cgroup/user.slice/cpu.max": quota})
    assert device.cpu_count(pi) == expected


def test_a_board_that_says_nothing_is_described_by_none(tmp_path: Path) -> None:
    info = device.probe(root=tmp_path)
    assert info.model is None
    assert info.cpu_model is None
    assert info.governor is None
    assert info.memory_available_bytes is None
    assert info.boot_id is None
    assert info.n_cores >= 1


def test_dmi_placeholders_are_no_model(tmp_path: Path) -> None:
    dmi = "sys/devices/virtual/dmi/id/"
    root = board(tmp_path, {dmi + "sys_vendor": "To Be Filled By O.E.M.\n", dmi + "product_name": "NUC7\n"})
    assert device.probe(root=root).model == "NUC7"


@pytest.mark.parametrize("name", ["numpy", "pytest", "hypothesis", "no-such-distribution"])
def test_versions_are_those_of_importlib_metadata(name: str) -> None:
    try:
        expected: str | None = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        expected = None
    assert device.distribution_version(name) == expected


def test_this_machine_can_be_described_without_importing_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from edge_lts import device; info = device.probe();"
        "assert info.python_bits == 64 and info.kernel; assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    root = Path(device.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60)


def test_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert device.disk_free_bytes(tmp_path / "not" / "there") == device.disk_free_bytes(tmp_path)

"""What this board is, from the kernel's files and the running Python; torch is never imported here.

Everything that cannot be read is None, because a board is described by what it says and not by what it ought to be.
Limits of a container (cgroup v1 and v2) count as the board's own: a search that ignores them is killed by them. `root`
is where the kernel's files are; tests put a folder of recorded ones there.

Sources: proc(5), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, arm64 MIDR part numbers of
arch/arm64/include/asm/cputype.h.
"""

import contextlib
import os
import platform
import re
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_lts.records import DeviceInfo

SYSTEM = Path("/")

ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715", "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520", "0xd81": "Cortex-A720",
}  # fmt: skip
_DMI_PLACEHOLDERS = (
    "",
    "to be filled by o.e.m.",
    "default string",
    "system product name",
    "system manufacturer",
    "none",
)
_UNLIMITED = 1 << 60


def probe(*, is_emulated: bool | None = None, root: Path = SYSTEM) -> DeviceInfo:
    """Describe this board. `is_emulated` is what the target knows; without it, only what can be proven is said."""
    machine = platform.machine()
    processors = read_processors(root)
    return DeviceInfo(
        model=_model(root),
        machine=machine,
        kernel=platform.release(),
        cpu_model=_cpu_model(processors),
        cpu_features=cpu_features(root),
        n_cores=cpu_count(root),
        memory_total_bytes=memory_total_bytes(root),
        memory_available_bytes=memory_available_bytes(root),
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        governor=_governor(root),
        python=platform.python_version(),
        python_bits=struct.calcsize("P") * 8,
        platform=sysconfig.get_platform(),
        libc=libc_version(),
        torch=distribution_version("torch"),
        numpy=distribution_version("numpy"),
        boot_id=read_text(root / "proc/sys/kernel/random/boot_id"),
        is_emulated=is_emulated or (True if _is_user_emulated(machine, processors, root) else is_emulated),
        extra=_extra(root, processors),
    )


def memory_total_bytes(root: Path = SYSTEM) -> int | None:
    """The machine's memory, or the container's limit where that is lower."""
    limits = [limit for limit, _ in _memory_cgroups(root)]
    total = read_meminfo(root).get("MemTotal")
    return min([*limits, *([total] if total is not None else [])], default=None)


def memory_available_bytes(root: Path = SYSTEM) -> int | None:
    """What can be had now without swapping: MemAvailable, or what the container has left where that is less."""
    left = [max(0, limit - used) for limit, used in _memory_cgroups(root)]
    available = read_meminfo(root).get("MemAvailable")
    return min([*left, *([available] if available is not None else [])], default=None)


def cpu_count(root: Path = SYSTEM) -> int:
    """Cores this process may use: its affinity, cut by the CPU quota of its cgroups, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, int(quota + 0.01)))


def cpu_features(root: Path = SYSTEM) -> tuple[str, ...]:
    """What /proc/cpuinfo says the first core can do, sorted."""
    first = next(iter(read_processors(root)), {})
    return tuple(sorted(set((first.get("features") or first.get("flags") or "").split())))


def distribution_version(name: str) -> str | None:
    """The version of an installed distribution, read from the name of its metadata folder: no import, no parsing.

    `importlib.metadata` gives the same and costs the supervisor 2 MB of memory.
    """
    pattern = re.compile(rf"{re.escape(name)}-(.+)\.(?:dist-info|egg-info)", re.IGNORECASE)
    for entry in sys.path:
        try:
            names = sorted(os.listdir(entry or "."))
        except OSError:
            continue
        for candidate in names:
            match = pattern.fullmatch(candidate)
            if match:
                return match[1]
    return None


def libc_version() -> str:
    """As `glibc 2.36` or `musl`; the system's name where there is neither."""
    with contextlib.suppress(OSError, ValueError):
        version = os.confstr("CS_GNU_LIBC_VERSION")
        if version:
            return version
    if "musl" in f"{sysconfig.get_config_var('SOABI')} {sysconfig.get_config_var('HOST_GNU_TYPE')}":
        return "musl"
    return platform.system().lower() or "unknown"


def disk_free_bytes(path: Path) -> int | None:
    """What an ordinary user may still write below `path` or its nearest existing parent."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            stat = os.statvfs(folder)
            return stat.f_bavail * stat.f_frsize
    return None


def temperature_c(root: Path = SYSTEM) -> float | None:
    """The hottest thermal zone."""
    readings = []
    for zone in children(root / "sys/class/thermal", "thermal_zone"):
        text = read_text(zone / "temp")
        if text and text.lstrip("-").isdigit() and -40_000 < int(text) < 200_000:
            readings.append(int(text) / 1000)
    return max(readings, default=None)


def read_text(path: Path) -> str | None:
    """A kernel file's content without trailing NUL and white space; None if it is empty or unreadable."""
    try:
        return path.read_bytes()[: 1 << 20].decode("utf-8", "replace").replace("\0", " ").strip() or None
    except OSError:
        return None


def children(folder: Path, prefix: str) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith(prefix))
    except OSError:
        return []


def read_meminfo(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024
    return found


def read_processors(root: Path) -> list[dict[str, str]]:
    """One dictionary per `processor` of /proc/cpuinfo, keys in lower case."""
    found: list[dict[str, str]] = []
    for block in (read_text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
        entry = {key.strip().lower(): value.strip() for key, value in pairs}
        if "processor" in entry:
            found.append(entry)
    return found


def _cpu_model(processors: list[dict[str, str]]) -> str | None:
    """`4x Cortex-A76` or the kernel's own words on x86; several clusters are joined by a plus sign."""
    counts: dict[str, int] = {}
    for entry in processors:
        implementer, part = entry.get("cpu implementer"), entry.get("cpu part")
        if part is not None:
            name = ARM_PARTS.get(part.lower(), "") if implementer == "0x41" else ""
            name = name or f"{implementer}/{part}"
        else:
            name = entry.get("model name", "")
        if name:
            counts[name] = counts.get(name, 0) + 1
    if len(counts) == 1 and "model name" in processors[0] and "cpu part" not in processors[0]:
        return next(iter(counts))
    return " + ".join(f"{count}x {name}" for name, count in counts.items()) or None


def _model(root: Path) -> str | None:
    model = read_text(root / "proc/device-tree/model")
    if model:
        return model
    words = [read_text(root / "sys/devices/virtual/dmi/id" / name) or "" for name in ("sys_vendor", "product_name")]
    return " ".join(word for word in words if word.lower() not in _DMI_PLACEHOLDERS) or None


def _governor(root: Path) -> str | None:
    policies = children(root / "sys/devices/system/cpu/cpufreq", "policy")
    names = {text for policy in policies if (text := read_text(policy / "scaling_governor"))}
    return "+".join(sorted(names)) or None


def _is_user_emulated(machine: str, processors: list[dict[str, str]], root: Path) -> bool:
    """Whether a user-mode emulator runs this Python: it says ARM, the kernel's files speak of an x86 processor."""
    if machine not in ("aarch64", "arm64", "armv8l"):
        return False
    is_x86_cpuinfo = any("vendor_id" in entry and "cpu part" not in entry for entry in processors)
    return is_x86_cpuinfo or ":type:x86" in (read_text(root / "sys/devices/system/cpu/modalias") or "")


def _cgroup_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each cgroup that holds this process, from its own up to the top.

    Inside a container without its own cgroup namespace the path in /proc/self/cgroup is the host's and does not exist
    below the mount; then the mount's top is the container.
    """
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, mount = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, mount = 1, next(iter(_mounts(root, controllers, controller)), root / "nonexistent")
        else:
            continue
        folder = mount / path.lstrip("/").replace("..", "")
        while folder != mount:
            if folder.is_dir():
                yield version, folder
            folder = folder.parent
        yield version, mount


def _mounts(root: Path, controllers: str, controller: str) -> Iterator[Path]:
    for name in (controller, controllers):
        folder = root / "sys/fs/cgroup" / name
        if folder.is_dir():
            yield folder


def read_integer(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _memory_cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup with a limit; page cache that the kernel would give back is not used."""
    found = []
    for version, folder in _cgroup_folders(root, "memory"):
        limit_name, used_name, cache_name = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit = read_integer(folder / limit_name)
        if limit is None or not 0 < limit < _UNLIMITED:
            continue
        statistics = (line.split() for line in (read_text(folder / "memory.stat") or "").splitlines())
        cache = sum(int(words[1]) for words in statistics if len(words) == 2 and words[0] == cache_name)
        found.append((limit, max(0, (read_integer(folder / used_name) or 0) - cache)))
    return found


def cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that the tightest cgroup allows; None without a quota."""
    quotas = []
    for version, folder in _cgroup_folders(root, "cpu"):
        if version == 2:
            words = (read_text(folder / "cpu.max") or "max").split()
        else:
            words = [
                read_text(folder / "cpu.cfs_quota_us") or "-1",
                read_text(folder / "cpu.cfs_period_us") or "100000",
            ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _container(root: Path) -> str | None:
    """The kind of container, by the marks that each leaves; None outside of one."""
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    systemd = read_text(root / "run/systemd/container")
    if systemd:
        return systemd
    groups = read_text(root / "proc/self/cgroup") or ""
    return next((name for name in ("docker", "kubepods", "lxc", "containerd") if name in groups), None)


def _virtual_machine(root: Path, processors: list[dict[str, str]]) -> str | None:
    if "microsoft" in (read_text(root / "proc/sys/kernel/osrelease") or "").lower():
        return "wsl"
    names = " ".join(
        read_text(root / "sys/devices/virtual/dmi/id" / name) or "" for name in ("sys_vendor", "product_name")
    ).lower()
    model = (read_text(root / "proc/device-tree/model") or "").lower()
    for mark, kind in (("qemu", "qemu"), ("kvm", "kvm"), ("vmware", "vmware"), ("virtualbox", "virtualbox")):
        if mark in names:
            return kind
    if "dummy-virt" in model:
        return "qemu"
    has_bit = any("hypervisor" in entry.get("flags", "").split() for entry in processors)
    return read_text(root / "sys/hypervisor/type") or ("unknown hypervisor" if has_bit else None)


def _last_level_cache_bytes(root: Path) -> int | None:
    """The largest cache of the first core that holds data (sysfs cacheinfo ABI); None where the kernel does not say."""
    sizes = []
    for index in children(root / "sys/devices/system/cpu/cpu0/cache", "index"):
        size = re.fullmatch(r"(\d+)K", read_text(index / "size") or "")
        if size and read_text(index / "type") != "Instruction":
            sizes.append(int(size[1]) * 1024)
    return max(sizes, default=None)


def _extra(root: Path, processors: list[dict[str, str]]) -> dict[str, Any]:
    memory = read_meminfo(root)
    policies = children(root / "sys/devices/system/cpu/cpufreq", "policy")
    frequencies = [value for policy in policies if (value := read_integer(policy / "cpuinfo_max_freq"))]
    load = (read_text(root / "proc/loadavg") or "").split()
    return {
        "container": _container(root),
        "virtual_machine": _virtual_machine(root, processors),
        "n_cores_online": os.cpu_count(),
        "cpu_quota": cpu_quota(root),
        "memory_limit_bytes_cgroup": min((limit for limit, _ in _memory_cgroups(root)), default=None),
        "swap_total_bytes": memory.get("SwapTotal"),
        "last_level_cache_bytes": _last_level_cache_bytes(root),
        "max_frequency_hz": max(frequencies) * 1000 if frequencies else None,
        "temperature_c": temperature_c(root),
        "load_1min": float(load[0]) if load and re.fullmatch(r"\d+\.\d+", load[0]) else None,
        "python_executable": sys.executable,
    }

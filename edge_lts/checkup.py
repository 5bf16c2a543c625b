"""What would spoil a run on this board: codes and data, worst first; the words are on the workstation
(edge_lts_host/report/doctor.py).

Reads the kernel's files, looks half a second at who uses the CPU, and imports torch in a child process last, so that
this does not count as load. Changes nothing but this process's own memory watermark.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_lts import health
from edge_lts.device import (
    SYSTEM,
    children,
    cpu_quota,
    disk_free_bytes,
    distribution_version,
    probe,
    read_integer,
    read_meminfo,
    read_text,
)
from edge_lts.energy import find_meter
from edge_lts.job import is_locked, read_holder
from edge_lts.records import DeviceInfo
from edge_lts.runfolder import BOARD_LOCK

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MIB = 1 << 20
RUN_DISK_BYTES, DEPLOY_DISK_BYTES = 200 * MIB, 1500 * MIB
MIN_MEMORY_BYTES, SMALL_MEMORY_BYTES = 400 * MIB, 700_000_000  # torch alone takes half of the first
WINDOW_S = 0.5
_CPUS = "sys/devices/system/cpu"
BUSY_SHARE = 0.1
_UPDATERS = ("apt", "apt-get", "aptd", "apt.systemd.dai", "dpkg", "unattended-upgr")
_DESKTOPS = ("Xorg", "Xwayland", "labwc", "wayfire", "weston", "sway", "lxpanel", "gnome-shell", "kwin_wayland")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that would spoil a run. `data` holds numbers and names, in SI units, for the words about it."""

    code: str
    severity: Severity
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "severity": self.severity, "data": dict(self.data)}


def checkup(
    root: Path = SYSTEM,
    *,
    run_root: Path | None = None,
    site: Path | None = None,
    prove: Callable[[], Mapping[str, Any]] = dict,
    sleep: Callable[[float], None] = time.sleep,
    left_tuned: Callable[[], Mapping[str, Any] | None] = lambda: None,
    info: DeviceInfo | None = None,
) -> list[Finding]:
    """Everything found, worst first. `run_root` is where runs are kept, `site` where a deploy put torch.

    `prove` imports torch (edge_lts.verbs.prove_torch); `left_tuned` says what a run that crashed left changed
    (edge_lts.tuning).
    """
    board = _Board(root, probe(root=root) if info is None else info)
    board.python()
    if tuned := left_tuned():
        board.say("warning", "left_tuned", **tuned)
    if run_root is not None:
        board.runs(run_root, site)
    board.processes(sleep)
    board.pressure()
    board.sensors()
    board.memory()
    board.cpus()
    board.kernel()
    board.torch(prove)
    return sorted(board.found, key=lambda one: SEVERITIES.index(one.severity))


class _Board:
    """Collects findings; each method looks at one side of the board."""

    def __init__(self, root: Path, info: DeviceInfo) -> None:
        self.root, self.info = root, info
        self.found: list[Finding] = []

    def say(self, severity: Severity, code: str, **data: Any) -> None:
        self.found.append(Finding(code=code, severity=severity, data=data))

    def text(self, name: str) -> str:
        return read_text(self.root / name) or ""

    def python(self) -> None:
        info = self.info
        if info.python_bits < 64:
            self.say("error", "python_32bit", platform=info.platform)
        if tuple(map(int, info.python.split(".")[:2])) < (3, 10):
            self.say("error", "python_old", python=info.python)
        if info.libc.startswith("musl"):
            self.say("error", "libc_musl", libc=info.libc)
        if info.is_emulated:
            self.say("warning", "emulated")

    def torch(self, prove: Callable[[], Mapping[str, Any]]) -> None:
        for name in ("torch", "numpy"):
            if distribution_version(name) is None:
                return self.say("error", f"{name}_missing", python=sys.executable)
        proof = prove()
        if proof.get("ok") is False:
            message = str(proof.get("message") or "").strip().rpartition("\n")[2]
            self.say("error", "torch_broken", signal=proof.get("signal"), message=message[:300])
        elif proof.get("is_cuda_build"):
            self.say("warning", "torch_cuda", version=proof.get("version"))
        return None

    def runs(self, folder: Path, site: Path | None) -> None:
        if is_locked(folder / BOARD_LOCK):
            holder = read_holder(folder / BOARD_LOCK)
            self.say("warning", "board_busy", run_id=str(holder.get("run_id")), pid=holder.get("pid"))
        free = disk_free_bytes(folder)
        if free is not None and free < RUN_DISK_BYTES:
            self.say("error", "disk_full", path=str(folder), free_bytes=free, needed_bytes=RUN_DISK_BYTES)
        elif free is not None and free < DEPLOY_DISK_BYTES and site is not None:
            self.say("note", "disk_small", path=str(folder), free_bytes=free, needed_bytes=DEPLOY_DISK_BYTES)

    def processes(self, sleep: Callable[[float], None]) -> None:
        before, ticks_before = _processes(self.root), self.cpu_ticks()
        sleep(WINDOW_S)
        after, ticks_after = _processes(self.root), self.cpu_ticks()
        others = after.keys() & before.keys() - {os.getpid()}
        used, pid = max(((after[pid][1] - before[pid][1], pid) for pid in others), default=(0, 0))
        share = used / (WINDOW_S * os.sysconf("SC_CLK_TCK"))
        if share >= BUSY_SHARE:
            self.say("warning", "busy_process", pid=pid, name=after[pid][0], share=round(share, 3))
        # Fields of /proc/stat: user nice system idle iowait irq softirq steal; guest time is in user already.
        spent = [b - a for a, b in zip(ticks_before, ticks_after, strict=False)]
        now, since_boot = (sum(part[7:8]) / max(1, sum(part[:8])) for part in (spent, ticks_after))
        if max(now, since_boot) > 0.01:
            self.say("warning", "steal", share=round(now, 4), share_since_boot=round(since_boot, 4))
        for code, names in (("updates_running", _UPDATERS), ("desktop_running", _DESKTOPS)):
            # unattended-upgrade-shutdown waits for the machine's end and does nothing.
            running = {
                name
                for pid, (name, _) in after.items()
                if name in names and "upgrade-shutdown" not in self.text(f"proc/{pid}/cmdline")
            }
            if running:
                self.say("warning", code, names=sorted(running))
        is_kept = children(self.root / "sys/class/rtc", "rtc") or self.text("run/systemd/timesync/synchronized")
        if (year := time.gmtime().tm_year) < 2024:
            self.say("warning", "clock_unset", year=year)
        elif not is_kept and {"chronyd", "ntpd"}.isdisjoint(name for name, _ in after.values()):
            self.say("note", "clock_not_synchronised")

    def cpu_ticks(self) -> list[int]:
        return [int(word) for word in self.text("proc/stat").partition("\n")[0].split()[1:]]

    def pressure(self) -> None:
        load_1min = float(self.text("proc/loadavg").partition(" ")[0] or 0)
        if load_1min > 0.7:
            self.say("warning", "background_load", load_1min=load_1min, n_cores=self.info.n_cores)
        for kind, limit in (("cpu", 5), ("memory", 1)):
            match = re.match(r"some .*avg60=([\d.]+)", self.text(f"proc/pressure/{kind}"))
            if match and float(match[1]) > limit:
                self.say("warning", f"pressure_{kind}", share=round(float(match[1]) / 100, 4))

    def sensors(self) -> None:
        sensors = health.Sensors(self.root)
        now, limit_c = sensors.read(), health.throttle_c(self.root)
        for name, bits in (("undervolted", health.UNDERVOLTED), ("throttled", 15 & ~health.UNDERVOLTED)):
            if (now.throttle_now or 0) & bits:
                self.say("error" if name == "undervolted" else "warning", f"{name}_now", bits=now.throttle_now)
            elif (now.throttle_since_boot or 0) & bits:
                self.say("warning", f"{name}_since_boot", bits=now.throttle_since_boot)
        if now.temperature_c is None:
            self.say("note", "no_temperature")
        elif now.temperature_c >= limit_c - 10:
            self.say("warning", "hot", temperature_c=now.temperature_c, limit_c=limit_c)
        if now.frequency_hz is None:
            self.say("note", "no_clock")
        if sensors.throttle_source is None and "Raspberry" in (self.info.model or ""):
            self.say("note", "no_throttle_bits")
        governor = sensors.governor
        if governor and governor not in ("performance", "userspace"):
            policies = children(self.root / _CPUS / "cpufreq", "policy")
            drivers = [read_text(policy / "scaling_driver") or "" for policy in policies]
            is_slow = governor in ("powersave", "conservative") and "pstate" not in "".join(drivers)
            self.say("warning" if is_slow else "note", "governor", governor=governor)
        sensors.close()
        if find_meter("auto", self.root) is None:
            self.say("note", "no_meter")

    def memory(self) -> None:
        total, available = self.info.memory_total_bytes, self.info.memory_available_bytes
        if total is None or available is None:
            self.say("warning", "memory_unknown")
        elif total < SMALL_MEMORY_BYTES:
            severity: Severity = "error" if total < MIN_MEMORY_BYTES else "warning"
            self.say(severity, "memory_small", total_bytes=total, needed_bytes=SMALL_MEMORY_BYTES)
        elif available < max(0.2 * total, 256 * MIB):
            severity = "error" if available < 128 * MIB else "warning"
            self.say(severity, "memory_full", available_bytes=available, total_bytes=total)
        memory = read_meminfo(self.root)
        used = memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)
        if used > 64 * MIB:
            self.say("warning", "swap_used", used_bytes=used)
        zram = sum(int(size) * 1024 for size in re.findall(r"zram\S*\s+\S+\s+(\d+)", self.text("proc/swaps")))
        if zram:
            self.say("warning", "swap_zram", size_bytes=zram)
        folder = os.environ.get("TMPDIR") or "/tmp"
        mounts = re.findall(r"^\S+ (\S+) (\S+)", self.text("proc/self/mounts"), re.MULTILINE)
        kinds = {place: kind for place, kind in mounts if f"{folder}/".startswith(place.rstrip("/") + "/")}
        if kinds and kinds[max(kinds, key=len)] in ("tmpfs", "ramfs"):
            self.say("warning" if (total or 0) < 2 << 30 else "note", "tmp_in_memory", path=folder)
        if "[always]" in self.text("sys/kernel/mm/transparent_hugepage/enabled"):
            self.say("note", "huge_pages_always")
        if self.info.page_size_bytes != 4096:
            self.say("note", "page_size", page_size_bytes=self.info.page_size_bytes)

    def cpus(self) -> None:
        quota = cpu_quota(self.root)
        if quota is not None:
            self.say("warning", "cpu_quota", cores=round(quota, 2))
        if isolated := self.text(f"{_CPUS}/isolated"):
            self.say("note", "isolated_cpus", cpus=isolated)
        speeds = {}
        for folder in children(self.root / _CPUS, "cpu"):
            if folder.name[3:].isdigit():
                speed = read_integer(folder / "cpu_capacity") or read_integer(folder / "cpufreq/cpuinfo_max_freq")
                speeds[int(folder.name[3:])] = speed or 0
        fastest = {cpu for cpu, speed in speeds.items() if speed == max(speeds.values())}
        try:
            allowed = os.sched_getaffinity(0)
            os.sched_setaffinity(0, allowed)
        except (AttributeError, OSError):
            allowed = set()
        if len(fastest) < len(speeds) and not fastest & allowed:
            self.say("warning", "cannot_pin", fastest=sorted(fastest), allowed=sorted(allowed))

    def kernel(self) -> None:
        try:
            watermark = os.open(self.root / "proc/self/clear_refs", os.O_WRONLY)
            try:
                os.write(watermark, b"5")
            finally:
                os.close(watermark)
        except OSError:
            self.say("note", "no_clear_refs", kernel=self.info.kernel)
        if not self.text("proc/pressure/cpu"):
            self.say("note", "no_pressure", kernel=self.info.kernel)


def _processes(root: Path) -> dict[int, tuple[str, int]]:
    """pid -> (name, ticks of CPU time) of every process."""
    found = {}
    for folder in children(root / "proc", ""):
        match = re.match(r"(\d+) \((.*)\)((?: \S+){13})", read_text(folder / "stat") or "", re.DOTALL)
        if match:
            fields = match[3].split()
            found[int(match[1])] = (match[2], int(fields[11]) + int(fields[12]))
    return found

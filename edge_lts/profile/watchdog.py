"""Ends a candidate that is about to take the board with it, before the kernel would.

On a board whose swap is compressed memory (zram, the default of Raspberry Pi OS) a process that wants too much does not
die: everything is pushed out and in again, for minutes, and the board answers nobody. So the measuring server looks at
the kernel's own numbers while a candidate runs, a fraction of a millisecond a few times a second:

    available   less than LEAST_AVAILABLE of the memory is left, and the candidate still grows
    swapped     more of the candidate was pushed out since it began than MOST_SWAPPED of what is resident
    storm       pages go to and from swap at STORM_PER_S of the memory per second, STORM_READINGS times in a row

Sources: proc_meminfo(5), proc_pid_status(5), proc_vmstat(5).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_AVAILABLE = 0.04
MOST_SWAPPED = 0.25
STORM_PER_S = 0.05
STORM_READINGS = 5
INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The machine's memory and one process's, in bytes. `swap_traffic_bytes`: in and out, since boot."""

    at_s: float
    total_bytes: int
    available_bytes: int
    rss_bytes: int
    swap_bytes: int
    swap_traffic_bytes: int


def read(pid: int, proc: str = "/proc") -> Reading | None:
    """None where the kernel does not say, or the process is gone."""
    try:
        machine = _fields(f"{proc}/meminfo", (b"MemTotal:", b"MemAvailable:"))
        process = _fields(f"{proc}/{pid}/status", (b"VmRSS:", b"VmSwap:"))
        traffic = _fields(f"{proc}/vmstat", (b"pswpin ", b"pswpout "))
    except (OSError, ValueError, IndexError):
        return None
    if len(machine) < 2 or len(process) < 2:
        return None
    return Reading(
        at_s=time.monotonic(),
        total_bytes=machine[0] * 1024,
        available_bytes=machine[1] * 1024,
        rss_bytes=process[0] * 1024,
        swap_bytes=process[1] * 1024,
        swap_traffic_bytes=sum(traffic) * os.sysconf("SC_PAGE_SIZE"),
    )


def _fields(path: str, names: tuple[bytes, ...]) -> list[int]:
    with open(path, "rb") as lines:
        return [int(line.split()[1]) for line in lines if line.startswith(names)]


class Watchdog:
    """Watches one process; `verdict` is asked every INTERVAL_S and says why it must end, or None."""

    def __init__(self, pid: int, read: Callable[[int], Reading | None] = read) -> None:
        self._pid = pid
        self._read = read
        self._first = self._last = read(pid)
        self._n_storms = 0

    def verdict(self) -> str | None:
        now, first, last = self._read(self._pid), self._first, self._last
        if now is None or first is None or last is None:
            self._first, self._last = first or now, now
            return None
        self._last = now
        size, size_before = now.rss_bytes + now.swap_bytes, last.rss_bytes + last.swap_bytes
        if now.available_bytes < LEAST_AVAILABLE * now.total_bytes and size > size_before:
            return f"{now.available_bytes} of {now.total_bytes} bytes were available and it still grew, to {size}"
        swapped = now.swap_bytes - first.swap_bytes
        if swapped > MOST_SWAPPED * now.rss_bytes:
            return f"{swapped} bytes of it were swapped out, {now.rss_bytes} were resident"
        elapsed_s = now.at_s - last.at_s
        moved = now.swap_traffic_bytes - last.swap_traffic_bytes
        self._n_storms = self._n_storms + 1 if moved > STORM_PER_S * now.total_bytes * elapsed_s > 0 else 0
        if self._n_storms >= STORM_READINGS:
            return f"{moved} bytes went to and from swap in {elapsed_s:.1f} s, and not for the first time"
        return None

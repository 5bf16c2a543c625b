"""How much memory a candidate adds to its process, from the kernel's own watermark.

Linux keeps the highest resident size of a process as `VmHWM` (proc_pid_status(5)); writing 5 to /proc/self/clear_refs
sets it back to the present size (Documentation/filesystems/proc.rst), which separates loading from running. A child's
`ru_maxrss` is not used: it begins at its parent's peak. No sampling thread: it would disturb the timing and miss peaks.
Swap counts: pages that were pushed out are still the candidate's.

glibc keeps freed memory for later, and how much of it lies idle at the worst moment is chance: with its defaults one
candidate's watermark scattered by 10 MB from process to process. So the peak is taken over prefills and tokens during
which malloc returns what is freed (`set_malloc(keeps_freed=False)`); that scatters by 0.2 MB. There are two of each
(`run_twice`): what the matrix library keeps of the first token lies beneath the second prefill. The timed samples come
after that, with a malloc that keeps what is freed, as a process that has once freed a large tensor does: no page is
fetched anew in every forward. Their watermark is recorded too (`timed_peak_bytes`).

Where the watermark cannot be reset, running includes loading and the record says so (`is_watermark_reset` false).
Without /proc (macOS) nothing is measured and the value is None, never 0. The kernel counts resident pages per core in
batches (percpu_counter, mm_types.h): VmRSS and VmHWM may be off by some 32 pages a core, 2 MB on four cores with 16 KiB
pages. So the baseline is counted page by page (smaps_rollup), and the peak is moved by as much as the counter is found
to be off behind the run (`rss_bytes` against `rss_exact_bytes`).
"""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from edge_lts.errors import EvaluationError

_MEMINFO = "/proc/meminfo"
_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"
_SMAPS_ROLLUP = "/proc/self/smaps_rollup"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SMALLEST_MMAP, _LARGEST_MMAP = 128 * 1024, 32 * 1024 * 1024  # glibc's default, and the most that it accepts
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatus:
    """One reading of /proc/self/status, in bytes."""

    rss_bytes: int
    peak_rss_bytes: int
    swap_bytes: int
    data_bytes: int  # private writable mappings, written to or not: what RLIMIT_DATA bounds


def read_status(path: str = _STATUS) -> MemoryStatus | None:
    """The process's memory now, or None where the kernel does not say."""
    found: dict[bytes, int] = {}
    try:
        with open(path, "rb") as status:
            for line in status:
                name, _, rest = line.partition(b":")
                if name in (b"VmRSS", b"VmHWM", b"VmSwap", b"VmData"):
                    found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    if b"VmRSS" not in found or b"VmHWM" not in found:
        return None
    return MemoryStatus(
        rss_bytes=found[b"VmRSS"],
        peak_rss_bytes=max(found[b"VmHWM"], found[b"VmRSS"]),
        swap_bytes=found.get(b"VmSwap", 0),
        data_bytes=found.get(b"VmData", 0),
    )


def require_available(needed_bytes: int, headroom: float, path: str = _MEMINFO) -> None:
    """Raise EvaluationError("oom") unless a candidate of `needed_bytes` leaves `headroom` of what is available now.

    MemAvailable (proc_meminfo(5)) is what can be had without swapping. Where the kernel does not say, nothing happens.
    """
    with contextlib.suppress(OSError, ValueError, IndexError), open(path, "rb") as meminfo:
        available = next((int(line.split()[1]) * 1024 for line in meminfo if line.startswith(b"MemAvailable:")), None)
        if available is not None and needed_bytes > available * (1 - headroom):
            raise EvaluationError(
                "oom",
                f"not built: needs {needed_bytes} bytes by formula; {available} are available, of which a share of "
                f"{headroom:g} must stay free",
            )


def read_exact_rss(path: str = _SMAPS_ROLLUP) -> int | None:
    """Resident bytes counted page by page; milliseconds for a large process. None where not offered."""
    try:
        with open(path, "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Rss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def reset_watermark(path: str = _CLEAR_REFS) -> bool:
    """Set VmHWM back to the present size. False where the kernel was built without it or forbids it."""
    try:
        with open(path, "wb", buffering=0) as clear_refs:
            clear_refs.write(b"5")
    except OSError:
        return False
    return True


def trim_heap() -> None:
    """Give free heap pages back to the kernel, so that what was used before does not hide what is used next."""
    malloc_trim = _libc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def set_malloc(*, keeps_freed: bool) -> bool:
    """Fix how malloc treats freed blocks: keep them for the next forward, or return large ones at once.

    Also ends glibc's habit of adjusting this to what it has seen. False where there is no mallopt (musl, macOS).
    """
    mallopt = _libc_function("mallopt")
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold = (_LARGEST_MMAP, 8 * _LARGEST_MMAP) if keeps_freed else (_SMALLEST_MMAP,) * 2
    return bool(mallopt(_M_MMAP_THRESHOLD, mmap_threshold)) and bool(mallopt(_M_TRIM_THRESHOLD, trim_threshold))


def _libc_function(name: str) -> Any:
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


def huge_pages() -> str | None:
    """The transparent huge page mode in force: it changes resident sizes and speed."""
    try:
        with open(_HUGE_PAGES) as modes:
            return modes.read().partition("[")[2].partition("]")[0] or None
    except OSError:
        return None


class _Checkable(Protocol):
    def check(self) -> None: ...


def run_twice(prefill: _Checkable, decode: _Checkable) -> None:
    """What the peak is taken over: the second round finds kernels and packed weights of both shapes in place, as every
    later one does. oneDNN in bfloat16 needs 3 MB more there than in the first."""
    for timer in (prefill, decode, prefill, decode):
        timer.check()


def _read_both() -> tuple[MemoryStatus | None, int | None]:
    """The counters, and by how many bytes the resident size they give exceeds the pages that are there."""
    status, exact = read_status(), read_exact_rss()
    return status, None if status is None or exact is None else status.rss_bytes - exact


class MemoryMeter:
    """Baseline, loading and running peak of one candidate. Make it after the warm-up, before anything is built.

    Call `end_loading` once the parameters are there, `end_running` after `run_twice`, and `end_timing` after the last
    sample. A reading that the kernel refuses makes the values that need it None.
    """

    def __init__(self) -> None:
        self._is_malloc_set = set_malloc(keeps_freed=False)
        trim_heap()
        self._is_reset = reset_watermark()
        self._baseline, self._baseline_error = _read_both()
        self._loaded: MemoryStatus | None = None
        self._run: MemoryStatus | None = None
        self._timed: MemoryStatus | None = None
        self._run_error: int | None = None

    @property
    def data_bytes(self) -> int | None:
        """Private writable memory at the baseline: what a limit has to be added to."""
        return None if self._baseline is None else self._baseline.data_bytes

    @property
    def running_peak_bytes(self) -> int | None:
        """What the candidate added to the process at its worst moment while running, swap included."""
        return self._growth(self._run, self._run_error)

    @property
    def swapped_bytes(self) -> int:
        """By how much the process's swap grew; above 0 the timings are not to be believed."""
        if self._baseline is None or self._timed is None:
            return 0
        return max(0, self._timed.swap_bytes - self._baseline.swap_bytes)

    def end_loading(self) -> None:
        self._loaded = read_status()
        self._is_reset = reset_watermark() and self._is_reset

    def end_running(self) -> None:
        self._run, self._run_error = _read_both()
        set_malloc(keeps_freed=True)

    def end_timing(self) -> None:
        self._timed = read_status()

    def _growth(self, status: MemoryStatus | None, error: int | None = None) -> int | None:
        if status is None or self._baseline is None:
            return None
        swapped = max(0, status.swap_bytes - self._baseline.swap_bytes)
        drift = 0 if error is None or self._baseline_error is None else self._baseline_error - error
        return max(0, status.peak_rss_bytes - self._baseline.rss_bytes + drift) + swapped

    def to_json(self) -> dict[str, int | bool | str | None]:
        return {
            "baseline_bytes": None if self._baseline is None else self._baseline.rss_bytes,
            "loading_peak_bytes": self._growth(self._loaded),
            "running_peak_bytes": self.running_peak_bytes,
            "timed_peak_bytes": self._growth(self._timed),
            "rss_bytes": None if self._run is None else self._run.rss_bytes,
            "rss_exact_bytes": None
            if self._run_error is None or self._run is None
            else self._run.rss_bytes - self._run_error,
            "swap_bytes": None if self._timed is None else self.swapped_bytes,
            "page_size_bytes": os.sysconf("SC_PAGE_SIZE"),
            "huge_pages": huge_pages(),
            "is_watermark_reset": self._is_reset,
            "is_malloc_set": self._is_malloc_set,
        }

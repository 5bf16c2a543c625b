"""The kernel's clocks and counters: what this process's threads got, and how busy the machine was meanwhile.

Threads' clocks are exact, those of another thread too (clock_gettime on clockid ~tid << 3 | 6, which asks the running
core); the process's clock is not, as it misses what other cores have done since their last tick. The time that a thread
waited for a core is the second field of schedstat, which not every kernel keeps. What is not kept is None.

Sources: Linux kernel/time/posix-cpu-timers.c, Documentation/scheduler/sched-stats, accounting/psi, filesystems/proc.
"""

import os
import resource
import time
from collections.abc import Sequence
from typing import NamedTuple

WORKER_SHARE = 0.05  # a thread with less CPU time than this share of the main thread's does not compute


class Mark(NamedTuple):
    """The clocks at one moment. `workers_ns` and `delay_ns` are sums over threads; delay None: not kept."""

    wall_ns: int
    main_ns: int
    workers_ns: int
    delay_ns: int | None
    voluntary: int
    involuntary: int
    major_faults: int


class System(NamedTuple):
    """Counters of the whole machine; None where it keeps none. Ticks are summed over all cores."""

    ticks: int | None = None
    idle_ticks: int = 0
    steal_ticks: int = 0
    own_ticks: float = 0.0
    swap_ins: int | None = None
    cpu_pressure_s: float | None = None
    memory_pressure_s: float | None = None
    load_1min: float | None = None


class Clocks:
    """The real ones of this process."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._workers: list[int] = []
        self._delays: list[int] = []
        self._aggregate = False
        self._seen: dict[int, int] = self._thread_clocks()

    def find_workers(self, threads: int) -> int:
        """Choose the threads that have computed since this object was made; returns how many are watched."""
        if threads > 1:
            main = os.getpid()
            grown = {tid: ns - self._seen.get(tid, 0) for tid, ns in self._thread_clocks().items()}
            least = WORKER_SHARE * grown.get(main, 0)
            tids = [tid for tid, ns in grown.items() if tid != main and ns > least]
            self._aggregate = not grown
            self._workers = [~tid << 3 | 6 for tid in tids]
        else:
            tids = []
        self._delays = self._open_delays([os.getpid(), *tids])
        return threads - 1 if self._aggregate else len(self._workers)

    def mark(self) -> Mark:
        wall = time.perf_counter_ns()
        main = time.thread_time_ns()
        try:
            workers = sum([time.clock_gettime_ns(clock) for clock in self._workers])
        except OSError:  # a worker ended
            workers = 0
        if self._aggregate:
            workers = time.process_time_ns() - main
        usage = resource.getrusage(resource.RUSAGE_SELF)
        delay = None
        if self._delays:
            try:
                delay = sum([int(os.pread(fd, 64, 0).split()[1]) for fd in self._delays])
            except (OSError, IndexError, ValueError):
                self.close()
        return Mark(wall, main, workers, delay, usage.ru_nvcsw, usage.ru_nivcsw, usage.ru_majflt)

    def system(self, last: System | None = None) -> System:
        """All counters; or, cheaper, `last` with those of the cores brought up to date."""
        ticks = idle = steal = 0
        cpu = self._read("stat").partition("\n")[0].split()
        if cpu[:1] == ["cpu"] and len(cpu) > 8:
            fields = [int(text) for text in cpu[1:9]]  # user nice system idle iowait irq softirq steal
            ticks, idle, steal = sum(fields), fields[3] + fields[4], fields[7]
        own = time.process_time() * os.sysconf("SC_CLK_TCK")
        if last is not None:
            return last._replace(ticks=ticks or None, idle_ticks=idle, steal_ticks=steal, own_ticks=own)
        swap_ins = self._read("vmstat").partition("\npswpin ")[2].partition("\n")[0]
        try:
            load = os.getloadavg()[0]
        except OSError:
            load = None
        return System(
            ticks or None,
            idle,
            steal,
            own,
            int(swap_ins) if swap_ins else None,
            self._pressure_s("cpu"),
            self._pressure_s("memory"),
            load,
        )

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        for fd in self._delays:
            os.close(fd)
        self._delays = []

    def _thread_clocks(self) -> dict[int, int]:
        clocks = {}
        try:
            for name in os.listdir(f"{self._proc}/self/task"):
                clocks[int(name)] = time.clock_gettime_ns(~int(name) << 3 | 6)
        except (OSError, ValueError, AttributeError):
            return {}
        return clocks

    def _open_delays(self, tids: Sequence[int]) -> list[int]:
        """Descriptors of the threads' schedstat; none where the kernel does not count delays (it then says 0)."""
        fds = []
        try:
            for tid in tids:
                fds.append(os.open(f"{self._proc}/self/task/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC))
            if any(int(os.pread(fd, 64, 0).split()[1]) for fd in fds):
                return fds
        except (OSError, IndexError, ValueError):
            pass
        for fd in fds:
            os.close(fd)
        return []

    def _pressure_s(self, what: str) -> float | None:
        some = self._read(f"pressure/{what}").partition("\n")[0]
        return int(some.rpartition("total=")[2]) * 1e-6 if "total=" in some else None

    def _read(self, name: str) -> str:
        try:
            with open(f"{self._proc}/{name}") as file:
                return file.read()
        except OSError:
            return ""

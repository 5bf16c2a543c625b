"""Did something disturb a sample? What the kernel's clocks say about each, and what the record says about all of them.

A sample is judged by what can only be interference, never by its value: its threads were ready but had no core
(`contended`), nobody ran for a while (`frozen`), the hypervisor took the cores (`stolen`), pages came back from swap or
from disk (`swapped`, `memory_pressure`), the board throttled, lost clock or voltage (edge_lts.health). Tainted samples
are kept, and taken again; the value is that of the others. A flag is raised when that was not enough, so a flag is a
doubt about the value and not a diary of the board. A neighbour on another core that only takes memory bandwidth leaves
no trace in these clocks: the record then says how busy others were (`others_share`), and `noisy` may follow.

Where the kernel keeps no delays (edge_lts.clocks), idleness stands for them. A worker that waits for work may sleep, so
the threads' idleness is compared with that of samples in which nobody was preempted.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from typing import Protocol as Interface

from edge_lts import stats
from edge_lts.clocks import Clocks, Mark, System
from edge_lts.health import Health, Sensors, health_json, taints_between
from edge_lts.records import TAINTS, Protocol

LOST_SHARE = 0.03  # of a sample's time: less cannot move a number by the 5 % that matter
LOST_FLOOR_NS = 100_000  # interrupts and kernel threads take 10 to 50 us now and then on any board
FROZEN_NS = 50_000_000  # longer than a scheduler lets a ready thread wait among a few others
SLICE_NS = 10_000_000  # what one preemption may cost: the longest seen with one competitor was 9 ms
STOLEN_SHARE = 0.03  # of all cores' time between two readings
STOLEN_TICKS = 2  # one tick is the resolution
PRESSURE_SHARE = 0.05  # of the time some task waited for memory
PRESSURE_PERIOD_S = 2.0  # the kernel brings its pressure totals up to date this often (psi_period)
NOISY_REACH = 0.10  # of the median, to the farther end of its interval: the value is not known to a tenth
FLAG_SHARE = 2 / 3  # more tainted samples than this leave too few to believe that the others were spared
MIN_KEPT = stats.MIN_SAMPLES_CI95
READING_PERIOD_S = 0.25
PAUSES_S = (0.005, 0.010, 0.020, 0.050)  # interference comes in bursts; waiting may outlast one
MAX_PAUSE_S = 1.0


class Watch(NamedTuple):
    """What the clocks said of one sample. `window` counts readings of the sensors."""

    wall_ns: int
    main_lost_ns: int
    workers_idle_ns: int
    delay_ns: int | None
    voluntary: int
    involuntary: int
    major_faults: int
    window: int


def judge(watches: Sequence[Watch], n_workers: int) -> list[tuple[str, ...]]:
    """The taints of each sample of one kind, as far as its own clocks tell."""
    taints: list[tuple[str, ...]] = []
    needs_usual = n_workers and any(watch.delay_ns is None for watch in watches)
    idle_share, allowance = _usual_idleness(watches) if needs_usual else (0.0, 0.0)
    for watch in watches:
        if not (watch.main_lost_ns > LOST_FLOOR_NS or watch.involuntary or watch.delay_ns or watch.major_faults):
            unusual_ns = max(0, watch.workers_idle_ns) - (idle_share + allowance) * watch.wall_ns
            if unusual_ns <= LOST_FLOOR_NS:  # most samples; the rest of this loop would say the same
                taints.append(())
                continue
        found = []
        common = min(watch.main_lost_ns, watch.workers_idle_ns // n_workers if n_workers else watch.main_lost_ns)
        if common - SLICE_NS * watch.involuntary >= FROZEN_NS and common - (watch.delay_ns or 0) >= FROZEN_NS:
            found.append("frozen")
        elif _lost_ns(watch, n_workers, idle_share, allowance) > max(LOST_SHARE * watch.wall_ns, LOST_FLOOR_NS):
            found.append("contended")
        if watch.major_faults:
            found.append("memory_pressure")
        taints.append(tuple(found))
    return taints


def _usual_idleness(watches: Sequence[Watch]) -> tuple[float, float]:
    """Share of a sample that the threads together do not run when nobody preempts them, and how far it varies."""
    calm = [_idle_share(watch) for watch in watches if not watch.involuntary]
    if len(calm) < 3:
        return min(map(_idle_share, watches), default=0.0), 0.0
    usual = stats.median(calm)
    return usual, 3 * stats.mad(calm)


def _idle_share(watch: Watch) -> float:
    return (max(0, watch.main_lost_ns) + max(0, watch.workers_idle_ns)) / max(1, watch.wall_ns)


def _lost_ns(watch: Watch, n_workers: int, idle_share: float, allowance: float) -> float:
    """Nanoseconds that threads were ready but had no core, summed over them."""
    if watch.delay_ns is not None:
        return watch.delay_ns
    if not n_workers:
        return watch.main_lost_ns  # one thread never waits for anything but a core
    unusual = (_idle_share(watch) - idle_share - allowance) * watch.wall_ns
    if watch.involuntary:
        return unusual
    # Nobody was put off a core, so at most a thread woke up on a busy one: believe it of the main thread, which never
    # slept, and of workers only with their whole idleness beyond doubt.
    return max(0 if watch.voluntary else watch.main_lost_ns, unusual / 2)


def reach(samples: Sequence[float]) -> float:
    """How far the 95 % interval of the median goes from it, as a share; the spread stands in for too few samples."""
    middle, interval = stats.median(samples), stats.ci95_of_median(samples)
    if interval is None:
        return stats.mad(samples) / middle
    return max(middle - interval[0], interval[1] - middle) / middle


@dataclass(slots=True)
class Verdict:
    """Which samples of one kind make the value."""

    taints: list[tuple[str, ...]]
    kept: list[int]  # their indexes
    is_fallback: bool = False  # the untainted ones were too few: all were kept

    @property
    def n_tainted(self) -> int:
        return sum(map(bool, self.taints))

    @property
    def n_clean(self) -> int:
        return len(self.taints) - self.n_tainted


class Series(Interface):
    """Samples of one kind, as latency.Timer has them."""

    name: str
    samples_s: list[float]
    watches: list[Watch]


@dataclass(slots=True)
class _Window:
    """Between two readings."""

    taints: tuple[str, ...] = ()
    has_swap_ins: bool = False


@dataclass(slots=True)
class Gate:
    """Watches the samples of one candidate. `begin` after the warm-ups; `settle` where a reading may be due."""

    protocol: Protocol
    threads: int
    sensors: Sensors | None = None
    clocks: Clocks = field(default_factory=Clocks)
    n_retried: int = 0
    readings: list[Health] = field(default_factory=list)
    monitoring_ns: int = 0
    _n_workers: int = 0
    _windows: list[_Window] = field(default_factory=lambda: [_Window()])
    _marks: list[Mark] = field(default_factory=list)  # first and latest
    _systems: list[System] = field(default_factory=list)  # first and latest
    _read_ns: int = 0
    _faults: int = 0
    _paused_s: float = 0.0
    _n_pauses: int = 0

    def begin(self) -> None:
        """Threads have computed: find them, and take the first readings."""
        started = time.perf_counter_ns()
        self._n_workers = self.clocks.find_workers(self.threads)
        self._marks = [self.clocks.mark()] * 2
        self._systems = [self.clocks.system()] * 2
        if self.sensors is not None:
            self.readings.append(self.sensors.read())
        self._read_ns, self._faults = self._marks[0].wall_ns, self._marks[0].major_faults
        self.monitoring_ns += time.perf_counter_ns() - started

    def mark(self) -> Mark:
        """Before a sample."""
        started = time.perf_counter_ns()
        mark = self.clocks.mark()
        self.monitoring_ns += time.perf_counter_ns() - started
        return mark

    def watch(self, before: Mark) -> Watch:
        """After it. Reads the sensors if that is due."""
        started = time.perf_counter_ns()
        after = self._marks[1] = self.clocks.mark()
        wall = after.wall_ns - before.wall_ns
        has_delay = after.delay_ns is not None and before.delay_ns is not None
        found = Watch(
            wall,
            wall - (after.main_ns - before.main_ns),
            self._n_workers * wall - (after.workers_ns - before.workers_ns),
            (after.delay_ns or 0) - (before.delay_ns or 0) if has_delay else None,
            after.voluntary - before.voluntary,
            after.involuntary - before.involuntary,
            after.major_faults - before.major_faults,
            len(self._windows) - 1,
        )
        self.monitoring_ns += time.perf_counter_ns() - started
        if after.wall_ns - self._read_ns >= READING_PERIOD_S * 1e9:
            self.settle(is_last=False)
        return found

    def settle(self, is_last: bool = True) -> None:
        """Read sensors and counters; what they say is said of the samples since the last reading."""
        started = time.perf_counter_ns()
        window, before = self._windows[-1], self._systems[1]
        is_quick = not is_last and self._marks[1].major_faults == self._faults
        self._faults = self._marks[1].major_faults
        system = self._systems[1] = self.clocks.system(before if is_quick else None)
        taints = []
        stolen = system.steal_ticks - before.steal_ticks
        if stolen >= STOLEN_TICKS and stolen > STOLEN_SHARE * ((system.ticks or 0) - (before.ticks or 0)):
            taints.append("stolen")
        window.has_swap_ins = (system.swap_ins or 0) > (before.swap_ins or 0)
        if self.sensors is not None:
            self.readings.append(self.sensors.read())
            # Before this reading and the last, the fastest clock so far: what a clock has fallen from.
            clock = max((reading.frequency_hz or 0 for reading in self.readings[1:]), default=0)
            pair = [Health(frequency_hz=clock or None), *self.readings[-2 if len(self.readings) > 2 else -1 :]]
            taints += taints_between([self.readings[-2], *pair], self.protocol.heat, governor=self.sensors.governor)
        window.taints = tuple(taints)
        self._windows.append(_Window())
        self._read_ns = self.clocks.mark().wall_ns
        self.monitoring_ns += time.perf_counter_ns() - started

    def verdict(self, series: Series, cap: int) -> Verdict:
        """Judge all samples of this kind anew: what is usual is known better with each."""
        started = time.perf_counter_ns()
        taints = judge(series.watches, self._n_workers)
        for index, watch in enumerate(series.watches):
            window = self._windows[watch.window]
            if watch.major_faults and window.has_swap_ins:
                taints[index] = (*(name for name in taints[index] if name != "memory_pressure"), "swapped")
            if window.taints:
                taints[index] += window.taints
        kept = [index for index, found in enumerate(taints) if not found]
        is_fallback = len(kept) < min(MIN_KEPT, cap)
        if is_fallback:
            kept = list(range(len(taints)))
        self.monitoring_ns += time.perf_counter_ns() - started
        return Verdict(taints, kept, is_fallback)

    def pause(self, was_disturbed: bool) -> bool:
        """After a round: wait a little longer each time it was disturbed, within bounds; whether it waited."""
        if not was_disturbed:
            self._n_pauses = 0
            return False
        pause_s = min(PAUSES_S[min(self._n_pauses, len(PAUSES_S) - 1)], MAX_PAUSE_S - self._paused_s)
        if pause_s <= 0:
            return False
        self._n_pauses += 1
        self._paused_s += pause_s
        self.clocks.sleep(pause_s)
        return True

    def flags(
        self, verdicts: Mapping[str, Verdict], samples: Mapping[str, Sequence[float]], *, swapped: bool
    ) -> tuple[str, ...]:
        """Doubts about the values. `swapped`: this process has pages in swap."""
        found = set()
        for name, verdict in verdicts.items():
            counts = Counter(taint for taints in verdict.taints for taint in taints)
            found |= {
                taint for taint, n in counts.items() if verdict.is_fallback or n > FLAG_SHARE * len(verdict.taints)
            }
            kept = [samples[name][index] for index in verdict.kept]
            if reach(kept) > NOISY_REACH:
                found.add("noisy")
        if swapped:
            found.add("swapped")
        if (self._share("memory_pressure_s") or 0) > PRESSURE_SHARE:
            found.add("memory_pressure")
        return tuple(name for name in TAINTS if name in found)

    def summary(self, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
        """`conditions["quality"]` of a record. Keys of `verdicts` are objectives."""
        if not self._systems:
            return {}
        counts = Counter(taint for verdict in verdicts.values() for taints in verdict.taints for taint in taints)
        (first, last), (begun, ended) = self._systems, self._marks
        ticks = (last.ticks or 0) - (first.ticks or 0)
        others = ticks - (last.idle_ticks - first.idle_ticks) - (last.own_ticks - first.own_ticks)
        return {
            "n_retried": self.n_retried,
            "taints": {name: counts[name] for name in TAINTS if counts[name]},
            "tainted_samples": {
                name: [index for index, found in enumerate(verdict.taints) if found]
                for name, verdict in verdicts.items()
            },
            "steal_share": (last.steal_ticks - first.steal_ticks) / ticks if ticks else None,
            "others_share": max(0.0, others / ticks) if ticks else None,
            "cpu_pressure_share": self._share("cpu_pressure_s"),
            "memory_pressure_share": self._share("memory_pressure_s"),
            "involuntary_switches": ended.involuntary - begun.involuntary,
            "major_faults": ended.major_faults - begun.major_faults,
            "swap_ins": None if last.swap_ins is None else last.swap_ins - (first.swap_ins or 0),
            "load_1min": last.load_1min,
            "monitoring_s": self.monitoring_ns * 1e-9,
        }

    def health(self) -> dict[str, Any] | None:
        """`conditions["health"]` of a record."""
        return None if self.sensors is None else health_json(self.readings, self.sensors)

    def _share(self, name: str) -> float | None:
        """Of the time since `begin`, the share that some task waited; short measurements as if they took a period."""
        first, last = (getattr(system, name) for system in self._systems)
        if first is None or last is None:
            return None
        wall_s = (self._marks[1].wall_ns - self._marks[0].wall_ns) * 1e-9
        return float(last - first) / max(wall_s, PRESSURE_PERIOD_S)

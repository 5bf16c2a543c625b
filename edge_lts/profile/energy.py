"""Energy of one decoded token above that of idling: the load's mean power less the idle power around it.

    (pattern of load, for a meter elsewhere) -> settle -> idle -> settle under load -> busy, in parts -> settle -> idle

All in the process that measures, so that what idles before and after is what decodes between. The busy window is cut
into parts, each with its own joules per token: their median is the value, their spread its `ci95`, widened by half of
what idling itself has moved, because idle power is subtracted from every part alike. What the sampling thread burns is
in the idle power too. The caller must have warmed the model up and may let the garbage collector rest.
"""

import bisect
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_lts import stats
from edge_lts.energy import Meter, MeterError, plausible_w
from edge_lts.job import boot_id
from edge_lts.records import Measurement

SETTLE_S = 1.0  # after each change of load; these three at least 2, 4 and 4 periods of a slow meter
IDLE_S = 3.0
IDLE_AFTER_S = 2.0
POWER_WINDOW_S = 10.0  # the shortest busy window of what reads power: slow to update and noisy
WINDOW_PERIODS = 12
COUNTER_WINDOW_S = 3.0  # and of what counts energy
N_PARTS = 10  # of the busy window; `ci95` then leaves out the least and the greatest
MIN_PARTS = stats.MIN_SAMPLES_CI95
LOAD_STEPS_S = ((2.0, 1.5), (1.0, 0.7), (2.0, 0.0))  # (idle, busy): no shift of it looks like itself
MAX_GAP_S = 1.0  # between two readings, before a meter counts as dead; at least GAP_PERIODS
GAP_PERIODS = 2.5
MAX_DRIFT = 0.10  # of idle power, in terms of what the load adds
MAX_IDLE_CPU_SHARE = 0.10  # of one core: threads that spin while waiting make idling look like work

Clock = Callable[[], float]
Step = Callable[[], object]
Sleep = Callable[[float], None]


class EnergyLog:
    """Energy over time as a broken line through readings; without a meter it only tells the time.

    A counter is read at each mark and at no other time. Power is sampled by a thread that ends with the `with` block,
    and integrated by trapezoids between the middles of the readings. A late sample widens its trapezoid, and those
    missed meanwhile are not made up for; failed readings are bridged, until there was none for `max_gap_s`.
    """

    def __init__(self, meter: Meter | None, clock: Clock = time.monotonic) -> None:
        self.times_s: list[float] = []
        self.energies_j: list[float] = []
        self.error: str | None = None
        self._read_power_w = meter.read_power_w if meter else None
        self._read_energy_j = meter.read_energy_j if meter else None
        self._period_s = meter.period_s if meter else 0.0
        self.max_gap_s = max(MAX_GAP_S, GAP_PERIODS * self._period_s) if self._read_power_w else math.inf
        self._clock = clock
        self._power_w = 0.0
        self._last_s = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> "EnergyLog":
        if self._read_power_w:
            self.sample()
            try:
                self._thread.start()
            except RuntimeError as error:  # no memory for its stack
                raise MeterError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._read_power_w:
            self._stop.set()
            self._thread.join(self.max_gap_s)
            if not self._thread.is_alive():  # else it hangs in the driver
                self.sample()

    def mark(self) -> float:
        """The moment now, where a window may begin or end. Raises MeterError when the meter is dead."""
        if self.error is not None:
            raise MeterError(self.error)
        if self._read_energy_j:
            self._append(self._read_energy_j(), self._clock())
        return self.times_s[-1] if self._read_energy_j else self._clock()

    def mean_w(self, begin_s: float, end_s: float) -> float:
        """Raises MeterError where readings are too few or too far apart to say."""
        times_s, energies_j = self.times_s, self.energies_j
        if len(times_s) < 2:
            raise MeterError("gave fewer than two readings")
        # The readings that end the pieces of line on which the two moments lie, or which are prolonged to them.
        first, last = (min(max(bisect.bisect_left(times_s, at), 1), len(times_s) - 1) for at in (begin_s, end_s))
        gap_s = max(b - a for a, b in itertools.pairwise([begin_s, *times_s[first - 1 : last + 1], end_s]))
        if gap_s > self.max_gap_s:
            raise MeterError(f"gave no reading for {gap_s:.1f} s")
        begin_j, end_j = (
            energies_j[i] + (energies_j[i] - energies_j[i - 1]) * (at - times_s[i]) / (times_s[i] - times_s[i - 1])
            for i, at in ((first, begin_s), (last, end_s))
        )
        return plausible_w((end_j - begin_j) / (end_s - begin_s))

    def n_readings(self, begin_s: float, end_s: float) -> int:
        return bisect.bisect_right(self.times_s, end_s) - bisect.bisect_left(self.times_s, begin_s)

    def sample(self) -> None:
        assert self._read_power_w
        asked_s = self._clock()
        try:
            power_w = plausible_w(self._read_power_w())
        except MeterError as error:
            if asked_s - self._last_s > self.max_gap_s:
                self.error = str(error)
            return
        now_s = (asked_s + self._clock()) / 2
        before_j = self.energies_j[-1] if self.energies_j else 0.0
        self._append(before_j + (power_w + self._power_w) / 2 * (now_s - self._last_s), now_s)
        self._last_s, self._power_w = now_s, power_w

    def _append(self, energy_j: float, now_s: float) -> None:
        if not self.times_s or now_s > self.times_s[-1]:
            self.energies_j.append(energy_j)
            self.times_s.append(now_s)

    def _run(self) -> None:
        due_s = self._clock()
        while self.error is None:
            due_s = max(due_s + self._period_s, self._clock())
            if self._stop.wait(max(0.0, due_s - self._clock())):
                return
            self.sample()


def measure_energy(
    decode_step: Step,
    meter: Meter | None,
    *,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    cpu_clock: Clock = time.process_time,
    window_s: float = 0.0,
    open_log: Callable[[Meter | None, Clock], EnergyLog] = EnergyLog,
) -> tuple[Measurement | None, dict[str, Any]]:
    """Joules per token that decoding adds, and `conditions["energy"]`.

    `window_s` is lengthened to what the meter needs. Without a meter (`external`) the value is None and the conditions
    hold the windows, in this board's monotonic time, for whoever has the meter's log. A meter that fails gives None and
    the conditions say why. What `decode_step` raises passes through.
    """
    about: dict[str, Any] = {"meter": meter.name if meter else "external", "scope": meter.scope if meter else None}
    settle_s, idle_s, idle_after_s, shortest_s = _seconds(meter)
    notes = about["notes"] = list[str]()
    try:
        with open_log(meter, clock) as log:

            def rest(seconds: float) -> list[float]:
                sleep(settle_s)
                began_s = log.mark()
                sleep(seconds)
                return [began_s, log.mark()]

            steps = [] if meter else load_step(decode_step, clock=clock, sleep=sleep)
            cpu_s = cpu_clock()
            idle = rest(idle_s)
            if cpu_clock() - cpu_s > MAX_IDLE_CPU_SHARE * (settle_s + idle_s):
                notes.append("idle_busy")
            _decode(decode_step, clock, clock() + settle_s)
            parts = _decode_parts(decode_step, log, clock, max(window_s, shortest_s))
            after = rest(idle_after_s)
        busy = [parts[0][0], parts[-1][1]]
        busy_s, n_tokens = busy[1] - busy[0], sum(n for _, _, n in parts)
        about |= {"n_tokens": n_tokens, "window_s": busy_s}
        if meter is None:
            windows = {"clock": "monotonic", "steps": steps, "idle": idle, "busy": busy, "idle_after": after}
            return None, about | {"windows": windows | {"n_tokens": n_tokens, "boot_id": boot_id()}}
        before_w, after_w, busy_w = (log.mean_w(*window) for window in (idle, after, busy))
        idle_w, drift_w = (before_w + after_w) / 2, abs(after_w - before_w)
        about |= {"idle_w": idle_w, "idle_before_w": before_w, "idle_after_w": after_w, "busy_w": busy_w}
        about["n_readings"] = log.n_readings(*busy)
        value = stats.summarise([(log.mean_w(begin, end) - idle_w) * (end - begin) / n for begin, end, n in parts])
        if value.median <= 0:
            raise MeterError(f"reads no more under load ({busy_w:g} W) than idle ({idle_w:g} W)")
    except MeterError as error:
        return None, about | {"error": str(error)}
    if drift_w > MAX_DRIFT * (busy_w - idle_w):
        notes.append("idle_drift")
    if value.ci95:
        reach_j = drift_w / 2 * busy_s / n_tokens
        value = dataclasses.replace(value, ci95=(value.ci95[0] - reach_j, value.ci95[1] + reach_j))
    return value, about


def load_step(decode_step: Step, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep) -> list[list[float]]:
    """The busy stretches of a pattern that a power log can be aligned by, in time of `clock`."""
    steps = []
    for idle_s, busy_s in LOAD_STEPS_S:
        sleep(idle_s)
        if busy_s:
            began_s = clock()
            _decode(decode_step, clock, began_s + busy_s)
            steps.append([began_s, clock()])
    return steps


def energy_seconds(meter: Meter | None) -> float:
    """What `measure_energy` takes when a token takes little: to be added to a candidate's time limit."""
    settle_s, *others_s = _seconds(meter)
    return 3 * settle_s + sum(others_s) + (0.0 if meter else sum(map(sum, LOAD_STEPS_S)))


def _seconds(meter: Meter | None) -> tuple[float, float, float, float]:
    """To settle, to idle before and after, and to be busy."""
    period_s = meter.period_s if meter else 0.0
    window_s = COUNTER_WINDOW_S if meter and meter.read_energy_j else POWER_WINDOW_S
    return (
        max(SETTLE_S, 2 * period_s),
        max(IDLE_S, 4 * period_s),
        max(IDLE_AFTER_S, 4 * period_s),
        max(window_s, WINDOW_PERIODS * period_s),
    )


def _decode(decode_step: Step, clock: Clock, until_s: float) -> int:
    """Tokens until the clock says `until_s`, at least one."""
    n = 0
    while not n or clock() < until_s:
        decode_step()
        n += 1
    return n


def _decode_parts(decode_step: Step, log: EnergyLog, clock: Clock, window_s: float) -> list[tuple[float, float, int]]:
    """(begin, end, tokens) of adjoining parts; tokens longer than a part make fewer of them, or a longer window."""
    parts: list[tuple[float, float, int]] = []
    began_s = begin_s = log.mark()
    while len(parts) < MIN_PARTS or begin_s < began_s + window_s:
        k = int((begin_s - began_s) / window_s * N_PARTS + 1e-6) + 1
        n = _decode(decode_step, clock, began_s + k * window_s / N_PARTS)
        end_s = log.mark()
        parts.append((begin_s, end_s, n))
        begin_s = end_s
    return parts

"""Heat between measurements: waiting for a board to cool, or knowing when a busy one has stopped warming up.

In burst mode a candidate should meet the board as the first one did. A board that throttles is therefore left idle
until it is near the temperature of the run's start; one that stays cool is never waited for. In sustained mode the
board is kept busy and `Steady` says when its temperature has stopped rising.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edge_lts.health import Sensors, throttle_c, was_throttled

MARGIN_C = 5.0  # this near to throttling, the next candidate would
ABOVE_START_C = 5.0
MAX_TARGET_C = 60.0
MAX_WAIT_S = 300.0
FLAT_S = 30.0  # without a lower temperature for so long, it is as cool as it gets
POLL_S = 1.0
_NEWS_C = 0.5  # a smaller fall is the sensor's own noise


class CoolDown:
    """Waits before candidates of a run in burst mode; made at the run's start, whose temperature it remembers."""

    def __init__(
        self,
        sensors: Sensors,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        *,
        target_c: float | None = None,
        max_wait_s: float = MAX_WAIT_S,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sensors, self._clock, self._sleep = sensors, clock, sleep
        self._max_wait_s, self._should_stop = max_wait_s, should_stop
        self.start_c = sensors.read().temperature_c
        self.throttle_c = throttle_c(sensors.root)
        self.target_c = target_c
        if target_c is None and self.start_c is not None:
            self.target_c = min(self.start_c + ABOVE_START_C, MAX_TARGET_C)
        self.has_throttled = False
        self.waited_s = 0.0
        self.event: dict[str, Any] | None = None

    def saw(self, flags: Iterable[str] = (), health: Mapping[str, Any] | None = None) -> None:
        """Tell what a measurement brought: its flags, its `conditions["health"]`, or both."""
        self.has_throttled |= "throttled" in flags or was_throttled(health or {})

    def before_candidate(self, heat: str) -> float:
        """Wait if it must be, and return for how many seconds. `event` then is what to tell: why it ended is `reason`
        reached, floor (it gets no cooler; the target is raised to that), timeout, stopped, or lost (no more readings).
        """
        self.event = None
        now_c = self._sensors.read().temperature_c
        if heat == "sustained" or now_c is None or self.target_c is None or now_c <= self.target_c:
            return 0.0
        if not self.has_throttled and now_c < self.throttle_c - MARGIN_C:
            return 0.0
        begun_s = lowest_s = self._clock()
        from_c = lowest_c = now_c
        reason = ""
        while not reason:
            self._sleep(POLL_S)
            now_s, read_c = self._clock(), self._sensors.read().temperature_c
            if read_c is None:
                reason = "lost"
                break
            now_c = read_c
            if now_c <= lowest_c - _NEWS_C:
                lowest_c, lowest_s = now_c, now_s
            if now_c <= self.target_c:
                reason = "reached"
            elif self._should_stop():
                reason = "stopped"
            elif now_s - lowest_s >= FLAT_S:
                reason = "floor"
            elif now_s - begun_s >= self._max_wait_s:
                reason = "timeout"
        waited_s = self._clock() - begun_s
        self.waited_s += waited_s
        self.event = {
            "event": "cooled",
            "waited_s": round(waited_s, 3),
            "from_c": from_c,
            "to_c": now_c,
            "target_c": self.target_c,
            "reason": reason,
        }
        if reason == "floor":
            self.target_c = math.ceil(lowest_c + 1)
        return waited_s

    def to_json(self) -> dict[str, Any]:
        names = ("start_c", "throttle_c", "target_c", "has_throttled", "waited_s")
        return {name: getattr(self, name) for name in names}


class Steady:
    """Whether a busy board has reached the temperature that it keeps: it moved by less than `tolerance_c` in
    `window_s`. Fed with (time, temperature); pure. `reason` is None until it is over, then steady, timeout or
    no_sensor."""

    def __init__(self, *, tolerance_c: float = 1.0, window_s: float = 60.0, max_s: float = 900.0) -> None:
        self._tolerance_c, self._window_s, self._max_s = tolerance_c, window_s, max_s
        self._readings: deque[tuple[float, float]] = deque()
        self._begun_s: float | None = None
        self._spent_s = 0.0
        self.reason: str | None = None

    def feed(self, now_s: float, temperature_c: float | None) -> bool:
        """Take one reading; whether it is over. A sensor that has never answered ends it after `window_s`."""
        if self._begun_s is None:
            self._begun_s = now_s
        self._spent_s = now_s - self._begun_s
        readings = self._readings
        if temperature_c is not None:
            readings.append((now_s, temperature_c))
        while len(readings) > 1 and now_s - readings[1][0] >= self._window_s:
            readings.popleft()
        if self.reason is None:
            values = [value for _, value in readings]
            if not values and self._spent_s >= self._window_s:
                self.reason = "no_sensor"
            elif (
                values
                and readings[-1][0] - readings[0][0] >= self._window_s
                and max(values) - min(values) < self._tolerance_c
            ):
                self.reason = "steady"
            elif self._spent_s >= self._max_s:
                self.reason = "timeout"
        return self.reason is not None

    def to_json(self) -> dict[str, Any]:
        """The event to tell."""
        last_c = self._readings[-1][1] if self._readings else None
        return {"event": "warmed", "reason": self.reason, "spent_s": round(self._spent_s, 3), "temperature_c": last_c}

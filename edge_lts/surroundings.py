"""The state of the board that a run measures in: cores, threads, governor and heat, made before and kept meanwhile.

Entered with the board's lock held. What it finds out once (placement, thread sweep) goes into device.json, and a resume
uses that again; what it does goes to `emit` as events. Nothing here stops a run: a governor that may not be set, a pin
that is refused and a sensor that does not exist are facts of the record.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_lts import placement
from edge_lts.device import SYSTEM
from edge_lts.health import Sensors
from edge_lts.heat import CoolDown, Steady
from edge_lts.records import DeviceInfo, Evaluation, Outcome, RunSpec
from edge_lts.runfolder import TUNED

SWEEP_FROM_S = 900.0  # of budget; trying every thread count takes half a minute on four cores


def restored_governors(root: Path, system_root: Path = SYSTEM) -> dict[str, str]:
    """What a run that crashed had left tuned and is put back now, by policy. With the board's lock held."""
    if not (root / TUNED).exists():
        return {}
    from edge_lts.tuning import restore_leftovers  # hardly ever needed, and the supervisor is to stay small

    return restore_leftovers(root, system_root)


class Surroundings(AbstractContextManager["Surroundings"]):
    """`root` is the device's folder, `system_root` where the kernel's files are. `should_stop` ends every wait."""

    def __init__(
        self,
        spec: RunSpec,
        root: Path,
        *,
        emit: Callable[..., None],
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        sleep: Callable[[float], None] | None = None,
        system_root: Path = SYSTEM,
    ) -> None:
        self._spec, self._root, self._system_root = spec, root, system_root
        self._emit, self._clock, self._should_stop = emit, clock, should_stop
        self._sleep = sleep or time.sleep
        self._stack = ExitStack()
        self._heat = spec.protocol.heat
        self._placement = placement.place(spec.protocol.threads, system_root)
        self._sensors: Sensors | None = None
        self._cool_down: CoolDown | None = None

    @property
    def threads(self) -> int:
        """What candidates are measured with unless a sweep finds fewer to be faster."""
        return self._placement.threads

    def __enter__(self) -> "Surroundings":
        put_back = restored_governors(self._root, self._system_root)
        if put_back:
            self._emit("governor_restored", governors=put_back)
        if self._placement.n_clusters > 1:
            is_pinned = placement.apply(self._placement)
            self._emit("placed", **self._placement.to_json(), is_pinned=is_pinned)
        if self._spec.is_tuned:
            from edge_lts.tuning import Tuned

            self._emit("tuned", **self._stack.enter_context(Tuned(self._root, self._system_root)).result)
        self._sensors = Sensors(self._system_root, cpus=self._placement.cpus)
        self._stack.callback(self._sensors.close)
        self._cool_down = CoolDown(self._sensors, self._clock, self._sleep, should_stop=self._should_stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def facts(self) -> dict[str, Any]:
        """For `extra` of device.json at the first start."""
        return {"placement": self._placement.to_json()}

    def sweep(self, measurer: placement.MeasurerLike, info: DeviceInfo) -> dict[str, Any]:
        """The thread sweep of this run: as device.json has it, or made now; {} where the budget is too short for one.

        An explicit number of threads is the user's word: the sweep is recorded and does not overrule it.
        """
        found = info.extra.get("thread_sweep")
        if isinstance(found, Mapping):
            return dict(found)
        if self._spec.budget_s < SWEEP_FROM_S or self._spec.is_emulated or self.threads < 2:
            return {}
        rules = dataclasses.replace(self._spec.protocol, threads=self.threads)
        made = placement.sweep(measurer, rules, self.threads, self._should_stop)
        if self._spec.protocol.threads:
            made = {**made, "fastest": made["threads"], "threads": self.threads}
        self._emit("thread_sweep", **made)
        return made

    def warm_up(self, measurer: placement.MeasurerLike, threads: int) -> None:
        """In sustained mode: keep the board busy until its temperature has stopped rising, at most 15 minutes."""
        if self._heat != "sustained" or self._sensors is None:
            return
        rules = dataclasses.replace(self._spec.protocol, threads=threads)
        steady = Steady()
        while not steady.feed(self._clock(), self._sensors.read().temperature_c) and not self._should_stop():
            measurer.measure(0, placement.REFERENCE, "search", protocol=rules)
        event = steady.to_json()
        self._emit(event.pop("event"), **event)

    def before_candidate(self) -> None:
        """In burst mode: wait for a board that has throttled, or is about to, to cool."""
        if self._cool_down is not None:
            self._cool_down.before_candidate(self._heat)
            if (event := self._cool_down.event) is not None:
                self._emit("cooled", **{name: value for name, value in event.items() if name != "event"})

    def after(self, outcome: Outcome) -> None:
        if self._cool_down is not None and isinstance(outcome, Evaluation):
            self._cool_down.saw(outcome.flags, outcome.conditions.get("health"))

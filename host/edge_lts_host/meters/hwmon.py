"""Meters that this machine's kernel reads: POWER-Z KM002C/KM003C and INA chips, by the board's own code.

They report power alone: which way round a POWER-Z is plugged in says nothing about the board.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_lts import energy
from edge_lts.device import SYSTEM
from edge_lts.errors import SpecError
from edge_lts_host.meters.base import Meter, MeterError, Reading


class HwmonMeter(Meter):
    """`where` narrows down which, as edge_lts.energy.find_meter takes it: a hwmon number or a chip."""

    def __init__(
        self, kind: str, where: str = "", *, root: Path = SYSTEM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(where or "/sys/class/hwmon")
        self.kind = kind
        self.clock = clock
        with self._mapped():
            meter = energy.find_meter(f"{kind}:{where}" if where else kind, root)
        if meter is None or meter.read_power_w is None:
            raise MeterError(self.where, f"{kind} does not read power", "choose another kind in --meter")
        self._read_power_w = meter.read_power_w
        self.model, self.scope, self.interval_s = meter.name, meter.scope, meter.period_s

    def read(self) -> Reading:
        t_s = self.clock()
        with self._mapped():
            return Reading(t_s=t_s, power_w=energy.plausible_w(self._read_power_w()))

    def close(self) -> None:
        pass  # no file stays open between readings

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except SpecError as exc:
            raise MeterError(self.where, str(exc)) from exc
        except energy.MeterError as exc:
            raise MeterError(self.where, str(exc), "is the meter still plugged in?") from exc

"""RDTech UM24C, UM25C and UM34C: one byte asks, 130 bytes answer, in as many pieces as Bluetooth likes.

Layout, scales and checks as in rdserialtool, rd-usb and sigrok's rdtech-um (facts/boards.md §5.3). The model id in the
frame decides the scale, whatever the user called the meter. The check of UM24C and UM25C is a constant that sees no
damage in between, so a power that is far from voltage times current is refused as well.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from edge_lts_host.meters.base import MeterError, Reading
from edge_lts_host.meters.port import SerialMeter

REQUEST = b"\xf0"
FRAME_BYTES = 130
CONSTANT_CHECK = 0xFFF1
UM34C_CHECKED = (
    1, 3, 7, 9, 15, 17, 19, 23, 31, 39, 41, 45, 49, 53, 55, 57,
    59, 63, 67, 69, 73, 79, 83, 89, 97, 99, 109, 111, 113, 119, 121, 127,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    volts_per_unit: float
    amperes_per_unit: float
    has_sum: bool


MODELS = {
    0x0963: Model("UM24C", 1e-2, 1e-3, False),
    0x09C9: Model("UM25C", 1e-3, 1e-4, False),
    0x0D4C: Model("UM34C", 1e-2, 1e-3, True),
}


def is_sound(frame: bytes) -> bool:
    """Whether a frame of a known model passes that model's check and its numbers fit together."""
    if len(frame) != FRAME_BYTES or (model := MODELS.get(int.from_bytes(frame[:2], "big"))) is None:
        return False
    if model.has_sum:
        if functools.reduce(operator.xor, (frame[i] for i in UM34C_CHECKED)) != frame[-1]:
            return False
    elif int.from_bytes(frame[-2:], "big") != CONSTANT_CHECK:
        return False
    voltage_v, current_a, power_w = values(frame)
    return abs(voltage_v * current_a - power_w) <= 0.05 + 0.1 * power_w


def values(frame: bytes) -> tuple[float, float, float]:
    """Volts, amperes, watts of a frame of a known model."""
    model = MODELS[int.from_bytes(frame[:2], "big")]
    volts, amperes, milliwatts = struct.unpack_from(">HHI", frame, 2)
    return volts * model.volts_per_unit, amperes * model.amperes_per_unit, milliwatts / 1000


def find_frame(data: bytes) -> bytes | None:
    """The first sound frame anywhere in `data`."""
    for start in range(len(data) - FRAME_BYTES + 1):
        frame = data[start : start + FRAME_BYTES]
        if is_sound(frame):
            return frame
    return None


class UmMeter(SerialMeter):
    """Its screen, and so its answer, changes twice a second."""

    baud_hz = 9600  # of the USB ones; Bluetooth ignores it
    interval_s = 0.25

    def __init__(self, where: str, kind: str, *, clock: Callable[[], float] = monotonic) -> None:
        self.kind = kind
        super().__init__(where, clock=clock)

    def read(self) -> Reading:
        came = b""
        for _ in range(self.n_attempts):
            self.port.drop_input()
            self.port.write(REQUEST)
            asked_s = self.clock()
            frame, came = self.gather(FRAME_BYTES, find_frame)
            if frame is not None:
                self.model = MODELS[int.from_bytes(frame[:2], "big")].name
                voltage_v, current_a, power_w = values(frame)
                return Reading(t_s=asked_s, voltage_v=voltage_v, current_a=current_a, power_w=power_w)
        raise self._explain(came)

    def _explain(self, came: bytes) -> MeterError:
        if not came:
            return self.nothing(" and paired")
        if len(came) < FRAME_BYTES:
            return MeterError(
                self.where,
                f"only {len(came)} of {FRAME_BYTES} bytes came within {self.timeout_s:g} s",
                "is the Bluetooth link weak, or is it another meter (tc66c, yzx)?",
            )
        model = int.from_bytes(came[:2], "big")
        if model not in MODELS:
            return MeterError(
                self.where,
                f"it answers as the unknown model 0x{model:04x}; known: {', '.join(m.name for m in MODELS.values())}",
                "is it the right port, and the right kind in --meter?",
            )
        return MeterError(self.where, f"{MODELS[model].name} sends damaged answers", "is the link weak or disturbed?")

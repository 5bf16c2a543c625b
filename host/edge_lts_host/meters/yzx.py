"""YZXStudio ZY1280 and its like: a frame of 28 bytes every 250 ms, without being asked.

Layout as in usb-power-profiling (facts/boards.md §5.3). Reading may begin anywhere in a frame, and 0xAB may stand
inside one, so a frame is what begins with it, has the right sum and holds a possible voltage and current. Current has
a sign in some firmware; which way the meter is plugged in says nothing about the board.
"""

from __future__ import annotations

import struct

from edge_lts_host.meters.base import MeterError, Reading
from edge_lts_host.meters.port import SerialMeter

FRAME_BYTES = 28
START = 0xAB
MAX_V, MAX_A = 50.0, 15.0


def values(frame: bytes) -> tuple[float, float]:
    """Volts and amperes."""
    volts, amperes = struct.unpack_from("<ii", frame, 3)
    return volts / 1e4, abs(amperes / 1e4)


def is_sound(frame: bytes) -> bool:
    if len(frame) != FRAME_BYTES or frame[0] != START or sum(frame[:27]) & 0xFF != frame[27]:
        return False
    voltage_v, current_a = values(frame)
    return 0 <= voltage_v <= MAX_V and current_a <= MAX_A


def find_frame(data: bytes) -> bytes | None:
    """The first sound frame in `data`."""
    start = data.find(START)
    while 0 <= start <= len(data) - FRAME_BYTES:
        frame = data[start : start + FRAME_BYTES]
        if is_sound(frame):
            return frame
        start = data.find(START, start + 1)
    return None


class Yzx(SerialMeter):
    """`read` waits for the next frame: old ones in the buffer say nothing about now."""

    kind = "yzx"
    baud_hz = 115200
    interval_s = 0.0

    def read(self) -> Reading:
        came = b""
        for _ in range(self.n_attempts):
            self.port.drop_input()
            # Frames come one by one: `gather` with no size never takes the pause between two for the end.
            frame, came = self.gather(1 << 30, find_frame)
            if frame is not None:
                self.model = "YZXStudio"
                voltage_v, current_a = values(frame)
                return Reading(
                    t_s=self.clock(), voltage_v=voltage_v, current_a=current_a, power_w=voltage_v * current_a
                )
        if not came:
            raise self.nothing()
        raise MeterError(
            self.where,
            f"{len(came)} bytes came within {self.timeout_s:g} s, but no sound frame of a YZXStudio meter",
            "is it the right port and kind, and is the cable good?",
        )

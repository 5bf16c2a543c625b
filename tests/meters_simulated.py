"""Meters on pseudo-terminals that speak their protocol byte for byte, and misbehave when told to.

Written from facts/boards.md §5.3, not from the code that reads them. A meter shows what `power` says of its own clock
at the moment it last refreshed its screen.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# (volts, amperes) at a moment of the monotonic clock.
Load = Callable[[float], tuple[float, float]]
UM_IDS = {"UM24C": 0x0963, "UM25C": 0x09C9, "UM34C": 0x0D4C}
UM34C_XOR = (
    1, 3, 7, 9, 15, 17, 19, 23, 31, 39, 41, 45, 49, 53, 55, 57,
    59, 63, 67, 69, 73, 79, 83, 89, 97, 99, 109, 111, 113, 119, 121, 127,
)  # fmt: skip


def steady(_: float) -> tuple[float, float]:
    return 5.123, 0.6127


class SimulatedMeter:
    """A device behind a pty. Change the attributes while it runs to make it misbehave.

    `piece_bytes` and `pause_s` split answers, `noise` comes before each, `damage` is XORed into one byte at
    `damage_at` of the next `n_damaged` answers, `is_silent` swallows questions, `answers_only` stops after so many.
    """

    request = b""
    period_s: float | None = None  # of a meter that speaks by itself

    def __init__(self, load: Load = steady) -> None:
        self.load = load
        self.piece_bytes, self.pause_s = 0, 0.0
        self.noise = b""
        self.damage, self.damage_at, self.n_damaged = 0x40, 20, 0
        self.is_silent = False
        self.n_answers = 0
        self.unplug_after: int | None = None
        self.unknown: list[bytes] = []
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"simulated meter {self.path}", daemon=True)
        self._thread.start()

    def frame(self) -> bytes:
        raise NotImplementedError

    def unplug(self) -> None:
        """As if the cable were pulled: the far end of the terminal is gone."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)
        for fd in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _run(self) -> None:
        heard = b""
        next_s = time.monotonic() + (self.period_s or 0.0)
        while not self._ended.is_set():
            if self.period_s is not None:
                self._ended.wait(max(0.0, next_s - time.monotonic()))
                next_s += self.period_s
                self._answer()
                continue
            ready, _, _ = select.select([self._master], [], [], 0.02)
            if not ready:
                continue
            try:
                heard += os.read(self._master, 100)
            except OSError:
                return
            while heard:
                if heard.startswith(self.request):
                    heard = heard[len(self.request) :]
                    self._answer()
                elif self.request.startswith(heard):
                    break
                else:
                    self.unknown.append(heard[:1])
                    heard = heard[1:]

    def _answer(self) -> None:
        if self.is_silent or self._ended.is_set():
            return
        data = bytearray(self.frame())
        if self.n_damaged > 0:
            self.n_damaged -= 1
            data[self.damage_at] ^= self.damage
        self.n_answers += 1
        whole = self.noise + bytes(data)
        is_last = self.unplug_after is not None and self.n_answers > self.unplug_after
        if is_last:
            whole = whole[: len(whole) // 2]
        size = self.piece_bytes or len(whole)
        with contextlib.suppress(OSError):
            for start in range(0, len(whole), size):
                os.write(self._master, whole[start : start + size])
                if self.pause_s:
                    time.sleep(self.pause_s)
        if is_last:
            self.unplug()


class SimulatedUm(SimulatedMeter):
    """UM24C, UM25C or UM34C; the screen refreshes every `refresh_s` and passes through a lag of `lag_s`."""

    request = b"\xf0"

    def __init__(
        self, model: str = "UM25C", load: Load = steady, *, refresh_s: float = 0.5, lag_s: float = 0.0
    ) -> None:
        self.model = model
        self.model_id = UM_IDS[model]
        self.refresh_s, self.lag_s = refresh_s, lag_s
        self._shown = load(time.monotonic())
        self._shown_s = time.monotonic()
        super().__init__(load)

    def frame(self) -> bytes:
        now_s = time.monotonic()
        if now_s - self._shown_s >= self.refresh_s or self.refresh_s == 0:
            volts, amperes = self.load(now_s)
            share = 1 - math.exp(-(now_s - self._shown_s) / self.lag_s) if self.lag_s else 1.0
            self._shown = (volts, self._shown[1] + share * (amperes - self._shown[1]))
            self._shown_s = now_s
        volts, amperes = self._shown
        fine = 10 if self.model == "UM25C" else 1
        data = bytearray(130)
        struct.pack_into(">HHHI", data, 0, self.model_id, round(volts * 100 * fine), round(amperes * 1000 * fine), 0)
        struct.pack_into(">I", data, 6, round(volts * amperes * 1000))
        struct.pack_into(">HHH", data, 10, 24, 75, 3)
        for k in range(10):
            struct.pack_into(">II", data, 16 + 8 * k, 11 * k, 57 * k)
        struct.pack_into(">HHHIIHI", data, 96, 271, 268, 7, 1234, 6170, 10, 3600)
        struct.pack_into(">HHHI", data, 116, 1, 2, 4, 83)
        if self.model == "UM34C":
            data[129] = 0
            for i in UM34C_XOR:
                data[129] ^= data[i]
        else:
            data[128:] = b"\xff\xf1"
        return bytes(data)


def modbus_crc(data: bytes) -> int:
    """CRC-16/MODBUS, by polynomial division of the bits: reflected 0x8005, initial 0xFFFF."""
    register = 0xFFFF
    for bit in (byte >> i & 1 for byte in data for i in range(8)):
        carry = register & 1 ^ bit
        register >>= 1
        if carry:
            register ^= 0xA001
    return register


class SimulatedTc66c(SimulatedMeter):
    request = b"getva"
    KEY = bytes.fromhex("5821fa5601b2f02687ff1204622a4fb086f40260816f9a0ba7f106619ab87288")

    def frame(self) -> bytes:
        volts, amperes = self.load(time.monotonic())
        data = bytearray(192)
        data[0:12] = b"pac1TC661.14"
        struct.pack_into("<I", data, 12, 4711)
        struct.pack_into("<III", data, 48, round(volts * 1e4), round(amperes * 1e5), round(volts * amperes * 1e4))
        data[64:68] = b"pac2"
        struct.pack_into("<IIIIIIIII", data, 68, 83, 1234, 6170, 0, 0, 0, 31, 271, 268)
        data[128:132] = b"pac3"
        for start in (0, 64, 128):
            struct.pack_into("<I", data, start + 60, modbus_crc(bytes(data[start : start + 60])))
        return Cipher(algorithms.AES(self.KEY), modes.ECB()).encryptor().update(bytes(data))


class SimulatedYzx(SimulatedMeter):
    period_s = 0.25

    def frame(self) -> bytes:
        volts, amperes = self.load(time.monotonic())
        data = struct.pack(
            "<BBBiIIIIHH", 0xAB, 0, 6, round(volts * 1e4), round(amperes * 1e4), 12_340, 61_700, 360_000, 271, 268
        )
        return data + bytes([sum(data) & 0xFF])


@contextlib.contextmanager
def plugged_in(meter: SimulatedMeter) -> Iterator[SimulatedMeter]:
    try:
        yield meter
    finally:
        meter.unplug()


def fake_hwmon(root: Path, name: str, values: dict[str, int], number: int = 3) -> Path:
    """A folder as the kernel's hwmon drivers make it."""
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for file, value in values.items():
        (folder / file).write_text(f"{value}\n")
    return folder

"""RDTech TC66C over USB: `getva` asks, 192 encrypted bytes answer: three packets of 64 with a CRC each.

Layout and key as in rd-usb and usb-power-profiling (facts/boards.md §5.3). AES-256 in ECB mode without padding comes
from `cryptography`, which paramiko brings; it is imported when the first answer is read.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from edge_lts_host.meters.base import MeterError, Reading
from edge_lts_host.meters.port import SerialMeter

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher

REQUEST = b"getva"
FRAME_BYTES = 192
PACKET_BYTES = 64
# No secret: the same in every meter and every program that reads one.
KEY = bytes.fromhex("5821fa5601b2f02687ff1204622a4fb086f40260816f9a0ba7f106619ab87288")


def make_cipher() -> Cipher[Any]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(KEY), modes.ECB())


def crc16_modbus(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return crc


def is_sound(frame: bytes) -> bool:
    """Whether a decrypted frame is pac1, pac2, pac3, each with its CRC."""
    for index in range(FRAME_BYTES // PACKET_BYTES):
        packet = frame[index * PACKET_BYTES : (index + 1) * PACKET_BYTES]
        if packet[:4] != b"pac%d" % (index + 1) or crc16_modbus(packet[:60]) != int.from_bytes(packet[60:], "little"):
            return False
    return True


class Tc66c(SerialMeter):
    """A new value every 80 to 100 ms; it needs up to 500 ms to settle on a new level."""

    kind = "tc66c"
    baud_hz = 115200
    interval_s = 0.1

    def read(self) -> Reading:
        came, is_damaged = b"", False
        for _ in range(self.n_attempts):
            self.port.drop_input()
            self.port.write(REQUEST)
            asked_s = self.clock()
            frame, came = self.gather(FRAME_BYTES, self._find)
            if frame is not None:
                self.model = frame[4:8].decode("ascii", "replace").rstrip("\0 ")
                volts, amperes, watts = struct.unpack_from("<III", frame, 48)
                return Reading(t_s=asked_s, voltage_v=volts / 1e4, current_a=amperes / 1e5, power_w=watts / 1e4)
            is_damaged = is_damaged or self._start(came) is not None
        if not came and not is_damaged:
            raise self.nothing()
        if is_damaged:
            raise MeterError(self.where, "the TC66C sends damaged answers", "try another cable or port")
        raise MeterError(
            self.where, f"{len(came)} bytes came that are no answer of a TC66C", "is it the right port and kind?"
        )

    def _find(self, data: bytes) -> bytes | None:
        if len(data) < FRAME_BYTES or (start := self._start(data)) is None or len(data) < start + FRAME_BYTES:
            return None
        frame = make_cipher().decryptor().update(data[start : start + FRAME_BYTES])
        return frame if is_sound(frame) else None

    def _start(self, data: bytes) -> int | None:
        """Where the first packet begins: a block that decrypts to `pac1`. Noise may come before it."""
        decryptor = make_cipher().decryptor()
        for start in range(len(data) - 15):
            if decryptor.update(data[start : start + 16])[:4] == b"pac1":
                return start
        return None

"""A serial port as a place to connect to, and as bytes: the one room where pyserial's errors become ours.

A destination is `serial:[USER@]PORT[,BAUD]`: PORT is a device (`/dev/serial/by-id/...`, which stays the same when
adapters are plugged in another order), `rfc2217://HOST:PORT` or `socket://HOST:PORT`. Local ports are taken for
ourselves (flock), so that two commands never talk into each other.

pyserial raises SerialException (an OSError) for most troubles, plain OSError or termios.error for an unplugged adapter,
ValueError for what it cannot understand.
"""

from __future__ import annotations

import contextlib
import errno
import re
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edge_lts_host.errors import ConnectError, ConnectionLostError, TransportError, UsageError, printable

SCHEME = "serial:"
DEFAULT_BAUD_HZ = 115200
BITS_PER_BYTE = 10  # 8N1: a start bit and a stop bit around eight
_POLL_S = 0.05
_WRITE_S = 20.0
_DESTINATION = re.compile(
    r"serial:(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,31})@)?(?P<port>(?:/|rfc2217://|socket://)[^\s,]+)(?:,(?P<baud>[0-9]{1,8}))?",
    re.ASCII,
)
_LOOK = "edge-lts devices scan shows which ports there are"
_MINE = "you may not use the port: sudo usermod -aG dialout $USER, and log in again"
_TAKEN = "another program has the port: end it first"
_REMEDIES = {
    errno.ENOENT: f"is the adapter plugged in? {_LOOK}",
    errno.ENODEV: f"is the adapter plugged in? {_LOOK}",
    errno.ENXIO: f"is the adapter plugged in? {_LOOK}",
    errno.EACCES: _MINE,
    errno.EPERM: _MINE,
    errno.EAGAIN: _TAKEN,
    errno.EBUSY: _TAKEN,
    errno.ENOTTY: f"that is no serial port; {_LOOK}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialDestination:
    """A console: where it is, who logs in (None: whoever is logged in already), and its speed."""

    port: str
    user: str | None = None
    baud_hz: int = DEFAULT_BAUD_HZ

    @classmethod
    def parse(cls, text: str) -> SerialDestination:
        """Of `serial:[USER@]PORT[,BAUD]`. Raises UsageError."""
        match = _DESTINATION.fullmatch(text)
        baud_hz = int(match["baud"]) if match and match["baud"] else DEFAULT_BAUD_HZ
        if match is None or not match["port"].isprintable() or not 300 <= baud_hz <= 20_000_000:
            raise UsageError(
                f"{printable(text[:120])!r} is no serial:[USER@]PORT[,BAUD]; "
                "PORT is /dev/..., rfc2217://HOST:PORT or socket://HOST:PORT"
            )
        return cls(port=match["port"], user=match["user"], baud_hz=baud_hz)

    @classmethod
    def of(cls, port: str, user: str | None = None, baud_hz: int = DEFAULT_BAUD_HZ) -> SerialDestination:
        """Of its parts, as the user gave them. Raises UsageError."""
        return cls.parse(str(cls(port=port, user=user, baud_hz=baud_hz)))

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        baud = "" if self.baud_hz == DEFAULT_BAUD_HZ else f",{self.baud_hz}"
        return f"{SCHEME}{user}{self.port}{baud}"

    @property
    def bytes_per_s(self) -> float:
        """What the line carries."""
        return self.baud_hz / BITS_PER_BYTE

    @property
    def payload_bytes_per_s(self) -> float:
        """What arrives of data that cannot be compressed: base64 and frames cost a quarter of the line."""
        return 0.72 * self.bytes_per_s


def is_serial(destination: str) -> bool:
    return destination.startswith(SCHEME)


@contextlib.contextmanager
def mapped_errors(where: str, doing: str, kind: type[TransportError] = ConnectionLostError) -> Iterator[None]:
    """Turn whatever pyserial and the kernel raise inside into a `kind`."""
    try:
        yield
    except TransportError:
        raise
    except (OSError, termios.error, ValueError) as exc:
        # pyserial wraps what it met while it set the port up.
        codes = [each.args[0] for each in (exc, exc.__context__) if each is not None and each.args]
        code = next((each for each in codes if isinstance(each, int)), None)
        remedy = _REMEDIES.get(code, "") if code is not None else ""
        said = (exc.strerror if isinstance(exc, OSError) and exc.strerror else None) or str(exc)
        raise kind(
            where, f"{doing}: {printable(said)[:200]}", remedy or "is the adapter still plugged in, and the board on?"
        ) from exc


class ConsolePort:
    """8N1 bytes at the destination's speed. Raises ConnectError when it cannot be opened, ConnectionLostError later."""

    def __init__(self, destination: SerialDestination, *, clock: Callable[[], float] = time.monotonic) -> None:
        import serial

        self.where = str(destination)
        self.clock = clock
        with mapped_errors(self.where, "cannot open the port", ConnectError), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pyserial 3.5 calls Thread.setDaemon for rfc2217
            self._serial = serial.serial_for_url(
                destination.port,
                baudrate=destination.baud_hz,
                timeout=_POLL_S,
                write_timeout=None if destination.port.startswith("rfc2217:") else _WRITE_S,  # pyserial has none there
                exclusive=True if destination.port.startswith("/") else None,
            )

    def read(self, wait_s: float) -> bytes:
        """What has arrived, at least one byte; b"" when there is none for `wait_s`."""
        end_s = self.clock() + wait_s
        with mapped_errors(self.where, "the port was lost"):
            while True:
                data = bytearray(self._serial.read(1))
                while data and len(data) < 65536 and (n_bytes := self._serial.in_waiting):
                    data += self._serial.read(n_bytes)
                if data or self.clock() >= end_s:
                    return bytes(data)

    def write(self, data: bytes) -> None:
        with mapped_errors(self.where, "the port was lost"):
            self._serial.write(data)

    def close(self) -> None:
        with contextlib.suppress(TransportError), mapped_errors(self.where, "cannot close the port"):
            self._serial.close()

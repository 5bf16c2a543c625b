"""A serial port to a meter: bytes with deadlines, and the one place where pyserial's errors become MeterErrors.

pyserial raises SerialException (an OSError) for most troubles, plain OSError or termios.error for an unplugged device,
and ValueError for a port name it cannot use.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator

from edge_lts_host.meters.base import Meter, MeterError

_POLL_S = 0.05
_WRITE_S = 2.0
_LOOK = "ls -l /dev/serial/by-id /dev/rfcomm* shows which ports there are"
_REMEDIES = {
    errno.ENOENT: f"is it plugged in, or bound with rfcomm? {_LOOK}",
    errno.ENODEV: f"is it plugged in? {_LOOK}",
    errno.ENXIO: f"is it plugged in? {_LOOK}",
    errno.EACCES: "you may not use the port: sudo usermod -aG dialout $USER, and log in again",
    errno.EPERM: "you may not use the port: sudo usermod -aG dialout $USER, and log in again",
    errno.EAGAIN: "another program has the port: end it first",
    errno.EBUSY: "another program has the port: end it first",
    errno.EHOSTDOWN: "the meter does not answer over Bluetooth: is it on, near and paired?",
    errno.ENOTTY: f"that is no serial port; {_LOOK}",
}
_GONE = "is it still plugged in, switched on and in reach?"


@contextlib.contextmanager
def mapped(where: str, doing: str) -> Iterator[None]:
    """Turn whatever pyserial and the kernel raise inside into a MeterError."""
    import termios

    try:
        yield
    except MeterError:
        raise
    except (OSError, termios.error, ValueError) as exc:
        code = exc.args[0] if exc.args and isinstance(exc.args[0], int) else None
        remedy = _REMEDIES.get(code, "") if code is not None else ""
        said = (exc.strerror if isinstance(exc, OSError) and exc.strerror else None) or str(exc)
        raise MeterError(where, f"{doing}: {said:.200}", remedy or _GONE) from exc


class SerialPort:
    """8N1 at `baud_hz`, taken exclusively. Raises MeterError for everything."""

    def __init__(self, path: str, baud_hz: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        import serial

        self.path = path
        self.clock = clock
        with mapped(path, "cannot open it"):
            self._serial = serial.Serial(
                path,
                baud_hz,
                timeout=_POLL_S,
                write_timeout=_WRITE_S,
                exclusive=True,
                bytesize=8,
                parity="N",
                stopbits=1,
            )

    def drop_input(self) -> None:
        """Forget what arrived and was not read."""
        with mapped(self.path, "it was lost"):
            self._serial.reset_input_buffer()

    def write(self, data: bytes) -> None:
        with mapped(self.path, "it was lost"):
            self._serial.write(data)
            self._serial.flush()

    def read_some(self, end_s: float) -> bytes:
        """What has arrived, at least one byte; b"" when the clock reaches `end_s` first."""
        with mapped(self.path, "it was lost"):
            while True:
                first = bytes(self._serial.read(1))
                if first:
                    return first + bytes(self._serial.read(self._serial.in_waiting))
                if self.clock() >= end_s:
                    return b""

    def close(self) -> None:
        with contextlib.suppress(MeterError), mapped(self.path, "cannot close it"):
            self._serial.close()


class SerialMeter(Meter):
    """A meter on a serial port. Subclasses turn bytes into readings."""

    baud_hz: int
    timeout_s = 1.0  # for one whole answer, fragments and all
    n_attempts = 3

    def __init__(self, where: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(where)
        self.clock = clock
        self.port = SerialPort(where, self.baud_hz, clock=clock)

    def close(self) -> None:
        self.port.close()

    def gather(self, frame_bytes: int, find: Callable[[bytes], bytes | None]) -> tuple[bytes | None, bytes]:
        """Read until `find` sees its frame in what came: (frame or None, everything that came).

        Gives up at `timeout_s`, or earlier when a whole frame's worth of bytes came, none of it fits, and then it is
        quiet.
        """
        buffer = bytearray()
        end_s = self.clock() + self.timeout_s
        while self.clock() < end_s:
            quiet_end_s = end_s if len(buffer) < frame_bytes else min(end_s, self.clock() + 0.2)
            piece = self.port.read_some(quiet_end_s)
            if not piece:
                break
            buffer += piece
            frame = find(bytes(buffer))
            if frame is not None:
                return frame, bytes(buffer)
        return None, bytes(buffer)

    def nothing(self, or_paired: str = "") -> MeterError:
        return MeterError(
            self.where,
            f"no answer within {self.timeout_s:g} s, {self.n_attempts} times",
            f"is it the right port, is the meter on{or_paired}, and is no other program or phone connected to it?",
        )

r"""Reading what an agent writes: JSON objects, one per line, the first of them `hello`; some followed by raw bytes.

A board is not trusted: lines have a maximal length and number, NaN, infinity (also as 1e999) and integers beyond 64
bits are refused, and every string is made safe to show (`printable`) before anybody sees it. Lines before the `hello`
are a chatty login shell's and dropped; after it, anything that is not the protocol is an AgentProtocolError. Events of
unknown kind are ignored, so that a newer agent may say more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from edge_lts.errors import ArchitectureError, EdgeLtsError, LedgerError, LockedError, SpaceError, SpecError
from edge_lts_host.errors import AgentProtocolError, HostError, last_line, printable

PROTOCOL = 1
MAX_LINE_BYTES = 8 << 20
MAX_LINES = 1_000_000
MAX_NOISE_BYTES = 1 << 20
MAX_DEPTH = 60
LARGEST_INTEGER = 1 << 63
_KNOWN_CODES = (1, 2, 5, 6, 7, 124)
_ERRORS: dict[str, type[EdgeLtsError]] = {
    error.__name__: error for error in (ArchitectureError, LedgerError, LockedError, SpaceError, SpecError)
}


class AgentError(HostError):
    """The agent on the board refused or failed, in its own words; the exit code is the one that it gave."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message, exit_code)
        self.message = message
        self.exit_code = exit_code if exit_code in _KNOWN_CODES else 1

    def __str__(self) -> str:
        return self.message


def clean(value: Any, depth: int = 0) -> Any:
    """`value` with every string, keys included, safe to show.

    Raises ValueError when it is nested too deeply or holds a number that is not finite or needs more than 64 bits.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, int) and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class AgentReader:
    """Takes the agent's stdout chunk by chunk; hands out events, and the raw bytes that belong to some.

    `where` names the board in messages. The error event that ends a failed verb is raised as the error it stands for.
    """

    def __init__(self, chunks: Iterable[bytes], where: str) -> None:
        self._chunks = iter(chunks)
        self._where = where
        self._buffer = bytearray()
        self._searched = 0  # no newline before this: a long line costs linear time
        self._has_hello = False
        self._n_noise = 0
        self._n_lines = 0
        self._noise = b""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            line = self._line()
            if line is None:
                return
            self._n_lines += 1
            if self._n_lines > MAX_LINES:
                raise self._error(f"more than {MAX_LINES} lines")
            event = self._parse(line)
            if event is None:
                continue
            if event["event"] == "error":
                self._raise(event)
            yield event

    def read(self, n_bytes: int) -> Iterator[bytes]:
        """Exactly the next `n_bytes` raw bytes, as they come."""
        left = n_bytes
        while left:
            if not self._buffer and not self._more():
                raise self._error(f"the output ended {left} bytes too early")
            piece = bytes(self._buffer[:left])
            del self._buffer[: len(piece)]
            self._searched = 0
            left -= len(piece)
            yield piece

    @property
    def has_hello(self) -> bool:
        return self._has_hello

    @property
    def noise(self) -> str:
        """The last line that came instead of the protocol, for messages."""
        return last_line(self._noise)

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._buffer += chunk
        return True

    def _line(self) -> bytes | None:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > MAX_LINE_BYTES:
                raise self._error(f"a line of more than {MAX_LINE_BYTES} bytes")
            if not self._more():
                if not self._buffer:
                    return None
                end = len(self._buffer)  # a line cut off in the middle: let the parser say so
                break
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        """An event, or None for a line of a chatty shell before the hello and for blank ones."""
        if not line.strip():
            return None
        event: dict[str, Any] | None = None
        problem = "is no object with an event"
        try:
            data = json.loads(line, parse_constant=_no_constant)
            if isinstance(data, dict) and isinstance(data.get("event"), str):
                event = clean(data)
        except (ValueError, RecursionError) as exc:
            problem = f"is not JSON ({exc})"
        if self._has_hello:
            if event is None:
                raise self._error(f"a line {problem:.120}: {printable(line[:200])!r:.200}")
            return event
        if event is not None and event["event"] in ("hello", "error"):
            self._has_hello = True
            if event["event"] == "hello" and event.get("protocol") != PROTOCOL:
                version = event.get("protocol")
                raise self._error(
                    f"it speaks version {version!r:.40} of the protocol, we speak {PROTOCOL}: deploy again"
                )
            return event
        self._noise = line[-1000:]
        self._n_noise += len(line)
        if self._n_noise > MAX_NOISE_BYTES:
            raise self._error("a megabyte of something else instead of the agent's greeting")
        return None

    def _raise(self, event: dict[str, Any]) -> NoReturn:
        message = " ".join(str(event.get("message") or "the agent failed and did not say why").split())[:2000]
        code = event.get("exit_code")
        kind = _ERRORS.get(str(event.get("type")))
        text = f"{self._where}: {message}"
        if kind is not None:
            raise kind(text)
        raise AgentError(text, code if isinstance(code, int) and not isinstance(code, bool) else 1)

    def _error(self, problem: str) -> AgentProtocolError:
        return AgentProtocolError(f"{self._where}: the agent's answer is not its protocol: {problem}")

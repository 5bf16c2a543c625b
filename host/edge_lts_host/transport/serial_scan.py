"""Which serial ports this machine has, and what answers on them: for `edge-lts devices scan`.

Each port is opened, listened to and sent an empty line (after the character that deletes a half-typed one); nothing
else is ever sent, so that a meter or a modem is not confused. Ports that somebody else has open are left alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_lts_host.errors import TransportError, last_line, printable
from edge_lts_host.transport.serial_login import QUIET_S, is_noise, plain
from edge_lts_host.transport.serial_port import DEFAULT_BAUD_HZ, ConsolePort, SerialDestination

BY_ID = Path("/dev/serial/by-id")
_LISTEN_S = 3.0
_KEPT_BYTES = 16384
_N_AT_A_TIME = 16
_LOGIN = re.compile(rb"(\S+)? ?login: ?$")
_PROMPT = re.compile(rb"[$#>%] ?$")
_PROMPT_BYTES = 200  # at the end: a search from every place of a long line would be quadratic


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPort:
    """A serial port: its name that lasts, what kind of adapter it says it is, and what answered in words.

    `kind` is `login`, `shell`, `text`, `noise` (no text: another baud rate?), `silent` or `closed` (`answer` says why).
    """

    port: str
    description: str
    kind: str
    answer: str

    def to_json(self) -> dict[str, Any]:
        return {"port": self.port, "description": self.description, "kind": self.kind, "answer": self.answer}


def serial_ports(by_id: Path = BY_ID) -> dict[str, str]:
    """Ports by the name that lasts (/dev/serial/by-id/... where there is one), with the adapter's description."""
    from serial.tools import list_ports

    lasting = lasting_names(by_id)
    return {lasting.get(info.device, info.device): printable(info.description or "") for info in list_ports.comports()}


def lasting_names(by_id: Path) -> dict[str, str]:
    """Names in `by_id` by the device that they mean now."""
    links = sorted(by_id.iterdir()) if by_id.is_dir() else []
    return {str(link.resolve()): str(link) for link in links}


def scan(
    ports: Mapping[str, str] | None = None,
    *,
    baud_hz: int = DEFAULT_BAUD_HZ,
    listen_s: float = _LISTEN_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[FoundPort]:
    """Every port (default: all of this machine), asked side by side; never raises for a port that cannot be used."""
    found = serial_ports() if ports is None else ports

    def look(item: tuple[str, str]) -> FoundPort:
        port, description = item
        try:
            kind, answer = _ask(SerialDestination(port=port, baud_hz=baud_hz), listen_s, clock)
        except TransportError as exc:
            kind, answer = "closed", f"{exc.problem}; {exc.remedy}"
        return FoundPort(port=port, description=description, kind=kind, answer=answer)

    if not found:
        return []
    with ThreadPoolExecutor(max_workers=min(_N_AT_A_TIME, len(found)), thread_name_prefix="scan") as pool:
        return list(pool.map(look, sorted(found.items())))


def _ask(destination: SerialDestination, listen_s: float, clock: Callable[[], float]) -> tuple[str, str]:
    port = ConsolePort(destination, clock=clock)
    try:
        port.write(b"\x15\n")
        return _listen(port, listen_s, clock)
    finally:
        port.close()


def _listen(port: ConsolePort, listen_s: float, clock: Callable[[], float]) -> tuple[str, str]:
    """What answers within `listen_s`; a prompt that nothing follows is enough."""
    end_s = clock() + listen_s
    heard = b""
    while (left_s := end_s - clock()) > 0:
        piece = port.read(min(left_s, QUIET_S))
        heard = (heard + piece)[-_KEPT_BYTES:]
        if not piece and describe(heard)[0] in ("login", "shell"):
            break
    return describe(heard)


def describe(heard: bytes) -> tuple[str, str]:
    """What sort of thing answered with `heard` to an empty line, as (kind, words)."""
    said = plain(heard)
    if not heard.strip(b"\x15\r\n\0 "):
        return "silent", "nothing"
    if is_noise(said):
        return "noise", "no text: another baud rate, or no console"
    login = _LOGIN.search(said[-_PROMPT_BYTES:])
    if login is not None:
        name = printable(login[1] or b"")
        return "login", f"a login prompt{f' of {name}' if name else ''}"
    if _PROMPT.search(said.rstrip(b"\n")[-_PROMPT_BYTES:]):
        return "shell", f"a shell, logged in: {last_line(said)}"
    return "text", f"text: {last_line(said)}"

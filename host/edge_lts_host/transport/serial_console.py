"""A board whose link is its serial console: log in, start a relay there, and every command goes through that.

The console has one terminal, so one connection at a time; the relay (serial_relay.py) keeps commands, their stdin,
stdout and stderr apart, and serial_wire.py makes up for what the line loses and the kernel says in between. At 115200
baud a file takes 0.12 s per kilobyte unless it can be compressed: 13 s for the agent.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from edge_lts_host.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    TransportError,
    last_line,
    printable,
)
from edge_lts_host.transport import serial_relay as words
from edge_lts_host.transport.base import STDIN_POLL_S, Deadline, Process, Transport
from edge_lts_host.transport.serial_login import START_S, Console, Prompt
from edge_lts_host.transport.serial_port import ConsolePort, SerialDestination
from edge_lts_host.transport.serial_wire import Message, Wire, WireError

LOST_S = 45.0
_PULSE_S = 5.0
_KILL_S = 5.0
_QUIT_S = 3.0
_STDIN_BYTES = 4096  # per message: small, so that answers get between
_ROOM_BYTES = 65536  # stdin that may be on the board without having been taken
_N_UNSENT_BYTES = 16384
_MAX_CHANNEL = 0xFFFF


class SerialTransport(Transport):
    """A connection to one console, made by the constructor; close it, or use `with`.

    Raises UsageError for a bad destination, ConnectError (with AuthenticationError) when there is no shell to be had.
    `login_s` is how long the way to a shell may take, typing not counted.
    """

    def __init__(
        self,
        destination: SerialDestination | str,
        *,
        prompt: Prompt,
        is_interactive: bool = False,
        login_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(destination, str):
            destination = SerialDestination.parse(destination)
        self.destination = destination
        self.name = str(destination)
        self.clock = clock
        self._processes: dict[int, _SerialProcess] = {}
        self._n_started = 0
        self._greeting: dict[str, object] | None = None
        self._why_lost = ""
        self._is_closed = False
        self._guard = threading.Lock()
        self._stepped_s = self._asked_s = clock()
        self._port = ConsolePort(destination, clock=clock)
        try:
            patience = {} if login_s is None else {"login_s": login_s}
            console = Console(
                self._port, destination, prompt=prompt, is_interactive=is_interactive, clock=clock, **patience
            )
            has_logged_in = console.reach_shell()
            key = secrets.randbits(32)
            rest = console.start_relay(is_to_log_out=has_logged_in, key=key)
            self._wire = Wire(key, destination.bytes_per_s, True, clock())
            self._take(rest)
            self._meet(destination.user)
        except BaseException:
            self._port.close()
            raise

    @property
    def n_damaged(self) -> int:
        """Lines that were no whole frame: how bad the cable is, or how talkative the kernel."""
        return self._wire.n_damaged

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        is_ours = self._guard.acquire(timeout=_QUIT_S)  # another thread, if there is one, stops within a second
        try:
            with contextlib.suppress(TransportError):
                if is_ours and not self._why_lost:
                    self._wire.send(words.QUIT, 0)
                    self._carry(_QUIT_S, lambda: self._wire.n_waiting == 0)
        finally:
            self._port.close()
            if is_ours:
                self._guard.release()

    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        self.raise_if_lost()
        self._n_started = self._n_started % _MAX_CHANNEL + 1
        process = _SerialProcess(self, self._n_started, stdin)
        self._processes[self._n_started] = process
        line = b"\0".join(word.encode("utf-8", "surrogateescape") for word in argv)
        self.say(words.RUN, self._n_started, line)
        return process

    def raise_if_lost(self) -> None:
        """ConnectionLostError unless the connection stands."""
        if self._is_closed or self._why_lost:
            why = self._why_lost or "the connection is closed"
            raise ConnectionLostError(self.name, why, "what runs there detached goes on; connect again")

    def say(self, kind: bytes, channel: int, body: bytes = b"") -> None:
        self._wire.send(kind, channel, body)

    def forget(self, channel: int) -> None:
        self._processes.pop(channel, None)

    @property
    def has_room(self) -> bool:
        """Whether more may be given to the line."""
        return self._wire.n_waiting < _N_UNSENT_BYTES

    def step(self, wait_s: float, until: Callable[[], bool]) -> None:
        """Carry bytes both ways for `wait_s` seconds, or until `until` says so. Raises ConnectionLostError."""
        with self._guard:
            self._carry(wait_s, lambda: self._is_closed or until())
        if self._is_closed:
            self.raise_if_lost()

    def _carry(self, wait_s: float, until: Callable[[], bool]) -> None:
        now = self.clock()
        if now - self._stepped_s > _PULSE_S:
            self._wire.heard_s = now  # nobody listened: that is not the board's silence
        end_s = now + wait_s
        try:
            while True:
                self._port.write(self._wire.take(now))
                if until() or now >= end_s:
                    return
                self._take(self._port.read(min(end_s - now, self._wire.due_s(now), 1.0)))
                now = self._stepped_s = self.clock()
                if now - self._wire.heard_s > LOST_S:
                    raise self._lost()
                if now - max(self._wire.heard_s, self._asked_s) > _PULSE_S:
                    self._asked_s = now
                    self._wire.ask()
        except ConnectionLostError as exc:
            self._why_lost = exc.problem
            raise

    def _lost(self) -> ConnectionLostError:
        said = last_line(self._wire.noise)
        problem = f"the board has not answered for {LOST_S:.0f} s" + (f"; its console says: {said}" if said else "")
        return ConnectionLostError(self.name, problem, "what runs there detached goes on; connect again")

    def _take(self, data: bytes) -> None:
        try:
            messages = self._wire.feed(data, self.clock())
        except WireError as exc:
            raise ConnectionLostError(self.name, f"what comes from the board makes no sense: {exc}") from exc
        for message in messages:
            self._sort(message)

    def _sort(self, message: Message) -> None:
        kind, channel, body = message
        if kind == words.HELLO:
            with contextlib.suppress(ValueError, RecursionError):
                greeting = json.loads(body)
                self._greeting = greeting if isinstance(greeting, dict) else {}
        elif channel in self._processes:
            self._processes[channel].hear(kind, body)

    def _meet(self, user: str | None) -> None:
        """Wait for the relay's first message, and see that it is who we want to be."""
        self.step(START_S, lambda: self._greeting is not None)
        if self._greeting is None:
            said = last_line(self._wire.noise)
            raise ConnectError(self.name, f"the relay on the board does not answer{': ' + said if said else ''}")
        found = printable(str(self._greeting.get("user")))[:80]
        if user is not None and found != user:
            self.close()
            raise AuthenticationError(
                self.name, f"the console is logged in as {found}", f"log out there, or deploy with --user {found}"
            )


class _SerialProcess(Process):
    def __init__(self, transport: SerialTransport, channel: int, stdin: Iterable[bytes]) -> None:
        self._transport = transport
        self._channel = channel
        self._chunks: Iterator[bytes] | None = iter(stdin)
        self._pending = memoryview(b"")
        self._room = _ROOM_BYTES
        self._is_waiting_for_stdin = False
        self._stdout, self._stderr = bytearray(), bytearray()
        self._status: int | None = None

    def hear(self, kind: bytes, body: bytes) -> None:
        """One message of the relay about this command; what makes no sense is passed over."""
        if kind == words.STDOUT:
            self._stdout += body
        elif kind == words.STDERR:
            self._stderr += body
        elif kind == words.ROOM and len(body) == 4:
            self._room += struct.unpack(">I", body)[0]
        elif kind == words.EXIT and len(body) == 1:
            self._status = body[0]

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        self._transport.raise_if_lost()
        self._is_waiting_for_stdin = False
        self._feed()
        self._transport.step(min(wait_s, STDIN_POLL_S) if self._is_waiting_for_stdin else wait_s, self._has_news)
        stdout, stderr = bytes(self._stdout), bytes(self._stderr)
        self._stdout.clear()
        self._stderr.clear()
        if not stdout and not stderr:
            self.exit_status = self._status
        return stdout, stderr

    def _has_news(self) -> bool:
        return bool(self._stdout or self._stderr or self._status is not None or self._can_feed())

    def _can_feed(self) -> bool:
        if self._chunks is None or self._status is not None or self._is_waiting_for_stdin:
            return False
        return self._room > 0 and self._transport.has_room

    def _feed(self) -> None:
        while self._can_feed():
            assert self._chunks is not None
            if not self._pending:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self._chunks = None
                    self._transport.say(words.STDIN_END, self._channel)
                    return
                if not chunk:
                    self._is_waiting_for_stdin = True
                    return
                self._pending = memoryview(chunk)
            piece = bytes(self._pending[: min(self._room, _STDIN_BYTES)])
            self._pending = self._pending[len(piece) :]
            self._room -= len(piece)
            self._transport.say(words.STDIN, self._channel, piece)

    def kill(self) -> None:
        self._chunks = None
        with contextlib.suppress(TransportError):
            self._transport.raise_if_lost()
            self._transport.say(words.KILL, self._channel)
            self._transport.step(_KILL_S, lambda: self._status is not None)

    def release(self) -> None:
        self._transport.forget(self._channel)

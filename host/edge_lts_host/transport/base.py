"""What every transport can do, derived once from the one thing each must provide: starting a command.

A transport runs argv on a device and moves bytes. It refuses to know what a run, an agent or a search is. Two facts are
kept apart: the link failed (an exception of the TransportError family) and the command failed (a CommandResult with a
status; CommandError from `check`, `put` and `get`, which have nothing to return then).

Commands start in the login directory, as `ssh HOST COMMAND` does, and relative paths mean that directory. A command
that cannot be found ends with status 127, one that cannot be executed with 126, one that died of signal N with 128 + N:
a shell's numbers, for the same command gives the same result over every transport.
"""

from __future__ import annotations

import math
import shlex
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edge_lts_host.errors import CommandError, TransferError, TransportTimeoutError, printable

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from 3.11 on

MIB = 1024 * 1024
DEFAULT_MAX_OUTPUT_BYTES = 64 * MIB
MAX_LINE_BYTES = 16 * MIB
STDERR_TAIL_BYTES = MIB
# Linux refuses a single argument above 128 KiB, and over SSH the whole command line is one argument of the login shell.
MAX_COMMAND_BYTES = 120_000
STDIN_POLL_S = 0.05  # how often stdin that had nothing to send is asked again
# How long an ended command may leave its output open (a background child that kept stdout) before we stop waiting for
# it.
LINGER_S = 1.0

Progress = Callable[[int, int], None]  # bytes there so far, bytes in all


class Deadline:
    """A point on a monotonic clock, passed down so that the parts of a call share its time. `math.inf` never comes."""

    __slots__ = ("_clock", "_end", "timeout_s")

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._end = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())

    @property
    def is_over(self) -> bool:
        return self._clock() >= self._end


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended. `stderr` holds its last MiB; 255 stands for a death the server told nothing about."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResult:
    """What `put` did: nothing (`is_skipped`), or sent `n_sent` of the `n_bytes` (fewer after resuming)."""

    sha256: str
    n_bytes: int
    n_sent: int
    is_skipped: bool


class Process(ABC):
    """A started command: what a transport has to provide. Used by one thread; `exit_status` is None until all output is
    out."""

    exit_status: int | None = None

    @abstractmethod
    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        """Send stdin that can be sent, return (stdout, stderr) that arrived; waits for either at most `wait_s` seconds.

        An empty chunk of stdin means that there is nothing to send yet: it is asked again within STDIN_POLL_S.
        Sets `exit_status` when the command has ended and nothing is left to read. Raises TransportError when the link
        failed.
        """

    @abstractmethod
    def kill(self) -> None:
        """End the command and what it started, as far as the link allows. Takes seconds at most; never raises
        TransportError."""

    @abstractmethod
    def release(self) -> None:
        """Free descriptors, channels and threads. Called once, after the end or after `kill`."""


class Stream(Iterator[bytes]):
    """A running command: iterate over its stdout as it comes; `lines()` cuts it into lines. Close it, or use `with`.

    Closing before the end kills the command. After the end `exit_status` is its status; `stderr` holds its last MiB.
    Raises TransportTimeoutError when the deadline passes, or when nothing arrived for `idle_timeout_s`.
    """

    def __init__(
        self,
        process: Process,
        argv: Sequence[str],
        *,
        where: str,
        deadline: Deadline,
        idle_timeout_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.argv = tuple(argv)
        self._process = process
        self._where = where
        self._deadline = deadline
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._stderr: deque[bytes] = deque()
        self._n_stderr = 0
        self._is_closed = False

    @property
    def exit_status(self) -> int | None:
        """None while the command runs, and for ever when it was closed before its end."""
        return self._process.exit_status

    @property
    def stderr(self) -> bytes:
        return b"".join(self._stderr)[-STDERR_TAIL_BYTES:]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        heard = self._clock()
        while not self._is_closed and self._process.exit_status is None:
            idle_left = heard + self._idle_timeout_s - self._clock()
            if self._deadline.is_over:
                self._time_out(f"no end within {self._deadline.timeout_s:g} s")
            if idle_left <= 0:
                self._time_out(f"no output for {self._idle_timeout_s:g} s")
            try:
                stdout, stderr = self._process.pump(min(1.0, self._deadline.left_s(), idle_left))
            except BaseException:
                self.close()
                raise
            if stderr:
                heard = self._clock()
                self._keep_stderr(stderr)
            if stdout:
                return stdout
        self.close()
        raise StopIteration

    def lines(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
        """stdout line by line, without the newline; a last line that lacks one is handed out too."""
        rest = bytearray()
        for chunk in self:
            # Only the new chunk can hold a newline: searching `rest` again would make a long line quadratic.
            *whole, last = chunk.split(b"\n")
            for part in whole:
                rest += part
                yield bytes(rest)
                rest.clear()
            rest += last
            if len(rest) > max_line_bytes:
                self.close()
                raise TransferError(self._where, f"a line of more than {max_line_bytes} bytes from {_short(self.argv)}")
        if rest:
            yield bytes(rest)

    def close(self) -> None:
        """Stop listening; a command still running is killed. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._process.exit_status is None:
                self._process.kill()
        finally:
            self._process.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _time_out(self, why: str) -> None:
        self.close()
        raise TransportTimeoutError(self._where, f"{why}: {_short(self.argv)}")

    def _keep_stderr(self, data: bytes) -> None:
        self._stderr.append(data)
        self._n_stderr += len(data)
        while self._n_stderr - len(self._stderr[0]) >= STDERR_TAIL_BYTES:
            self._n_stderr -= len(self._stderr.popleft())


class Transport(ABC):
    """A link to one device. A context manager; one thread at a time, but `close` may come from any.

    `name` is what messages call the device. Every call has a deadline; after a TransportTimeoutError the transport can
    still be used, after a ConnectionLostError it cannot.
    """

    name: str
    clock: Callable[[], float] = staticmethod(time.monotonic)

    @abstractmethod
    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        """Start `argv`, feeding it the chunks of `stdin` and then end of file. `argv` was checked."""

    @abstractmethod
    def close(self) -> None:
        """End the connection. Never raises; safe to call twice."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> CommandResult:
        """Run `argv` to its end and return what it wrote and its status, whatever that is.

        Raises TransferError, after killing the command, when stdout grows beyond `max_output_bytes`.
        """
        return self._collect(argv, (stdin,) if stdin else (), Deadline(timeout_s, self.clock), max_output_bytes)

    def check(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> CommandResult:
        """`run`, raising CommandError unless the status is 0."""
        result = self.run(argv, stdin=stdin, timeout_s=timeout_s, max_output_bytes=max_output_bytes)
        if result.exit_status != 0:
            raise CommandError(result.argv, result.exit_status, result.stderr, self.name)
        return result

    def stream(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        timeout_s: float = math.inf,
        idle_timeout_s: float = math.inf,
    ) -> Stream:
        """Start `argv` and hand out its stdout as it comes. See Stream.

        `stdin` is asked for chunks while output is waited for; an empty one means "nothing yet" (a conversation).
        """
        return self._open(argv, stdin, Deadline(timeout_s, self.clock), idle_timeout_s)

    def put(
        self,
        source: Path | bytes,
        remote_path: str,
        *,
        mode: int = 0o644,
        progress: Progress | None = None,
        timeout_s: float,
    ) -> PutResult:
        """Make `remote_path` hold `source`, or leave it alone if it does already (same SHA-256). See
        transport/files.py."""
        from edge_lts_host.transport.files import put

        return put(self, source, remote_path, mode=mode, progress=progress, deadline=Deadline(timeout_s, self.clock))

    def get(
        self, remote_path: str, *, offset: int = 0, max_bytes: int = DEFAULT_MAX_OUTPUT_BYTES, timeout_s: float
    ) -> bytes:
        """At most `max_bytes` of a file from byte `offset` on; b"" at or beyond its end.

        Raises CommandError with status `files.NO_SUCH_FILE` when it is not there.
        """
        from edge_lts_host.transport.files import get

        return get(self, remote_path, offset=offset, max_bytes=max_bytes, timeout_s=timeout_s)

    def send(self, argv: Sequence[str], chunks: Iterable[bytes], deadline: Deadline) -> CommandResult:
        """`run` with stdin made while it is sent, for what does not fit into memory; stdout as for `run`."""
        return self._collect(argv, chunks, deadline, DEFAULT_MAX_OUTPUT_BYTES)

    def _collect(
        self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline, max_output_bytes: int
    ) -> CommandResult:
        chunks = []
        n_bytes = 0
        with self._open(argv, stdin, deadline) as stream:
            for chunk in stream:
                n_bytes += len(chunk)
                if n_bytes > max_output_bytes:
                    raise TransferError(self.name, f"more than {max_output_bytes} bytes of output from {_short(argv)}")
                chunks.append(chunk)
        assert stream.exit_status is not None
        return CommandResult(
            argv=tuple(argv), exit_status=stream.exit_status, stdout=b"".join(chunks), stderr=stream.stderr
        )

    def _open(
        self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline, idle_timeout_s: float = math.inf
    ) -> Stream:
        if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
            raise ValueError(f"argv must be a non-empty sequence of strings without NUL, not {argv!r}")
        n_bytes = len(encode_command(argv))
        if n_bytes > MAX_COMMAND_BYTES:
            raise TransferError(self.name, f"a command line of {n_bytes} bytes is too long", "send data through stdin")
        process = self._start(argv, stdin, deadline)
        return Stream(
            process, argv, where=self.name, deadline=deadline, idle_timeout_s=idle_timeout_s, clock=self.clock
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def encode_command(argv: Sequence[str]) -> bytes:
    """`argv` as one command line for a POSIX shell: the only place where quoting happens."""
    return shlex.join(argv).encode("utf-8", "surrogateescape")


def _short(argv: Sequence[str]) -> str:
    line = printable(" ".join(shlex.join(argv).split()))
    return line if len(line) <= 80 else line[:79] + "…"

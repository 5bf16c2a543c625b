"""A board in memory, for tests: a dictionary of files, scripted commands, a clock that never makes anybody wait.

It understands `put`, `get` and `check` by itself; other commands are given to it:

    board = FakeTransport()
    board.reply(["uname", "-m"], stdout=b"aarch64\\n")
    board.on(["agent", "search"], handler)          # handler(call) yields stdout, Pause(seconds); returns the status

The longest matching prefix of argv wins; anything else ends with status 127, as a missing command would.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from edge_lts_host.errors import ConnectionLostError
from edge_lts_host.transport import files
from edge_lts_host.transport.base import Deadline, Process, Transport


@dataclass(frozen=True, slots=True)
class Pause:
    """Yielded by a handler: the command is silent for so long."""

    seconds: float


@dataclass(slots=True)
class FakeFile:
    data: bytes
    mode: int = 0o644


@dataclass(slots=True)
class FakeCall:
    """What a handler gets: the command, all of its stdin, and a place for its stderr."""

    argv: tuple[str, ...]
    stdin: bytes
    stderr: bytearray = field(default_factory=bytearray)


Handler = Callable[[FakeCall], Generator["bytes | Pause", None, int]]


class FakeClock:
    """A monotonic clock that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeTransport(Transport):
    """A scripted board. `files` is its disk, `calls` what it was asked, `n_running` how many commands have neither
    ended nor been killed. Its link can be cut: at once (`cut`), or after so many more bytes of stdin
    (`cut_after_bytes`); `mend` repairs it.
    """

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.fake_clock = FakeClock()
        self.clock = self.fake_clock
        self.files: dict[str, FakeFile] = {}
        self.calls: list[tuple[str, ...]] = []
        self.n_running = 0
        self.free_bytes: float = math.inf
        self.cut_after_bytes: int | None = None
        self._is_cut = False
        self._handlers: dict[tuple[str, ...], Handler] = {}
        for script, handler in (
            (files.LOOK_SCRIPT, self._look),
            (files.STORE_SCRIPT, self._store),
            (files.READ_SCRIPT, self._read),
        ):
            self.on(["sh", "-c", script], handler)

    def on(self, prefix: Sequence[str], handler: Handler) -> None:
        """Let `handler` play every command that starts with `prefix`."""
        self._handlers[tuple(prefix)] = handler

    def reply(self, prefix: Sequence[str], *, stdout: bytes = b"", stderr: bytes = b"", exit_status: int = 0) -> None:
        """Answer every command that starts with `prefix` with the same bytes."""

        def handler(call: FakeCall) -> Generator[bytes | Pause, None, int]:
            call.stderr += stderr
            yield stdout
            return exit_status

        self.on(prefix, handler)

    def cut(self) -> None:
        """Break the link: every call raises ConnectionLostError until `mend`."""
        self._is_cut = True

    def mend(self) -> None:
        self._is_cut = False
        self.cut_after_bytes = None

    def close(self) -> None:
        self._is_cut = True

    def raise_if_cut(self) -> None:
        if self._is_cut:
            raise ConnectionLostError(self.name, "the link is cut")

    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        self.raise_if_cut()
        self.calls.append(tuple(argv))
        data = self._receive(stdin)
        prefixes = [prefix for prefix in self._handlers if tuple(argv[: len(prefix)]) == prefix]
        handler = self._handlers[max(prefixes, key=len)] if prefixes else _command_not_found
        return _FakeProcess(self, handler, FakeCall(argv=tuple(argv), stdin=data))

    def _receive(self, stdin: Iterable[bytes]) -> bytes:
        data = bytearray()
        for chunk in stdin:
            data += chunk
            if self.cut_after_bytes is not None and len(data) >= self.cut_after_bytes:
                self._is_cut = True  # the command still sees what arrived, then the end of stdin
                return bytes(data[: self.cut_after_bytes])
        return bytes(data)

    # The derived commands of transport/files.py, on a dictionary.

    def _look(self, call: FakeCall) -> Generator[bytes | Pause, None, int]:
        path, size, sha256, mode = call.argv[4:]
        there, part = self.files.get(path), self.files.get(f"{path}.part")
        if there is not None and _sha256(there.data) == sha256:
            there.mode = int(mode, 8)
            yield b"same\n"
        elif part is not None and 0 < len(part.data) <= int(size):
            yield f"{len(part.data)}\n{_sha256(part.data)}\n".encode()
        else:
            yield b"0\n-\n"
        return 0

    def _store(self, call: FakeCall) -> Generator[bytes | Pause, None, int]:
        path, offset, size, sha256, mode = call.argv[4:]
        part = self.files.pop(f"{path}.part", FakeFile(b"", 0o600))
        data = part.data[: int(offset)] + call.stdin
        if len(data) > self.free_bytes:
            call.stderr += b"cat: write error: No space left on device\n"
            return 1
        if len(data) < int(size):
            self.files[f"{path}.part"] = FakeFile(data, 0o600)
            return files.CUT_SHORT
        if _sha256(data) != sha256:
            return files.DATA_DAMAGED
        self.files[path] = FakeFile(data, int(mode, 8))
        yield b""
        return 0

    def _read(self, call: FakeCall) -> Generator[bytes | Pause, None, int]:
        path, first, n_bytes = call.argv[4], int(call.argv[5]), int(call.argv[6])
        if path not in self.files:
            call.stderr += f"no such file: {path}\n".encode()
            return files.NO_SUCH_FILE
        yield self.files[path].data[first - 1 : first - 1 + n_bytes]
        return 0


class _FakeProcess(Process):
    def __init__(self, board: FakeTransport, handler: Handler, call: FakeCall) -> None:
        self._board = board
        self._call = call
        self._steps = handler(call)
        self._silent_until = 0.0
        self._is_killed = False
        board.n_running += 1

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        clock = self._board.fake_clock
        if clock.now < self._silent_until:
            self._board.raise_if_cut()
            clock.now = min(clock.now + wait_s, self._silent_until)
            return b"", b""
        stdout = b""
        try:
            step = next(self._steps)
        except StopIteration as end:
            self._board.raise_if_cut()
            self.exit_status = int(end.value or 0)
            self._board.n_running -= 1
        else:
            self._board.raise_if_cut()
            if isinstance(step, Pause):
                self._silent_until = clock.now + step.seconds
            else:
                stdout = step
        stderr = bytes(self._call.stderr)
        self._call.stderr.clear()
        return stdout, stderr

    def kill(self) -> None:
        if not self._is_killed:
            self._is_killed = True
            self._board.n_running -= 1

    def release(self) -> None:
        self._steps.close()


def _command_not_found(call: FakeCall) -> Generator[bytes | Pause, None, int]:
    call.stderr += f"sh: 1: {call.argv[0]}: not found\n".encode("utf-8", "surrogateescape")
    yield b""
    return 127


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

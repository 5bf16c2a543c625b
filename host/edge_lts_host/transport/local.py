"""This machine as a device: subprocesses, with the meaning they would have over SSH."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edge_lts_host.errors import TransferError, TransportError
from edge_lts_host.transport.base import LINGER_S, Deadline, Process, Transport

_READ_BYTES = 64 * 1024
_TERM_S = 2.0  # between asking a command to end and ending it
# Nothing wakes us when a command ends while a child of its keeps the pipes open, so look this often.
_LOOK_S = 0.05


class LocalTransport(Transport):
    """Runs commands here, in the home directory (or `directory`), each in a session of its own."""

    def __init__(self, *, directory: Path | None = None, name: str = "local") -> None:
        self.name = name
        self._directory = Path.home() if directory is None else directory

    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        if not self._directory.is_dir():
            raise TransportError(self.name, f"the directory {self._directory} does not exist")
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._directory,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as exc:
            return _never_started(self.name, argv, exc)
        return _LocalProcess(child, stdin)

    def close(self) -> None:
        """Nothing to end: commands do not outlive their call."""


def _never_started(where: str, argv: Sequence[str], exc: OSError) -> Process:
    """What a shell would say about a command that cannot be started, or TransportError when we are out of resources."""
    if exc.errno == errno.E2BIG:
        raise TransferError(where, "the command line is too long", "send data through stdin") from exc
    if exc.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        raise TransportError(where, f"cannot start a process: {exc.strerror}") from exc
    status = 127 if exc.errno in (errno.ENOENT, errno.ENOTDIR) else 126
    return _EndedProcess(status, f"{argv[0]}: {exc.strerror}\n".encode("utf-8", "surrogateescape"))


class _EndedProcess(Process):
    def __init__(self, status: int, stderr: bytes) -> None:
        self._status = status
        self._stderr = stderr

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        self.exit_status = self._status
        return b"", self._stderr

    def kill(self) -> None:
        pass

    def release(self) -> None:
        pass


class _LocalProcess(Process):
    def __init__(self, child: subprocess.Popen[bytes], stdin: Iterable[bytes]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._child = child
        self._chunks: Iterator[bytes] = iter(stdin)
        self._pending = memoryview(b"")
        self._is_waiting_for_stdin = False
        self._ended_at: float | None = None
        self._pipes = (child.stdin, child.stdout, child.stderr)
        self._selector = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        self._selector.register(child.stdin, selectors.EVENT_WRITE)
        self._selector.register(child.stdout, selectors.EVENT_READ)
        self._selector.register(child.stderr, selectors.EVENT_READ)

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        found = {self._child.stdout: b"", self._child.stderr: b""}
        if self._is_waiting_for_stdin:
            self._ask_stdin()
        for key, _ in self._selector.select(min(wait_s, _LOOK_S)):
            if key.fileobj is self._child.stdin:
                self._feed()
                continue
            data = os.read(key.fd, _READ_BYTES)
            if data:
                found[key.fileobj] = data  # type: ignore[index]  # only the two pipes registered for reading get here
            else:
                self._selector.unregister(key.fileobj)
        if not any(found.values()):
            self._look_for_the_end()
        return found[self._child.stdout], found[self._child.stderr]

    def kill(self) -> None:
        if self._child.returncode is not None:
            return
        # The leader of the group is not reaped before the last signal, so the number cannot be anybody else's by then.
        self._signal_group(signal.SIGTERM)
        deadline = Deadline(_TERM_S)
        while (
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not deadline.is_over
        ):
            time.sleep(0.01)
        self._signal_group(signal.SIGKILL)

    def release(self) -> None:
        self._selector.close()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        self._child.wait()

    def _feed(self) -> None:
        assert self._child.stdin is not None
        try:
            if not self._pending:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise BrokenPipeError  # nothing more to say: same end as when nobody listens any more
                if not chunk:
                    self._is_waiting_for_stdin = True
                    self._selector.unregister(self._child.stdin)  # writable all the time: it would wake us for nothing
                    return
                self._pending = memoryview(chunk)
            self._pending = self._pending[os.write(self._child.stdin.fileno(), self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._selector.unregister(self._child.stdin)
            self._child.stdin.close()

    def _ask_stdin(self) -> None:
        """Once more for a chunk, after there was nothing to send."""
        assert self._child.stdin is not None
        chunk = next(self._chunks, None)
        if chunk == b"":
            return
        self._is_waiting_for_stdin = False
        if chunk is None:
            self._child.stdin.close()
            return
        self._pending = memoryview(chunk)
        self._selector.register(self._child.stdin, selectors.EVENT_WRITE)

    def _look_for_the_end(self) -> None:
        is_output_open = any(key.fileobj is not self._child.stdin for key in self._selector.get_map().values())
        if self._child.poll() is None:
            return
        now = time.monotonic()
        self._ended_at = self._ended_at or now
        if not is_output_open or now - self._ended_at >= LINGER_S:
            status = self._child.returncode
            self.exit_status = status if status >= 0 else 128 - status

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

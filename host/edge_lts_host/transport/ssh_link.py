"""Around paramiko: its exceptions become ours, and a clock of our own closes what it would wait for without end.

paramiko's keepalive never looks whether anybody answers, and a channel that waits for a reply waits for ever
(paramiko#515, #739, #2510, #2618). So every call runs under a Watchdog, and every connection has a Pulse that asks a
silent server for an answer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING

from cryptography.utils import CryptographyDeprecationWarning

from edge_lts_host.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    HostKeyError,
    TransferError,
    TransportError,
    TransportTimeoutError,
    last_line,
    printable,
)

with warnings.catch_warnings():
    # Older paramiko names ciphers that cryptography is about to drop; nothing that a user of ours can act on.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    import paramiko as paramiko  # the other ssh_*.py take it from here, after the filter
    from paramiko.pkey import UnknownKeyType

if TYPE_CHECKING:
    from typing_extensions import Self

# paramiko logs tracebacks, and logging prints them to stderr when nobody configured it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

# Most specific first. OSError and EOFError last: by then we were connected, and the connection broke.
ERRORS: tuple[tuple[type[BaseException], type[TransportError]], ...] = (
    (paramiko.BadHostKeyException, HostKeyError),
    (paramiko.AuthenticationException, AuthenticationError),
    (paramiko.ssh_exception.IncompatiblePeer, ConnectError),
    (paramiko.ssh_exception.CouldNotCanonicalize, ConnectError),
    (paramiko.ssh_exception.ConfigParseError, ConnectError),
    (paramiko.ssh_exception.NoValidConnectionsError, ConnectError),
    (paramiko.ProxyCommandFailure, ConnectError),
    (paramiko.ChannelException, ConnectError),
    (UnknownKeyType, ConnectError),
    (paramiko.SFTPError, TransferError),
    (paramiko.SSHException, ConnectionLostError),
    (TimeoutError, TransportTimeoutError),
    (socket.gaierror, ConnectError),
    (ConnectionRefusedError, ConnectError),
    (EOFError, ConnectionLostError),
    (OSError, ConnectionLostError),
)


@contextlib.contextmanager
def mapped_errors(where: str, doing: str, *, connecting: bool = False) -> Iterator[None]:
    """Turn what paramiko, socket and the system raise into a TransportError about `where`.

    `connecting`: there is no connection to lose yet, so what would be ConnectionLostError is a ConnectError.
    """
    try:
        yield
    except TransportError:  # ours already; TransportTimeoutError is an OSError as well
        raise
    except tuple(theirs for theirs, _ in ERRORS) as exc:
        kind = next(ours for theirs, ours in ERRORS if isinstance(exc, theirs))
        if connecting and kind is ConnectionLostError:
            kind = ConnectError
        raise kind(where, f"{doing} failed: {_say(exc)}") from exc


def _say(exc: BaseException) -> str:
    said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return printable(" ".join(said.split())) or type(exc).__name__


class Watchdog:
    """Closes `link` when the block has not ended within `timeout_s`; `has_fired` tells. `math.inf` never does.

    With `where` set, a block that failed because of it raises TransportTimeoutError instead of what the closed link
    raised.
    """

    def __init__(
        self, link: paramiko.Transport | socket.socket, timeout_s: float, where: str = "", doing: str = ""
    ) -> None:
        self.has_fired = False
        self._link = link
        self._where = where
        self._doing = doing
        self._timeout_s = timeout_s
        self._timer: threading.Timer | None = None
        if timeout_s < threading.TIMEOUT_MAX:
            self._timer = threading.Timer(timeout_s, self._fire)
            self._timer.daemon = True
            self._timer.start()

    def _fire(self) -> None:
        self.has_fired = True
        self._link.close()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            if self._timer is not threading.current_thread():
                self._timer.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        if self.has_fired and self._where and (exc is None or isinstance(exc, Exception)):
            raise TransportTimeoutError(self._where, f"{self._doing}: no answer within {self._timeout_s:g} s") from exc


class HeardSocket(socket.socket):
    """A socket that remembers when something last came out of it, on the monotonic clock."""

    heard_s = -math.inf

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        self.heard_s = time.monotonic()
        return data

    @classmethod
    def of(cls, sock: socket.socket) -> HeardSocket:
        """The same connection; `sock` is used up. Blocking, whatever timeout `sock` had."""
        heard = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        heard.settimeout(None)
        return heard


class Pulse(threading.Thread):
    """Closes the connection when nothing came from the server for three intervals.

    A server that was silent for one interval is asked for an answer; OpenSSH and dropbear answer a request that they do
    not know with a refusal. Whatever arrives is a sign of life: on a slow link the answer stands behind megabytes of a
    transfer, which takes longer than three intervals and is no dead peer.
    """

    def __init__(self, link: paramiko.Transport, sock: HeardSocket, interval_s: float) -> None:
        super().__init__(name="edge-lts-ssh-pulse", daemon=True)
        self.has_lost_peer = False  # whether it was the silence that closed the connection
        self._link = link
        self._sock = sock
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._one_at_a_time = threading.Lock()  # paramiko does not know whose answer it hears

    def run(self) -> None:
        while self._link.is_active():
            if self._stopped.wait(max(0.01, self._interval_s - self._silent_s())):
                return
            if self._silent_s() >= self._interval_s:
                self._ask()

    def stop(self) -> None:
        self._stopped.set()

    def _silent_s(self) -> float:
        return time.monotonic() - self._sock.heard_s

    def ask(self) -> threading.Thread:
        """A thread that ends when the server has answered, or the connection is lost.

        The answer comes after all that the server had sent before it was asked.
        """
        # In a thread of its own: with a full send buffer even asking takes as long as the link pleases.
        asking = threading.Thread(target=self._request, name="edge-lts-ssh-ask", daemon=True)
        asking.start()
        return asking

    def _ask(self) -> None:
        asking = self.ask()
        while asking.is_alive():
            left_s = 3 * self._interval_s - self._silent_s()
            if left_s <= 0:
                self.has_lost_peer = True
                self._link.close()
                asking.join(5)
                return
            asking.join(left_s)

    def _request(self) -> None:
        try:
            with self._one_at_a_time:
                self._link.global_request("keepalive@openssh.com", wait=True)
        except (paramiko.SSHException, EOFError, OSError):
            self._link.close()


class ProxySocket(HeardSocket):
    """One end of a socket pair whose other end is the stdin and stdout of a command (ProxyCommand, ProxyJump).

    paramiko's own ProxyCommand splits the command without a shell and leaves it running; a socket pair needs no
    pumping, and closing it ends the command. `complaint()` is the last thing that the command wrote to stderr.
    """

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours.family, ours.type, ours.proto, fileno=ours.detach())
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the socket; `end` closes it
        with theirs:
            self._child = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._stderr,
                # Its own group, so that Ctrl-C ends the run in order instead of cutting the link first.
                start_new_session=True,
            )

    def complaint(self) -> str:
        """What the command last said on stderr, or ""."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(0.5)
        if self._stderr.closed:
            return ""
        # pread: the offset of the file is the command's too.
        return last_line(os.pread(self._stderr.fileno(), 64 * 1024, 0))

    def close(self) -> None:
        super().close()
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGTERM)
            try:
                self._child.wait(2)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def end(self) -> None:
        """`close`, and forget what the command said."""
        self.close()
        self._stderr.close()

"""A board over SSH (paramiko): one connection, each command in a channel of its own.

A command goes through the login shell, as with `ssh HOST COMMAND`, and whatever that shell says by itself (a chatty
.bashrc, a message of the day, `set -x`) is dropped: a small wrapper prints a random marker first, on stdout with its
process id and on stderr. The id is what lets a timeout end the command on the far side. Nothing but bytes and argv is
known here; host keys and logging in are in ssh_login.py.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from edge_lts_host.errors import ConnectError, ConnectionLostError, TransportError, last_line
from edge_lts_host.transport.base import LINGER_S, MIB, STDIN_POLL_S, Deadline, Process, Transport, encode_command
from edge_lts_host.transport.ssh_config import SshDestination, SshHost, SshOptions, resolve
from edge_lts_host.transport.ssh_link import Pulse, Watchdog, mapped_errors, paramiko
from edge_lts_host.transport.ssh_login import Link, connect

_READ_BYTES = 256 * 1024
_SEND_BYTES = 256 * 1024
_WINDOW_BYTES = 4 * MIB
_OPEN_S = 60.0  # for a channel to open, whatever the call's own time; a dead peer is noticed before
_KILL_S = 4.0  # for the whole of ending a command on the far side
_GRACE_S = 5.0  # beyond a deadline, before the watchdog closes a connection that swallows even the end of the call
# paramiko tells nobody when the far side makes room for more stdin.
_WINDOW_POLL_S = 0.005
_MAX_NOISE_BYTES = MIB
# Died of a signal, which paramiko does not pass on; ssh(1) says 255 then.
_UNKNOWN_STATUS = 255

# $1 $2 the two halves of the marker: apart, so that a shell that echoes its commands does not print it. The parentheses
# make `exec` (which alone finds programs and not builtins) leave this shell alive: it turns a death by signal into 128
# + N.
_WRAPPER = """printf '%s%s %s.\\n' "$1" "$2" "$$"; printf '%s%s.\\n' "$1" "$2" >&2; shift 2; (exec "$@"); exit $?"""

# $1 the wrapper's process id. sshd makes every command a session, so its group is killed, unless that is our own: then
# only itself.
_KILLER = """
group() { read -r stat <"/proc/$1/stat" || return; set -- ${stat##*) }; echo "$3"; }
victim=$(group "$1" 2>/dev/null); mine=$(group $$ 2>/dev/null)
if [ -n "$victim" ] && [ "$victim" != "$mine" ]; then set -- "-$victim"; fi
kill -s TERM -- "$1" 2>/dev/null || exit 0
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  kill -s 0 -- "$1" 2>/dev/null || exit 0
  sleep 0.1
done
kill -s KILL -- "$1"
"""


class SshTransport(Transport):
    """A connection to one host, made by the constructor; close it, or use `with`.

    `host` is where we are, after ssh_config. Raises UsageError for a bad destination or ssh_config, ConnectError (with
    its kinds AuthenticationError and HostKeyError) or TransportTimeoutError when there is no connection to be had.
    """

    def __init__(
        self,
        destination: SshDestination | str,
        options: SshOptions | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = options or SshOptions()
        if isinstance(destination, str):
            destination = SshDestination.parse(destination)
        self.host: SshHost = resolve(destination, options)
        self.name = self.host.name
        self._is_closed = False
        self._link: Link = connect(self.host, options, sleep=sleep)
        self._pulse = Pulse(self._link.paramiko, self._link.sock, options.heartbeat_s)
        self._pulse.start()

    @property
    def heard_s(self) -> float:
        """When something last came from the host, on the monotonic clock."""
        return self._link.sock.heard_s

    def close(self) -> None:
        self._is_closed = True
        self._pulse.stop()
        self._link.close()
        self._pulse.join(5)

    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        self.raise_if_lost()
        marker = (secrets.token_hex(8), secrets.token_hex(8))
        channel = self._execute(["sh", "-c", _WRAPPER, "sh", *marker, *argv], min(_OPEN_S, deadline.left_s()))
        return _SshProcess(self, channel, "".join(marker), stdin, deadline)

    def _execute(self, argv: Sequence[str], timeout_s: float) -> paramiko.Channel:
        link = self._link.paramiko
        doing = "starting a command"
        try:
            with Watchdog(link, timeout_s + _GRACE_S, self.name, doing), mapped_errors(self.name, doing):
                channel = link.open_session(window_size=_WINDOW_BYTES, timeout=max(1.0, timeout_s))
                channel.exec_command(encode_command(argv))
        except ConnectionLostError:
            if self._pulse.has_lost_peer:
                self.raise_if_lost()  # says it better
            raise
        return channel

    def raise_if_lost(self) -> None:
        """ConnectionLostError unless the connection stands."""
        if self._link.paramiko.is_active():
            return
        if self._is_closed:
            problem = "the connection is closed"
        elif self._pulse.has_lost_peer:
            problem = "the connection is lost: the other side no longer answers"
        else:
            problem = "the connection is lost"
        raise ConnectionLostError(self.name, problem, "what runs there detached goes on; connect again")

    def watch(self, deadline: Deadline) -> Watchdog:
        """A watchdog for a call that ends by itself at `deadline`, should it be unable to."""
        return Watchdog(self._link.paramiko, deadline.left_s() + _GRACE_S)

    def ask(self) -> threading.Thread:
        """See Pulse.ask."""
        return self._pulse.ask()

    def kill_remote(self, pid: int) -> None:
        """End the command whose wrapper is `pid`, with all it started; gives up quietly when the link does."""
        with contextlib.suppress(TransportError):
            channel = self._execute(["sh", "-c", _KILLER, "sh", str(pid)], _KILL_S)
            with contextlib.closing(channel), mapped_errors(self.name, "ending a command"):
                channel.shutdown_write()
                select.select([channel.fileno()], [], [], _KILL_S)


class _SshProcess(Process):
    def __init__(
        self,
        transport: SshTransport,
        channel: paramiko.Channel,
        marker: str,
        stdin: Iterable[bytes],
        deadline: Deadline,
    ) -> None:
        self._transport = transport
        self._channel = channel
        self._where = transport.name
        self._stdout = _Unframer(re.compile(marker.encode() + rb" ([0-9]+)\.\n"))
        self._stderr = _Unframer(re.compile(marker.encode() + rb"()\.\n"))
        self._chunks: Iterator[bytes] | None = iter(stdin)
        self._pending = memoryview(b"")
        self._ended_at: float | None = None
        self._asking: threading.Thread | None = None  # whether more is to come, once the command has ended
        self._watchdog = transport.watch(deadline)
        self._file = channel.fileno()

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        look_again_s = self._feed()
        with mapped_errors(self._where, "talking to a command"):
            readable, _, _ = select.select([self._file], [], [], min(wait_s, look_again_s))
            stdout = self._channel.recv(_READ_BYTES) if self._channel.recv_ready() else b""
            stderr = self._channel.recv_stderr(_READ_BYTES) if self._channel.recv_stderr_ready() else b""
        if stdout or stderr:
            self._ended_at = self._asking = None
            return self._stdout.feed(stdout, self._where), self._stderr.feed(stderr, self._where)
        self._look_for_the_end(is_silent=bool(readable), wait_s=wait_s)
        return b"", b""

    def _feed(self) -> float:
        """Send what the window takes; how soon to come back for more, `math.inf` where there is none."""
        while self._chunks is not None:
            if not self._pending:
                # Outside the mapping of errors: an OSError of the source is not the link's.
                chunk = next(self._chunks, None)
                with mapped_errors(self._where, "sending data"):
                    if chunk is None:
                        self._chunks = None
                        self._channel.shutdown_write()
                        return math.inf
                self._pending = memoryview(chunk)
            if self._channel.closed:
                self._chunks = None  # the command ended without reading all; its status says what that means
                return math.inf
            if not self._pending:
                return STDIN_POLL_S
            if not self._channel.send_ready():
                return _WINDOW_POLL_S
            try:
                n_sent = self._channel.send(bytes(self._pending[:_SEND_BYTES]))
            except (paramiko.SSHException, EOFError, OSError):
                n_sent = (
                    0  # the channel closed under us; whether the link did too is found out when looking for the end
                )
            self._pending = self._pending[n_sent:]
            if self._channel.recv_ready() or self._channel.recv_stderr_ready():
                return _WINDOW_POLL_S
        return math.inf

    def _look_for_the_end(self, *, is_silent: bool, wait_s: float) -> None:
        """Set `exit_status` when the command ended and its output is out; raise when the link is what ended."""
        channel = self._channel
        if channel.closed and channel.exit_status == -1:
            # paramiko closes the channels of a dead connection a moment before it calls the connection dead.
            for _ in range(20):
                self._transport.raise_if_lost()
                time.sleep(0.01)
            self._finish(_UNKNOWN_STATUS)
        elif channel.exit_status_ready() and channel.exit_status != -1:
            # `eof_received` is set after the last byte was filed, so looking for bytes once more misses none.
            is_over = channel.closed or channel.eof_received or self._is_silent_to_the_end()
            if is_over and not channel.recv_ready() and not channel.recv_stderr_ready():
                self._finish(channel.exit_status)
        elif is_silent:
            # Output is at its end but the command is not: select would return at once, for ever.
            time.sleep(min(wait_s, 0.01))
            self._transport.raise_if_lost()

    def _is_silent_to_the_end(self) -> bool:
        """Whether an ended command's output stays open without more to come, as behind a child in the background.

        The status may overtake output that a slow link still carries; the server's next answer does not.
        """
        self._ended_at = self._ended_at or time.monotonic()
        if time.monotonic() - self._ended_at < LINGER_S:
            return False
        self._asking = self._asking or self._transport.ask()
        return not self._asking.is_alive()

    def _finish(self, status: int) -> None:
        if self._stdout.match is None:
            said = last_line(self._stdout.noise + b"\n" + self._stderr.noise)
            raise ConnectError(
                self._where,
                f"the login shell does not run commands{': ' + said if said else ''} (status {status})",
                "it must be a POSIX shell for this user",
            )
        self.exit_status = status

    def kill(self) -> None:
        if self._stdout.match is None and not self._channel.closed:
            # The marker with the process id may still be on its way, or stand unread in the buffer.
            deadline = Deadline(1.0)
            with contextlib.suppress(TransportError):
                while self._stdout.match is None and self.exit_status is None and not deadline.is_over:
                    self.pump(0.05)
        if self._stdout.match is not None and not self._channel.closed:
            self._transport.kill_remote(int(self._stdout.match[1]))

    def release(self) -> None:
        self._watchdog.stop()
        link = self._channel.get_transport()
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError), Watchdog(link, _GRACE_S):
            self._channel.close()


class _Unframer:
    """Drops everything before a marker. `match` is the marker once it came, `noise` what came before it."""

    def __init__(self, marker: re.Pattern[bytes]) -> None:
        self.match: re.Match[bytes] | None = None
        self.noise = b""
        self._marker = marker

    def feed(self, data: bytes, where: str) -> bytes:
        if self.match is not None or not data:
            return data
        self.noise += data
        self.match = self._marker.search(self.noise)
        if self.match is None:
            if len(self.noise) > _MAX_NOISE_BYTES:
                raise ConnectError(
                    where, f"its login shell prints more than {_MAX_NOISE_BYTES} bytes by itself", "look at .bashrc"
                )
            return b""
        rest = self.noise[self.match.end() :]
        self.noise = self.noise[: self.match.start()]
        return rest

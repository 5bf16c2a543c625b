"""The board's end of a serial console: runs commands for the workstation and carries their bytes in frames.

`serial_login.program` sends serial_wire.py and this file as one program to the Python of the shell that was reached. It
makes the terminal raw, and everything as it was when it ends: when told so, when it hears nothing for minutes, when a
new connection asks for the line (QUIT_LINE), or when somebody on the console types Ctrl-C three times. What it started
in the foreground then ends too: first its stdin, so that a half-sent file is kept, then the rest. What detached itself
stays.

Messages to the board: `run` N argv (NUL between the words), `in` N bytes, `end` N of stdin, `kill` N, `quit`.
From it: `hello` JSON, `out` and `err` N bytes, `room` N so much stdin was taken (u32), `exit` N status (u8).

Syntax and library of Python 3.6, which may be all that a board has.
"""

# ruff: noqa: UP006, UP035, UP045  this file keeps to Python 3.6

import contextlib
import errno
import json
import os
import pwd
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

if "Wire" not in globals():  # on a board serial_wire.py stands above this file
    from edge_lts_host.transport.serial_wire import Wire, WireError

RUN, STDIN, STDIN_END, KILL, QUIT = b"r", b"i", b"e", b"k", b"q"
HELLO, STDOUT, STDERR, ROOM, EXIT = b"h", b"o", b"x", b"m", b"s"
QUIT_LINE = b"%quit edge-lts%"
PANIC = b"\x03\x03\x03"
N_UNREAD_BYTES = 32768  # output of commands that may wait to be sent
READ_BYTES = 8192
LINGER_S = 1.0
TERM_S = 2.0
SILENT_BUSY_S = 120.0  # a workstation that waits for a command asks every few seconds
SILENT_IDLE_S = 900.0


class Command:
    """One started command. `status` is None until it ended and its output is out."""

    def __init__(self, channel: int, argv: List[bytes], home: str) -> None:
        self.channel = channel
        self.waiting = b""  # stdin that came and the command has not taken
        self.has_all = False
        self.status: Optional[int] = None
        self.quiet_s = 0.0  # since when it has ended, was listened to and said nothing
        self.kill_s = 0.0
        self.complaint = b""
        self.child: Optional[subprocess.Popen[bytes]] = None
        try:
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=home,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as exc:
            self.status = 127 if exc.errno in (errno.ENOENT, errno.ENOTDIR) else 126
            self.complaint = argv[0] + b": " + os.strerror(exc.errno or 0).encode("utf-8", "replace") + b"\n"
            return
        self.outputs: Dict[Any, bytes] = {self.child.stdout: STDOUT, self.child.stderr: STDERR}
        os.set_blocking(self.child.stdin.fileno(), False)  # type: ignore[union-attr]

    def wants_to_feed(self) -> bool:
        return self.child is not None and not self.child.stdin.closed and bool(self.waiting)  # type: ignore[union-attr]

    def feed(self) -> int:
        """Give the command what it takes of its stdin; returns the bytes that are dealt with."""
        assert self.child is not None
        assert self.child.stdin is not None
        stdin, n_taken = self.child.stdin, 0
        if stdin.closed:  # nobody reads it any more
            n_taken, self.waiting = len(self.waiting), b""
            return n_taken
        try:
            while self.waiting:
                n = os.write(stdin.fileno(), self.waiting[:65536])
                self.waiting = self.waiting[n:]
                n_taken += n
        except BlockingIOError:
            return n_taken
        except OSError:
            n_taken, self.waiting = n_taken + len(self.waiting), b""
            stdin.close()
            return n_taken
        if self.has_all:
            stdin.close()
        return n_taken

    def end(self, now: float) -> None:
        """Ask it to end; `look` does the rest."""
        if self.child is not None and not self.kill_s:
            self.kill_s = now + TERM_S
            self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        # The leader is not reaped before the last signal, so the number cannot be anybody else's by then.
        with contextlib.suppress(OSError):
            os.killpg(self.child.pid, number)  # type: ignore[union-attr]

    def look(self, now: float, is_listening: bool = True) -> None:
        """Set `status` when it is over: what nobody listened for, as the line was full, may wait in its pipes."""
        if self.status is not None or self.child is None:
            return
        if self.kill_s:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if now < self.kill_s and os.waitid(os.P_PID, self.child.pid, flags) is None:
                return
            self.signal(signal.SIGKILL)
            self.child.wait()
        elif self.child.poll() is None:
            return
        self.quiet_s = (self.quiet_s or now) if is_listening else 0.0
        if not self.outputs or self.kill_s or (is_listening and now - self.quiet_s >= LINGER_S):
            code = self.child.returncode
            self.status = code if code >= 0 else 128 - code

    def close(self) -> None:
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
                pipe.close()  # type: ignore[union-attr]


class Relay:
    def __init__(self, terminal: int, key: int, bytes_per_s: float) -> None:
        self.terminal = terminal
        self.home = os.path.expanduser("~")
        self.wire = Wire(key, bytes_per_s, False, time.monotonic())
        self.commands: Dict[int, Command] = {}
        self.unwritten = b""
        self.typed = b""
        self.is_over = False

    def run(self) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.wire.send(HELLO, 0, json.dumps({"user": user, "python": sys.version.split()[0]}).encode())
        try:
            while not self.is_over:
                self.step()
        finally:
            self.end_commands()
        end_s = time.monotonic() + 1.0
        while time.monotonic() < end_s and (self.unwritten or self.wire.due_s(time.monotonic()) == 0.0):
            self.write(self.wire.take(time.monotonic()))
            select.select([], [self.terminal], [], 0.1)

    def step(self) -> None:
        now = time.monotonic()
        self.write(self.wire.take(now))
        readers: List[Any] = [self.terminal]
        writers: List[Any] = [self.terminal] if self.unwritten else []
        is_listening = self.wire.n_waiting < N_UNREAD_BYTES
        for command in self.commands.values():
            if command.child is not None and is_listening:
                readers += command.outputs
            if command.wants_to_feed():
                writers.append(command.child.stdin)  # type: ignore[union-attr]
        wait_s = min(0.1 if self.commands else 5.0, self.wire.due_s(now))
        readable, writable, _ = select.select(readers, writers, [], wait_s)
        now = time.monotonic()
        if self.terminal in writable:
            self.write(b"")
        if self.terminal in readable:
            self.read(now)
        for command in list(self.commands.values()):
            self.serve(command, readable, is_listening, now)
        if now - self.wire.heard_s > (SILENT_BUSY_S if self.commands else SILENT_IDLE_S):
            self.is_over = True

    def read(self, now: float) -> None:
        try:
            data = os.read(self.terminal, 65536)
        except BlockingIOError:
            return
        if not data:
            self.is_over = True  # hung up
        self.typed += data
        if QUIT_LINE in self.typed or PANIC in self.typed:
            self.is_over = True
        self.typed = self.typed[-len(QUIT_LINE) :]
        for kind, channel, body in self.wire.feed(data, now):
            self.obey(kind, channel, body, now)

    def write(self, data: bytes) -> None:
        self.unwritten += data
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[os.write(self.terminal, self.unwritten) :]
        except BlockingIOError:
            pass

    def obey(self, kind: bytes, channel: int, body: bytes, now: float) -> None:
        if kind == QUIT:
            self.is_over = True
        elif kind == RUN:
            self.commands[channel] = Command(channel, body.split(b"\0"), self.home)
            self.wire.send(STDERR, channel, self.commands[channel].complaint)
        elif channel in self.commands:
            command = self.commands[channel]
            if kind == STDIN:
                command.waiting += body
            elif kind == STDIN_END:
                command.has_all = True
            elif kind == KILL:
                command.end(now)

    def serve(self, command: Command, readable: List[Any], is_listening: bool, now: float) -> None:
        if command.child is not None:
            if command.waiting or (command.has_all and not command.child.stdin.closed):  # type: ignore[union-attr]
                n_taken = command.feed()
                if n_taken:
                    self.wire.send(ROOM, command.channel, struct.pack(">I", n_taken))
            found = [pipe for pipe in command.outputs if pipe in readable]
            for pipe in found:
                data = os.read(pipe.fileno(), READ_BYTES)
                if data and not command.kill_s:
                    self.wire.send(command.outputs[pipe], command.channel, data)
                elif not data:
                    del command.outputs[pipe]
            if found and not command.kill_s:
                command.quiet_s = 0.0
                return
        command.look(now, is_listening)
        if command.status is not None:
            self.wire.send(EXIT, command.channel, bytes([command.status & 0xFF]))
            command.close()
            del self.commands[command.channel]

    def end_commands(self) -> None:
        """The end of stdin first: `cat` then keeps what it got, to be continued."""
        begun = time.monotonic()
        for command in self.commands.values():
            if command.child is not None:
                command.child.stdin.close()  # type: ignore[union-attr]
                command.waiting = b""
        while True:
            now = time.monotonic()
            for command in self.commands.values():
                if now - begun > 1.0:
                    command.end(now)
                command.look(now)
            if all(command.status is not None for command in self.commands.values()):
                return
            time.sleep(0.02)


def quieten(name: str) -> Optional[str]:
    """Keep kernel messages off the console `name` where that is allowed; returns the level to go back to."""
    try:
        with open("/sys/class/tty/console/active") as file:
            consoles = file.read().split()
        with open("/proc/sys/kernel/printk") as file:
            level = file.read().split()[0]
    except (OSError, IndexError):
        return None
    if name.rpartition("/")[2] not in consoles or level in ("0", "1"):
        return None
    return level if set_level("1") else None


def set_level(level: str) -> bool:
    argv = ([] if os.geteuid() == 0 else ["sudo", "-n"]) + ["dmesg", "-n", level]
    null = subprocess.DEVNULL
    try:
        return subprocess.call(argv, stdin=null, stdout=null, stderr=null, timeout=20) == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def serve_console(key: int, bytes_per_s: float) -> None:
    """The whole life of the relay on the terminal that is stdin; it is raw already."""
    name = os.ttyname(0)
    # A description of our own: the shell's must not become non-blocking.
    terminal = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    level = quieten(name)
    try:
        Relay(terminal, key, bytes_per_s).run()
    except (OSError, WireError):
        pass  # hung up, or spoken to in another language: there is nobody to tell
    finally:
        if level is not None:
            set_level(level)
        os.close(terminal)

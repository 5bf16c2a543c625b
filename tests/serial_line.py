"""Serial consoles for tests: a cable that is slow, loses and changes bytes, and a getty with a shell at its end.

The cable is two pseudo-terminals (or one and a real console) with a thread between them; its faults follow from a seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import termios
import threading
import time
import tty
from types import TracebackType

PASSWORD = "open sesame"
USER_OF_CONSOLE = "tester"
# What agetty and login do on a serial port, as far as anybody on the other end can tell. exec makes the shell the
# leader of the terminal's session, so its end hangs the line up, as on a board.
GETTY = r"""
import os, sys, termios, time
path, user, password, shell = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(fd, number)
plain = termios.tcgetattr(0)
plain[0] |= termios.ICRNL; plain[1] |= termios.OPOST | termios.ONLCR
plain[3] |= termios.ECHO | termios.ICANON | termios.ISIG
termios.tcsetattr(0, termios.TCSANOW, plain)
def say(text):
    os.write(1, text.encode())
def line():
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(0, 1024)
        if not piece: sys.exit()
        data += piece
    return data[:-1].decode("utf-8", "replace")
say("\nDebian GNU/Linux 12 board ttyAMA0\n\n")
while user:
    say("board login: ")
    name = line()
    if not name: continue
    say("Password: ")
    dark = termios.tcgetattr(0); dark[3] &= ~termios.ECHO; termios.tcsetattr(0, termios.TCSAFLUSH, dark)
    typed = line()
    termios.tcsetattr(0, termios.TCSANOW, plain)
    time.sleep(0.2)
    if (name, typed) == (user, password): break
    say("\nLogin incorrect\n")
say("\nLast login: Sun Nov 22 10:00:00 UTC 2026 on ttyAMA0\n")
os.execvp(shell, [shell, "-i"])
"""
KERNEL_MESSAGE = b"[  123.456789] usb 1-1.4: reset high-speed USB device number 3 using xhci_hcd\r\n"


class Cable:
    """Carries bytes between `board` (a descriptor) and `path`, a terminal for the workstation. Change the attributes
    while it runs: `n_per_flip` and `n_per_loss` bytes go well on average between two that do not, `n_per_message`
    between two kernel messages (towards the workstation), 0 for never; `is_cut` swallows everything.
    """

    def __init__(self, board: int, *, bytes_per_s: float = 0.0, seed: int = 1) -> None:
        self.bytes_per_s = bytes_per_s
        self.n_per_flip = self.n_per_loss = self.n_per_message = 0
        self.is_cut = False
        self.n_carried = {"to board": 0, "to host": 0}
        self.n_faults = 0
        self._random = random.Random(seed)
        self._board = board
        self._host, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        for fd in (self._board, self._host):
            os.set_blocking(fd, False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serial cable")
        self._thread.start()

    def __enter__(self) -> Cable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def unplug(self) -> None:
        """The adapter is pulled out of the workstation: the terminal is gone."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for fd in (self._host, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._host = self._slave = -1

    def close(self) -> None:
        if self._host >= 0:
            self.unplug()

    def _run(self) -> None:
        waiting = {self._board: b"", self._host: b""}  # to be written there
        free_s = {self._board: 0.0, self._host: 0.0}  # when the line that way is free again
        while not self._ended.is_set():
            now = time.monotonic()
            readers = [fd for fd in waiting if len(waiting[self._other(fd)]) < 4096]
            writers = [fd for fd, data in waiting.items() if data and free_s[fd] <= now]
            readable, writable, _ = select.select(readers, writers, [], 0.002 if any(waiting.values()) else 0.02)
            for fd in readable:
                try:
                    data = os.read(fd, 4096)
                except OSError:  # nobody has the other end open; or it hangs up between two logins
                    time.sleep(0.005)
                    continue
                if not self.is_cut:
                    waiting[self._other(fd)] += self._spoil(data, is_to_host=fd == self._board)
            for fd in writable:
                n_bytes = len(waiting[fd]) if not self.bytes_per_s else max(1, int(self.bytes_per_s * 0.005))
                with contextlib.suppress(OSError):
                    n_written = os.write(fd, waiting[fd][:n_bytes])
                    waiting[fd] = waiting[fd][n_written:]
                    self.n_carried["to host" if fd == self._host else "to board"] += n_written
                    if self.bytes_per_s:
                        free_s[fd] = max(free_s[fd], now - 0.02) + n_written / self.bytes_per_s

    def _other(self, fd: int) -> int:
        return self._host if fd == self._board else self._board

    def _spoil(self, data: bytes, *, is_to_host: bool) -> bytes:
        if not (self.n_per_flip or self.n_per_loss or self.n_per_message):
            return data
        spoilt = bytearray()
        for byte in data:
            if self._happens(self.n_per_loss):
                continue
            spoilt.append(byte ^ (1 << self._random.randrange(8)) if self._happens(self.n_per_flip) else byte)
            if is_to_host and self._happens(self.n_per_message):
                spoilt += KERNEL_MESSAGE
        return bytes(spoilt)

    def _happens(self, n_per: int) -> bool:
        happens = bool(n_per) and self._random.random() < 1 / n_per
        self.n_faults += happens
        return happens


class ShellConsole:
    """A console of this machine: getty, login and a shell on a pseudo-terminal, again and again, as init does it.

    Without `user` a shell is there at once, logged in. `cable` leads to it.
    """

    def __init__(
        self, *, user: str = "", shell: str = "sh", environ: dict[str, str] | None = None, bytes_per_s: float = 0.0
    ) -> None:
        self._environ = {**os.environ, "PS1": "board$ ", "TERM": "vt220", **(environ or {})}
        self._argv = [user, PASSWORD, shell]
        self._master, self._slave = os.openpty()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.n_logins = 0
        self.cable = Cable(self._master, bytes_per_s=bytes_per_s)
        self._thread = threading.Thread(target=self._init, name="init of a console")
        self._thread.start()

    @property
    def path(self) -> str:
        return self.cable.path

    def __enter__(self) -> ShellConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def power_off(self) -> None:
        """The board is gone in the middle of whatever it did; what it ran ends without a word."""
        self._ended.set()
        self.cable.is_cut = True
        self._thread.join()

    def close(self) -> None:
        self.power_off()
        self.cable.close()
        os.close(self._master)

    def is_logged_in(self) -> bool:
        """Whether a shell (or what it runs) has the terminal in place of the getty."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            return GETTY.encode() not in file.read()

    def _init(self) -> None:
        path = os.ttyname(self._slave)
        while not self._ended.is_set():
            self.n_logins += 1
            # The descriptor that keeps the terminal alive between two logins is dead after a hangup: open it anew.
            os.close(self._slave)
            self._slave = os.open(path, os.O_RDWR | os.O_NOCTTY)
            termios.tcflush(self._slave, termios.TCIOFLUSH)
            argv = [sys.executable, "-IS", "-c", GETTY, path, *self._argv]
            self._process = subprocess.Popen(argv, env=self._environ, stdin=-3, start_new_session=True)
            while self._process.poll() is None and not self._ended.wait(0.02):
                pass
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        os.close(self._slave)

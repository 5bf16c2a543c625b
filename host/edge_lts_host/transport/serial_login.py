"""From whatever a serial console shows to a shell that runs our relay: logging in, and starting serial_relay.py.

Nothing is known of the prompt: a shell is what answers `echo ab''cd` with `abcd`, which the echo of the command is not.
Kernel messages may stand anywhere. A line that somebody left half typed is deleted, never sent. Passwords come from the
terminal, go nowhere but to the port, and are taken out of what is kept of the console's words.

A console that was found logged in is left so; one that we logged in to logs out when the relay ends, whatever ends it.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_lts_host.errors import AuthenticationError, ConnectError, last_line
from edge_lts_host.transport.serial_port import SerialDestination
from edge_lts_host.transport.serial_relay import QUIT_LINE

LOGIN_S = 90.0
START_S = 60.0  # an emulated board needs seconds to start Python
QUIET_S = 0.6  # a prompt is what nothing comes after for so long
_SILENT_S = 2.0
_FIRST_S, _BOOTING_S = 0.3, 3.0  # boot loaders count seconds
_RELAY_ENDS_S = 4.0
_CHUNK_CHARS = 400
_N_TRIES = 3
_N_CHUNK_TRIES = 20
_KEPT_BYTES = 8192
_DELETE_LINE = b"\x15"
_INTERRUPT = b"\x03\x03"  # twice: the loader takes that for the end, too

_KERNEL = re.compile(rb"\[ *[0-9]+\.[0-9]{6}\][^\n]*(?:\n|$)")
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])|\r")
_RELAY = re.compile(rb"%[A-Za-z0-9+/]{20,}={0,2}\n")
_ASKS_USER = re.compile(rb"login: ?$")
_ASKS_PASSWORD = re.compile(rb"[Pp]ass(?:word|wort|code|phrase)[^\n]{0,40}: ?$")
_ASKS_NEW_PASSWORD = re.compile(rb"(?:[Nn]ew|[Cc]urrent|[Rr]etype)[^\n]{0,40}[Pp]assword: ?$")

# What is typed on the console, compressed: it makes the terminal raw and takes the program in numbered, checked pieces.
# It fails, and so leaves a shell behind, unless the program began.
LOADER = """
import os,sys,select,termios,tty
m=(sys.argv[1]+sys.argv[2]).encode();n=int(sys.argv[3]);t=termios.tcgetattr(0);r=1
try:
 tty.setraw(0);s=b"";b=b"";i=0;os.write(1,m+b"0\\n")
 while i<n:
  if not select.select([0],[],[],30)[0]:sys.exit()
  b+=os.read(0,4096)
  if b"\\3\\3" in b:sys.exit()
  *l,b=b.split(b"\\n")
  for x in l:
   w=x.split()
   if len(w)==3 and w[0]==b"%d"%i and w[1]==b"%d"%zlib.crc32(w[2]):s+=w[2];i+=1
   os.write(1,m+b"%d\\n"%i)
 exec(zlib.decompress(base64.b64decode(s)));r=0
 serve_console(int(sys.argv[4]),float(sys.argv[5]))
except:pass
termios.tcsetattr(0,termios.TCSAFLUSH,t)
os._exit(r)
"""

Prompt = Callable[[str, bool], str]


class Bytes(Protocol):
    """What ConsolePort offers, and a test's pretended console too."""

    def read(self, wait_s: float) -> bytes: ...

    def write(self, data: bytes) -> None: ...


class Console:
    """What is said on a port that may hold anything. `clock` is the port's."""

    def __init__(
        self,
        port: Bytes,
        destination: SerialDestination,
        *,
        prompt: Prompt,
        is_interactive: bool,
        login_s: float = LOGIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._destination = destination
        self._where = str(destination)
        self._prompt = prompt
        self._is_interactive = is_interactive
        self._login_s = login_s
        self._clock = clock
        self._heard = b""  # since the last thing that was sent
        self._all = b""  # the last of everything, for messages
        self._secret = b""

    # Talking ----------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self._heard = b""
        self._port.write(data)

    def _listen(self, silent_s: float, quiet_s: float = QUIET_S, most_s: float = 20.0) -> bytes:
        """What came since the last sending, without escapes and kernel messages: up to a pause of `quiet_s`, or
        nothing for `silent_s`; for at most `most_s`."""
        begun = self._clock()
        while True:
            data = self._port.read(quiet_s if self._heard else silent_s)
            self._keep(data)
            if not data or self._clock() - begun > most_s or _RELAY.search(self._heard):
                return self._words()

    def _wait_for(self, pattern: re.Pattern[bytes], timeout_s: float) -> re.Match[bytes] | None:
        end_s = self._clock() + timeout_s
        while not (match := pattern.search(self._heard)):
            left_s = end_s - self._clock()
            if left_s <= 0:
                return None
            self._keep(self._port.read(left_s))
        return match

    def _keep(self, data: bytes) -> None:
        self._heard = (self._heard + data)[-_KEPT_BYTES:]
        self._all = (self._all + data)[-_KEPT_BYTES:]

    def _words(self, text: bytes | None = None) -> bytes:
        text = self._heard if text is None else text
        if self._secret:
            text = text.replace(self._secret, b"")
        return plain(text)

    # Logging in -------------------------------------------------------------------------------------------------------

    def reach_shell(self) -> bool:
        """Get to a shell; whether we had to log in. Raises ConnectError or AuthenticationError."""
        end_s = self._clock() + self._login_s
        halves = (secrets.token_hex(4).encode(), secrets.token_hex(4).encode())
        has_logged_in, n_passwords, last = False, 0, b""
        # A board that is starting is left alone: a boot loader takes any key for an order to stop.
        self._listen(_FIRST_S, _BOOTING_S, self._login_s / 2)
        self._send(_DELETE_LINE + b"\n")
        while self._clock() < end_s:
            words = self._listen(_SILENT_S)
            if b"".join(halves) in words:
                return has_logged_in
            if _ASKS_NEW_PASSWORD.search(words) and has_logged_in:
                raise AuthenticationError(self._where, "the board wants a new password", "log in by hand once")
            if _ASKS_USER.search(words):
                if last == b"password" and n_passwords == _N_TRIES:
                    raise AuthenticationError(self._where, "the board did not accept the password")
                self._send(self._user().encode("ascii") + b"\n")
                has_logged_in, last = True, b"user"
            elif _ASKS_PASSWORD.search(words):
                if last == b"user":
                    begun = self._clock()
                    n_passwords += 1
                    self._secret = self._password()
                    end_s += self._clock() - begun  # typing costs no patience
                    self._send(self._secret + b"\n")
                    last = b"password"
                else:  # somebody typed a name and went away, or our probe was taken for one
                    self._send(b"\n")
                    last = b""
            elif _RELAY.search(words) or (not words and last == b"newline"):
                # The relay of a connection that was lost: it goes on saying what nobody answered, or is silent.
                # Whatever else is there has a line to ignore.
                self._send(QUIT_LINE + b"\n")
                self._listen(_RELAY_ENDS_S)
                last = b"quit"
            elif not words and last not in (b"password", b"probe"):
                self._send(_DELETE_LINE + b"\n")
                last = b"newline"
            else:
                self._send(_DELETE_LINE + b" echo " + halves[0] + b"''" + halves[1] + b"\n")
                last = b"newline" if last == b"probe" else b"probe"
        raise self._no_shell()

    def _user(self) -> str:
        if self._destination.user is None:
            raise AuthenticationError(self._where, "the console asks who logs in", "name the user: --user NAME")
        return self._destination.user

    def _password(self) -> bytes:
        if not self._is_interactive:
            raise AuthenticationError(
                self._where,
                "the console asks for a password, and there is no terminal to ask you on",
                "run on a terminal, or log in on the console by hand and leave it so",
            )
        text = self._prompt(f"Password of {self._user()} on the console {self._destination.port}: ", True)
        # Whatever could act on the terminal line is not part of a password that can be typed there.
        return "".join(c for c in text if c.isprintable()).encode("utf-8")

    def _no_shell(self) -> ConnectError:
        where, speed = self._where, f"{self._destination.baud_hz} baud"
        said = self._words(self._all)
        if not said.strip():
            return ConnectError(
                where,
                f"nothing answers there at {speed}",
                "is the board on, are TX and RX crossed, and is its console there (Raspberry Pi: enable_uart=1)?",
            )
        if is_noise(said):
            return ConnectError(where, f"what comes at {speed} is no text", "is another --baud right?")
        return ConnectError(
            where,
            f"neither a login prompt nor a shell answers; it said last: {last_line(said)}",
            "is a program running there? end it",
        )

    # Starting the relay -----------------------------------------------------------------------------------------------

    def start_relay(self, *, is_to_log_out: bool, key: int) -> bytes:
        """Start the relay in the shell that was reached; returns what it said beyond that. Raises ConnectError."""
        text = base64.b64encode(zlib.compress(program(), 9))
        chunks = [text[at : at + _CHUNK_CHARS] for at in range(0, len(text), _CHUNK_CHARS)]
        for attempt in range(_N_TRIES):
            if attempt:
                self._send(_INTERRUPT + b"\n")
                self._listen(_SILENT_S)
            if self._start_loader(len(chunks), is_to_log_out=is_to_log_out, key=key) and self._send_program(chunks):
                return self._heard
        said = last_line(self._words(self._all))
        raise ConnectError(self._where, f"the board's Python did not start: {said}", "it needs python3, 3.10 or newer")

    def _start_loader(self, n_chunks: int, *, is_to_log_out: bool, key: int) -> bool:
        self._halves = (secrets.token_hex(4).encode(), secrets.token_hex(4).encode())
        loader = base64.b64encode(zlib.compress(LOADER.encode("ascii"), 9)).decode("ascii")
        first, second = (half.decode("ascii") for half in self._halves)
        line = (
            f" python3 -I -c 'import zlib,base64;exec(zlib.decompress(base64.b64decode(\"{loader}\")))' "
            f"{first} {second} {n_chunks} {key} {self._destination.bytes_per_s:g} "
            f"{'&& exit ' if is_to_log_out else ''}|| echo {first}''{second}none"
        )
        self._send(_DELETE_LINE + line.encode("ascii") + b"\n")
        match = self._wait_for(re.compile(b"".join(self._halves) + rb"(0|none)\r?\n"), START_S)
        return match is not None and match[1] == b"0"

    def _send_program(self, chunks: list[bytes]) -> bool:
        """Send the pieces, each until it is said to be there."""
        # Either it says which piece is next, or the relay speaks already, and that answer was lost.
        answer = re.compile(b"".join(self._halves) + rb"([0-9]{1,4})\n|%[A-Za-z0-9+/=]{20,}\n")
        n_there, n_tries = 0, 0
        while n_there < len(chunks):
            n_tries += 1
            if n_tries > _N_CHUNK_TRIES:
                return False
            chunk = chunks[n_there]
            self._send(b"%d %d %s\n" % (n_there, zlib.crc32(chunk), chunk))
            match = self._wait_for(answer, 1.0 + 1.5 * len(chunk) / self._destination.bytes_per_s)
            if match is None:
                continue
            if match[1] is None:
                self._heard = self._heard[match.start() :]
                return True
            self._heard = self._heard[match.end() :]
            if int(match[1]) > n_there:
                n_there, n_tries = min(int(match[1]), len(chunks)), 0
        return True


def plain(text: bytes) -> bytes:
    """`text` without terminal escapes, carriage returns and kernel messages."""
    return _KERNEL.sub(b"", _ESCAPES.sub(b"", text))


def is_noise(text: bytes) -> bool:
    """Whether more than a fifth is no text, as at a wrong baud rate."""
    return sum(byte >= 0x80 or (byte < 0x20 and byte not in b"\t\n\x07\x08") for byte in text) > len(text) // 5


def program() -> bytes:
    """The source that runs on the board."""
    folder = Path(__file__).resolve().parent
    return b"\n".join((folder / f"{name}.py").read_bytes() for name in ("serial_wire", "serial_relay"))

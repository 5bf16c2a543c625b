"""The errors of the workstation, and `printable`, which makes text from a board safe to show.

    EdgeLtsError (edge_lts.errors)
    ├── LockedError                              7  a run is already going on there (re-exported from edge_lts)
    └── HostError                                1  everything only the workstation knows
        ├── UsageError(ValueError)               2  the command line asks for something that makes no sense
        ├── TargetError                          2  a target or inventory file; names file and key
        ├── StoreError                           1  what edge-lts keeps on this machine is damaged or cannot be written
        ├── PreflightError                       5  the board cannot do it: what is missing, what to do about it
        ├── StrictError                          6  --strict: members of a frontier were disturbed while being measured
        ├── CommandError                         1  a command ran on the far side and failed
        ├── AgentProtocolError                   1  the agent said something that is not its protocol
        └── TransportError                       4  the link failed; the command may or may not have run
            ├── ConnectError                     4  no connection was made
            │   ├── AuthenticationError          4  the server does not let us in
            │   └── HostKeyError                 4  the server is not, or may not be, who we think it is
            ├── TransportTimeoutError(TimeoutError)  4  the time given to one call ran out
            ├── ConnectionLostError              4  an established connection broke
            └── TransferError                    4  bytes arrived damaged, or were more than may be held

The number is the exit code (`facts/remote_and_cli.md` §3). Only `main()` catches EdgeLtsError. Messages say what, where
and what to do next, on one line, and never hold a password.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edge_lts.errors import EdgeLtsError
from edge_lts.errors import LockedError as LockedError

_STDERR_TAIL_CHARS = 4000
_COMMAND_CHARS = 100


def printable(text: bytes | str) -> str:
    r"""`text` with everything that could drive a terminal written as an escape (`\x1b`), newlines and tabs kept.

    Control characters, C1 codes, bidirectional overrides and bytes that are not UTF-8 all become backslash escapes.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    text = text.replace("\r\n", "\n")
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def last_line(text: bytes | str) -> str:
    """The last line of `text` that is not blank, printable, at most 300 characters; "" when there is none."""
    lines = [line.strip() for line in printable(text).splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""


class HostError(EdgeLtsError):
    """Base of the errors that only the workstation can meet."""


class UsageError(HostError, ValueError):
    """What was asked for on the command line, or in the user's ssh_config, makes no sense."""

    exit_code = 2


class TargetError(HostError):
    """A target or inventory file is malformed; `key` is the dotted key, or None when it is the file as a whole."""

    exit_code = 2

    def __init__(self, path: object, key: str | None, problem: str) -> None:
        super().__init__(path, key, problem)
        self.path = str(path)
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        where = self.path if self.key is None else f"{self.path}: key {self.key!r}"
        return f"{where}: {self.problem}"


class StoreError(HostError):
    """A run folder or a state file on this machine is damaged, cannot be written, or does not fit what the board
    sends."""


class PreflightError(HostError):
    """The board lacks something; `missing` names it and `remedy` says what to do."""

    exit_code = 5

    def __init__(self, missing: str, remedy: str) -> None:
        super().__init__(missing, remedy)
        self.missing = missing
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.missing}; {self.remedy}" if self.remedy else self.missing


class StrictError(HostError):
    """`--strict` rejects a frontier. It was reported all the same: this says which members and what to do."""

    exit_code = 6


class CommandError(HostError):
    """A command ran on the far side and ended with a status other than 0. The link is fine.

    `stderr_tail` is kept printable; the message shows its last line only. `where` names the transport.
    """

    def __init__(self, argv: Sequence[str], exit_status: int, stderr_tail: bytes | str, where: str = "") -> None:
        tail = printable(stderr_tail)[-_STDERR_TAIL_CHARS:]
        super().__init__(tuple(argv), exit_status, tail, where)
        self.argv = tuple(argv)
        self.exit_status = exit_status
        self.stderr_tail = tail
        self.where = where

    def __str__(self) -> str:
        command = printable(" ".join(shlex.join(self.argv).split()))
        if len(command) > _COMMAND_CHARS:
            command = command[: _COMMAND_CHARS - 1] + "…"
        head = f"{self.where}: " if self.where else ""
        said = last_line(self.stderr_tail)
        return f"{head}command ended with status {self.exit_status}: {said or command}" + (
            f" ({command})" if said else ""
        )


class AgentProtocolError(HostError):
    """What the agent wrote to stdout is not the protocol, or is a version we do not speak."""


class TransportError(HostError):
    """The link to `where` failed: nothing is known about what happened on the far side."""

    exit_code = 4

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__()
        self.args = (where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class ConnectError(TransportError):
    """No connection was made: unknown name, closed port, no route, no answer, no common algorithm."""


class AuthenticationError(ConnectError):
    """The server refused every way to log in that could be tried."""


class HostKeyError(ConnectError):
    """The server's key is unknown, changed or revoked."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The time given to a call ran out. What it started was ended if it could be reached."""

    # OSError picks constructor arguments apart (errno, strerror, filename): keep it away from ours.
    def __new__(cls, where: str, problem: str, remedy: str = "") -> TransportTimeoutError:
        return TimeoutError.__new__(cls)

    def __reduce__(self) -> tuple[type[TransportTimeoutError], tuple[str, str, str]]:
        return type(self), (self.where, self.problem, self.remedy)


class ConnectionLostError(TransportError):
    """An established connection broke in the middle."""


class TransferError(TransportError):
    """A transfer was damaged, or larger than the caller allowed."""

"""The error tree, `printable`, deadlines and streams, without a device."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.errors import EdgeLtsError
from edge_lts_host import errors
from edge_lts_host.transport import base
from edge_lts_host.transport.base import STDERR_TAIL_BYTES, Deadline, Process, Stream
from edge_lts_host.transport.fake import FakeCall, FakeTransport, Pause

EXAMPLES: list[errors.HostError] = [
    errors.UsageError("--budget: 3x is not a time"),
    errors.TargetError("targets/rpi5.toml", "runtime.threads", "must be a positive integer"),
    errors.TargetError("targets/rpi5.toml", None, "is not TOML"),
    errors.PreflightError("pi@board: 32-bit userland", "reflash with a 64-bit system"),
    errors.CommandError(["sh", "-c", "exit 3"], 3, b"noise\nbroken\n", "pi@board"),
    errors.AgentProtocolError("pi@board: not JSON"),
    errors.ConnectError("pi@board", "port 22 is closed", "is its SSH server running?"),
    errors.AuthenticationError("pi@board", "refused"),
    errors.HostKeyError("pi@board", "unknown key"),
    errors.TransportTimeoutError("pi@board", "no end within 5 s"),
    errors.ConnectionLostError("pi@board", "lost"),
    errors.TransferError("pi@board", "damaged", "try again"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_are_one_line_and_survive_copies_and_pickles(error: errors.HostError) -> None:
    assert "\n" not in str(error)
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.HostError, 1),
        (errors.UsageError, 2),
        (errors.TargetError, 2),
        (errors.PreflightError, 5),
        (errors.CommandError, 1),
        (errors.AgentProtocolError, 1),
        (errors.ConnectError, 4),
        (errors.AuthenticationError, 4),
        (errors.HostKeyError, 4),
        (errors.TransportTimeoutError, 4),
        (errors.ConnectionLostError, 4),
        (errors.TransferError, 4),
        (errors.LockedError, 7),
    ],
)
def test_exit_codes_are_the_documented_ones(kind: type[EdgeLtsError], exit_code: int) -> None:
    assert kind.exit_code == exit_code


def test_the_tree_is_drawn_in_full() -> None:
    drawn = inspect.getdoc(errors) or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, EdgeLtsError):
            assert name in drawn


def test_messages_say_where_and_what_next() -> None:
    assert str(EXAMPLES[1]) == "targets/rpi5.toml: key 'runtime.threads': must be a positive integer"
    assert str(EXAMPLES[4]) == "pi@board: command ended with status 3: broken (sh -c 'exit 3')"
    assert str(EXAMPLES[6]) == "pi@board: port 22 is closed; is its SSH server running?"
    assert isinstance(EXAMPLES[9], TimeoutError)


@given(st.one_of(st.text(), st.binary()))
def test_printable_text_cannot_drive_a_terminal(text: str | bytes) -> None:
    shown = errors.printable(text)
    assert all(c in "\n\t" or c.isprintable() for c in shown)
    assert errors.printable(shown) == shown


def test_printable_keeps_what_people_write() -> None:
    assert errors.printable("größer ☃\n\tok") == "größer ☃\n\tok"
    assert errors.printable(b"\x1b]0;title\x07 \x9b2J \xe2\x80\xae") == r"\x1b]0;title\x07 \x9b2J \u202e"
    assert errors.last_line(b"a\nb \n\n") == "b"
    assert errors.last_line(b"\n") == ""


def test_deadline_counts_on_the_clock_it_is_given() -> None:
    now = 100.0
    deadline = Deadline(5, lambda: now)
    assert (deadline.left_s(), deadline.is_over) == (5, False)
    now = 107.0
    assert (deadline.left_s(), deadline.is_over) == (0, True)
    assert Deadline(math.inf).left_s() == math.inf


class _Scripted(Process):
    def __init__(self, *steps: tuple[bytes, bytes]) -> None:
        self.steps = list(steps)
        self.n_killed = 0
        self.n_released = 0

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        if self.steps:
            return self.steps.pop(0)
        self.exit_status = 0
        return b"", b""

    def kill(self) -> None:
        self.n_killed += 1

    def release(self) -> None:
        self.n_released += 1


def _stream(process: Process) -> Stream:
    return Stream(process, ["x"], where="fake", deadline=Deadline(math.inf))


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_lines_do_not_depend_on_where_the_chunks_end(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    lines = list(_stream(_Scripted(*((chunk, b"") for chunk in chunks))).lines())
    expected = whole.split(b"\n")
    assert lines == (expected[:-1] if expected[-1] == b"" else expected)


def test_line_without_end_is_an_error_and_kills() -> None:
    process = _Scripted(*[(b"x" * 100, b"")] * 100)
    with pytest.raises(errors.TransferError, match="more than 1000 bytes"):
        list(_stream(process).lines(max_line_bytes=1000))
    assert (process.n_killed, process.n_released) == (1, 1)


def test_stderr_is_bounded_and_keeps_its_end() -> None:
    stream = _stream(_Scripted(*((b"", bytes([i % 256]) * 100_000) for i in range(100))))
    assert list(stream) == []
    assert len(stream.stderr) == STDERR_TAIL_BYTES
    assert stream.stderr.endswith(b"c" * 100_000)


def test_ended_command_is_released_once_and_not_killed() -> None:
    process = _Scripted((b"out", b""))
    with _stream(process) as stream:
        assert list(stream) == [b"out"]
    stream.close()
    assert (process.n_killed, process.n_released) == (0, 1)


def test_fake_prefers_the_longest_prefix_and_knows_nothing_else() -> None:
    with FakeTransport() as board:
        board.reply(["uname"], stdout=b"Linux\n")
        board.reply(["uname", "-m"], stdout=b"aarch64\n")
        assert board.check(["uname", "-m"], timeout_s=1).stdout == b"aarch64\n"
        assert board.check(["uname", "-a"], timeout_s=1).stdout == b"Linux\n"
        assert board.run(["id"], timeout_s=1).exit_status == 127
        assert board.calls == [("uname", "-m"), ("uname", "-a"), ("id",)]


def test_endless_output_of_a_transfer_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DEFAULT_MAX_OUTPUT_BYTES", 100_000)

    def endless(call: FakeCall) -> Generator[bytes | Pause, None, int]:
        while True:
            yield b"x" * 1000

    with FakeTransport() as board:
        board.on(["store"], endless)
        with pytest.raises(errors.TransferError, match="more than 100000 bytes of output from store"):
            board.send(["store"], [b"data"], Deadline(60))

"""Frames over a line that loses, changes and inserts bytes, in simulated time."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts_host.transport.serial_wire import MAX_MESSAGE_BYTES, START, WINDOW_CHARS, Message, Wire, WireError

RATE = 11520.0
KERNEL = b"[   12.345678] usb 1-1: new high-speed USB device number 2\r\n"
Spoil = Callable[[bytes], bytes]


class Line:
    """Two ends and a line of `RATE` between them; `spoil` is what it does to each writing towards the host or board."""

    def __init__(self, to_board: Spoil = bytes, to_host: Spoil = bytes, step_s: float = 0.004) -> None:
        self.now = 0.0
        self._step_s = step_s
        self.ends = (Wire(7, RATE, True, 0.0), Wire(7, RATE, False, 0.0))
        self._spoil = (to_board, to_host)
        self._free_s = [0.0, 0.0]
        self._flying: list[tuple[float, int, bytes]] = []
        self.n_chars = [0, 0]
        self.heard: tuple[list[Message], list[Message]] = ([], [])

    def step(self) -> None:
        for index, end in enumerate(self.ends):
            for line in end.take(self.now).splitlines(keepends=True):
                self.n_chars[index] += len(line)
                self._free_s[index] = max(self._free_s[index], self.now) + len(line) / RATE
                self._flying.append((self._free_s[index], 1 - index, self._spoil[index](line)))
        self.now += self._step_s
        for item in [item for item in self._flying if item[0] <= self.now]:
            self._flying.remove(item)
            _, there, data = item
            self.heard[there].extend(self.ends[there].feed(data, self.now))

    def until(self, done: Callable[[], bool], limit_s: float) -> None:
        while not done():
            assert self.now < limit_s, f"not done after {limit_s} s"
            self.step()

    def carry(self, data: bytes, limit_s: float) -> None:
        """From host to board, and see that it is what arrives."""
        for at in range(0, len(data), 4096):
            self.ends[0].send(b"i", 3, data[at : at + 4096])
        self.until(lambda: sum(len(body) for _, _, body in self.heard[1]) == len(data), limit_s)
        assert b"".join(body for _, _, body in self.heard[1]) == data


def noise_of(data: bytes) -> Spoil:
    """Mixes `data` into every tenth writing, somewhere in the middle."""
    turn = iter(range(1 << 30))

    def spoil(line: bytes) -> bytes:
        number = next(turn)
        at = number * 97 % len(line)
        return line[:at] + data + line[at:] if number % 10 == 0 else line

    return spoil


def test_messages_arrive_whole_in_order_and_once() -> None:
    line = Line()
    sent = [(b"o", number, bytes([number]) * number * 50) for number in range(40)]
    for message in sent:
        line.ends[1].send(*message)
    line.until(lambda: len(line.heard[0]) == len(sent), 10)
    assert line.heard[0] == sent
    assert line.ends[1].n_resent == 0
    line.until(lambda: line.ends[1].n_waiting == 0, 11)


def test_the_agent_crosses_a_uart_in_thirteen_seconds() -> None:
    line = Line()
    line.carry(random.Random(1).randbytes(106_000), 13.0)
    assert line.n_chars[0] < 1.38 * 106_000


def test_a_ledger_is_compressed() -> None:
    line = Line()
    line.carry(b"".join(b'{"candidate_id": %d, "kind": "evaluation"}\n' % number for number in range(5000)), 6.0)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n_per_loss=st.sampled_from([0, 1000, 5000]),
    n_per_flip=st.sampled_from([0, 1000, 5000]),
)
def test_every_byte_arrives_over_a_bad_line(seed: int, n_per_loss: int, n_per_flip: int) -> None:
    rng = random.Random(seed)

    def spoil(data: bytes) -> bytes:
        kept = bytearray()
        for byte in data:
            if n_per_loss and rng.randrange(n_per_loss) == 0:
                continue
            kept.append(byte ^ 1 << rng.randrange(8) if n_per_flip and rng.randrange(n_per_flip) == 0 else byte)
        return bytes(kept)

    Line(spoil, spoil, step_s=0.02).carry(rng.randbytes(2000), 300.0)


def test_kernel_messages_cost_the_line_that_they_land_in() -> None:
    line = Line(to_board=noise_of(KERNEL))
    line.carry(random.Random(2).randbytes(20_000), 10.0)
    assert 0 < line.ends[0].n_resent < 40
    assert b"usb 1-1" in line.ends[1].noise


def test_a_kernel_message_before_a_frame_on_its_line_costs_nothing() -> None:
    line = Line(to_board=lambda data: b"[   12.345678] no end of line" + data)
    line.carry(b"x" * 10_000, 5.0)
    assert line.ends[0].n_resent == 0


def test_a_line_that_is_silent_for_a_while_goes_on_where_it_was() -> None:
    is_cut = [True]
    line = Line(to_board=lambda data: b"" if is_cut[0] else data)
    line.ends[0].send(b"r", 1, b"ls")
    line.until(lambda: line.now > 20, 21)
    assert line.n_chars[0] < 2000, "it must not shout into a dead line"
    is_cut[0] = False
    line.until(lambda: bool(line.heard[1]), 30)
    assert line.heard[1] == [(b"r", 1, b"ls")]


def test_an_answer_can_be_asked_for() -> None:
    line = Line()
    line.until(lambda: line.now > 10, 11)
    assert line.ends[0].heard_s == 0.0
    line.ends[0].ask()
    line.until(lambda: line.ends[0].heard_s > 10, 12)


def test_no_more_is_under_way_than_a_kernel_keeps() -> None:
    wire = Wire(7, RATE, True, 0.0)
    wire.send(b"i", 1, random.Random(3).randbytes(50_000))
    assert len(wire.take(0.0)) <= WINDOW_CHARS
    assert wire.take(0.1) == b""


@pytest.mark.parametrize("key", [8, 7])
def test_echoes_and_other_connections_are_not_heard(key: int) -> None:
    line = Wire(key, RATE, True, 0.0)
    line.send(b"q", 0)
    other = Wire(7, RATE, key == 7, 0.0)
    assert other.feed(line.take(0.0), 1.0) == []
    assert other.heard_s == 0.0
    assert other.n_damaged == 1


def frame(payload: bytes, number: int = 0) -> bytes:
    """A frame with a right checksum, towards the host."""
    head = struct.pack(">BIIB", 1, number, 0, 0)
    crc = struct.pack(">I", zlib.crc32(head + payload, 7))
    return START + base64.b64encode(head + crc + payload) + b"\n"


@pytest.mark.parametrize(
    "payload",
    [
        b"not deflated at all",
        zlib.compress(b"an end"),
        zlib.compress(struct.pack(">cHI", b"o", 1, MAX_MESSAGE_BYTES + 1)),
        zlib.compress(struct.pack(">cHI", b"o", 1, 0xFFFFFFFF) + bytes(1 << 20)),
    ],
)
def test_a_peer_that_speaks_another_language_is_an_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        Wire(7, RATE, True, 0.0).feed(frame(payload), 0.0)


def test_what_is_kept_of_noise_and_of_endless_lines_is_bounded() -> None:
    wire = Wire(7, RATE, True, 0.0)
    for _ in range(100):
        wire.feed(b"\xff" * 10_000, 0.0)
        wire.feed(b"text\n" * 1000, 0.0)
    assert len(wire.noise) <= 4096
    assert len(wire._line) <= 4096


@given(data=st.binary(max_size=3000), number=st.integers(0, 1 << 32 - 1))
def test_any_bytes_are_noise_or_the_declared_error(data: bytes, number: int) -> None:
    wire = Wire(7, RATE, True, 0.0)
    try:
        wire.feed(data, 0.0)
        wire.feed(frame(data[:576], number % 12), 0.0)
        wire.take(0.0)
    except WireError as exc:
        assert str(exc)

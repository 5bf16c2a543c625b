"""A reliable stream of messages over a line that loses, changes and inserts bytes: the same code on both ends.

Works on bytes and times only: whoever owns the port feeds what arrived and writes what `take` hands out. A frame is one
line, `%` and base64 of

    kind u8 | number u32 | next u32 | beyond u8 | CRC-32 u32 | at most 1000 bytes

`number` counts frames with data, `next` is the first one that the sender of the frame still lacks, bit i of `beyond`
says that it has `next` + 1 + i. The CRC begins with the key of the connection and direction, so that an echo, or what a
former connection left in a buffer, is no frame. A kernel message that lands in a line costs that line, which is sent
again: a line keeps the order of what it carries, so a frame that was overtaken is lost, and no timer has to run out.
Inside are messages (kind, channel, body), compressed as one stream.

Also sent to boards, whose Python may be old: syntax and library of 3.6, nothing but the standard library.
"""

# ruff: noqa: UP006, UP035  this file keeps to Python 3.6

import base64
import binascii
import struct
import zlib
from typing import Dict, List, Tuple

START = b"%"
WINDOW_FRAMES = 6
# What may be under way: a kernel keeps 4096 bytes that nobody has read yet, and drops what comes then.
WINDOW_CHARS = 4000
MAX_DATA_BYTES = 576
FIRST_DATA_BYTES, MIN_DATA_BYTES = 288, 72  # a bad line gets short frames, a good one soon the longest
MAX_MESSAGE_BYTES = 1 << 18
_MAX_LINE_CHARS = 2048
_NOISE_BYTES = 4096
_HEAD = struct.Struct(">BIIB")
_CRC = struct.Struct(">I")
_MESSAGE = struct.Struct(">cHI")
_HAS_DATA, _WANTS_ANSWER = 1, 2
_LEAST_S, _MOST_S = 0.5, 8.0

Message = Tuple[bytes, int, bytes]


class WireError(ValueError):
    """What arrived has a right checksum and makes no sense: the other end is not what it should be."""


class _Sent:
    """A frame under way: its bytes, when and as which transmission it was sent last (0: it is due), how often it was
    sent, and how often because nothing was heard of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at_s = 0.0
        self.turn = 0
        self.n_times = 0
        self.n_late = 0

    @property
    def patience(self) -> int:
        return min(4, 1 << self.n_late)


class Wire:
    """One end of the line. `bytes_per_s` is its speed, `key` a number that both ends have; the host has `is_host`.

    `n_damaged` counts lines that began like a frame and were none, `n_resent` frames sent again. `noise` is the last of
    what arrived beside the frames; `heard_s` when the last frame came. Times are of any one clock.
    """

    def __init__(self, key: int, bytes_per_s: float, is_host: bool, now: float) -> None:
        self._key_out = key ^ (0xFFFFFFFF if is_host else 0)
        self._key_in = self._key_out ^ 0xFFFFFFFF
        self._bytes_per_s = bytes_per_s
        self.heard_s = now
        self.n_damaged = 0
        self.n_resent = 0
        self.noise = b""
        self._line = b""
        self._deflate = zlib.compressobj(6)
        self._inflate = zlib.decompressobj()
        self._outbox = bytearray()
        self._under_way: Dict[int, _Sent] = {}
        self._n_cut = 0
        self._turn = 0
        self._data_bytes = FIRST_DATA_BYTES
        self._next = 0
        self._early: Dict[int, bytes] = {}
        self._message = bytearray()
        self._owes_answer = False
        self._asks = False

    @property
    def n_waiting(self) -> int:
        """Bytes that were given to `send` and have not arrived, as compressed."""
        return len(self._outbox) + sum(len(sent.data) for sent in self._under_way.values())

    def send(self, kind: bytes, channel: int, body: bytes = b"") -> None:
        """Queue one message; `body` is at most MAX_MESSAGE_BYTES long."""
        self._outbox += self._deflate.compress(_MESSAGE.pack(kind, channel, len(body)) + body)
        self._outbox += self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def ask(self) -> None:
        """Let the next `take` ask the other end to say that it is there."""
        self._asks = True

    # Sending ----------------------------------------------------------------------------------------------------------

    def take(self, now: float) -> bytes:
        """What is to be written now: frames that are due, else an answer that is owed, else nothing."""
        late_s = self._late_s()
        lines = []
        for number, sent in sorted(self._under_way.items()):
            if sent.turn == 0:
                lines.append(self._transmit(number, sent, now))
            elif now >= sent.at_s + late_s * sent.patience:
                sent.n_late += 1
                self._data_bytes = max(MIN_DATA_BYTES, self._data_bytes // 2)
                lines.append(self._transmit(number, sent, now))
        n_chars = sum(len(sent.data) * 4 // 3 + 24 for sent in self._under_way.values())
        while self._outbox and len(self._under_way) < WINDOW_FRAMES:
            data = bytes(self._outbox[: self._data_bytes])
            n_chars += len(data) * 4 // 3 + 24
            # Frames under way may span no more numbers than `beyond` can tell of.
            if self._under_way and (n_chars > WINDOW_CHARS or self._n_cut - min(self._under_way) > 8):
                break
            del self._outbox[: len(data)]
            self._under_way[self._n_cut] = _Sent(data)
            lines.append(self._transmit(self._n_cut, self._under_way[self._n_cut], now))
            self._n_cut += 1
        if not lines and (self._owes_answer or self._asks):
            lines.append(self._frame(0, 0, b""))
        if lines:
            self._owes_answer = self._asks = False
        return b"".join(lines)

    def due_s(self, now: float) -> float:
        """Seconds until `take` has something to say by itself; a long time if that is not to be expected."""
        if self._owes_answer or self._asks or any(sent.turn == 0 for sent in self._under_way.values()):
            return 0.0
        if self._outbox and not self._under_way:
            return 0.0
        late_s = self._late_s()
        times = [sent.at_s + late_s * sent.patience for sent in self._under_way.values()]
        return max(0.0, min(times) - now) if times else 3600.0

    def _late_s(self) -> float:
        """After how long a frame that nobody answered is sent again: what is under way has to cross the line first."""
        n_chars = sum(len(sent.data) * 4 // 3 + 24 for sent in self._under_way.values())
        return min(_MOST_S, _LEAST_S + 1.5 * n_chars / self._bytes_per_s)

    def _transmit(self, number: int, sent: _Sent, now: float) -> bytes:
        self._turn += 1
        self.n_resent += sent.n_times > 0
        sent.turn, sent.at_s = self._turn, now
        sent.n_times += 1
        return self._frame(_HAS_DATA, number, sent.data)

    def _frame(self, kind: int, number: int, data: bytes) -> bytes:
        beyond = sum(1 << i for i in range(8) if self._next + 1 + i in self._early)
        kind |= _WANTS_ANSWER if self._asks else 0
        head = _HEAD.pack(kind, number, self._next, beyond)
        crc = _CRC.pack(zlib.crc32(head + data, self._key_out) & 0xFFFFFFFF)
        return START + base64.b64encode(head + crc + data) + b"\n"

    # Receiving --------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> List[Message]:
        """The messages that are whole now. Raises WireError when the other end speaks another language."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _MAX_LINE_CHARS:
            self._hear_noise(self._line[:-_MAX_LINE_CHARS])
            self._line = self._line[-_MAX_LINE_CHARS:]
        messages: List[Message] = []
        for line in lines:
            before, found, text = line.rpartition(START)
            frame = _open(text.rstrip(b"\r"), self._key_in) if found else None
            self._hear_noise(line + b"\n" if frame is None else before)
            if frame is None:
                self.n_damaged += bool(found)
                continue
            self.heard_s = now
            for piece in self._accept(*frame):
                messages += self._unpack(piece)
        return messages

    def _hear_noise(self, text: bytes) -> None:
        self.noise = (self.noise + text)[-_NOISE_BYTES:]

    def _accept(self, kind: int, number: int, following: int, beyond: int, data: bytes) -> List[bytes]:
        """What the other end has is forgotten here; returns the data that is next, in order."""
        has = 1 | beyond << 2  # bit 0: all before `following`, bit 1: `following` itself, which it lacks
        arrived = [mine for mine in self._under_way if has >> max(0, mine - following + 1) & 1]
        if arrived:
            newest = max(self._under_way.pop(mine).turn for mine in arrived)
            overtaken = [sent for sent in self._under_way.values() if 0 < sent.turn < newest]
            for sent in overtaken:
                sent.turn = 0
            if overtaken:
                self._data_bytes = max(MIN_DATA_BYTES, self._data_bytes // 2)
            else:
                self._data_bytes = min(MAX_DATA_BYTES, self._data_bytes + 24)
        if kind & _WANTS_ANSWER:
            self._owes_answer = True
        if not kind & _HAS_DATA:
            return []
        self._owes_answer = True
        if self._next <= number <= self._next + 8:
            self._early[number] = data
        pieces = []
        while self._next in self._early:
            pieces.append(self._early.pop(self._next))
            self._next += 1
        return pieces

    def _unpack(self, data: bytes) -> List[Message]:
        messages = []
        while data:
            try:
                self._message += self._inflate.decompress(data, MAX_MESSAGE_BYTES)
            except zlib.error as exc:
                raise WireError("the stream cannot be decompressed") from exc
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                raise WireError("the stream ends before the connection")
            while len(self._message) >= _MESSAGE.size:
                kind, channel, n_bytes = _MESSAGE.unpack_from(self._message)
                if n_bytes > MAX_MESSAGE_BYTES:
                    raise WireError("a message of {} bytes".format(n_bytes))  # noqa: UP032  as in the rest of the file
                end = _MESSAGE.size + n_bytes
                if len(self._message) < end:
                    break
                messages.append((kind, channel, bytes(self._message[_MESSAGE.size : end])))
                del self._message[:end]
        return messages


def _open(text: bytes, key: int) -> "Tuple[int, int, int, int, bytes] | None":
    """The fields of a frame's line; None unless its checksum is right."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    n_head = _HEAD.size + _CRC.size
    if len(raw) < n_head:
        return None
    head, crc, data = raw[: _HEAD.size], raw[_HEAD.size : n_head], raw[n_head:]
    if zlib.crc32(head + data, key) & 0xFFFFFFFF != _CRC.unpack(crc)[0]:
        return None
    kind, number, following, beyond = _HEAD.unpack(head)
    return kind, number, following, beyond, data

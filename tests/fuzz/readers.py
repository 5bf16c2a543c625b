"""The readers that are fuzzed, each as a function of bytes: it returns, raises what its target declares, or is wrong.

Files are in memory (`Bytes`): a real one would cost more than reading it. Assertions say what must hold of an input
that was read.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import itertools
import json
import math
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError
from edge_lts.ledger import LedgerReader
from edge_lts.records import DeviceInfo, RunSpec
from edge_lts.runfolder import read_json, to_bytes
from edge_lts.status import check_status
from edge_lts.training import Job, Trained
from edge_lts_host import follow, hosts, inventory, onboard, spaces, targets
from edge_lts_host.agent_protocol import AgentReader
from edge_lts_host.arch_files import parse_architecture
from edge_lts_host.board_facts import BoardFacts, check_memory, check_root, check_userland
from edge_lts_host.calibration.training import describe
from edge_lts_host.errors import ConnectError
from edge_lts_host.meters import energy, tc66c
from edge_lts_host.meters.port import SerialMeter
from edge_lts_host.report import compare, pages, render
from edge_lts_host.store import RunFolder, check_pulled
from edge_lts_host.transport import serial_wire
from edge_lts_host.transport.host_keys import read_known_hosts
from edge_lts_host.transport.serial_login import Console
from edge_lts_host.transport.serial_port import SerialDestination
from edge_lts_host.transport.ssh_config import SshDestination

KEY = 4711  # of the serial line
REPORTED = ("spec.json", "device.json", "status.json", "ledger.jsonl", "events.jsonl")
BETWEEN = b"\x1e"  # the files of a run in one input
RUN_ID = "20261122-101530-rpi5-ab12"


class Bytes:
    """A file in memory, with as much of Path as readers ask for: a real one would cost more than reading it."""

    name, parent, stem = "input", Path("."), "input"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self._data)

    def read_bytes(self) -> bytes:
        return self._data

    def is_file(self) -> bool:
        return True

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self._data))

    def __str__(self) -> str:
        return "input"


def as_path(data: bytes) -> Any:
    return Bytes(data)


def feed_ledger(data: bytes) -> None:
    reader = LedgerReader(as_path(data))
    for _ in reader.outcomes():
        pass
    assert reader.valid_bytes + reader.dropped_tail == len(data)


class PretendedRun(RunFolder):
    """A run folder in memory: one file for all names, or `files` by name."""

    def __init__(self, data: bytes = b"", files: dict[str, bytes] | None = None) -> None:
        super().__init__(Path("/runs") / RUN_ID)
        self.data, self.files = data, files

    def __truediv__(self, name: str) -> Any:
        if self.files is None:
            return Bytes(self.data)
        return Bytes(self.files[name]) if name in self.files else self.path / name


_REPORTS = ("table", "md", "csv", "json", "jsonl")


def feed_report(data: bytes) -> None:
    """What `report`, `watch` and `logs` make of a run as it was pulled; the last byte chooses the format."""
    run = PretendedRun(files=dict(zip(REPORTED, data.split(BETWEEN), strict=False)))
    shown = follow.latest_measurement(run) + follow.progress_line(run.status())
    shown += "".join(map(follow.event_line, (run.files or {}).get("events.jsonl", b"").split(b"\n")))
    assert _is_safe(shown)
    output = _REPORTS[data[-1] % len(_REPORTS)] if data else "table"
    assert _is_safe(pages.report(compare.build_report([run]), output))


def feed_run_files(data: bytes) -> None:
    """As spec.json, device.json or status.json; the first byte chooses."""
    kind, run = data[:1], PretendedRun(data[1:])
    if kind == b"d":
        run.read_device()
    elif kind == b"s":
        assert render.text(follow.progress_line(run.status()))
        with contextlib.suppress(OSError, ValueError, EdgeLtsError):
            check_status(run.read_status())
    else:
        spec = run.read_spec()
        assert RunSpec.from_json(json.loads(to_bytes(spec.to_json()))) == spec


def feed_agent(data: bytes) -> None:
    """What `Session` does with an agent's stdout: events, files announced and sent, progress shown."""
    size = data[0] + 1 if data else 1
    chunks = [data[start : start + size] for start in range(1, len(data), size)] if size < 200 else [data[1:]]
    reader = AgentReader(chunks, "pi")
    for event in reader:
        if event["event"] == "file":
            name, offset, n_bytes = event.get("name"), event.get("offset"), event.get("size")
            if isinstance(name, str) and isinstance(offset, int) and isinstance(n_bytes, int) and n_bytes >= 0:
                check_pulled(name, offset + n_bytes)
                for _ in reader.read(n_bytes):
                    pass
        elif event["event"] == "status":
            assert follow.progress_line(event).isprintable()
        assert _is_safe(event)


def _is_safe(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_safe(key) and _is_safe(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_safe, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or all(c in "\n\t" or c.isprintable() for c in value)


def feed_probe(data: bytes) -> None:
    facts = BoardFacts.from_json("pi", onboard.read_answer("pi", data))
    check_userland(facts)
    check_memory(facts, 700_000_000)
    check_root(facts, 1_500_000_000)
    targets.most_specific(_targets(), DeviceInfo.from_json(facts.device_json()))
    assert isinstance(facts.python_tag + facts.wheel_machine + facts.root_path, str)


@functools.cache
def _targets() -> dict[str, targets.Target]:
    return targets.load_targets(environ={"HOME": "/nonexistent"})


def feed_architecture(data: bytes) -> None:
    arch = parse_architecture(data, "input")
    assert arch.total_params >= arch.decoder_params > 0
    assert Architecture.from_json(arch.to_json()).arch_id == arch.arch_id


def feed_training(data: bytes) -> None:
    try:
        found = read_json(as_path(data))
    except ValueError:
        return
    if "models" in found:
        job = Job.from_json(found)
        assert Job.from_json(job.to_json()) == job
    else:
        one = Trained.from_json(found)
        assert describe(one)
        json.dumps(one.to_json(), allow_nan=False)


def feed_target(data: bytes) -> None:
    targets._parse(as_path(data))


def feed_space(data: bytes) -> None:
    spaces.read_space(as_path(data))


def feed_inventory(data: bytes) -> None:
    inventory.load_inventory(as_path(data))


def feed_known_hosts(data: bytes) -> None:
    for line in read_known_hosts([as_path(data)]):
        line.is_about("[127.0.0.1]:2222")
        assert line.key.fingerprint.startswith("SHA256:")
        assert line.key.short_type == line.key.short_type.upper()


def feed_destination(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    hosts.check_destination(text)
    if not text.startswith("serial:"):
        assert SshDestination.parse(text).host
        hosts.parse_destination(text)


def feed_remembered(data: bytes) -> None:
    """hosts.json: ours, but on a disk that may be damaged."""
    loaded = json.loads(data)
    hosts.HostEntry.from_json(loaded)


def feed_serial(data: bytes) -> None:
    """A workstation's end of a serial line with a command under way.

    After an even byte bytes as they come, after an odd one the insides of frames (length, head and data), to which the
    right checksum is added: else nothing would get beyond that.
    """
    wire = serial_wire.Wire(KEY, 11520.0, True, 0.0)
    wire.send(b"r", 1, b"sh\0-c\0true")
    wire.take(0.0)
    pieces = [data[start : start + 300] for start in range(1, len(data), 300)]
    if data[:1] and data[0] & 1:
        pieces, at = [], 1
        while at + 2 <= len(data):
            size = int.from_bytes(data[at : at + 2], "big")
            inside = data[at + 2 : at + 2 + size]
            head, rest = inside[: serial_wire._HEAD.size], inside[serial_wire._HEAD.size :]
            crc = struct.pack(">I", zlib.crc32(head + rest, KEY) & 0xFFFFFFFF)
            pieces.append(b"%" + base64.b64encode(head + crc + rest) + b"\n")
            at += 2 + size
    for number, piece in enumerate(pieces, 1):
        for kind, channel, body in wire.feed(piece, float(number)):
            assert len(kind) == 1
            assert 0 <= channel < 1 << 16
            assert len(body) <= serial_wire.MAX_MESSAGE_BYTES
        wire.take(float(number))
        assert wire.due_s(float(number)) >= 0
    assert len(wire.noise) <= 4096


class PretendedConsole:
    """Says a part of `data` after each pause, whatever is written to it; `abcd` stands for what an echo would say."""

    def __init__(self, data: bytes) -> None:
        self.parts = data.split(BETWEEN)
        self.echo = b"abcd"
        self.now_s = 0.0
        self.has_said = False

    def read(self, wait_s: float) -> bytes:
        self.has_said = not self.has_said and bool(self.parts)
        if self.has_said:
            return self.parts.pop(0).replace(b"abcd", self.echo)
        self.now_s += wait_s
        return b""

    def write(self, data: bytes) -> None:
        self.now_s += 0.1
        if (asked := re.search(rb"echo (\w+)''(\w+)", data)) is not None:
            self.echo = asked[1] + asked[2]


def feed_console(data: bytes) -> None:
    """Logging in on a console that says `data`, and what is made of its words in an error."""
    port = PretendedConsole(data)
    console = Console(
        port,
        SerialDestination(port="/dev/ttyUSB0", user="pi"),
        prompt=lambda text, is_secret: "hunter2",
        is_interactive=True,
        login_s=20.0,
        clock=lambda: port.now_s,
    )
    try:
        console.reach_shell()
    except ConnectError as exc:
        assert _is_safe(str(exc))
        raise


class PretendedPort:
    """Gives `data` in pieces of 50 bytes, then nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def drop_input(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def read_some(self, end_s: float) -> bytes:
        piece, self.data = self.data[:150], self.data[150:]
        return piece


def feed_meter(kind: type[SerialMeter], data: bytes) -> None:
    meter = kind.__new__(kind)
    meter.where, meter.kind, meter.model = "meter", "meter", ""
    meter.clock = functools.partial(next, itertools.count(0.0, 0.05))
    meter.n_attempts = 1
    port: Any = PretendedPort(data)
    meter.port = port
    reading = meter.read()
    assert math.isfinite(reading.power_w)
    assert reading.power_w >= 0
    assert meter.model


def feed_meter_log(data: bytes) -> None:
    for recording in energy.read_log(as_path(data)):
        assert all(math.isfinite(number) for reading in recording.readings for number in reading)


def feed_tc66c(data: bytes) -> None:
    """Encrypted on the way in, with the sums made right when the last byte is even: else nothing would pass them."""
    plain = bytearray(data[:-1])
    if data and data[-1] % 2 == 0:
        for start in range(0, len(plain) - 63, 64):
            struct.pack_into("<I", plain, start + 60, tc66c.crc16_modbus(bytes(plain[start : start + 60])))
    n_whole = len(plain) - len(plain) % 16
    feed_meter(tc66c.Tc66c, tc66c.make_cipher().encryptor().update(bytes(plain[:n_whole])) + bytes(plain[n_whole:]))

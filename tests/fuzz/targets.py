"""What is fuzzed: every reader of bytes that a board, a meter or a file may hold.

`feed` may return or raise one of `declared`; anything else is a defect. `mutated` makes inputs out of sound ones. Used
by tests/unit/host/test_fuzz.py (some hundred inputs each) and benchmarks/bench_fuzz.py (millions).
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from edge_lts.errors import ArchitectureError, EdgeLtsError, LedgerError, SpaceError, SpecError
from edge_lts_host.errors import AgentProtocolError, ConnectError, PreflightError, TargetError, UsageError
from edge_lts_host.meters import um, yzx
from edge_lts_host.meters.base import MeterError
from edge_lts_host.transport import serial_wire
from tests.fuzz import readers, seeds
from tests.fuzz.seeds import JSON_VALUES, TOML_VALUES

Feed = Callable[[bytes], None]
Inputs = tuple[bytes, ...]
Errors = tuple[type[Exception], ...]
_SCALAR = re.compile(rb'-?\d[\w.+-]*|"(?:[^"\\]|\\.)*"|true|false|null|inf|nan')


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader: valid inputs, what may be raised, and words that its grammar knows."""

    name: str
    seeds: Inputs
    feed: Feed
    declared: Errors
    words: Inputs


_SCALAR = re.compile(rb'-?\d[\w.+-]*|"(?:[^"\\]|\\.)*"|true|false|null|inf|nan')


def mutated(rng: random.Random, target: Target) -> bytes:
    """One of the target's seeds, damaged in one to four places."""
    chance = rng.random
    sound, words = target.seeds, target.words
    data = bytearray(sound[int(chance() * len(sound))])
    for _ in range(1 + int(chance() * chance() * 5)):
        if not data:
            data += sound[0][:1] or b"x"
        size = len(data)
        kind, at = chance() * 10, int(chance() * size)
        if kind < 4 and words:
            word = words[int(chance() * len(words))]
            if kind < 3:
                span = _SCALAR.search(data, at)
                if span is not None:
                    data[span.start() : span.end()] = word
                    continue
            data[at:at] = word
        elif kind < 5.5:
            data[at] ^= 1 << int(chance() * 8)
        elif kind < 6.5:
            data[at] = int(chance() * 256)
        elif kind < 7.2:
            del data[at : at + 1 + int(chance() * chance() * size)]
        elif kind < 7.9:
            data[at:at] = data[int(chance() * size) :][: int(chance() * 40)]
        elif kind < 8.6:
            del data[at:]
        elif kind < 9.3:
            other = sound[int(chance() * len(sound))]
            data[at:] = other[int(chance() * len(other)) :]
        else:
            data[at:at] = bytes([int(chance() * 256)]) * (1 + int(chance() * 8))
    return bytes(data)


_JSON = (*JSON_VALUES, b'"schema_version"', b'"kind"', b"\n", b",", b"{}\n")
_PROTOCOL = (*_JSON, b'{"event":"', b"\r\n", b"\0", b"\xff", b"\x1b[2J", b"edge-lts-answer ")
_TOML = (*TOML_VALUES, b"\n[a]\n", b" = ", b"\n", b'password = "x"\n', b"a.b = 1\n", b"[[x]]\n", b"a." * 30)
_SERIAL = (b"%", b"\n", b"\r\n", b"login: ", b"\0", b"\xff\xff\xff\xff", b"\0\0\xff\xff", b"\3\3\3", b"=")
_KNOWN = (b"|1|", b"|", b"@cert-authority ", b"!", b"*", b"[", b",", b"\n", b" ", b"\xff", b"=")
_NAMES = (b"-oProxyCommand=x", b"@", b":", b"[", b"]", b"%", b"\n", b"\0", b"99999", "²".encode(), b" ", b"`")
_FRAMES = (b"\xab", b"\xff\xf1", b"\x09\x63", b"\x0d\x4c", b"pac1", b"pac2", b"\xff" * 4, b"\x80\0\0\0")


@functools.cache
def all_targets() -> dict[str, Target]:
    """Every target by name: seeds, feed, declared errors, words."""

    def target(name: str, inputs: Inputs, feed: Feed, declared: Errors, words: Inputs) -> Target:
        return Target(name=name, seeds=inputs, feed=feed, declared=declared, words=words)

    um_feed, yzx_feed = (functools.partial(readers.feed_meter, kind) for kind in (um.UmMeter, yzx.Yzx))
    refusals = (AgentProtocolError, PreflightError)
    broken = (UsageError, ValueError, RecursionError)  # load_hosts makes one error of them
    found = (
        target("ledger", seeds.ledgers(), readers.feed_ledger, (LedgerError,), _JSON),
        target("run files", seeds.run_files(), readers.feed_run_files, (LedgerError, SpecError), _JSON),
        target("report", seeds.runs(), readers.feed_report, (EdgeLtsError,), (*_JSON, b'"quality"', readers.BETWEEN)),
        target("agent protocol", seeds.agents(), readers.feed_agent, (EdgeLtsError,), _PROTOCOL),
        target("serial", seeds.serial_lines(), readers.feed_serial, (serial_wire.WireError,), _SERIAL),
        target("serial login", seeds.consoles(), readers.feed_console, (ConnectError,), (*_SERIAL, readers.BETWEEN)),
        target("probe's answer", seeds.answers(), readers.feed_probe, refusals, _PROTOCOL),
        target("architecture file", seeds.architectures(), readers.feed_architecture, (ArchitectureError,), _JSON),
        target("training files", seeds.trainings(), readers.feed_training, (SpecError, ArchitectureError), _JSON),
        target("target file", seeds.target_files(), readers.feed_target, (TargetError,), _TOML),
        target("space file", seeds.space_files(), readers.feed_space, (SpaceError,), _TOML),
        target("inventory", (seeds.INVENTORY.encode(),), readers.feed_inventory, (TargetError,), _TOML),
        target("hosts.json", seeds.host_entries(), readers.feed_remembered, broken, _JSON),
        target("meter log", seeds.meter_logs(), readers.feed_meter_log, (), _JSON),
        target("known_hosts", seeds.known_hosts(), readers.feed_known_hosts, (), _KNOWN),
        target("destination", seeds.DESTINATIONS, readers.feed_destination, (UsageError,), _NAMES),
        target("meter um", seeds.meter_frames("um"), um_feed, (MeterError,), _FRAMES),
        target("meter tc66c", seeds.meter_frames("tc66c"), readers.feed_tc66c, (MeterError,), _FRAMES),
        target("meter yzx", seeds.meter_frames("yzx"), yzx_feed, (MeterError,), _FRAMES),
    )
    return {one.name: one for one in found}


def judge(target: Target, data: bytes) -> Exception | None:
    """None for an input that was read; the declared error otherwise. Whatever else is raised goes through."""
    try:
        target.feed(data)
    except target.declared as exc:
        return exc
    return None

"""Sound inputs of every reader, and words that their grammars know: what fuzzing begins with."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import struct
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.training import Job, Point, Recipe, Text, Trained
from edge_lts_host import onboard
from edge_lts_host.hosts import HostEntry
from edge_lts_host.meters import tc66c
from edge_lts_host.toml_files import builtin_dir
from edge_lts_host.transport import serial_wire
from tests.fuzz.readers import BETWEEN, KEY, REPORTED, RUN_ID
from tests.meters_simulated import SimulatedTc66c, SimulatedUm, SimulatedYzx, steady
from tests.unit.host.sample_runs import observed

RUN = Path(__file__).resolve().parents[1] / "data" / "runs" / RUN_ID
DESTINATIONS = (b"pi@raspberrypi:22", b"pi@[fe80::1%eth0]:2222", b"10.0.0.1", b"serial:pi@/dev/ttyUSB0,9600")
# What a board answers; every key that BoardFacts asks for.
PROBE: dict[str, Any] = {
    "python": "3.11.2",
    "implementation": "cpython",
    "executable": "/usr/bin/python3",
    "python_bits": 64,
    "platform": "linux-aarch64",
    "soabi": "cpython-311-aarch64-linux-gnu",
    "system": "Linux",
    "machine": "aarch64",
    "kernel": "6.1.0",
    "libc": "glibc 2.36",
    "is_emulated": False,
    "has_lzma": True,
    "board_model": "Raspberry Pi 5 Model B Rev 1.0",
    "cpu_model": None,
    "n_cores": 4,
    "memory_total_bytes": 8 << 30,
    "memory_available_bytes": 7 << 30,
    "boot_id": "5f0c2d0a-0000-4000-8000-000000000001",
    "uid": 1000,
    "root": {
        "path": "/home/pi/.local/share/edge-lts",
        "exists": True,
        "is_blocked": False,
        "ancestor": "/home/pi/.local/share/edge-lts",
        "is_writable": True,
        "free_bytes": 20_000_000_000,
        "owner": 1000,
        "mode": 448,
    },
    "environments": {"abc": {"schema_version": 1, "lock_id": "abc"}},
    "agents": {"0123456789ab.pyz": "0123456789ab"},
    "staged": [],
    "runs": ["20261122-101530-rpi5-ab12"],
    "installed": {"torch": None, "numpy": "1.24.2", "pip": "23.0.1"},
}

_DEEP = 3000
JSON_VALUES = (
    b"0", b"1", b"-1", b"true", b"false", b"null", b"1.5", b"1e999", b"-1e999", b"1e308", b"-0.0", b"NaN", b"-Infinity",
    b"2147483648", b"9223372036854775807", b"18446744073709551616", b"1" + b"0" * 400, b"1" + b"0" * 4299, b"9" * 5000,
    b'""', b'"\\u001b[2J"', b'"\\ud800"', b'"\\u0000"', b'"../../x"', b'"/etc/passwd"', b'"' + b"A" * 300 + b'"',
    b"[]", b"{}", b"[[]]", b'{"a":1}', b"[" * 100 + b"]" * 100, b"[" * _DEEP, b'{"a":' * _DEEP,
    b"[" * _DEEP + b"]" * _DEEP,
)  # fmt: skip
TOML_VALUES = (
    *(value for value in JSON_VALUES if len(value) < 1500 and value not in (b"null", b"NaN", b"-Infinity")),
    b"[" * 1100, b"9" * 5000, b"inf", b"-nan", b"0x" + b"f" * 5000, b"{a.b.c=1}", b"{" + b"a." * 300 + b"a=1}",
    b"1979-05-27", b"1979-05-27T07:32:00Z", b"07:32:00", b"9999-99-99", b"'''x'''", b'"""x\ny"""', b'["a","a"]',
    b"0b1", b"0o7", b"1_000", b"6e6", b'"\\U00110000"', b"{min=1,max=9}", b"{at_most=1e999}",
)  # fmt: skip


def _built_in(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(builtin_dir(kind).glob("*.toml"))]


def target_files() -> tuple[bytes, ...]:
    return (*_built_in("targets"), TARGET.encode())


def space_files() -> tuple[bytes, ...]:
    return (SPACE.encode(), *(file for file in _built_in("spaces") if b"demo" in file))


def consoles() -> tuple[bytes, ...]:
    """What stands on consoles: a login prompt, a password's, a refusal, a shell, kernel messages."""
    kernel = b"[   12.345678] usb 1-1: new high-speed USB device number 2\r\n"
    login = b"\r\nDebian GNU/Linux 12 board ttyAMA0\r\n\r\nboard login: "
    refused = b"\r\nLogin incorrect\r\nboard login: "
    shell = b"\x1b[32mpi@board\x1b[0m:~$ echo ab''cd\r\nabcd\r\npi@board:~$ "
    return (
        BETWEEN.join([login, b"pi\r\nPassword: ", refused, b"pi\r\nPassword: ", b"\r\n" + shell, shell, shell]),
        BETWEEN.join([kernel, shell, kernel + shell, shell]),
        BETWEEN.join([b"", b"Linux board 6.1\r\n", login, b"Password: ", shell, shell, shell]),
    )


def ledgers() -> tuple[bytes, ...]:
    whole = (RUN / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    first = json.loads(whole[0])
    shared = {key: first[key] for key in ("schema_version", "purpose", "arch_id", "architecture", "spent_s")}
    failed = lines({**shared, "kind": "failure", "candidate_id": 3, "error": {"kind": "oom", "message": "too large"}})
    return whole[0], whole[1], b"".join(whole[:3]), whole[0] + failed, failed


def run_files() -> tuple[bytes, ...]:
    """The first byte says which."""
    kinds = {"spec.json": b"r", "device.json": b"d", "status.json": b"s"}
    return tuple(kind + (RUN / name).read_bytes() for name, kind in kinds.items())


def agents() -> tuple[bytes, ...]:
    """What agents write; the first byte is the size of the pieces in which it comes."""
    hello = {"event": "hello", "protocol": 1, "agent": "0.1"}
    status = {"event": "status", **json.loads((RUN / "status.json").read_bytes())}
    measured = {"event": "measured", "flags": ["noisy"], "value": 1.5}
    file = {"event": "file", "name": "ledger.jsonl", "offset": 0, "size": 9, "sha256_prefix": "e3", "n_prefix_bytes": 0}
    stream = lines(hello, status, measured, file) + b"123456789" + lines({"event": "end"})
    refused = lines({"event": "error", "type": "LockedError", "message": "busy", "exit_code": 7})
    return b"\xff" + stream, b"\x10" + stream, b"\xffhello from .bashrc\n" + stream, b"\xff" + refused


def answers() -> tuple[bytes, ...]:
    answer = onboard.MARKER.encode() + json.dumps(PROBE).encode() + b"\n"
    return answer, b"Welcome!\n" + answer


def host_entries() -> tuple[bytes, ...]:
    entry = HostEntry(name="pi", destination="pi@pi:22", target="rpi5", root="/r", tags=("a",), device={"a": 1})
    return (json.dumps(entry.to_json()).encode(),)


def meter_logs() -> tuple[bytes, ...]:
    log = lines(
        {"kind": "header", "schema_version": 1, "meter": "um25c", "model": "UM25C", "boot_id": "b"},
        {"t_s": 12.5, "power_w": 3.25, "voltage_v": 5.1, "current_a": None},
        {"kind": "clock", "t_s": 13.0, "board_s": 99.5, "boot_id": "c"},
        {"kind": "error", "t_s": 13.5, "message": "gone"},
    )
    return (log,)


def known_hosts() -> tuple[bytes, ...]:
    key = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GVJl"
    hashed = b"|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= " + key
    return (
        b"[127.0.0.1]:2222 " + key + b"\n# a comment\n@revoked * " + key + b" me\n",
        hashed + b"\n!a,*.b?,[c]:22 " + key,
    )


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def trainings() -> tuple[bytes, ...]:
    """A job, and what came of a training that went well and of one that did not."""
    arch = Architecture.from_json(json.loads(architectures()[0])).replace(vocab_size=256)
    recipe = Recipe(tokens=4096)
    job = Job(
        job_id="0123456789ab",
        models=((arch, 0), (arch, 1)),
        recipe=recipe,
        text=Text(vocab_size=256, bytes_per_token=1.0),
        budget_s=60.0,
    )
    point = Point(tokens=2048, seconds=1.5, training_loss=3.5, validation_loss=3.4)
    well = Trained(
        key="0" * 12, architecture=arch, seed=1, recipe=recipe, loss_nats=3.1, bits_per_byte=4.4, steps=4, tokens=4096,
        seconds=3.0, curve=(point,), conditions={"torch": "2.9.1"},
    )  # fmt: skip
    badly = dataclasses.replace(well, loss_nats=None, bits_per_byte=None, error="nonfinite: the loss at step 3")
    return tuple(json.dumps(one.to_json()).encode() for one in (job, well, badly))


def architectures() -> tuple[bytes, ...]:
    layers = [{"n_head": 2, "d_inner": 64}, {"n_head": 4, "d_inner": 96}]
    plain: dict[str, Any] = {"backbone": "gpt2", "d_model": 32, "layers": layers}
    adaptive = {
        "backbone": "transformer-xl", "d_model": 64, "d_embed": 48, "embedding_factor": 2, "cutoffs": [1000, 5000],
        "vocab_size": 9000, "max_seq_len": 128, "tie_embeddings": False, "precision": "int8-qnnpack",
        "layers": layers[:1],
    }  # fmt: skip
    return tuple(json.dumps(data).encode() for data in (plain, adaptive))


def runs() -> tuple[bytes, ...]:
    """A pulled run, once as it is and once with all that the quality gate notes about a measurement."""
    files = [(RUN / name).read_bytes() for name in REPORTED[:3]]
    whole = [json.loads(line) for line in (RUN / "ledger.jsonl").read_bytes().splitlines()]
    few = {name: [] for name in ("decode_latency_s", "prefill_latency_s")}  # samples: a number is as good as a hundred
    records = [{**record, "samples": few} if "samples" in record else record for record in (*whole[:3], whole[-1])]
    noted = [
        {**record, "conditions": {**record["conditions"], **observed()}, "flags": ["contended", "throttled"]}
        if record["kind"] == "evaluation"
        else record
        for record in records
    ]
    event = b'{"event":"measured","time":"2026-11-22T00:00:00Z","spent_s":12.3,"flags":["x"]}\n'
    return tuple(BETWEEN.join([*files, lines(*ledger), event]) for ledger in (records, noted))


INVENTORY = """
[defaults]
parallel = 4
target = "rpi5"
[devices.pi5-a]
host = "pi@pi5-a:2222"
target = "rpi5"
tags = ["lab", "fan"]
[devices.pi5-a.power]
kind = "um25c"
port = "/dev/rfcomm0"
[devices."pi4"]
host = "pi@[fe80::1%eth0]:22"
[devices.pi5-a.console]
port = "/dev/serial/by-id/usb-1"
baud = 115200
[groups]
lab = ["pi5-*", "pi4"]
"""
TARGET = """
extends = "arm64"
description = "a board"
threads = 4
torch = "2.9.1"
is_emulated = false
ssh_alias = "pi"
[wheels]
platform_tags = ["manylinux_2_28_aarch64"]
python_versions = ["3.11"]
[memory]
headroom = 0.2
min_bytes = 700_000_000
[match]
machine = "aarch64"
model = "Raspberry Pi [45].*"
"""
SPACE = """
name = "tiny"
backbone = "gpt2"
rank = 1
[genes]
n_layer = [1, 2, 3]
d_model = {min = 32, max = 64, step = 16}
d_inner = [64, 128]
n_head = [1, 2]
[fixed]
vocab_size = 256
max_seq_len = 512
[rules]
decoder_params = {at_most = 1e6}
"""


def serial_lines() -> tuple[bytes, ...]:
    """A board's answers: greeting, output, status; as they cross the line, and as the insides of their frames."""
    board = serial_wire.Wire(KEY, 11520.0, False, 0.0)
    lines = []
    for number in range(6):
        board.send(b"h" if number == 0 else b"o", number, random.Random(number).randbytes(30 + 200 * number))
        lines += board.take(float(number)).splitlines(keepends=True)
    raw = [base64.b64decode(line[1:]) for line in lines]
    n_head = serial_wire._HEAD.size
    insides = [frame[:n_head] + frame[n_head + 4 :] for frame in raw]
    packed = b"".join(struct.pack(">H", len(inside)) + inside for inside in insides)
    noisy = b"[   12.345678] usb 1-1: new device\n".join(lines)
    return b"\0" + b"".join(lines), b"\0" + noisy, b"\1" + packed, b"\1" + packed[: 2 + len(insides[0])]


def meter_frames(kind: str) -> tuple[bytes, ...]:
    """Sound frames, as in tests/meters_simulated.py but without a terminal behind them."""
    found = []
    for model in ("UM24C", "UM25C", "UM34C") if kind == "um" else (kind,):
        made: Any = {"um": SimulatedUm, "tc66c": SimulatedTc66c, "yzx": SimulatedYzx}[kind]
        meter = made.__new__(made)
        meter.load, meter.model, meter.refresh_s, meter.lag_s = steady, model, 1e9, 0.0
        meter.model_id = {"UM24C": 0x0963, "UM25C": 0x09C9, "UM34C": 0x0D4C}.get(model)
        meter._shown, meter._shown_s = steady(0), 0.0
        frame = meter.frame()
        if kind == "tc66c":
            frame = tc66c.make_cipher().decryptor().update(frame) + b"\0"
        found += [frame, b"\0\xab" + frame, frame + frame] if kind != "tc66c" else [frame]
    return tuple(found)

"""Everything that is indexed as one file, to hand on or to keep, and that file read back.

JSON lines, gzipped: any program reads them, a stranger's file cannot do what a stranger's database could, and two
exports of the same ledgers are equal byte by byte. The first line says what it is. A `run` comes before its
`measurement`s and an `architecture` before the first that measured it; the last line has the SHA-256 of all before it,
so that a file that was cut short or changed is not taken for whole.

Left out is what is nobody else's business or much too large: names of hosts and of boards, user commands, samples.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.errors import EdgeLtsError, LedgerError
from edge_lts.objectives import QUALITY
from edge_lts.records import Protocol, check_run_id
from edge_lts.speed import ANCHORS
from edge_lts_host.errors import StoreError
from edge_lts_host.index.boards import Board, checked
from edge_lts_host.index.build import DEVICE_KEYS
from edge_lts_host.index.columns import (
    FIELDS,
    MEASURED,
    PURPOSES,
    arch_id_of,
    flag_names,
    joined,
    slowdowns,
    to_columns,
)
from edge_lts_host.index.database import MEMORY, Index
from edge_lts_host.index.lines import row_of

if TYPE_CHECKING:
    from edge_lts_host.index.columns import Column

FORMAT, FORMAT_VERSION = "edge-lts-bench", 1
MAX_LINE_BYTES = 1 << 20
_NAMES = tuple(name for name, _ in FIELDS)
_TEXTS = ("target", "space", "backbone", "strategy", "first_at", "last_at")
_FACTS = (*_TEXTS, "proxy", "device", "protocol", "is_emulated", "failures")
_ID = re.compile(r"[0-9a-f]{12}")
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def write(index: Index, boards: Sequence[Board], path: Path) -> dict[str, Any]:
    """Export what these boards measured; counts and size. Raises OSError, and leaves a file that was there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    counts = {"n_runs": 0, "n_architectures": 0, "n_measurements": 0}
    try:
        with part.open("wb") as raw:
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as file:
                digest = hashlib.sha256()
                for line in _lines(index, boards, counts):
                    digest.update(line)
                    file.write(line)
                end = {"kind": "end", **counts, "sha256": digest.hexdigest()}
                file.write(_ENCODE(end).encode("ascii") + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return {"path": str(path), **counts, "n_bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _lines(index: Index, boards: Sequence[Board], counts: dict[str, int]) -> Iterator[bytes]:
    def line(kind: str, data: Mapping[str, Any]) -> bytes:
        return _ENCODE({"kind": kind, **data}).encode("ascii") + b"\n"

    yield line("header", {"format": FORMAT, "version": FORMAT_VERSION})
    written: set[int] = set()
    runs = sorted((run for board in boards for run in board.runs), key=lambda run: run.run_id)
    for number, run in enumerate(runs):
        counts["n_runs"] += 1
        yield line("run", {"run": number, "run_id": run.run_id, **{key: run.facts[key] for key in _FACTS}})
        columns = index.columns([run], _NAMES)
        new = {int(one) for one in columns["arch"]} - written
        for arch, data in sorted(index.architectures(new).items()):
            counts["n_architectures"] += 1
            yield line("architecture", {"arch_id": arch_id_of(arch), "architecture": data})
        written |= new
        cells = {name: column.tolist() for name, column in columns.items()}
        for row in range(len(cells["arch"])):
            counts["n_measurements"] += 1
            yield line("measurement", {"run": number, **_measurement(cells, row)})


def _measurement(cells: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    objectives: dict[str, Any] = {"decoder_params": int(cells["decoder_params"][row])}
    quality = cells[QUALITY][row]
    objectives |= {QUALITY: quality} if quality == quality else {}
    for name in MEASURED:
        middle, low, high, n = (cells[key][row] for key in (name, f"{name}_low", f"{name}_high", f"{name}_n"))
        if middle == middle:
            interval = [low, high] if low == low else None
            objectives[name] = {"median": middle, "ci95": interval, "n": n} if n else middle
    anchors = {name: cells[f"anchor_{name}"][row] for name in ANCHORS}
    return {
        "arch_id": arch_id_of(cells["arch"][row]),
        "purpose": PURPOSES[cells["purpose"][row]],
        "flags": list(flag_names(cells["flags"][row])),
        "spent_s": cells["spent_s"][row],
        "objectives": objectives,
        "anchor_s": {name: value for name, value in anchors.items() if value == value},
    }


def read(path: Path) -> Index:
    """An index in memory of an exported file. Raises StoreError for one that is damaged, cut short or another kind."""
    index = Index(MEMORY)
    try:
        with gzip.open(path, "rb") as file:
            _Import(index, path).read(file)
    except (OSError, EOFError, zlib.error) as exc:
        index.close()
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise StoreError(f"{path} cannot be read: {reason}") from exc
    except BaseException:
        index.close()
        raise
    return index


class _Import:
    """Puts the lines of one file into an index."""

    def __init__(self, index: Index, path: Path) -> None:
        self._index, self._path = index, path
        self._runs: dict[int, dict[str, Any]] = {}
        self._known: set[str] = set()
        self._run: int | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._parts: list[dict[str, Column]] = []

    def read(self, file: Any) -> None:
        digest, number = hashlib.sha256(), 0
        self._index.begin()
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            try:
                data = json.loads(line)
                kind = data.pop("kind")
                if number == 1:
                    self._check_header(kind, data)
                elif kind == "end":
                    self._check_end(data, digest.hexdigest(), file)
                    return
                else:
                    self._take(kind, data)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EdgeLtsError) as exc:
                if isinstance(exc, StoreError):
                    raise
                raise StoreError(f"{self._path}, line {number}: {exc!s:.200}") from exc
            digest.update(line)
        raise StoreError(f"{self._path} was cut short: it has no last line with a checksum")

    def _check_header(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind != "header" or data.get("format") != FORMAT:
            raise StoreError(f"{self._path} is no file that edge-lts bench export wrote")
        if data.get("version") != FORMAT_VERSION:
            raise StoreError(
                f"{self._path} has version {data.get('version')!r:.40}; this edge-lts reads {FORMAT_VERSION}"
            )

    def _check_end(self, data: Mapping[str, Any], digest: str, file: Any) -> None:
        if data.get("sha256") != digest or file.read(1):
            raise StoreError(f"{self._path} is not what was exported: its checksum does not fit")
        self._finish_run()
        self._index.commit()

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "measurement":
            if data["run"] != self._run or data["arch_id"] not in self._known:
                raise LedgerError("a measurement stands before its run or its architecture")
            self._rows.append(row_of(data["arch_id"], data, data["anchor_s"], 0))
            if len(self._rows) >= 4096:
                self._flush()
        elif kind == "architecture":
            arch_id = str(data["arch_id"])
            if not _ID.fullmatch(arch_id):
                raise LedgerError(f"{arch_id!r:.40} is no arch_id")
            self._known.add(arch_id)
            architecture = checked(int(arch_id, 16), data["architecture"])
            self._index.put_architectures({int(arch_id, 16): architecture.canonical_json()})
        elif kind == "run":
            self._finish_run()
            self._run = int(data["run"])
            self._runs[self._run] = data
        else:
            raise LedgerError(f"unknown kind of line {kind!r:.40}")

    def _flush(self) -> None:
        if self._rows:
            self._parts.append(to_columns(self._rows))
            self._rows = []

    def _finish_run(self) -> None:
        self._flush()
        if self._run is not None:
            data = self._runs[self._run]
            columns = joined(self._parts, _NAMES)
            number = self._index.put_run(check_run_id(data["run_id"]), _facts(data), {})
            self._index.put_columns(number, {**columns, **slowdowns(columns)})
        self._parts = []


def _facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's facts, checked: they may come from anybody."""
    device, failures = data["device"], data["failures"]
    if device is not None and not isinstance(device, dict):
        raise LedgerError("device must be an object or null")
    return {
        **{key: str(data[key]) for key in _TEXTS},
        "proxy": str(data.get("proxy", "")),  # older files have none
        "device": None if device is None else {key: device.get(key) for key in DEVICE_KEYS},
        "protocol": Protocol.from_json(data["protocol"]).to_json(),
        "is_emulated": bool(data["is_emulated"]),
        "failures": {str(kind): int(n) for kind, n in failures.items()},
        "host": None,
        "boards": [],
        "problem": "",
    }

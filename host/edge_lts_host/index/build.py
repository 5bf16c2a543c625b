"""What is new in the ledgers, into the index: run by run, from the byte where the last look ended.

A ledger only grows, so what was read stays true as long as the file goes on where it was: its size, and the last bytes
before that place, say so; otherwise the run is read again from its beginning. A torn last line waits until it is whole.
Damage in the middle ends the reading of that run there and is said, once; the other runs are not harmed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.errors import EdgeLtsError, LedgerError
from edge_lts.ledger import MAX_LINE_BYTES
from edge_lts.records import DeviceInfo, outcome_from_json
from edge_lts.runfolder import DEVICE, LEDGER, SPEC
from edge_lts_host import store
from edge_lts_host.index.columns import FIELDS, joined, slowdowns, to_columns
from edge_lts_host.index.lines import read_line
from edge_lts_host.report import proxy

if TYPE_CHECKING:
    from edge_lts_host.index.columns import Column
    from edge_lts_host.index.database import Index, IndexedRun
    from edge_lts_host.store import RunFolder

_CHECKED_BYTES = 4096  # before the place where reading goes on
_COMMIT_BYTES = 256 << 20
_ROWS_HELD = 4096  # as tuples, before they become columns
_ALONE_BYTES = 48 << 20  # below that, starting processes takes longer than it saves
_AHEAD = 2  # runs that each process may be ahead of what is stored: they are held in memory
_NAMES = tuple(name for name, _ in FIELDS)
# What is kept of device.json: nothing that tells one board of a kind from another, or whose it is.
DEVICE_KEYS = (
    "model",
    "machine",
    "kernel",
    "cpu_model",
    "cpu_features",
    "n_cores",
    "memory_total_bytes",
    "page_size_bytes",
    "governor",
    "python",
    "libc",
    "torch",
    "numpy",
    "is_emulated",
)


@dataclass(slots=True)
class Built:
    """What one update did. `problems`: a line for each run that could not be read to its end."""

    n_runs: int = 0
    n_read: int = 0  # runs in which something was new
    n_bytes: int = 0
    n_records: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        rate = self.n_bytes / self.seconds if self.seconds and self.n_bytes else None
        return {
            "n_runs": self.n_runs,
            "n_read": self.n_read,
            "n_bytes": self.n_bytes,
            "n_records": self.n_records,
            "seconds": self.seconds,
            "bytes_per_s": rate,
            "problems": self.problems,
        }


def update(
    index: Index,
    folders: Sequence[RunFolder] | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Bring the index up to date with these runs, all on this machine for None; runs that are gone are forgotten.

    `on_progress` hears of bytes read, of bytes there are to read. What was committed is kept when it is interrupted.
    """
    begun, built = clock(), Built()
    folders = store.list_runs() if folders is None else list(folders)
    known = {run.run_id: run for run in index.runs()}
    here = {folder.run_id for folder in folders}
    stamps = [(folder, _stamp(folder)) for folder in folders]
    todo = [(folder, stamp) for folder, stamp in stamps if not _is_current(known.get(folder.run_id), stamp)]
    gone = [run for run_id, run in known.items() if run_id not in here]
    built.n_runs = len(folders)
    total = sum(stamp["size"] for _, stamp in todo)
    if todo or gone:
        index.begin()
    for run in gone:
        index.forget(run)
    uncommitted = 0
    on_progress(0, total)
    with contextlib.closing(_parsed(todo, known, total)) as found:
        for parsed in found:
            _put(index, known.get(parsed.run_id), parsed)
            built.n_read += 1
            built.n_bytes += parsed.n_bytes
            built.n_records += parsed.n_records
            uncommitted += parsed.n_bytes
            on_progress(built.n_bytes, total)
            if uncommitted >= _COMMIT_BYTES:
                index.commit()
                index.begin()
                uncommitted = 0
    index.commit()
    built.problems = [f"{run.run_id}: {run.facts['problem']}" for run in index.runs() if run.facts["problem"]]
    built.seconds = clock() - begun
    return built


def facts_of(folder: RunFolder) -> dict[str, Any]:
    """What a run is, from its own files. Raises what a damaged folder raises."""
    spec, device, meta = folder.read_spec(), folder.read_device(), folder.host_meta()
    host = meta.get("host")
    return {
        "target": spec.target,
        "host": host if isinstance(host, str) else None,
        "device": None if device is None else device_facts(device),
        "protocol": spec.protocol.to_json(),
        "space": str(spec.space.get("name", "")),
        "backbone": str(spec.space.get("backbone", "")),
        "strategy": spec.strategy,
        "proxy": (proxy.facts(spec) or {"digest": ""})["digest"],
        "is_emulated": spec.is_emulated or bool(device is not None and device.is_emulated),
        "boards": [],
        "failures": {},
        "first_at": "",
        "last_at": "",
        "problem": "",
    }


def device_facts(device: DeviceInfo) -> dict[str, Any]:
    data = device.to_json()
    return {key: data[key] for key in DEVICE_KEYS}


def _stamp(folder: RunFolder) -> dict[str, Any]:
    """What shows without reading that something changed."""

    def seen(name: str) -> list[int] | None:
        try:
            found = (folder / name).stat()
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns, found.st_ino]

    ledger = seen(LEDGER)
    return {
        "path": str(folder.path),
        "ledger": ledger,
        "facts": [seen(SPEC), seen(DEVICE), seen(store.HOST_META)],
        "size": 0 if ledger is None else ledger[0],
    }


def _is_current(run: IndexedRun | None, stamp: dict[str, Any]) -> bool:
    return run is not None and all(run.stamp.get(key) == stamp[key] for key in ("path", "ledger", "facts"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """What is new of one run. `is_anew`: what was known of it before no longer holds. `columns` and `architectures`
    are None where nothing of the ledger was read."""

    run_id: str
    is_anew: bool
    facts: dict[str, Any]
    stamp: dict[str, Any]
    columns: dict[str, Column] | None = None
    architectures: dict[int, str] | None = None
    n_bytes: int = 0
    n_records: int = 0


_Todo = tuple["RunFolder", dict[str, Any]]


def _parsed(todo: Sequence[_Todo], known: Mapping[str, IndexedRun], total: int) -> Generator[_Parsed, None, None]:
    """What is new in these runs, in their order; much of it read by a process for each core."""
    n_workers = min(len(todo), os.cpu_count() or 1)
    if n_workers < 2 or total < _ALONE_BYTES:
        yield from (_parse(folder, known.get(folder.run_id), stamp) for folder, stamp in todo)
        return
    # spawn: who calls us through the API may have threads, and a forked child of theirs may hang
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
        waiting: deque[Future[_Parsed]] = deque()
        try:
            for folder, stamp in todo:
                waiting.append(pool.submit(_parse, folder, known.get(folder.run_id), stamp))
                if len(waiting) > _AHEAD * n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C goes to the whole group; the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parse(folder: RunFolder, run: IndexedRun | None, stamp: dict[str, Any]) -> _Parsed:
    """What is new of one run, of which `run` is known already."""
    path = folder / LEDGER
    is_anew = run is not None and not _goes_on(path, run, stamp)
    if is_anew:
        run = None
    try:
        facts = facts_of(folder)
        if run is not None:
            kept = ("protocol", "boards", "failures", "first_at", "last_at", "problem")
            facts.update({key: run.facts[key] for key in kept})
    except EdgeLtsError as exc:
        problem: dict[str, Any] = {"problem": str(exc)[:300], "protocol": {}, "device": None}
        unread = {**stamp, "read_bytes": 0, "tail": ""}
        return _Parsed(run_id=folder.run_id, is_anew=True, facts=problem, stamp=unread)
    if facts["problem"] and run is not None:
        return _Parsed(run_id=folder.run_id, is_anew=False, facts=facts, stamp={**run.stamp, **stamp})
    reader = _Reader(folder, 0 if run is None else int(run.stamp["read_bytes"]), facts)
    parts, architectures = reader.read()
    return _Parsed(
        run_id=folder.run_id,
        is_anew=is_anew,
        facts=facts,
        stamp={**stamp, "read_bytes": reader.at, "tail": _tail(path, reader.at)},
        columns=joined(parts, _NAMES) if parts or run is None else None,
        architectures=architectures,
        n_bytes=reader.n_bytes,
        n_records=reader.n_records,
    )


def _put(index: Index, run: IndexedRun | None, parsed: _Parsed) -> None:
    if run is not None and parsed.is_anew:
        index.forget(run)
        run = None
    number = index.put_run(parsed.run_id, parsed.facts, parsed.stamp)
    if parsed.columns is not None:
        old = [] if run is None else [index.columns_of(run.number, _NAMES)]
        columns = joined([*old, parsed.columns], _NAMES)
        index.put_columns(number, {**columns, **slowdowns(columns)})
        index.put_architectures(parsed.architectures or {})


def _goes_on(path: Path, run: IndexedRun, stamp: dict[str, Any]) -> bool:
    """Whether the ledger still begins with what was read of it. A change of the spec means another run."""
    at = run.stamp.get("read_bytes", 0)
    if stamp["size"] < at or run.stamp.get("facts", [None])[0] != stamp["facts"][0] or "boards" not in run.facts:
        return False
    if run.facts["problem"] and run.stamp.get("ledger") != stamp["ledger"]:
        return False  # somebody may have mended it
    return bool(_tail(path, at) == run.stamp.get("tail"))


def _tail(path: Path, at: int) -> str:
    """A hash of the bytes before `at`, "" where there are none."""
    if not at:
        return ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, at - _CHECKED_BYTES))
            return hashlib.sha256(file.read(min(at, _CHECKED_BYTES))).hexdigest()
    except OSError:
        return "unreadable"


class _Reader:
    """Reads one ledger from byte `at` on and adds to `facts` what its lines say of the run."""

    def __init__(self, folder: RunFolder, at: int, facts: dict[str, Any]) -> None:
        self._folder = folder
        self.path = folder / LEDGER
        self.at = at
        self.n_bytes = self.n_records = 0
        self._facts = facts
        self._failures = Counter(facts["failures"])
        self._boards = set(facts["boards"])

    def read(self) -> tuple[list[dict[str, Column]], dict[int, str]]:
        """(parts of columns, canonical JSON of their architectures)."""
        parts: list[dict[str, Column]] = []
        architectures: dict[int, str] = {}
        rows: list[tuple[Any, ...]] = []
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                self._read_lines(file, rows, parts, architectures)
        except FileNotFoundError:
            pass
        except OSError as exc:
            self._facts["problem"] = f"cannot read {self.path}: {exc.strerror or exc}"
        except EdgeLtsError as exc:
            self._facts["problem"] = f"{LEDGER}, byte {self.at}: {exc!s:.200}; what follows is left out"
        if rows:
            parts.append(to_columns(rows))
        self._facts["failures"] = dict(sorted(self._failures.items()))
        self._facts["boards"] = sorted(self._boards)
        return parts, architectures

    def _read_lines(
        self, file: Any, rows: list[tuple[Any, ...]], parts: list[dict[str, Column]], architectures: dict[int, str]
    ) -> None:
        facts = self._facts
        while line := file.readline(MAX_LINE_BYTES):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("the line does not end")
                found = read_line(line, self.at)
            except (ValueError, RecursionError) as exc:
                if isinstance(exc, EdgeLtsError):
                    raise
                if file.read(1):
                    raise LedgerError(f"not JSON: {exc}") from exc
                return  # a torn tail: whole at the next look, or cut off by the agent
            if found.row is None:
                self._failures[found.failure or ""] += 1
            else:
                if not facts["first_at"]:
                    self._first(line)
                    facts["first_at"] = found.measured_at
                facts["last_at"] = found.measured_at
                rows.append(found.row)
                architectures[found.row[0]] = found.architecture
                if len(rows) >= _ROWS_HELD:
                    parts.append(to_columns(rows))
                    rows.clear()
            if found.board:
                self._boards.add(found.board)
            self.at += len(line)
            self.n_bytes += len(line)
            self.n_records += 1

    def _first(self, line: bytes) -> None:
        """The first evaluation says how many threads the board took."""
        from edge_lts_host.report.compare import resolved_protocol

        outcome = outcome_from_json(json.loads(line))
        self._facts["protocol"] = resolved_protocol(self._folder.read_spec(), [outcome]).to_json()

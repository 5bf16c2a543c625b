"""The index in one sqlite file, `<runs root>/index/ledgers.sqlite`: a row per run, its columns, every architecture.

sqlite because one file of the standard library gives transactions, several readers and a look-up by architecture; the
numbers are in it as whole columns of each run, because a million rows of sqlite take a second per column to read and a
million numbers of a blob take milliseconds. Everything can be made again from the ledgers: a file that is damaged, or
of another layout, is thrown away. Where it cannot be written, the index is built in memory and forgotten.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.records import Protocol
from edge_lts_host import store
from edge_lts_host.errors import StoreError
from edge_lts_host.index.columns import LAYOUT, TYPES, joined

if TYPE_CHECKING:
    from edge_lts_host.index.columns import Column

FOLDER, NAME = "index", "ledgers.sqlite"
MEMORY = ":memory:"
WAIT_S = 600.0  # for another command that is building
_TABLES = """
CREATE TABLE layout (text TEXT);
CREATE TABLE run (id INTEGER PRIMARY KEY, run_id TEXT UNIQUE, stamp TEXT, facts TEXT);
CREATE TABLE cells (run INTEGER, name TEXT, data BLOB);
CREATE UNIQUE INDEX cell ON cells (run, name);
CREATE TABLE architecture (arch INTEGER PRIMARY KEY, json TEXT);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRun:
    """A run as the index knows it. `facts`: what it is (`build.facts_of`); `stamp`: how far its files were read."""

    number: int
    run_id: str
    facts: dict[str, Any]
    stamp: dict[str, Any]

    @property
    def is_readable(self) -> bool:
        """Whether its spec could be read; without, nothing is known but its `problem`."""
        return "boards" in self.facts

    @property
    def protocol(self) -> Protocol:
        return Protocol.from_json(self.facts["protocol"])


class Index:
    """The open database. Use as a context manager; nothing is stored before `commit`."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA cache_size = -32000")
        self._database.execute("BEGIN IMMEDIATE")
        try:
            (found,) = self._database.execute("SELECT text FROM layout").fetchone() or ("",)
        except sqlite3.OperationalError:
            found = ""
        if found != LAYOUT:
            self._make()
        self.commit()

    def _make(self) -> None:
        tables = self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            self._database.execute(f'DROP TABLE "{name}"')
        for statement in _TABLES.strip().split(";"):
            self._database.execute(statement)
        self._database.execute("INSERT INTO layout VALUES (?)", (LAYOUT,))

    # Reading ----------------------------------------------------------------------------------------------------------

    def runs(self) -> list[IndexedRun]:
        """By run id, oldest first."""
        rows = self._database.execute("SELECT id, run_id, facts, stamp FROM run ORDER BY run_id")
        return [
            IndexedRun(number=number, run_id=run_id, facts=json.loads(facts), stamp=json.loads(stamp))
            for number, run_id, facts, stamp in rows
        ]

    def columns(self, runs: Sequence[IndexedRun], names: Sequence[str]) -> dict[str, Column]:
        """The columns of these runs, one run behind the other."""
        return joined([self.columns_of(run.number, names) for run in runs], names)

    def columns_of(self, number: int, names: Sequence[str]) -> dict[str, Column]:
        import numpy as np

        found = {name: np.zeros(0, TYPES[name]) for name in names}
        marks = ",".join("?" * len(names))
        rows = self._database.execute(
            f"SELECT name, data FROM cells WHERE run = ? AND name IN ({marks})", (number, *names)
        )
        for name, data in rows:
            found[name] = np.frombuffer(data, TYPES[name])
        return found

    def architectures(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Canonical JSON by arch_id as a number; as the ledger has it, not checked for being consistent."""
        found = {}
        for number in numbers:
            row = self._database.execute("SELECT json FROM architecture WHERE arch = ?", (int(number),)).fetchone()
            if row is not None:
                found[int(number)] = json.loads(row[0])
        return found

    def beginning_with(self, prefix: str, limit: int) -> list[int]:
        """Architectures whose arch_id begins so, at most `limit`, in order."""
        low, high = int(prefix.ljust(12, "0"), 16), int(prefix.ljust(12, "f"), 16)
        rows = self._database.execute(
            "SELECT arch FROM architecture WHERE arch BETWEEN ? AND ? ORDER BY arch LIMIT ?", (low, high, limit)
        )
        return [arch for (arch,) in rows]

    def n_architectures(self) -> int:
        (n,) = self._database.execute("SELECT count(*) FROM architecture").fetchone()
        return int(n)

    # Writing ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From here to `commit` nobody else writes."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT")

    def put_run(self, run_id: str, facts: Mapping[str, Any], stamp: Mapping[str, Any]) -> int:
        """Add a run or replace what is known of it; its number."""
        words = (json.dumps(stamp), json.dumps(facts), run_id)
        row = self._database.execute("SELECT id FROM run WHERE run_id = ?", (run_id,)).fetchone()
        if row is not None:
            self._database.execute("UPDATE run SET stamp = ?, facts = ? WHERE run_id = ?", words)
            return int(row[0])
        return int(
            self._database.execute("INSERT INTO run (stamp, facts, run_id) VALUES (?, ?, ?)", words).lastrowid or 0
        )

    def put_columns(self, number: int, columns: Mapping[str, Column]) -> None:
        rows = [(number, name, column.tobytes()) for name, column in columns.items()]
        self._database.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", rows)

    def put_architectures(self, found: Mapping[int, str]) -> None:
        """Canonical JSON by arch_id as a number; those already known stay."""
        self._database.executemany("INSERT OR IGNORE INTO architecture VALUES (?, ?)", sorted(found.items()))

    def forget(self, run: IndexedRun) -> None:
        """Architectures stay: another run may have them, and one without a measurement is never shown."""
        self._database.execute("DELETE FROM run WHERE id = ?", (run.number,))
        self._database.execute("DELETE FROM cells WHERE run = ?", (run.number,))

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def path_of_index() -> Path:
    return store.runs_root() / FOLDER / NAME


@contextlib.contextmanager
def opened(path: Path | None = None) -> Iterator[Index]:
    """The index of this machine's runs. What fails inside as damaged is thrown away, so that the next one is whole.

    Raises StoreError where it turns out to be damaged in the middle.
    """
    path = path or path_of_index()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        index = _open(path)
    except (OSError, sqlite3.OperationalError):
        index = Index(MEMORY)  # a disk that is full or read-only: slower, but an answer
    try:
        with index:
            yield index
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise StoreError(
                f"{path}: {exc}; it holds nothing that the ledgers don't: remove it and try again"
            ) from exc
        path.unlink(missing_ok=True)
        raise StoreError(f"{path} was damaged ({exc}) and is removed; ask again, and it is built anew") from exc


def _open(path: Path) -> Index:
    try:
        return Index(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:  # no database at all, or damaged at its beginning
        path.unlink(missing_ok=True)
        return Index(path)

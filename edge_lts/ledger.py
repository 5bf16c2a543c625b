"""The ledger of a run: an append-only file of JSON lines, one per measurement, and the only truth about the run.

A record is one `write()` of a whole line followed by `fsync()`, so a power cut can tear the last line and nothing else.
Readers drop a torn last line (not ended by a newline, or not a JSON object) and say how many bytes that was; anything
unreadable before it is damage that no program should paper over: a LedgerError names file, line and remedy.

This module never rewrites what was recorded. `Ledger.open` cuts off a torn tail, and a record that could not be written
whole is cut off again.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_lts.errors import DiskError, EdgeLtsError, LedgerError
from edge_lts.records import Outcome, outcome_from_json
from edge_lts.runfolder import sync_folder

MAX_LINE_BYTES = 64 << 20


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All records as JSON, and the bytes of a torn tail that was left out. A missing file is an empty ledger."""
    reader = LedgerReader(path)
    return [record for _, record in reader.lines()], reader.dropped_tail


def read_outcomes(path: Path) -> tuple[list[Outcome], int]:
    """As `read`, with each record as a checked value. Raises LedgerError naming the line of one that is not."""
    reader = LedgerReader(path)
    return list(reader.outcomes()), reader.dropped_tail


class LedgerReader:
    """Reads a ledger line by line in bounded memory; `dropped_tail` and `valid_bytes` are known at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.valid_bytes = 0
        self.dropped_tail = 0

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number from 1, record). Raises LedgerError for damage before the last line."""
        self.valid_bytes = self.dropped_tail = 0
        bad: tuple[int, str] | None = None
        try:
            with self.path.open("rb") as file:
                for number in range(1, 1 << 62):
                    line = file.readline(MAX_LINE_BYTES)
                    if not line:
                        break
                    if bad is not None:  # it was not the last line after all
                        raise self._damaged(*bad)
                    if not line.endswith(b"\n"):
                        bad, self.dropped_tail = (number, "the line does not end"), len(line)
                        continue
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError) as exc:
                        bad, self.dropped_tail = (number, f"not JSON: {exc}"), len(line)
                        continue
                    if not isinstance(record, dict):
                        bad, self.dropped_tail = (number, "not a JSON object"), len(line)
                        continue
                    self.valid_bytes += len(line)
                    yield number, record
        except FileNotFoundError:
            return
        except OSError as exc:
            raise LedgerError(f"cannot read {self.path}: {exc.strerror or exc}") from exc

    def outcomes(self) -> Iterator[Outcome]:
        for number, record in self.lines():
            try:
                yield outcome_from_json(record)
            except EdgeLtsError as exc:
                raise self._damaged(number, str(exc)) from exc

    def _damaged(self, number: int, reason: str) -> LedgerError:
        return LedgerError(
            f"{self.path}, line {number}: {reason:.200}. The file was not touched; to go on, move it away and keep its "
            f"first {number - 1} lines: head -n {number - 1} BROKEN > {self.path.name}"
        )


class Ledger:
    """A ledger open for appending. The caller holds the run's lock: there is one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size = os.fstat(self._fd).st_size
            if not self._size:
                sync_folder(path.parent)  # a record on the disk is no use without its name
        except OSError as exc:
            raise self._cannot_write(exc) from exc

    def cut_tail(self, valid_bytes: int) -> bytes:
        """Cut off everything behind `valid_bytes` (what a reader found sound) and return it."""
        try:
            dropped = os.pread(self._fd, max(0, self._size - valid_bytes), valid_bytes)
            if self._size > valid_bytes:
                os.ftruncate(self._fd, valid_bytes)
                os.fsync(self._fd)
                self._size = valid_bytes
        except OSError as exc:
            raise self._cannot_write(exc) from exc
        return dropped

    def append(self, record: Mapping[str, Any]) -> int:
        """Write one record, durably; returns the ledger's new size in bytes.

        Raises ValueError for a record that is not JSON (NaN, infinity) before anything is written, and DiskError when
        the file system refuses: then the file is as it was before.
        """
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
        line = text.encode("ascii") + b"\n"
        try:
            self._check_writable()
            written = os.pwrite(self._fd, line, self._size)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
            self._check_writable()
        except OSError as exc:
            self._undo()
            raise self._cannot_write(exc) from exc
        self._size += len(line)
        return self._size

    def _check_writable(self) -> None:
        """Raises OSError where the file system became read-only after the ledger was opened. ext4 takes writes all the
        same then, into memory, and its fsync says yes and does nothing."""
        if os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _undo(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            return  # a torn last line is what readers expect

    def _cannot_write(self, exc: OSError) -> DiskError:
        remedy = "free some space" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        return DiskError(
            f"cannot write {self.path}: {exc.strerror or exc}; {remedy} and resume: nothing recorded so far is lost"
        )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

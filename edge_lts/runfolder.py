"""The files of a run, `runs/<run_id>/`, and how each is written (design §6).

`ledger.jsonl` and `events.jsonl` and `log.txt` only ever grow. `spec.json`, `device.json`, `status.json` and
`frontier.json` are replaced whole: written beside, then renamed, so that a reader sees the old one or the new one.
Nothing here decides what a run does.
"""

import contextlib
import datetime
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.errors import DiskError, LedgerError, SpecError

if TYPE_CHECKING:
    from edge_lts.records import DeviceInfo, RunSpec

SPEC, DEVICE, LEDGER = "spec.json", "device.json", "ledger.jsonl"
EVENTS, STATUS, FRONTIER, LOG, LOCK = "events.jsonl", "status.json", "frontier.json", "log.txt", "lock"
APPENDED_FILES = (LEDGER, EVENTS, LOG)
REPLACED_FILES = (SPEC, DEVICE, STATUS, FRONTIER)
MAX_JSON_BYTES = 16 << 20
LEAST_FREE_BYTES = 64 << 10  # a record is some ten kilobytes

# In the device root, beside agents/, env/ and runs/.
BOARD_LOCK, ROOT_MARKER = "board.lock", ".edge-lts-root"
TUNED = "tuned.json"  # while a governor is changed (edge_lts.tuning)


def now_utc() -> str:
    """The wall clock as ISO-8601 in UTC; for people, never for arithmetic (a board without RTC may jump by years)."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, is_durable: bool = False) -> None:
    """Replace `path` by `data` (or its pieces) in one step. Raises OSError and leaves the old file as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if is_durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make new names in `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrite(path: Path, data: bytes) -> None:
    """Write over the blocks that `path` already has: the last resort on a full disk. Not atomic."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        written = os.pwrite(fd, data, 0)
        os.ftruncate(fd, written)
    finally:
        os.close(fd)


def complain(text: str) -> None:
    """A line for log.txt; lost when that is on a disk that takes nothing any more."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201  (the log)


def to_bytes(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, allow_nan=False).encode("ascii") + b"\n"  # indented, it would take ten times as long


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is no finite number")
    return value


def _small(text: str) -> int:
    value = int(text)
    if value.bit_length() > 64:
        raise ValueError(f"{text:.40} needs more than 64 bits")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises OSError, or ValueError saying what is wrong; never anything else."""
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES} bytes")
    try:
        data = json.loads(raw, parse_int=_small, parse_float=_finite, parse_constant=_finite)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc
    if not isinstance(data, dict):
        raise ValueError(f"it must hold a JSON object, not {type(data).__name__}")
    return data


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def default_root(self) -> Path:
        """The device root that holds `runs/` with this run."""
        return self.path.parent.parent

    def read_spec(self) -> "RunSpec":
        """Raises SpecError naming file and key."""
        from edge_lts.records import RunSpec  # not for `status`: a board of many that is asked often

        path = self / SPEC
        try:
            return RunSpec.from_json(read_json(path))
        except FileNotFoundError as exc:
            raise SpecError(f"{path} does not exist: a run folder begins with its spec.json") from exc
        except (OSError, TypeError, ValueError) as exc:
            raise SpecError(f"{path}: {exc}") from exc

    def read_device(self) -> "DeviceInfo | None":
        """What the run began on; None where nothing usable was recorded."""
        from edge_lts.records import DeviceInfo

        try:
            return DeviceInfo.from_json(read_json(self / DEVICE))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LedgerError) as exc:
            raise LedgerError(f"{self / DEVICE}: {exc}; without it the run cannot go on: begin a new one") from exc

    def read_status(self) -> dict[str, Any]:
        """status.json as it stands. Raises OSError or ValueError; whoever shows it decides what that means."""
        return read_json(self / STATUS)

    def remove_parts(self) -> None:
        """Remove what a killed supervisor had half written. The caller holds the lock."""
        for part in self.path.glob(".*.part"):
            with contextlib.suppress(OSError):
                part.unlink()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of the run that exists."""
        found: dict[str, int] = {}
        for name in (*REPLACED_FILES, *APPENDED_FILES):
            try:
                found[name] = (self / name).stat().st_size
            except OSError:
                continue
        return found

    def disk_trouble(self) -> str:
        """Why nothing can be written here, and what to do; empty when something can."""
        try:
            facts = os.statvfs(self.path)
        except OSError as exc:
            return f"cannot look at {self.path}: {exc.strerror or exc}"
        if facts.f_flag & os.ST_RDONLY:
            return (
                f"the disk of {self.path} has become read-only, as failing SD cards do: pull the run, look at dmesg, "
                "repair or replace the card, then resume"
            )
        if facts.f_bavail * facts.f_frsize < LEAST_FREE_BYTES:
            return f"the disk of {self.path} is full: free some space, then resume"
        return ""

    def check_disk(self) -> None:
        """Raises DiskError when a run could record nothing here."""
        if trouble := self.disk_trouble():
            raise DiskError(trouble)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add a line to events.jsonl. Raises OSError."""
        line = json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n"
        fd = os.open(self / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(fd).st_size
            is_torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # by a power cut
            os.write(fd, b"\n" + line if is_torn else line)
        finally:
            os.close(fd)

"""The runs on this machine: `<runs root>/<run_id>/`, with the same files as on the board plus `host.json`.

The runs root is `$EDGE_LTS_RUNS`, or `runs` in the platform's user data directory. A run of `--target local` is
searched in this very folder; any other is copied here by byte offset, and `host.json` says where it runs. What a board
sends is checked before it is written: only the known file names, up to a size each, and nothing that contradicts bytes
already here. Errors are StoreErrors.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_lts import runfolder
from edge_lts.errors import EdgeLtsError
from edge_lts.ledger import LedgerReader
from edge_lts.records import Outcome, check_run_id
from edge_lts_host.agent_protocol import clean
from edge_lts_host.errors import StoreError, UsageError

HOST_META = "host.json"
HOST_META_VERSION = 1
MIB = 1 << 20
APPENDED_FILES = runfolder.APPENDED_FILES
REPLACED_FILES = runfolder.REPLACED_FILES
# A board that sends more than this is broken or hostile; a long run's ledger is some 10 MiB.
MAX_BYTES: dict[str, int] = {
    "ledger.jsonl": 1024 * MIB,
    "events.jsonl": 256 * MIB,
    "log.txt": 256 * MIB,
    "frontier.json": 16 * MIB,
    "spec.json": 4 * MIB,
    "device.json": MIB,
    "status.json": MIB,
}
_TAG_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` in one step that survives a power cut. Raises OSError and leaves the old file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{random.getrandbits(32):08x}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    runfolder.sync_folder(path.parent)


def runs_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are kept; it need not exist yet."""
    given = environ.get("EDGE_LTS_RUNS")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("edge-lts", appauthor=False)) / "runs"


def local_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The device root of `--target local`: what holds `runs/`.

    Raises StoreError where another user could exchange the agent that is run there.
    """
    root = runs_root(environ).parent
    for folder in (root, root / "agents"):
        try:
            info = folder.stat()
        except OSError:
            continue
        is_open = info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX
        owners = (os.geteuid(), 0) if folder == root else (os.geteuid(),)
        if is_open or info.st_uid not in owners:
            raise StoreError(
                f"other users of this machine could change what is run in {folder}; "
                "set EDGE_LTS_RUNS to a folder in a folder of your own"
            )
    return root


def new_run_id(target: str, now: datetime.datetime | None = None, rng: random.Random | None = None) -> str:
    """Such as 20261122-101530-rpi5-ab12: sorts by time, says the target, and is not taken by chance.

    `now` is in UTC; `rng` makes the tag.
    """
    moment = now if now is not None else datetime.datetime.now(datetime.timezone.utc)
    tag = "".join((rng or random.SystemRandom()).choices(_TAG_ALPHABET, k=4))
    return check_run_id(f"{moment:%Y%m%d-%H%M%S}-{target}-{tag}")


class RunFolder(runfolder.RunFolder):
    """One run as this machine has it; see edge_lts.runfolder for the files."""

    @property
    def exists(self) -> bool:
        return (self / runfolder.SPEC).is_file()

    def create(self) -> None:
        """Make the folder. Raises StoreError when the run is there already."""
        try:
            self.path.mkdir(parents=True, exist_ok=False)
            runfolder.sync_folder(self.path.parent)
        except OSError as exc:
            raise StoreError(f"cannot make {self.path}: {exc.strerror or exc}") from exc

    def host_meta(self) -> dict[str, Any]:
        """host.json: `host` (its name, or null for this machine), `destination`, `target`, `run_dir` and `root` on the
        board, ...

        {} where the folder came by another way, for example copied from a board by hand.
        """
        try:
            data = runfolder.read_json(self / HOST_META)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise StoreError(f"cannot read {self / HOST_META}: {exc}") from exc
        version = data.pop("schema_version", None)
        if version != HOST_META_VERSION:
            raise StoreError(
                f"{self / HOST_META} has schema_version {version!r:.40}; this edge-lts reads {HOST_META_VERSION}"
            )
        return data

    def write_host_meta(self, meta: Mapping[str, Any]) -> None:
        self._write(HOST_META, runfolder.to_bytes({"schema_version": HOST_META_VERSION, **meta}))

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        self._write(runfolder.SPEC, runfolder.to_bytes(spec))

    def status(self) -> dict[str, Any]:
        """status.json as last heard of; {} when there is none or it cannot be read."""
        return self._read_loosely(runfolder.STATUS)

    def frontier(self) -> dict[str, Any]:
        """frontier.json as the board last wrote it; {} when there is none or it cannot be read."""
        return self._read_loosely(runfolder.FRONTIER)

    def outcomes(self) -> list[Outcome]:
        """The ledger; a torn last line is left out. Raises LedgerError naming the line of any other damage."""
        return list(LedgerReader(self / runfolder.LEDGER).outcomes())

    def offsets(self) -> dict[str, int]:
        """Bytes that are here already of each file that only grows: where the next pull goes on."""
        sizes = self.sizes()
        return {name: sizes.get(name, 0) for name in APPENDED_FILES}

    def append_pulled(self, name: str, offset: int, data: bytes) -> int:
        """Write what the board sent of file `name` from byte `offset` on; returns the file's new size.

        A file that only grows may overlap what is here (then the overlap must be equal) but leave no gap; any other
        must come whole, `offset` 0. Durable on return. Raises StoreError, and leaves the file as it was, for everything
        else.
        """
        check_pulled(name, offset + len(data))
        path = self / name
        if name in REPLACED_FILES:
            if offset:
                raise StoreError(f"{path}: the board sent it from byte {offset} on, but it must come whole")
            self._write(name, data)
            return len(data)
        try:
            return _append(path, offset, data)
        except OSError as exc:
            raise StoreError(f"cannot write {path}: {exc.strerror or exc}; what was pulled before is kept") from exc

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self / name, data)
        except OSError as exc:
            raise StoreError(f"cannot write {self / name}: {exc.strerror or exc}") from exc

    def _read_loosely(self, name: str) -> dict[str, Any]:
        try:
            data: dict[str, Any] = clean(runfolder.read_json(self / name))
        except (OSError, ValueError):
            return {}
        return data


def check_pulled(name: str, size: int) -> None:
    """Refuse a file that is none of a run's, or that is too large. Raises StoreError."""
    if name not in MAX_BYTES:
        raise StoreError(f"the board offers a file {name!r:.120} that no run has; nothing of it was written")
    if size > MAX_BYTES[name]:
        raise StoreError(f"the board's {name} has {size} bytes, more than the {MAX_BYTES[name]} that are accepted")


def _append(path: Path, offset: int, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        if offset > size:
            raise StoreError(f"{path}: the board sent it from byte {offset} on, but only {size} are here; pull again")
        overlap = min(size - offset, len(data))
        if overlap and os.pread(fd, overlap, offset) != data[:overlap]:
            raise StoreError(
                f"{path}: what the board sends contradicts what is here; "
                f"move {path.parent} away and pull again to have the board's"
            )
        position = offset + overlap
        try:
            while position < offset + len(data):
                position += os.pwrite(fd, data[position - offset :], position)
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
        return max(size, position)
    finally:
        os.close(fd)


def list_runs(environ: Mapping[str, str] = os.environ) -> list[RunFolder]:
    """All runs here, oldest first (run ids begin with the time they were made)."""
    root = runs_root(environ)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StoreError(f"cannot read {root}: {exc.strerror or exc}") from exc
    return [folder for name in names if _is_run_id(name) and (folder := RunFolder(root / name)).exists]


def _is_run_id(name: str) -> bool:
    try:
        check_run_id(name)
    except EdgeLtsError:
        return False
    return True


def resolve(run: str | None = None, environ: Mapping[str, str] = os.environ) -> RunFolder:
    """The run called `run`, the only one whose id begins or ends with it, or the run folder at that path; the newest
    for None.

    Raises UsageError that lists the nearest, or the newest, there are.
    """
    if run is not None and "/" in run:
        folder = RunFolder(Path(run))
        if not folder.exists:
            raise UsageError(f"{run} is no run folder: it has no spec.json")
        return folder
    folders = list_runs(environ)
    if not folders:
        raise UsageError(
            f"there are no runs in {runs_root(environ)}; start one: edge-lts run --target local --budget 10m"
        )
    if run is None:
        return folders[-1]
    ids = [folder.run_id for folder in folders]
    if run in ids:
        return folders[ids.index(run)]
    alike = [
        index for index, run_id in enumerate(ids) if run and (run_id.startswith(run) or run_id.endswith(f"-{run}"))
    ]
    if len(alike) == 1:
        return folders[alike[0]]
    if alike:
        shown = ", ".join(ids[index] for index in alike[-5:])
        raise UsageError(f"{run!r:.80} may be any of {len(alike)} runs: {shown}")
    import difflib

    near = difflib.get_close_matches(run, ids, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the newest: {', '.join(reversed(ids[-3:]))}"
    raise UsageError(f"no run is called {run!r:.80}; {hint}")


def dump_json(data: Any) -> str:
    """JSON for people and programs: indented, ASCII (so no terminal escape survives), never NaN."""
    return json.dumps(data, indent=2, allow_nan=False)

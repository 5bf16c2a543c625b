"""Sending a run's files to the workstation, and removing everything that edge-lts left on a board.

`pull` streams in bounded memory and never sends half a line of a ledger. `clean` touches nothing but `env/`, `agents/`
and `runs/` of a folder that is recognisably ours.
"""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from edge_lts.agent import Emit
from edge_lts.errors import EdgeLtsError, LockedError, SpecError
from edge_lts.job import Lock, is_locked
from edge_lts.on_boot import remove
from edge_lts.reservation import RESERVED
from edge_lts.runfolder import (
    APPENDED_FILES,
    BOARD_LOCK,
    LEDGER,
    LOCK,
    LOG,
    MAX_JSON_BYTES,
    REPLACED_FILES,
    ROOT_MARKER,
    TUNED,
    RunFolder,
)
from edge_lts.status import runs_of

CHUNK_BYTES = 64 << 10
PREFIX_BYTES = 64 << 10
OURS = ("env", "agents", "runs", "trainings")


class PullError(EdgeLtsError):
    """A file changed in a way that only happens when somebody else writes into a run folder."""


def pull(emit: Emit, stdout: IO[bytes], run_dir: Path, offsets_json: str) -> int:
    """For each file an event `file` with its size, followed by exactly that many raw bytes; then an event `pulled`.

    Files that only grow are sent from the reader's offset, up to their last whole line (log.txt: to its end). The
    reader can tell that its copy is a prefix of ours by `sha256_prefix`, the SHA-256 of the `n_prefix_bytes` bytes
    before the offset; a file shorter than the offset is sent from 0. The others are small and sent whole, smallest
    risk first.
    """
    folder = RunFolder(run_dir)
    if not folder.path.is_dir():
        raise SpecError(f"{folder.path} does not exist")
    offsets = _check_offsets(offsets_json)
    n_files = n_bytes = 0
    for name in (*REPLACED_FILES, *APPENDED_FILES):
        try:
            file = (folder / name).open("rb")
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise SpecError(f"cannot read {folder / name}: {exc.strerror or exc}") from exc
        with file:
            size = _send_whole(emit, stdout, name, file) if name in REPLACED_FILES else 0
            if name in APPENDED_FILES:
                size = _send_tail(emit, stdout, name, file, offsets.get(name, 0))
        n_files, n_bytes = n_files + 1, n_bytes + size
    emit({"event": "pulled", "n_files": n_files, "n_bytes": n_bytes})
    return 0


def _check_offsets(text: str) -> dict[str, int]:
    try:
        offsets = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"--offsets is not JSON: {exc}") from exc
    if not isinstance(offsets, dict):
        raise SpecError("--offsets must be a JSON object of file names and bytes")
    for name, offset in offsets.items():
        if name not in APPENDED_FILES:
            raise SpecError(f"--offsets names {name!r:.80}; only {', '.join(APPENDED_FILES)} are sent from an offset")
        if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < 1 << 62:
            raise SpecError(f"the offset of {name} must be a number of bytes, not {offset!r:.40}")
    return offsets


def _send_whole(emit: Emit, stdout: IO[bytes], name: str, file: IO[bytes]) -> int:
    data = file.read(MAX_JSON_BYTES)
    emit({"event": "file", "name": name, "offset": 0, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    stdout.write(data)
    stdout.flush()
    return len(data)


def _send_tail(emit: Emit, stdout: IO[bytes], name: str, file: IO[bytes], offset: int) -> int:
    end = os.fstat(file.fileno()).st_size
    if name == LEDGER:
        with contextlib.suppress(OSError):  # a disk that fails is read as far as it goes
            os.fsync(file.fileno())  # what the reader has must not be taken back by a power cut
    is_reset = offset > end
    if is_reset:
        offset = 0
    if name != LOG:
        end = _end_of_last_line(file, offset, end)
    n_prefix = min(offset, PREFIX_BYTES)
    file.seek(offset - n_prefix)
    prefix = hashlib.sha256(file.read(n_prefix)).hexdigest()
    emit(
        {
            "event": "file",
            "name": name,
            "offset": offset,
            "size": end - offset,
            "sha256_prefix": prefix,
            "n_prefix_bytes": n_prefix,
            "is_reset": is_reset,
        }
    )
    left = end - offset
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise PullError(f"{name} became shorter while it was sent; pull again")
        stdout.write(chunk)
        left -= len(chunk)
    stdout.flush()
    return end - offset


def _end_of_last_line(file: IO[bytes], low: int, high: int) -> int:
    """The position behind the last newline in [low, high), `low` if there is none; reads backwards."""
    while high > low:
        begin = max(low, high - CHUNK_BYTES)
        file.seek(begin)
        newline = file.read(high - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        high = begin
    return low


def clean(emit: Emit, root: Path, *, keep_runs: bool, is_dry_run: bool) -> int:
    """Remove env/, agents/, runs/ and trainings/ of a device root. Raises LockedError while a run is alive."""
    import shutil  # 0.5 MB that the supervisor does not need

    from edge_lts.surroundings import restored_governors

    if not root.exists() and not root.is_symlink():
        emit({"event": "cleaned", "root": str(root), "sizes": {}, "removed": [], "is_dry_run": is_dry_run})
        return 0
    _check_is_ours(root)
    names = [name for name in OURS if (root / name).is_dir()]
    sizes = {name: _size(root / name) for name in names}
    kept = ("runs", "trainings") if keep_runs else ()
    doomed = [name for name in ("runs", "trainings", "env", "agents") if name in names and name not in kept]
    if is_dry_run:
        emit({"event": "cleaned", "root": str(root), "sizes": sizes, "removed": [], "is_dry_run": True})
        return 0
    with Lock(root / BOARD_LOCK, run_id="clean", what=f"this board ({root})"):
        for run in runs_of(root):
            if is_locked(run / LOCK):
                raise LockedError(f"the run {run.name} is alive; stop it before cleaning {root}")
        for run in runs_of(root):
            remove(RunFolder(run))
        restored_governors(root)  # what is known of them is about to go
        event: dict[str, Any] = {"event": "cleaned", "root": str(root), "sizes": sizes, "removed": doomed}
        line = {**event, "is_dry_run": False}
        try:
            for name in doomed:  # this program is in agents/: everything it needs is imported by now
                shutil.rmtree(root / name)
            if not keep_runs:
                for file in (ROOT_MARKER, BOARD_LOCK, RESERVED):
                    (root / file).unlink(missing_ok=True)
        except OSError as exc:
            raise SpecError(f"cannot remove {exc.filename or root}: {exc.strerror or exc}") from exc
    if not keep_runs and not os.listdir(root):
        root.rmdir()
    emit(line)
    return 0


def _check_is_ours(root: Path) -> None:
    """Refuse what could be anything but a device root of this user."""
    facts = root.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise SpecError(f"{root} is not a folder (a symbolic link, perhaps); name the folder itself")
    if facts.st_uid != os.geteuid():
        raise SpecError(f"{root} belongs to another user; clean it as that user")
    found = set(os.listdir(root))
    if ROOT_MARKER not in found and found - {*OURS, BOARD_LOCK, RESERVED, TUNED}:
        strange = sorted(found - {*OURS, BOARD_LOCK, RESERVED, TUNED})[0]
        raise SpecError(
            f"{root} does not look like a folder of edge-lts: it has no {ROOT_MARKER} and holds {strange!r}"
        )
    for name in OURS:
        if (root / name).is_symlink():
            raise SpecError(f"{root / name} is a symbolic link; remove it by hand")


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(path) / name).lstat().st_size
            except OSError:
                continue
    return total

"""status.json: what a run says of itself, and what may be believed of it.

The supervisor replaces the file at every measurement and every five seconds. A reader never trusts it alone: a run that
calls itself running is alive only if its lock is held by the process that the lock names; otherwise it was interrupted.

Imports little: a workstation asks often, and many boards.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_lts.errors import EdgeLtsError
from edge_lts.job import Identity, boot_id, is_locked, read_holder
from edge_lts.reservation import claims
from edge_lts.runfolder import (
    LOCK,
    ROOT_MARKER,
    SPEC,
    STATUS,
    RunFolder,
    complain,
    now_utc,
    overwrite,
    to_bytes,
    write_atomic,
)
from edge_lts.values import SCHEMA_VERSION, check_schema

ACTIVE_STATES = ("starting", "running", "confirming")
STATES = (*ACTIVE_STATES, "done", "stopped", "failed", "interrupted")
HEARTBEAT_S = 5.0


class StatusFile:
    """Writes status.json, at every change and from a thread at every heartbeat. Never raises for a full disk."""

    def __init__(self, path: Path, *, run_id: str, budget_s: float, spent_s: Callable[[], float]) -> None:
        self.path = path
        self._spent_s = spent_s
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.fields: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "state": "starting",
            **Identity.current().to_json(),
            "spent_s": 0.0,
            "budget_s": budget_s,
            "n_measured": 0,
            "n_failed": 0,
            "n_confirmations": 0,
            "n_frontier": 0,
            "reasons": [],
            "heartbeat_monotonic_s": 0.0,
            "updated_at": "",
            "message": "",
        }

    def update(self, **changes: Any) -> None:
        with self._guard:
            self.fields.update(changes)
            self.fields.update(
                spent_s=round(self._spent_s(), 3),
                heartbeat_monotonic_s=round(time.monotonic(), 3),
                updated_at=now_utc(),
            )
            data = to_bytes(self.fields)
            try:
                write_atomic(self.path, data)
            except OSError as exc:
                try:
                    overwrite(self.path, data)
                except OSError:
                    complain(f"cannot write {self.path}: {exc}")

    def start_heartbeat(self, interval_s: float = HEARTBEAT_S) -> None:
        def beat() -> None:
            while not self._ended.wait(interval_s):
                self.update()

        self._thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop_heartbeat(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def check_status(data: dict[str, Any]) -> dict[str, Any]:
    """The status itself if it is one. Raises EdgeLtsError saying what is wrong."""
    check_schema("it", data, EdgeLtsError)
    if data.get("state") not in STATES:
        raise EdgeLtsError(f"unknown state {data.get('state')!r:.40}")
    for name in ("spent_s", "budget_s", "n_measured", "n_failed", "n_frontier"):
        value = data.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise EdgeLtsError(f"{name} must be a number, not {value!r:.40}")
    return data


def is_alive(folder: RunFolder) -> bool:
    """Whether a supervisor holds this run: its lock is held, by the process that the lock names."""
    if not is_locked(folder / LOCK):
        return False
    identity = Identity.from_json(read_holder(folder / LOCK))
    return identity is None or identity.matches_a_process()


def describe(folder: RunFolder) -> dict[str, Any]:
    """status.json with `is_alive`, the sizes of the run's files and a state that takes death into account.

    Never raises: a status that cannot be read has the state `unknown` and a message.
    """
    alive = is_alive(folder)
    try:
        status = check_status(folder.read_status())
    except FileNotFoundError:
        message = "not started yet" if (folder / SPEC).exists() else "there is no run here"
        status = {"state": "starting" if alive else "unknown", "message": message}
    except (OSError, ValueError, EdgeLtsError) as exc:
        status = {"state": "unknown", "message": f"cannot read {folder / STATUS}: {exc}"}
    if status["state"] in ACTIVE_STATES and not alive:
        message = folder.disk_trouble() or "the supervisor is gone; resume continues the run"
        from edge_lts.on_boot import ENTRY

        # Right after a reboot the system is about to go on with a run that was arranged so.
        goes_on = status.get("boot_id") != boot_id() and (folder / ENTRY).exists()
        status = {**status, "state": "interrupted", "message": message, "goes_on_by_itself": goes_on}
    return {**status, "run_id": folder.run_id, "path": str(folder.path), "is_alive": alive, "sizes": folder.sizes()}


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (SPEC, LOCK, "status.json", "ledger.jsonl"))


def runs_of(root: Path) -> list[Path]:
    """Run folders of a device root, oldest name first."""
    try:
        return sorted(path for path in (root / "runs").iterdir() if path.is_dir() and is_run(path))
    except OSError:
        return []


def answer(emit: Callable[[dict[str, Any]], None], paths: Sequence[Path], *, show_all: bool) -> int:
    """One event per run. Of a root: who has the board, the runs that are not over and the one last heard of; with
    `show_all` every one."""
    for path in paths:
        if is_run(path) or not ((path / "runs").is_dir() or (path / ROOT_MARKER).exists()):
            emit({"event": "status", **describe(RunFolder(path))})
            continue
        emit({"event": "board", "root": str(path), **claims(path)})
        found = [describe(RunFolder(run)) for run in runs_of(path)]
        newest = max(found, key=lambda one: (str(one.get("updated_at", "")), str(one["run_id"])), default=None)
        for one in found:
            if show_all or one is newest or one["is_alive"] or one["state"] in (*ACTIVE_STATES, "interrupted"):
                emit({"event": "status", **one})
    return 0

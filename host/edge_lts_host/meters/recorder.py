"""Records a meter into `meter.jsonl` in a run's folder while somebody waits for the run.

One JSON object a line, appended: first a header that says which meter, in which boot of this machine (monotonic clocks
of different boots are never mixed), then readings. `clock` lines say when which monotonic second of the *board* was
seen in its status.json: that narrows down where its clock lies against ours. Errors are lines too; the port is opened
again with growing pauses. Nothing that happens here may disturb the run: `start` and `stop` never raise.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_lts import job
from edge_lts.runfolder import STATUS, now_utc, read_json
from edge_lts_host.meters import open_meter
from edge_lts_host.meters.base import Meter, MeterError

METER_LOG = "meter.jsonl"
LOG_VERSION = 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
LOOK_S = 1.0
# A reading that fails may be noise; so many in a row mean that the port must be opened anew.
_FAILURES_TO_REOPEN = 2


@functools.cache
def this_boot() -> str:
    """This boot of this machine; where the kernel does not say, this process."""
    return job.boot_id() or f"process-{uuid.uuid4()}"


class Recorder:
    """A thread that reads one meter. `open`, `clock` and `wait` are replaced in tests."""

    def __init__(
        self,
        meter: str,
        folder: Path | os.PathLike[str],
        *,
        warn: Callable[[str], None] = lambda _: None,
        open: Callable[[str], Meter] = open_meter,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.meter = meter
        self.folder = Path(folder)
        self.n_readings = 0
        self._warn, self._open, self._clock = warn, open, clock
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._thread: threading.Thread | None = None
        self._has_header, self._is_troubled, self._is_full = False, False, False
        self._look_at_s, self._seen = 0.0, (0, 0)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"meter {self.meter}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may need some seconds to give up on a silent meter."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        self._end_torn_line()
        while not self._ended.is_set():
            n_before = self.n_readings
            try:
                with self._open(self.meter) as meter:
                    self._read_until_it_fails(meter)
            except MeterError as exc:
                self._trouble(exc)
            except Exception as exc:  # noqa: BLE001 - a meter must never end the run that it watches
                self._trouble(MeterError(self.meter, f"{type(exc).__name__}: {exc}"))
            pause_s = FIRST_PAUSE_S if self.n_readings > n_before else min(LONGEST_PAUSE_S, 2 * pause_s)
            if self._wait(pause_s):
                return

    def _read_until_it_fails(self, meter: Meter) -> None:
        n_failed = 0
        self._has_header = False
        while not self._ended.is_set():
            began_s = self._clock()
            try:
                reading = meter.read()
            except MeterError as exc:
                n_failed += 1
                if n_failed >= _FAILURES_TO_REOPEN:
                    raise
                self._trouble(exc)
                continue
            n_failed = 0
            if not self._has_header:
                self._header(meter)
            if self._is_troubled:
                self._is_troubled = False
                self._warn(f"{meter.name} answers again")
            self._write(
                {
                    "t_s": round(reading.t_s, 4),
                    "power_w": round(reading.power_w, 6),
                    "voltage_v": None if reading.voltage_v is None else round(reading.voltage_v, 6),
                    "current_a": None if reading.current_a is None else round(reading.current_a, 6),
                }
            )
            self.n_readings += 1
            self._look_at_board()
            left_s = meter.interval_s - (self._clock() - began_s)
            if left_s > 0 and self._wait(left_s):
                return

    def _header(self, meter: Meter) -> None:
        self._has_header = True
        self._write(
            {
                "kind": "header",
                "schema_version": LOG_VERSION,
                "meter": meter.kind,
                "model": meter.model,
                "where": meter.where,
                "scope": meter.scope,
                "interval_s": meter.interval_s,
                "clock": "monotonic",
                "boot_id": this_boot(),
                "at": now_utc(),
            }
        )

    def _trouble(self, exc: MeterError) -> None:
        self._write({"kind": "error", "t_s": round(self._clock(), 4), "message": str(exc)})
        if not self._is_troubled:
            self._is_troubled = True
            self._warn(f"the meter is not read: {exc}; trying again; the run goes on without it")

    def _look_at_board(self) -> None:
        """Note the board's monotonic clock when a new status.json is here: it was written at most that late."""
        now_s = self._clock()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        path = self.folder / STATUS
        with contextlib.suppress(OSError, ValueError):
            stat = path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino)
            if seen == self._seen:
                return
            self._seen = seen
            status = read_json(path)
            board_s, boot = status.get("heartbeat_monotonic_s"), status.get("boot_id")
            if isinstance(board_s, (int, float)) and board_s > 0 and isinstance(boot, str):
                self._write({"kind": "clock", "t_s": round(now_s, 4), "board_s": board_s, "boot_id": boot})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            fd = os.open(self.folder / METER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError as exc:
            if not self._is_full:
                self._is_full = True
                self._warn(f"cannot write {self.folder / METER_LOG}: {exc.strerror or exc}; energy will be missing")

    def _end_torn_line(self) -> None:
        """A recorder before this one may have been killed in the middle of a line."""
        path = self.folder / METER_LOG
        with contextlib.suppress(OSError), path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")

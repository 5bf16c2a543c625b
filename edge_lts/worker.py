"""A board that measures for a search on the workstation (`run --pool`): one candidate at a time, its lock held.

stdin brings JSON lines: first the run's spec, then one request after the other. A blank line only says that the
workstation is there. When stdin ends or is silent for `QUIET_S`, the measurement in flight is given up and the board is
left as it was found, so a lost link never leaves anything running here. docs/pool.md has the messages.
"""

import dataclasses
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast, get_args

from edge_lts import device
from edge_lts.agent import Emit, MakeMeasurer, MeasurerLike
from edge_lts.arch import Architecture
from edge_lts.errors import Interrupted, SpecError
from edge_lts.job import Lock
from edge_lts.measurer import LineReader
from edge_lts.preparation import check_spec
from edge_lts.records import Purpose, RunSpec
from edge_lts.runfolder import BOARD_LOCK, RunFolder
from edge_lts.surroundings import Surroundings
from edge_lts.verbs import default_root, make_measurer

QUIET_S = 60.0


class Worker:
    """`lines` hands out what the workstation says, None at the end; `end` may come from any thread or signal."""

    def __init__(self, emit: Emit, make: MakeMeasurer, root: Path, system_root: Path = device.SYSTEM) -> None:
        self._emit = emit
        self._make_measurer = make
        self._root = root
        self._system_root = system_root
        self._is_over = False
        self._measurer: MeasurerLike | None = None

    def end(self) -> None:
        self._is_over = True
        if self._measurer is not None:
            self._measurer.cancel()

    def work(self, lines: Callable[[], bytes | None]) -> None:
        """Until `lines` ends. Raises SpecError for what makes no sense, LockedError when another run has the board."""
        first = lines()
        if first is None:
            return
        spec = RunSpec.from_json(_parse(first))
        check_spec(RunFolder(self._root / "runs" / spec.run_id), spec)
        self._root.mkdir(parents=True, exist_ok=True)
        surroundings = Surroundings(
            spec,
            self._root,
            emit=lambda event, **fields: self._emit({"event": event, **fields}),
            clock=time.monotonic,
            should_stop=lambda: self._is_over,
            system_root=self._system_root,
        )
        with Lock(self._root / BOARD_LOCK, run_id=spec.run_id, what=f"this board ({self._root})"), surroundings:
            try:
                self._work(spec, surroundings, lines)
            except Interrupted:
                if not self._is_over:
                    raise
            finally:
                if self._measurer is not None:
                    self._measurer.close()

    def _work(self, spec: RunSpec, surroundings: Surroundings, lines: Callable[[], bytes | None]) -> None:
        info = device.probe(is_emulated=spec.is_emulated or None)
        self._emit({"event": "device", **info.to_json(), "placement": surroundings.facts()["placement"]})
        available = info.memory_available_bytes
        limit = None if available is None else int(available * (1 - spec.memory_headroom))
        rules = dataclasses.replace(spec.protocol, threads=surroundings.threads)
        measurer = self._make_measurer(dataclasses.replace(spec, protocol=rules), limit, sys.stderr.buffer)
        if spec.commands:
            from edge_lts.user_command import CommandMeasurer

            timeout_s = spec.candidate_timeout_s
            measurer = CommandMeasurer(measurer, spec.commands, run_dir=self._root, timeout_s=timeout_s)
        self._measurer = measurer
        if self._is_over:
            return
        self._emit({"event": "ready", **measurer.start(), "threads": rules.threads})
        while (line := lines()) is not None and not self._is_over:
            request = _parse(line)
            candidate_id, purpose, threads = (request.get(name) for name in ("candidate_id", "purpose", "threads"))
            if request.get("do") == "settle":
                swept = surroundings.sweep(measurer, info) if request.get("is_sweeping") is True else {}
                threads = swept.get("threads", threads or rules.threads)
                surroundings.warm_up(measurer, threads)
                self._emit({"event": "settled", "threads": threads, "thread_sweep": swept})
                continue
            if not isinstance(candidate_id, int) or purpose not in get_args(Purpose):
                raise SpecError(f"a request must name its candidate_id and purpose, not {purpose!r:.40}")
            surroundings.before_candidate()
            outcome = measurer.measure(
                candidate_id,
                Architecture.from_json(request.get("architecture")),
                cast(Purpose, purpose),
                protocol=dataclasses.replace(rules, threads=threads or rules.threads),
            )
            surroundings.after(outcome)
            self._emit({"event": "outcome", **outcome.to_json()})


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"a request is not JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise SpecError("a request must be a JSON object")
    return data


def serve(emit: Emit, stdin: int, command: Sequence[str], *, root: Path | None = None, quiet_s: float = QUIET_S) -> int:
    """The verb: `stdin` is a file descriptor."""
    worker = Worker(emit, make_measurer(command), default_root() if root is None else root)
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def end(signum: int = 0, frame: FrameType | None = None) -> None:
        worker.end()
        inbox.put(None)

    def listen() -> None:
        reader = LineReader(stdin)
        try:
            while (line := reader.read_line(time.monotonic() + quiet_s)) is not None:
                if line.strip():
                    inbox.put(line)
        except (OSError, TimeoutError):
            pass
        end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    threading.Thread(target=listen, name="listen", daemon=True).start()
    worker.work(inbox.get)
    return 0

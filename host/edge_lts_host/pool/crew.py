"""The boards of a pool as workers of dask.distributed: who measures, who is lost, who came back.

One dask worker per board, each a thread of this process with the resource `board: 1`, so that a board measures one
candidate at a time. Everything talks through memory (`inproc://`); the scheduler's and the workers' HTTP pages, which
dask always has, listen on 127.0.0.1 alone. A board that is lost closes its worker, and the scheduler gives what it was
measuring to another; a candidate that took MOST_LOSSES boards with it is a failure. A lost board is tried again, with
growing pauses, until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge_lts.errors import EdgeLtsError
from edge_lts.records import DeviceInfo, Failure, Outcome, Purpose
from edge_lts_host.errors import PreflightError, TransportError, UsageError
from edge_lts_host.fleet import side_by_side
from edge_lts_host.reconnect import Pauses, is_worth_another_try

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts_host.pool.board import Board

MOST_LOSSES = 3
SAME = ("machine", "cpu_model", "n_cores", "page_size_bytes", "torch", "python")
_END_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One measurement to make; `board` is where, or on any other should that one be lost; `threads` None: as usual."""

    key: int
    board: str
    candidate_id: int
    architecture: Architecture
    purpose: Purpose
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """A task has come to a board: the one it was meant for, or another where that was lost."""

    key: int
    board: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A task is closed: `board` measured it in `duration_s` (of its last attempt)."""

    key: int
    board: str
    outcome: Outcome
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    board: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    board: str


Happening = Began | Done | Lost | Back


class CrewLike(Protocol):
    """What the supervisor needs of a crew; tests have one with a clock of its own."""

    def connect(self, *, may_lack: bool) -> dict[str, DeviceInfo]:
        """Reach every board; those that answer, by name. `may_lack`: one is enough (a resumed run)."""

    def prepare(self, threads: int | None, *, is_sweeping: bool) -> tuple[int, dict[str, Any]]:
        """Make every board ready to measure; (threads, the thread sweep or {})."""

    def alive(self) -> list[str]: ...
    def submit(self, task: Task) -> None: ...
    def wait(self, timeout_s: float) -> list[Happening]:
        """What happened, at least something unless `timeout_s` is over."""

    def cancel(self) -> None:
        """Let whatever waits for a board raise Interrupted. For signal handlers."""

    def close(self) -> None:
        """End every worker and leave nothing running on any board."""


def check_identical(infos: Mapping[str, DeviceInfo]) -> None:
    """Raises PreflightError naming two boards and what of them differs."""
    first = next(iter(infos))
    for name, field in itertools.product(infos, SAME):
        one, other = getattr(infos[first], field), getattr(infos[name], field)
        if field == "python":
            one, other = (str(version).rpartition(".")[0] for version in (one, other))
        if one != other:
            raise PreflightError(
                f"{first} and {name} are not identical: {field} is {one} and {other}",
                "a pool needs boards of one kind, deployed alike; run the others by themselves (--limit)",
            )


def require_dask() -> None:
    """Raises UsageError saying how to get it."""
    if importlib.util.find_spec("distributed") is None:
        raise UsageError("--pool needs dask.distributed: pip install 'edge-lts[pool]'")


class Crew:
    """See CrewLike; `timeout_s` is given to one candidate, beyond what its board takes to say so."""

    _all: dict[str, Crew] = {}  # noqa: RUF012  (dask pickles what it is given, so a task finds its crew by name)

    def __init__(self, boards: Sequence[Board], *, timeout_s: float, has_dashboard: bool = False) -> None:
        self._boards = {board.name: board for board in boards}
        self._timeout_s = timeout_s
        self._has_dashboard = has_dashboard
        self._threads = 0
        self._infos: dict[str, DeviceInfo] = {}
        self._workers: dict[str, Any] = {}
        self._farewells: list[Future[Any]] = []  # of workers that are closing because their board was lost
        self._open: dict[int, tuple[Task, Any]] = {}  # by key: the task and its future
        self._n_submitted = 0
        self._were_all_lost = False
        self._happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._is_over = False  # beside the event, whose lock is not for signal handlers
        self._closing = threading.Event()
        self._menders: list[threading.Thread] = []
        self._cluster: Any = None
        self._client: Any = None
        self._stack = contextlib.ExitStack()
        self._id = f"{id(self)}"

    @property
    def dashboard(self) -> str | None:
        """Where the dashboard is, once the crew is prepared."""
        return f"http://127.0.0.1:{self._cluster.scheduler.http_server.port}/status" if self._has_dashboard else None

    def connect(self, *, may_lack: bool) -> dict[str, DeviceInfo]:
        found = side_by_side(list(self._boards.values()), lambda board: board.connect(), n_parallel=len(self._boards))
        for result in found:
            if result.error is not None:
                if not may_lack or not any(one.error is None for one in found):
                    raise result.error
                self._lose(result.item.name, result.error)
        self._infos = {one.item.name: one.value for one in found if one.value is not None}
        check_identical(self._infos)
        return dict(self._infos)

    def prepare(self, threads: int | None, *, is_sweeping: bool) -> tuple[int, dict[str, Any]]:
        boards = [self._boards[name] for name in self._infos]
        ready = side_by_side(boards, lambda board: int(board.ready()["threads"]), n_parallel=len(boards))
        for result in ready:
            if result.error is not None:
                raise result.error
        found = {result.item.name: result.value for result in ready}
        if threads is None and len(set(found.values())) > 1:
            raise PreflightError(f"the boards would use different numbers of threads: {found}", "choose with --threads")
        swept: dict[str, Any] = {}
        if is_sweeping:
            answer = boards[0].settle(threads, is_sweeping=True)
            swept, threads, boards = dict(answer.get("thread_sweep") or {}), int(answer["threads"]), boards[1:]
        self._threads = threads or next(iter(found.values())) or 1
        for settled in side_by_side(boards, lambda board: board.settle(self._threads), n_parallel=len(self._boards)):
            if settled.error is not None:
                raise settled.error
        self._begin()
        return self._threads, swept

    def alive(self) -> list[str]:
        with self._guard:
            return list(self._workers)

    def submit(self, task: Task) -> None:
        self._n_submitted += 1
        future = self._client.submit(
            _measure,
            self._id,
            task,
            key=f"{task.purpose}-{task.candidate_id}-{self._n_submitted}",
            workers=[task.board],
            allow_other_workers=True,
            resources={"board": 1},
            pure=False,
        )
        self._open[task.key] = (task, future)
        future.add_done_callback(lambda done: self._close_task(task, done))

    def wait(self, timeout_s: float) -> list[Happening]:
        happenings = []
        with contextlib.suppress(queue.Empty):
            happenings.append(self._happenings.get(timeout=timeout_s))
            while True:
                happenings.append(self._happenings.get_nowait())
        for one in happenings:
            if isinstance(one, Done):
                self._open.pop(one.key, None)
            elif isinstance(one, Back) and self._were_all_lost:
                self._were_all_lost = False
                self._submit_again(one.board)
        return happenings

    def cancel(self) -> None:
        self._is_over = True
        for board in self._boards.values():
            board.cancel()

    def close(self) -> None:
        self._is_over = True
        self._closing.set()
        for _, future in self._open.values():
            future.cancel()
        side_by_side(list(self._boards.values()), lambda board: board.close(), n_parallel=len(self._boards))
        for mender in self._menders:
            mender.join(_END_S)
        with self._guard:
            workers, self._workers = self._workers, {}
        # All that counts is in the ledger by now: an engine that does not end tidily is no failure of the run.
        with contextlib.suppress(Exception):
            if self._client is not None:
                for worker in workers.values():
                    self._client.sync(worker.close, executor_wait=False, callback_timeout=_END_S)
            wait(self._farewells, _END_S)  # a worker whose closing is cut off never says that it is closed
        with contextlib.suppress(Exception):
            self._stack.close()
        self._client = self._cluster = None
        self._all.pop(self._id, None)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        import dask

        with dask.config.set({"logging.distributed": "critical"}):  # what counts of the boards is told by us
            from distributed import Client, LocalCluster

        self._all[self._id] = self
        settings = {
            "distributed.scheduler.allowed-failures": MOST_LOSSES - 1,
            "distributed.scheduler.work-stealing": False,
            "distributed.admin.low-level-log-length": 100,
        }
        self._stack.enter_context(dask.config.set(settings))
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-lts-pool-"))
        self._cluster = self._stack.enter_context(
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=0,
                processes=False,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": self._has_dashboard},
                silence_logs=logging.CRITICAL,
            )
        )
        self._client = self._stack.enter_context(Client(self._cluster))  # type: ignore[no-untyped-call]
        for name in self._infos:
            self._add_worker(name)

    def _add_worker(self, name: str) -> None:
        from distributed import Worker

        async def start() -> Any:
            return await Worker(
                self._cluster.scheduler_address,
                name=name,
                nthreads=1,
                resources={"board": 1},
                memory_limit=0,
                dashboard=False,
                dashboard_address="127.0.0.1:0",
                local_directory=self._folder,
            )

        worker = self._client.sync(start)
        with self._guard:
            self._workers[name] = worker

    def measure_on(self, name: str, task: Task) -> tuple[str, Outcome, float]:
        """In the thread of a board's worker. Raises Reschedule once the board's loss is known to the scheduler."""
        from distributed import Reschedule, Status

        begun_s = time.monotonic()
        self._happenings.put(Began(key=task.key, board=name))
        try:
            outcome = self._boards[name].measure(
                task.candidate_id,
                task.architecture,
                task.purpose,
                threads=task.threads or self._threads,
                timeout_s=self._timeout_s,
            )
            return name, outcome, time.monotonic() - begun_s
        except EdgeLtsError as exc:
            worker = self._lose(name, exc)
            while worker is not None and worker.status != Status.closed and not self._is_over:
                time.sleep(_POLL_S)
            raise Reschedule from exc

    def _submit_again(self, board: str) -> None:
        """What had no worker left: the scheduler does not offer it to one that comes later under an old name."""
        for task, future in list(self._open.values()):
            future.cancel()
            self.submit(dataclasses.replace(task, board=board))

    def _close_task(self, task: Task, future: Any) -> None:
        if self._is_over or future.cancelled():
            return
        if future.status == "finished":
            board, outcome, duration_s = future.result()
            self._happenings.put(Done(key=task.key, board=board, outcome=outcome, duration_s=duration_s))
            return
        failure = Failure(
            candidate_id=task.candidate_id,
            architecture=task.architecture,
            kind="crash",
            message=f"{MOST_LOSSES} boards were lost while they measured it",
            purpose=task.purpose,
        )
        self._happenings.put(Done(key=task.key, board=task.board, outcome=failure, duration_s=0.0))

    def _lose(self, name: str, error: EdgeLtsError) -> Any:
        """Take a board out, and begin to look for it; its dask worker, which is closing."""
        with self._guard:
            if self._is_over:  # `close` sees to the workers
                return None
            worker = self._workers.pop(name, None)
            self._were_all_lost |= self._client is not None and not self._workers
            if worker is not None:
                closing = worker.close(executor_wait=False)
                self._farewells.append(asyncio.run_coroutine_threadsafe(closing, self._client.loop.asyncio_loop))
        self._happenings.put(Lost(board=name, why=str(error)))
        mender = threading.Thread(target=self._bring_back, args=(self._boards[name],), name=f"mend-{name}", daemon=True)
        self._menders.append(mender)
        mender.start()
        return worker

    def _bring_back(self, board: Board) -> None:
        pauses = Pauses()
        while not self._closing.wait(pauses.after_loss()):
            try:
                info = board.connect()
                if self._infos:
                    first = next(iter(self._infos))
                    check_identical({first: self._infos[first], board.name: info})
                board.ready()
                board.settle(self._threads or None)
            except EdgeLtsError as exc:
                board.close()
                if isinstance(exc, PreflightError) or (
                    isinstance(exc, TransportError) and not is_worth_another_try(exc)
                ):
                    self._happenings.put(Lost(board=board.name, why=f"for good: {exc}"))
                    return
                continue
            if self._is_over:
                board.close()
                return
            if self._client is None:  # the others are not ready yet
                continue
            self._infos.setdefault(board.name, info)
            self._add_worker(board.name)
            self._happenings.put(Back(board=board.name))
            return


def _measure(crew: str, task: Task) -> tuple[str, Outcome, float]:
    from distributed import get_worker

    return Crew._all[crew].measure_on(str(get_worker().name), task)

"""The supervisor of a pool: edge_lts.agent's, with the measuring spread over boards.

Run folder, ledger, events, status, frontier, budget and signals are the supervisor's own; this file only decides what
each free board measures next, and turns what boards say into records:

    anchors     before the search: a few architectures on every board (pool/agreement.py), kept in device.json
    search      the searcher's batch (pool/batches.py), to whichever board is free
    baseline    one at a time while the others search, and what is left of them in the end
    confirm     while a batch ends, now and then along the way, and in the end: members of the frontier, first those
                that were measured on one board only, and not on that one

A record keeps what its board measured, the board's name, and beside it the board's factor, which frontiers and
searchers divide by. When no board answers for NOBODY_S the run stops and can be resumed: a lost link fails no run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from edge_lts.agent import MAX_CONSECUTIVE_FAILURES, ONE_THREAD_FACTOR, Emit, Stopped, Supervisor
from edge_lts.arch import Architecture
from edge_lts.baselining import Baselining
from edge_lts.budget import Budget, Durations
from edge_lts.confirming import Confirming
from edge_lts.errors import EdgeLtsError, EvaluationError, LockedError
from edge_lts.job import Lock
from edge_lts.ledger import LedgerReader
from edge_lts.preparation import add_facts
from edge_lts.records import DeviceInfo, Evaluation, Failure, Outcome, Purpose
from edge_lts.runfolder import LEDGER, LOCK, RunFolder
from edge_lts.speed import BOARD_FACTOR
from edge_lts.status import HEARTBEAT_S
from edge_lts_host.errors import TransportError
from edge_lts_host.pool import agreement
from edge_lts_host.pool.arguments import TOLERANCE
from edge_lts_host.pool.batches import Batches
from edge_lts_host.pool.crew import Began, CrewLike, Done, Lost, Task
from edge_lts_host.pool.parts import Elsewhere, PoolProgress, anchor_set

if TYPE_CHECKING:
    from edge_lts.search import Candidate

BOARDS_PER_MEMBER = 2
NOBODY_S = 600.0
POLL_S = 0.25


def _no_measurer(*_: object) -> NoReturn:
    raise AssertionError("a pool measures on its boards")


class PoolSupervisor(Supervisor):
    """One life of one run on several boards; see Supervisor. `tolerance` is how much boards may differ (0.1: 10 %)."""

    def __init__(
        self,
        folder: RunFolder,
        crew: CrewLike,
        *,
        emit: Emit,
        tolerance: float = TOLERANCE,
        root: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        super().__init__(
            folder,
            root=root,
            emit=emit,
            make_measurer=_no_measurer,
            clock=clock,
            probe=self._gather,
            heartbeat_s=heartbeat_s,
        )
        self._crew = crew
        self._tolerance = tolerance
        self._surroundings = Elsewhere(
            self._spec, self._root, emit=self._event, clock=clock, should_stop=lambda: self._stopped_by is not None
        )
        self._told = self._progress = PoolProgress(folder, self._spec)
        self._baselining = Baselining(self._spec, self._progress, self._durations)
        self._infos: dict[str, DeviceInfo] = {}
        self._factors: dict[str, agreement.Factor] = {}
        self._in_flight: dict[int, tuple[Task, Candidate | None]] = {}
        self._homeless: set[int] = set()  # of those, whose board was lost
        self._n_tasks = 0
        self._n_failed_in_a_row = 0
        self._drawn_at = -1
        self._heard_s = self._begun_s  # when a board was there last
        self._refusal: EdgeLtsError | None = None
        self._has_news = False
        self._rules_threads = 0
        self._batches: Batches

    def run(self) -> int:
        """As Supervisor.run; no board of this machine is locked, those of the pool are by their workers. Boards that
        cannot be reached or are in use raise, too, but then the status says `stopped`."""
        run_id = self._spec.run_id
        with Lock(self._folder / LOCK, run_id=run_id, what=f"the run {run_id}"), self._signals():
            try:
                code = self._run_locked()
            finally:
                self._crew.close()
        if self._refusal is not None:
            raise self._refusal
        return code

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        super()._on_signal(signum, frame)
        self._crew.cancel()

    def _run_recorded(self, spent_before_s: float) -> None:
        try:
            super()._run_recorded(spent_before_s)
        except EdgeLtsError as exc:  # while boards were being connected
            if self._stopped_by is not None:
                self._end("stopped", (f"stopped by {self._stopped_by}",))
                return
            if not isinstance(exc, (LockedError, TransportError)):
                raise
            self._end("stopped", (str(exc),))
            self._refusal = exc

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _gather(self, **_: object) -> DeviceInfo:
        """The pool as one device: the first board, with the memory of the smallest."""
        self._infos = self._crew.connect(may_lack=self._folder.read_device() is not None)
        first = next(iter(self._infos.values()))
        free = [info.memory_available_bytes for info in self._infos.values()]
        known = [value for value in free if isinstance(value, int)]
        return dataclasses.replace(first, memory_available_bytes=min(known) if known else None)

    def _replay(self, spent_before_s: float) -> bytes:
        self._batches = Batches(self._searcher, self._recall)
        tail = super()._replay(spent_before_s)
        self._durations = Durations()  # the time since the record before it says nothing here
        self._baselining = Baselining(self._spec, self._progress, self._durations)
        before_s: dict[str, float] = {}
        for outcome in LedgerReader(self._folder / LEDGER).outcomes():
            arch, board = outcome.architecture, outcome.board
            if outcome.spent_s > before_s.get(board, outcome.spent_s):
                self._took(outcome.purpose, arch, outcome.spent_s - before_s[board])
            before_s[board] = outcome.spent_s
        return tail

    def _replay_one(self, outcome: Outcome) -> None:
        self._batches.replay(self._progress.as_told(outcome), self._folder / LEDGER)

    def _recall(self, candidate: Candidate) -> Outcome | None:
        arch_id = candidate.architecture.arch_id
        if arch_id not in self._progress.candidate_ids:
            return None
        first = self._progress.first_outcome(arch_id)
        return self._progress.as_told(dataclasses.replace(first, candidate_id=candidate.candidate_id))

    def _work(self, info: DeviceInfo, limit_bytes: int | None) -> tuple[str, tuple[str, ...]]:
        try:
            self._stop_if_asked()
            pool = dict(info.extra.get("pool") or {})
            threads = pool.get("threads") or self._spec.protocol.threads or None
            self._rules_threads, swept = self._crew.prepare(threads, is_sweeping="threads" not in pool)
            self._stop_if_asked()
            self._status.update(state="running")
            self._event("ready", boards=self._crew.alive(), threads=self._rules_threads)
            facts = {"thread_sweep": swept} if swept else {}
            described = {name: {"device": one.to_json()} for name, one in self._infos.items()}
            pool["boards"] = {**described, **pool.get("boards", {})}
            pool |= {"threads": self._rules_threads, "tolerance": self._tolerance}
            self._measure_anchors(add_facts(self._folder, info, pool=pool, **facts), limit_bytes)
            reasons = self._search_and_confirm()
            confirming = Confirming(self._spec, self._progress, self._durations)
            return "done", reasons + confirming.reasons() + self._lonely() + self._baselining.reasons()
        except Stopped as exc:
            return "stopped", (str(exc),)
        except EdgeLtsError:
            if self._stopped_by is None:
                raise
            return "stopped", (f"stopped by {self._stopped_by}",)

    def _lonely(self) -> tuple[str, ...]:
        """What to say of members that no second board has measured."""
        members, boards = self._progress.member_ids, self._told.boards
        n_lonely = sum(len(boards.get(arch_id, ())) < BOARDS_PER_MEMBER for arch_id in members)
        return (f"no second board for {n_lonely} of {len(members)} members",) if n_lonely else ()

    # -- whether the boards are one pool ------------------------------------------------------------------------------

    def _measure_anchors(self, info: DeviceInfo, limit_bytes: int | None) -> None:
        """Find the factors of the boards that have none yet. Raises PreflightError.

        A board that is lost meanwhile is left out of this life of the run.
        """
        pool: dict[str, Any] = info.extra["pool"]
        boards: dict[str, dict[str, Any]] = pool["boards"]
        self._factors = known = {name: boards[name]["factor"] for name in boards if "factor" in boards[name]}
        if not set(self._infos) - set(known):
            return
        values: dict[str, agreement.Values] = {name: boards[name].setdefault("anchors", {}) for name in boards}
        anchors = anchor_set(self._spec, limit_bytes)
        for n_processes in range(1, agreement.MOST_PROCESSES + 1):
            new = [board for board in self._crew.alive() if board not in known]
            self._anchor_round({board: list(enumerate(anchors)) for board in new}, values)
            add_facts(self._folder, info, pool=pool)
            present = {*known, *self._crew.alive()}
            found = agreement.agree({name: values[name] for name in boards if name in present})
            if n_processes == agreement.MOST_PROCESSES:
                agreement.check(found, self._tolerance)
            if found.worst is None or found.worst.share <= self._tolerance:
                break
        self._factors = agreement.continued(found.factors, known)
        for name, factor in self._factors.items():
            boards[name]["factor"] = factor
        add_facts(self._folder, info, pool=pool)
        worst = None if found.worst is None else dataclasses.asdict(found.worst)
        self._event("pooled", factors=self._factors, worst=worst, tolerance=self._tolerance)

    def _anchor_round(
        self, waiting: dict[str, list[tuple[int, Architecture]]], values: Mapping[str, agreement.Values]
    ) -> None:
        """Measure every anchor on every board once; `waiting` has them by board."""
        while True:
            self._stop_if_asked()
            for board in self._idle():
                if waiting.get(board):
                    self._give(board, *waiting[board].pop(0), "single", None)
            if not self._in_flight:
                return
            for done in self._happenings():
                self._in_flight.pop(done.key)
                outcome = done.outcome
                if isinstance(outcome, Evaluation):
                    agreement.add(values[done.board], outcome)
                else:
                    self._event("failed", board=done.board, kind=outcome.kind, message=outcome.message[:500])

    # -- what each board measures next --------------------------------------------------------------------------------

    def _search_and_confirm(self) -> tuple[str, ...]:
        reasons: tuple[str, ...] = ()
        is_confirming = False
        has_news = True
        while True:
            self._stop_if_asked()
            for board in self._free() if has_news else ():
                if self._n_searched() and self._baseline_on(board, self._baselining.due):
                    continue
                if not reasons and self._search_on(board):
                    continue
                reasons = reasons or self._search_is_over()
                self._confirm_on(board)
            if reasons and not is_confirming:
                is_confirming = True
                self._status.update(state="confirming")
                self._event("confirming", n_members=len(self._progress.member_ids))
            if not self._in_flight and reasons and self._crew.alive():
                return reasons
            for done in self._happenings():
                self._close(done)
            has_news, self._has_news = self._has_news, False

    def _idle(self) -> list[str]:
        """Boards with nothing to do. A task whose board was lost comes to any of them, so that many less until then."""
        busy = {task.board for key, (task, _) in self._in_flight.items() if key not in self._homeless}
        idle = [board for board in self._crew.alive() if board not in busy]
        return idle[: max(0, len(idle) - len(self._homeless))]

    def _free(self) -> list[str]:
        """Those of the idle boards whose factor is known."""
        return [board for board in self._idle() if board in self._factors]

    def _n_searched(self) -> int:
        return self._progress.n_search + sum(task.purpose == "search" for task, _ in self._in_flight.values())

    def _search_on(self, board: str) -> bool:
        """Give a board a candidate, or now and then a member of the frontier again; whether there was one to give."""
        most, left_s = self._spec.max_candidates, self._left_to_search_s()
        n_searched = self._n_searched()
        if (most is not None and n_searched >= most) or (n_searched and left_s <= 0):
            return False
        if self._drawn_at != self._progress.n_search:
            self._drawn_at = self._progress.n_search
            confirming = Confirming(self._spec, self._progress, self._durations)
            again = confirming.along_the_way(left_s)
            if again is not None and self._may_confirm(again):
                self._measure_again_on(board, again)
                return True
        candidate = self._batches.next()
        if candidate is None:
            return False
        arch = candidate.architecture
        if n_searched and not self._durations.fits(arch.arch_id, arch.total_params, left_s):
            self._batches.put_back(candidate)
            return False
        self._give(board, candidate.candidate_id, arch, "search", candidate)
        return True

    def _search_is_over(self) -> tuple[str, ...]:
        """Why nothing more will be searched; () while it goes on or waits for the end of a batch."""
        if self._spec.max_candidates is not None and self._n_searched() >= self._spec.max_candidates:
            return ("max_candidates reached",)
        if self._batches.is_over:
            return self._batches.reasons()
        left_s = self._left_to_search_s()
        if self._n_searched() and left_s <= 0:
            return ("budget spent",)
        candidate = self._batches.next()
        if candidate is None:
            return ()
        self._batches.put_back(candidate)
        arch = candidate.architecture
        is_fitting = self._durations.fits(arch.arch_id, arch.total_params, left_s)
        return () if is_fitting or not self._n_searched() else ("budget spent",)

    def _confirm_on(self, board: str) -> None:
        """Give a board a member of the frontier to measure again, if one is waiting and the budget holds it; a baseline
        before, if it was not measured once, or when nothing else is left."""
        if self._baseline_on(board, self._baselining.lacking):
            return
        progress, left_s = self._progress, self._budget.left_s()
        confirming = Confirming(self._spec, progress, self._durations)
        waiting = [arch_id for arch_id in self._alone(board) if self._may_confirm(arch_id)]
        if not waiting:
            waiting = [arch_id for arch_id in confirming.waiting() if self._may_confirm(arch_id)]
        # Who has fewest processes comes first, on a board that has not measured it if there is one.
        waiting.sort(key=lambda one: (progress.n_attempts(one), board in self._told.boards.get(one, ()), one))
        for arch_id in waiting:
            if self._durations.fits(arch_id, progress.architecture(arch_id).total_params, left_s):
                self._measure_again_on(board, arch_id)
                return
        if self._batches_are_open():
            return
        has_no_more = not waiting and not progress.unconfirmed() and self._rules_threads > 1
        if not (has_no_more and self._one_thread_on(board, left_s)):
            self._baseline_on(board, self._baselining.rest)

    def _baseline_on(self, board: str, choose: Callable[[Budget, Collection[int]], int | None]) -> bool:
        """Give a board the baseline that is chosen, if any. Beside the search it is one at a time, and none that this
        board has measured and another has not."""
        busy = [task.candidate_id for task, _ in self._in_flight.values() if task.purpose == "baseline"]
        if choose == self._baselining.due:
            if busy:
                return False
            alive = set(self._crew.alive())
            tried = [self._told.baseline_boards.get(one.architecture.arch_id, set()) for one in self._spec.baselines]
            busy = [number for number, own in enumerate(tried) if board in own and alive - own]
        number = choose(self._budget, busy)
        if number is not None:
            self._give(board, number, self._baselining.architecture(number), "baseline", None)
        return number is not None

    def _batches_are_open(self) -> bool:
        return any(task.purpose == "search" for task, _ in self._in_flight.values())

    def _alone(self, board: str) -> list[str]:
        """Members that fewer than two boards have measured, and not this one."""
        tried = self._told.boards
        return [
            arch_id
            for arch_id in self._progress.member_ids
            if len(tried.get(arch_id, ())) < BOARDS_PER_MEMBER and board not in tried.get(arch_id, ())
        ]

    def _may_confirm(self, arch_id: str) -> bool:
        return all(task.architecture.arch_id != arch_id for task, _ in self._in_flight.values())

    def _measure_again_on(self, board: str, arch_id: str) -> None:
        candidate_id = self._progress.candidate_ids[arch_id]
        self._give(board, candidate_id, self._progress.architecture(arch_id), "confirm", None)

    def _one_thread_on(self, board: str, left_s: float) -> bool:
        """Whether there was a member to give that has not been measured so."""
        for arch_id in self._progress.without_one_thread():
            arch = self._progress.architecture(arch_id)
            if arch_id in self._tried_on_one_thread:
                continue
            if left_s < ONE_THREAD_FACTOR * self._durations.estimate_s(arch_id, arch.total_params):
                return False
            self._tried_on_one_thread.add(arch_id)
            self._give(board, self._progress.candidate_ids[arch_id], arch, "one_thread", None, threads=1)
            return True
        return False

    # -- giving and taking ---------------------------------------------------------------------------------------------

    def _give(
        self,
        board: str,
        candidate_id: int,
        arch: Architecture,
        purpose: Purpose,
        candidate: Candidate | None,
        threads: int | None = None,
    ) -> None:
        self._n_tasks += 1
        task = Task(
            key=self._n_tasks,
            board=board,
            candidate_id=candidate_id,
            architecture=arch,
            purpose=purpose,
            threads=threads,
        )
        self._in_flight[task.key] = (task, candidate)
        self._crew.submit(task)

    def _happenings(self) -> list[Done]:
        """Tasks that are closed; boards that come and go are noted on the way. Raises Stopped when none comes."""
        if self._crew.alive():
            self._heard_s = self._clock()
        elif self._clock() - self._heard_s >= NOBODY_S:
            raise Stopped(f"no board answered for {NOBODY_S:.0f} s")
        done: list[Done] = []
        for happening in self._crew.wait(POLL_S):
            self._has_news |= not isinstance(happening, Began)
            if isinstance(happening, Done):
                done.append(happening)
                self._homeless.discard(happening.key)
            elif isinstance(happening, Began):
                if happening.key in self._homeless:
                    self._homeless.remove(happening.key)
                    task, candidate = self._in_flight[happening.key]
                    self._in_flight[happening.key] = (dataclasses.replace(task, board=happening.board), candidate)
            elif isinstance(happening, Lost):
                self._homeless |= {key for key, (task, _) in self._in_flight.items() if task.board == happening.board}
                self._event("board_lost", board=happening.board, message=happening.why[:500])
            else:
                self._event("board_back", board=happening.board)
        return done

    def _close(self, done: Done) -> None:
        task, candidate = self._in_flight.pop(done.key)
        outcome = dataclasses.replace(done.outcome, board=done.board)
        if isinstance(outcome, Evaluation) and task.purpose != "one_thread" and done.board in self._factors:
            conditions = {**outcome.conditions, BOARD_FACTOR: self._factors[done.board]}
            outcome = dataclasses.replace(outcome, conditions=conditions)
        outcome = self._record(outcome, task.candidate_id, task.architecture, task.purpose, candidate, done.duration_s)
        if task.purpose != "search":
            return
        self._batches.done(self._progress.as_told(outcome))
        self._n_failed_in_a_row = self._n_failed_in_a_row + 1 if isinstance(outcome, Failure) else 0
        if isinstance(outcome, Failure) and self._n_failed_in_a_row >= MAX_CONSECUTIVE_FAILURES:
            message = f"{self._n_failed_in_a_row} candidates failed in a row, the last one with: {outcome.message}"
            raise EvaluationError(outcome.kind, message)

"""The supervisor of one run: ask, measure, record, tell; then confirm the frontier in fresh processes.

It imports no torch (the measuring server is another program, see edge_lts.measurer) and keeps no samples, so that it
stays small beside the candidate it watches. The ledger is the only truth: a resumed run asks the searcher again and
tells it what the ledger says, and a status or an event that cannot be written is no reason to stop.

A run is a function of (seed, spec, torch's version) up to measured values. What depends on the hour of the first start,
the memory that was free then, is kept in device.json and used again by every resume.
"""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Protocol

from edge_lts import device, on_boot, placement
from edge_lts.arch import Architecture
from edge_lts.baselining import Baselining
from edge_lts.budget import Budget, Durations
from edge_lts.confirming import Confirming
from edge_lts.errors import DiskError, EdgeLtsError, EvaluationError, LedgerError
from edge_lts.estimating import with_quality
from edge_lts.job import Lock
from edge_lts.ledger import Ledger, LedgerReader
from edge_lts.preparation import add_facts, check_meter, check_spec, describe_device, make_searcher, memory_limit_now
from edge_lts.progress import Progress
from edge_lts.records import ASIDE, DeviceInfo, Evaluation, Failure, Outcome, Purpose, RunSpec, central
from edge_lts.runfolder import BOARD_LOCK, EVENTS, FRONTIER, LEDGER, LOCK, LOG, STATUS, RunFolder, complain, now_utc
from edge_lts.status import HEARTBEAT_S, StatusFile, check_status
from edge_lts.surroundings import Surroundings

if TYPE_CHECKING:
    from edge_lts.search import Candidate, Searcher

MAX_CONSECUTIVE_FAILURES = 50
FRONTIER_EVERY_S = 5.0
MAX_REPEATED_PROPOSALS = 10_000
MAX_KEPT_TAIL_BYTES = 64 << 10
ONE_THREAD_FACTOR = 3.0  # how much longer than usual a member may take on one thread


class MeasurerLike(placement.MeasurerLike, Protocol):
    """What the supervisor needs of edge_lts.measurer.Measurer."""

    def start(self) -> dict[str, Any]: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


MakeMeasurer = Callable[[RunSpec, int | None, IO[bytes]], MeasurerLike]
Emit = Callable[[Mapping[str, Any]], None]


class Stopped(EdgeLtsError):
    """A signal asked the run to end; nothing is wrong."""


class Supervisor:
    """One life of one run. `emit` gets every event; `make_measurer`, `clock` and `probe` are replaced in tests."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        root: Path | None = None,
        emit: Emit,
        make_measurer: MakeMeasurer,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[..., DeviceInfo] = device.probe,
        heartbeat_s: float = HEARTBEAT_S,
        system_root: Path = device.SYSTEM,
        remove_boot_entry: Callable[[RunFolder], object] = on_boot.remove,
    ) -> None:
        """Raises SpecError naming what is wrong with spec.json."""
        self._begun_s = clock()
        self._folder = folder
        self._root = folder.default_root if root is None else root
        self._spec = folder.read_spec()
        self._proxy = check_spec(folder, self._spec)
        self._emit = emit
        self._make_measurer = make_measurer
        self._clock = clock
        self._probe = probe
        self._heartbeat_s = heartbeat_s
        self._system_root = system_root
        self._remove_boot_entry = remove_boot_entry
        self._budget = self._budget_after(0.0)
        self._durations = Durations()
        self._progress = Progress(folder, self._spec)
        self._baselining = Baselining(self._spec, self._progress, self._durations)
        self._status: StatusFile
        self._ledger: Ledger
        self._searcher: Searcher
        self._measurer: MeasurerLike | None = None
        self._surroundings = Surroundings(
            self._spec,
            self._root,
            emit=self._event,
            clock=clock,
            should_stop=lambda: self._stopped_by is not None,
            system_root=system_root,
        )
        self._rules = dataclasses.replace(self._spec.protocol, threads=self._surroundings.threads)
        self._stopped_by: str | None = None
        self._is_frontier_stale = False
        self._frontier_due_s = self._begun_s
        self._tried_on_one_thread: set[str] = set()

    # -- one life, from the locks to the end ---------------------------------------------------------------------------

    def run(self) -> int:
        """Run to the end and return 0. Raises LockedError when another run holds the board or this folder, and any
        other EdgeLtsError after the status says `failed`."""
        run_id = self._spec.run_id
        with (
            Lock(self._folder / LOCK, run_id=run_id, what=f"the run {run_id}"),
            Lock(self._root / BOARD_LOCK, run_id=run_id, what=f"this board ({self._root})"),
            self._signals(),
        ):
            return self._run_locked()

    def _run_locked(self) -> int:
        self._folder.remove_parts()
        previous = self._previous_status()
        self._budget = self._budget_after(previous.get("spent_s", 0.0))
        if previous.get("state") == "done":
            counts = {name: previous.get(name) for name in self._progress.counts()}
            message = "the run is already finished; nothing was measured"
            self._event("finished", state="done", reasons=previous.get("reasons"), message=message, **counts)
            self._remove_boot_entry(self._folder)
            return 0
        self._status = StatusFile(
            self._folder / STATUS,
            run_id=self._spec.run_id,
            budget_s=self._spec.budget_s,
            spent_s=lambda: self._budget.spent_s(),
        )
        self._status.update()
        self._status.start_heartbeat(self._heartbeat_s)
        try:
            with Ledger(self._folder / LEDGER) as self._ledger, self._surroundings:
                self._run_recorded(spent_before_s=previous.get("spent_s", 0.0))
        except Exception as exc:
            message = str(exc) if isinstance(exc, EdgeLtsError) else f"{type(exc).__name__}: {exc}"
            self._end("failed", (), message)
            if not isinstance(exc, DiskError):
                self._remove_boot_entry(self._folder)
            raise
        finally:
            self._status.stop_heartbeat()
        return 0

    def _run_recorded(self, spent_before_s: float) -> None:
        check_meter(self._spec, self._system_root)
        info = describe_device(self._folder, self._spec, self._probe, facts=self._surroundings.facts())
        limit_bytes = info.extra.get("memory_limit_bytes")
        self._searcher = make_searcher(self._spec, limit_bytes, info.extra.get("last_level_cache_bytes"))
        dropped = self._replay(spent_before_s)
        self._baselining.memory_limit_bytes = limit_bytes
        self._event("started", run_id=self._spec.run_id, pid=os.getpid(), space_limit_bytes=limit_bytes)
        if dropped:
            text = dropped[:MAX_KEPT_TAIL_BYTES].decode("utf-8", "backslashreplace")
            self._event("dropped_tail", n_bytes=len(dropped), text=text)
        if self._progress.n_search or spent_before_s:
            self._event("resumed", **self._progress.counts())
        is_spent = self._budget.left_s() <= 0
        state, reasons = ("done", ("budget spent",)) if is_spent else self._work(info, limit_bytes)
        self._finish(state, reasons)

    def _work(self, info: DeviceInfo, limit_bytes: int | None) -> tuple[str, tuple[str, ...]]:
        """Search and confirm; the state that this ends in, and why."""
        try:
            with (self._folder / LOG).open("ab", buffering=0) as log:
                self._start_measurer(limit_bytes, log)
                self._settle(info)
                reasons = self._search()
                return "done", reasons + self._confirm()
        except Stopped:
            return "stopped", (f"stopped by {self._stopped_by}",)
        finally:
            if self._measurer is not None:
                self._measurer.close()

    def _finish(self, state: str, reasons: tuple[str, ...]) -> None:
        """The frontier once more, with all samples; then the end."""
        try:
            self._progress.write_frontier(is_final=True)
        except OSError as exc:
            path = self._folder / FRONTIER
            raise DiskError(f"cannot write {path}: {exc.strerror or exc}; free some space and resume") from exc
        self._end(state, reasons)
        if state == "done":  # a run that is stopped by a shutdown goes on afterwards
            self._remove_boot_entry(self._folder)

    def _end(self, state: str, reasons: tuple[str, ...], message: str = "") -> None:
        counts = self._progress.counts()
        self._status.update(state=state, reasons=list(reasons), message=message, **counts)
        self._event("finished", state=state, reasons=list(reasons), message=message, **counts)

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _budget_after(self, spent_before_s: float) -> Budget:
        return Budget(self._spec.budget_s, spent_before_s=spent_before_s, clock=self._clock, begun_s=self._begun_s)

    def _previous_status(self) -> dict[str, Any]:
        """What an earlier life left, as far as it can be believed."""
        try:
            status = check_status(self._folder.read_status())
        except (OSError, ValueError, EdgeLtsError):
            return {}
        return status if status.get("run_id") == self._spec.run_id else {}

    def _start_measurer(self, limit_bytes: int | None, log: IO[bytes]) -> None:
        measurer = self._make_measurer(self._spec, memory_limit_now(self._spec, limit_bytes), log)
        if self._spec.commands:
            from edge_lts.user_command import CommandMeasurer

            run_dir, timeout_s = self._folder.path.absolute(), self._spec.candidate_timeout_s
            measurer = CommandMeasurer(measurer, self._spec.commands, run_dir=run_dir, timeout_s=timeout_s)
        self._measurer = measurer
        self._stop_if_asked()  # from here on a signal reaches the measurer
        try:
            facts = self._measurer.start()
        except EdgeLtsError:
            self._stop_if_asked()
            raise
        self._status.update(state="running")
        self._event("ready", **facts)

    def _settle(self, info: DeviceInfo) -> None:
        """Find the thread count, once in a run, and bring the board to the heat that the run measures in."""
        assert self._measurer is not None
        try:
            sweep = self._surroundings.sweep(self._measurer, info)
            if sweep:
                add_facts(self._folder, info, thread_sweep=sweep)
                self._rules = dataclasses.replace(self._rules, threads=sweep["threads"])
            self._surroundings.warm_up(self._measurer, self._rules.threads)
        except EdgeLtsError:
            self._stop_if_asked()
            raise

    def _replay(self, spent_before_s: float) -> bytes:
        """Ask and tell everything that the ledger holds; the torn tail, if any, is cut off and returned."""
        reader = LedgerReader(self._folder / LEDGER)
        spent_s = 0.0
        for outcome in reader.outcomes():
            if outcome.purpose == "search":
                self._replay_one(outcome)
            arch, duration_s = outcome.architecture, outcome.spent_s - spent_s
            if spent_s > 0 and duration_s > 0:
                self._took(outcome.purpose, arch, duration_s)
            spent_s = max(spent_s, outcome.spent_s)
            self._progress.replay(outcome)
        self._budget = self._budget_after(max(spent_s, spent_before_s))
        self._progress.update_members()
        self._status.update(**self._progress.counts())
        return self._ledger.cut_tail(reader.valid_bytes) if reader.dropped_tail else b""

    def _took(self, purpose: Purpose, arch: Architecture, duration_s: float) -> None:
        """Remember for later estimates. One thread begins with another server: that says nothing of other purposes."""
        if purpose == "baseline":
            self._baselining.saw(arch, duration_s)
        elif purpose not in ASIDE:
            self._durations.add(arch.arch_id, arch.total_params, duration_s)

    def _replay_one(self, outcome: Outcome) -> None:
        candidate = self._next_candidate()
        asked = None if candidate is None else (candidate.candidate_id, candidate.architecture.arch_id)
        recorded = (outcome.candidate_id, outcome.architecture.arch_id)
        if asked != recorded:
            raise LedgerError(
                f"{self._folder / LEDGER} does not belong to this spec.json: candidate {recorded[0]} is {recorded[1]} "
                f"there, the search proposes {asked}; resume with the edge-lts that began the run, or begin a new one"
            )
        self._searcher.tell(outcome.candidate_id, self._progress.as_told(outcome))

    # -- searching and confirming --------------------------------------------------------------------------------------

    def _search(self) -> tuple[str, ...]:
        """Until the searcher, the number of candidates or the searching share of the budget ends it; says which."""
        confirming = Confirming(self._spec, self._progress, self._durations)
        n_failed_in_a_row = 0
        while True:
            self._stop_if_asked()
            reasons = tuple(self._searcher.stop())
            if reasons:
                return reasons
            # Confirming along the way takes nothing from the search: it comes off what is left to confirm at the end.
            n_search, left_s = self._progress.n_search, self._left_to_search_s() + self._progress.confirm_s
            if self._spec.max_candidates is not None and n_search >= self._spec.max_candidates:
                return ("max_candidates reached",)
            if n_search and left_s <= 0:
                return ("budget spent",)
            if (arch_id := confirming.along_the_way(left_s)) is not None:
                self._measure_again(arch_id)
                continue
            if n_search and (number := self._baselining.due(self._budget)) is not None:
                self._measure_baseline(number)
                continue
            candidate = self._next_candidate()
            if candidate is None:
                return tuple(self._searcher.stop()) or ("nothing new to propose",)
            arch = candidate.architecture
            if n_search and not self._durations.fits(arch.arch_id, arch.total_params, left_s):
                return ("budget spent",)
            outcome = self._measure(candidate.candidate_id, arch, "search", candidate)
            self._searcher.tell(candidate.candidate_id, self._progress.as_told(outcome))
            n_failed_in_a_row = n_failed_in_a_row + 1 if isinstance(outcome, Failure) else 0
            if isinstance(outcome, Failure) and n_failed_in_a_row >= MAX_CONSECUTIVE_FAILURES:
                message = f"{n_failed_in_a_row} candidates failed in a row, the last one with: {outcome.message}"
                raise EvaluationError(outcome.kind, message)

    def _left_to_search_s(self) -> float:
        return self._budget.left_s(1 - self._spec.confirm_fraction) - self._baselining.reserved_s()

    def _next_candidate(self) -> "Candidate | None":
        """The next proposal not measured yet. A repeated one is answered from the ledger and never measured again."""
        for _ in range(MAX_REPEATED_PROPOSALS):
            candidates = self._searcher.ask(1)
            if not candidates:
                return None
            candidate_id, arch_id = candidates[0].candidate_id, candidates[0].architecture.arch_id
            if arch_id not in self._progress.candidate_ids:
                return candidates[0]
            repeated = dataclasses.replace(self._progress.first_outcome(arch_id), candidate_id=candidate_id)
            self._searcher.tell(candidate_id, self._progress.as_told(repeated))
        return None

    def _confirm(self) -> tuple[str, ...]:
        """Measure the frontier's members again, as far as the budget goes; says how far that was."""
        confirming = Confirming(self._spec, self._progress, self._durations)
        is_announced = False
        self._measure_baselines(self._baselining.lacking)
        while waiting := confirming.waiting():
            self._stop_if_asked()
            if (number := self._baselining.due(self._budget)) is not None:
                self._measure_baseline(number)
                continue
            if not self._progress.unconfirmed():
                self._measure_on_one_thread()
            if not is_announced:
                is_announced = True
                self._status.update(state="confirming")
                self._event("confirming", n_members=len(waiting))
            arch_id = confirming.choose(waiting, self._budget.left_s())
            if arch_id is None:
                break
            self._measure_again(arch_id)
        if not self._progress.unconfirmed():
            self._measure_on_one_thread()
        self._measure_baselines(self._baselining.rest)
        return confirming.reasons() + self._baselining.reasons()

    def _measure_on_one_thread(self) -> None:
        """The members that have not been, as far as the budget goes: what ranks differently with fewer cores."""
        if self._rules.threads < 2:
            return
        for arch_id in self._progress.without_one_thread():
            arch = self._progress.architecture(arch_id)
            self._stop_if_asked()
            if arch_id in self._tried_on_one_thread:
                continue
            if self._budget.left_s() < ONE_THREAD_FACTOR * self._durations.estimate_s(arch_id, arch.total_params):
                return
            self._tried_on_one_thread.add(arch_id)
            self._measure(self._progress.candidate_ids[arch_id], arch, "one_thread")

    def _measure_baselines(self, choose: Callable[[Budget], int | None]) -> None:
        while (number := choose(self._budget)) is not None:
            self._stop_if_asked()
            self._measure_baseline(number)

    def _measure_baseline(self, number: int) -> None:
        self._measure(number, self._baselining.architecture(number), "baseline")

    def _measure_again(self, arch_id: str) -> None:
        self._measure(self._progress.candidate_ids[arch_id], self._progress.architecture(arch_id), "confirm")

    # -- measuring and recording ---------------------------------------------------------------------------------------

    def _measure(
        self, candidate_id: int, architecture: Architecture, purpose: Purpose, candidate: "Candidate | None" = None
    ) -> Outcome:
        """Measure, record durably and count. Raises Stopped, with nothing recorded, when a signal came.

        `candidate` says what the strategy predicted and why it asked; both go into the record.
        """
        if self._measurer is None:
            raise RuntimeError("the measurer was not started")
        begun_s = self._clock()
        try:
            self._surroundings.before_candidate()
            rules = dataclasses.replace(self._rules, threads=1) if purpose == "one_thread" else self._rules
            outcome = self._measurer.measure(candidate_id, architecture, purpose, protocol=rules)
        except EdgeLtsError:
            self._stop_if_asked()
            raise
        duration_s = self._clock() - begun_s
        self._surroundings.after(outcome)
        return self._record(outcome, candidate_id, architecture, purpose, candidate, duration_s)

    def _record(
        self,
        outcome: Outcome,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose,
        candidate: "Candidate | None",
        duration_s: float,
    ) -> Outcome:
        """What `_measure` does once there is an outcome; pools of boards (edge_lts_host.pool) begin here."""
        if outcome.architecture != architecture:
            raise EvaluationError("crash", f"asked for {architecture.arch_id}, got {outcome.architecture.arch_id}")
        spent_s, measured_at = round(self._budget.spent_s(), 3), now_utc()
        changes: dict[str, Any] = {"purpose": purpose, "spent_s": spent_s, "measured_at": measured_at}
        # The searcher's own architecture: one copy in memory.
        outcome = dataclasses.replace(with_quality(outcome, self._proxy), architecture=architecture, **changes)
        if candidate is not None and isinstance(outcome, Evaluation) and (candidate.origin or candidate.predicted):
            conditions = {**outcome.conditions, "origin": candidate.origin}
            outcome = dataclasses.replace(outcome, predicted=dict(candidate.predicted), conditions=conditions)
        try:
            self._ledger.append(outcome.to_json())
        except ValueError as exc:
            outcome = Failure(
                candidate_id=candidate_id,
                architecture=architecture,
                kind="nonfinite",
                message=f"the record is not JSON: {exc}",
                board=outcome.board,
                **changes,
            )
            self._ledger.append(outcome.to_json())
        self._took(purpose, architecture, duration_s)
        self._progress.add(outcome)
        self._report(outcome)
        return outcome

    def _report(self, outcome: Outcome) -> None:
        arch_id = outcome.architecture.arch_id
        common = {"candidate_id": outcome.candidate_id, "arch_id": arch_id, "purpose": outcome.purpose}
        if outcome.board:
            common["board"] = outcome.board
        if isinstance(outcome, Failure):
            self._event("failed", **common, kind=outcome.kind, message=outcome.message[:500])
        else:
            medians = {name: central(value) for name, value in outcome.objectives.items()}
            self._event("measured", **common, objectives=medians, flags=list(outcome.flags))
            is_changed = self._progress.update_members()
            if is_changed:
                self._event("frontier", n=len(self._progress.member_ids))
            self._is_frontier_stale |= is_changed or outcome.purpose == "confirm"
            if self._is_frontier_stale and self._clock() >= self._frontier_due_s:
                self._is_frontier_stale = False
                self._frontier_due_s = self._clock() + FRONTIER_EVERY_S
                with self._best_effort(FRONTIER):
                    self._progress.write_frontier()
        self._status.update(**self._progress.counts())

    # -- signals and messages ------------------------------------------------------------------------------------------

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._stopped_by is not None and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._stopped_by = signal.Signals(signum).name
        if self._measurer is not None:
            self._measurer.cancel()

    def _stop_if_asked(self) -> None:
        if self._stopped_by is not None:
            raise Stopped(f"stopped by {self._stopped_by}")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _event(self, name: str, **fields: Any) -> None:
        event = {"event": name, "time": now_utc(), "spent_s": round(self._budget.spent_s(), 3), **fields}
        with self._best_effort(EVENTS):
            self._folder.append_event(event)
        self._emit(event)

    @contextlib.contextmanager
    def _best_effort(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            complain(f"cannot write {self._folder / name}: {exc}")

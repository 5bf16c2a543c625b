"""Runs seen from here: which there are, asking about them, and following one until it is over.

A run is known by its folder in the store; host.json says where it runs. Asking takes one command per host, however
many runs it has. Following outlives the link: when it breaks, what is known stays on the screen, it is said that the
run goes on on the board, and the connection is tried again with growing pauses. Only what the agent says makes a run
failed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_lts.errors import EdgeLtsError
from edge_lts.objectives import OBJECTIVES
from edge_lts.records import Failure, central, outcome_from_json
from edge_lts.runfolder import EVENTS, LEDGER, LOG
from edge_lts_host import store
from edge_lts_host.errors import TransportError, printable
from edge_lts_host.fleet import Links, Result, side_by_side
from edge_lts_host.hosts import HostEntry, load_hosts
from edge_lts_host.progress import bar, draw_line
from edge_lts_host.reconnect import Pauses, insist, is_worth_another_try
from edge_lts_host.session import FINAL_STATES, Place, Session, Survey, open_transport, place_of_run

if TYPE_CHECKING:
    from edge_lts_host.store import RunFolder
    from edge_lts_host.transport.base import Transport
    from edge_lts_host.transport.ssh_config import SshOptions

POLL_S = 2.0
BOOT_PATIENCE_S = 600.0  # from SSH answering to the system starting what it starts at boot
_TAIL_BYTES = 1 << 20
_ONE_LINE = str.maketrans("\n\t", "  ")  # what `printable` leaves of a board's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run and where it runs."""

    folder: RunFolder
    entry: HostEntry
    place: Place

    @property
    def run_id(self) -> str:
        return self.folder.run_id

    @property
    def is_local(self) -> bool:
        return self.entry.is_local


def find_jobs(runs: Sequence[str | None]) -> list[Job]:
    """The jobs that RUN arguments mean; [None] is the newest run."""
    hosts = load_hosts()
    jobs: dict[str, Job] = {}
    for run in runs:
        folder = store.resolve(run)
        entry, place = place_of_run(folder, hosts)
        jobs.setdefault(folder.run_id, Job(folder=folder, entry=entry, place=place))
    return list(jobs.values())


def unfinished() -> list[str | None]:
    """Ids of the runs that were not over when last heard of and that say where they run."""
    return [
        folder.run_id
        for folder in store.list_runs()
        if folder.status().get("state") not in ("done", "stopped", "failed") and folder.host_meta()
    ]


def ask(
    jobs: Sequence[Job], options: SshOptions, n_parallel: int, fail_percent: float | None = None
) -> list[Result[Job, dict[str, Any]]]:
    """The status of each job in their order, one command per host, hosts side by side."""
    by_host: dict[tuple[str, Place], list[Job]] = {}
    for job in jobs:
        by_host.setdefault((job.entry.destination, job.place), []).append(job)

    links = Links()

    def ask_host(group: list[Job]) -> dict[str, dict[str, Any]]:
        with links.add(open_transport(group[0].entry, options)) as transport:
            return Session(transport, group[0].place).status([job.run_id for job in group])

    found: dict[str, Result[Job, dict[str, Any]]] = {}
    groups = list(by_host.values())
    for result in side_by_side(groups, ask_host, n_parallel=n_parallel, links=links, fail_percent=fail_percent):
        for job in result.item:
            status = (result.value or {}).get(job.run_id, {"state": "unknown", "message": "the board does not know it"})
            found[job.run_id] = Result(job, None if result.error else status, result.error)
    return [found[job.run_id] for job in jobs]


def survey(
    entries: Sequence[HostEntry], options: SshOptions, n_parallel: int, fail_percent: float | None = None
) -> list[Result[HostEntry, Survey]]:
    """What boards say of themselves, in their order, one command each, side by side."""
    links = Links()

    def ask_board(entry: HostEntry) -> Survey:
        with links.add(open_transport(entry, options)) as transport:
            return Session(transport, Place.of(entry)).survey()

    return side_by_side(entries, ask_board, n_parallel=n_parallel, links=links, fail_percent=fail_percent)


def each(
    jobs: Sequence[Job],
    work: Callable[[Job, Session], Any],
    options: SshOptions,
    n_parallel: int,
    on_error: Callable[[Job, EdgeLtsError], None],
    *,
    fail_percent: float | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Result[Job, Any]]:
    """`work` with a session of each job's own, side by side.

    With `say`, `work` only copies what is new into the job's folder: a link that breaks in the middle is made again,
    which `say` is told, and the copying goes on where it was.
    """
    links = Links()

    def serve(job: Job) -> Any:
        with links.add(open_transport(job.entry, options)) as transport:
            return work(job, Session(transport, job.place))

    def serve_to_the_end(job: Job) -> Any:
        if say is None or job.is_local:
            return serve(job)
        return insist(
            lambda: serve(job),
            n_bytes_here=lambda: sum(job.folder.offsets().values()),
            say=say,
            sleep=links.sleep,
            is_given_up=lambda: links.is_closed,
        )

    return side_by_side(
        jobs, serve_to_the_end, n_parallel=n_parallel, links=links, on_error=on_error, fail_percent=fail_percent
    )


# One line about a run -----------------------------------------------------------------------------------------------


def progress_line(status: Mapping[str, Any], latest: str = "", *, has_bar: bool = True) -> str:
    """State, share of the budget, what was measured, the latest measurement."""
    from edge_lts_host.report import render

    spent, budget = _number(status.get("spent_s")), _number(status.get("budget_s"))
    share = min(1.0, spent / budget) if budget else 0.0
    failed = f", {status['n_failed']} failed" if status.get("n_failed") else ""
    counts = f"{status.get('n_measured', 0)} measured{failed}, frontier {status.get('n_frontier', 0)}"
    time_spent = f"{share:4.0%} of {render.duration(budget)}" if budget else ""
    shown = f"{bar(share)} " if has_bar else ""
    line = f"{shown}{time_spent} {status.get('state', 'unknown')}: {counts}{f'; {latest}' if latest else ''}"
    return line.translate(_ONE_LINE)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def latest_measurement(folder: RunFolder) -> str:
    """The ledger's last whole record in words; "" when there is none."""
    from edge_lts_host.report import render

    path = folder / LEDGER
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        outcome = outcome_from_json(json.loads(lines[-2])) if len(lines) > 1 else None
    except (OSError, ValueError, RecursionError, EdgeLtsError):
        return ""
    if outcome is None:
        return ""
    latest = "latest baseline" if outcome.purpose == "baseline" else "latest"
    if isinstance(outcome, Failure):
        return f"{latest}: {outcome.kind}"
    words = []
    for name in OBJECTIVES:
        number = central(outcome.objectives.get(name))
        if number is not None:
            heading, cell = render.OBJECTIVE_CELLS[name]
            words.append(f"{heading} {cell(number)}")
    return f"{latest}: {', '.join(words)}" if words else ""


# Following ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Follower:
    """Looks at one job again and again, pulling what is new, until it is over. `say` gets whole lines.

    `live` draws one changing line instead. `clock`, `sleep` and `uniform` are replaced in tests.
    """

    job: Job
    options: SshOptions
    say: Callable[[str], None]
    live: bool = False
    poll_s: float = POLL_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    open: Callable[[HostEntry, SshOptions], Transport] = open_transport
    uniform: Callable[[], float] = random.random
    status: dict[str, Any] = field(default_factory=dict)
    _transport: Transport | None = None
    _said: tuple[Any, ...] = ()
    _rebooted_at_s: float | None = None

    def until_over(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The last status; None when `timeout_s` ran out before. Raises what no waiting can mend."""
        for status in self.states(timeout_s):
            self._show(status)
        self._erase()
        return self.status if self._is_over() else None

    def states(self, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """Each status that is heard, up to the last one or until `timeout_s` is over."""
        end = None if timeout_s is None else self.clock() + timeout_s
        pauses = Pauses(first_s=self.poll_s, uniform=self.uniform)
        try:
            while True:
                n_bytes = self._n_bytes()
                pause_s = self.poll_s
                try:
                    self.status = self._look()
                    pauses.reset()
                    yield self.status
                    if self._is_over():
                        return
                except TransportError as exc:
                    self._close()
                    if not is_worth_another_try(exc) or self.job.is_local:
                        raise
                    if self._n_bytes() > n_bytes:
                        pauses.reset()
                    pause_s = pauses.after_loss()
                    self._note(f"{exc.problem}; the run goes on on the board; trying again in {pause_s:.0f} s")
                if end is not None and self.clock() >= end:
                    return
                self.sleep(pause_s if end is None else max(0.0, min(pause_s, end - self.clock())))
        finally:
            self._close()

    def _look(self) -> dict[str, Any]:
        if self._transport is None:
            self._transport = self.open(self.job.entry, self.options)
        session = Session(self._transport, self.job.place)
        status = session.status([self.job.run_id]).get(self.job.run_id, {"state": "unknown"})
        session.pull(self.job.folder)
        return status

    def _is_over(self) -> bool:
        """A run that its board is about to go on with after a reboot is not, for a while."""
        if not self.status.get("goes_on_by_itself"):
            self._rebooted_at_s = None
            return self.status.get("state") in FINAL_STATES
        if self._rebooted_at_s is None:
            self._rebooted_at_s = self.clock()
            self._note("the board has rebooted and is about to go on with the run")
        return self.clock() >= self._rebooted_at_s + BOOT_PATIENCE_S

    def _n_bytes(self) -> int:
        return sum(self.job.folder.offsets().values())

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _show(self, status: Mapping[str, Any]) -> None:
        latest = latest_measurement(self.job.folder)
        if self.live:
            draw_line(f"{self.job.run_id} {progress_line(status, latest)}")
            return
        key = (status.get("state"), status.get("n_measured"), status.get("n_failed"), status.get("n_confirmations"))
        # How it ended is said by whoever waits for the end.
        if key != self._said and status.get("state") not in FINAL_STATES:
            self._said = key
            self.say(f"{self.job.run_id} {progress_line(status, latest, has_bar=False)}")

    def _note(self, text: str) -> None:
        self._erase()
        self.say(f"{self.job.entry.name}: {text}")

    def _erase(self) -> None:
        if self.live:
            draw_line("")


# Logs ---------------------------------------------------------------------------------------------------------------


def event_line(line: bytes) -> str:
    """An event of events.jsonl for people: time, name, the rest as key=value."""
    try:
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError
    except (ValueError, RecursionError):
        return printable(line)
    time_text, name = event.pop("time", ""), event.pop("event", "?")
    spent = event.pop("spent_s", None)
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in event.items()]
    at = f" +{_number(spent):.0f}s" if spent is not None else ""
    return printable(f"{time_text}{at} {name} {' '.join(words)}".rstrip())


class LogReader:
    """The lines of events.jsonl and log.txt that were not read yet, as they arrive in a run's folder."""

    def __init__(self, folder: RunFolder, *, events_only: bool = False) -> None:
        self._folder = folder
        self._names = (EVENTS,) if events_only else (EVENTS, LOG)
        self._offsets = dict.fromkeys(self._names, 0)

    def new_lines(self) -> Iterable[str]:
        for name in self._names:
            for line in self._new(name):
                yield event_line(line) if name == EVENTS else f"log: {printable(line)}"

    def _new(self, name: str) -> list[bytes]:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(self._offsets[name])
                data = file.read()
        except OSError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self._offsets[name] += len(whole) + len(newline)
        return whole.split(b"\n") if newline else []

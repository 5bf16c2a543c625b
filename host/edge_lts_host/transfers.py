"""Timing a run's frontier on another run's board: a short session there, kept in `<runs root>/transfers/`.

One file per board's run, `transfers/<run_id>.jsonl`, append only. A session begins with a line that says its plan;
each measurement is one line more, durable when it is written, so a session that breaks off is used as far as it went.
The run folders stay as they are: they are what the board left, and a transfer belongs to two runs. What a session means
is worked out in `report.transfer`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, LedgerError
from edge_lts.ledger import Ledger, LedgerReader
from edge_lts.records import METHOD_VERSION, Evaluation, Protocol, outcome_from_json
from edge_lts_host.errors import LockedError, PreflightError, StoreError
from edge_lts_host.report.transfer import Planned, Session
from edge_lts_host.store import runs_root

TRANSFER_SCHEMA_VERSION = 1
FOLDER = "transfers"
N_ROUNDS = 3  # processes of each architecture; with two there is hardly a spread to speak of

# One architecture, measured in a fresh process on the board: its ledger record.
Measure = Callable[[Architecture], Mapping[str, Any]]


def path_of(run_id: str) -> Path:
    """The file of the sessions on the board of that run."""
    return runs_root() / FOLDER / f"{run_id}.jsonl"


def check_method(run_id: str, protocol: Protocol) -> None:
    """Raises PreflightError where this edge-lts would measure otherwise than that run did."""
    if protocol.method_version != METHOD_VERSION:
        raise PreflightError(
            f"{run_id} was measured by method {protocol.method_version}, this edge-lts measures by {METHOD_VERSION}",
            "search there again to compare",
        )


def measure_session(
    onto: str,
    latency: str,
    plan: Sequence[Planned],
    architectures: Mapping[str, Architecture],
    measure: Measure,
    protocol: Protocol,
    *,
    torch: str | None,
    clock: Callable[[], float],
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
    n_rounds: int = N_ROUNDS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Session:
    """Measure every member and rival of `plan` once in each round, in an order of each round's own; each is recorded.

    `clock` is monotonic. Raises PreflightError when the board no longer measures as it did (threads, torch), and
    whatever `measure` raises; what was measured by then is kept.
    """
    session = Session(session=f"{now():%Y%m%d-%H%M%S}", onto=onto, latency=latency, plan=list(plan))
    wanted = sorted({one.arch_id for one in plan} | {one.rival for one in plan if one.rival is not None})
    rng = random.Random(f"{onto} {session.session}")
    begun_s = clock()
    with _opened(onto) as ledger:
        ledger.append(
            {
                "schema_version": TRANSFER_SCHEMA_VERSION,
                "kind": "session",
                "session": session.session,
                "onto": onto,
                "objective": latency,
                "protocol": protocol.to_json(),
                "plan": [one.to_json() for one in plan],
            }
        )
        for number in range(n_rounds):
            for index, arch_id in enumerate(rng.sample(wanted, len(wanted))):
                on_progress(number * len(wanted) + index, n_rounds * len(wanted))
                record = {**measure(architectures[arch_id]), "spent_s": round(clock() - begun_s, 3)}
                outcome = outcome_from_json(record)
                if outcome.architecture.arch_id != arch_id:
                    raise LedgerError(f"{onto}: the board measured {outcome.architecture.arch_id} and not {arch_id}")
                if isinstance(outcome, Evaluation):
                    _check_conditions(onto, outcome, protocol, torch)
                ledger.append(
                    {
                        "schema_version": TRANSFER_SCHEMA_VERSION,
                        "kind": "transfer",
                        "session": session.session,
                        "round": number,
                        "record": record,
                    }
                )
                session.outcomes.append((number, outcome))
    return session


def load_sessions(run_ids: Sequence[str]) -> list[Session]:
    """All sessions on the boards of these runs, oldest first within each. Raises LedgerError naming a damaged line."""
    return [session for run_id in dict.fromkeys(run_ids) for session in _read(run_id)]


def _read(run_id: str) -> Iterator[Session]:
    path = path_of(run_id)
    sessions: dict[str, Session] = {}
    for number, line in LedgerReader(path).lines():
        try:
            version = line.get("schema_version")
            if version != TRANSFER_SCHEMA_VERSION:
                raise ValueError(f"schema_version {version!r:.40}; this edge-lts reads {TRANSFER_SCHEMA_VERSION}")
            if line["kind"] == "session":
                sessions[line["session"]] = Session(
                    session=str(line["session"]),
                    onto=run_id,
                    latency=str(line["objective"]),
                    plan=[Planned.from_json(one) for one in line["plan"]],
                )
            else:
                sessions[line["session"]].outcomes.append((int(line["round"]), outcome_from_json(line["record"])))
        except (KeyError, TypeError, ValueError, EdgeLtsError) as exc:
            raise LedgerError(f"{path}, line {number}: {exc!s:.200}; move the file away to go on without it") from exc
    yield from sessions.values()


@contextlib.contextmanager
def _opened(run_id: str) -> Iterator[Ledger]:
    """The file for appending, by one session at a time. Raises LockedError and StoreError."""
    path = path_of(run_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("ab")
    except OSError as exc:
        raise StoreError(f"cannot write {path.parent}: {exc.strerror or exc}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise LockedError(f"another compare --transfer is timing on the board of {run_id}; let it end") from exc
        reader = LedgerReader(path)
        for _ in reader.lines():
            pass
        with Ledger(path) as ledger:
            ledger.cut_tail(reader.valid_bytes)
            yield ledger


def _check_conditions(onto: str, evaluation: Evaluation, protocol: Protocol, torch: str | None) -> None:
    """The board must measure as it did in the run that its frontier comes from."""
    for what, wanted in (("threads", protocol.threads), ("torch", torch)):
        found = evaluation.conditions.get(what)
        if wanted and found is not None and found != wanted:
            raise PreflightError(
                f"{onto} was measured with {what} {wanted}, and its board now has {found}",
                "search there again to compare",
            )

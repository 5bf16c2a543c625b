"""`run --pool` and the resume of such a run: from boards to a supervisor in this process, and what is said meanwhile.

Nothing is detached, because the queue lives here: Ctrl-C ends the run cleanly, and `status`, `watch`, `stop` and
`report` work on it from another terminal as on any run of this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.errors import EdgeLtsError
from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.pool import agreement
from edge_lts_host.pool.arguments import TOLERANCE
from edge_lts_host.pool.crew import Crew, require_dask

if TYPE_CHECKING:
    from edge_lts.records import RunSpec
    from edge_lts_host.follow import Job
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.pool.board import Board, OnEvent
    from edge_lts_host.store import RunFolder
    from edge_lts_host.transport.ssh_config import SshOptions

META = "pool"  # in host.json
GRACE_S = 180.0  # beyond a candidate's own time: its energy, and a slow link
_NOTHING_BEGUN = (2, 4, 5, 7)


def start(args: argparse.Namespace, entries: Sequence[HostEntry], spec: RunSpec, options: SshOptions) -> int:
    """Begin a run on these boards and stay with it to its end; the exit code."""
    from edge_lts_host.payload import payload_for
    from edge_lts_host.session import Place, Session, local_place
    from edge_lts_host.store import RunFolder, local_root, runs_root
    from edge_lts_host.transport.local import LocalTransport

    if spec.meter == "external":  # a meter at this machine would have to say which board it is on
        spec = dataclasses.replace(spec, meter="none")
    payload = payload_for(spec)
    root = local_root()  # of this machine's agent, which needs no torch to say how the run is doing
    agent = str(root / "agents" / payload.name)
    here = Place(name="local", root=str(root), python=sys.executable, site=None, agent=agent)
    places = {entry.name: local_place(payload) if entry.is_local else Place.of(entry, payload) for entry in entries}
    folder = RunFolder(runs_root() / spec.run_id)
    folder.create()
    folder.write_spec(spec.to_json())
    boards = [
        {"name": entry.name, "destination": entry.destination, **places[entry.name].to_json()} for entry in entries
    ]
    tolerance = TOLERANCE if args.pool_tolerance is None else args.pool_tolerance
    folder.write_host_meta(
        {
            "host": None,
            "destination": "local",
            "target": spec.target,
            "run_dir": here.run_dir(spec.run_id),
            **here.to_json(),
            META: {"boards": boards, "tolerance": tolerance},
        }
    )
    Session(LocalTransport(), here).push_agent(payload)  # status and stop ask it
    try:
        return _run(args, _job(folder), options, has_dashboard=args.pool_dashboard)
    except EdgeLtsError as exc:
        if exc.exit_code in _NOTHING_BEGUN and not folder.offsets()["ledger.jsonl"]:
            for path in {folder.path, Path(here.run_dir(spec.run_id))}:
                shutil.rmtree(path, ignore_errors=True)
        raise


def resume(args: argparse.Namespace, options: SshOptions) -> int | None:
    """Go on with a pool's run; None where the RUN arguments mean other runs."""
    from edge_lts_host import follow
    from edge_lts_host.payload import payload_for
    from edge_lts_host.session import Session
    from edge_lts_host.transport.local import LocalTransport

    jobs = follow.find_jobs(args.runs or [None])
    pools = [job for job in jobs if META in job.folder.host_meta()]
    if not pools:
        return None
    if len(jobs) > 1:
        raise UsageError(f"{pools[0].run_id} is shared by a pool of boards: resume it by itself")
    require_dask()
    Session(LocalTransport(), jobs[0].place).push_agent(payload_for(jobs[0].folder.read_spec()))
    return _run(args, jobs[0], options)


def _job(folder: RunFolder) -> Job:
    from edge_lts_host import follow

    (job,) = follow.find_jobs([folder.run_id])
    return job


def _boards(job: Job, options: SshOptions, spec: RunSpec, on_event: OnEvent) -> list[Board]:
    """The pool's boards, from host.json and what deploy remembers of them now. Raises StoreError."""
    from edge_lts_host.hosts import LOCAL_HOST, HostEntry, load_hosts
    from edge_lts_host.payload import payload_for
    from edge_lts_host.pool.board import Board
    from edge_lts_host.session import Place

    payload, known = payload_for(spec), load_hosts()
    boards = []
    for one in job.folder.host_meta()[META]["boards"]:
        try:
            name, destination = str(one["name"]), str(one["destination"])
            entry = known.get(name)
            if name == LOCAL_HOST.name:
                entry = LOCAL_HOST
            elif entry is None or entry.destination != destination:
                entry = HostEntry(name=name, destination=destination, target=spec.target)
            site = None if one["site"] is None else str(one["site"])
            place = Place(
                name=name, root=str(one["root"]), python=str(one["python"]), site=site, agent=str(one["agent"])
            )
        except (KeyError, TypeError) as exc:
            raise StoreError(f"{job.folder.path}/host.json lacks {exc}; it was written by another edge-lts") from exc
        boards.append(Board(entry, place, spec.to_json(), payload=payload, options=options, on_event=on_event))
    return boards


def _run(args: argparse.Namespace, job: Job, options: SshOptions, *, has_dashboard: bool = False) -> int:
    from edge_lts.runfolder import RunFolder
    from edge_lts_host import waiting
    from edge_lts_host.pool.supervisor import PoolSupervisor
    from edge_lts_host.report import render

    folder = RunFolder(Path(job.place.run_dir(job.run_id)))
    if folder.path != job.folder.path:  # EDGE_LTS_RUNS may be called anything
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_bytes((job.folder / "spec.json").read_bytes())
    spec = folder.read_spec()
    talk = Talk(job)
    crew = Crew(
        _boards(job, options, spec, talk.of_board),
        timeout_s=spec.candidate_timeout_s + GRACE_S,
        has_dashboard=has_dashboard,
    )
    talk.crew = crew
    supervisor = PoolSupervisor(folder, crew, emit=talk, tolerance=float(job.folder.host_meta()[META]["tolerance"]))
    render.talk(f"{job.run_id} (Ctrl-C ends it cleanly; every measurement is kept)")
    try:
        supervisor.run()
    finally:
        talk.erase()
        if folder.path != job.folder.path:
            from edge_lts_host.session import Session, open_transport

            with open_transport(job.entry) as transport:
                Session(transport, job.place).pull(job.folder)
    status = job.folder.status()
    code = waiting.conclude(job, status)
    report = waiting.show_frontiers([job] if job.folder.offsets()["ledger.jsonl"] else [], args.output)
    if status.get("state") == "stopped":
        render.talk(f"to go on with it: edge-lts resume {job.run_id}")
        return waiting.INTERRUPTED
    return code or (waiting.refusal(report) if args.strict else 0)


class Talk:
    """Says on stderr what a pool's supervisor emits: one changing line where that can be drawn."""

    def __init__(self, job: Job) -> None:
        from edge_lts_host.report import render

        self._job = job
        self._is_live = render.shows_progress()
        self.crew: Crew | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        from edge_lts_host.follow import latest_measurement, progress_line
        from edge_lts_host.progress import draw_line

        name = event["event"]
        if name in ("measured", "failed"):
            line = progress_line(self._job.folder.status(), latest_measurement(self._job.folder))
            if self._is_live:
                draw_line(f"{self._job.run_id} {line}")
        elif name == "ready":
            self._say(f"{len(event['boards'])} boards are ready, {event['threads']} threads each")
            if self.crew is not None and self.crew.dashboard:
                self._say(f"dashboard: {self.crew.dashboard}")
        elif name == "pooled":
            for board, factor in event["factors"].items():
                self._say(f"{board}: {agreement.tabulated(factor)} against the pool")
        elif name == "board_lost":
            self._say(f"{event['board']} is lost, the others go on: {event['message']}")
        elif name == "board_back":
            self._say(f"{event['board']} is back")

    def of_board(self, board: str, event: Mapping[str, Any]) -> None:
        """What a board says of itself: a governor restored, heat."""
        from edge_lts_host.follow import event_line
        from edge_lts_host.report import render

        render.talk(f"{board}: {event_line(json.dumps(event).encode())}")

    def erase(self) -> None:
        if self._is_live:
            from edge_lts_host.progress import draw_line

            draw_line("")

    def _say(self, text: str) -> None:
        from edge_lts_host.report import render

        self.erase()
        render.talk(text)

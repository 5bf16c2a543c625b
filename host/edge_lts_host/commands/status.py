"""`edge-lts status`: how runs are doing, or what boards are doing, asked with one command per board.

Runs are those started from here. With --host, --inventory, --limit or --target boards are asked instead, and tell of
every run that they have, whoever started it, and of whoever has locked them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_lts_host.fleet import Result
    from edge_lts_host.follow import Job
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.session import Survey

NAME = "status"
HELP = "ask boards how their runs are doing"
EXAMPLE = "edge-lts status --all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("--all", action="store_true", dest="is_all", help="every run that was not over yet")
    common.add_hosts(parser)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow
    from edge_lts_host.errors import UsageError
    from edge_lts_host.fleet import exit_code
    from edge_lts_host.report import render

    chooses_boards = bool(args.host or args.inventory or args.limit or args.target)
    if args.is_all and args.runs:
        raise UsageError("--all means every run: leave out the RUN arguments")
    if chooses_boards and (args.is_all or args.runs):
        raise UsageError("name runs (RUN, --all) or boards (--host, --inventory, --limit, --target), not both")
    options = common.ssh_options(args)
    results: Sequence[Result[Any, Any]]
    if chooses_boards:
        from edge_lts_host.hosts import select_hosts

        entries = select_hosts(args)
        if entries[0].is_local:
            raise UsageError("--target local is this machine: edge-lts status RUN asks about its runs")
        results = follow.survey(entries, options, common.n_parallel(args, len(entries)), args.fail_percent)
        rows = [row for result in results for row in _board_rows(result)]
    else:
        wanted = follow.unfinished() if args.is_all else args.runs or [None]
        if not wanted:
            render.talk("no run is going on")
            return 0
        jobs = follow.find_jobs(wanted)
        results = follow.ask(jobs, options, common.n_parallel(args, len(jobs)), args.fail_percent)
        rows = [_run_row(result) for result in results]
    columns = (
        ("run_id", "run", render.text),
        ("host", "host", lambda name: "local" if name is None else render.text(name)),
        ("state", "state", render.text),
        ("spent_s", "spent", render.duration),
        ("budget_s", "budget", render.duration),
        ("n_measured", "measured", render.text),
        ("n_failed", "failed", render.text),
        ("n_frontier", "frontier", render.text),
        *((("reserved_by", "locked by", render.text),) if chooses_boards else ()),
        ("message", "", lambda message: render.text(message or "")),
    )
    render.emit(render.records(rows, args.output, columns, "runs"))
    return exit_code(results, args.fail_percent)


def _run_row(result: Result[Job, dict[str, Any]]) -> dict[str, Any]:
    """What was heard last is better than nothing, as long as it says so."""
    from edge_lts_host.errors import TransportError
    from edge_lts_host.report import render

    job = result.item
    row: dict[str, Any] = {
        "run_id": job.run_id,
        "host": None if job.is_local else job.entry.name,
        "target": job.entry.target,
    }
    row |= _said(job.folder.status() if result.value is None else result.value)
    row["is_reachable"] = result.error is None
    if isinstance(result.error, TransportError):
        render.warn(f"{result.error}")
        row["message"] = "the board cannot be asked; as last heard of"
    elif result.error is not None:
        render.warn(f"{job.run_id}: {result.error}")
        row["message"] = str(result.error)
    return row


def _board_rows(result: Result[HostEntry, Survey]) -> list[dict[str, Any]]:
    """A row for each run that the board tells of, or one for the board."""
    from edge_lts_host.report import render

    entry, found = result.item, result.value
    row: dict[str, Any] = {"run_id": None, "host": entry.name, "target": entry.target}
    if found is None:
        message = str(result.error)
        render.warn(message if message.startswith(entry.name) else f"{entry.name}: {message}")
        return [{**row, "state": "unknown", "is_reachable": False, "message": message}]
    reserved = found.reserved or {}
    row |= {
        "is_reachable": True,
        "reserved_by": reserved.get("owner") or ("somebody" if found.reserved is not None else None),
        "reserved_for_s": reserved.get("age_s"),
        "run_owner": (found.run_holder or {}).get("owner"),
    }
    if not found.runs:
        return [{**row, "state": "idle"}]
    return [{**row, "run_id": status.get("run_id"), **_said(status)} for status in found.runs]


def _said(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key not in ("event", "run_id")}

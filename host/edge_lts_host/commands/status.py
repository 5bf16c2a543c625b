"""`edge-lts status`: how runs are doing, asked of their boards, one command per board."""

from __future__ import annotations

import argparse
from typing import Any

from edge_lts_host.commands import common

NAME = "status"
HELP = "ask boards how their runs are doing"
EXAMPLE = "edge-lts status --all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("--all", action="store_true", dest="is_all", help="every run that was not over yet")
    parser.add_argument("--parallel", metavar="N", type=int, default=common.MAX_PARALLEL, help=argparse.SUPPRESS)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow
    from edge_lts_host.errors import TransportError, UsageError
    from edge_lts_host.fleet import exit_code
    from edge_lts_host.report import render

    if args.is_all and args.runs:
        raise UsageError("--all means every run: leave out the RUN arguments")
    wanted = follow.unfinished() if args.is_all else args.runs or [None]
    if not wanted:
        render.talk("no run is going on")
        return 0
    jobs = follow.find_jobs(wanted)
    results = follow.ask(jobs, common.ssh_options(args), args.parallel)
    rows = []
    for result in results:
        job = result.item
        # What was heard last is better than nothing, as long as it says so.
        status = job.folder.status() if result.value is None else result.value
        row: dict[str, Any] = {
            "run_id": job.run_id,
            "host": None if job.is_local else job.entry.name,
            "target": job.entry.target,
        }
        row |= {key: value for key, value in status.items() if key not in ("event", "run_id")}
        row["is_reachable"] = result.error is None
        if isinstance(result.error, TransportError):
            render.warn(f"{result.error}")
            row["message"] = "the board cannot be asked; as last heard of"
        elif result.error is not None:
            render.warn(f"{job.run_id}: {result.error}")
            row["message"] = str(result.error)
        rows.append(row)
    columns = (
        ("run_id", "run", render.text),
        ("host", "host", lambda name: "local" if name is None else render.text(name)),
        ("state", "state", render.text),
        ("spent_s", "spent", render.duration),
        ("budget_s", "budget", render.duration),
        ("n_measured", "measured", render.text),
        ("n_failed", "failed", render.text),
        ("n_frontier", "frontier", render.text),
        ("message", "", lambda message: render.text(message or "")),
    )
    render.emit(render.records(rows, args.output, columns, "runs"))
    return exit_code(results)

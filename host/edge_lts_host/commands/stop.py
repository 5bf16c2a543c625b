"""`edge-lts stop`: end runs cleanly, each with a valid frontier."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common
from edge_lts_host.units import duration

NAME = "stop"
HELP = "end a run cleanly; what was measured is kept"
EXAMPLE = "edge-lts stop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    common.add_fleet(parser)
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration("--timeout"),
        default=60.0,
        help="how long to wait for the end (default: 60s)",
    )
    common.add_ssh(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow, waiting
    from edge_lts_host.report import render
    from edge_lts_host.session import Session

    def stop(job: follow.Job, session: Session) -> None:
        event = session.stop(job.run_id, timeout_s=args.timeout)
        session.pull(job.folder)
        if event.get("was_alive"):
            render.talk(f"{job.run_id} ended: {follow.progress_line(event, has_bar=False)}")
            if event.get("state") == "stopped":
                render.talk(f"to go on with it: edge-lts resume {job.run_id}")
        else:
            render.talk(f"{job.run_id} was not running: {event.get('state', 'unknown')}")

    return waiting.serve(args, stop)

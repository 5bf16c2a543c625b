"""`edge-lts watch`: look on while a run goes on; ends when the run does, and never ends the run."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common
from edge_lts_host.units import duration

NAME = "watch"
HELP = "follow a run: budget, frontier, latest measurement"
EXAMPLE = "edge-lts watch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser, several=False)
    parser.add_argument(
        "--poll", metavar="TIME", type=duration("--poll"), default=2.0, help="time between looks (default: 2s)"
    )
    parser.add_argument(
        "--timeout", metavar="TIME", type=duration("--timeout"), default=None, help="stop looking then (exit code 124)"
    )
    common.add_ssh(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow, waiting
    from edge_lts_host.report import render

    (job,) = follow.find_jobs([args.run_id])
    follower = follow.Follower(
        job, common.ssh_options(args), render.talk, live=render.shows_progress(), poll_s=args.poll
    )
    try:
        status = follower.until_over(args.timeout)
    except KeyboardInterrupt:
        render.talk(f"no longer watching; the run goes on: edge-lts watch {job.run_id}")
        return waiting.INTERRUPTED
    return waiting.conclude(job, status)

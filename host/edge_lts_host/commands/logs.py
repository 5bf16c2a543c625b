"""`edge-lts logs`: what a run said of itself, events and log, so far or as it goes on."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "logs"
HELP = "show a run's events and log"
EXAMPLE = "edge-lts logs -f"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser, several=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run is over")
    parser.add_argument("--events", action="store_true", help="events only, not the log")
    common.add_ssh(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow, waiting
    from edge_lts_host.report import render
    from edge_lts_host.session import Session

    (job,) = follow.find_jobs([args.run_id])
    options = common.ssh_options(args)

    def pull(job: follow.Job, session: Session) -> None:
        session.pull(job.folder)

    reader = follow.LogReader(job.folder, events_only=args.events)
    if not args.follow:
        if not job.is_local:
            pulled = follow.each([job], pull, options, 1, lambda *_: None, say=render.talk)
            if pulled[0].error is not None:
                raise pulled[0].error
        for line in reader.new_lines():
            render.emit(line)
        return 0
    follower = follow.Follower(job, options, render.talk, poll_s=1.0)
    try:
        for _ in follower.states():
            for line in reader.new_lines():
                render.emit(line)
    except KeyboardInterrupt:
        return waiting.INTERRUPTED
    return 0

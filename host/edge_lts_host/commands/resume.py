"""`edge-lts resume`: go on with runs that were stopped or interrupted, with the budget that is left."""

from __future__ import annotations

import argparse

from edge_lts_host import on_boot, waiting
from edge_lts_host.commands import common

NAME = "resume"
HELP = "go on with a run that was stopped or interrupted"
EXAMPLE = "edge-lts resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    on_boot.add_argument(parser)
    waiting.add_arguments(parser)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow
    from edge_lts_host.payload import payload_for
    from edge_lts_host.pool import command
    from edge_lts_host.report import render
    from edge_lts_host.session import Session

    if (code := command.resume(args, common.ssh_options(args))) is not None:
        return code
    going: list[follow.Job] = []

    def resume(job: follow.Job, session: Session) -> None:
        session.push_agent(payload_for(job.folder.read_spec()))
        if args.on_boot:
            on_boot.arrange(session, job.run_id)
        event = session.launch(job.run_id)
        if event.get("event") == "finished":
            session.pull(job.folder)
            render.talk(f"{job.run_id} is done already: nothing is left of its budget")
            return
        going.append(job)
        render.talk(f"{job.run_id} goes on")

    status: int = waiting.serve(args, resume)
    if not going:
        return status
    return waiting.after_start(args, going) or status

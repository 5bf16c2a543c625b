"""`edge-lts pull`: copy what is new of runs from their boards, also while they go on.

A link that breaks in the middle is made again, and the copying goes on at the byte where it was.
"""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "pull"
HELP = "copy what is new of a run from its board"
EXAMPLE = "edge-lts pull"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    common.add_fleet(parser)
    common.add_ssh(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import follow, waiting
    from edge_lts_host.report import render
    from edge_lts_host.session import Session

    def pull(job: follow.Job, session: Session) -> None:
        if job.is_local:
            render.talk(f"{job.run_id} runs on this machine: {job.folder.path} is the run itself")
            return
        moved = session.pull(job.folder)
        render.talk(f"{job.run_id}: {render.size(sum(moved.values()))} new in {job.folder.path}")

    return waiting.serve(args, pull, is_copying=True)

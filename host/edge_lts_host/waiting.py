"""Waiting for runs, and what Ctrl-C means meanwhile (design §7).

On this machine the first Ctrl-C ends the run cleanly, with a frontier, and says how to go on with it; the second kills
it. On a board Ctrl-C only ends the waiting: the run goes on there. The verbs that work on runs share what they do at
the end here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_lts_host.units import duration

if TYPE_CHECKING:
    from edge_lts.errors import EdgeLtsError
    from edge_lts_host.follow import Follower, Job
    from edge_lts_host.session import Session

INTERRUPTED = 130
TIMED_OUT = 124
STOP_S = 3600.0  # one measurement may have to end first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--wait, --detach, --wait-timeout and --strict; without the first two: wait on this machine, detach elsewhere."""
    group = parser.add_argument_group("waiting")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--wait", action="store_true", help="follow the run and end with its frontier (default for local)"
    )
    either.add_argument("--detach", action="store_true", help="return at once (default for boards)")
    group.add_argument(
        "--wait-timeout",
        metavar="TIME",
        type=duration("--wait-timeout"),
        default=None,
        help="wait no longer than that; the run goes on (exit code 124)",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="when waiting: exit code 6 if members of the frontier were disturbed while they were measured",
    )


def serve(args: argparse.Namespace, work: Callable[[Job, Session], Any], *, is_copying: bool = False) -> int:
    """`work` for each job that the RUN arguments mean, side by side; the exit code.

    `is_copying`: it only copies what is new, and goes on where it was when a link breaks.
    """
    from edge_lts_host import follow
    from edge_lts_host.commands import common
    from edge_lts_host.fleet import exit_code
    from edge_lts_host.report import render

    jobs = follow.find_jobs(args.runs or [None])

    def complain(job: Job, error: EdgeLtsError) -> None:
        if len(jobs) > 1:
            render.warn(f"{job.run_id}: {error}")

    fail_percent = getattr(args, "fail_percent", None)
    results = follow.each(
        jobs,
        work,
        common.ssh_options(args),
        common.n_parallel(args, len(jobs)),
        complain,
        fail_percent=fail_percent,
        say=render.talk if is_copying else None,
    )
    if len(results) == 1 and results[0].error is not None:
        raise results[0].error
    return exit_code(results, fail_percent)


def is_waiting(args: argparse.Namespace, is_local: bool) -> bool:
    """Whether runs that have just begun are followed; `is_local`: all of them on this machine."""
    return bool(args.wait or args.wait_timeout is not None or (not args.detach and is_local))


def after_start(args: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """What `run` and `resume` do once runs have begun: wait and report, or say how to look on."""
    from edge_lts_host.report import render

    if is_waiting(args, all(job.is_local for job in jobs)):
        return wait(args, jobs)
    one = f" {jobs[0].run_id}" if len(jobs) == 1 else " --all"
    render.talk(f"the search goes on by itself; to look: edge-lts status{one}")
    if args.strict:
        render.talk(f"--strict looks at a frontier when it is shown: edge-lts report --strict{one}")
    return 0


def wait(args: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Follow the jobs to their end and print their frontiers. Meters of this machine are recorded meanwhile."""
    from edge_lts_host import follow, meters
    from edge_lts_host.commands import common
    from edge_lts_host.fleet import exit_code, side_by_side
    from edge_lts_host.report import render

    options = common.ssh_options(args)
    is_live = len(jobs) == 1 and render.shows_progress()
    followers = {job.run_id: follow.Follower(job, options, render.talk, live=is_live) for job in jobs}
    try:
        with contextlib.ExitStack() as recordings:
            for job in jobs:
                meter = job.folder.host_meta().get("meter")
                recordings.enter_context(meters.recording(meter, job.folder.path, render.warn))
            results = side_by_side(
                jobs, lambda job: followers[job.run_id].until_over(args.wait_timeout), n_parallel=len(jobs)
            )
    except KeyboardInterrupt:
        return interrupt(jobs, followers, args)
    for result in results:
        if result.error is not None:
            render.warn(f"{result.item.run_id}: {result.error}")
    code = exit_code(results)
    conclusions = [conclude(result.item, result.value) for result in results if result.error is None]
    shown = show_frontiers([job for job in jobs if (job.folder / "ledger.jsonl").exists()], args.output)
    refused = refusal(shown) if args.strict else 0
    return code or max(conclusions, default=0) or refused


def interrupt(jobs: Sequence[Job], followers: Mapping[str, Follower], args: argparse.Namespace) -> int:
    """Ctrl-C while waiting."""
    from edge_lts_host.report import render

    local = [job for job in jobs if job.is_local]
    for job in jobs:
        if not job.is_local:
            render.talk(f"{job.run_id} goes on on {job.entry.name}; to look: edge-lts watch {job.run_id}")
    for job in local:
        end_local(job)
        render.talk(f"to go on with it: edge-lts resume {job.run_id}")
    if local:
        show_frontiers(local, args.output)
    return INTERRUPTED


def end_local(job: Job) -> None:
    """End a run on this machine cleanly; a second Ctrl-C kills it."""
    from edge_lts_host.report import render
    from edge_lts_host.session import Session, open_transport

    render.talk(f"\nending {job.run_id} cleanly (Ctrl-C again kills it; nothing that was measured is lost either way)")
    try:
        with open_transport(job.entry) as transport:
            Session(transport, job.place).stop(job.run_id, timeout_s=STOP_S)
    except KeyboardInterrupt:
        kill_local(job)
        render.talk(f"{job.run_id} was killed")


def kill_local(job: Job) -> None:
    """SIGKILL to the supervisor of a run on this machine, if it is still that very process."""
    from edge_lts.job import Identity, is_locked, read_holder
    from edge_lts.runfolder import LOCK

    lock = job.folder / LOCK
    identity = Identity.from_json(read_holder(lock))
    if is_locked(lock) and identity is not None and identity.matches_a_process():
        os.kill(identity.pid, signal.SIGKILL)


def conclude(job: Job, status: Mapping[str, Any] | None) -> int:
    """Say how a run that was followed ended; the exit code that this deserves."""
    from edge_lts_host import follow
    from edge_lts_host.report import render

    if status is None:
        where = "" if job.is_local else " on the board"
        render.talk(f"{job.run_id}: no longer waiting; the run goes on{where}: edge-lts watch {job.run_id}")
        return TIMED_OUT
    reasons = ", ".join(str(reason) for reason in status.get("reasons") or ())
    because = f" ({reasons})" if reasons else ""
    render.talk(f"{job.run_id} {follow.progress_line(status, has_bar=False)}{because}")
    state = status.get("state")
    if state == "interrupted":
        render.talk(f"it was interrupted; nothing that was measured is lost: edge-lts resume {job.run_id}")
    elif state in ("failed", "unknown"):
        render.talk(f"{status.get('message') or 'it failed'}; edge-lts logs {job.run_id} says more")
    return 0 if state in ("done", "stopped") else 1


def show_frontiers(jobs: Sequence[Job], output: str) -> Mapping[str, Any]:
    """The report of these runs, to stdout, and as data."""
    from edge_lts_host.report import compare, pages, render

    report = compare.build_report([job.folder for job in jobs])
    if jobs:
        render.emit(pages.report(report, output))
    return report


def refusal(report: Mapping[str, Any]) -> int:
    """What --strict says against frontiers that were shown, to stderr; the exit code, 0 for nothing."""
    from edge_lts_host.report import quality, render

    error = quality.strict_error(report)
    if error is None:
        return 0
    render.warn(str(error))
    return error.exit_code

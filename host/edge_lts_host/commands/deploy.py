"""`edge-lts deploy`: make boards ready to search on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts_host.deploy import Outcome
    from edge_lts_host.environment import Options

NAME = "deploy"
HELP = "make a board ready: torch, numpy and the agent, over SSH, without root"
EXAMPLE = "edge-lts deploy --host pi@raspberrypi"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_hosts(parser)
    group = parser.add_argument_group("on the board")
    group.add_argument("--root", metavar="DIR", help="directory of edge-lts there (default: ~/.local/share/edge-lts)")
    group.add_argument("--python", metavar="PATH", help="Python there; one that has torch and numpy is used as it is")
    group.add_argument("--wheelhouse", metavar="DIR", help="take the wheels for the board from DIR, fetch nothing")
    group.add_argument("--online", action="store_true", help="let the board fetch torch itself")
    group.add_argument("--torch-index", metavar="URL", help="with --online: package index to fetch from")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    common.add_ssh(parser)
    common.add_output(parser, ("table", "json", "jsonl"))


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.fleet import Links, exit_code, side_by_side
    from edge_lts_host.hosts import HostEntry, select_hosts
    from edge_lts_host.payload import build_payload
    from edge_lts_host.report import render

    options = _options(args)
    entries = select_hosts(args, must_be_deployed=False)
    if entries[0].is_local:
        render.talk("this machine needs no deploy; edge-lts run --target local works as it is")
        return 0
    ssh = common.ssh_options(args)
    payload = build_payload()
    links = Links()

    def deploy(entry: HostEntry) -> Outcome:
        from edge_lts_host.deploy import Deployment
        from edge_lts_host.progress import Stages, is_live
        from edge_lts_host.session import open_transport

        stages = Stages(entry.name, render.talk, live=is_live(len(entries)))
        with stages.stage("connect"):
            transport = links.add(open_transport(entry, ssh))
        with transport:
            return Deployment(transport, entry, payload, options, stages).run()

    def complain(entry: HostEntry, error: Exception) -> None:
        if len(entries) > 1:
            render.warn(f"{entry.name}: {error}")

    results = side_by_side(
        entries, deploy, n_parallel=common.n_parallel(args, len(entries)), links=links, on_error=complain
    )
    if len(results) == 1 and results[0].error is not None:
        raise results[0].error
    done = [result.value for result in results if result.value is not None]
    if args.output == "table":
        for outcome in done:
            render.emit(_sentence(outcome, is_dry_run=args.dry_run))
        failed = [result.item.name for result in results if result.error is not None]
        if failed:
            render.talk(f"{len(failed)} of {len(results)} boards failed: {', '.join(failed)}")
    else:
        rows = [outcome.to_json() for outcome in done]
        rows += [
            {"host": result.item.name, "error": str(result.error), "exit_code": result.error.exit_code}
            for result in results
            if result.error is not None
        ]
        render.emit(render.records(rows, args.output, (), "hosts"))
    return exit_code(results)


def _options(args: argparse.Namespace) -> Options:
    from pathlib import Path

    from edge_lts_host.environment import DEFAULT_ROOT, Options
    from edge_lts_host.errors import UsageError
    from edge_lts_host.targets import get_target, load_targets

    if args.online and args.wheelhouse:
        raise UsageError("--online and --wheelhouse exclude each other: the wheels come from one place")
    if args.torch_index and not args.online:
        raise UsageError("--torch-index needs --online: it is the board that asks that index")
    wheelhouse = None if args.wheelhouse is None else Path(args.wheelhouse)
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise UsageError(f"--wheelhouse: {wheelhouse} is not a directory")
    root = args.root or DEFAULT_ROOT
    if not root.startswith(("/", "~/")):
        raise UsageError(f"--root: {root!r:.120} must be absolute, or begin with ~/")
    targets = load_targets(args.target_file or ())
    return Options(
        root=root,
        python=args.python,
        target=get_target(targets, args.target) if args.target else None,
        targets=targets,
        wheelhouse=wheelhouse,
        is_online=args.online,
        torch_index=args.torch_index,
        is_dry_run=args.dry_run,
    )


def _sentence(outcome: Outcome, *, is_dry_run: bool) -> str:
    entry = outcome.entry
    what = f"{entry.name}: {outcome.target.name}, torch {outcome.environment.torch}"
    if is_dry_run:
        return f"{what}; would {', '.join(outcome.steps) if outcome.steps else 'do nothing: it is ready'}"
    if not outcome.steps:
        return f"{what}; nothing to do: it is ready"
    seconds = sum(outcome.times_s.values())
    return f"{what}; ready in {seconds:.0f} s ({outcome.n_bytes_sent / 1e6:.1f} MB sent)"

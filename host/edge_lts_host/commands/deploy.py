"""`edge-lts deploy`: make boards ready to search on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts_host.deploy import Deployment, Outcome
    from edge_lts_host.environment import Options
    from edge_lts_host.hosts import HostEntry

NAME = "deploy"
HELP = "make a board ready: torch, numpy and the agent, over SSH or serial, without root"
EXAMPLE = "edge-lts deploy --host pi@raspberrypi"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_hosts(parser)
    console = parser.add_argument_group("serial console, of a board without a network")
    console.add_argument(
        "--serial",
        metavar="PORT",
        help="/dev/serial/by-id/..., rfc2217://HOST:PORT or socket://HOST:PORT; the agent goes over it, torch must be "
        "on the board already (edge-lts devices scan lists ports)",
    )
    console.add_argument("--user", metavar="NAME", help="who logs in there; a password is asked for on the terminal")
    console.add_argument("--baud", metavar="N", type=int, help="bits per second (default: 115200)")
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
    from edge_lts_host.fleet import Links, exit_code
    from edge_lts_host.payload import build_payload
    from edge_lts_host.report import render

    options = _options(args)
    entries = _entries(args)
    if entries[0].is_local:
        render.talk("this machine needs no deploy; edge-lts run --target local works as it is")
        return 0
    ssh = common.ssh_options(args)
    payload = build_payload()
    links = Links()

    def deploy(entry: HostEntry) -> Outcome:
        from edge_lts_host.progress import Stages, is_live
        from edge_lts_host.session import open_transport

        stages = Stages(entry.name, render.talk, live=is_live(len(entries)))
        with stages.stage("connect"):
            transport = links.add(open_transport(entry, ssh))
        with transport:
            return _kind(entry)(transport, entry, payload, options, stages).run()

    results = common.on_each(args, entries, deploy, links, lambda entry: entry.name)
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
    return exit_code(results, args.fail_percent)


def _entries(args: argparse.Namespace) -> list[HostEntry]:
    """The boards meant; --serial, --user and --baud are one board's console."""
    from edge_lts_host.errors import UsageError
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.transport.serial_port import DEFAULT_BAUD_HZ, SerialDestination

    if args.serial is None:
        if args.user is not None or args.baud is not None:
            raise UsageError("--user and --baud are for --serial PORT; over SSH the user stands in --host USER@HOST")
        return select_hosts(args, must_be_deployed=False)
    if args.host or args.inventory or args.limit:
        raise UsageError("--serial is one board's console: leave out --host, --inventory and --limit")
    baud_hz = DEFAULT_BAUD_HZ if args.baud is None else args.baud
    args.host = [str(SerialDestination.of(args.serial, args.user, baud_hz))]
    return select_hosts(args, must_be_deployed=False)


def _kind(entry: HostEntry) -> type[Deployment]:
    from edge_lts_host.transport.serial_port import is_serial

    if is_serial(entry.destination):
        from edge_lts_host.serial_deploy import SerialDeployment

        return SerialDeployment
    from edge_lts_host.deploy import Deployment

    return Deployment


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

"""`edge-lts clean`: remove what edge-lts has on boards; shows sizes first and asks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts_host.hosts import HostEntry

NAME = "clean"
HELP = "remove environment, agents and runs from a board"
EXAMPLE = "edge-lts clean --host pi@raspberrypi"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_hosts(parser)
    parser.add_argument("--keep-runs", action="store_true", help="leave the runs on the board")
    parser.add_argument("--dry-run", action="store_true", help="show sizes, remove nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    import sys

    from edge_lts_host.errors import UsageError
    from edge_lts_host.fleet import Links, exit_code
    from edge_lts_host.hosts import forget, select_hosts
    from edge_lts_host.payload import build_payload
    from edge_lts_host.report import render
    from edge_lts_host.session import Place, Session, open_transport

    entries = select_hosts(args)
    if entries[0].is_local:
        raise UsageError("--target local keeps its runs in the runs folder of this machine; remove them there")
    is_asking = not (args.yes or args.dry_run)
    if is_asking and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("without a terminal to ask on, say --yes (or --dry-run to see sizes)")
    options = common.ssh_options(args)
    payload = build_payload()
    links = Links()

    def clean(entry: HostEntry, is_dry_run: bool) -> dict[str, Any]:
        with links.add(open_transport(entry, options)) as transport:
            session = Session(transport, Place.of(entry, payload))
            session.push_agent(payload)
            event = session.clean(keep_runs=args.keep_runs, is_dry_run=is_dry_run)
        if not is_dry_run and not args.keep_runs:
            forget(entry.name)
        sizes = dict(event.get("sizes") or {})
        return {"host": entry.name, "root": event.get("root"), **sizes, "removed": event.get("removed", [])}

    def for_all(is_dry_run: bool) -> tuple[list[dict[str, Any]], int]:
        results = common.on_each(args, entries, lambda entry: clean(entry, is_dry_run), links, lambda entry: entry.name)
        return [result.value for result in results if result.value is not None], exit_code(results, args.fail_percent)

    columns = (
        ("host", "host", render.text),
        ("root", "directory", render.text),
        *((name, name, render.size) for name in ("env", "agents", "runs", "trainings")),
        ("removed", "removed", lambda names: ", ".join(names) or "nothing"),
    )
    if is_asking:
        rows, _ = for_all(True)
        render.talk(render.records(rows, "table", columns[:-1], "hosts"))
        kept = "; runs are kept" if args.keep_runs else ""
        sys.stderr.write(f"remove this from {len(rows)} board{'s' * (len(rows) != 1)}{kept}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            render.talk("nothing was removed")
            return 0
    rows, code = for_all(args.dry_run)
    render.emit(render.records(rows, args.output, columns, "hosts"))
    return code

"""`edge-lts devices`: the boards that deploy remembers or an inventory lists, serial ports, and locks on boards.

A lock is a person's: while it is there, the board refuses runs and measurements of everybody else (exit code 7). It is
a file on the board, so that it holds for every workstation. A run that is going on is not disturbed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_lts_host.fleet import Result
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.session import Survey
    from edge_lts_host.transport.base import Transport

NAME = "devices"
HELP = "list boards, look for serial ports, lock and unlock boards"
EXAMPLE = "edge-lts devices lock --limit 'pi5-*' --note 'demo until Friday'"
ACTIONS = ("list", "scan", "lock", "unlock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=ACTIONS,
        default="list",
        help="list: boards that were deployed to, or that --inventory lists; scan: serial ports and what answers on "
        "them; lock, unlock: keep a board for yourself, or give it back (default: list)",
    )
    common.add_hosts(parser)
    parser.add_argument(
        "--locks", action="store_true", help="list: ask each board who has locked it and what runs there"
    )
    parser.add_argument("--note", metavar="TEXT", default="", help="lock: what for, shown to whoever is refused")
    parser.add_argument("--force", action="store_true", help="unlock: also if somebody else has locked it")
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.errors import UsageError

    for flag, action in (("locks", "list"), ("note", "lock"), ("force", "unlock")):
        if getattr(args, flag) and args.action != action:
            raise UsageError(f"--{flag} is for devices {action}, not for devices {args.action}")
    serve: Callable[[argparse.Namespace], int] = {"list": _list, "scan": _scan, "lock": _lock, "unlock": _unlock}[
        args.action
    ]
    return serve(args)


def _list(args: argparse.Namespace) -> int:
    from edge_lts_host.fleet import exit_code
    from edge_lts_host.hosts import list_hosts, select_hosts
    from edge_lts_host.report import render

    hosts = select_hosts(args) if args.host else list_hosts(args)
    if not hosts and args.output in ("table", "md"):
        render.talk("no boards yet; make one ready: edge-lts deploy --host [USER@]HOST")
        return 0
    rows = [render.device_row(entry.to_json()) for entry in hosts]
    if not args.locks:
        render.emit(render.records(rows, args.output, render.DEVICE_COLUMNS, "devices"))
        return 0
    from edge_lts_host import follow

    ready = [entry for entry in hosts if entry.is_deployed]
    found = follow.survey(ready, common.ssh_options(args), common.n_parallel(args, len(ready)), args.fail_percent)
    said = {result.item.name: _lock_row(result) for result in found}
    rows = [{**row, **said.get(row["name"], {})} for row in rows]
    columns = (
        *((key, heading, cell) for key, heading, cell in render.DEVICE_COLUMNS if key in ("name", "target", "model")),
        ("reserved_by", "locked by", render.text),
        ("reserved_for_s", "for", render.duration),
        ("reserved_note", "note", lambda note: render.text(note or "")),
        ("run_id", "running", render.text),
        ("run_owner", "started by", render.text),
        ("message", "", lambda message: render.text(message or "")),
    )
    render.emit(render.records(rows, args.output, columns, "devices"))
    return exit_code(found, args.fail_percent) if found else 0


def _lock_row(result: Result[HostEntry, Survey]) -> dict[str, Any]:
    if result.value is None:
        return {"is_reachable": False, "message": str(result.error)}
    reserved, running = result.value.reserved, result.value.run_holder or {}
    row = {"is_reachable": True, "run_id": running.get("run_id"), "run_owner": running.get("owner")}
    if reserved is None:
        return {**row, "reserved_by": None, "reserved_for_s": None, "reserved_note": None}
    return {
        **row,
        "reserved_by": reserved.get("owner") or "somebody",
        "reserved_for_s": reserved.get("age_s"),
        "reserved_note": reserved.get("note"),
    }


def _lock(args: argparse.Namespace) -> int:
    from edge_lts_host import locks
    from edge_lts_host.report import render
    from edge_lts_host.session import Place, Session

    def lock(entry: HostEntry, transport: Transport) -> None:
        place = Place.of(entry)
        is_new = locks.lock(transport, place.root, args.note)
        render.talk(f"{entry.name} is {'' if is_new else 'already '}locked for {locks.owner()}")
        # Whoever begins from now on is refused; whoever began before is seen here.
        running = Session(transport, place).survey().run_holder
        if running is not None:
            of = f" of {running['owner']}" if running.get("owner") else ""
            render.warn(f"{entry.name}: {running.get('run_id')}{of} is going on there and is not disturbed")

    return _each(args, lock)


def _unlock(args: argparse.Namespace) -> int:
    from edge_lts_host import locks
    from edge_lts_host.report import render
    from edge_lts_host.session import Place

    def unlock(entry: HostEntry, transport: Transport) -> None:
        was = locks.unlock(transport, Place.of(entry).root, is_forced=args.force)
        whose = "it was not locked" if was is None else f"it was locked by {locks.describe(was)}"
        render.talk(f"{entry.name} is free ({whose})")

    return _each(args, unlock)


def _each(args: argparse.Namespace, work: Callable[[HostEntry, Transport], None]) -> int:
    from edge_lts_host.errors import UsageError
    from edge_lts_host.fleet import Links, exit_code
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.session import open_transport

    entries = select_hosts(args)
    if entries[0].is_local:
        raise UsageError("--target local is this machine, which has no lock of a person")
    options, links = common.ssh_options(args), Links()

    def serve(entry: HostEntry) -> None:
        with links.add(open_transport(entry, options)) as transport:
            work(entry, transport)

    results = common.on_each(args, entries, serve, links, lambda entry: entry.name)
    return exit_code(results, args.fail_percent)


def _scan(args: argparse.Namespace) -> int:
    from edge_lts_host.report import render
    from edge_lts_host.transport.serial_scan import scan

    rows = [found.to_json() for found in scan()]
    if not rows and args.output in ("table", "md"):
        render.talk("no serial ports here")
        return 0
    columns = (
        ("port", "port", render.text),
        ("description", "adapter", render.text),
        ("answer", "what answers", render.text),
    )
    render.emit(render.records(rows, args.output, columns, "ports"))
    return 0

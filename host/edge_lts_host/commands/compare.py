"""`edge-lts compare`: frontiers of several runs against one another, and what one loses on another's board."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts_host.report.sides import Side
    from edge_lts_host.store import RunFolder

NAME = "compare"
HELP = "compare the frontiers of several runs, on one board or on several"
EXAMPLE = "edge-lts compare rpi4-ab12 rpi5-cd34 -o md > comparison.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run id, or how one begins or ends; two or more")
    parser.add_argument(
        "--across",
        metavar="A,B",
        default="",
        help="compare runs although these differ, as different boards: threads, precision (default: such runs stand "
        "apart)",
    )
    parser.add_argument(
        "--levels",
        metavar="N",
        type=int,
        default=6,
        help="sizes at which the frontiers are set side by side (default: 6)",
    )
    parser.add_argument(
        "--transfer",
        action="store_true",
        help="time each frontier's members on the other boards, now: what does a frontier lose elsewhere?",
    )
    parser.add_argument(
        "--transfer-members",
        metavar="N",
        type=int,
        default=8,
        help="members of each frontier to time there, evenly spread, three processes each (default: 8)",
    )
    common.add_plots(parser)
    common.add_ssh(parser)
    common.add_output(parser, common.PAGE_FORMATS)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import store, transfers
    from edge_lts_host.errors import UsageError
    from edge_lts_host.report import across, across_pages, render
    from edge_lts_host.report.sides import across_of, load_sides

    free = across_of(args.across)
    if args.levels < 1 or args.transfer_members < 1:
        raise UsageError("--levels and --transfer-members take a number of at least 1")
    folders = [store.resolve(run) for run in args.runs]
    if args.transfer:
        _transfer(args, folders, free)
    sessions = transfers.load_sessions([folder.run_id for folder in folders])
    sides = load_sides(folders)
    data = across.compare_sides(sides, across=free, n_levels=args.levels, sessions=sessions)
    letters = across_pages.letters(data)
    if args.plots:
        common.draw_pictures(args.plots, sides, across=free, letters=letters)
    if args.output == "html":
        from edge_lts_host.report.html import page

        render.emit(page.comparison(data, sides, across_pages.comparison(data, "html"), free, letters))
    else:
        render.emit(across_pages.comparison(data, args.output))
    return 0


def _transfer(args: argparse.Namespace, folders: list[RunFolder], free: list[str]) -> None:
    """One session on the board of each run, with members of all frontiers that it may be compared with."""
    from edge_lts.objectives import QUALITY
    from edge_lts_host.errors import UsageError
    from edge_lts_host.report import render
    from edge_lts_host.report.sides import grouped, load_sides, shared_axes

    work = []
    by_id = {folder.run_id: folder for folder in folders}
    for group in grouped(load_sides(folders), free):
        shared = shared_axes(group)
        axes = [axis.name for axis in shared if axis.name.endswith("_latency_s")]
        quality = QUALITY if any(axis.name == QUALITY for axis in shared) else "decoder_params"
        if len(group) < 2 or not axes:
            continue
        for side in group:
            others = [other for other in group if other is not side and not other.is_emulated and other.members]
            if side.is_emulated:
                render.warn(f"{side.run_id} is emulated: its timings are no performance, so nothing is timed there")
            elif others and side.members:
                work.append((by_id[side.run_id], side, others, axes[0], quality))
    if not work:
        raise UsageError("--transfer: none of these runs has a board and a frontier that another one can be timed on")
    for folder, side, others, latency, quality in work:
        _session(args, folder, side, others, latency, quality)


def _session(
    args: argparse.Namespace, folder: RunFolder, side: Side, others: list[Side], latency: str, quality: str
) -> None:
    import posixpath
    import time
    from dataclasses import replace

    from edge_lts.arch import Architecture
    from edge_lts_host import launch, transfers
    from edge_lts_host.hosts import load_hosts
    from edge_lts_host.payload import build_payload
    from edge_lts_host.progress import draw_line
    from edge_lts_host.report import render, transfer
    from edge_lts_host.session import Session, local_place, open_transport, place_of_run

    protocol = transfer.protocol_of(side.run)
    transfers.check_method(side.run_id, protocol)
    entry, place = place_of_run(folder, load_hosts())
    plan, architectures = [], {}
    for other in others:
        members = transfer.chosen(other.members, args.transfer_members)
        plan += transfer.plan(other.run_id, members, side.members, protocol, latency, quality)
    for each in (side, *others):
        architectures.update({one["arch_id"]: Architecture.from_json(one["architecture"]) for one in each.members})
    payload = build_payload(*(each.backbone for each in architectures.values()))
    agent = posixpath.join(place.root, "agents", payload.name)
    place = local_place(payload) if entry.is_local else replace(place, agent=agent)
    n = len({one.arch_id for one in plan} | {one.rival for one in plan if one.rival})
    render.talk(
        f"{side.run_id}: timing {len(plan)} members of {', '.join(other.run_id for other in others)} on its board: "
        f"{n} architectures, {transfers.N_ROUNDS} times each"
    )

    def progress(done: int, total: int) -> None:
        if render.shows_progress():
            draw_line(f"{side.run_id}: {done} of {total} measured")

    with open_transport(entry, common.ssh_options(args)) as transport:
        session = Session(transport, place)
        session.push_agent(payload)
        try:
            transfers.measure_session(
                side.run_id,
                latency,
                plan,
                architectures,
                lambda architecture: session.measure(
                    architecture,
                    protocol,
                    timeout_s=launch.DEFAULT_TIMEOUT_S,
                    memory_headroom=side.spec.memory_headroom,
                ),
                protocol,
                torch=(side.run["device"] or {}).get("torch"),
                clock=time.monotonic,
                on_progress=progress,
            )
        finally:
            if render.shows_progress():
                draw_line("")

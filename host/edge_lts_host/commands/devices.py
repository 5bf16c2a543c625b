"""`edge-lts devices`: the boards that deploy remembers, or that an inventory lists."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "devices"
HELP = "list the boards that deploy has made ready"
EXAMPLE = "edge-lts devices --target arm64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_target(parser)
    parser.add_argument("-i", "--inventory", metavar="FILE", help="TOML file that lists boards, deployed or not")
    parser.add_argument("--limit", metavar="PATTERN", help="only boards whose name, tag or group matches")
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.hosts import list_hosts
    from edge_lts_host.report import render

    hosts = list_hosts(args)
    if not hosts and args.output in ("table", "md"):
        render.talk("no boards yet; make one ready: edge-lts deploy --host [USER@]HOST")
        return 0
    rows = [render.device_row(entry.to_json()) for entry in hosts]
    render.emit(render.records(rows, args.output, render.DEVICE_COLUMNS, "devices"))
    return 0

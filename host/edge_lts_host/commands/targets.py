"""`edge-lts targets`: the classes of boards, what each implies and where it comes from."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "targets"
HELP = "list the classes of boards and what each implies"
EXAMPLE = "edge-lts targets -o json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these (default: all)")
    parser.add_argument(
        "--target-file", metavar="FILE", action="append", help="a target of your own, called as its file; repeatable"
    )
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.report import render
    from edge_lts_host.targets import get_target, load_targets

    targets = load_targets(args.target_file or ())
    chosen = [get_target(targets, name) for name in args.names] or list(targets.values())
    render.emit(render.records([target.to_json() for target in chosen], args.output, render.TARGET_COLUMNS, "targets"))
    return 0

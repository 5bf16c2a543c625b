"""`edge-lts params`: count the parameters of one architecture, by the closed formula."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "params"
HELP = "count an architecture's parameters"
EXAMPLE = "edge-lts params ARCH.json -o json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="ARCH.json", help="architecture file, or - for stdin")
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.arch_files import load_architecture
    from edge_lts_host.report import render

    architecture = load_architecture(args.architecture)
    count = architecture.parameter_count
    data = {"arch_id": architecture.arch_id, "decoder_params": count.decoder, "total_params": count.total}
    if args.output in ("table", "md"):
        data |= {"embedding": count.embedding, "position": count.position, "head": count.head}
    render.emit(render.record(data, args.output, render.PARAMS_COLUMNS))
    return 0

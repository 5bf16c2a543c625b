"""`edge-lts proxies`: the proxies there are; with architectures, what those that need the model say of them."""

from __future__ import annotations

import argparse

from edge_lts_host.calibration import scores
from edge_lts_host.commands import common

NAME = "proxies"
HELP = "list the proxies of quality, or score architectures with them"
EXAMPLE = "edge-lts proxies ARCH.json --proxy synflow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    scores.add_arguments(parser)
    common.add_hosts(parser)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.calibration import catalogue, pages
    from edge_lts_host.report import render

    if args.architectures:
        return scores.run(args, common.ssh_options(args))
    render.emit(pages.catalogue(catalogue.catalogue(), args.output))
    return 0

"""`edge-lts calibrate`: fit quality to a few trained models, from a table or trained for the purpose."""

from __future__ import annotations

import argparse

from edge_lts_host.calibration import training
from edge_lts_host.commands import common

NAME = "calibrate"
HELP = "fit a proxy of quality to a few trained models"
EXAMPLE = "edge-lts calibrate --labels TABLE.csv --models 16 --seed 0 --to proxy.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="FILE", default="proxy.json", help="write it there (default: proxy.json)")
    parser.add_argument(
        "--models", metavar="N", type=int, help="how many to draw, or to train (default: 16; a table of fewer: all)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which are drawn or trained (default: 0)")
    parser.add_argument("--labels", metavar="TABLE.csv", help="a table of trained models")
    parser.add_argument("--backbone", metavar="NAME", help="of rows that name none (default: not known)")
    parser.add_argument(
        "--label", metavar="COLUMN", help="bits_per_byte, valid_loss or valid_ppl (default: the first there is)"
    )
    training.add_arguments(parser)
    common.add_hosts(parser)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.errors import UsageError

    if (args.labels is None) == (args.corpus is None):
        raise UsageError("calibrate takes --labels TABLE.csv, or --corpus TEXT to train models first")
    if args.corpus is not None:
        return training.run(args, common.ssh_options(args))
    from edge_lts_host.calibration import from_table

    result = from_table.calibrate_file(
        args.labels,
        to=args.to,
        seed=args.seed,
        models=from_table.DEFAULT_MODELS if args.models is None else args.models,
        label=args.label,
        backbone=args.backbone,
        at_most=args.models is None,
    )
    from_table.emit(result, args.output)
    return 0

"""`edge-lts pick`: the best architecture within limits, what the limits cost, and a script to train it."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common
from edge_lts_host.commands import run as run_verb

NAME = "pick"
HELP = "pick the best measured architecture within limits"
EXAMPLE = "edge-lts pick --max-decode-latency 60ms --max-peak-memory 400MiB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from edge_lts_host.counts import count

    common.add_runs(parser, several=False)
    run_verb.add_constraints(parser)
    parser.add_argument(
        "--sure", action="store_true", help="only what keeps the limits with its whole interval (default: its median)"
    )
    parser.add_argument("--runners-up", metavar="N", type=int, default=3, help="how many of the next best (default: 3)")
    parser.add_argument(
        "--train-tokens",
        metavar="N",
        type=count("--train-tokens"),
        help="rank by the loss that a published law gives after so many training tokens, as 2G "
        "(default: by size, as if all were trained until they converge)",
    )
    parser.add_argument(
        "--loss-law", choices=("chinchilla", "kaplan"), default="chinchilla", help="which one (default: chinchilla)"
    )
    parser.add_argument(
        "--recipe", metavar="DIR", help="write model and training script of the best one there, with rate and batch"
    )
    common.add_output(parser, common.PAGE_FORMATS)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from edge_lts.arch import Architecture
    from edge_lts_host import launch, recipes, store
    from edge_lts_host.errors import HostError, UsageError
    from edge_lts_host.report import pick, pick_pages, render

    if args.runners_up < 0:
        raise UsageError("--runners-up takes a number, 0 or more")
    if args.train_tokens is not None and args.train_tokens < 1:
        raise UsageError("--train-tokens takes a number of at least 1")
    folder = store.resolve(args.run_id)
    data = pick.build_pick(
        folder,
        launch.constraints(args),
        n_runners_up=args.runners_up,
        train_tokens=args.train_tokens,
        law=args.loss_law,
        only_sure=args.sure,
    )
    best = data["best"]
    if best is not None and args.recipe is not None:
        made = recipes.write_recipe(Architecture.from_json(best["architecture"]), Path(args.recipe), args.train_tokens)
        render.talk(
            f"{args.recipe}: python train.py --data TOKENS; {render.count(made['tokens'])} tokens, learning rate "
            f"{made['learning_rate']:g}, {made['steps']} steps of {made['batch_windows']} x {made['sequence_length']} "
            f"tokens; {recipes.RECIPE} says where they come from"
        )
        for note in made["notes"]:
            render.warn(f"recipe: {note}")
    render.emit(pick_pages.pick(data, args.output))
    if best is None:
        raise HostError(pick_pages.nothing(data))
    return 0

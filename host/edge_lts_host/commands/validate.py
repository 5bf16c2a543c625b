"""`edge-lts validate`: how well a proxy ranks the trained models of a table."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "validate"
HELP = "how well proxies rank trained models, at equal size, too"
EXAMPLE = "edge-lts validate --proxy proxy.json --panel TABLE.csv -o json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--proxy",
        metavar="NAME|FILE",
        action="append",
        required=True,
        help="one that `edge-lts proxies` lists, or a proxy.json; repeatable",
    )
    parser.add_argument("--panel", metavar="TABLE.csv", required=True, help="trained models, with their losses")
    parser.add_argument(
        "--leave-out",
        metavar="FILE",
        help="drop the rows this proxy.json was fitted to (default: those of any --proxy)",
    )
    parser.add_argument("--backbone", metavar="NAME", help="of rows that name none (default: not known)")
    parser.add_argument(
        "--label", metavar="COLUMN", help="bits_per_byte, valid_loss or valid_ppl (default: the first there is)"
    )
    common.add_plots(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from edge_lts_host.calibration import pages, validation
    from edge_lts_host.calibration.panel import read_panel
    from edge_lts_host.progress import draw_line
    from edge_lts_host.proxy_files import load_proxy
    from edge_lts_host.report import render

    proxies = [validation.resolve(name) for name in args.proxy]
    left_out = validation.used_rows([load_proxy(args.leave_out)] if args.leave_out else proxies)
    panel = read_panel(args.panel, backbone=args.backbone, label=args.label)

    def show(text: str) -> None:
        if render.shows_progress():
            draw_line(text and f"{panel.name}: {text}")

    known: validation.Scores = {}
    try:
        results = validation.validate(panel, proxies, left_out, show, known)
    finally:
        show("")
    for warning in dict.fromkeys(warning for one in results for warning in one["warnings"]):
        render.warn(warning)
    if args.plots:
        from edge_lts_host.report.plots import ranked

        paths = ranked.draw(validation.points(panel, proxies, left_out, known), panel.name, Path(args.plots))
        render.talk(f"{args.plots}: {len(paths) // 2} pictures, each as png and svg")
    render.emit(pages.validated(results, args.output))
    return 0

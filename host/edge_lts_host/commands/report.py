"""`edge-lts report`: the frontiers of one or several runs, finished or still going on."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common

NAME = "report"
HELP = "show the measured frontier of a run, or of several"
EXAMPLE = "edge-lts report -o md > frontier.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_runs(parser)
    parser.add_argument("--all", action="store_true", dest="is_all", help="every run on this machine")
    parser.add_argument(
        "--members", metavar="N", type=int, default=20, help="frontier members in a table (default: 20; 0: all)"
    )
    parser.add_argument(
        "--filter",
        metavar="TEST",
        action="append",
        help="only members for which it holds, as 'decode<=2ms', 'peak<20MiB', 'layers>=6', or knee, sure, "
        "undisturbed, confirmed; repeatable (default: all)",
    )
    parser.add_argument(
        "--sort", metavar="NAME[:desc]", help="order of the members, as decode, peak:desc (default: by size)"
    )
    parser.add_argument(
        "--cost-model", action="store_true", help="what layers cost on that board, and how well it predicts"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 6 if members were disturbed while they were measured"
    )
    common.add_plots(parser)
    common.add_output(parser, common.PAGE_FORMATS)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import store
    from edge_lts_host.errors import UsageError
    from edge_lts_host.report import compare, pages, quality, render, selection
    from edge_lts_host.report.sides import side_of

    if args.is_all and args.runs:
        raise UsageError("--all means every run: leave out the RUN arguments")
    if args.members < 0:
        raise UsageError("--members takes a number of rows, or 0 for all")
    folders = store.list_runs() if args.is_all else [store.resolve(run) for run in args.runs or [None]]
    if not folders:
        folders = [store.resolve()]
    if args.cost_model:
        from edge_lts_host.report import cost_model

        if args.strict:
            raise UsageError("--strict judges a frontier, which --cost-model does not show: leave out one of them")
        if args.output in ("csv", "html") or args.plots or args.filter or args.sort:
            raise UsageError(
                "--cost-model has no csv, html, --plots, --filter and --sort; use -o json, or --plots without it"
            )
        render.emit(cost_model.pages([cost_model.cost_report(folder) for folder in folders], args.output))
        return 0
    common.hint_at_index(folders)
    report = compare.build_report(folders, on_progress=common.reading_progress)
    chosen = selection.select(report, args.filter or [], args.sort)
    if args.plots or args.output == "html":
        by_id = {folder.run_id: folder for folder in folders}
        sides = [side_of(by_id[run["run_id"]], run) for run in report["runs"]]
    if args.plots:
        common.draw_pictures(args.plots, sides)
    if args.output == "html":
        from edge_lts_host.report.html import page

        render.emit(page.report(chosen, sides, pages.report(chosen, "html")))
    else:
        render.emit(pages.report(chosen, args.output, args.members))
    if args.strict and (error := quality.strict_error(report)):
        raise error
    return 0

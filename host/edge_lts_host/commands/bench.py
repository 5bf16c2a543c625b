"""`edge-lts bench`: questions to everything that was ever measured, answered from an index over all ledgers."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts_host.index.database import Index

NAME = "bench"
HELP = "ask all pulled ledgers: an architecture, all boards, one file of it all"
EXAMPLE = "edge-lts bench query ARCH.json --device 'Raspberry Pi 5'"
_SUBJECTS = {"query": "ARCH", "export": "FILE"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("query", "boards", "compare", "export", "index"),
        help="query ARCH: its values on every board; boards: what was measured on which, and their frontiers; compare: "
        "boards against one another; export FILE: everything in one file; index: only bring the index up to date",
    )
    parser.add_argument(
        "subject",
        metavar="ARCH|FILE",
        nargs="?",
        help="ARCH: architecture file, or - for stdin, or JSON, or how an arch_id begins; FILE: as measured.jsonl.gz",
    )
    parser.add_argument(
        "--device",
        metavar="PATTERN",
        action="append",
        help="only boards whose name, model, CPU, target, host or run matches, as 'pi 5' or 'rpi*'; repeatable",
    )
    parser.add_argument("--from", metavar="FILE", dest="source", help="ask a file that export wrote (default: ledgers)")
    parser.add_argument(
        "--by",
        choices=("board", "run"),
        default="board",
        help="what stands together: all runs of a kind of board, or each run by itself (default: board)",
    )
    parser.add_argument(
        "--across",
        metavar="A,B",
        default="",
        help="compare boards although these differ: threads, precision (default: such boards stand apart)",
    )
    parser.add_argument(
        "--levels", metavar="N", type=int, default=6, help="compare: sizes to set boards side by side at (default: 6)"
    )
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.errors import UsageError
    from edge_lts_host.index import asked
    from edge_lts_host.report import across_pages, bench_pages, render
    from edge_lts_host.report.sides import across_of

    wanted = _SUBJECTS.get(args.action)
    if wanted is not None and args.subject is None:
        raise UsageError(f"bench {args.action} needs {wanted}")
    if wanted is None and args.subject is not None:
        raise UsageError(f"bench {args.action} takes no {args.subject!r:.80}; --device chooses boards")
    across = across_of(args.across)
    if args.action == "index":
        if args.source is not None:
            raise UsageError("bench index reads ledgers: leave out --from")
        render.emit(render.record(asked.build(_progress).to_json(), args.output, bench_pages.INDEXED))
        return 0
    patterns = tuple(args.device or ())
    with _opened(args.source) as index:
        if args.action == "query":
            render.emit(bench_pages.answer(asked.query(index, args.subject, patterns), args.output))
        elif args.action == "boards":
            is_whole = args.output in ("json", "jsonl")
            found = asked.boards(index, patterns, each_run=args.by == "run", is_whole=is_whole)
            render.emit(bench_pages.overview(found, args.output))
        elif args.action == "compare":
            data, left_out = asked.compare(
                index, patterns, each_run=args.by == "run", across=across, n_levels=args.levels
            )
            if left_out:
                render.warn(f"left out: {', '.join(left_out)}; --device chooses what is compared")
            render.emit(across_pages.comparison(data, args.output))
        else:
            done = asked.export(index, args.subject, patterns)
            render.emit(render.record(done, args.output, bench_pages.EXPORTED))
    return 0


@contextlib.contextmanager
def _opened(source: str | None) -> Iterator[Index]:
    from edge_lts_host.index import asked
    from edge_lts_host.report import render

    with asked.opened(source, on_progress=_progress) as (index, built):
        if built is not None and built.n_bytes:
            render.talk(f"indexed {render.size(built.n_bytes)} of new measurements in {render.duration(built.seconds)}")
        for problem in () if built is None else built.problems:
            render.warn(problem)
        yield index


def _progress(done: int, total: int) -> None:
    from edge_lts_host.progress import draw_line
    from edge_lts_host.report import render

    if render.shows_progress():
        draw_line(f"indexing: {render.size(done)} of {render.size(total)}" if done < total else "")

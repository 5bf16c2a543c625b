"""Groups of arguments that several verbs share, so that a flag means the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from edge_lts_host.units import duration

if TYPE_CHECKING:
    from edge_lts.errors import EdgeLtsError
    from edge_lts_host.fleet import Links, Result
    from edge_lts_host.report.sides import Side
    from edge_lts_host.store import RunFolder
    from edge_lts_host.transport.ssh_config import SshOptions

Item = TypeVar("Item")
Value = TypeVar("Value")

FORMATS = ("table", "md", "csv", "json", "jsonl")
PAGE_FORMATS = (*FORMATS, "latex", "html")  # of verbs whose results are read as a page
MAX_PARALLEL = 32
MANY_BYTES = 100 << 20  # of ledgers: half a minute of reading


def add_output(parser: argparse.ArgumentParser, formats: Sequence[str] = FORMATS, default: str = "table") -> None:
    """-o/--output, as `args.output`."""
    parser.add_argument(
        "-o", "--output", choices=formats, default=default, help=f"format on stdout (default: {default})"
    )


def add_plots(parser: argparse.ArgumentParser) -> None:
    """--plots, as `args.plots` (or None)."""
    parser.add_argument(
        "--plots", metavar="DIR", help="draw pictures there, each as PNG and SVG (default: none; needs matplotlib)"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """--target and --target-file, as `args.target` (or None) and `args.target_file` (a list or None)."""
    parser.add_argument("--target", metavar="NAME", help="class of board; `edge-lts targets` lists them")
    parser.add_argument(
        "--target-file", metavar="FILE", action="append", help="a target of your own, called as its file; repeatable"
    )


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """What edge_lts_host.hosts.select_hosts reads: targets, --host, --inventory, --limit; and --parallel."""
    add_target(parser)
    parser.add_argument(
        "--host",
        metavar="[USER@]HOST[:PORT]",
        action="append",
        help="a board; may be a Host of ~/.ssh/config; repeatable",
    )
    parser.add_argument("-i", "--inventory", metavar="FILE", help="TOML file that lists boards")
    parser.add_argument(
        "--limit", metavar="PATTERN", help="only boards whose name, tag or group matches, as in 'pi5-*,lab'"
    )
    add_fleet(parser)


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """How several boards are served: --parallel for `n_parallel(args, ...)`, and `args.fail_percent`."""
    parser.add_argument(
        "--parallel",
        metavar="N",
        type=int,
        default=None,
        help=f"boards served at a time (default: all, at most {MAX_PARALLEL})",
    )
    parser.add_argument(
        "--fail-percent",
        metavar="N",
        type=percentage,
        default=None,
        help="so many percent of the boards may fail: up to there the exit code is 0, beyond it no further board is "
        "begun (default: every board is tried, and any failure has its exit code)",
    )


def percentage(text: str) -> float:
    """0 to 100, for --fail-percent. Raises UsageError."""
    from edge_lts_host.errors import UsageError

    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"--fail-percent: must be a number from 0 to 100, not {text!r:.40}")
    return value


def add_ssh(parser: argparse.ArgumentParser) -> None:
    """How to connect, as `ssh_options(args)` hands it to the transport."""
    group = parser.add_argument_group("connection")
    group.add_argument("--port", metavar="PORT", type=int, default=None, help="SSH port, unless the host names one")
    group.add_argument("--identity", metavar="FILE", action="append", help="private key to log in with; repeatable")
    group.add_argument("--ssh-config", metavar="FILE", help="instead of ~/.ssh/config")
    group.add_argument("--known-hosts", metavar="FILE", help="instead of ~/.ssh/known_hosts")
    group.add_argument(
        "--strict-host-key-checking",
        choices=("ask", "accept-new", "yes", "no"),
        default=None,
        help="what to do about an unknown host key (default: ask on a terminal, else refuse)",
    )
    group.add_argument(
        "--connect-timeout",
        metavar="TIME",
        type=duration("--connect-timeout"),
        default=None,
        help="how long to try to connect (default: 10s)",
    )


def ssh_options(args: argparse.Namespace) -> SshOptions:
    """The transport's options from what `add_ssh` parsed."""
    import sys
    from pathlib import Path

    from edge_lts_host.transport.ssh_config import SshOptions

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    return SshOptions(
        config_file=path(args.ssh_config),
        identity_files=tuple(Path(text) for text in args.identity or ()),
        known_hosts_file=path(args.known_hosts),
        strict_host_key_checking=args.strict_host_key_checking,
        connect_timeout_s=args.connect_timeout,
        port=args.port,
        is_interactive=sys.stdin.isatty() and sys.stderr.isatty(),
    )


def draw_pictures(
    folder: str, sides: Sequence[Side], *, across: Sequence[str] = (), letters: Mapping[str, str] | None = None
) -> None:
    """The pictures of these runs in `folder`, and a word about it. Raises UsageError without matplotlib."""
    from pathlib import Path

    from edge_lts_host.report import render
    from edge_lts_host.report.plots import gallery

    paths = gallery.draw(sides, Path(folder), across=across, letters=letters)
    render.talk(f"{folder}: {len(paths) // 2} pictures, each as png and svg")


def n_parallel(args: argparse.Namespace, n_hosts: int) -> int:
    """How many boards to serve at a time: --parallel, else the inventory's default, else all up to MAX_PARALLEL."""
    from edge_lts_host.errors import UsageError

    wanted: int | None = getattr(args, "parallel", None)
    if wanted is None and getattr(args, "inventory", None):
        from pathlib import Path

        from edge_lts_host.inventory import load_inventory

        wanted = load_inventory(Path(args.inventory)).parallel
    if wanted is None:
        wanted = MAX_PARALLEL
    if wanted < 1:
        raise UsageError(f"--parallel: must be at least 1, not {wanted}")
    return max(1, min(wanted, n_hosts))


def on_each(
    args: argparse.Namespace,
    items: Sequence[Item],
    work: Callable[[Item], Value],
    links: Links,
    name: Callable[[Item], str],
) -> list[Result[Item, Value]]:
    """`work` on boards side by side, as --parallel and --fail-percent say.

    Of several boards errors are said and kept in the results; that of a single one is raised.
    """
    from edge_lts_host.fleet import side_by_side
    from edge_lts_host.report import render

    def complain(item: Item, error: EdgeLtsError) -> None:
        if len(items) > 1:
            render.warn(f"{name(item)}: {error}")

    results = side_by_side(
        items,
        work,
        n_parallel=n_parallel(args, len(items)),
        links=links,
        on_error=complain,
        fail_percent=args.fail_percent,
    )
    if len(results) == 1 and results[0].error is not None:
        raise results[0].error
    return results


def add_runs(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """RUN arguments as `args.runs` (a list), or one optional RUN as `args.run_id`; none means the newest run."""
    if several:
        parser.add_argument(
            "runs", metavar="RUN", nargs="*", help="run id, or how one begins or ends (default: the newest)"
        )
    else:
        parser.add_argument(
            "run_id", metavar="RUN", nargs="?", help="run id, or how one begins or ends (default: the newest)"
        )


def hint_at_index(folders: Sequence[RunFolder]) -> None:
    """Where reading whole ledgers will take long: what answers in seconds instead."""
    from edge_lts.runfolder import LEDGER
    from edge_lts_host.report import render

    ledgers = [folder / LEDGER for folder in folders]
    n_bytes = sum(path.stat().st_size for path in ledgers if path.exists())
    if n_bytes > MANY_BYTES:
        render.talk(
            f"reading {render.size(n_bytes)} of {len(folders)} runs; of many runs, edge-lts bench boards --by run "
            "tells in seconds what they measured and found"
        )


def reading_progress(done: int, total: int) -> None:
    """Runs read so far, on a terminal."""
    from edge_lts_host.progress import draw_line
    from edge_lts_host.report import render

    if total > 1 and render.shows_progress():
        draw_line(f"reading: {done} of {total} runs" if done < total else "")

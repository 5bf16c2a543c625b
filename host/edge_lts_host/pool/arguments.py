"""--pool and its flags: what `run --help` shows and what can be refused before any board is asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    from edge_lts_host.hosts import HostEntry

TOLERANCE = 0.10  # share that one board may take more than another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--pool and what belongs to it."""
    group = parser.add_argument_group("pool")
    group.add_argument(
        "--pool", action="store_true", help="share one search between the chosen boards, which must be identical"
    )
    group.add_argument(
        "--pool-tolerance",
        metavar="PERCENT",
        type=percent,
        default=None,
        help=f"how much slower one board may be than another (default: {100 * TOLERANCE:.0f})",
    )
    group.add_argument(
        "--pool-dashboard", action="store_true", help="dask's dashboard on 127.0.0.1 (needs the package bokeh)"
    )


def percent(text: str) -> float:
    """10, 10% or 2.5 as a share. Raises UsageError."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 1000:
        raise UsageError(f"--pool-tolerance: must be a percentage above 0, not {text!r:.40}")
    return value / 100


def check(args: argparse.Namespace, entries: Sequence[HostEntry]) -> None:
    """What speaks against one search on these boards before any of them is asked. Raises UsageError."""
    if not args.pool:
        if args.pool_tolerance is not None or args.pool_dashboard:
            raise UsageError("--pool-tolerance and --pool-dashboard are for --pool")
        return
    from edge_lts_host.pool.crew import require_dask

    require_dask()
    if len(entries) < 2:
        raise UsageError(f"--pool shares a search between boards, but only {entries[0].name} is chosen")
    targets = sorted({str(entry.target) for entry in entries})
    if len(targets) > 1:
        raise UsageError(f"--pool needs boards of one kind; these are {', '.join(targets)}: choose with --limit")
    serial = [entry.name for entry in entries if entry.destination.startswith("serial:")]
    if serial:
        raise UsageError(f"--pool needs a network link, and {serial[0]} has a serial console only")
    if args.detach or args.wait_timeout is not None:
        raise UsageError("--pool: the queue lives in this command, so it cannot be left; use tmux, and resume goes on")
    if (args.meter and args.meter not in ("auto", "none")) or "energy_j_per_token" in (args.objectives or ""):
        raise UsageError("--pool does not measure energy: run each board by itself for that")


def smallest(entries: Sequence[HostEntry]) -> HostEntry:
    """The board with least free memory, as far as deploy knows: a spec for it suits all."""

    def free_bytes(entry: HostEntry) -> float:
        device = entry.device or {}
        found = device.get("memory_available_bytes") or device.get("memory_total_bytes")
        return found if isinstance(found, (int, float)) else float("inf")

    return min(entries, key=free_bytes)

"""The questions of `edge-lts bench`, each one call; the command line and `edge_lts_host.api` ask the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.index import tabular
from edge_lts_host.index.boards import alike, boards_of, overview, side_of
from edge_lts_host.index.build import Built, update
from edge_lts_host.index.database import Index
from edge_lts_host.index.database import opened as opened_here
from edge_lts_host.index.query import measurements as measurements
from edge_lts_host.index.query import query as query

if TYPE_CHECKING:
    from edge_lts_host.report.sides import Side

Progress = Callable[[int, int], None]
MOST_COMPARED = 3  # boards, unless they are named: each is set against each


def _silent(done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def opened(
    source: str | Path | None = None, *, on_progress: Progress = _silent
) -> Iterator[tuple[Index, Built | None]]:
    """The index of this machine, brought up to date, and what that took; or that of an exported file, and None."""
    if source is not None:
        with tabular.read(Path(source)) as index:
            yield index, None
        return
    with opened_here() as index:
        built = update(index, on_progress=on_progress)
        on_progress(built.n_bytes, built.n_bytes)
        yield index, built


def build(on_progress: Progress = _silent) -> Built:
    with opened(on_progress=on_progress) as (_, built):
        assert built is not None
        return built


def boards(
    index: Index, patterns: Sequence[str] = (), *, each_run: bool = False, is_whole: bool = True
) -> list[dict[str, Any]]:
    """What is known of each board; of its frontier only the ends unless `is_whole`."""
    return [overview(index, board, is_whole=is_whole) for board in boards_of(index, patterns, each_run=each_run)]


def compare(
    index: Index,
    patterns: Sequence[str] = (),
    *,
    each_run: bool = False,
    across: Collection[str] = (),
    n_levels: int = 6,
) -> tuple[dict[str, Any], list[str]]:
    """Boards against one another, in the form of `report.across`, and the names of those left out.

    Without `patterns` those that measured alike and have most runs. Raises UsageError where there are not two.
    """
    from edge_lts_host.report.across import compare_sides

    if n_levels < 1:
        raise UsageError("--levels takes a number of at least 1")
    found = boards_of(index, patterns, each_run=each_run)
    chosen = found if patterns else alike(found, across)[:MOST_COMPARED]
    if len(chosen) < 2:
        known = ", ".join(board.name for board in found[:MOST_COMPARED])
        raise UsageError(f"compare takes two boards or more that measured alike; there are: {known}")
    sides: list[Side] = [side_of(index, board) for board in chosen]
    left_out = [board.name for board in found if board not in chosen]
    return compare_sides(sides, across=across, n_levels=n_levels), left_out


def export(index: Index, path: str | Path, patterns: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that these boards measured, in one file; what went into it."""
    place = Path(path)
    if place.is_dir():
        raise UsageError(f"{place} is a folder; name a file, such as measured.jsonl.gz")
    try:
        return tabular.write(index, boards_of(index, patterns), place)
    except OSError as exc:
        raise StoreError(f"cannot write {place}: {exc.strerror or exc}") from exc

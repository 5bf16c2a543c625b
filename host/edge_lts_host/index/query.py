"""One architecture on every board that measured it: a tabular benchmark of ARM boards that grows with use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.arch import Architecture
from edge_lts.objectives import QUALITY
from edge_lts.records import value_to_json
from edge_lts_host.arch_files import load_architecture, parse_architecture
from edge_lts_host.errors import HostError, UsageError
from edge_lts_host.index.boards import Board, Rows, boards_of, checked
from edge_lts_host.index.columns import MEASURED, PURPOSES, arch_id_of

if TYPE_CHECKING:
    from edge_lts_host.index.database import Index

QUERY_SCHEMA_VERSION = 1
_ID = re.compile(r"[0-9a-f]{1,12}")
_SHOWN = 8


def find(index: Index, wanted: str | Architecture) -> int:
    """The arch_id, as a number, that `wanted` means: an architecture, a file, `-`, JSON, or how an arch_id begins.

    Raises UsageError where the beginning fits several, HostError where nothing was measured.
    """
    if isinstance(wanted, Architecture):
        return int(wanted.arch_id, 16)
    if wanted.lstrip().startswith("{"):
        return int(parse_architecture(wanted.encode(), "the architecture").arch_id, 16)
    if not _ID.fullmatch(wanted) or Path(wanted).is_file():
        return int(load_architecture(wanted).arch_id, 16)
    found = index.beginning_with(wanted, _SHOWN + 1)
    if not found:
        raise HostError(f"no architecture {wanted} was measured by any run on this machine")
    if len(found) > 1:
        names = ", ".join(arch_id_of(number) for number in found[:_SHOWN])
        more = " and more" if len(found) > _SHOWN else ""
        raise UsageError(f"{wanted} may be any of {names}{more}")
    return found[0]


def query(index: Index, wanted: str | Architecture, patterns: Sequence[str] = ()) -> dict[str, Any]:
    """`architecture`, its `quality` by each proxy that runs had, and `boards`: for each kind of board that measured it
    its values, in how many processes, in which runs.

    Raises HostError where none did; what was measured on boards that `patterns` leave out does not count.
    """
    number = find(index, wanted)
    answers = []
    for board in boards_of(index, patterns):
        own = _runs_with(index, board, number)
        answer = None if own is None else _answer(index, own, number)
        if answer is not None:
            answers.append(answer)
    if not answers:
        where = f" on {', '.join(patterns)}" if patterns else ""
        raise HostError(
            f"{arch_id_of(number)} was measured by no run on this machine{where}; edge-lts measure times it now"
        )
    architecture = checked(number, index.architectures([number])[number])
    return {
        "schema_version": QUERY_SCHEMA_VERSION,
        "arch_id": architecture.arch_id,
        "architecture": architecture.to_json(),
        "decoder_params": architecture.decoder_params,
        "total_params": architecture.total_params,
        "quality": _qualities(index, number),
        "boards": answers,
    }


def _runs_with(index: Index, board: Board, number: int) -> Board | None:
    runs = [run for run in board.runs if (index.columns_of(run.number, ("arch",))["arch"] == number).any()]
    return Board(name=board.name, runs=tuple(runs)) if runs else None


def _qualities(index: Index, number: int) -> list[dict[str, Any]]:
    """{"proxy", "low"} for each calibrated proxy that judged the architecture in a run: its lower bound of quality."""
    found: dict[str, float] = {}
    for run in index.runs():
        if run.is_readable and run.facts.get("proxy"):
            columns = index.columns_of(run.number, ("arch", QUALITY))
            for value in columns[QUALITY][columns["arch"] == number].tolist():
                if value == value:
                    found[run.facts["proxy"]] = value
    return [{"proxy": digest, "low": low} for digest, low in sorted(found.items())]


def _answer(index: Index, board: Board, number: int) -> dict[str, Any] | None:
    rows = Rows(index, board)
    processes = rows.processes([number])
    if not processes:  # on one thread only, beside a search
        return None
    member = rows.members([number])[number]
    return {
        **board.to_json(),
        "objectives": {name: value_to_json(value) for name, value in member.objectives.items()},
        "n_processes": member.n_processes,
        "purposes": sorted({one.purpose for one in processes[number]}),
        "flags": list(member.flags),
    }


def measurements(index: Index, patterns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every process as a flat row, for a data frame: medians in SI units as measured, `slowdown_*` beside them."""
    names = ("arch", "purpose", "spent_s", "decoder_params", QUALITY)
    rows = []
    for board in boards_of(index, patterns):
        device, protocol = board.facts["device"] or {}, board.facts["protocol"]
        head = {
            "board": board.name,
            "model": device.get("model") or device.get("cpu_model"),
            "is_emulated": board.facts["is_emulated"],
            "threads": protocol["threads"],
            "precision": protocol["precision"],
        }
        wanted = (*names, *MEASURED, *(f"slowdown_{name}" for name in ("decode_latency_s", "prefill_latency_s")))
        for run in board.runs:
            columns = index.columns([run], wanted)
            cells = {name: column.tolist() for name, column in columns.items()}
            for row, number in enumerate(cells["arch"]):
                values = {name: cells[name][row] for name in wanted[2:]}
                rows.append(
                    {
                        **head,
                        "run_id": run.run_id,
                        "arch_id": arch_id_of(number),
                        "purpose": PURPOSES[cells["purpose"][row]],
                        "proxy": run.facts.get("proxy") or None,
                        **{name: None if value != value else value for name, value in values.items()},
                    }
                )
    return rows

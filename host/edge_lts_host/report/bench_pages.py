"""What `edge-lts bench` answers, as table, md, csv, json or jsonl. Layout only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES
from edge_lts_host.report import render
from edge_lts_host.report.facts import protocol
from edge_lts_host.report.rows import value_columns, value_keys

_HEAD_KEYS = ("board", "model", "machine", "torch", "threads", "precision", "is_emulated")
_MEASURED = tuple(name for name, objective in OBJECTIVES.items() if objective.is_measured)
_QUERY_KEYS = (
    *("arch_id", "decoder_params", "total_params", *_HEAD_KEYS, "n_runs", "n_processes"),
    *(key for name in _MEASURED for key in value_keys(name)),
    "flags",
)
_OVERVIEW: render.Columns = (
    ("board", "board", render.text),
    ("device", "device", lambda value: render.text(value, 40)),
    ("n_runs", "runs", "{:,}".format),
    ("n_measurements", "measurements", "{:,}".format),
    ("n_architectures", "architectures", "{:,}".format),
    ("n_failed", "failed", "{:,}".format),
    ("n_members", "members", "{:,}".format),
    ("smallest", "smallest: decode ms", str),
    ("largest", "largest: decode ms", str),
    ("last_at", "last measured", render.text),
)


def answer(data: Mapping[str, Any], output: str) -> str:
    """The answer of `bench query`: a row for each board."""
    if output == "json":
        return render.dump_json(data)
    if output == "jsonl":
        return "\n".join(json.dumps(board, allow_nan=False) for board in data["boards"])
    if output == "csv":
        return render.to_csv([_csv_row(data, board) for board in data["boards"]], _QUERY_KEYS)
    names = [name for name in _MEASURED if any(board["objectives"].get(name) for board in data["boards"])]
    headings = ["board", "device", "runs", "processes"]
    headings += [render.objective_heading(name, is_emulated=False) for name in names] + ["flags"]
    cells = []
    for board in data["boards"]:
        mark = " (emulated)" if board["is_emulated"] else ""
        cells.append(
            [
                render.text(board["board"]) + mark,
                render.text(device(board["device"]), 40),
                str(len(board["run_ids"])),
                str(board["n_processes"]),
                *(render.objective(name, board["objectives"].get(name)) for name in names),
                render.flag_words(board["flags"]),
            ]
        )
    title = (
        f"{data['arch_id']}: {data['architecture']['backbone']}, {render.count(data['decoder_params'])} decoder "
        f"parameters, {render.count(data['total_params'])} in all"
    )
    for one in data["quality"]:
        title += (
            f"\nquality at least {render.nats(one['low'])} nats (90 %) by the proxy {render.text(one['proxy'], 12)}"
        )
    notes = [f"{board['board']}: {protocol(board['protocol'])}" for board in data["boards"]]
    return "\n\n".join([title, render.table(cells, headings, output), render.bullets(notes, output)])


def _csv_row(data: Mapping[str, Any], board: Mapping[str, Any]) -> dict[str, Any]:
    facts = board["device"] or {}
    row: dict[str, Any] = {key: data[key] for key in ("arch_id", "decoder_params", "total_params")}
    row |= {
        "board": board["board"],
        "model": facts.get("model") or facts.get("cpu_model"),
        "machine": facts.get("machine"),
        "torch": facts.get("torch"),
        "threads": board["protocol"]["threads"],
        "precision": board["protocol"]["precision"],
        "is_emulated": board["is_emulated"],
        "n_runs": len(board["run_ids"]),
        "n_processes": board["n_processes"],
        "flags": board["flags"],
    }
    for name in _MEASURED:
        row.update(value_columns(name, board["objectives"].get(name)))
    return row


def overview(boards: Sequence[Mapping[str, Any]], output: str) -> str:
    """A row for each kind of board; json has its frontier, too."""
    if output in ("json", "jsonl"):
        return render.records(boards, output, (), "boards")
    rows = []
    for board in boards:
        ends = [_end(board["frontier"], at) for at in (0, -1)]
        mark = " (emulated)" if board["is_emulated"] else ""
        rows.append(
            {
                **board,
                "board": board["board"] + mark,
                "device": device(board["device"]),
                "smallest": ends[0],
                "largest": ends[1],
            }
        )
    return render.records(rows, output, _OVERVIEW, "boards")


def _end(frontier: Sequence[Mapping[str, Any]], at: int) -> str:
    """Such as `1.2 M: 3.41 [3.30, 3.55]`."""
    if not frontier:
        return "-"
    values = frontier[at]["objectives"]
    return (
        f"{render.count(values['decoder_params'])}: {render.objective('decode_latency_s', values['decode_latency_s'])}"
    )


def device(facts: Mapping[str, Any] | None) -> str:
    found = facts or {}
    return str(found.get("model") or found.get("cpu_model") or found.get("machine") or "-")


INDEXED: render.Columns = (
    ("n_runs", "runs", "{:,}".format),
    ("n_read", "with something new", "{:,}".format),
    ("n_records", "records read", "{:,}".format),
    ("n_bytes", "bytes read", render.size),
    ("seconds", "time", render.duration),
    ("bytes_per_s", "per second", render.size),
    ("problems", "problems", lambda found: render.text("; ".join(found) or "none", 300)),
)
EXPORTED: render.Columns = (
    ("path", "file", render.text),
    ("n_runs", "runs", "{:,}".format),
    ("n_architectures", "architectures", "{:,}".format),
    ("n_measurements", "measurements", "{:,}".format),
    ("n_bytes", "size", render.size),
    ("sha256", "checksum", render.text),
)

"""The record of one measurement (`edge-lts measure`) as table, md, csv, json or jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_lts.errors import EdgeLtsError
from edge_lts.records import Evaluation, outcome_from_json
from edge_lts_host.report import render
from edge_lts_host.report.energy import ENERGY, add_energy, meter_note
from edge_lts_host.report.facts import health_line
from edge_lts_host.report.quality import mapping, number, quality
from edge_lts_host.report.rows import FRAMEWORK_KEYS, value_columns, value_keys


def page(record: Mapping[str, Any], output: str) -> str:
    """json and jsonl are the ledger's record itself, csv its values in SI units, a table what a person asks for."""
    if output in ("json", "jsonl"):
        return render.record(record, output, ())
    conditions = mapping(record.get("conditions"))
    objectives, one = mapping(record.get("objectives")), mapping(conditions.get("one_thread"))
    parts = mapping(conditions.get("framework"))
    flags = record.get("flags", [])
    if output == "csv":
        return _csv(record, objectives, one, parts)
    row: dict[str, Any] = {"arch_id": record.get("arch_id"), **objectives, "flags": flags}
    row.update({f"one_thread_{name}": value for name, value in one.items()})
    row.update({key: number(parts.get(key)) for key in FRAMEWORK_KEYS if key in parts})
    columns: list[tuple[str, str, render.Cell]] = [("arch_id", "arch_id", render.text)]
    columns += [(name, *render.OBJECTIVE_CELLS[name]) for name in objectives if name in render.OBJECTIVE_CELLS]
    for name in one:
        if name in render.OBJECTIVE_CELLS:
            heading, cell = render.OBJECTIVE_CELLS[name]
            columns.append((f"one_thread_{name}", f"{heading}, 1 thread", cell))
    _, cell = render.OBJECTIVE_CELLS["decode_latency_s"]
    columns += [("bandwidth_floor_s", "decode floor", cell), ("dispatch_share", "dispatch", render.percent)]
    columns += [("health", "health", str), ("meter", "meter", str)]
    row.update(_lines(record))
    return render.record(row, output, [*columns, ("flags", "flags", render.flag_words)])


def _lines(record: Mapping[str, Any]) -> dict[str, str]:
    """The state of the board, and what the meter covers, as far as they are known."""
    try:
        evaluation = outcome_from_json(record)
    except EdgeLtsError:
        return {}
    if not isinstance(evaluation, Evaluation):
        return {}
    lines = {}
    state = quality([evaluation])
    if state is not None:
        lines["health"] = health_line(state)
    value = evaluation.to_json()["objectives"].get(ENERGY)
    entry = {"arch_id": evaluation.architecture.arch_id, "objectives": {ENERGY: value}}
    for meter in add_energy([entry], [evaluation], {}):
        lines["meter"] = meter_note(meter)
    return lines


def _csv(
    record: Mapping[str, Any], objectives: Mapping[str, Any], one: Mapping[str, Any], parts: Mapping[str, Any]
) -> str:
    row: dict[str, Any] = {"arch_id": record.get("arch_id"), "flags": record.get("flags", [])}
    keys = ["arch_id"]
    for prefix, values in (("", objectives), ("one_thread_", one)):
        for name, value in values.items():
            row.update(value_columns(f"{prefix}{name}", value))
            keys += value_keys(f"{prefix}{name}") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    row.update({key: parts.get(key) for key in FRAMEWORK_KEYS})
    return render.to_csv([row], [*keys, *(key for key in FRAMEWORK_KEYS if key in parts), "flags"])

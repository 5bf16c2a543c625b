"""A report as CSV: one frontier member a row, values unrounded and in SI units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_lts.objectives import OBJECTIVES, QUALITY
from edge_lts.style import STYLE_KEYS
from edge_lts_host.report.compare import outside_share
from edge_lts_host.report.decode_time import framework, one_thread
from edge_lts_host.report.facts import PROTOCOL_KEYS
from edge_lts_host.report.quality import LATENCIES

INTERVALS = ("ci95", "pi95")
ESTIMATE_KEYS = ("mean", "high", "is_extrapolated")
FRAMEWORK_KEYS = ("bandwidth_floor_s", "dispatch_share")


def value_keys(name: str) -> tuple[str, ...]:
    """The columns of a measured value, or of an estimate: the bound that it is compared by has the name alone."""
    if name == QUALITY:
        return (name, *(f"{name}_{key}" for key in ESTIMATE_KEYS))
    return (name, *(f"{name}_{kind}_{side}" for kind in INTERVALS for side in ("low", "high")), f"{name}_n")


def value_columns(name: str, value: Any) -> dict[str, Any]:
    """A value of an objective in its columns; an exact one in a single column."""
    if not isinstance(value, Mapping):
        return {name: value}
    if "mean" in value:
        return {name: value["low"], **{f"{name}_{key}": value[key] for key in ESTIMATE_KEYS}}
    row = {name: value["median"], f"{name}_n": value["n"]}
    for kind in INTERVALS:
        row[f"{name}_{kind}_low"], row[f"{name}_{kind}_high"] = value[kind] or (None, None)
    return row


_MEASURED_KEYS = tuple(
    key
    for name, objective in OBJECTIVES.items()
    if name != QUALITY  # has columns of its own, and only where a run has a proxy
    for key in (value_keys(name) if objective.is_measured else (name,))
)
CSV_KEYS = (
    "run_id",
    "target",
    "host",
    "device",
    "machine",
    "torch",
    "is_emulated",
    "state",
    "n_measured",
    "spent_s",
    "budget_s",
    *(f"protocol_{key}" for key in PROTOCOL_KEYS),
    "arch_id",
    "n_layer",
    "d_model",
    "d_inner",
    "n_head",
    "d_embed",
    "vocab_size",
    "precision",
    *_MEASURED_KEYS,
    "energy_meter",
    "energy_scope",
    "energy_idle_w",
    *(key for name in LATENCIES for key in value_keys(f"one_thread_{name}")),
    *FRAMEWORK_KEYS,
    "bytes_outside_decoder",
    "n_processes",
    "probably_dominated",
    "knee",
    "flags",
)


# Columns of what an architecture has otherwise than its backbone; only where one has.
STYLED_KEYS = ("n_kv_head", "d_head", *STYLE_KEYS)


def _styled(architecture: Mapping[str, Any]) -> dict[str, Any]:
    layers = architecture["layers"]
    row = {key: architecture[key] for key in STYLED_KEYS if key in architecture}
    if any("n_kv_head" in layer for layer in layers):
        row["n_kv_head"] = [layer.get("n_kv_head", layer["n_head"]) for layer in layers]
    return row


def csv_row(run: Mapping[str, Any], member: Mapping[str, Any]) -> dict[str, Any]:
    device, architecture, energy = run["device"] or {}, member["architecture"], member["energy"] or {}
    row: dict[str, Any] = {
        **{key: run[key] for key in ("run_id", "target", "host", "is_emulated", "state", "n_measured", "spent_s")},
        "device": device.get("model") or device.get("cpu_model"),
        "machine": device.get("machine"),
        "torch": device.get("torch"),
        "budget_s": run["spec"]["budget_s"],
        **{f"protocol_{key}": run["protocol"][key] for key in PROTOCOL_KEYS},
        "arch_id": member["arch_id"],
        "n_layer": len(architecture["layers"]),
        "d_model": architecture["d_model"],
        "d_inner": [layer["d_inner"] for layer in architecture["layers"]],
        "n_head": [layer["n_head"] for layer in architecture["layers"]],
        **_styled(architecture),
        "d_embed": architecture["d_embed"],
        "vocab_size": architecture["vocab_size"],
        "precision": architecture.get("precision") or run["protocol"]["precision"],
        **{f"energy_{key}": energy.get(key) for key in ("meter", "scope", "idle_w")},
        **{key: framework(member).get(key) for key in FRAMEWORK_KEYS},
        "bytes_outside_decoder": outside_share(member["split"]["bytes"]),
        "n_processes": member.get("n_processes"),
        "probably_dominated": member["probably_dominated"],
        "knee": [one["objective"] for one in run.get("knees", []) if one["arch_id"] == member["arch_id"]],
        "flags": member["flags"],
    }
    for name, value in member["objectives"].items():
        row.update(value_columns(name, value))
    for name in LATENCIES:
        row.update(value_columns(f"one_thread_{name}", one_thread(member).get(name)))
    return row

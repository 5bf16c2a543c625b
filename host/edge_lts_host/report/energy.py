"""Energy in a report: what measured it, and the values of a meter on the workstation where the board has none.

A meter on the board writes `conditions.energy` into the ledger; one on the workstation leaves a file of its own in the
run folder, which `edge_lts_host.meters.energy` reads. A value of the board is never replaced. What a meter covers
(its scope) and the idle power that was subtracted stand beside every value: without them it means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_lts.records import Evaluation
from edge_lts.stats import median
from edge_lts_host.report import render
from edge_lts_host.report.quality import mapping, number
from edge_lts_host.store import RunFolder

ENERGY = "energy_j_per_token"
SCOPE_WORDS = {
    "soc-rails": "the SoC's rails, not what hangs on the board's 5 V",
    "package": "the processor's package",
    "board-input": "the board's input",
    "wall": "the wall socket, power supply included",
}
MeterValues = Mapping[str, Mapping[str, Any]]


def workstation_values(folder: RunFolder) -> tuple[MeterValues, dict[str, int]]:
    """What a meter on the workstation says: arch_id -> {"value", "meter", "scope", "idle_w", "n_windows"}, and how many
    records have no value, by reason. Both empty where none ran."""
    from edge_lts_host.meters.energy import energy_of, rejections

    return energy_of(folder), rejections(folder)


def add_energy(
    entries: Sequence[dict[str, Any]], evaluations: Iterable[Evaluation], from_workstation: MeterValues
) -> list[dict[str, Any]]:
    """Give each member its `energy` (None: not measured), and its value if only the workstation has one.

    The meters: {"meter", "scope", "where": "board" | "workstation", "idle_w", "n_members"} each, idle power the median
    over members.
    """
    on_board: dict[str, Mapping[str, Any]] = {}
    for one in evaluations:
        if ENERGY in one.objectives and (record := mapping(one.conditions.get("energy"))):
            on_board[one.architecture.arch_id] = record
    for entry in entries:
        own, other = on_board.get(entry["arch_id"]), from_workstation.get(entry["arch_id"])
        has_own = entry["objectives"].get(ENERGY) is not None
        entry["energy"] = None
        if has_own and own is not None:
            entry["energy"] = _described(own, "board")
        elif not has_own and other is not None:
            entry["objectives"] = {**entry["objectives"], ENERGY: other["value"]}
            entry["energy"] = _described(other, "workstation")
    return _meters([entry["energy"] for entry in entries if entry["energy"] is not None])


def meter_note(meter: Mapping[str, Any]) -> str:
    """What a meter's values cover, as one line."""
    scope = SCOPE_WORDS.get(meter["scope"], render.text(meter["scope"]))
    idle = "idle power unknown"
    if meter["idle_w"] is not None:
        idle = f"{meter['idle_w']:.3g} W of idling subtracted"
    return f"{render.text(meter['meter'])} on the {meter['where']}, measures {scope}; {idle}"


def rejection_note(reasons: Mapping[str, int]) -> str:
    """How many records a meter on the workstation could not be matched with, and why, as one line."""
    why = ", ".join(f"{n} {render.text(reason).replace('_', ' ')}" for reason, n in sorted(reasons.items()))
    return f"the workstation's meter gave no value for {sum(reasons.values())} records ({why})"


def _described(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    meter, scope = record.get("meter"), record.get("scope")
    return {
        "meter": meter if isinstance(meter, str) else "meter",
        "scope": scope if isinstance(scope, str) else "unknown",
        "where": where,
        "idle_w": number(record.get("idle_w")),
    }


def _meters(described: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kinds = sorted({(one["where"], one["meter"], one["scope"]) for one in described})
    meters = []
    for where, meter, scope in kinds:
        same = [one for one in described if (one["where"], one["meter"], one["scope"]) == (where, meter, scope)]
        idle = [one["idle_w"] for one in same if one["idle_w"] is not None]
        meters.append(
            {
                "meter": meter,
                "scope": scope,
                "where": where,
                "idle_w": median(idle) if idle else None,
                "n_members": len(same),
            }
        )
    return meters

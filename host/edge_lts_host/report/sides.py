"""Runs as a comparison needs them, and which of them measured alike, so that their numbers may meet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_lts.objectives import Objective
from edge_lts.records import Evaluation, Outcome, RunSpec
from edge_lts_host.errors import UsageError
from edge_lts_host.report import compare
from edge_lts_host.report.intervals import Bounds, Widths, bounds, usual_widths
from edge_lts_host.report.transfer import protocol_of
from edge_lts_host.store import RunFolder

# What may differ between runs that are compared all the same, because it is part of what is compared.
ACROSS = ("threads", "precision")
# The parts of Protocol.comparison_key, in its order.
KEY_NAMES = (
    "protocol",
    "prompt_tokens",
    "context_tokens",
    "logits",
    "threads",
    "precision",
    "method_version",
    "memory_tokens",
    "heat",
)


@dataclass(slots=True, kw_only=True)
class Side:
    """One run in a comparison."""

    run: dict[str, Any]
    spec: RunSpec
    outcomes: list[Outcome]
    members: list[dict[str, Any]]  # of the frontier, those that are no doubt on it, in the report's order
    widths: Widths
    transferred: list[Evaluation] = field(default_factory=list)  # of others' frontiers, timed on this board later

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def is_emulated(self) -> bool:
        return bool(self.run["is_emulated"])

    def bounds(self, name: str, value: Any) -> Bounds | None:
        return bounds(name, value, self.widths, self.run["device"])


def load_sides(folders: Sequence[RunFolder]) -> list[Side]:
    """The runs, in the order given, each once."""
    unique = {folder.path.resolve(): folder for folder in folders}
    sides = []
    for folder in unique.values():
        run = compare.report_run(folder, has_certificates=False)
        members = [entry for entry in run["frontier"] if not entry["probably_dominated"]]
        widths = usual_widths(run["frontier"])
        sides.append(Side(run=run, spec=folder.read_spec(), outcomes=folder.outcomes(), members=members, widths=widths))
    if len(sides) < 2:
        raise UsageError("compare takes two runs or more; edge-lts report shows one")
    return sides


def grouped(sides: Sequence[Side], across: Collection[str]) -> list[list[Side]]:
    """Runs that may be compared. Raises UsageError, saying what differs, where each stands alone."""
    free = set(across)
    if all(side.spec.protocol.threads == 0 for side in sides):
        free.add("threads")
    groups: dict[tuple[Any, ...], list[Side]] = {}
    keys: list[dict[str, Any]] = []
    for side in sides:
        keys.append(dict(zip(KEY_NAMES, protocol_of(side.run).comparison_key, strict=True)))
        groups.setdefault(tuple(value for name, value in keys[-1].items() if name not in free), []).append(side)
    if all(len(group) == 1 for group in groups.values()):
        differing = {name: {key[name] for key in keys} for name in KEY_NAMES if name not in free}
        words = [
            f"{name} {', '.join(sorted(map(str, values)))}" for name, values in differing.items() if len(values) > 1
        ]
        helping = [name for name, values in differing.items() if name in ACROSS and len(values) > 1]
        hint = f"; --across {','.join(sorted({*across, *helping}))} takes them for different boards" if helping else ""
        raise UsageError(
            f"these runs measured differently, so their numbers say nothing together: {'; '.join(words)}{hint}"
        )
    return list(groups.values())


def shared_axes(sides: Sequence[Side]) -> list[Objective]:
    """The objectives that all of them searched, in the first one's order; commands only where they are the same."""
    commands = [{one.name: one for one in side.spec.commands} for side in sides]
    return [
        axis
        for axis in sides[0].spec.resolved_objectives
        if all(axis.name in side.spec.objectives for side in sides)
        and all(own.get(axis.name) == commands[0].get(axis.name) for own in commands)
    ]


def is_performance(name: str) -> bool:
    """Whether an objective says how fast or how frugal a board is, which an emulated one cannot."""
    return name.endswith("_s") or name == "energy_j_per_token"


def differing(sides: Sequence[Side]) -> dict[str, dict[str, Any]]:
    """What of the key differs inside the group, by run."""
    keys = {side.run_id: dict(zip(KEY_NAMES, protocol_of(side.run).comparison_key, strict=True)) for side in sides}
    return {
        name: {run_id: key[name] for run_id, key in keys.items()}
        for name in KEY_NAMES
        if len({key[name] for key in keys.values()}) > 1
    }

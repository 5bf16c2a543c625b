"""Runs as a comparison needs them, and which of them measured alike, so that their numbers may meet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_lts.frontier import Frontier, Member
from edge_lts.objectives import QUALITY, Objective
from edge_lts.records import ASIDE, DeviceInfo, Evaluation, Outcome, RunSpec
from edge_lts_host.errors import UsageError
from edge_lts_host.report import compare, proxy
from edge_lts_host.report.intervals import Bounds, Widths, bounds, usual_widths
from edge_lts_host.report.quality import LATENCIES
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
    notes: list[str] = field(default_factory=list)  # for who compares it

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def is_emulated(self) -> bool:
        return bool(self.run["is_emulated"])

    @property
    def device_info(self) -> DeviceInfo | None:
        return None if self.run["device"] is None else DeviceInfo.from_json(self.run["device"])

    def bounds(self, name: str, value: Any) -> Bounds | None:
        return bounds(name, value, self.widths, self.run["device"])

    def measured_ids(self) -> set[str]:
        """Every architecture that was measured on this board, but for those beside the search."""
        return set(self._processes())

    def shared_ids(self, other: Side, most: int) -> list[str]:
        """Architectures that both boards measured, in order; of more than `most` the first."""
        return sorted(self.measured_ids() & other.measured_ids())[:most]

    def combined(self, arch_ids: Collection[str]) -> dict[str, Member]:
        """One value for each of these architectures, at the board's usual speed."""
        frontier = Frontier(self.spec.resolved_objectives)
        measured = self._processes()
        for arch_id, processes in measured.items():
            for process in processes:
                frontier.add(arch_id, process)
        chosen = [(arch_id, measured[arch_id]) for arch_id in sorted(arch_ids)]
        return {member.arch_id: member for member in frontier.combine(chosen, LATENCIES)}

    def _processes(self) -> dict[str, list[Evaluation]]:
        found: dict[str, list[Evaluation]] = {}
        for outcome in (*self.outcomes, *self.transferred):
            if isinstance(outcome, Evaluation) and outcome.purpose not in ASIDE:
                found.setdefault(outcome.architecture.arch_id, []).append(outcome)
        return found


def load_sides(folders: Sequence[RunFolder]) -> list[Side]:
    """The runs, in the order given, each once."""
    unique = {folder.path.resolve(): folder for folder in folders}
    sides = [side_of(folder) for folder in unique.values()]
    if len(sides) < 2:
        raise UsageError("compare takes two runs or more; edge-lts report shows one")
    return sides


def side_of(folder: RunFolder, run: dict[str, Any] | None = None) -> Side:
    """One run, also by itself; `run` is its entry in a report where that was made already."""
    if run is None:
        run = compare.report_run(folder, has_certificates=False)
    members = [entry for entry in run["frontier"] if not entry["probably_dominated"]]
    widths = usual_widths(run["frontier"])
    return Side(run=run, spec=folder.read_spec(), outcomes=folder.outcomes(), members=members, widths=widths)


def across_of(text: str) -> list[str]:
    """The names in --across A,B. Raises UsageError for what cannot be set aside."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ACROSS:
            raise UsageError(f"--across: {name!r:.40} cannot be set aside; only {', '.join(ACROSS)} can")
    return names


def partition(sides: Sequence[Side], across: Collection[str] = ()) -> list[list[Side]]:
    """Runs that measured alike, `across` set aside, together; in the order given."""
    free = _free(sides, across)
    groups: dict[tuple[Any, ...], list[Side]] = {}
    for side in sides:
        key = tuple(value for name, value in _key(side).items() if name not in free)
        groups.setdefault(key, []).append(side)
    return list(groups.values())


def grouped(sides: Sequence[Side], across: Collection[str]) -> list[list[Side]]:
    """Runs that may be compared. Raises UsageError, saying what differs, where each stands alone."""
    groups = partition(sides, across)
    if all(len(group) == 1 for group in groups):
        free, keys = _free(sides, across), [_key(side) for side in sides]
        differing = {name: {key[name] for key in keys} for name in KEY_NAMES if name not in free}
        words = [
            f"{name} {', '.join(sorted(map(str, values)))}" for name, values in differing.items() if len(values) > 1
        ]
        helping = [name for name, values in differing.items() if name in ACROSS and len(values) > 1]
        hint = f"; --across {','.join(sorted({*across, *helping}))} takes them for different boards" if helping else ""
        raise UsageError(
            f"these runs measured differently, so their numbers say nothing together: {'; '.join(words)}{hint}"
        )
    return groups


def _free(sides: Sequence[Side], across: Collection[str]) -> set[str]:
    """What may differ; threads, too, where every run left them to its board."""
    return {*across, *(["threads"] if all(side.spec.protocol.threads == 0 for side in sides) else [])}


def _key(side: Side) -> dict[str, Any]:
    return dict(zip(KEY_NAMES, protocol_of(side.run).comparison_key, strict=True))


def shared_axes(sides: Sequence[Side]) -> list[Objective]:
    """The objectives that all of them searched, in the first one's order; commands only where they are the same, and
    quality only where the same proxy gave it."""
    commands = [{one.name: one for one in side.spec.commands} for side in sides]
    is_one_proxy = proxy.is_shared(side.run for side in sides)
    return [
        axis
        for axis in sides[0].spec.resolved_objectives
        if (axis.name != QUALITY or is_one_proxy)
        and all(axis.name in side.spec.objectives for side in sides)
        and all(own.get(axis.name) == commands[0].get(axis.name) for own in commands)
    ]


def is_performance(name: str) -> bool:
    """Whether an objective says how fast or how frugal a board is, which an emulated one cannot."""
    return name.endswith("_s") or name == "energy_j_per_token"


def differing(sides: Sequence[Side]) -> dict[str, dict[str, Any]]:
    """What of the key differs inside the group, by run."""
    keys = {side.run_id: _key(side) for side in sides}
    return {
        name: {run_id: key[name] for run_id, key in keys.items()}
        for name in KEY_NAMES
        if len({key[name] for key in keys.values()}) > 1
    }

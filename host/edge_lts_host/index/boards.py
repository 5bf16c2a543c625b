"""Runs on one kind of board that measured alike, taken together as one board; its frontier; boards side by side.

Boards are of one kind when model, CPU, cores, memory and torch are the same. What their processes measured is brought
to the usual speed of each process's own run first (`columns.slowdowns`); an architecture's value is then the median
over all processes of all runs, as it is over those of a run (`edge_lts.frontier`). Its `pi95` thus holds what these
boards and occasions differ by, too. Samples are not indexed: a value of several processes has no `ci95`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edge_lts.arch import Architecture
from edge_lts.errors import ArchitectureError, LedgerError
from edge_lts.frontier import Frontier, Member
from edge_lts.objectives import DEFAULT_OBJECTIVES, OBJECTIVES, resolve_objectives
from edge_lts.records import ASIDE, Evaluation, Measurement, Protocol, RunSpec, Value
from edge_lts.speed import divided
from edge_lts.stats import MIN_PROCESSES_PI95
from edge_lts_host.counts import evenly
from edge_lts_host.errors import UsageError
from edge_lts_host.index.columns import MEASURED, PURPOSES, SLOWDOWNS, arch_id_of, flag_names, group_medians, joined
from edge_lts_host.report.intervals import usual_widths
from edge_lts_host.report.quality import LATENCIES
from edge_lts_host.report.sides import KEY_NAMES, Side

if TYPE_CHECKING:
    from edge_lts_host.index.columns import Column, Numbers
    from edge_lts_host.index.database import Index, IndexedRun

OTHERWISE = "one_thread"  # processes that measured by another protocol than their run's
MOST_MEMBERS = 200  # of a board in a comparison
MOST_PROCESSES = 5  # of one architecture, from which its interval is worked out: each costs, and they add up
_ROW = ("arch", "purpose", "flags", "spent_s", "decoder_params", *SLOWDOWNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One kind of board, measured in one way. `name` is the same wherever the same ledgers are."""

    name: str
    runs: tuple[IndexedRun, ...]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the newest of its runs."""
        return self.runs[-1].facts

    @property
    def protocol(self) -> Protocol:
        return self.runs[-1].protocol

    def to_json(self) -> dict[str, Any]:
        facts = self.facts
        hosts = {run.facts["host"] for run in self.runs if run.facts["host"]}
        return {
            "board": self.name,
            "device": facts["device"],
            "targets": sorted({run.facts["target"] for run in self.runs}),
            "hosts": sorted(hosts.union(*(run.facts["boards"] for run in self.runs))),
            "protocol": facts["protocol"],
            "is_emulated": facts["is_emulated"],
            "run_ids": [run.run_id for run in self.runs],
            "first_at": min((run.facts["first_at"] for run in self.runs if run.facts["first_at"]), default=None),
            "last_at": max((run.facts["last_at"] for run in self.runs), default=None) or None,
        }


def boards_of(index: Index, patterns: Sequence[str] = (), *, each_run: bool = False) -> list[Board]:
    """Every kind of board that measured something, or with `each_run` every run by itself, those with most runs first.

    `patterns` keep those whose name, model, CPU, target, host or run id one of them matches: as part of the word, or
    with `*` and `?` the whole word. Raises UsageError where there is none.
    """
    groups: dict[str, list[IndexedRun]] = {}
    for run in index.runs():
        if run.is_readable and run.facts["first_at"]:
            groups.setdefault(run.run_id if each_run else _name(run), []).append(run)
    if not groups:
        raise UsageError("no run on this machine has measured anything yet: edge-lts pull fetches what boards have")
    found = [Board(name=name, runs=tuple(runs)) for name, runs in groups.items()]
    found.sort(key=lambda board: (-len(board.runs), board.name))
    chosen = [board for board in found if not patterns or _is_meant(board, patterns)]
    if not chosen:
        known = ", ".join(board.name for board in found[:8])
        raise UsageError(f"no board matches {', '.join(patterns)!r:.80}; there are: {known}")
    return chosen


def _name(run: IndexedRun) -> str:
    """Such as `cortex-a76-4t-float32-1f3a`: for people in front, exact behind."""
    device, protocol = run.facts["device"] or {}, run.protocol
    kind = [device.get(key) for key in ("model", "machine", "cpu_model", "n_cores", "torch")]
    memory = device.get("memory_total_bytes")
    kind.append(round(memory / 2**28) if isinstance(memory, (int, float)) else None)  # kernels reserve as they like
    kind += [run.facts["is_emulated"], *protocol.comparison_key]
    model = str(device.get("model") or device.get("cpu_model") or device.get("machine") or run.facts["target"])
    words = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40].strip("-") or "board"
    tag = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:4]
    return f"{words}-{protocol.threads}t-{protocol.precision}-{tag}"


def _is_meant(board: Board, patterns: Sequence[str]) -> bool:
    data = board.to_json()
    device = data["device"] or {}
    words = [data["board"], *data["targets"], *data["hosts"], *data["run_ids"]]
    words += [str(device[key]) for key in ("model", "cpu_model", "machine") if device.get(key)]
    lowered = [word.lower() for word in words]
    for pattern in (pattern.lower() for pattern in patterns):
        is_glob = any(sign in pattern for sign in "*?[")
        if any(fnmatchcase(word, pattern) if is_glob else pattern in word for word in lowered):
            return True
    return False


class Rows:
    """The processes of one board, as columns; those by another protocol left out."""

    def __init__(self, index: Index, board: Board) -> None:
        self._index, self.board = index, board
        columns = index.columns(board.runs, ("purpose", "arch"))
        self._mask = columns["purpose"] != PURPOSES.index(OTHERWISE)
        self._columns: dict[str, Column] = {name: column[self._mask] for name, column in columns.items()}
        self._undominated: tuple[Column, Numbers] | None = None

    def __len__(self) -> int:
        return len(self._columns["arch"])

    def column(self, name: str) -> Column:
        """Read when it is first asked for: most questions need few."""
        if name not in self._columns:
            whole = self._one_after_the_other() if name == "spent_s" else self._index.columns(self.board.runs, (name,))
            self._columns[name] = whole[name][self._mask]
        return self._columns[name]

    def _one_after_the_other(self) -> dict[str, Column]:
        """`spent_s` as if each run had begun when the one before it ended: `pi95` asks what moved in the course of
        time."""
        parts, begun_s = [], 0.0
        for run in self.board.runs:
            own = self._index.columns_of(run.number, ("spent_s",))["spent_s"]
            parts.append({"spent_s": own + begun_s})
            begun_s += float(own.max(initial=0.0))
        return joined(parts, ("spent_s",))

    def at_usual_speed(self, name: str) -> Numbers:
        values: Numbers = self.column(name)
        return values / self.column(f"slowdown_{name}") if f"slowdown_{name}" in SLOWDOWNS else values

    def processes(
        self, numbers: Collection[int], most: int = 1 << 62, names: Sequence[str] = MEASURED
    ) -> dict[int, list[Evaluation]]:
        """The processes of these architectures as evaluations without samples, `slowdown` among their conditions; of
        more than `most` of one architecture so many, evenly spread.

        Raises LedgerError for an architecture that a ledger should not hold.
        """

        rows = _thinned(self._columns["arch"], self._rows_of(numbers), most)
        values = [key for name in names for key in (name, f"{name}_low", f"{name}_high", f"{name}_n")]
        cells = {name: self.column(name)[rows].tolist() for name in (*_ROW, *values)}
        architectures = {
            number: checked(number, data)
            for number, data in self._index.architectures({int(one) for one in cells["arch"]}).items()
        }
        found: dict[int, list[Evaluation]] = {}
        for row, number in enumerate(cells["arch"]):
            objectives: dict[str, Value] = {"decoder_params": int(cells["decoder_params"][row])}
            objectives |= {name: _value(cells, name, row) for name in names}
            found.setdefault(number, []).append(
                Evaluation(
                    candidate_id=row,
                    architecture=architectures[number],
                    objectives={name: value for name, value in objectives.items() if value is not None},
                    samples={},
                    conditions={"slowdown": {name: cells[f"slowdown_{name}"][row] for name in _SLOWED}},
                    flags=flag_names(cells["flags"][row]),
                    purpose=PURPOSES[cells["purpose"][row]],
                    spent_s=cells["spent_s"][row],
                )
            )
        return found

    def members(
        self, numbers: Collection[int], most: int = MOST_PROCESSES, names: Sequence[str] = MEASURED
    ) -> dict[int, Member]:
        """One value for each architecture, and its `pi95` where three processes measured it; in the order given.

        Of an architecture with more than `most` processes these few say how wide the interval is, all where it lies.
        """
        import numpy as np

        found = self.processes(numbers, most, names)
        chosen = [(arch_id_of(number), found[number]) for number in numbers if number in found]
        combined = _Combined(resolve_objectives(DEFAULT_OBJECTIVES)).combine(chosen)
        members = {int(member.arch_id, 16): member for member in combined}
        rows = self._rows_of(numbers)
        groups, inverse, counts = np.unique(self._columns["arch"][rows], return_inverse=True, return_counts=True)
        if not (counts > most).any():
            return members
        medians = {name: group_medians(inverse, len(groups), self.at_usual_speed(name)[rows]) for name in names}
        for group in np.flatnonzero(counts > most):
            number = int(groups[group])
            middles = {name: float(values[group]) for name, values in medians.items()}
            members[number] = _of_all(members[number], middles, int(counts[group]))
        return members

    def _rows_of(self, numbers: Collection[int]) -> Column:
        import numpy as np

        return np.flatnonzero(np.isin(self._columns["arch"], np.array(list(numbers), dtype="<u8")))

    def searched(self) -> list[int]:
        """Every architecture that was measured for a search, in order."""
        import numpy as np

        found: list[int] = np.unique(self._columns["arch"][self._is_searched()]).tolist()
        return found

    def _is_searched(self) -> Column:
        import numpy as np

        return ~np.isin(self.column("purpose"), [PURPOSES.index(name) for name in ASIDE])

    def frontier(self) -> list[Member]:
        """Undominated in size, time per token and memory, the smallest first; those probably dominated are left out."""
        return list(self.members(self.undominated()).values())

    def undominated(self, most: int = 1 << 62) -> list[int]:
        """The numbers of the frontier's architectures, the smallest first.

        At most `most`, evenly spread: those that cost least in something at their size, then others.
        """
        if self._undominated is None:
            self._undominated = self._find_undominated()
        numbers, table = self._undominated
        found: list[int] = (numbers if len(numbers) <= most else numbers[_most_telling(table, most)]).tolist()
        return found

    def _find_undominated(self) -> tuple[Column, Numbers]:
        """The same numbers (n,), and the losses (n, k) of their medians."""
        import moocore  # type: ignore[import-untyped]  # it ships no types
        import numpy as np

        searched = self._is_searched()
        numbers, inverse = np.unique(self._columns["arch"][searched], return_inverse=True)
        losses = []
        for name in DEFAULT_OBJECTIVES:
            medians = group_medians(inverse, len(numbers), self.at_usual_speed(name)[searched])
            losses.append(medians if OBJECTIVES[name].direction == "min" else -medians)
        table = np.column_stack(losses)
        whole = ~np.isnan(table).any(axis=1)
        numbers, table = numbers[whole], table[whole]
        if not len(numbers):
            return numbers, table
        chosen = np.flatnonzero(moocore.is_nondominated(table, keep_weakly=True))
        order = chosen[np.lexsort((numbers[chosen], -table[chosen, 0]))]
        return numbers[order], table[order]


def _most_telling(table: Numbers, most: int) -> Column:
    """Which rows of losses (n, k) to keep, in order: undominated in the first column and one other, and then others;
    evenly spread over the rows where there is no room for all."""
    import moocore
    import numpy as np

    is_best = np.zeros(len(table), dtype=bool)
    for column in range(1, table.shape[1]):
        is_best |= moocore.is_nondominated(table[:, [0, column]], keep_weakly=True)
    best, rest = np.flatnonzero(is_best), np.flatnonzero(~is_best)
    kept = [rows[evenly(len(rows), n)] for rows, n in ((best, most), (rest, max(0, most - len(best))))]
    return np.sort(np.concatenate(kept))


_SLOWED = tuple(name.removeprefix("slowdown_") for name in SLOWDOWNS)


def _thinned(archs: Column, rows: Column, most: int) -> Column:
    """Of these rows at most `most` for each architecture, evenly spread over them."""
    import numpy as np

    order = rows[np.argsort(archs[rows], kind="stable")]
    groups, counts = np.unique(archs[order], return_counts=True)
    if not len(groups) or counts.max() <= most:
        return rows
    ends = np.cumsum(counts)
    place = np.arange(len(order)) - np.repeat(ends - counts, counts)
    n = np.repeat(counts, counts)
    is_kept = (n <= most) | (place * most // n != (place - 1) * most // n)
    return np.sort(order[is_kept])


def _of_all(member: Member, middles: Mapping[str, float], n_processes: int) -> Member:
    """A member with the medians of all of its processes; its intervals move along."""
    objectives = dict(member.objectives)
    for name, middle in middles.items():
        value = objectives.get(name)
        if isinstance(value, Measurement) and middle == middle and value.median:
            shift = middle / value.median
            pi95 = None if value.pi95 is None else (value.pi95[0] * shift, value.pi95[1] * shift)
            objectives[name] = replace(value, median=middle, pi95=pi95)
    return replace(member, objectives=objectives, n_processes=n_processes)


class _Combined(Frontier):
    """Puts processes together whose slowdown is known already, each against the usual speed of its own run."""

    def _at_usual_speed(self, process: Evaluation) -> Evaluation:
        slowdown: Mapping[str, float] = process.conditions["slowdown"]
        values = {name: divided(value, slowdown.get(name, 1.0)) for name, value in process.objectives.items()}
        return replace(process, objectives=values)


def checked(number: int, data: object) -> Architecture:
    """Raises LedgerError for what is no consistent architecture, or another one."""
    try:
        architecture = Architecture.from_json(data)
    except ArchitectureError as exc:
        raise LedgerError(f"a ledger holds {arch_id_of(number)}, which cannot be: {exc}") from exc
    if architecture.arch_id != arch_id_of(number):
        raise LedgerError(f"{arch_id_of(number)} is indexed as another architecture; remove the index and ask again")
    return architecture


def _value(cells: Mapping[str, Sequence[Any]], name: str, row: int) -> Value:
    middle, low, high, n = (cells[key][row] for key in (name, f"{name}_low", f"{name}_high", f"{name}_n"))
    if middle != middle:  # NaN: not measured
        return None
    if not n:
        return float(middle)
    return Measurement(median=middle, ci95=(low, high) if low == low and high == high else None, n=n)


# Boards against one another -------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class BoardSide(Side):
    """A board in a comparison; what it measured besides its frontier is looked up when it is asked for."""

    rows: Rows
    _numbers: list[int] | None = None

    def searched(self) -> list[int]:
        if self._numbers is None:
            self._numbers = self.rows.searched()
        return self._numbers

    def measured_ids(self) -> set[str]:
        return set(map(arch_id_of, self.searched()))

    def shared_ids(self, other: Side, most: int) -> list[str]:
        """As numbers: turning a hundred thousand into text takes longer than all the rest."""
        import numpy as np

        if not isinstance(other, BoardSide):
            return Side.shared_ids(self, other, most)
        own, its = (np.array(side.searched(), "<u8") for side in (self, other))
        both = np.intersect1d(own, its, assume_unique=True)
        return [arch_id_of(number) for number in both[:most].tolist()]

    def combined(self, arch_ids: Collection[str]) -> dict[str, Member]:
        numbers = [int(arch_id, 16) for arch_id in sorted(arch_ids)]
        found = self.rows.members(numbers, MIN_PROCESSES_PI95, LATENCIES)
        return {member.arch_id: member for member in found.values()}


def side_of(index: Index, board: Board) -> BoardSide:
    rows = Rows(index, board)
    numbers, chosen = rows.undominated(), rows.undominated(MOST_MEMBERS)
    members = [member.to_json() for member in rows.members(chosen).values()]
    facts = board.to_json()
    run = {
        "run_id": board.name,
        "target": ", ".join(facts["targets"]),
        "host": ", ".join(facts["hosts"]) or None,
        "boards": [],
        "device": facts["device"],
        "protocol": facts["protocol"],
        "state": "done",
        "n_measured": len(rows),
        "spent_s": None,
        "is_emulated": facts["is_emulated"],
        "warnings": [],
        "frontier": members,
    }
    spaces = {run.facts["space"] for run in board.runs}
    backbones = {run.facts["backbone"] for run in board.runs}
    spec = RunSpec(
        run_id=board.name,
        space={"name": ", ".join(sorted(spaces)), "backbone": ", ".join(sorted(backbones))},
        budget_s=1.0,
        target=run["target"],
        strategy=", ".join(sorted({run.facts["strategy"] for run in board.runs})),
        protocol=board.protocol,
        is_emulated=facts["is_emulated"],
    )
    notes = [_thinning(board, len(numbers), len(chosen))] if len(chosen) < len(numbers) else []
    widths = usual_widths(members)
    return BoardSide(run=run, spec=spec, outcomes=[], members=members, widths=widths, notes=notes, rows=rows)


def _thinning(board: Board, n_members: int, n_compared: int) -> str:
    return (
        f"{board.name} has {n_members:,} members, of which {n_compared:,} are compared, evenly spread; those that cost "
        "least in something at their size first"
    )


def alike(boards: Sequence[Board], across: Collection[str]) -> list[Board]:
    """The largest group of boards that measured alike, `across` set aside: what is compared unless boards are named."""
    groups: dict[tuple[Any, ...], list[Board]] = {}
    for board in boards:
        key = dict(zip(KEY_NAMES, board.protocol.comparison_key, strict=True))
        groups.setdefault(tuple(value for name, value in key.items() if name not in across), []).append(board)
    return max(groups.values(), key=len)


def overview(index: Index, board: Board, *, is_whole: bool = True) -> dict[str, Any]:
    """What is known of a board: how much was measured, and its frontier as `report` has members; of it only the
    smallest and the largest member unless `is_whole`: working out a member's intervals takes longest."""
    rows = Rows(index, board)
    numbers = rows.undominated()
    members = rows.members(numbers if is_whole else [*numbers[:1], *numbers[1:][-1:]]).values()
    return {
        **board.to_json(),
        "n_runs": len(board.runs),
        "n_measurements": len(rows),
        "n_failed": sum(sum(run.facts["failures"].values()) for run in board.runs),
        "n_architectures": len(set(rows.searched())),
        "n_members": len(numbers),
        "frontier": [member.to_json() for member in members],
    }

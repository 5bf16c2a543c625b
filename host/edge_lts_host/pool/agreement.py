"""Whether boards measure alike, and how much slower each is than the pool.

A few architectures, the anchor set, are measured on every board before the search. For each latency

    log T(board, anchor) = log T(anchor) + log factor(board) + error

with the factors' geometric mean at 1: the pool's speed is that of its average board. What of a factor the errors alone
would make is left out (as edge_lts.speed does with its anchors). The three jobs that every process times beside a
candidate are compared the same way, so that the drift of each board is seen against its own usual speed.

Boards are one pool while no two differ by more than the tolerance: in a latency as a whole, on one anchor after
correction (another memory or cache shows there), or in the memory that an anchor needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_lts.frontier import latencies
from edge_lts.records import Evaluation, central
from edge_lts.speed import anchors_of
from edge_lts.stats import median
from edge_lts_host.errors import PreflightError

MOST_PROCESSES = 3  # of an anchor on a board, before boards that differ are refused
MIN_ANCHORS = 2
_MEDIAN_OVER_MEAN = 1.25  # standard error of a median of a few over that of their mean
_MEMORY = "peak_memory_bytes"

Values = dict[str, dict[str, list[float]]]  # of one board: quantity -> arch_id -> one number per process
Factor = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The worst that was found: `share` 0.2 means that `slow` takes a fifth more than `fast`."""

    slow: str
    fast: str
    what: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`factors` by board: what its times are divided by, by latency and, under `anchor_s`, by anchor job."""

    factors: dict[str, Factor]
    worst: Difference | None


def add(values: Values, evaluation: Evaluation) -> None:
    """File one measurement of an anchor."""
    arch_id = evaluation.architecture.arch_id
    found = {name: value.median for name, value in latencies(evaluation).items()}
    found |= {f"anchor_s.{name}": seconds for name, seconds in anchors_of(evaluation).items()}
    memory = central(evaluation.objectives.get(_MEMORY))
    if memory is not None:
        found[_MEMORY] = float(memory)
    for name, number in found.items():
        if number > 0:
            values.setdefault(name, {}).setdefault(arch_id, []).append(number)


def agree(boards: Mapping[str, Values]) -> Agreement:
    """How boards that measured the same anchors compare. Raises PreflightError where that cannot be told."""
    factors: dict[str, Factor] = {board: {"anchor_s": {}} for board in boards}
    differences: list[Difference] = []
    names = sorted({name for values in boards.values() for name in values})
    for name in names:
        table = _table(boards, name)
        if len(table) < MIN_ANCHORS:
            if name.startswith("anchor_s."):
                continue
            raise PreflightError(
                f"only {len(table)} of the anchors could be measured on every board ({name}), {MIN_ANCHORS} are needed",
                "edge-lts doctor may say what is wrong with one of them",
            )
        if name == _MEMORY:
            differences += [_widest(row, f"the memory of {arch_id}") for arch_id, row in table.items()]
            continue
        found = {board: median([row[board] for row in table.values()]) for board in boards}
        rest = {arch_id: {board: row[board] - found[board] for board in boards} for arch_id, row in table.items()}
        if name.startswith("anchor_s."):
            of_anchors = [(factors[board]["anchor_s"], found[board]) for board in boards]
            for factor, logarithm in of_anchors:
                factor[name.removeprefix("anchor_s.")] = math.exp(logarithm * _trust(logarithm, rest.values()))
            continue
        differences.append(_widest(found, name))
        differences += [_widest(row, f"{name} of {arch_id}, after correction") for arch_id, row in rest.items()]
        for board in boards:
            factors[board][name] = math.exp(found[board] * _trust(found[board], rest.values()))
    return Agreement(factors=factors, worst=max(differences, key=lambda one: one.share, default=None))


def continued(found: Mapping[str, Factor], known: Mapping[str, Factor]) -> dict[str, Factor]:
    """`found` where boards joined later: those that a run has keep their factors, and the new ones are relative to
    them."""
    kept = {board: found[board] for board in known if board in found}
    factors = {board: dict(factor) for board, factor in found.items()}

    def shift(name: str, of: str | None) -> float:
        logs = []
        for board in kept:
            before, now = (known[board], found[board]) if of is None else (known[board][of], found[board][of])
            if name in before and name in now:
                logs.append(math.log(before[name] / now[name]))
        return math.exp(math.fsum(logs) / len(logs)) if logs else 1.0

    for board, factor in factors.items():
        if board in known:
            factors[board] = known[board]
            continue
        anchors = factor.pop("anchor_s", {})
        factors[board] = {name: value * shift(name, None) for name, value in factor.items()}
        factors[board]["anchor_s"] = {name: value * shift(name, "anchor_s") for name, value in anchors.items()}
    return factors


def check(agreement: Agreement, tolerance: float) -> None:
    """Raises PreflightError naming the two boards that differ most, if by more than `tolerance` (0.1 is 10 %)."""
    worst = agreement.worst
    if worst is None or worst.share <= tolerance:
        return
    raise PreflightError(
        f"{worst.slow} and {worst.fast} cannot share a search: {worst.slow} takes {worst.share:.1%} more in "
        f"{worst.what}, and {tolerance:.1%} is what a pool tolerates",
        "make them alike (edge-lts doctor: governor, heat, supply), run them one by one, or say --pool-tolerance",
    )


def _table(boards: Mapping[str, Values], name: str) -> dict[str, dict[str, float]]:
    """arch_id -> board -> log of its median over that of all boards, for what every board measured."""
    columns = {board: values.get(name, {}) for board, values in boards.items()}
    shared = sorted(set.intersection(*(set(column) for column in columns.values())) if columns else ())
    table = {}
    for arch_id in shared:
        logs = {board: math.log(median(column[arch_id])) for board, column in columns.items()}
        centre = math.fsum(logs.values()) / len(logs)
        table[arch_id] = {board: value - centre for board, value in logs.items()}
    return table


def _widest(logs: Mapping[str, float], what: str) -> Difference:
    slow, fast = max(logs, key=lambda board: logs[board]), min(logs, key=lambda board: logs[board])
    return Difference(slow=slow, fast=fast, what=what, share=math.expm1(logs[slow] - logs[fast]))


def _trust(logarithm: float, rest: Collection[Mapping[str, float]]) -> float:
    """The share of a factor that errors alone would not have made."""
    errors: Sequence[float] = [error for row in rest for error in row.values()]
    n_anchors = len(errors) / max(1, len(next(iter(rest), {})))
    if not logarithm or not errors:
        return 0.0
    square = math.fsum(error**2 for error in errors) / len(errors)
    return max(0.0, 1.0 - _MEDIAN_OVER_MEAN**2 * square / n_anchors / logarithm**2)


def tabulated(factor: Factor) -> str:
    """A factor in words: "decode +2.1 %, prefill -0.4 %"."""
    latency = {name: value for name, value in factor.items() if name != "anchor_s"}
    return ", ".join(f"{name.split('_')[0]} {value - 1:+.1%}" for name, value in sorted(latency.items()))

"""What a frontier found on one board loses on another: transfer regret, from measurements and never from a guess.

A session re-times members of a run's frontier on the board of another run, `onto`, together with their rivals: for each
member that architecture of `onto`'s own frontier which is at least as large, needs no more memory there by the formula,
and was fastest when `onto` was searched. All are measured in the same rounds, in an order drawn anew in each, so that a
machine that changes its speed changes it for members and rivals alike. Then

    regret = latency of the member / latency of its rival - 1, both as measured in this session

at the session's usual speed (`edge_lts.speed`). A rival is chosen by the run and timed by the session, so nobody wins
by a lucky sample. Intervals: the spread between processes that architecture and round leave, pooled over the session
(two-way layout), with Student's t. They speak of that session on that board.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError
from edge_lts.footprint import predicted_bytes
from edge_lts.records import Evaluation, Measurement, Outcome, Protocol
from edge_lts.speed import UsualSpeed, anchors_of
from edge_lts.stats import median
from edge_lts_host.counts import evenly
from edge_lts_host.report.intervals import centre

_N_DRAWS = 2000
_SEED = 0x7472


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A member to be timed elsewhere, and its rival there; None where nothing is as large in as little memory."""

    source: str
    arch_id: str
    rival: str | None

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "arch_id": self.arch_id, "rival": self.rival}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Planned:
        """Raises KeyError or TypeError for what is no plan."""
        rival = data["rival"]
        return cls(
            source=str(data["source"]), arch_id=str(data["arch_id"]), rival=None if rival is None else str(rival)
        )


@dataclass(slots=True, kw_only=True)
class Session:
    """One session on the board of the run `onto`; `outcomes` are (round, outcome) in the order of time."""

    session: str
    onto: str
    latency: str
    plan: list[Planned]
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)


def chosen(entries: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """At most `n` of a frontier's members, evenly spread over its order, its ends included; none that are doubtful."""
    definite = [entry for entry in entries if not entry["probably_dominated"]]
    return [definite[place] for place in evenly(len(definite), n)]


def plan(
    source: str,
    members: Sequence[Mapping[str, Any]],
    onto_frontier: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    latency: str,
    quality: str = "decoder_params",
) -> list[Planned]:
    """Each of `members` of run `source` with its rival; `protocol` is the one of the board that they go to, `quality`
    what a rival has to have as much of."""

    def good(entry: Mapping[str, Any], arch: Architecture) -> float:
        value = centre(entry["objectives"].get(quality))
        return float(arch.decoder_params) if value is None else value

    rivals = []
    for entry in onto_frontier:
        seconds = centre(entry["objectives"].get(latency))
        if seconds is not None and not entry["probably_dominated"]:
            arch = Architecture.from_json(entry["architecture"])
            rivals.append((seconds, good(entry, arch), predicted_bytes(arch, protocol), arch.arch_id))
    found = []
    for entry in members:
        arch = Architecture.from_json(entry["architecture"])
        n_bytes = predicted_bytes(arch, protocol)
        fitting = [one for one in rivals if one[1] >= good(entry, arch) and one[2] <= n_bytes]
        found.append(Planned(source=source, arch_id=arch.arch_id, rival=min(fitting)[3] if fitting else None))
    return found


def regrets(session: Session) -> list[dict[str, Any]]:
    """One entry per source run: its members with their regret, and the median of these with its interval.

    `members` have `regret`, `low`, `high` (null where nothing was measured or no rival is there), `is_worse` and
    `is_better`, both false inside the interval. A member that is its own rival has regret 0 by definition.
    """
    logs = _logs(session)
    spread, freedom = _spread(logs)
    reach = None if spread is None else spread * t975(freedom)
    found = []
    for source in dict.fromkeys(one.source for one in session.plan):
        members = [_member(one, logs, reach) for one in session.plan if one.source == source]
        known = [one["regret"] for one in members if one["regret"] is not None]
        found.append(
            {
                "from": source,
                "onto": session.onto,
                "session": session.session,
                "objective": session.latency,
                "n_processes": max((len(one) for one in logs.values()), default=0),
                "spread": spread,
                "members": members,
                "n_compared": len(known),
                "n_without_rival": sum(one["rival"] is None and one["n"] > 0 for one in members),
                "n_failed": sum(one["n"] == 0 for one in members),
                "n_worse": sum(one["is_worse"] for one in members),
                "n_better": sum(one["is_better"] for one in members),
                "median_regret": median(known) if known else None,
                "median_ci95": _median_interval(members, spread, logs),
                "largest_regret": max(known, default=None),
            }
        )
    return found


def _member(one: Planned, logs: Mapping[str, Mapping[int, float]], reach: float | None) -> dict[str, Any]:
    own = logs.get(one.arch_id, {})
    row: dict[str, Any] = {"arch_id": one.arch_id, "rival": one.rival, "n": len(own), "latency_s": None}
    row.update(rival_latency_s=None, regret=None, low=None, high=None, is_worse=False, is_better=False)
    if own:
        row["latency_s"] = math.exp(_mean(own))
    if one.rival == one.arch_id and own:
        return {**row, "rival_latency_s": row["latency_s"], "regret": 0.0, "low": 0.0, "high": 0.0}
    rival = logs.get(one.rival or "", {})
    if not own or not rival:
        return row
    difference = _mean(own) - _mean(rival)
    row.update(rival_latency_s=math.exp(_mean(rival)), regret=math.expm1(difference))
    if reach is not None:
        error = reach * math.sqrt(1 / len(own) + 1 / len(rival))
        row.update(low=math.expm1(difference - error), high=math.expm1(difference + error))
        row.update(is_worse=row["low"] > 0, is_better=row["high"] < 0)
    return row


def _logs(session: Session) -> dict[str, dict[int, float]]:
    """By architecture and round: the logarithm of its latency at the session's usual speed."""
    speed = UsualSpeed()
    evaluations = [(number, one) for number, one in session.outcomes if isinstance(one, Evaluation)]
    for _, one in evaluations:
        speed.add(anchors_of(one))
    found: dict[str, dict[int, float]] = {}
    for number, one in evaluations:
        value = one.objectives.get(session.latency)
        if isinstance(value, Measurement) and value.median > 0:
            seconds = value.median / speed.slowdown(session.latency, anchors_of(one))
            found.setdefault(one.architecture.arch_id, {})[number] = math.log(seconds)
    return found


def _spread(logs: Mapping[str, Mapping[int, float]]) -> tuple[float | None, int]:
    """Standard deviation of one process around its architecture and its round, and its degrees of freedom."""
    rounds = sorted({number for own in logs.values() for number in own})
    complete = {arch_id: own for arch_id, own in logs.items() if len(own) == len(rounds)}
    freedom = (len(complete) - 1) * (len(rounds) - 1)
    if freedom < 2:
        return None, 0
    means = {arch_id: _mean(own) for arch_id, own in complete.items()}
    grand = math.fsum(means.values()) / len(means)
    squares = 0.0
    for number in rounds:
        shift = math.fsum(own[number] for own in complete.values()) / len(complete) - grand
        squares += math.fsum((own[number] - means[arch_id] - shift) ** 2 for arch_id, own in complete.items())
    return math.sqrt(squares / freedom), freedom


def _median_interval(
    members: Sequence[Mapping[str, Any]], spread: float | None, logs: Mapping[str, Mapping[int, float]]
) -> list[float] | None:
    """Bootstrap over members, each drawn within its own error; None without an error or with fewer than three."""
    known = [one for one in members if one["regret"] is not None]
    if spread is None or len(known) < 3:
        return None
    import numpy as np

    rng = np.random.default_rng(_SEED)
    centres = np.array([math.log1p(one["regret"]) for one in known])
    errors = np.array(
        [
            0.0 if one["rival"] == one["arch_id"] else spread * math.sqrt(1 / one["n"] + 1 / len(logs[one["rival"]]))
            for one in known
        ]
    )
    rows = rng.integers(0, len(known), (_N_DRAWS, len(known)))
    drawn = np.median(centres[rows] + errors[rows] * rng.standard_normal(rows.shape), axis=1)
    low, high = (float(bound) for bound in np.expm1(np.quantile(drawn, [0.025, 0.975])))
    centre_ = median([one["regret"] for one in known])
    return [min(low, centre_), max(high, centre_)]


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)


def t975(freedom: int) -> float:
    """The 97.5 % point of Student's t for two degrees of freedom or more, to 0.5 % (Abramowitz and Stegun 26.7.5)."""
    if freedom == 2:
        return 4.3027
    z, v = 1.959964, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))


def protocol_of(run: Mapping[str, Any]) -> Protocol:
    """The protocol of a run in a report, its threads resolved."""
    try:
        return Protocol.from_json(run["protocol"])
    except EdgeLtsError as exc:
        raise type(exc)(f"{run['run_id']}: {exc}") from exc

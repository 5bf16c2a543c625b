"""The best architecture within limits, as plain data (`edge-lts pick`): who it is, who comes next, what limits cost.

Best is who has the most of the run's first objective that is to be large (decoder_params, the lower bound of a
calibrated proxy's quality, or what the run brought of its own), or, with `train_tokens`, the lowest loss by a published
law (`loss_law`). Every architecture that was measured may be picked: with a limit that the search did not know, the
best one need not stand on its frontier. A limit is kept by the median; `is_sure` says whether the whole interval keeps
it, and `only_sure` demands that.

What a limit costs is who would be picked without it, all others kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.frontier import members
from edge_lts.objectives import OBJECTIVES, QUALITY, Constraint, Objective
from edge_lts.records import ASIDE, Evaluation, Outcome, RunSpec
from edge_lts_host.errors import UsageError
from edge_lts_host.report import compare
from edge_lts_host.report.health import health
from edge_lts_host.report.intervals import Widths, bounds, centre, usual_widths
from edge_lts_host.report.loss_law import LAWS, TOKENS_PER_PARAM, LossLaw
from edge_lts_host.report.proxy import is_extrapolated
from edge_lts_host.report.transfer import protocol_of
from edge_lts_host.store import RunFolder

PICK_SCHEMA_VERSION = 1
_TIES = ("decode_latency_s", "peak_memory_bytes")

Entry = dict[str, Any]
Rank = Callable[[Mapping[str, Any]], tuple[float, ...]]


def build_pick(
    folder: RunFolder,
    limits: Sequence[Constraint],
    *,
    n_runners_up: int = 3,
    train_tokens: float | None = None,
    law: str = "chinchilla",
    only_sure: bool = False,
) -> dict[str, Any]:
    """The decision on one run. `best` is None where nothing measured keeps the limits; then `nearest` says what does.

    Raises UsageError when the run has measured nothing yet.
    """
    chooser = _Chooser(folder, train_tokens, LAWS[law], only_sure=only_sure)
    found = chooser.ranked(limits)
    best = found[0] if found else None
    data: dict[str, Any] = {
        "schema_version": PICK_SCHEMA_VERSION,
        "run_id": folder.run_id,
        "limits": [limit.to_json() for limit in limits],
        "only_sure": only_sure,
        "ranked_by": chooser.ranked_by(),
        "best": best,
        "runners_up": found[1 : 1 + n_runners_up],
        "n_within": len(found),
        "best_sure": None,
        "limits_cost": [],
        "nearest": None,
        "notes": [],
        "evidence": chooser.evidence(best),
    }
    if best is None:
        data["nearest"] = chooser.nearest(limits)
        return data
    if not all(limit["is_sure"] for limit in best["limits"]):
        data["best_sure"] = next((one for one in found if all(limit["is_sure"] for limit in one["limits"])), None)
    data["limits_cost"] = [chooser.cost(limits, limit, best) for limit in limits]
    data["notes"] = chooser.notes([best, *data["runners_up"]], found)
    return data


class _Chooser:
    """One run, read once."""

    def __init__(self, folder: RunFolder, train_tokens: float | None, law: LossLaw, *, only_sure: bool) -> None:
        self.run = compare.report_run(folder)
        self.spec: RunSpec = folder.read_spec()
        self.outcomes: list[Outcome] = folder.outcomes()
        self.train_tokens = train_tokens
        self.law = law
        self.only_sure = only_sure
        if not self.run["frontier"]:
            raise UsageError(f"{folder.run_id} has measured nothing yet that satisfies its constraints")
        self.widths: Widths = usual_widths(self.run["frontier"])
        self.protocol = protocol_of(self.run)
        searched = self.spec.resolved_objectives
        self.quality: Objective = next(
            (one for one in searched if one.direction == "max"), OBJECTIVES["decoder_params"]
        )
        self.known = {entry["arch_id"]: entry for entry in self.run["frontier"]}

    def ranked_by(self) -> dict[str, Any]:
        if self.train_tokens is None:
            found: dict[str, Any] = {"name": self.quality.name, "direction": self.quality.direction}
            return {**found, "proxy": self.run["proxy"]} if self.quality.name == QUALITY else found
        return {
            "name": self.law.name,
            "direction": "min",
            "citation": self.law.citation,
            "fitted_on": self.law.fitted_on,
            "counts": self.law.counts,
            "train_tokens": self.train_tokens,
        }

    def ranked(self, limits: Sequence[Constraint]) -> list[Entry]:
        """Everybody within the limits, the best first."""
        found = [self._judged(entry, limits) for entry in self._candidates(limits)]
        if self.only_sure:
            found = [one for one in found if all(limit["is_sure"] for limit in one["limits"])]
        return sorted(found, key=self._rank)

    def cost(self, limits: Sequence[Constraint], limit: Constraint, best: Entry) -> dict[str, Any]:
        """Who would be picked without `limit`, and what that one has of the limited objective."""
        others = [one for one in limits if one is not limit]
        without = min([*self.ranked(others), best], key=self._rank)
        value, its = self._quality(without), self._quality(best)
        is_ratio = not self.quality.is_log and min(value, its) > 0
        return {
            **limit.to_json(),
            "is_binding": without["arch_id"] != best["arch_id"],
            "without": without,
            "needs": centre(without["objectives"].get(limit.name)),
            "gain": value / its if is_ratio else None,
            "gain_nats": value - its if self.quality.is_log else None,
            "loss_gain": None if without["loss"] is None else best["loss"]["nats"] - without["loss"]["nats"],
        }

    def nearest(self, limits: Sequence[Constraint]) -> dict[str, Any]:
        """Who breaks the limits least (by the largest factor beyond any), and what each limit alone would allow."""
        rows = []
        for limit in limits:
            values = [
                value
                for entry in self._everyone(limits)
                if (value := centre(entry["objectives"].get(limit.name))) is not None
            ]
            side = max if limit.minimum is not None and limit.maximum is None else min
            rows.append(
                {
                    **limit.to_json(),
                    "n_within": sum(map(limit.allows, values)),
                    "extreme": side(values, default=None),
                }
            )
        scored = [
            (excess, index, entry)
            for index, entry in enumerate(self._everyone(limits))
            if (excess := _excess(entry, limits)) is not None
        ]
        closest = min(scored, default=None)
        return {
            "limits": rows,
            "excess": None if closest is None else closest[0],
            "entry": None if closest is None else self._judged(closest[2], limits),
        }

    def notes(self, shown: Sequence[Entry], within: Sequence[Entry]) -> list[dict[str, Any]]:
        """What makes the ranking doubtful: `kind` and what it is about."""
        notes: list[dict[str, Any]] = []
        if self.train_tokens is None:
            if self.quality.name == "decoder_params":
                notes.append({"kind": "equal_convergence"})
            if self.quality.name == QUALITY:
                notes.append({"kind": "calibrated", "unit": self.run["proxy"]["unit"]})
                beyond = [one["arch_id"] for one in shown if is_extrapolated(one["objectives"].get(QUALITY))]
                notes += [{"kind": "beyond_labels", "members": beyond}] if beyond else []
        else:
            starved = [one["arch_id"] for one in shown if one["loss"]["tokens_per_param"] < TOKENS_PER_PARAM]
            if starved:
                notes.append({"kind": "few_tokens", "members": starved, "least": TOKENS_PER_PARAM})
            if any(one["loss"]["is_extrapolated"] for one in shown):
                notes.append({"kind": "extrapolated"})
            if len({one["architecture"]["vocab_size"] for one in shown}) > 1:
                notes.append({"kind": "vocabularies"})
            largest = max(within, key=lambda one: int(one["objectives"]["decoder_params"]))
            if largest["objectives"]["decoder_params"] > shown[0]["objectives"]["decoder_params"]:
                notes.append({"kind": "embedding", "arch_id": largest["arch_id"]})
        best = shown[0]
        is_calibrated = self.quality.name == QUALITY
        for note in health([Architecture.from_json(best["architecture"])], None, is_calibrated=is_calibrated):
            notes.append({"kind": "unvalidated", "rule": note["rule"], "side": note["side"], "value": note["value"]})
        if self.run["is_emulated"]:
            notes.append({"kind": "emulated"})
        if best["probably_dominated"]:
            notes.append({"kind": "probably_dominated"})
        return notes

    def evidence(self, best: Entry | None) -> dict[str, Any]:
        """Where the numbers come from, and for the best one when, how often and how surely."""
        run = self.run
        keys = ("target", "host", "boards", "device", "protocol", "state", "n_measured", "is_emulated", "quality")
        data: dict[str, Any] = {key: run[key] for key in keys}
        if best is None:
            return data
        own = [
            one
            for one in self.outcomes
            if isinstance(one, Evaluation) and one.architecture.arch_id == best["arch_id"] and one.purpose not in ASIDE
        ]
        data["measured_at"] = [one.measured_at for one in own]
        data["n_samples"] = {name: sum(len(one.samples.get(name, ())) for one in own) for name in own[0].samples}
        data["certificates"] = self._certificates(best["arch_id"])
        return data

    def _certificates(self, arch_id: str) -> list[dict[str, Any]]:
        """How much faster anything in the space could be than this member, where a guided run can say so."""
        definite = [entry["arch_id"] for entry in self.run["frontier"] if not entry["probably_dominated"]]
        if arch_id not in definite:
            return []
        index = definite.index(arch_id)
        return [
            {"objective": item["objective"], "share": item["shares"][index]}
            for item in self.run["certificates"]
            if len(item["shares"]) == len(definite)
        ]

    def _candidates(self, limits: Sequence[Constraint]) -> list[Entry]:
        return [entry for entry in self._everyone(limits) if all(_allows(limit, entry) for limit in limits)]

    def _everyone(self, limits: Sequence[Constraint]) -> list[Entry]:
        """The frontier and, where limits reach beyond what was searched, whoever is undominated within them."""
        names = [objective.name for objective in self.spec.resolved_objectives]
        foreign = [OBJECTIVES[limit.name] for limit in limits if limit.name not in names]
        capped = any(limit.name == self.quality.name and limit.maximum is not None for limit in limits)
        if not foreign and not capped:
            return list(self.known.values())
        objectives = (*self.spec.resolved_objectives, *foreign)
        entries = dict(self.known)
        for within in ((), tuple(limits)):
            for member in members(self.outcomes, objectives, (*self.spec.constraints, *within)):
                if member.arch_id not in entries:
                    split = {"bytes": compare.bytes_split(member.architecture, self.protocol)}
                    entries[member.arch_id] = {**member.to_json(), "split": split, "energy": None}
        return list(entries.values())

    def _judged(self, entry: Mapping[str, Any], limits: Sequence[Constraint]) -> Entry:
        """A member with how it stands to each limit, and its loss by the law."""
        standing = []
        for limit in limits:
            value = entry["objectives"].get(limit.name)
            found, middle = bounds(limit.name, value, self.widths, self.run["device"]), centre(value)
            is_kept = middle is not None and limit.allows(middle)
            is_sure = (
                is_kept and found is not None and found.is_firm and limit.allows(found.low) and limit.allows(found.high)
            )
            used = middle / limit.maximum if middle is not None and limit.maximum else None
            standing.append({"name": limit.name, "value": middle, "used": used, "is_kept": is_kept, "is_sure": is_sure})
        loss = None
        if self.train_tokens is not None:
            arch = Architecture.from_json(entry["architecture"])
            n_params = self.law.n_params(arch)
            loss = {
                "law": self.law.name,
                "nats": self.law.loss(n_params, self.train_tokens),
                "n_params": n_params,
                "tokens_per_param": self.train_tokens / arch.total_params,
                "is_extrapolated": self.law.is_extrapolated(n_params, self.train_tokens),
            }
        return {**entry, "on_frontier": entry["arch_id"] in self.known, "limits": standing, "loss": loss}

    def _quality(self, entry: Mapping[str, Any]) -> float:
        value = centre(entry["objectives"].get(self.quality.name))
        return (-math.inf if self.quality.is_log else 0.0) if value is None else float(value)

    def _rank(self, entry: Mapping[str, Any]) -> tuple[float, ...]:
        first = self.quality.loss(self._quality(entry)) if entry["loss"] is None else entry["loss"]["nats"]
        costs = [centre(entry["objectives"].get(name)) for name in _TIES]
        return (first, *(float("inf") if cost is None else cost for cost in costs))


def _allows(limit: Constraint, entry: Mapping[str, Any]) -> bool:
    value = centre(entry["objectives"].get(limit.name))
    return value is not None and limit.allows(value)


def _excess(entry: Mapping[str, Any], limits: Sequence[Constraint]) -> float | None:
    """The largest factor by which a member is beyond a limit; None where it lacks the value."""
    factors = [1.0]
    for limit in limits:
        value = centre(entry["objectives"].get(limit.name))
        if value is None or value <= 0:
            return None
        factors += [value / limit.maximum] if limit.maximum else []
        factors += [limit.minimum / value] if limit.minimum else []
    return max(factors)

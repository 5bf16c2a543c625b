"""How undisturbed a run's measurements were, as plain data, and what `--strict` makes of a frontier.

The board judges each sample and records the state of its sensors (`edge_lts.quality`, `edge_lts.health`); here that is
added up over all processes of a run. What could not be read is None or empty, never 0: a missing sensor or a virtual
machine is a condition, not a taint. Runs of before these records have nothing, and get nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_lts.records import TAINTS, Evaluation
from edge_lts_host.errors import StrictError
from edge_lts_host.report import render

LATENCIES = ("decode_latency_s", "prefill_latency_s")
SHARES = ("steal_share", "others_share", "cpu_pressure_share", "memory_pressure_share")
THROTTLE_BITS = 0xF
MEMBERS_NAMED = 5
_LARGEST = sys.float_info.max
# What to do about each taint before measuring again; words for people, in the order in which they are given.
REMEDIES: dict[str, str] = {
    "undervolted": "use a stronger power supply",
    "throttled": "cool the board (heatsink, fan)",
    "slowed_clock": "hold its clock (--tune)",
    "contended": "stop what else runs there",
    "noisy": "stop what else runs there",
    "frozen": "find what stopped the process",
    "stolen": "measure on a machine that is not shared",
    "swapped": "free memory",
    "memory_pressure": "free memory",
}


def quality(evaluations: Iterable[Evaluation], entries: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """Sums over a run's processes in the ledger's order, and the number of flagged `entries` (frontier members).

    Shares are means over processes. None where no process recorded anything of the kind.
    """
    known = [one for one in evaluations if mapping(one.conditions.get("quality")) or _health(one)]
    if not known:
        return None
    gates = [gate for one in known if (gate := mapping(one.conditions.get("quality")))]
    sensors = [sensor for one in known if (sensor := _health(one))]
    judged = [one for one in known if mapping(one.conditions.get("quality"))]
    taints: Counter[str] = Counter()
    for gate in gates:
        taints.update({str(name): n for name, n in mapping(gate.get("taints")).items() if _is_count(n)})
    return {
        "n_processes": len(known),
        "n_samples": sum(len(one.samples.get(name, ())) for one in judged for name in LATENCIES) if judged else None,
        "n_disturbed": sum(map(_n_disturbed, judged)) if judged else None,
        "n_retried": _total(gates, "n_retried"),
        "taints": {name: n for name, n in sorted(taints.items(), key=lambda item: (-item[1], item[0])) if n},
        "n_flagged_members": sum(bool(taints_of(entry)) for entry in entries),
        "temperature_c_max": max(_numbers(sensors, "temperature_c", ("before", "max", "after")), default=None),
        "frequency_hz": _frequency(sensors),
        "throttle": _throttle(sensors),
        "governors": sorted({name for sensor in sensors if isinstance(name := sensor.get("governor"), str) and name}),
        **{name: _mean(gates, name) for name in SHARES},
        "swap_ins": _total(gates, "swap_ins"),
        "monitoring_s": _total(gates, "monitoring_s"),
    }


def taints_of(entry: Mapping[str, Any]) -> list[str]:
    """A member's flags that speak of a disturbance; notes are left out."""
    return [flag for flag in entry["flags"] if flag in TAINTS]


def strict_error(report: Mapping[str, Any]) -> StrictError | None:
    """What `--strict` says against a report: which members were disturbed, by what, what to do. None: nothing."""
    parts, seen = [], set()
    for run in report["runs"]:
        flagged = [(entry["arch_id"], taints_of(entry)) for entry in run["frontier"] if taints_of(entry)]
        if flagged:
            counts = Counter(taint for _, taints in flagged for taint in taints)
            seen |= set(counts)
            why = ", ".join(f"{n} {render.flag_words([taint])}" for taint, n in counts.most_common())
            named = ", ".join(arch_id for arch_id, _ in flagged[:MEMBERS_NAMED])
            more = f" and {len(flagged) - MEMBERS_NAMED} more" if len(flagged) > MEMBERS_NAMED else ""
            n_all = len(run["frontier"])
            parts.append(
                f"{run['run_id']}: {len(flagged)} of {n_all} frontier members were disturbed while they were measured "
                f"({why}): {named}{more}"
            )
    if not parts:
        return None
    remedies = list(dict.fromkeys(words for taint, words in REMEDIES.items() if taint in seen))
    return StrictError(
        f"{'; '.join(parts)}; next: {', '.join(remedies)}; edge-lts doctor says what disturbs a board; edge-lts resume "
        "measures members again while budget is left"
    )


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object that a board recorded; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """A finite number that a board recorded; None for anything else."""
    # Not math.isfinite: that raises OverflowError for an integer beyond the largest float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def _health(evaluation: Evaluation) -> Mapping[str, Any]:
    return mapping(evaluation.conditions.get("health"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _n_disturbed(evaluation: Evaluation) -> int:
    tainted = mapping(mapping(evaluation.conditions["quality"]).get("tainted_samples"))
    found = 0
    for name in LATENCIES:
        indexes = tainted.get(name)
        n_samples = len(evaluation.samples.get(name, ()))
        if isinstance(indexes, list):
            found += len({index for index in indexes if _is_count(index) and index < n_samples})
    return found


def _total(records: Iterable[Mapping[str, Any]], key: str) -> float | None:
    known = [value for record in records if (value := number(record.get(key))) is not None]
    total = sum(known)
    return None if not known else int(total) if total == int(total) else total


def _mean(records: Iterable[Mapping[str, Any]], key: str) -> float | None:
    known = [value for record in records if (value := number(record.get(key))) is not None]
    return sum(known) / len(known) if known else None


def _numbers(sensors: Iterable[Mapping[str, Any]], key: str, names: Sequence[str]) -> list[float]:
    found = [number(mapping(sensor.get(key)).get(name)) for sensor in sensors for name in names]
    return [value for value in found if value is not None]


def _frequency(sensors: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The slowest clock while sampling and the fastest at any time: before sampling a board may idle."""
    slowest = _numbers(sensors, "frequency_hz", ("min",))
    fastest = _numbers(sensors, "frequency_hz", ("before", "min", "after"))
    return {"min": min(slowest), "max": max(fastest)} if slowest else None


def _throttle(sensors: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Bits 0 to 3 of the firmware (undervoltage, capped, throttled, soft limit): seen while sampling (`now`), set since
    the run's first reading (`since`), set before that (`before`). Without a `source` a board cannot say that all was
    well, only that something was not."""

    def bits(record: Mapping[str, Any], key: str) -> int:
        value = record.get(key)
        return value & THROTTLE_BITS if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

    found = [mapping(sensor.get("throttle")) for sensor in sensors]
    records = [one for one in found if one.get("source") or any(bits(one, key) for key in ("now", "before", "after"))]
    if not records:
        return None
    first = bits(records[0], "before")
    now = since = 0
    for record in records:
        now |= bits(record, "now")
        since |= bits(record, "after") & ~bits(record, "before") | bits(record, "after") & ~first
    source = next((str(record["source"]) for record in records if record.get("source")), None)
    return {"now": now, "since": since, "before": first, "source": source}

"""Runs to one report as plain data (design §7, JSON of `report`). Knows records, not transports; formats nothing.

The frontier is computed here from the ledger with the board's own code, so a run that is still going on, or whose
frontier.json never arrived, is reported as far as its ledger goes. Beyond the keys of the contract each run says its
`state`, `spent_s`, `n_failed`, `failures`, the `protocol` with its threads resolved, `is_emulated`, `warnings`,
`health` (what the frontier says of its space, see `health`), `quality` (how undisturbed it measured, see `quality`),
`drift` (how the machine's speed moved), `energy` (the meters), `energy_rejected` (records that a meter on the
workstation gave no value for, by reason), `rank_changes` (who would stand elsewhere on one thread),
`proxy` (which calibrated proxy gave `quality`; null without), `knees` (beyond whom more size costs much more, see
`knees`), `boards` (of a pool), `baselines` (see there), `own_cost`
and `certificates` (how much faster anything in the space could be, of guided runs); each member its `split` and
`energy`. `comparable` lists the runs that measured in the same way: numbers of runs in different lists are never
compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, LedgerError
from edge_lts.footprint import cache_bytes, place_bytes, precision_of
from edge_lts.frontier import Member, members
from edge_lts.objectives import QUALITY
from edge_lts.records import DeviceInfo, Evaluation, Failure, Outcome, Protocol, RunSpec, central
from edge_lts.speed import MIN_PROCESSES, anchors_of, at_pool_speed
from edge_lts.stats import median, quantile
from edge_lts_host.report.baselines import baselines
from edge_lts_host.report.decode_time import rank_changes
from edge_lts_host.report.energy import add_energy, workstation_values
from edge_lts_host.report.health import genes_of, health
from edge_lts_host.report.knees import knees
from edge_lts_host.report.own_cost import own_cost
from edge_lts_host.report.proxy import extrapolated
from edge_lts_host.report.proxy import facts as proxy_facts
from edge_lts_host.report.quality import quality
from edge_lts_host.store import RunFolder

REPORT_SCHEMA_VERSION = 1
# Above this share outside the decoder, the frontier is more about the vocabulary than about the decoder's shape.
OUTSIDE_LIMIT = 0.4
PARTS = ("embedding", "head", "decoder", "cache")


def build_report(
    folders: Sequence[RunFolder], *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The report of these runs, oldest first, each once. Imports numpy. Raises what a damaged folder raises.

    `on_progress` hears of runs read, of runs there are.
    """
    unique = {folder.path: folder for folder in folders}
    runs: list[dict[str, Any]] = []
    for folder in sorted(unique.values(), key=lambda folder: (folder.run_id, folder.path)):
        on_progress(len(runs), len(unique))
        runs.append(report_run(folder))
    on_progress(len(runs), len(runs))
    return {"schema_version": REPORT_SCHEMA_VERSION, "runs": runs, "comparable": _comparable(runs)}


def report_run(folder: RunFolder, *, has_certificates: bool = True) -> dict[str, Any]:
    """One entry of `runs`. Certificates cost a solution of the space, seconds in a large one; without, they are []."""
    spec = folder.read_spec()
    if spec.run_id != folder.run_id:
        raise LedgerError(f"{folder.path} holds the run {spec.run_id}; rename the folder to that")
    device = folder.read_device()
    outcomes = folder.outcomes()
    status = folder.status()
    meta = folder.host_meta()
    protocol = resolved_protocol(spec, outcomes)
    found = members(outcomes, spec.resolved_objectives, spec.constraints)
    found.sort(key=_sort_key(spec))
    definite = [member for member in found if not member.probably_dominated]
    entries = [_entry(member, protocol, outcomes) for member in found]
    evaluations = [outcome for outcome in outcomes if isinstance(outcome, Evaluation)]
    from_workstation, rejected = workstation_values(folder)
    meters = add_energy(entries, evaluations, from_workstation)
    searched = [outcome for outcome in outcomes if outcome.purpose == "search"]
    failures = Counter(outcome.kind for outcome in searched if isinstance(outcome, Failure))
    is_emulated = spec.is_emulated or bool(device is not None and device.is_emulated)
    board = None if device is None else device.to_json()
    spent_s = _spent(outcomes, status)
    is_calibrated = QUALITY in spec.objectives
    return {
        "run_id": spec.run_id,
        "target": spec.target,
        "host": _text(meta.get("host")),
        "boards": _boards(meta),
        "device": board,
        "spec": spec.to_json(),
        "state": _text(status.get("state")) or "unknown",
        "updated_at": _text(status.get("updated_at")),
        "reasons": [str(reason) for reason in status.get("reasons", []) if isinstance(reason, str)],
        "protocol": protocol.to_json(),
        "is_emulated": is_emulated,
        "spent_s": spent_s,
        "own_cost": own_cost(folder, spec, outcomes, spent_s),
        "n_measured": sum(isinstance(outcome, Evaluation) for outcome in searched),
        "n_failed": sum(failures.values()),
        "failures": dict(sorted(failures.items())),
        "warnings": _warnings(entries),
        "quality": quality(evaluations, entries),
        "drift": _drift(outcomes),
        "energy": meters,
        "energy_rejected": rejected,
        "rank_changes": rank_changes(entries),
        "certificates": _certificates(spec, device, outcomes, protocol, definite) if has_certificates else [],
        "health": health(
            [member.architecture for member in definite], genes_of(spec.space), is_calibrated=is_calibrated
        )
        + extrapolated([entry for entry in entries if not entry["probably_dominated"]]),
        "proxy": proxy_facts(spec),
        "knees": knees(entries, spec.resolved_objectives, board),
        "baselines": baselines(spec, outcomes, entries, board, is_emulated=is_emulated),
        "frontier": entries,
    }


def _boards(meta: Mapping[str, Any]) -> list[str]:
    """The boards of a pool; [] for a run on one."""
    pool = meta.get("pool")
    boards = pool.get("boards") if isinstance(pool, Mapping) else None
    found = [one.get("name") for one in boards if isinstance(one, Mapping)] if isinstance(boards, list) else []
    return [name for name in found if isinstance(name, str) and name]


def _drift(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Per anchor: processes, median seconds, 10th and 90th percentile over the run's processes; in a pool at the speed
    of its boards together, so that slower boards are no drift."""
    seen: dict[str, list[float]] = {}
    for outcome in outcomes:
        if not isinstance(outcome, Evaluation) or outcome.purpose == "baseline":  # whose anchors may be others
            continue
        for name, seconds in anchors_of(at_pool_speed(outcome)).items():
            seen.setdefault(name, []).append(seconds)
    return {
        name: {
            "n": len(values),
            "median_s": median(values),
            "p10_s": quantile(values, 0.1),
            "p90_s": quantile(values, 0.9),
        }
        for name, values in seen.items()
        if len(values) >= MIN_PROCESSES
    }


def _certificates(
    spec: RunSpec, device: DeviceInfo | None, outcomes: Sequence[Outcome], protocol: Protocol, found: Sequence[Member]
) -> list[dict[str, Any]]:
    if spec.strategy != "guided" or not found:
        return []
    from edge_lts_host.report.certificate import certificates

    measured = [
        (
            member.architecture,
            {
                name: float(number)
                for name, value in member.objectives.items()
                if (number := central(value)) is not None
            },
        )
        for member in found
    ]
    return [item.to_json() for item in certificates(spec, device, outcomes, protocol, measured)]


def resolved_protocol(spec: RunSpec, outcomes: Sequence[Outcome]) -> Protocol:
    """The protocol as it was measured: `threads` 0 replaced by what the first measurement recorded."""
    if spec.protocol.threads == 0:
        for outcome in outcomes:
            threads = outcome.conditions.get("threads") if isinstance(outcome, Evaluation) else None
            if isinstance(threads, int) and not isinstance(threads, bool) and threads > 0:
                return replace(spec.protocol, threads=threads)
    return spec.protocol


def bytes_split(architecture: Architecture, protocol: Protocol) -> dict[str, int]:
    """Bytes by place, from the formula: weights, and the cache at the depth at which decoding is timed.

    A tied head is the embedding's table and counts there; positions count as embedding.
    """
    precision = precision_of(architecture, protocol)
    places = place_bytes(architecture, precision)
    return {
        "embedding": places["embedding"] + places["position"],
        "head": places["head"],
        "decoder": places["decoder"],
        "cache": cache_bytes(architecture, protocol.context_tokens, precision),
    }


def outside_share(split: Mapping[str, float]) -> float:
    """The share of the whole that is embedding and head."""
    total = sum(split.values())
    return (split["embedding"] + split["head"]) / total if total else 0.0


def _entry(member: Member, protocol: Protocol, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    split: dict[str, Any] = {"bytes": bytes_split(member.architecture, protocol)}
    decode_s = _decode_split(member.arch_id, outcomes)
    if decode_s is not None:
        split["decode_s"] = decode_s
    return {**member.to_json(), "split": split}


def _decode_split(arch_id: str, outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """Seconds of a decoded token by place, where the profiler recorded them in `conditions.decode_split_s`."""
    for outcome in outcomes:
        if isinstance(outcome, Evaluation) and outcome.architecture.arch_id == arch_id:
            parts = outcome.conditions.get("decode_split_s")
            if isinstance(parts, Mapping) and all(isinstance(parts.get(part, 0.0), (int, float)) for part in PARTS):
                return {part: float(parts.get(part, 0.0)) for part in PARTS}
    return None


def _warnings(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    for kind, words in (("bytes", "bytes"), ("decode_s", "decode time")):
        splits = [entry["split"][kind] for entry in entries if kind in entry["split"]]
        n_outside = sum(outside_share(split) > OUTSIDE_LIMIT for split in splits)
        if n_outside:
            warnings.append(
                f"in {n_outside} of {len(splits)} members more than {OUTSIDE_LIMIT:.0%} of the {words} is embedding "
                "and head: a smaller vocabulary may gain more than another decoder"
            )
    return warnings


def _sort_key(spec: RunSpec) -> Any:
    """Smallest loss last: along the run's first objective from its worst value to its best."""
    first = spec.resolved_objectives[0]

    def key(member: Member) -> tuple[float, str]:
        value = central(member.objectives.get(first.name))
        return (-first.loss(value) if value is not None else 0.0, member.arch_id)

    return key


def _spent(outcomes: Sequence[Outcome], status: Mapping[str, Any]) -> float:
    spent = status.get("spent_s")
    said = float(spent) if isinstance(spent, (int, float)) and not isinstance(spent, bool) and spent >= 0 else 0.0
    return max([said, *(outcome.spent_s for outcome in outcomes)])


def _comparable(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        try:
            key = Protocol.from_json(run["protocol"]).comparison_key
        except EdgeLtsError as exc:
            raise LedgerError(f"{run['run_id']}: {exc}") from exc
        groups.setdefault(key, []).append(run["run_id"])
    return list(groups.values())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

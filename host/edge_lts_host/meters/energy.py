"""Energy per token of a run that a meter on this machine watched: from meter.jsonl and the ledger's windows.

    J/token = (mean power while busy - mean power while idle) x seconds busy / tokens

Idle power is measured right beside, subtracted, and stated. `ci95` covers how power moved within the two windows and
what the alignment's uncertainty can change; it does not cover the meter's calibration. The result is derived: it is
stored as energy.json, and worked out again whenever ledger or recording have grown.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.records import Evaluation, Measurement, Outcome
from edge_lts.stats import ci95_of_median, median
from edge_lts_host.meters import ENERGY
from edge_lts_host.meters.alignment import (
    Alignment,
    Interval,
    Limits,
    Rejection,
    Series,
    Windows,
    align,
    largest_gap,
    mean_power,
)
from edge_lts_host.meters.recorder import LOG_VERSION, METER_LOG
from edge_lts_host.store import RunFolder

if TYPE_CHECKING:
    from typing import TypeGuard

ENERGY_FILE = "energy.json"
ENERGY_VERSION = 1
MAX_DRIFT = 0.10  # of idle power, in terms of what the load adds, as on the board
# How much later than it was written a board's status may be seen at best: its heartbeat, our polling, the link.
_LATE_S = 20.0
_LARGEST = sys.float_info.max
# Student's 97.5 % quantile by degrees of freedom.
_T975 = (math.inf, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The readings of one boot of this machine, with what is known of the meter and of the board's clock."""

    boot_id: str
    meter: str
    model: str
    scope: str
    readings: list[tuple[float, float]] = field(default_factory=list)
    marks: dict[str, list[float]] = field(
        default_factory=dict
    )  # board's boot -> (our clock - its clock), each too large
    n_errors: int = 0

    @property
    def name(self) -> str:
        return self.model or self.meter


def read_log(path: Path) -> list[Recording]:
    """The recordings of a meter.jsonl, by boot of this machine; [] when there is none.

    Lines that are torn or make no sense are left out; meters are not mixed either: a header with another model or scope
    begins another recording.
    """
    found: dict[tuple[str, str, str, str], Recording] = {}
    current: Recording | None = None
    for record in _lines(path):
        kind = record.get("kind")
        if kind == "header":
            if record.get("schema_version") != LOG_VERSION:
                current = None
                continue
            boot, meter, model, scope = (str(record.get(key, "")) for key in ("boot_id", "meter", "model", "scope"))
            current = found.setdefault(
                (boot, meter, model, scope), Recording(boot_id=boot, meter=meter, model=model, scope=scope)
            )
        elif current is not None and kind is None:
            t_s, power_w = record.get("t_s"), record.get("power_w")
            if _is_number(t_s) and _is_number(power_w):
                current.readings.append((float(t_s), float(power_w)))
        elif current is not None and kind == "clock":
            t_s, board_s, boot_id = record.get("t_s"), record.get("board_s"), record.get("boot_id")
            if _is_number(t_s) and _is_number(board_s) and isinstance(boot_id, str):
                current.marks.setdefault(boot_id, []).append(float(t_s) - float(board_s))
    return [recording for recording in found.values() if recording.readings]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record
    except FileNotFoundError:
        return


def _is_number(value: object) -> TypeGuard[float]:
    # Not math.isfinite: that raises OverflowError for an integer beyond the largest float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def search_ranges(recording: Recording, windows: Sequence[Windows]) -> list[Interval]:
    """Offsets to try for windows of one boot of the board, the likeliest first; the last: wherever they fit."""
    boot = windows[0].boot_id
    if boot is None and len(recording.marks) == 1:  # an agent that does not say, and only one boot was seen
        boot = next(iter(recording.marks))
    first_s, last_s = recording.readings[0][0], recording.readings[-1][0]
    starts, ends = [item.span[0] for item in windows], [item.span[1] for item in windows]
    whole = (first_s - max(starts), last_s - min(ends))
    ranges: list[Interval] = []
    if boot is not None and boot == recording.boot_id:
        ranges.append((-1.0, 3.0))  # the board is this machine: what is left is the meter's delay
    marks = recording.marks.get(boot, []) if boot is not None else []
    if marks:
        ranges.append((min(marks) - _LATE_S, min(marks) + 3.0))
    return [*ranges, (min(whole), max(whole))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules per token of one record, and under which conditions."""

    value: Measurement
    conditions: dict[str, Any]


def measure(windows: Windows, series: Series, where: Alignment, limits: Limits) -> tuple[Measurement, dict[str, Any]]:
    """Energy per token from aligned readings. Raises Rejection."""
    offset_s, delta_s = where.offset_s, where.uncertainty_s
    for name, (low, high), least in (
        ("busy", windows.busy, limits.min_busy_s),
        ("idle", windows.idle, limits.min_idle_s),
        *((("idle", windows.idle_after, limits.min_idle_s),) if windows.idle_after is not None else ()),
    ):
        if high - low < least:
            raise Rejection(reason="too_short", detail=f"{high - low:.1f} s {name}, less than {least:g} s")
        gap_s = largest_gap(series, low + offset_s, high + offset_s)
        if gap_s > limits.max_gap_s:
            raise Rejection(reason="gap", detail=f"{gap_s:.1f} s without a reading while {name}")

    def inside(interval: Interval, shift_s: float = 0.0) -> tuple[float, list[float], int]:
        low, high = windows.settled(interval, limits.settle_s)
        return mean_power(series, low + offset_s + delta_s + shift_s, high + offset_s - delta_s + shift_s)

    def idle(shift_s: float = 0.0) -> tuple[float, list[float], int, float]:
        """As `inside`, before and after put together, and by how much the two differ."""
        mean_w, parts, n = inside(windows.idle, shift_s)
        if windows.idle_after is None:
            return mean_w, parts, n, 0.0
        after_w, _, n_after = inside(windows.idle_after, shift_s)
        if n_after < 2:
            return mean_w, parts, n, 0.0
        return (mean_w + after_w) / 2, parts, n + n_after, abs(after_w - mean_w)

    busy_w, busy_parts, n_busy = inside(windows.busy)
    idle_w, idle_parts, n_idle, drift_w = idle()
    if n_busy < limits.min_readings or n_idle < 2:
        raise Rejection(reason="too_short", detail=f"{n_busy} readings while busy and {n_idle} while idle are too few")
    above_w = busy_w - idle_w
    if above_w <= 0:
        raise Rejection(
            reason="not_above_idle", detail=f"{busy_w:.3f} W while busy is not above the idle {idle_w:.3f} W"
        )
    shifted = [inside(windows.busy, by)[0] - idle(by)[0] for by in (-delta_s, delta_s)]
    half_w = math.hypot(_half_width(busy_parts), _half_width(idle_parts)) + drift_w / 2
    half_w += max(abs(each - above_w) for each in shifted if math.isfinite(each))
    busy_s = windows.busy[1] - windows.busy[0]
    per_token = busy_s / windows.n_tokens
    parts = [(part - idle_w) * per_token for part in busy_parts]
    value = Measurement(
        median=above_w * per_token,
        mad=median([abs(part - above_w * per_token) for part in parts]) if len(parts) > 1 else None,
        ci95=((above_w - half_w) * per_token, (above_w + half_w) * per_token) if math.isfinite(half_w) else None,
        n=n_busy,
    )
    conditions = {
        "idle_w": round(idle_w, 5),
        "busy_w": round(busy_w, 5),
        "n_tokens": windows.n_tokens,
        "window_s": round(busy_s, 3),
        "n_readings": n_busy + n_idle,
        "alignment": where.to_json(),
        "notes": ["idle_drift"] if drift_w > MAX_DRIFT * above_w else [],
    }
    return value, conditions


def _half_width(parts: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, from means of its parts."""
    n = len(parts)
    if n < 2:
        return math.inf
    mean = sum(parts) / n
    spread = math.sqrt(sum((part - mean) ** 2 for part in parts) / (n - 1))
    return _T975[n - 1] * spread / math.sqrt(n)


def energies(
    windows_by_key: Mapping[int, object], recordings: Sequence[Recording], limits: Limits | None = None
) -> dict[int, Energy | Rejection]:
    """For each key, the energy of what its record's conditions["energy"] describes, or why there is none."""
    rules = limits or Limits()
    found: dict[int, Energy | Rejection] = {}
    groups: dict[str | None, dict[int, Windows]] = {}
    for key, described in windows_by_key.items():
        try:
            windows = Windows.from_json(described.get("windows") if isinstance(described, Mapping) else None)
        except Rejection as exc:
            found[key] = exc
            continue
        groups.setdefault(windows.boot_id, {})[key] = windows
        found[key] = Rejection(reason="no_readings", detail="the meter was not recorded")
    for group in groups.values():
        for recording in recordings:
            series = Series.of(recording.readings)
            places = align(list(group.values()), series, search_ranges(recording, list(group.values())), rules)
            for (key, windows), place in zip(group.items(), places, strict=True):
                before = found[key]
                if isinstance(before, Rejection) and before.reason == "no_readings":
                    found[key] = _one(windows, series, place, recording, rules)
    return found


def _one(
    windows: Windows, series: Series, place: Alignment | Rejection, recording: Recording, limits: Limits
) -> Energy | Rejection:
    if isinstance(place, Rejection):
        return place
    try:
        value, conditions = measure(windows, series, place, limits)
    except Rejection as exc:
        return exc
    return Energy(value=value, conditions={"meter": recording.name, "scope": recording.scope, **conditions})


# What a run's folder holds --------------------------------------------------------------------------------------------


def compute(folder: RunFolder, limits: Limits | None = None) -> dict[str, Any]:
    """energy.json: per ledger record with energy windows its value, or the reason why it has none."""
    outcomes = folder.outcomes()
    described = {index: energy for index, outcome in enumerate(outcomes) if (energy := _described(outcome)) is not None}
    found = energies(described, read_log(folder / METER_LOG), limits)
    records = []
    for index, result in sorted(found.items()):
        entry: dict[str, Any] = {
            "index": index,
            "candidate_id": outcomes[index].candidate_id,
            "arch_id": outcomes[index].architecture.arch_id,
            "purpose": outcomes[index].purpose,
        }
        if isinstance(result, Energy):
            entry.update(value=result.value.to_json(), conditions=result.conditions, rejected=None)
        else:
            entry.update(value=None, conditions={}, rejected={"reason": result.reason, "detail": result.detail})
        records.append(entry)
    return {"schema_version": ENERGY_VERSION, "of": _sizes(folder), "records": records}


def _described(outcome: Outcome) -> Mapping[str, Any] | None:
    energy = outcome.conditions.get("energy") if isinstance(outcome, Evaluation) else None
    return energy if isinstance(energy, Mapping) and "windows" in energy else None


def _sizes(folder: RunFolder) -> dict[str, int]:
    return {name: path.stat().st_size for name in ("ledger.jsonl", METER_LOG) if (path := folder / name).is_file()}


def load(folder: RunFolder) -> dict[str, Any]:
    """energy.json, worked out anew if the ledger or the recording have changed since; {} without a recording."""
    if not (folder / METER_LOG).is_file():
        return {}
    path = folder / ENERGY_FILE
    try:
        stored = json.loads(path.read_bytes())
        if stored.get("schema_version") == ENERGY_VERSION and stored.get("of") == _sizes(folder):
            return dict(stored)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    data = compute(folder)
    try:
        from edge_lts_host.store import write_atomic

        write_atomic(path, json.dumps(data, indent=1, allow_nan=False).encode("ascii") + b"\n")
    except OSError:
        pass  # a folder that may only be read is reported all the same
    return data


def energy_of(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """By arch_id: `value` (Measurement JSON), `meter`, `scope`, `idle_w`, `notes`, `n_windows`; {} without a recording.

    Several records of one architecture (its search and its confirmations) are put together: the median of their values,
    with an interval that holds all of theirs, or their own from six on.
    """
    by_arch: dict[str, list[dict[str, Any]]] = {}
    for record in load(folder).get("records", []):
        if record["value"] is not None:
            by_arch.setdefault(record["arch_id"], []).append(record)
    return {arch_id: _together(records) for arch_id, records in by_arch.items()}


def rejections(folder: RunFolder) -> dict[str, int]:
    """How many records of a run have no energy, by reason."""
    found: dict[str, int] = {}
    for record in load(folder).get("records", []):
        if record["rejected"]:
            found[record["rejected"]["reason"]] = found.get(record["rejected"]["reason"], 0) + 1
    return found


def _together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [Measurement.from_json(record["value"]) for record in records]
    conditions = records[-1]["conditions"]
    centres = [value.median for value in values]
    intervals = [value.ci95 for value in values if value.ci95 is not None]
    hull = (min(low for low, _ in intervals), max(high for _, high in intervals)) if intervals else None
    value = (
        values[0]
        if len(values) == 1
        else Measurement(
            median=median(centres),
            mad=median([abs(each - median(centres)) for each in centres]),
            ci95=ci95_of_median(centres) or hull,
            n=len(centres),
        )
    )
    return {
        "value": value.to_json(),
        "meter": conditions["meter"],
        "scope": conditions["scope"],
        "idle_w": median([record["conditions"]["idle_w"] for record in records]),
        "notes": sorted({note for record in records for note in record["conditions"]["notes"]}),
        "n_windows": len(records),
    }


def with_energy(record: Mapping[str, Any], log: Path, limits: Limits | None = None) -> dict[str, Any]:
    """A ledger record, as `measure` got it from the board, with the energy that the recording in `log` gives it.

    Where it gives none, conditions["energy"]["rejected"] says why.
    """
    described = record.get("conditions", {}).get("energy")
    result = energies({0: described}, read_log(log), limits)[0]
    if isinstance(result, Rejection):
        added: dict[str, Any] = {"rejected": {"reason": result.reason, "detail": result.detail}}
        values = record.get("objectives", {})
    else:
        added = dict(result.conditions)
        values = {**record.get("objectives", {}), ENERGY: result.value.to_json()}
    kept = described if isinstance(described, Mapping) else {}
    if isinstance(described, Mapping) and isinstance(described.get("notes"), list) and "notes" in added:
        added["notes"] = [*described["notes"], *added["notes"]]
    return {**record, "objectives": values, "conditions": {**record["conditions"], "energy": {**kept, **added}}}

"""Whether two measured values differ: the interval of each, their ratio, and when nothing may be said.

Values here are JSON as reports hold them. The interval to compare occasions with is `pi95`. A member without one (fewer
than three processes) borrows the relative width that the others of its run have: spread between processes belongs to
the board far more than to the candidate. Where a run has no `pi95` at all, there is only `ci95`, which speaks of one
occasion: it is shown, and no difference is claimed from it.

A difference is claimed only where the intervals are apart. A ratio's interval is made of their ends, so it is wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edge_lts.stats import median
from edge_lts_host.report.quality import mapping, number

MIB = 1 << 20
# The kernel batches its counters of resident pages per core (docs/measurement.md, Memory).
_BATCHED_PAGES = 64

Widths = Mapping[str, tuple[float, float]]


class Bounds(NamedTuple):
    """Where a value lies. `kind`: exact, pi95, borrowed, resolution, or ci95 (then nothing follows from it)."""

    low: float
    high: float
    kind: str

    @property
    def is_firm(self) -> bool:
        return self.kind != "ci95"

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "kind": self.kind}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Bounds | None:
        return None if data is None else cls(data["low"], data["high"], data["kind"])


def centre(value: Any) -> float | None:
    """The number to compare by, of an exact, a measured or an estimated value (by its lower bound)."""
    if isinstance(value, Mapping):
        return number(value.get("median", value.get("low")))
    return number(value)


def usual_widths(entries: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """By objective: how far `pi95` reaches below and above the median (logarithms), the median over those with one."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry["objectives"].items():
            pair = _interval(value, "pi95")
            middle = centre(value)
            if pair is not None and middle is not None and 0 < pair[0] <= middle <= pair[1]:
                found.setdefault(name, []).append((math.log(middle / pair[0]), math.log(pair[1] / middle)))
    return {
        name: (median([low for low, _ in pairs]), median([high for _, high in pairs])) for name, pairs in found.items()
    }


def bounds(name: str, value: Any, widths: Widths, device: Mapping[str, Any] | None = None) -> Bounds | None:
    """The interval of objective `name`; None where there is no value, or a single reading of unknown precision."""
    middle = centre(value)
    if middle is None:
        return None
    if not isinstance(value, Mapping) or "mean" in value:  # of an estimate: the bound that it is compared by
        return Bounds(middle, middle, "exact")
    pair = _interval(value, "pi95")
    if pair is not None:
        return Bounds(*pair, "pi95")
    own = _interval(value, "ci95")
    if name in widths and middle > 0:
        low, high = widths[name]
        reach = (middle * math.exp(-low), middle * math.exp(high))
        return Bounds(
            min(reach[0], own[0]) if own else reach[0], max(reach[1], own[1]) if own else reach[1], "borrowed"
        )
    if name == "peak_memory_bytes":
        margin = resolution_bytes(device)
        return Bounds(middle - margin, middle + margin, "resolution")
    return None if own is None else Bounds(*own, "ci95")


def resolution_bytes(device: Mapping[str, Any] | None) -> float:
    """How far off a single reading of resident memory may be on that device."""
    cores, page = number(mapping(device).get("n_cores")), number(mapping(device).get("page_size_bytes"))
    return _BATCHED_PAGES * cores * page if cores and page else float(MIB)


def ratio(value: float, its: Bounds | None, to: float, of: Bounds | None) -> dict[str, Any] | None:
    """`value` over `to` with its interval; `is_different` None where the intervals don't allow to say."""
    if to <= 0 or value <= 0:
        return None
    found: dict[str, Any] = {"ratio": value / to, "low": None, "high": None, "is_different": None}
    if its is None or of is None or its.low <= 0 or of.low <= 0:
        return found
    low, high = its.low / of.high, its.high / of.low
    return {**found, "low": low, "high": high, "is_different": not low <= 1 <= high if is_firm(its, of) else None}


def is_firm(*found: Bounds | None) -> bool:
    """Whether a difference may be claimed from these."""
    return all(one is not None and one.is_firm for one in found)


def _interval(value: Any, kind: str) -> tuple[float, float] | None:
    pair = mapping(value).get(kind)
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return None if low is None or high is None else (low, high)

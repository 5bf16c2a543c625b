"""What an objective's value may be: exact, measured with spread and intervals, or estimated. Stored by
`edge_lts.records`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_lts.errors import EdgeLtsError, LedgerError

SCHEMA_VERSION = 1  # of all that a run leaves behind

Interval = tuple[float, float]
_LARGEST = sys.float_info.max


def check_schema(what: str, data: Mapping[str, Any], error: type[EdgeLtsError]) -> None:
    """Refuse a record without a version, or with a version newer than this code."""
    version = data.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise error(f"{what} has no usable schema_version (found {version!r:.40})")
    if version > SCHEMA_VERSION:
        raise error(
            f"{what} has schema_version {version}; this edge-lts reads up to {SCHEMA_VERSION}: upgrade edge-lts"
        )


def number(what: str, value: object, error: type[EdgeLtsError]) -> float:
    # Not math.isfinite: that raises OverflowError for an integer beyond the largest float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
        raise error(f"{what} must be a finite number, not {value!r:.40}")
    return value


def interval(what: str, value: object, error: type[EdgeLtsError]) -> Interval | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise error(f"{what} must be [low, high] or null, not {value!r:.80}")
    low, high = (number(what, bound, error) for bound in value)
    if low > high:
        raise error(f"{what} is the wrong way round: {low} > {high}")
    return (low, high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measured value: median of `n` samples, median absolute deviation, 95 % intervals (design §4).

    `ci95` speaks of this occasion: it covers the median that more samples now would approach. `pi95` is what a fresh
    process at another time would show; it needs at least three processes and is None otherwise. A single reading, such
    as a memory watermark, has n = 1 and neither.
    """

    median: float
    mad: float | None = None
    ci95: Interval | None = None
    pi95: Interval | None = None
    n: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "mad": self.mad,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "pi95": None if self.pi95 is None else list(self.pi95),
            "n": self.n,
        }

    @classmethod
    def from_json(cls, data: object) -> "Measurement":
        if not isinstance(data, Mapping):
            raise LedgerError(f"a measured value must be an object, not {data!r:.80}")
        n = data.get("n")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise LedgerError(f"n of a measured value must be a positive integer, not {n!r:.40}")
        mad = data.get("mad")
        return cls(
            median=number("median", data.get("median"), LedgerError),
            mad=None if mad is None else number("mad", mad, LedgerError),
            ci95=interval("ci95", data.get("ci95"), LedgerError),
            pi95=interval("pi95", data.get("pi95"), LedgerError),
            n=n,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value that nobody measured, with what is not known about it: each bound is one-sided and holds with 90 %.

    Two are compared by `low`, so that what is known badly has to promise more. `is_extrapolated`: the estimate speaks
    of an architecture unlike all that it was made from.
    """

    mean: float
    low: float
    high: float
    is_extrapolated: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "is_extrapolated": self.is_extrapolated}

    @classmethod
    def from_json(cls, data: object) -> "Estimate":
        if not isinstance(data, Mapping) or not isinstance(data.get("is_extrapolated"), bool):
            raise LedgerError(f"an estimate must be an object with mean, low, high, is_extrapolated, not {data!r:.80}")
        bounds = interval("the bounds of an estimate", (data.get("low"), data.get("high")), LedgerError)
        assert bounds is not None
        mean = number("mean", data.get("mean"), LedgerError)
        return cls(mean=mean, low=bounds[0], high=bounds[1], is_extrapolated=data["is_extrapolated"])


# An objective's value: exact (a count), measured or estimated; None where this board cannot measure it.
Value = int | float | Measurement | Estimate | None


def value_to_json(value: Value) -> Any:
    return value.to_json() if isinstance(value, (Measurement, Estimate)) else value


def value_from_json(value: object) -> Value:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return Estimate.from_json(value) if "mean" in value else Measurement.from_json(value)
    return number("an objective", value, LedgerError)


def central(value: Value) -> float | None:
    """The number to compare by: the median of a measured value, the lower bound of an estimate, else the value."""
    if isinstance(value, Estimate):
        return value.low
    return value.median if isinstance(value, Measurement) else value

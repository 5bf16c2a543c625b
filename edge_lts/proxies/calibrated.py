"""Quality as a few trained models predict it: a value and an interval, a closed form of an architecture's shape.

A term is a logarithm x of the shape, less its mean over the labels, and one coefficient or more, each beside a curve

    s_b(x) = (1 - exp(-b x)) / b        s_0(x) = x

that flattens as a power law does: a loss falls by a power law in size (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10),
and what width is worth falls, too. Quality is the sum of all terms and a constant. Beyond the range that a term has in
the labels its curves go on along their tangents: that of size as it is, those of shape with a part of their slope.
    variance = z' C z + noise^2 + sum over terms of (spread * how far x lies beyond its labels)^2
with z all curves and C the covariance of their coefficients. The bounds are one-sided with 90 % each. Mean and lower
bound never fall when decoder_params grows and all else stays the same: a proxy that would break this is refused.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_lts.errors import SpecError
from edge_lts.proxies.shape import Shape
from edge_lts.values import check_schema, number

SCHEMA_VERSION = 1
CONFIDENCE = 0.9
Z = 1.2815515655446004  # the normal distribution's quantile for CONFIDENCE
UNITS = ("nats/token", "nats/byte")
SIZE = "decoder_params"
MAX_TERMS = 16
_LARGEST_LOG = 40.0  # of anything that is the logarithm of a count
_LARGEST = 1e6
_TOLERANCE = 1e-9  # of a slope: what writing numbers down may cost


def _log(value: Any) -> Any:
    import numpy as np

    return np.log(value)


# What a term is the logarithm of. All but the first stay as they are when an FFN grows.
TERMS: dict[str, Callable[[Shape], Any]] = {
    SIZE: lambda shape: _log(shape.decoder_params),
    "n_layer": lambda shape: _log(shape.n_layer),
    "d_model": lambda shape: _log(shape.d_model),
    "embedding_ratio": lambda shape: _log(shape.d_embed) - _log(shape.d_model),
    "n_head": lambda shape: shape.log_heads,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One logarithm and its curves. `low` and `high` are the labels' range, less `centre`.

    kept: the part of the slope that goes on beyond that range. The spreads are standard deviations per unit beyond it.
    """

    name: str
    exponents: tuple[float, ...]
    centre: float
    low: float
    high: float
    kept: float
    spread_below: float
    spread_above: float

    def __post_init__(self) -> None:
        if self.name not in TERMS:
            raise SpecError(f"unknown term of a proxy {self.name!r:.40}; known: {', '.join(TERMS)}")
        logs = (self.centre, self.low, self.high, self.spread_below, self.spread_above)
        if not all(abs(value) <= _LARGEST_LOG for value in logs) or not self.low <= self.high:
            raise SpecError(f"the term {self.name} of the proxy has an impossible range")
        if self.spread_below < 0 or self.spread_above < 0 or not 0 <= self.kept <= 1:
            raise SpecError(f"the term {self.name} of the proxy has an impossible spread")
        if not 1 <= len(self.exponents) <= MAX_TERMS or not all(0 <= exponent <= 4 for exponent in self.exponents):
            raise SpecError(f"the term {self.name} of the proxy needs exponents from 0 to 4")

    def columns(self, shape: Shape) -> tuple[list[Any], Any, Any]:
        """Its curves at `shape`, how far that lies beyond the labels (with sign), and the square of its spread."""
        import numpy as np

        x = TERMS[self.name](shape) - self.centre
        inside = np.clip(x, self.low, self.high)
        past = x - inside
        curves = [curve(inside, exponent) + self.kept * slope(inside, exponent) * past for exponent in self.exponents]
        return curves, past, (np.where(past > 0, self.spread_above, self.spread_below) * past) ** 2

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.__slots__} | {"exponents": list(self.exponents)}

    @classmethod
    def from_json(cls, data: object) -> "Term":
        if not isinstance(data, Mapping) or set(data) != set(cls.__slots__) or not isinstance(data["name"], str):
            raise SpecError(f"a term of a proxy must be an object with {', '.join(cls.__slots__)}, not {data!r:.80}")
        numbers = {key: _number(key, data[key]) for key in cls.__slots__ if key not in ("name", "exponents")}
        return cls(name=data["name"], exponents=_numbers("exponents", data["exponents"]), **numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedProxy:
    """What `calibrate` writes to proxy.json. Quality is negative log-perplexity: larger is better.

    `terms` begins with that of size, which has one curve. `coefficients` and `covariance`: the constant, then all
    curves in order. `source` says what it was fitted to, for people and for `validate`; nothing computes with it.
    """

    unit: str
    backbone: str | None
    terms: tuple[Term, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    noise: float
    source: Mapping[str, Any]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if not names or names[0] != SIZE or len(self.terms[0].exponents) != 1 or len(set(names)) != len(names):
            raise SpecError(f"a proxy's terms begin with {SIZE}, with one exponent, and name none twice")
        n = 1 + sum(len(term.exponents) for term in self.terms)
        if len(self.coefficients) != n or len(self.covariance) != n or any(len(row) != n for row in self.covariance):
            raise SpecError(f"these terms of a proxy need {n} coefficients and their covariance")
        if self.unit not in UNITS:
            raise SpecError(f"unknown unit of a proxy {self.unit!r:.40}; known: {', '.join(UNITS)}")
        values = (self.noise, *self.coefficients, *(value for row in self.covariance for value in row))
        if not all(abs(value) <= _LARGEST for value in values) or self.noise < 0:
            raise SpecError("a proxy's noise, coefficients and covariance must lie below a million")
        self._check_covariance()
        if not self.smallest_slope() >= -_TOLERANCE * abs(self.coefficients[1]):
            raise SpecError(f"the proxy's lower bound falls when {SIZE} grows")

    def _check_covariance(self) -> None:
        import numpy as np

        covariance = np.array(self.covariance)
        if not np.allclose(covariance, covariance.T, rtol=1e-9, atol=1e-15):
            raise SpecError("a proxy's covariance is not symmetric")
        eigenvalues = np.linalg.eigvalsh(covariance)
        if eigenvalues[0] < -1e-9 * max(float(eigenvalues[-1]), 1e-12):
            raise SpecError("a proxy's covariance has a negative variance")

    def smallest_slope(self) -> float:
        """A bound from below on what the lower bound gains per unit of ln decoder_params, anywhere.

        A standard deviation sqrt(z' C z + ...) grows by no more than that of the direction in which z moves, which is
        the slope of the one curve of size: between those at the ends of the labels, and there beside the spread.
        """
        size, coefficient, variance = self.terms[0], self.coefficients[1], max(0.0, self.covariance[1][1])
        found = math.inf
        for end, spread in ((size.low, size.spread_below), (size.high, size.spread_above)):
            steepness = math.exp(-size.exponents[0] * end)
            inside = steepness * (coefficient - Z * math.sqrt(variance))
            kept = size.kept * steepness
            beyond = kept * coefficient - Z * math.sqrt(kept**2 * variance + spread**2)
            found = min(found, inside, beyond)
        return found

    # --- predicting ---

    def predict(self, shape: Shape) -> tuple[Any, Any, Any]:
        """Mean, lower and upper bound; each a numpy number or array of the shape that `shape`'s fields broadcast to."""
        import numpy as np

        columns: list[Any] = [1.0]
        variance: Any = self.noise**2
        for term in self.terms:
            curves, _, spread = term.columns(shape)
            columns += curves
            variance = variance + spread
        mean: Any = 0.0
        for row, (coefficient, left) in enumerate(zip(self.coefficients, columns, strict=True)):
            mean = mean + coefficient * left
            across: Any = self.covariance[row][row] * left
            for column in range(row):
                across = across + 2 * self.covariance[row][column] * columns[column]
            variance = variance + across * left
        margin = Z * np.sqrt(np.maximum(variance, 0.0))
        return mean, mean - margin, mean + margin

    def quality(self, shape: Shape) -> Any:
        """The lower bound: what a search maximises."""
        return self.predict(shape)[1]

    def is_beyond(self, shape: Shape) -> Any:
        """Whether size or a term of shape lies beyond the range of the labels, as booleans."""
        found: Any = False
        for term in self.terms:
            found = found | (term.columns(shape)[1] != 0)
        return found

    # --- proxy.json ---

    @property
    def name(self) -> str:
        """What a person calls it, as `source` has it: the labels and their number."""
        return str(self.source.get("name", "calibrated"))[:80]

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON: which proxy this is."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "unit": self.unit,
            "backbone": self.backbone,
            "confidence": CONFIDENCE,
            "terms": [term.to_json() for term in self.terms],
            "coefficients": list(self.coefficients),
            "covariance": [list(row) for row in self.covariance],
            "noise": self.noise,
            "source": dict(self.source),
        }

    @classmethod
    def from_json(cls, data: object) -> "CalibratedProxy":
        """Raises SpecError, one line, for anything that is not a proxy this code can use."""
        if not isinstance(data, Mapping):
            raise SpecError(f"a proxy must be a JSON object, not {type(data).__name__}")
        check_schema("the proxy", data, SpecError)
        missing = [key for key in _KEYS if key not in data]
        if missing:
            raise SpecError(f"the proxy lacks {missing[0]!r}")
        if data["confidence"] != CONFIDENCE:
            raise SpecError(f"the proxy's confidence must be {CONFIDENCE}, not {data['confidence']!r:.40}")
        backbone, source = data["backbone"], data["source"]
        if backbone is not None and not isinstance(backbone, str):
            raise SpecError(f"the proxy's backbone must be a string or null, not {backbone!r:.40}")
        if not isinstance(source, Mapping):
            raise SpecError("the proxy's source must be an object")
        return cls(
            unit=data["unit"],
            backbone=backbone,
            terms=tuple(Term.from_json(term) for term in _items("terms", data["terms"])),
            coefficients=_numbers("coefficients", data["coefficients"]),
            covariance=tuple(_numbers("covariance", row) for row in _items("covariance", data["covariance"])),
            noise=_number("noise", data["noise"]),
            source=dict(source),
        )


_KEYS = ("unit", "backbone", "confidence", "terms", "coefficients", "covariance", "noise", "source")


def curve(x: Any, exponent: float) -> Any:
    """s_b of the module's docstring."""
    import numpy as np

    return -np.expm1(-exponent * x) / exponent if exponent else x


def slope(x: Any, exponent: float) -> Any:
    """Its derivative."""
    import numpy as np

    return np.exp(-exponent * x) if exponent else 1.0


def _number(name: str, value: object) -> float:
    return float(number(f"the proxy's {name}", value, SpecError))


def _items(name: str, value: object) -> Iterable[object]:
    if not isinstance(value, (list, tuple)) or not len(value) <= 4 * MAX_TERMS:
        raise SpecError(f"the proxy's {name} must be a list of at most {4 * MAX_TERMS}")
    return value


def _numbers(name: str, value: object) -> tuple[float, ...]:
    return tuple(_number(name, one) for one in _items(name, value))

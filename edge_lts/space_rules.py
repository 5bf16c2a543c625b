"""What a space file may say, as frozen values: the values of each gene, what is fixed, and the rules.

Every value is checked when it is read; the error is a SpaceError that names the key and says what to write instead. The
name of the file is added by whoever read the file. Nothing here knows whether the rules leave any member: see `space`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

from edge_lts.arch import DEFAULT_MAX_SEQ_LEN, DEFAULT_VOCAB_SIZE, MAX_DIMENSION, MAX_LAYERS, Architecture
from edge_lts.errors import ArchitectureError, SpaceError
from edge_lts.precision import PRECISIONS
from edge_lts.style import FAMILIES, STYLE_KEYS, checked

MAX_CHOICES = 4096
MAX_COUNT = 1 << 53

Side = Literal["low", "high"]

# Where decoder_params was shown to rank perplexity: rule -> its inclusive bounds (low, high); None where there is none.
#   decoder_params  0.4M to 100M: the panels of Javaheripi et al. 2022 (arXiv 2203.02094; data on branch neurips-lts of
#                   microsoft/archai) have 0.36M to 46M, their trained Pareto sets reach 100M
#   the others      the guard rails of our own spaces (docs/search.md), well inside those panels (d_model 64 to 512 with
#                   2, 4 or 8 heads, d_inner 512 to 2048, 2 to 16 layers), whose corners hold few models
VALIDATED: Mapping[str, tuple[int | None, int | None]] = {
    "decoder_params": (400_000, 100_000_000),
    "n_layer": (4, None),
    "d_head": (32, 128),
    "d_inner_over_d_model": (None, 8),
}

_RANGE_KEYS = ("min", "max", "step")
_INTEGER_BOUND_KEYS = ("at_least", "at_most")
_BOUND_KEYS = ("at_least", "above", "at_most", "below")


def check_keys(where: str, data: object, known: Iterable[str], required: Iterable[str] = ()) -> Mapping[str, Any]:
    """`data` as a mapping with no unknown and no missing key. Raises SpaceError naming the key."""
    if not isinstance(data, Mapping):
        raise SpaceError(f"{where} must be a table, not {data!r:.80}")
    known = tuple(known)
    for key in data:
        if key not in known:
            raise SpaceError(f"{where}: unknown key {key!r:.80}; known keys: {', '.join(known)}")
    for key in required:
        if key not in data:
            raise SpaceError(f"{where}: {key} is missing; add it")
    return data


def integer(key: str, value: object, *, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int:
    """An integer in [minimum, maximum]; 6e6 counts as one, 1.5, true and "8" do not. Raises SpaceError naming `key`."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpaceError(f"{key} must be an integer, not {value!r:.80}")
    if not minimum <= value <= maximum:
        raise SpaceError(f"{key} must lie between {minimum} and {maximum}, not {value!s:.40}")
    return value


def choices(key: str, data: object, *, maximum: int = MAX_DIMENSION) -> tuple[int, ...]:
    """A gene's values, ascending: from a list of integers, or from {min, max, step} with both ends included."""
    if isinstance(data, Mapping):
        check_keys(key, data, _RANGE_KEYS, required=("min", "max"))
        low = integer(f"{key}.min", data["min"], maximum=maximum)
        high = integer(f"{key}.max", data["max"], maximum=maximum)
        step = integer(f"{key}.step", data.get("step", 1), maximum=maximum)
        if low > high:
            raise SpaceError(f"{key}: min {low} exceeds max {high}; exchange them")
        if (high - low) % step:
            best = high - (high - low) % step
            raise SpaceError(f"{key}: step {step} does not lead from min {low} to max {high}; write max = {best}")
        if (high - low) // step >= MAX_CHOICES:
            raise SpaceError(f"{key} has more than {MAX_CHOICES} values; take a larger step")
        return tuple(range(low, high + 1, step))
    if not isinstance(data, list):
        raise SpaceError(f"{key} must be a list of integers or {{min, max, step}}, not {data!r:.80}")
    if not data:
        raise SpaceError(f"{key} is empty; give it at least one value")
    if len(data) > MAX_CHOICES:
        raise SpaceError(f"{key} has more than {MAX_CHOICES} values")
    values = sorted(integer(f"{key}[{index}]", value, maximum=maximum) for index, value in enumerate(data))
    for one, other in itertools.pairwise(values):
        if one == other:
            raise SpaceError(f"{key} lists {one} twice; remove one")
    return tuple(values)


def _choices_json(values: tuple[int, ...]) -> Any:
    steps = {high - low for low, high in itertools.pairwise(values)}
    if len(values) > 3 and len(steps) == 1:
        return {"min": values[0], "max": values[-1], "step": steps.pop()}
    return list(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A rule on a number: `at_least` and `at_most` include the bound, `above` and `below` do not. None leaves it open.

    A bound written as 1.7 means seventeen tenths exactly, not the nearest binary fraction.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def is_open(self) -> bool:
        return self == Bound()

    def allows(self, numerator: int, denominator: int = 1) -> bool:
        """Whether the ratio of two integers keeps the rule; exact."""
        value = Fraction(numerator, denominator)
        return (
            (self.at_least is None or value >= _exact(self.at_least))
            and (self.above is None or value > _exact(self.above))
            and (self.at_most is None or value <= _exact(self.at_most))
            and (self.below is None or value < _exact(self.below))
        )

    def __str__(self) -> str:
        return " and ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in self.to_json().items())

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _BOUND_KEYS if getattr(self, key) is not None}

    @classmethod
    def from_json(cls, key: str, data: object, *, is_integer: bool) -> "Bound":
        known = _INTEGER_BOUND_KEYS if is_integer else _BOUND_KEYS
        items = check_keys(key, data, known)
        if not items:
            raise SpaceError(f"{key} has no bound; give one of {', '.join(known)} or remove the rule")
        values: dict[str, float] = {}
        for name, value in items.items():
            if is_integer:
                values[name] = integer(f"{key}.{name}", value, minimum=0, maximum=MAX_COUNT)
            else:
                values[name] = _ratio(f"{key}.{name}", value)
        for one, other in (("at_least", "above"), ("at_most", "below")):
            if one in values and other in values:
                raise SpaceError(f"{key} gives both {one} and {other}; keep one")
        bound = cls(**values)
        low = bound.at_least if bound.at_least is not None else bound.above
        high = bound.at_most if bound.at_most is not None else bound.below
        is_strict = "above" in values or "below" in values
        if low is not None and high is not None and (low > high or (low == high and is_strict)):
            raise SpaceError(f"{key} excludes everything: {bound}; exchange or widen its bounds")
        return bound


def _exact(value: float) -> Fraction:
    return Fraction(str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Genes:
    """The values that each gene may take, ascending. `d_inner`, `n_head` and `n_kv_head` are chosen per layer.

    `d_embed`, `vocab_size`, `d_head` and what is in STYLE_KEYS are no genes without values: `Fixed` holds them. Neither
    is `n_kv_head`, then as n_head, nor `precision`: the protocol says which. Those that have names instead of numbers
    have no bounds and are not in GENE_KEYS.
    """

    n_layer: tuple[int, ...]
    d_model: tuple[int, ...]
    d_inner: tuple[int, ...]
    n_head: tuple[int, ...]
    d_embed: tuple[int, ...] = ()
    vocab_size: tuple[int, ...] = ()
    precision: tuple[str, ...] = ()
    n_kv_head: tuple[int, ...] = ()
    d_head: tuple[int, ...] = ()
    activation: tuple[str, ...] = ()
    is_gated: tuple[bool, ...] = ()
    norm: tuple[str, ...] = ()
    position: tuple[str, ...] = ()
    qkv_conv: tuple[int, ...] = ()

    def bounds_of(self, arch: Architecture) -> tuple[tuple[str, int, Side], ...]:
        """(gene, value, side) wherever `arch` has a gene's smallest or largest value, for a layer's genes in any layer.

        A gene with a single value has no bounds.
        """
        found: list[tuple[str, int, Side]] = []
        for gene in GENE_KEYS:
            values = getattr(self, gene)
            own = {getattr(layer, gene) for layer in arch.layers} if gene in _LAYER_GENES else {gene_of(arch, gene)}
            if len(values) > 1:
                found += [(gene, values[0], "low")] if values[0] in own else []
                found += [(gene, values[-1], "high")] if values[-1] in own else []
        return tuple(found)

    def widened(self, gene: str, side: Side) -> "Genes | None":
        """With more values of `gene` beyond that bound; None where there are none, as for a gene with a single value.

        A quarter of the extent is added, at least one step, in steps of the last spacing; `n_head` and `n_kv_head` get
        the next power of two. Raises SpaceError for what is no gene.
        """
        if gene not in GENE_KEYS:
            raise SpaceError(f"{gene!r:.80} is no gene; known: {', '.join(GENE_KEYS)}")
        values: tuple[int, ...] = getattr(self, gene)
        if len(values) < 2:
            return None
        if gene in ("n_head", "n_kv_head"):
            further = [1 << values[-1].bit_length() if side == "high" else (1 << (values[0] - 1).bit_length()) >> 1]
        else:
            edge, before = (values[-1], values[-2]) if side == "high" else (values[0], values[1])
            n_steps = max(1, (values[-1] - values[0]) // (4 * abs(edge - before)))
            further = [edge + (edge - before) * step for step in range(1, n_steps + 1)]
        limit = _limit(gene)
        further = [value for value in further if 1 <= value <= limit]
        if not further or len(values) + len(further) > MAX_CHOICES:
            return None
        changes: dict[str, Any] = {gene: tuple(sorted((*values, *further)))}
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        data = {key: _choices_json(getattr(self, key)) for key in GENE_KEYS if getattr(self, key)}
        return data | {key: list(getattr(self, key)) for key in (*STYLE_KEYS, "precision") if getattr(self, key)}

    @classmethod
    def from_json(cls, data: object) -> "Genes":
        if isinstance(data, Mapping):
            for key in data:
                if key in _FIXED_KEYS and key not in (*GENE_KEYS, *STYLE_KEYS):
                    raise SpaceError(f"genes: {key} cannot be a gene; move it to [fixed]")
        items = check_keys("genes", data, (*GENE_KEYS, *STYLE_KEYS, "precision"), required=GENE_KEYS[:4])
        values: dict[str, Any] = {
            key: choices(f"genes.{key}", items[key], maximum=_limit(key)) for key in GENE_KEYS if key in items
        }
        values |= {key: _styles(key, items[key]) for key in STYLE_KEYS if key in items}
        return cls(**values, precision=_precisions(items["precision"]) if "precision" in items else ())


def gene_of(arch: Architecture, gene: str) -> Any:
    """What `arch` has of a gene that is no layer's; of `d_head` what the first layer has."""
    return arch.head_width(arch.layers[0]) if gene == "d_head" else getattr(arch, gene)


def _styles(key: str, data: object) -> tuple[Any, ...]:
    """In the order of the file."""
    if not isinstance(data, list) or not data:
        raise SpaceError(f"genes.{key} must be a list with at least one value, not {data!r:.80}")
    values = tuple(_style(f"genes.{key}", key, value) for value in data)
    if any(value in values[:index] for index, value in enumerate(values)):
        raise SpaceError(f"genes.{key} lists a value twice; remove one")
    return values


def _style(where: str, key: str, value: object) -> Any:
    """A value of STYLE_KEYS in its one spelling. What a backbone does not take is found when one is built."""
    if value is None:
        raise SpaceError(f"{where} has an empty value; remove it")
    try:
        return checked(key, value, FAMILIES["transformer-xl" if value == "relative" else "gpt2"])
    except ArchitectureError as error:
        raise SpaceError(f"{where}: {error}") from error


def _precisions(data: object) -> tuple[str, ...]:
    """In the order of PRECISIONS, whatever the order in the file."""
    if not isinstance(data, list) or not data or any(name not in PRECISIONS for name in data):
        raise SpaceError(f"genes.precision must be a list of {', '.join(PRECISIONS)}, not {data!r:.80}")
    if len(set(data)) < len(data):
        raise SpaceError("genes.precision lists a precision twice; remove one")
    return tuple(name for name in PRECISIONS if name in data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What all members share. None: `d_embed` follows d_model, `d_head` d_model / n_head, the rest the backbone. What
    is a gene too counts for nothing here."""

    vocab_size: int = DEFAULT_VOCAB_SIZE
    d_embed: int | None = None
    embedding_factor: int = 1
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    tie_embeddings: bool = True
    d_head: int | None = None
    activation: str | None = None
    is_gated: bool | None = None
    norm: str | None = None
    position: str | None = None
    qkv_conv: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in _FIXED_KEYS if getattr(self, key) is not None}

    @classmethod
    def from_json(cls, data: object) -> "Fixed":
        items = check_keys("fixed", data, _FIXED_KEYS)
        values: dict[str, Any] = {
            key: _style(f"fixed.{key}", key, value) if key in STYLE_KEYS else integer(f"fixed.{key}", value)
            for key, value in items.items()
            if key != "tie_embeddings"
        }
        if "tie_embeddings" in items:
            values["tie_embeddings"] = _boolean("fixed.tie_embeddings", items["tie_embeddings"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a space; an open bound is no rule. That n_head divides d_model always holds and is not written.

    `weight_bytes` counts float32 weights; it is how a board's memory cuts a space.
    """

    d_inner_over_d_model: Bound = field(default_factory=Bound)
    d_head: Bound = field(default_factory=Bound)
    decoder_params: Bound = field(default_factory=Bound)
    total_params: Bound = field(default_factory=Bound)
    weight_bytes: Bound = field(default_factory=Bound)
    homogeneous: bool = False

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            key: getattr(self, key).to_json() for key in _BOUND_RULES if not getattr(self, key).is_open
        }
        if self.homogeneous:
            data["homogeneous"] = True
        return data

    @classmethod
    def from_json(cls, data: object) -> "Rules":
        items = check_keys("rules", data, (*_BOUND_RULES, "homogeneous"))
        values: dict[str, Any] = {
            key: Bound.from_json(f"rules.{key}", items[key], is_integer=key not in _RATIO_RULES)
            for key in _BOUND_RULES
            if key in items
        }
        if "homogeneous" in items:
            values["homogeneous"] = _boolean("rules.homogeneous", items["homogeneous"])
        return cls(**values)


GENE_KEYS = ("n_layer", "d_model", "d_inner", "n_head", "d_embed", "vocab_size", "n_kv_head", "d_head")
_LAYER_GENES = ("d_inner", "n_head", "n_kv_head")
_FIXED_KEYS = ("vocab_size", "d_embed", "embedding_factor", "max_seq_len", "tie_embeddings", "d_head", *STYLE_KEYS)
_RATIO_RULES = ("d_inner_over_d_model",)
_BOUND_RULES = ("d_inner_over_d_model", "d_head", "decoder_params", "total_params", "weight_bytes")


def _limit(gene: str) -> int:
    return MAX_LAYERS if gene == "n_layer" else MAX_DIMENSION


def _ratio(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_DIMENSION:
        raise SpaceError(f"{key} must be a number between 0 and {MAX_DIMENSION}, not {value!r:.80}")
    return value


def _boolean(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SpaceError(f"{key} must be true or false, not {value!r:.80}")
    return value

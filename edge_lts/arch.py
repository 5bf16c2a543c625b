"""Architectures as frozen values: canonical JSON and identity.

An architecture says everything that determines a decoder's shape and nothing else. It is built from JSON, checked once,
and never changes. Its parameters are counted in `counting`, its backbones described in `style`. Sources: Javaheripi et
al. 2022 (LiteTransformerSearch, arXiv 2203.02094) for the adaptive embedding's cut-offs; Ainslie et al. 2023
(arXiv 2305.13245) for heads that share keys and values.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_lts.counting import ParameterCount, count
from edge_lts.errors import ArchitectureError
from edge_lts.precision import PRECISIONS
from edge_lts.style import FAMILIES, STYLE_KEYS, Family, checked

DEFAULT_VOCAB_SIZE = 50257
DEFAULT_MAX_SEQ_LEN = 1024
PAPER_CUTOFFS = (19997, 39997, 199997)
MAX_LAYERS = 512
MAX_DIMENSION = 1 << 24

_LAYER_KEYS = ("n_head", "d_inner")
_KEYS = (
    "backbone",
    "d_model",
    "d_embed",
    "embedding_factor",
    "cutoffs",
    "vocab_size",
    "max_seq_len",
    "tie_embeddings",
    "precision",
    "d_head",
    *STYLE_KEYS,
    "layers",
)


def _integer(name: str, value: object, *, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArchitectureError(f"{name} must be an integer, not {value!r:.80}")
    if not minimum <= value <= MAX_DIMENSION:
        raise ArchitectureError(f"{name} must lie between {minimum} and {MAX_DIMENSION}, not {value!s:.40}")
    return value


def _no_unknown_keys(what: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise ArchitectureError(f"{what} has the unknown key {unknown[0]!r:.80}; known keys: {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerSpec:
    """One decoder layer. Ordered by d_inner, n_head, n_kv_head: the order in which searches write layers.

    `n_kv_head` is how many heads of keys and values there are, shared evenly by the `n_head` of queries.
    """

    d_inner: int
    n_head: int
    n_kv_head: int = 0  # 0: as n_head; always positive after construction

    def __post_init__(self) -> None:
        _integer("d_inner", self.d_inner)
        _integer("n_head", self.n_head)
        if self.n_kv_head == 0:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.n_head % _integer("n_kv_head", self.n_kv_head):
            raise ArchitectureError(f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}")

    def to_json(self) -> dict[str, Any]:
        shared = {"n_kv_head": self.n_kv_head} if self.n_kv_head != self.n_head else {}
        return {"n_head": self.n_head, "d_inner": self.d_inner, **shared}

    @classmethod
    def from_json(cls, data: object) -> "LayerSpec":
        if not isinstance(data, Mapping):
            raise ArchitectureError(f"a layer must be an object with n_head and d_inner, not {data!r:.80}")
        _no_unknown_keys("a layer", data, (*_LAYER_KEYS, "n_kv_head"))
        missing = [key for key in _LAYER_KEYS if key not in data]
        if missing:
            raise ArchitectureError(f"a layer lacks {missing[0]!r}")
        return cls(**{key: _integer(key, value) for key, value in data.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only language model's shape; see design §3 for the meaning of each key.

    `cutoffs` is only set when it differs from the paper's, cut to the vocabulary; `None` otherwise, so that spelling
    the default out or leaving it out gives the same `arch_id`. `d_head` likewise: None where every head is
    d_model / n_head wide. `precision` is only set where it is a gene; None is whatever the protocol says, and not
    written. The five of `STYLE_KEYS` always have a value after construction, the backbone's own (`style`) where none
    was given; only another is written.
    """

    backbone: str
    d_model: int
    layers: tuple[LayerSpec, ...]
    d_embed: int = 0  # 0: as d_model; always positive after construction
    embedding_factor: int = 1
    vocab_size: int = DEFAULT_VOCAB_SIZE
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    tie_embeddings: bool = True
    cutoffs: tuple[int, ...] | None = None
    precision: str | None = None
    d_head: int | None = None
    activation: str | None = None
    is_gated: bool | None = None
    norm: str | None = None
    position: str | None = None
    qkv_conv: int | None = None

    def __post_init__(self) -> None:
        if self.backbone not in FAMILIES:
            raise ArchitectureError(f"unknown backbone {self.backbone!r:.80}; known: {', '.join(BACKBONES)}")
        _integer("d_model", self.d_model)
        if not isinstance(self.tie_embeddings, bool):
            raise ArchitectureError(f"tie_embeddings must be true or false, not {self.tie_embeddings!r:.80}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ArchitectureError(f"unknown precision {self.precision!r:.40}; known: {', '.join(PRECISIONS)}")
        if not self.d_embed:
            object.__setattr__(self, "d_embed", self.d_model)
        for name in ("d_embed", "embedding_factor", "vocab_size", "max_seq_len"):
            _integer(name, getattr(self, name))
        if not self.layers:
            raise ArchitectureError("layers must not be empty")
        if len(self.layers) > MAX_LAYERS:
            raise ArchitectureError(f"layers has {len(self.layers)} entries; at most {MAX_LAYERS} are supported")
        self._check_style()
        self._check_cutoffs()

    def _check_style(self) -> None:
        family = self.family
        for key in STYLE_KEYS:
            value = checked(key, getattr(self, key), family)
            object.__setattr__(self, key, value)
            if family.is_fixed and value != getattr(family, key):
                raise ArchitectureError(f"{key}: backbone {self.backbone} has {getattr(family, key)} and nothing else")
        if self.d_head is not None:
            d_head = _integer("d_head", self.d_head)
            if all(layer.n_head * d_head == self.d_model for layer in self.layers):
                object.__setattr__(self, "d_head", None)
        is_plain = family.is_fixed or family.shares_qk
        if is_plain and self.d_head is not None:
            raise ArchitectureError(f"d_head: heads of backbone {self.backbone} are d_model / n_head wide")
        for index, layer in enumerate(self.layers):
            if self.d_head is None and self.d_model % layer.n_head:
                raise ArchitectureError(
                    f"layers[{index}]: d_model {self.d_model} is not divisible by n_head {layer.n_head}"
                )
            if is_plain and layer.n_kv_head != layer.n_head:
                raise ArchitectureError(f"layers[{index}]: backbone {self.backbone} has no n_kv_head of its own")
            if self.position == "rotary" and self.head_width(layer) % 2:
                raise ArchitectureError(
                    f"layers[{index}]: rotary positions need heads of even width, not {self.head_width(layer)}"
                )

    def _check_cutoffs(self) -> None:
        if self.cutoffs is not None:
            values = tuple(_integer("cutoffs", value) for value in self.cutoffs)
            if any(low >= high for low, high in itertools.pairwise(values)):
                raise ArchitectureError(f"cutoffs must increase strictly, not {list(values)}")
            values = tuple(value for value in values if value < self.vocab_size)
            is_default = self.embedding_factor == 1 or values == _default_cutoffs(self.vocab_size)
            object.__setattr__(self, "cutoffs", None if is_default else values)
        smallest = self.d_embed // self.embedding_factor ** (len(self.clusters) - 1)
        if smallest < 1:
            raise ArchitectureError(
                f"d_embed {self.d_embed} is too small for embedding_factor {self.embedding_factor} "
                f"over {len(self.clusters)} clusters"
            )

    @property
    def family(self) -> Family:
        return FAMILIES[self.backbone]

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    def head_width(self, layer: LayerSpec) -> int:
        """Of each of the layer's heads."""
        return self.d_head or self.d_model // layer.n_head

    @property
    def width_sums(self) -> dict[str, int]:
        """Numbers of a token's queries and of its keys, over all layers; see `edge_lts.counting`."""
        widths = [(self.head_width(layer), layer) for layer in self.layers]
        return {
            "q_width": sum(width * layer.n_head for width, layer in widths),
            "kv_width": sum(width * layer.n_kv_head for width, layer in widths),
        }

    @property
    def clusters(self) -> tuple[tuple[int, int], ...]:
        """(tokens, width) of each embedding cluster; one cluster unless `embedding_factor` > 1."""
        if self.embedding_factor == 1:
            return ((self.vocab_size, self.d_embed),)
        cutoffs = self.cutoffs if self.cutoffs is not None else _default_cutoffs(self.vocab_size)
        edges = (0, *cutoffs, self.vocab_size)
        return tuple(
            (high - low, self.d_embed // self.embedding_factor**index)
            for index, (low, high) in enumerate(itertools.pairwise(edges))
        )

    @property
    def parameter_count(self) -> ParameterCount:
        return count(self)

    @property
    def decoder_params(self) -> int:
        return self.parameter_count.decoder

    @property
    def total_params(self) -> int:
        return self.parameter_count.total

    @property
    def arch_id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:12]

    def canonical(self) -> "Architecture":
        """The same architecture with its layers in the one order that searches write."""
        return self.replace(layers=tuple(sorted(self.layers)))

    def replace(self, **changes: Any) -> "Architecture":
        """Another architecture; what is the backbone's own follows another backbone."""
        fields = {key: getattr(self, key) for key in _KEYS}
        fields |= dict.fromkeys(key for key in STYLE_KEYS if fields[key] == getattr(self.family, key))
        return Architecture(**{**fields, **changes})

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "backbone": self.backbone,
            "d_model": self.d_model,
            "d_embed": self.d_embed,
            "embedding_factor": self.embedding_factor,
            "vocab_size": self.vocab_size,
            "max_seq_len": self.max_seq_len,
            "tie_embeddings": self.tie_embeddings,
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.cutoffs is not None:
            data["cutoffs"] = list(self.cutoffs)
        for key in ("precision", "d_head"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        return data | {key: getattr(self, key) for key in STYLE_KEYS if getattr(self, key) != getattr(self.family, key)}

    def canonical_json(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: object) -> "Architecture":
        """Raises ArchitectureError naming the key for anything that is not a consistent architecture."""
        if not isinstance(data, Mapping):
            raise ArchitectureError(f"an architecture must be a JSON object, not {type(data).__name__}")
        _no_unknown_keys("the architecture", data, _KEYS)
        for key in ("backbone", "d_model", "layers"):
            if key not in data:
                raise ArchitectureError(f"the architecture lacks {key!r}")
        if not isinstance(data["backbone"], str):
            raise ArchitectureError(f"backbone must be a string, not {data['backbone']!r:.80}")
        if not isinstance(data["layers"], list):
            raise ArchitectureError("layers must be a list")
        if len(data["layers"]) > MAX_LAYERS:
            raise ArchitectureError(f"layers has {len(data['layers'])} entries; at most {MAX_LAYERS} are supported")
        fields = {key: data[key] for key in _KEYS if key in data and key not in ("layers", "cutoffs")}
        if "d_embed" in fields:
            _integer("d_embed", fields["d_embed"])
        cutoffs = data.get("cutoffs")
        if cutoffs is not None and not isinstance(cutoffs, list):
            raise ArchitectureError("cutoffs must be a list of integers")
        return cls(
            layers=tuple(LayerSpec.from_json(layer) for layer in data["layers"]),
            cutoffs=None if cutoffs is None else tuple(cutoffs),
            **fields,
        )


def _default_cutoffs(vocab_size: int) -> tuple[int, ...]:
    return tuple(cutoff for cutoff in PAPER_CUTOFFS if cutoff < vocab_size)


BACKBONES = tuple(sorted(FAMILIES))

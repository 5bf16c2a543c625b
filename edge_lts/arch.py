"""Architectures as frozen values: canonical JSON, identity and parameter counts in closed form.

An architecture says everything that determines a decoder's shape and nothing else. It is built from JSON, checked once,
and never changes. Counting needs no torch: `parameter_count` is a closed formula per backbone, and a test holds it
equal to the built model. Sources: Javaheripi et al. 2022 (LiteTransformerSearch, arXiv 2203.02094) for the proxy and
the adaptive embedding's cut-offs; Baevski and Auli 2019 (arXiv 1809.10853) for the adaptive embedding itself; Zhang et
al. 2022 (OPT, arXiv 2205.01068).
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_lts.errors import ArchitectureError
from edge_lts.precision import PRECISIONS

DEFAULT_VOCAB_SIZE = 50257
DEFAULT_MAX_SEQ_LEN = 1024
PAPER_CUTOFFS = (19997, 39997, 199997)
MAX_LAYERS = 512
MAX_DIMENSION = 1 << 24
OPT_FIRST_POSITION = 2  # row of the first token: the published tables begin with two rows that no text uses

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
    """One decoder layer. Ordered by d_inner, then n_head: the order in which searches write layers."""

    d_inner: int
    n_head: int

    def __post_init__(self) -> None:
        _integer("d_inner", self.d_inner)
        _integer("n_head", self.n_head)

    def to_json(self) -> dict[str, Any]:
        return {"n_head": self.n_head, "d_inner": self.d_inner}

    @classmethod
    def from_json(cls, data: object) -> "LayerSpec":
        if not isinstance(data, Mapping):
            raise ArchitectureError(f"a layer must be an object with n_head and d_inner, not {data!r:.80}")
        _no_unknown_keys("a layer", data, _LAYER_KEYS)
        missing = [key for key in _LAYER_KEYS if key not in data]
        if missing:
            raise ArchitectureError(f"a layer lacks {missing[0]!r}")
        return cls(d_inner=_integer("d_inner", data["d_inner"]), n_head=_integer("n_head", data["n_head"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters by place. `decoder` is the LTS proxy: attention, FFN and norms; no embedding, no position, no head."""

    embedding: int
    position: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.position + self.decoder + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only language model's shape; see design §3 for the meaning of each key.

    `cutoffs` is only set when it differs from the paper's, cut to the vocabulary; `None` otherwise, so that spelling
    the default out or leaving it out gives the same `arch_id`. `precision` is only set where it is a gene; None is
    whatever the protocol says, and not written.
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

    def __post_init__(self) -> None:
        if self.backbone not in _COUNTERS:
            known = ", ".join(sorted(_COUNTERS))
            raise ArchitectureError(f"unknown backbone {self.backbone!r:.80}; known: {known}")
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
        for index, layer in enumerate(self.layers):
            if self.d_model % layer.n_head:
                raise ArchitectureError(
                    f"layers[{index}]: d_model {self.d_model} is not divisible by n_head {layer.n_head}"
                )
        self._check_cutoffs()

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
    def n_layer(self) -> int:
        return len(self.layers)

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
        return _COUNTERS[self.backbone](self)

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
        fields = {key: getattr(self, key) for key in _KEYS}
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
        if self.precision is not None:
            data["precision"] = self.precision
        return data

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


def position_rows(arch: Architecture) -> int:
    """Rows of the table of learned positions; 0 where positions are relative."""
    if arch.backbone == "transformer-xl":
        return 0
    return arch.max_seq_len + (OPT_FIRST_POSITION if arch.backbone == "opt" else 0)


def _default_cutoffs(vocab_size: int) -> tuple[int, ...]:
    return tuple(cutoff for cutoff in PAPER_CUTOFFS if cutoff < vocab_size)


def embedding_and_head(arch: Architecture) -> tuple[int, int]:
    """Parameters of the token embedding and of the output head.

    Factor 1: one table of width d_embed, a bias-free projection in and one out where d_embed differs from d_model, and
    a second table when untied. Factor above 1: adaptive embedding and adaptive softmax as in the LTS code: each cluster
    has a projection, the head has its own first projection (the others are shared when tied), a row and a bias per tail
    cluster, and a bias per token.
    """
    d = arch.d_model
    table = sum(tokens * width for tokens, width in arch.clusters)
    needs_projection = arch.d_embed != d
    if arch.embedding_factor == 1:
        projection = arch.d_embed * d if needs_projection else 0
        return table + projection, projection + (0 if arch.tie_embeddings else table)
    projections = [width * d for _, width in arch.clusters]
    n_tail = len(projections) - 1
    head = projections[0] + n_tail * (arch.d_embed + 1) + arch.vocab_size
    if not arch.tie_embeddings:
        head += table + sum(projections[1:])
    return table + sum(projections), head


def _count_learned(arch: Architecture) -> ParameterCount:
    """Per layer: attention (4 d^2 + 4 d), norms (4 d), FFN (2 d f + f + d); behind the last layer of a GPT-2 a norm."""
    d = arch.d_model
    layers = sum(4 * d * d + 9 * d + 2 * d * layer.d_inner + layer.d_inner for layer in arch.layers)
    final_norm = 2 * d if arch.backbone == "gpt2" else 0
    embedding, head = embedding_and_head(arch)
    return ParameterCount(embedding=embedding, position=position_rows(arch) * d, decoder=layers + final_norm, head=head)


def _count_transformer_xl(arch: Architecture) -> ParameterCount:
    """Per layer: q, k, v, output, positions without biases (5 d^2), u and v (2 d), norms (4 d), FFN (2 d f + f + d)."""
    d = arch.d_model
    layers = sum(5 * d * d + 7 * d + 2 * d * layer.d_inner + layer.d_inner for layer in arch.layers)
    embedding, head = embedding_and_head(arch)
    return ParameterCount(embedding=embedding, position=0, decoder=layers, head=head)


_COUNTERS: dict[str, Callable[[Architecture], ParameterCount]] = {
    "gpt2": _count_learned,
    "opt": _count_learned,
    "transformer-xl": _count_transformer_xl,
}
BACKBONES = tuple(sorted(_COUNTERS))

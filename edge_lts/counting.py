"""Parameters of an architecture in closed form. A test holds every count equal to the built model.

What a decoder's layers add up to is asked of sums, which are numbers, or arrays of them for many stacks at once: how
many layers, the sum of their d_inner and, in `sums`, those of n_head and of n_kv_head times the heads' width (`q_width`
and `kv_width`). A width that is not in `sums` is that of the first layer of `arch` in every layer.

Sources: Javaheripi et al. 2022 (LiteTransformerSearch, arXiv 2203.02094) for what the proxy counts; Baevski and Auli
2019 (arXiv 1809.10853) for the adaptive embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_lts.arch import Architecture

OPT_FIRST_POSITION = 2  # row of the first token: the published tables begin with two rows that no text uses


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


def count(arch: "Architecture") -> ParameterCount:
    n_layer, d_inner_sum, sums = arch.n_layer, sum(layer.d_inner for layer in arch.layers), arch.width_sums
    embedding, head = embedding_and_head(arch)
    return ParameterCount(
        embedding=embedding,
        position=position_rows(arch) * arch.d_model,
        decoder=decoder_matrices(arch, n_layer, d_inner_sum, sums) + decoder_vectors(arch, n_layer, d_inner_sum, sums),
        head=head,
    )


def position_rows(arch: "Architecture") -> int:
    """Rows of the table of learned positions; 0 where there is none."""
    if arch.position != "learned":
        return 0
    return arch.max_seq_len + (OPT_FIRST_POSITION if arch.backbone == "opt" else 0)


def embedding_and_head(arch: "Architecture") -> tuple[int, int]:
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


def attention_widths(arch: "Architecture", n_layer: Any, sums: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Sums over the layers of n_head and of n_kv_head times the heads' width."""
    first, given = arch.layers[0], sums or {}
    width = arch.head_width(first)
    q_width = given["q_width"] if "q_width" in given else n_layer * width * first.n_head
    return q_width, given["kv_width"] if "kv_width" in given else n_layer * width * first.n_kv_head


def attention_params_of(arch: "Architecture", n_layer: Any, sums: Mapping[str, Any] | None = None) -> Any:
    """Parameters of attention: projections with their biases, convolutions, what relative positions add; no norms."""
    return _attention_matrices(arch, n_layer, sums) + _attention_vectors(arch, n_layer, sums)


def attention_params(arch: "Architecture") -> int:
    """The same of all layers of `arch`."""
    n_params: int = attention_params_of(arch, arch.n_layer, arch.width_sums)
    return n_params


def _attention_matrices(arch: "Architecture", n_layer: Any, sums: Mapping[str, Any] | None) -> Any:
    """q, k, v and output; of a Transformer-XL also the projection of positions."""
    d = arch.d_model
    if arch.position == "relative":
        return 5 * d * d * n_layer
    q_width, kv_width = attention_widths(arch, n_layer, sums)
    return 2 * d * (q_width + kv_width)


def _attention_vectors(arch: "Architecture", n_layer: Any, sums: Mapping[str, Any] | None) -> Any:
    """Biases and convolutions; of a Transformer-XL u and v."""
    d = arch.d_model
    if arch.position == "relative":
        return 2 * d * n_layer
    channels = convolved_width(arch, n_layer, sums)
    biases = channels + d * n_layer if arch.family.has_biases else 0
    return biases + (arch.qkv_conv or 0) * channels


def convolved_width(arch: "Architecture", n_layer: Any, sums: Mapping[str, Any] | None = None) -> Any:
    """Of q, k and v together, as they come from their projections: where q is made of k it is not among them."""
    q_width, kv_width = attention_widths(arch, n_layer, sums)
    return 2 * kv_width + (0 if arch.family.shares_qk else q_width)


def decoder_matrices(
    arch: "Architecture", n_layer: Any, d_inner_sum: Any, sums: Mapping[str, Any] | None = None
) -> Any:
    """Parameters of the decoder that stand in matrices: attention and FFN."""
    return _attention_matrices(arch, n_layer, sums) + (3 if arch.is_gated else 2) * arch.d_model * d_inner_sum


def decoder_vectors(arch: "Architecture", n_layer: Any, d_inner_sum: Any, sums: Mapping[str, Any] | None = None) -> Any:
    """The decoder's other parameters: norms (two a layer, one behind the last), biases and convolutions."""
    d, family = arch.d_model, arch.family
    norm = d if arch.norm == "rmsnorm" else 2 * d
    biases = (2 if arch.is_gated else 1) * d_inner_sum + d * n_layer if family.has_biases else 0
    final = norm if family.has_final_norm else 0
    return _attention_vectors(arch, n_layer, sums) + 2 * norm * n_layer + biases + final

"""How many bytes a model will need, by formula, before anything is built.

These are predictions for cutting a space and for refusing a hopeless candidate early. They are never reported as
measurements: what the allocator, torch and its kernels add is only known by measuring `peak_memory_bytes`. Where no
precision is given it is float32; that of the architecture, if it has one, goes before any that is given.
"""

from collections.abc import Mapping
from typing import Any

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import convolved_width, decoder_vectors, position_rows
from edge_lts.precision import ACTIVATION_BYTES, WEIGHT_BYTES
from edge_lts.records import Protocol

BYTES_PER_NUMBER = 4  # of float32
_PIECE_BYTES = 1 << 20  # of an int8 table, in float32 while it is multiplied with several rows


def precision_of(arch: Architecture, protocol: Protocol) -> str:
    """What `arch` is built in: its own gene, or the run's choice."""
    return arch.precision or protocol.precision


def weight_bytes(arch: Architecture, precision: str = "float32") -> int:
    """Every weight once; tied tables are one table."""
    return sum(place_bytes(arch, precision).values())


def place_bytes(arch: Architecture, precision: str = "float32") -> dict[str, int]:
    """Bytes of the weights in `embedding`, `position`, `decoder` and `head`: 4 or 2 per parameter.

    In int8 one per weight of a matrix, 4 for each number that stays float32 (norms, biases, convolutions) and 4 for
    each row of a table, its scale. Tables are embeddings, heads and the projections of an adaptive one.
    """
    precision = arch.precision or precision
    count, d = arch.parameter_count, arch.d_model
    layers = [layer.d_inner for layer in arch.layers]
    places = {
        "embedding": WEIGHT_BYTES[precision] * count.embedding,
        "position": WEIGHT_BYTES[precision] * count.position,
        "decoder": decoder_bytes(arch, count.decoder, len(layers), sum(layers), precision, arch.width_sums),
        "head": WEIGHT_BYTES[precision] * count.head,
    }
    if WEIGHT_BYTES[precision] == 1:
        n, is_adaptive = len(arch.clusters), arch.embedding_factor > 1
        places["embedding"] += 4 * (arch.vocab_size + is_adaptive * n * d)
        places["position"] += 4 * position_rows(arch)
        places["head"] += 0 if arch.tie_embeddings else 4 * (arch.vocab_size + is_adaptive * (n - 1) * d)
        places["head"] += is_adaptive * (3 * (arch.vocab_size + n - 1) + 4 * d)
    return places


def decoder_bytes(
    arch: Architecture,
    decoder_params: Any,
    n_layer: Any,
    d_inner_sum: Any,
    precision: str,
    sums: Mapping[str, Any] | None = None,
) -> Any:
    """The same for decoders of `arch`'s kind and width with such layers (`edge_lts.counting`): of numbers, or of arrays
    of them."""
    n_bytes = WEIGHT_BYTES[precision] * decoder_params
    if WEIGHT_BYTES[precision] == 1:
        n_bytes += 3 * decoder_vectors(arch, n_layer, d_inner_sum, sums)
    return n_bytes


def read_bytes(arch: Architecture, precision: str = "float32") -> int:
    """Of the weights, what a decoded token has to read at the least: decoder and head, without the position matrices of
    a Transformer-XL, whose products are kept."""
    places = place_bytes(arch, precision)
    n_bytes = places["decoder"] + places["head"] + (places["embedding"] if arch.tie_embeddings else 0)
    if arch.position == "relative":
        n_bytes -= WEIGHT_BYTES[arch.precision or precision] * arch.n_layer * arch.d_model**2
    return n_bytes


def float32_bytes(n_bytes: int, precision: str) -> int:
    """The size in float32 of a model that has `n_bytes` in `precision`, per-row scales left aside."""
    return n_bytes * BYTES_PER_NUMBER // WEIGHT_BYTES[precision]


def cache_bytes(arch: Architecture, tokens: int, precision: str = "float32") -> int:
    """Per layer and token a key and a value for each of `n_kv_head` heads: 2 d_model numbers where none is shared,
    batch 1. With convolutions, besides, the last two tokens' rows of what they are over.

    Transformer-XL: 3 instead of 2, for the position keys that are kept beside them.
    """
    sums = arch.width_sums
    vectors = 3 if arch.position == "relative" else 2
    tail = max(0, (arch.qkv_conv or 0) - 1) * convolved_width(arch, arch.n_layer, sums)
    n_numbers: int = vectors * sums["kv_width"] * tokens + tail
    return ACTIVATION_BYTES[arch.precision or precision] * n_numbers


def cache_tokens(arch: Architecture, protocol: Protocol) -> int:
    """Tokens that the evaluator's cache has room for: the context and the token being decoded, or the prompt.

    Transformer-XL: the segment memory and one token; a longer prompt is joined to it outside.
    """
    if arch.backbone == "transformer-xl":
        return protocol.memory_tokens + 1
    return max(protocol.context_tokens + 1, protocol.prompt_tokens)


def working_set_bytes(arch: Architecture, protocol: Protocol) -> int:
    """The largest set of activations alive at once during one prefill of T = prompt_tokens, batch 1.

    The residual stream (T d) and its normalised copy (T d) live through each of
      attention  q, k, v and the joined heads (4 T d where heads fill d_model and are not shared) and, as if kernels
                 kept them whole, the scores (n_head T T; twice that with relative positions, whose part is shifted and
                 masked first); convolutions hold q, k and v once more, rotary positions q and k;
      FFN        its inner layer before and after the activation (2 T d_inner; gated: 4);
    and after the last layer the logits: R * vocab_size with R = 1 (`logits = last`) or T (`all`); of an adaptive
    softmax, each cluster's twice beside those before it. The sum of the stream and the largest of these is the working
    set. Layers run one after another, so depth does not count. In int8 every product has its input in 8 bits besides,
    and a product with a table of all tokens a piece of that in float32.
    """
    precision = precision_of(arch, protocol)
    tokens, d = protocol.prompt_tokens, arch.d_model
    stream = 2 * tokens * d
    attention = max(_attention_numbers(arch, layer, tokens) for layer in arch.layers)
    ffn = max((4 if arch.is_gated else 2) * tokens * layer.d_inner for layer in arch.layers)
    logits = (tokens if protocol.logits == "all" else 1) * _head_numbers(arch)
    n_bytes = ACTIVATION_BYTES[precision] * (stream + max(attention, ffn, logits))
    if WEIGHT_BYTES[precision] == 1:
        widest = max(d, *(max(layer.d_inner, arch.head_width(layer) * layer.n_head) for layer in arch.layers))
        n_bytes += tokens * widest + (_PIECE_BYTES if protocol.logits == "all" or arch.embedding_factor > 1 else 0)
    return n_bytes


def _attention_numbers(arch: Architecture, layer: LayerSpec, tokens: int) -> int:
    """Numbers that a layer's attention holds beside the stream; see `working_set_bytes`."""
    width = arch.head_width(layer)
    q, kv = width * layer.n_head, width * layer.n_kv_head
    n_numbers = 2 * q + 2 * kv
    if arch.qkv_conv:
        n_numbers += q + 2 * kv
    if arch.position == "rotary":
        n_numbers += q + kv
    n_scores = 2 if arch.position == "relative" else 1
    return tokens * n_numbers + n_scores * layer.n_head * tokens * tokens


def _head_numbers(arch: Architecture) -> int:
    """Numbers per position that the head holds at its worst moment."""
    held = arch.vocab_size
    if arch.embedding_factor > 1:
        before = 0
        for size, _ in arch.clusters:
            held = max(held, before + 2 * size)
            before += size
    return held


def predicted_bytes(arch: Architecture, protocol: Protocol) -> int:
    """Weights, the KV cache at its deepest (context or prompt, and the token being decoded), and the working set."""
    precision = precision_of(arch, protocol)
    cache = cache_bytes(arch, cache_tokens(arch, protocol), precision)
    return weight_bytes(arch, precision) + cache + working_set_bytes(arch, protocol)

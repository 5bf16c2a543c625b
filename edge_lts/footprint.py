"""How many bytes a model will need, by formula, before anything is built. All numbers are float32 (4 bytes).

These are predictions for cutting a space and for refusing a hopeless candidate early. They are never reported as
measurements: what the allocator, torch and its kernels add is only known by measuring `peak_memory_bytes`.
"""

from edge_lts.arch import Architecture
from edge_lts.records import Protocol

BYTES_PER_NUMBER = 4


def weight_bytes(arch: Architecture) -> int:
    """4 * total_params: every weight once; tied tables are one table."""
    return BYTES_PER_NUMBER * arch.total_params


def cache_bytes(arch: Architecture, tokens: int) -> int:
    """4 * 2 * n_layer * d_model * tokens: one key and one value of width d_model per layer and token, batch 1.

    Transformer-XL: 3 instead of 2, for the position keys that are kept beside them.
    """
    vectors = 3 if arch.backbone == "transformer-xl" else 2
    return BYTES_PER_NUMBER * vectors * arch.n_layer * arch.d_model * tokens


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
      attention  q, k, v and the joined heads (4 T d) and, as if kernels kept them whole, the scores (n_head T T;
                 twice that with relative positions, whose part is shifted and masked first);
      FFN        its inner layer before and after the activation (2 T d_inner);
    and after the last layer the logits: R * vocab_size with R = 1 (`logits = last`) or T (`all`); of an adaptive
    softmax, each cluster's twice beside those before it. The sum of the stream and the largest of these is the working
    set. Layers run one after another, so depth does not count.
    """
    tokens, d = protocol.prompt_tokens, arch.d_model
    stream = 2 * tokens * d
    n_scores = 2 if arch.backbone == "transformer-xl" else 1
    attention = max(4 * tokens * d + n_scores * layer.n_head * tokens * tokens for layer in arch.layers)
    ffn = max(2 * tokens * layer.d_inner for layer in arch.layers)
    logits = (tokens if protocol.logits == "all" else 1) * _head_numbers(arch)
    return BYTES_PER_NUMBER * (stream + max(attention, ffn, logits))


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
    cache = cache_bytes(arch, cache_tokens(arch, protocol))
    return weight_bytes(arch) + cache + working_set_bytes(arch, protocol)

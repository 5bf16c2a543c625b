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
    """4 * 2 * n_layer * d_model * tokens: one key and one value of width d_model per layer and token, batch 1."""
    return BYTES_PER_NUMBER * 2 * arch.n_layer * arch.d_model * tokens


def working_set_bytes(arch: Architecture, protocol: Protocol) -> int:
    """The largest set of activations alive at once during one prefill of T = prompt_tokens, batch 1.

    The residual stream (T d) and its normalised copy (T d) live through each of
      attention  q, k, v and the joined heads (4 T d) and, as if kernels kept them whole, the scores (n_head T T);
      FFN        its inner layer before and after the activation (2 T d_inner);
    and after the last layer the logits: R * vocab_size with R = 1 (`logits = last`) or T (`all`). The sum of the stream
    and the largest of these is the working set. Layers run one after another, so depth does not count.
    """
    tokens, d = protocol.prompt_tokens, arch.d_model
    stream = 2 * tokens * d
    attention = max(4 * tokens * d + layer.n_head * tokens * tokens for layer in arch.layers)
    ffn = max(2 * tokens * layer.d_inner for layer in arch.layers)
    logits = (tokens if protocol.logits == "all" else 1) * arch.vocab_size
    return BYTES_PER_NUMBER * (stream + max(attention, ffn, logits))


def predicted_bytes(arch: Architecture, protocol: Protocol) -> int:
    """Weights, the KV cache at its deepest (context or prompt, and the token being decoded), and the working set."""
    deepest = max(protocol.context_tokens, protocol.prompt_tokens) + 1
    return weight_bytes(arch) + cache_bytes(arch, deepest) + working_set_bytes(arch, protocol)

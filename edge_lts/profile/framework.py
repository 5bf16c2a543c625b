"""What a C runtime would not pay: torch's time to dispatch operators, and the floor that memory bandwidth sets.

Decoding at batch 1 reads every weight once and computes little with it, so no runtime decodes faster than

    (weights of decoder and head + KV cache) / bandwidth                (Williams et al. 2009, the roofline's left side)

with the bandwidth that the anchor measures by streaming 16 MB through a matrix-vector product. Where a last-level cache
holds these 16 MB, the floor is that of the cache, and lower than memory's.

Above the floor there is arithmetic, and torch's own work for each operator. The same layers at width 8 hardly compute
anything: what a token through them takes is dispatching, and its share says how much another runtime could save.
"""

import torch

from edge_lts import stats
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_bytes, read_bytes
from edge_lts.model import build_model
from edge_lts.profile.anchor import STREAM_WIDTH
from edge_lts.profile.latency import Timer, make_timers, resting_garbage_collector
from edge_lts.profile.weights import fill_tensors, fill_weights
from edge_lts.records import Protocol

BOUND_SHARE = 0.20  # of decode time; above it a member is flagged `framework_bound`
_WIDTH = 8
_N_SAMPLES = 7


def narrow(arch: Architecture, protocol: Protocol) -> Architecture:
    """The same backbone, style, depth and kind of embedding at width 8, with room for the protocol's context. Heads
    that share keys and values do so here too."""
    small = arch.replace(
        d_model=_WIDTH,
        d_embed=_WIDTH,
        d_head=None,
        layers=tuple(
            LayerSpec(d_inner=_WIDTH, n_head=1 if layer.n_kv_head == layer.n_head else 2, n_kv_head=1)
            for layer in arch.layers
        ),
        embedding_factor=1,
        cutoffs=None,
        vocab_size=4 * _WIDTH,
        max_seq_len=protocol.context_tokens + 1,
    )
    return small.replace(embedding_factor=2, cutoffs=(_WIDTH, 2 * _WIDTH)) if arch.embedding_factor > 1 else small


def dispatch_s(arch: Architecture, protocol: Protocol, precision: str) -> float:
    """Median seconds of one token through `narrow(arch)`; some milliseconds in all."""
    with torch.inference_mode(), resting_garbage_collector():
        small = narrow(arch, protocol)
        model = build_model(small, precision)
        fill_weights(model)
        cache = model.new_cache(capacity=protocol.context_tokens + 1)
        fill_tensors(cache.tensors())
        decode: Timer = make_timers(model, cache, protocol)[1]
        decode.warm_up(2, protocol.min_sample_s)
        for _ in range(_N_SAMPLES):
            decode.sample()
    return stats.median(decode.samples_s)


def framework_json(
    arch: Architecture, protocol: Protocol, precision: str, *, decode_s: float, stream_s: float | None
) -> dict[str, float | None]:
    """`conditions["framework"]`. `stream_s` is the anchor's time to stream its matrix once."""
    dispatch = dispatch_s(arch, protocol, precision)
    bandwidth = STREAM_WIDTH * STREAM_WIDTH * 4 / stream_s if stream_s else None
    n_bytes = read_bytes(arch, precision) + cache_bytes(arch, protocol.context_tokens, precision)
    return {
        "width8_decode_s": dispatch,
        "dispatch_share": min(1.0, dispatch / decode_s),
        "stream_bytes_per_s": bandwidth,
        "bytes_per_token": n_bytes,
        "bandwidth_floor_s": n_bytes / bandwidth if bandwidth else None,
    }

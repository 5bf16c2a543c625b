"""How fast this machine is while a candidate is being timed: three small fixed jobs, timed again in every round.

Machines change their speed by tens of percent for seconds or minutes (governor, heat, neighbours), and not evenly: a
busy neighbour takes memory bandwidth from large weights and little from small ones. So there are three anchors that
never change: one prefill and one decoded token of a small model, and a product of a 16 MB matrix with a vector, which
streams it from memory. The cost model of guided search learns how much each of them says about a candidate's time.

The first passes also run every kind of operator that the candidate will, so that what a process pays once lies in the
memory baseline; the anchors stay alive and in that baseline until the candidate is done. They are float32 and in their
backbone's own style whatever the candidate is, so that all candidates compare; one in another precision or style has a
small model of its own run once besides.
"""

import dataclasses

import torch

from edge_lts import stats
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import precision_of
from edge_lts.model import build_model
from edge_lts.profile.latency import Timer, make_timers
from edge_lts.profile.weights import fill_tensors, fill_weights
from edge_lts.records import Protocol
from edge_lts.style import STYLE_KEYS

STREAM_WIDTH = 2048  # numbers a side: 16 MB

_MODEL = Architecture(
    backbone="gpt2", d_model=256, layers=(LayerSpec(d_inner=512, n_head=4),), vocab_size=2048, max_seq_len=256
)
_CUTOFFS = (512, 1024)  # of an adaptive embedding


class Anchor:
    """The three jobs. Make it first of all in a process; `sample` once a round; `medians_s` at the end.

    Raises EvaluationError("unsupported") where the candidate's precision does not work here.
    """

    def __init__(self, arch: Architecture, protocol: Protocol) -> None:
        factor = min(2, arch.embedding_factor)  # adaptive or not
        small = _MODEL.replace(backbone=arch.backbone, embedding_factor=factor, cutoffs=_CUTOFFS)
        longest = _MODEL.max_seq_len - 1
        short = dataclasses.replace(
            protocol,
            prompt_tokens=min(protocol.prompt_tokens, longest),
            context_tokens=min(protocol.context_tokens, longest),
            mem_len=None,
        )
        alike = _in_style_of(arch, small)
        self._kept = [_runners(alike, precision_of(arch, protocol), short)]
        if precision_of(arch, protocol) != "float32" or alike != small:
            self._kept.append(_runners(small, "float32", short))
        prefill, decode, _ = self._kept[-1]
        matrix, vector = torch.empty(STREAM_WIDTH, STREAM_WIDTH), torch.empty(STREAM_WIDTH)
        fill_tensors([matrix, vector])
        self._timers = {
            "prefill_latency_s": prefill,
            "decode_latency_s": decode,
            "stream_s": Timer("stream", lambda: torch.mv(matrix, vector)),
        }
        for timer in (*self._kept[0][:2], *self._timers.values()):
            timer.check()

    def sample(self) -> None:
        """One round: a prefill; a product and three tokens, each after an untimed one."""
        for name, n in (("prefill_latency_s", 1), ("stream_s", 1), ("decode_latency_s", 3)):
            timer = self._timers[name]
            if name != "prefill_latency_s":
                timer.run(1)
            for _ in range(n):
                timer.sample()

    def medians_s(self) -> dict[str, float]:
        return {name: stats.median(timer.samples_s) for name, timer in self._timers.items()}


def _in_style_of(arch: Architecture, small: Architecture) -> Architecture:
    """`small` with what `arch` has of its own: style, and keys and values that heads share."""
    is_shared = any(layer.n_kv_head != layer.n_head for layer in arch.layers)
    layers = tuple(dataclasses.replace(layer, n_kv_head=layer.n_head // 2) for layer in small.layers)
    style = {key: getattr(arch, key) for key in STYLE_KEYS}
    return small.replace(**style, layers=layers if is_shared else small.layers)


def _runners(arch: Architecture, precision: str, protocol: Protocol) -> tuple[Timer, Timer, Timer]:
    model = build_model(arch, precision)
    fill_weights(model)
    cache = model.new_cache(capacity=_MODEL.max_seq_len)
    fill_tensors(cache.tensors())
    return make_timers(model, cache, protocol)

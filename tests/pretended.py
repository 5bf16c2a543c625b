"""A pretended machine whose costs are known, and a searcher driven over it without any process."""

import math
from typing import Any

import numpy as np

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import predicted_bytes
from edge_lts.objectives import resolve_objectives
from edge_lts.records import Evaluation, Measurement, Protocol
from edge_lts.search.base import BaseSearcher
from edge_lts.search.cost_model import COSTS
from edge_lts.space import SearchSpace

PROTOCOL = Protocol()
OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s", "peak_memory_bytes"])
SPACE = SearchSpace.from_json(
    {
        "name": "space",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 8},
            "d_model": {"min": 64, "max": 384, "step": 64},
            "d_inner": {"min": 128, "max": 1536, "step": 128},
            "n_head": [2, 4],
        },
        "fixed": {"vocab_size": 4096},
    }
)


def layer_seconds(d_model: int, layer: LayerSpec, slow: tuple[int, int] | None = None) -> float:
    efficiency = 1 + 0.2 * math.sin(d_model / 60)
    if slow == (d_model, layer.d_inner):
        efficiency *= 1.6
    return (4 * d_model**2 + 2 * d_model * layer.d_inner) * 4e-10 * efficiency + 2e-5 + 1e-6 * layer.n_head


def seconds(arch: Architecture, slow: tuple[int, int] | None = None) -> float:
    return (
        5e-5 + arch.vocab_size * arch.d_model * 3e-10 + sum(layer_seconds(arch.d_model, x, slow) for x in arch.layers)
    )


class Machine:
    """Times with noise and with a slow drift that the anchor shares."""

    def __init__(self, noise: float = 0.01, drift: float = 0.15, slow: tuple[int, int] | None = None) -> None:
        self.rng = np.random.default_rng(7)
        self.noise, self.drift, self.slow = noise, drift, slow
        self.n = 0

    def measure(self, candidate_id: int, arch: Architecture) -> Evaluation:
        self.n += 1
        speed = math.exp(self.drift * math.sin(self.n / 10))
        values = {
            cost: scale * seconds(arch, self.slow) * speed * (1 + self.noise * self.rng.standard_normal())
            for cost, scale in (("decode_latency_s", 1.0), ("prefill_latency_s", 40.0))
        }
        objectives: dict[str, Any] = {
            "decoder_params": arch.decoder_params,
            "peak_memory_bytes": Measurement(median=predicted_bytes(arch, PROTOCOL) * 1.02 + 1e6, n=1),
            **{
                name: Measurement(median=value, ci95=(value * 0.99, value * 1.01), n=20)
                for name, value in values.items()
            },
        }
        conditions = {"anchor_s": dict.fromkeys(COSTS, 1e-3 * speed)}
        return Evaluation(
            candidate_id=candidate_id, architecture=arch, objectives=objectives, samples={}, conditions=conditions
        )


def drive(searcher: BaseSearcher, machine: Machine, n: int) -> list[Architecture]:
    found: list[Architecture] = []
    while len(found) < n:
        candidates = searcher.ask(1)
        if not candidates:
            break
        found.append(candidates[0].architecture)
        searcher.tell(candidates[0].candidate_id, machine.measure(candidates[0].candidate_id, found[-1]))
    return found

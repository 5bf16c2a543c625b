"""Backbones as torch modules, built from an Architecture: one file per backbone, looked up here by name."""

from collections.abc import Callable

from edge_lts.arch import Architecture
from edge_lts.errors import EvaluationError
from edge_lts.model.gpt2 import Gpt2, KVCache
from edge_lts.model.transformer_xl import SegmentMemory, TransformerXl

__all__ = ["BUILDERS", "Cache", "Gpt2", "KVCache", "Model", "SegmentMemory", "TransformerXl", "build_model"]

# Every model is called as model(tokens, cache, logits) and makes its cache with new_cache(capacity=...).
Model = Gpt2 | TransformerXl
Cache = KVCache | SegmentMemory

BUILDERS: dict[str, Callable[[Architecture], Model]] = {"gpt2": Gpt2, "transformer-xl": TransformerXl}


def build_model(arch: Architecture) -> Model:
    """The decoder that `arch` describes, in eval mode and with *uninitialised* parameters.

    Costs no more than allocating: fill the parameters (`edge_lts.profile.weights`) or load them before computing.
    Raises EvaluationError("unsupported") for a backbone that can be counted but not built.
    """
    if arch.backbone not in BUILDERS:
        raise EvaluationError("unsupported", f"backbone {arch.backbone!r} has no model; built: {', '.join(BUILDERS)}")
    return BUILDERS[arch.backbone](arch).eval()

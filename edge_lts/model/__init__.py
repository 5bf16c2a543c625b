"""Backbones as torch modules, built from an Architecture and looked up here by name."""

from collections.abc import Callable
from functools import partial

import torch

from edge_lts.arch import Architecture
from edge_lts.errors import EvaluationError
from edge_lts.model.attention import KVCache
from edge_lts.model.gpt2 import Gpt2, PrimerBlock
from edge_lts.model.layers import FLOATS
from edge_lts.model.opt import Opt
from edge_lts.model.quantised import Fill, Int8Parts
from edge_lts.model.transformer_xl import SegmentMemory, TransformerXl
from edge_lts.profile.weights import fill_one

__all__ = ["BUILDERS", "Cache", "Gpt2", "KVCache", "Model", "Opt", "SegmentMemory", "TransformerXl", "build_model"]

# Every model is called as model(tokens, cache, logits) and makes its cache with new_cache(capacity=...).
Model = Gpt2 | TransformerXl
Cache = KVCache | SegmentMemory

BUILDERS: dict[str, Callable[..., Model]] = {
    "gpt2": Gpt2,
    "llama": Gpt2,
    "opt": Opt,
    "primer": partial(Gpt2, block=PrimerBlock),
    "primer-ez": Gpt2,
    "transformer++": Gpt2,
    "transformer-xl": TransformerXl,
}


def build_model(arch: Architecture, precision: str = "float32", *, fill: Fill = fill_one) -> Model:
    """The decoder that `arch` describes, in eval mode. `arch.precision`, if it has one, goes before `precision`.

    In float32 and bfloat16 with *uninitialised* parameters, at no more than the cost of allocating: fill them
    (`edge_lts.profile.weights`) or load them before computing. int8 weights cannot be made of nothing: `fill` writes
    each as a float32 tensor that is quantised, packed and forgotten before the next. What stays float32 in an int8
    model, norms above all, is uninitialised there too.
    Raises EvaluationError("unsupported") for a backbone that can be counted but not built, and for a precision that
    this torch or this CPU does not have.
    """
    if arch.backbone not in BUILDERS:
        raise EvaluationError("unsupported", f"backbone {arch.backbone!r} has no model; built: {', '.join(BUILDERS)}")
    precision = arch.precision or precision
    kind, _, engine = precision.partition("-")
    before = torch.get_default_dtype()
    try:
        parts = Int8Parts(engine, fill) if kind == "int8" else FLOATS
        torch.set_default_dtype(torch.bfloat16 if kind == "bfloat16" else torch.float32)
        return BUILDERS[arch.backbone](arch, parts).eval().requires_grad_(kind != "int8")
    finally:
        torch.set_default_dtype(before)

"""What a proxy of quality may know of an architecture: few numbers, the same for one architecture or thousands.

A score that is a function of these alone can be carried by the exact solver (edge_lts.search.solver): given backbone,
d_model, d_embed and depth, a plain decoder's other numbers follow from the sum of its d_inner and of its log n_head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.counting import attention_params

Numbers = Any  # a number, or a numpy array of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Numbers or arrays that broadcast against one another; all positive but `log_heads`.

    attention_params: of attention without its norms, as edge_lts.counting counts them. log_heads: the mean over layers
    of ln n_head. total_params: with embedding and head; only `validate` looks at it.
    """

    decoder_params: Numbers
    attention_params: Numbers
    n_layer: Numbers
    d_model: Numbers
    d_embed: Numbers
    log_heads: Numbers
    total_params: Numbers = 1.0

    @classmethod
    def of(cls, arch: Architecture) -> "Shape":
        """Of one architecture, as numbers."""
        count = arch.parameter_count
        return cls(
            decoder_params=float(count.decoder),
            attention_params=float(attention_params(arch)),
            n_layer=float(arch.n_layer),
            d_model=float(arch.d_model),
            d_embed=float(arch.d_embed),
            log_heads=math.fsum(math.log(layer.n_head) for layer in arch.layers) / arch.n_layer,
            total_params=float(count.total),
        )

    @classmethod
    def of_many(cls, archs: Sequence[Architecture]) -> "Shape":
        """Of several, as arrays (n,) in their order."""
        import numpy as np

        shapes = [cls.of(arch) for arch in archs]
        return cls(**{name: np.array([getattr(one, name) for one in shapes], dtype=float) for name in FIELDS})


FIELDS = ("decoder_params", "attention_params", "n_layer", "d_model", "d_embed", "log_heads", "total_params")

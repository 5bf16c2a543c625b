"""Proxies in closed form: one number of an architecture, larger is better. None needs a model or a label.

Those of `FORMULAS` take the counts as given, because a published table has its own; only `nsc` looks at the layers.
All but `decoder_params_embed` are sums over layers, which is what the exact solver needs.
"""

import math
from collections.abc import Callable
from functools import lru_cache

from edge_lts.arch import Architecture
from edge_lts.proxies.shape import Shape

NSC_SIGMA = 0.02  # the standard deviation of a GPT-2's initial weights, as the paper's authors set it


@lru_cache(maxsize=4096)
def spectral_capacity(rows: int, columns: int, sigma: float = NSC_SIGMA) -> float:
    """The expected log det(I + W W') of a random matrix with independent entries of that standard deviation.

    n E[ln(1 + sigma^2 m x)], n the smaller and m the larger side, x by the law of Marchenko and Pastur (arXiv
    2609.23087). The integral is the Shannon transform: Tulino and Verdu 2004, Random Matrix Theory and Wireless
    Communications, example 2.14.
    """
    n, m = min(rows, columns), max(rows, columns)
    ratio, gain = n / m, sigma**2 * m
    root = math.sqrt(ratio)
    outer, inner = math.sqrt(gain * (1 + root) ** 2 + 1), math.sqrt(gain * (1 - root) ** 2 + 1)
    f = (outer - inner) ** 2 / 4
    return n * (math.log(1 + gain - f) + math.log(1 + gain * ratio - f) / ratio - f / (ratio * gain))


def nsc(arch: Architecture | None) -> float:
    """Neural spectral capacity (arXiv 2609.23087): the sum over all matrices of the decoder, q, k and v head by head.

    Beyond the paper's: fewer heads of k and v count as often as they are there, a gated FFN has a third matrix.
    """
    if arch is None:
        raise ValueError("nsc needs the layers")
    d, total = arch.d_model, 0.0
    for layer in arch.layers:
        width = arch.head_width(layer)
        total += (layer.n_head + 2 * layer.n_kv_head) * spectral_capacity(d, width)
        total += spectral_capacity(layer.n_head * width, d)
        total += (3 if arch.is_gated else 2) * spectral_capacity(layer.d_inner, d)
    return total


FORMULAS: dict[str, Callable[[Shape, Architecture | None], float]] = {
    "decoder_params": lambda shape, _: shape.decoder_params,
    "attention_params": lambda shape, _: shape.attention_params,
    "decoder_params_embed": lambda shape, _: shape.decoder_params * math.sqrt(shape.d_embed),
    "nsc": lambda _, arch: nsc(arch),
}


def score(name: str, arch: Architecture) -> float:
    """The proxy `name`, one of FORMULAS, of an architecture."""
    return float(FORMULAS[name](Shape.of(arch), arch))

"""Values for a candidate's parameters that are cheap to make but behave as real ones do.

A block of normal numbers is drawn once and copied into every parameter from ever different places: memory bandwidth
instead of a random number per weight. Every page is written, and neighbours differ: `torch.zeros` would share the
kernel's one zero page, which is faster to read and absent from the resident size. Magnitudes are those of GPT-2's own
initial values, so nothing is denormal and logits are finite. Tensors of another type than float32 get the same numbers,
rounded as they are copied.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

STANDARD_DEVIATION = 0.02  # GPT-2's initializer_range
_BLOCK = 1 << 18  # 1 MiB of float32: read from the CPU's cache, so that a copy costs one write
_STRIDE = 40_503  # odd: the next copy starts elsewhere in the block, and _BLOCK copies pass before one repeats


def fill_weights(model: nn.Module) -> int:
    """Fill all parameters of `model` in place; returns the bytes of its weights. Norms get weights near 1, and whatever
    says what its `weight` lies around gets that.

    int8 weights were filled when they were made (`edge_lts.model.build_model`) and only count.
    """
    n_bytes = fill_tensors(model.parameters())
    with torch.inference_mode():
        for module in model.modules():
            centre = 1.0 if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else getattr(module, "centre", None)
            if centre is not None:
                weight: Any = module.weight
                weight.add_(centre)
            n_bytes += int(getattr(module, "n_bytes", 0))
    return n_bytes


def fill_one(tensor: Tensor) -> None:
    """One tensor, with the next numbers in line."""
    with torch.inference_mode():
        _fill(tensor, _line())


@lru_cache(maxsize=1)
def _line() -> Iterator[Tensor]:
    return _spans()


def fill_tensors(tensors: Iterable[Tensor]) -> int:
    """The same for plain tensors, such as the buffers of a KV cache: normal numbers around 0."""
    spans = _spans()
    with torch.inference_mode():
        return sum(_fill(tensor, spans) for tensor in tensors)


@lru_cache(maxsize=1)
def _twice_the_block() -> Tensor:
    """The numbers, two times in a row, so that a run of _BLOCK may start anywhere. Always the same ones."""
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(_BLOCK, dtype=torch.float32).normal_(0.0, STANDARD_DEVIATION, generator=generator)
    return torch.cat([block, block])


def _spans() -> Iterator[Tensor]:
    """Endless runs of _BLOCK numbers, each beginning somewhere else."""
    numbers = _twice_the_block()
    for turn in count():
        start = turn * _STRIDE % _BLOCK
        yield numbers[start : start + _BLOCK]


def _fill(tensor: Tensor, spans: Iterator[Tensor]) -> int:
    flat = tensor.detach().view(-1)
    for begin in range(0, flat.numel(), _BLOCK):
        piece = flat[begin : begin + _BLOCK]
        piece.copy_(next(spans)[: piece.numel()])
    return flat.numel() * flat.element_size()

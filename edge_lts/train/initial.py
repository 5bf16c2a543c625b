"""Initial values that training begins with, the same for a seed, and which learning rate each parameter has.

A matrix of a linear layer has normal values of standard deviation 1 / sqrt(its inputs), those that write into the
residual stream (`out`, `down`) less by sqrt(2 n_layer) (Radford et al. 2019); tables of embeddings and positions 0.02;
norms 1, biases 0; the taps of a convolution 1/2, 1/6, 1/6 (google-research/primer).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from edge_lts.arch import Architecture
from edge_lts.model.attention import CausalConv
from edge_lts.training import BASE_WIDTH, Recipe

TABLE_DEVIATION = 0.02
_INTO_THE_STREAM = ("out", "down")


def initialise(model: nn.Module, arch: Architecture, seed: int) -> None:
    """Fill all parameters in place."""
    generator = torch.Generator().manual_seed(seed)
    tables = _tables(model)
    seen: set[int] = set()
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                if id(parameter) in tables:
                    parameter.normal_(0.0, TABLE_DEVIATION, generator=generator)
                elif isinstance(module, nn.Linear) and name == "weight":
                    deviation = parameter.shape[1] ** -0.5
                    if path.rpartition(".")[2] in _INTO_THE_STREAM:
                        deviation /= math.sqrt(2 * arch.n_layer)
                    parameter.normal_(0.0, deviation, generator=generator)
                elif isinstance(module, CausalConv):
                    parameter.fill_(1.0 / 6)
                    parameter[0] = 0.5
                else:  # a norm's weight; its bias, a linear layer's, or what is added to queries
                    parameter.fill_(1.0 if name == "weight" else 0.0)


def groups(model: nn.Module, arch: Architecture, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, each with `peak`, the rate that the schedule scales. Only matrices decay."""
    tables = _tables(model)
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, nn.Linear) and name == "weight" and id(parameter) not in tables
            kind = matrices if is_matrix else others
            if all(parameter is not known for known in kind):
                kind.append(parameter)
    scale = (BASE_WIDTH / arch.d_model) ** recipe.width_exponent
    return [
        {"params": matrices, "peak": recipe.learning_rate * scale, "weight_decay": recipe.weight_decay},
        {"params": others, "peak": recipe.learning_rate * recipe.table_rate, "weight_decay": 0.0},
    ]


def _tables(model: nn.Module) -> set[int]:
    """Tables by row, and the heads that share them or have their shape."""
    found = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        found.add(id(head.weight))
    return found

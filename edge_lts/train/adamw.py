"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) by torch's own fused kernel, without torch.optim.

torch.optim imports torch._dynamo when an optimizer is made, and that sympy and more, which a board does not have, and
which takes 2 s of processor time where it is there. The kernel is the one that `torch.optim.AdamW(fused=True)` calls,
with equal results; a test holds it to that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-8


class AdamW:
    """`groups` have `params`, `weight_decay` and `lr`, which may be changed between steps."""

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        self.groups = groups
        self._betas = betas
        self._parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._n_steps = [torch.zeros(()) for _ in self._parameters]

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Parameters without a gradient stay as they are."""
        first = 0
        for group in self.groups:
            end = first + len(group["params"])
            rows = [row for row in range(first, end) if self._parameters[row].grad is not None]
            first = end
            if not rows:
                continue
            counts = [self._n_steps[row] for row in rows]
            for count in counts:
                count += 1
            torch._fused_adamw_(
                [self._parameters[row] for row in rows],
                [grad for row in rows if (grad := self._parameters[row].grad) is not None],
                [self._means[row] for row in rows],
                [self._squares[row] for row in rows],
                [],
                counts,
                lr=group["lr"],
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"means": self._means, "squares": self._squares, "n_steps": self._n_steps}

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        for name, own in self.state_dict().items():
            for tensor, saved in zip(own, state[name], strict=True):
                tensor.copy_(saved)

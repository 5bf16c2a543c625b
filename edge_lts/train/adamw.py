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


class _Row:
    """A parameter, the running means of its gradient and of that squared, and how many steps it took."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.mean = torch.zeros_like(parameter)
        self.square = torch.zeros_like(parameter)
        self.n_steps = torch.zeros(())


class AdamW:
    """`groups` have `params`, `weight_decay` and `lr`, which may be changed between steps."""

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        self.groups = groups
        self._betas = betas
        self._rows = [[_Row(parameter) for parameter in group["params"]] for group in groups]

    def zero_grad(self) -> None:
        for row in self._all:
            row.parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Parameters without a gradient stay as they are."""
        for group, rows in zip(self.groups, self._rows, strict=True):
            moved = [(row, row.parameter.grad) for row in rows if row.parameter.grad is not None]
            if not moved:
                continue
            for row, _ in moved:
                row.n_steps += 1
            torch._fused_adamw_(
                [row.parameter for row, _ in moved],
                [grad for _, grad in moved],
                [row.mean for row, _ in moved],
                [row.square for row, _ in moved],
                [],
                [row.n_steps for row, _ in moved],
                lr=group["lr"],
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    @property
    def _all(self) -> list["_Row"]:
        return [row for rows in self._rows for row in rows]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {
            "means": [row.mean for row in self._all],
            "squares": [row.square for row in self._all],
            "n_steps": [row.n_steps for row in self._all],
        }

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        for name, own in self.state_dict().items():
            for tensor, saved in zip(own, state[name], strict=True):
                tensor.copy_(saved)

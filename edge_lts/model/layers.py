"""What every backbone is made of: layers of torch without the time spent on initial values.

Whoever builds a model fills its parameters (`edge_lts.profile.weights`) or loads them before computing.
"""

from typing import Literal

from torch import nn

# Which positions a forward returns: a board that generates needs the last, the paper's protocol computes all.
Logits = Literal["last", "all"]


class Linear(nn.Linear):
    """nn.Linear, uninitialised."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding, uninitialised."""

    def reset_parameters(self) -> None:
        pass

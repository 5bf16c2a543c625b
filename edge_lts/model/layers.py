"""What every backbone is made of: layers of torch without the time spent on initial values, norms and the FFN.

A backbone asks its `Parts` for weight matrices, so that one description serves every precision (`quantised` has the
int8 parts). Whoever builds a model of floats fills its parameters (`edge_lts.profile.weights`) or loads them first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.style import relu_power

# Which positions a forward returns: a board that generates needs the last, the paper's protocol computes all.
Logits = Literal["last", "all"]


class Linear(nn.Linear):
    """nn.Linear, uninitialised."""

    def reset_parameters(self) -> None:
        pass

    def transposed(self, x: Tensor) -> Tensor:
        """The product with the transpose: (..., out) to (..., in), without the bias."""
        return x @ self.weight


class Embedding(nn.Embedding):
    """nn.Embedding, uninitialised."""

    def reset_parameters(self) -> None:
        pass

    def rows(self, start: int, end: int) -> Tensor:
        return self.weight[start:end]


class Parts:
    """Makes the weight matrices of a model: here in torch's default dtype, uninitialised."""

    def linear(self, width: int, n_out: int, bias: bool = True) -> nn.Module:
        return Linear(width, n_out, bias)

    def table(self, n_rows: int, width: int) -> Any:
        """Rows by id, and a run of them by `rows(start, end)`."""
        return Embedding(n_rows, width)

    def tied(self, table: Any, bias: bool) -> nn.Module:
        """The head that shares the weights of `table`: from its width to its number of rows."""
        head = Linear(table.embedding_dim, table.num_embeddings, bias)
        head.weight = table.weight
        return head

    def head(self, width: int, n_out: int, bias: bool) -> nn.Module:
        return Linear(width, n_out, bias)

    def projection(self, width: int, n_out: int) -> nn.Module:
        """A product without bias that `transposed` can use the other way."""
        return Linear(width, n_out, bias=False)


FLOATS = Parts()


def transposed(projection: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = cast(Any, projection).transposed(x)
    return y


def norm_of(arch: Architecture) -> nn.Module:
    epsilon = arch.family.norm_epsilon
    return nn.RMSNorm(arch.d_model, epsilon) if arch.norm == "rmsnorm" else nn.LayerNorm(arch.d_model, epsilon)


def activation_of(name: str | None) -> Callable[[Tensor], Tensor]:
    """The function that an architecture's `activation` names; GELU in its tanh form."""
    power = relu_power(name or "")
    if power is None:
        return functional.silu if name == "silu" else partial(functional.gelu, approximate="tanh")
    if power == 1:
        return functional.relu
    return lambda x: functional.relu(x).square() if power == 2 else functional.relu(x).pow(power)


class FeedForward(nn.Module):
    """One inner layer of d_inner. Gated (Shazeer 2020, arXiv 2002.05202), `up` makes the gates first, then what they
    are multiplied with."""

    def __init__(self, arch: Architecture, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        bias = arch.family.has_biases
        self.is_gated = arch.is_gated
        self.activation = activation_of(arch.activation)
        self.up = parts.linear(arch.d_model, (2 if arch.is_gated else 1) * spec.d_inner, bias=bias)
        self.down = parts.linear(spec.d_inner, arch.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.is_gated:
            gates_BTF, x_BTF = self.up(x_BTD).chunk(2, dim=-1)
            gated_BTD: Tensor = self.down(self.activation(gates_BTF) * x_BTF)
            return gated_BTD
        y_BTD: Tensor = self.down(self.activation(self.up(x_BTD)))
        return y_BTD

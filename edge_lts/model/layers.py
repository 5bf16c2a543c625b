"""What every backbone is made of: layers of torch without the time spent on initial values.

A backbone asks its `Parts` for weight matrices, so that one description serves every precision (`quantised` has the
int8 parts). Whoever builds a model of floats fills its parameters (`edge_lts.profile.weights`) or loads them first.
"""

from typing import Any, Literal, cast

from torch import Tensor, nn

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

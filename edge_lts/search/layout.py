"""What the states of one width say: parameters, bytes and quality from depth, sum of d_inner and a few more integers.

Whatever adds up over layers (parameters, weights, cache) is taken from the closed formulas on a few small stacks of the
width and written as a linear function of the integers that the solver carries. These are, besides depth and the sum of
d_inner, the widths in which the table's layers differ (`WidthTable.widths`) and, where a calibrated proxy looks at
heads, the exponents of the primes in n_head, because the sum of ln n_head is a sum of those. Where that is more than
the solver can carry, it adds up ln n_head along the way instead (`log_heads`), and what it finds is no longer exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture
from edge_lts.counting import attention_params
from edge_lts.errors import SpaceError
from edge_lts.footprint import cache_bytes, cache_tokens, weight_bytes, working_set_bytes
from edge_lts.records import Protocol
from edge_lts.search.solver import States
from edge_lts.space_table import WidthTable

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_N_TRIED = 12  # layer shapes that a sum's coefficients come from, if these span all
_N_SIZES = 24  # sizes at which a proxy is tried: does it look at heads?


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """Integers per shape as whole steps of a unit, from 0 up."""

    offset: int
    unit: int
    steps: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[int]) -> "_Column":
        low = min(values)
        unit = math.gcd(*(value - low for value in values)) or 1
        return cls(offset=low, unit=unit, steps=tuple((value - low) // unit for value in values))


class Layout:
    """One width of a space, for one protocol and proxy. `features` (m, q) are the integers per shape that the solver
    carries, `levels` (m,) the bytes that a stack works in while it runs such a layer."""

    def __init__(
        self, table: WidthTable, one: Architecture, protocol: Protocol, proxy: "CalibratedProxy | None" = None
    ) -> None:
        """`one` is a stack of the width with a single layer, the table's `frame`."""
        self._table, self._one, self._proxy = table, one, proxy
        columns = [_Column.of(values) for values in table.widths.values()]
        self.n_widths = len(columns)
        self.log_heads: Floats = np.log([shape.n_head for shape in table.shapes])
        self.heads_gain = 0.0  # what one more ln n_head is worth in quality, roughly
        self._inner = _Column.of([shape.d_inner for shape in table.shapes])
        exponents = _prime_exponents([shape.n_head for shape in table.shapes])
        self._heads: list[tuple[float, _Column, int | None]] = []  # ln of a prime, its exponents, the feature of these
        is_carried = any(max(own) > min(own) for own in exponents.values()) and self._looks_at_heads()
        for prime, own in exponents.items():
            column, at = _Column.of(own), None
            if is_carried and max(column.steps) > 0:
                at = len(columns)
                columns.append(column)
            self._heads.append((math.log(prime), column, at))
        m = len(table.shapes)
        self.features: Integers = np.array([column.steps for column in columns], dtype=np.int64).reshape(-1, m).T
        working = [working_set_bytes(one.replace(layers=(shape,)), protocol) for shape in table.shapes]
        self.levels: Integers = np.array(working, dtype=np.int64)
        tokens, precision = cache_tokens(one, protocol), protocol.precision
        self.least_bytes = weight_bytes(one, precision)  # less than any stack of this width stores
        self.decoder_params = self._sum(lambda arch: arch.decoder_params)
        self.stored_bytes = self._sum(lambda arch: weight_bytes(arch, precision) + cache_bytes(arch, tokens, precision))
        self._attention: Callable[[States], Floats] | None = None

    def quality(self, states: States, log_heads_sum: Floats | None = None) -> Floats:
        """(n,) lower bounds of what the proxy expects. `log_heads_sum`: of ln n_head, where no feature has it."""
        if self._attention is None:
            self._attention = self._sum(attention_params)
        depth = states.depth.astype(np.float64)
        if log_heads_sum is None:
            log_heads_sum = np.zeros(len(states))
            for log_prime, column, at in self._heads:
                steps = 0.0 if at is None else column.unit * states.features[:, at]
                log_heads_sum += log_prime * (column.offset * depth + steps)
        return self._quality(self.decoder_params(states), self._attention(states), depth, log_heads_sum / depth)

    def _quality(self, decoder: Floats, attention: Floats, depth: Floats, log_heads: Floats | float) -> Floats:
        from edge_lts.proxies.shape import Shape

        assert self._proxy is not None
        shape: Shape = Shape(
            decoder_params=decoder,
            attention_params=attention,
            n_layer=depth,
            d_model=float(self._one.d_model),
            d_embed=float(self._one.d_embed),
            log_heads=log_heads,
        )
        found: Floats = np.asarray(self._proxy.quality(shape), dtype=np.float64)
        return found

    def _looks_at_heads(self) -> bool:
        """Whether heads change the proxy's value anywhere in this width, tried at its depths and sizes."""
        if self._proxy is None:
            return False
        low, high = self._table.extent()
        depths, sizes = np.meshgrid(np.array(self._table.depths, dtype=float), np.geomspace(low, high, _N_SIZES))
        attention = attention_params(self._one) * depths
        logs = self.log_heads
        tried = [self._quality(sizes, attention, depths, log) for log in (logs.min(), logs.mean(), logs.max())]
        self.heads_gain = float((tried[-1] - tried[0]).mean() / max(1e-9, logs.max() - logs.min()))
        return any((one != tried[0]).any() for one in tried)

    def _sum(self, quantity: Callable[[Architecture], int]) -> Callable[[States], Floats]:
        """(n,) values of `quantity`, which adds up over layers, for any states; whole numbers.

        Raises SpaceError where the carried integers do not determine it.
        """
        shapes, one = self._table.shapes, self._one
        matrix = np.column_stack([np.ones(len(shapes)), np.array(self._inner.steps), self.features]).astype(np.float64)
        rows = np.unique(np.linspace(0, len(shapes) - 1, _N_TRIED).round().astype(int))
        if np.linalg.matrix_rank(matrix[rows]) < np.linalg.matrix_rank(matrix):
            rows = np.arange(len(shapes))
        alone, twice = quantity(one), quantity(one.replace(layers=one.layers * 2))
        per_layer = np.array([quantity(one.replace(layers=(*one.layers, shapes[row]))) - alone for row in rows])
        coefficients = np.linalg.lstsq(matrix[rows], per_layer.astype(np.float64), rcond=None)[0]
        if (np.rint(matrix[rows] @ coefficients) != per_layer).any():
            raise SpaceError(f"the solver cannot carry a quantity of width {self._table.d_model}: it is no sum")
        base, inner = 2 * alone - twice, self._inner

        def total(states: States) -> Floats:
            steps = (states.d_inner_sum - states.depth * inner.offset) / inner.unit
            carried = states.features @ coefficients[2 : 2 + states.features.shape[1]]
            inside = coefficients[0] * states.depth + coefficients[1] * steps + carried
            whole: Floats = np.rint(base + inside)
            return whole

        return total


def _prime_exponents(numbers: Sequence[int]) -> dict[int, list[int]]:
    """By prime, ascending, its exponent in each of the numbers."""
    found: dict[int, list[int]] = {}
    left, prime = list(numbers), 2
    while any(number > 1 for number in left):
        own = [0] * len(left)
        for index, number in enumerate(left):
            while number % prime == 0:
                number //= prime
                own[index] += 1
            left[index] = number
        if any(own):
            found[prime] = own
        prime += 1
    return found

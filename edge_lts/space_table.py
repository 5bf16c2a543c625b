"""What can be built at one width, embedding and style: layer shapes, what each costs, which counts a depth reaches.

A decoder's parameters are a sum over its layers plus a constant, so the counts that m layers can reach form a small set
of integers. It is kept as the bits of one integer (`reach[m]`), which makes "is there any member left?" exact, and
counting the members works the same way with wider digits. Holds for every backbone whose count is additive over layers;
all of ours are. Where the costs share no useful unit, the interval between the extremes stands in for the set.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.style import STYLE_KEYS

# Machine words that may be touched per table: a few tens of milliseconds on a slow board.
MAX_REACH_WORDS = 20_000_000
MAX_COUNT_WORDS = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthTable:
    """Layer shapes of one width, embedding and style in canonical order, with bounds on the sum of their costs.

    style: width of the heads (None: d_model / n_head), then the values of STYLE_KEYS. heads: (n_head, n_kv_head), in
    order. frame: a shape that says what `style` says; where heads fill d_model, an architecture does not write their
    width. widths: what n_head and n_kv_head times the heads' width are in each shape (`q_width`, `kv_width`), where
    that differs between shapes; nothing in spaces without `n_kv_head` and `d_head`. costs: decoder parameters that each
    shape adds, smallest and largest their extremes. base: decoder parameters without any layer. outside: parameters
    outside the decoder. unit: greatest common divisor of the differences of costs. reach: see the module, None if too
    large. low, high: inclusive bounds on decoder parameters. depths: the numbers of layers for which a member exists,
    ascending.
    """

    d_model: int
    d_embed: int
    vocab_size: int
    style: tuple[Any, ...]
    d_inner: tuple[int, ...]
    n_head: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    shapes: tuple[LayerSpec, ...]
    frame: int
    widths: Mapping[str, tuple[int, ...]]
    costs: tuple[int, ...]
    smallest: int
    largest: int
    base: int
    outside: int
    unit: int
    reach: tuple[int, ...] | None
    low: int
    high: int
    is_homogeneous: bool
    depths: tuple[int, ...]

    @classmethod
    def build(
        cls,
        d_model: int,
        d_inner: tuple[int, ...],
        heads: tuple[tuple[int, int], ...],
        depths: tuple[int, ...],
        fixed: dict[str, Any],
        is_homogeneous: bool,
    ) -> "WidthTable":
        """Every shape, without bounds. Raises ArchitectureError where d_model and `fixed` contradict each other."""
        shapes = tuple(
            LayerSpec(d_inner=inner, n_head=head, n_kv_head=shared) for inner in d_inner for head, shared in heads
        )
        ones = [Architecture(d_model=d_model, layers=(shape,), **fixed) for shape in shapes]
        first = ones[0]
        count = first.parameter_count
        twice = first.replace(layers=shapes[:1] * 2).decoder_params
        costs = tuple(twice - count.decoder + one.decoder_params - count.decoder for one in ones)
        sums = {name: tuple(one.width_sums[name] for one in ones) for name in first.width_sums}
        smallest = min(costs)
        unit = math.gcd(*(cost - smallest for cost in costs)) or 1
        return cls(
            d_model=d_model,
            d_embed=first.d_embed,
            vocab_size=first.vocab_size,
            style=(fixed.get("d_head"), *(getattr(first, key) for key in STYLE_KEYS)),
            d_inner=d_inner,
            n_head=tuple(dict.fromkeys(head for head, _ in heads)),
            heads=heads,
            shapes=shapes,
            frame=next((index for index, one in enumerate(ones) if one.d_head is not None), 0),
            widths={name: values for name, values in sums.items() if len(set(values)) > 1},
            costs=costs,
            smallest=smallest,
            largest=max(costs),
            base=count.decoder - costs[0],
            outside=count.total - count.decoder,
            unit=unit,
            reach=None if is_homogeneous else _reachable(sorted({(c - smallest) // unit for c in costs}), depths[-1]),
            low=0,
            high=1 << 62,
            is_homogeneous=is_homogeneous,
            depths=depths,
        )

    def within(self, fixed: dict[str, Any]) -> "WidthTable":
        """The same layers within another embedding. Raises ArchitectureError likewise."""
        first = Architecture(d_model=self.d_model, layers=self.shapes[:1], **fixed)
        outside = first.total_params - first.decoder_params
        return replace(self, d_embed=first.d_embed, vocab_size=first.vocab_size, outside=outside)

    def extent(self) -> tuple[int, int]:
        """Smallest and largest decoder_params over the depths of this table, bounds left aside."""
        return self.base + self.depths[0] * self.smallest, self.base + self.depths[-1] * self.largest

    @property
    def n_kv_head(self) -> tuple[int, ...]:
        return tuple(sorted({shared for _, shared in self.heads}))

    def shared_with(self, n_head: int) -> tuple[int, ...]:
        """The values of n_kv_head that go with so many heads, ascending."""
        return tuple(shared for head, shared in self.heads if head == n_head)

    def decoder_params(self, n_layer: NDArray[np.int64], d_inner_sum: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) decoder parameters of stacks: linear in depth and the sum of d_inner. Only where `widths` is empty."""
        if self.widths:
            raise ValueError("here decoder parameters depend on the heads too")
        inner = self.d_inner
        per_unit = (self.costs[-1] - self.costs[0]) // (inner[-1] - inner[0]) if len(inner) > 1 else 0
        first = self.costs[0] - per_unit * inner[0]
        counts: NDArray[np.int64] = self.base + n_layer * first + per_unit * d_inner_sum
        return counts

    def index(self, d_inner: int, n_head: int, n_kv_head: int | None = None) -> int:
        """Position of a shape, whose values must be in this table; n_kv_head None: the most there are."""
        pair = (n_head, self.shared_with(n_head)[-1] if n_kv_head is None else n_kv_head)
        return self.d_inner.index(d_inner) * len(self.heads) + self.heads.index(pair)

    def index_of(self, layer: LayerSpec) -> int:
        return self.index(layer.d_inner, layer.n_head, layer.n_kv_head)

    def is_within(self, picks: list[int]) -> bool:
        """Whether layers of these shapes keep the bounds on decoder parameters."""
        costs = self.costs
        return self.low <= self.base + sum(costs[pick] for pick in picks) <= self.high

    def can_complete(self, n_layer: int, so_far: int) -> bool:
        """Whether some `n_layer` further layers bring `so_far` decoder parameters into the bounds."""
        if self.is_homogeneous:
            return any(self.low <= so_far + n_layer * cost <= self.high for cost in set(self.costs))
        floor = so_far + n_layer * self.smallest
        if self.reach is None:
            return floor <= self.high and so_far + n_layer * self.largest >= self.low
        first = max(0, -(-(self.low - floor) // self.unit))
        last = (self.high - floor) // self.unit
        if last < first:
            return False
        bits = self.reach[n_layer] >> first
        return bits != 0 and (bits & -bits).bit_length() <= last - first + 1

    def draw(self, n_layer: int, rng: np.random.Generator) -> list[int]:
        """Shapes drawn uniformly and independently, bounds left aside; ascending."""
        if self.is_homogeneous:
            return [int(rng.integers(len(self.shapes)))] * n_layer
        picks: list[int] = rng.integers(len(self.shapes), size=n_layer).tolist()
        picks.sort()
        return picks

    def draw_within(self, n_layer: int, rng: np.random.Generator) -> list[int] | None:
        """Shapes that keep the bounds, each drawn uniformly from those that still allow completion; ascending.

        Not uniform over members; for bounds so narrow that drawing and rejecting finds nothing. None if there are none.
        """
        if self.is_homogeneous:
            members = list(self.walk(n_layer))
            return members[int(rng.integers(len(members)))] if members else None
        picks: list[int] = []
        so_far = self.base
        for remaining in range(n_layer - 1, -1, -1):
            allowed = [i for i, cost in enumerate(self.costs) if self.can_complete(remaining, so_far + cost)]
            if not allowed:
                return None
            pick = allowed[int(rng.integers(len(allowed)))]
            picks.append(pick)
            so_far += self.costs[pick]
        return sorted(picks)

    def walk(self, n_layer: int) -> Iterator[list[int]]:
        """Every member of `n_layer` layers once, in lexicographic order of shapes."""
        if self.is_homogeneous:
            yield from (picks for picks in ([i] * n_layer for i in range(len(self.shapes))) if self.is_within(picks))
        else:
            yield from self._walk(n_layer, 0, self.base)

    def _walk(self, n_layer: int, first: int, so_far: int) -> Iterator[list[int]]:
        if n_layer == 0:
            yield []
            return
        for index in range(first, len(self.shapes)):
            total = so_far + self.costs[index]
            if self.can_complete(n_layer - 1, total):
                for rest in self._walk(n_layer - 1, index, total):
                    yield [index, *rest]

    def count(self) -> int | None:
        """How many members (multisets of shapes within the bounds) there are; None where counting would take long."""
        if self.is_homogeneous:
            return sum(1 for depth in self.depths for _ in self.walk(depth))
        low, high = self.extent()
        if self.low <= low and high <= self.high:
            return self.count_unbounded()
        if self.reach is None:
            return None
        smallest, depth, n = self.smallest, self.depths[-1], len(self.shapes)
        # Kronecker substitution: digit s of sums[m], in base 2**width, counts the multisets of m shapes with sum s.
        width = math.comb(n + depth - 1, depth).bit_length() + 1
        n_digits = (self.largest - smallest) // self.unit * depth + 1
        if n_digits * width // 64 * n * depth > MAX_COUNT_WORDS:
            return None
        sums = [1] + [0] * depth
        for cost in self.costs:
            shift = (cost - smallest) // self.unit * width
            for m in range(1, depth + 1):
                sums[m] += sums[m - 1] << shift
        total = 0
        for m in self.depths:
            floor = self.base + m * smallest
            first = max(0, -(-(self.low - floor) // self.unit))
            last = min((self.high - floor) // self.unit, n_digits - 1)
            if last >= first:
                window = (sums[m] >> (first * width)) & ((1 << ((last - first + 1) * width)) - 1)
                total += window % ((1 << width) - 1)  # the sum of the digits, as in casting out nines
        return total

    def count_unbounded(self) -> int:
        """How many members there would be without bounds on parameters."""
        n = len(self.shapes)
        return sum(n if self.is_homogeneous else math.comb(n + depth - 1, depth) for depth in self.depths)


def _reachable(offsets: list[int], max_depth: int) -> tuple[int, ...] | None:
    """Bit s of entry m is set if m of the `offsets`, with repetition, add up to s."""
    n_words = offsets[-1] * max_depth // 64 + 1
    if n_words * len(offsets) * max_depth > MAX_REACH_WORDS:
        return None
    reach = [1]
    for _ in range(max_depth):
        bits = 0
        for offset in offsets:
            bits |= reach[-1] << offset
        reach.append(bits)
    return tuple(reach)

"""Do two boards rank architectures alike? Spearman's rho and Kendall's tau-b, with intervals, and the pairs that count.

Over a wide range of sizes any two boards agree, because size ranks cost everywhere; so the pairs of nearly equal size
are counted apart. A pair is decided where its intervals are apart on both boards: the rest is noise.
Sources: Kendall 1945 (tau-b, for ties); intervals by the bootstrap over architectures, percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_lts_host.report.intervals import Bounds, is_firm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MIN_SHARED = 3
NEAR = 0.1  # decoder_params that differ by less are of one size
_N_DRAWS = 500
_MAX_DRAWN = 400  # architectures: a bootstrap is quadratic in them
_SEED = 0x7278


class Pair(NamedTuple):
    """One architecture on two boards."""

    size: float
    a: float
    b: float
    bounds_a: Bounds | None
    bounds_b: Bounds | None


def rank_correlation(pairs: Sequence[Pair]) -> dict[str, Any]:
    """`n`, `spearman` and `kendall` with `ci95` each, and `decided`, `decided_near`: [pairs, decided, of these alike].

    Null below three architectures and where all values of one board are equal. Quadratic in `pairs`.
    """
    import numpy as np

    found: dict[str, Any] = {"n": len(pairs), "spearman": None, "kendall": None}
    found["spearman_ci95"] = found["kendall_ci95"] = None
    found["decided"] = _decided(pairs, near=False)
    found["decided_near"] = _decided(pairs, near=True)
    if len(pairs) < MIN_SHARED:
        return found
    a, b = np.array([one.a for one in pairs]), np.array([one.b for one in pairs])
    found["spearman"], found["kendall"] = spearman(a, b), kendall(a, b)
    rng = np.random.default_rng(_SEED)
    n = min(len(pairs), _MAX_DRAWN)
    drawn = [rng.integers(0, len(pairs), n) for _ in range(_N_DRAWS)]
    for name, measure in (("spearman", spearman), ("kendall", kendall)):
        values = [value for rows in drawn if (value := measure(a[rows], b[rows])) is not None]
        if found[name] is not None and len(values) > _N_DRAWS // 2:
            low, high = (float(bound) for bound in np.quantile(values, [0.025, 0.975]))
            found[f"{name}_ci95"] = [min(low, found[name]), max(high, found[name])]
    return found


def spearman(a: Numbers, b: Numbers) -> float | None:
    """Pearson's correlation of the ranks, ties at their mean rank; None where one side is constant."""
    return _pearson(_ranks(a), _ranks(b))


def kendall(a: Numbers, b: Numbers) -> float | None:
    """tau-b; None where one side is constant."""
    import numpy as np

    signs_a, signs_b = (np.sign(np.subtract.outer(one, one)) for one in (a, b))
    untied = math.sqrt(float((signs_a != 0).sum()) * float((signs_b != 0).sum()))
    return float((signs_a * signs_b).sum()) / untied if untied else None


def _ranks(values: Numbers) -> Numbers:
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Numbers = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks


def _pearson(a: Numbers, b: Numbers) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else None


def _decided(pairs: Sequence[Pair], *, near: bool) -> list[int]:
    """[pairs, those decided on both boards, of these in the same order]."""
    n = decided = alike = 0
    for index, one in enumerate(pairs):
        for other in pairs[:index]:
            if near and abs(one.size - other.size) >= NEAR * max(one.size, other.size):
                continue
            n += 1
            order_a, order_b = _order(one.bounds_a, other.bounds_a), _order(one.bounds_b, other.bounds_b)
            decided += order_a * order_b != 0
            alike += order_a * order_b > 0
    return [n, decided, alike]


def _order(one: Bounds | None, other: Bounds | None) -> int:
    """1 where `one` is surely larger, -1 where surely smaller, 0 where that cannot be told."""
    if one is None or other is None or not is_firm(one, other):
        return 0
    return (one.low > other.high) - (one.high < other.low)

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
    drawn = np.zeros((_N_DRAWS, len(pairs)))  # how often each architecture is in a draw
    for row in drawn:
        row += np.bincount(rng.integers(0, len(pairs), n), minlength=len(pairs))
    for name, values in (("spearman", spearmans(a, b, drawn)), ("kendall", kendalls(a, b, drawn))):
        if found[name] is not None and len(values) > _N_DRAWS // 2:
            low, high = (float(bound) for bound in np.quantile(values, [0.025, 0.975]))
            found[f"{name}_ci95"] = [min(low, found[name]), max(high, found[name])]
    return found


def spearmans(a: Numbers, b: Numbers, drawn: Numbers) -> Numbers:
    """Spearman's rho of each draw (a row of `drawn`, times that each architecture is in it); those without one left
    out."""
    import numpy as np

    n = drawn.sum(axis=1)
    deviations = []
    for values in (a, b):
        below = np.subtract.outer(values, values) > 0
        equal = np.equal.outer(values, values)
        ranks = drawn @ below.T.astype(float) + (drawn @ equal.astype(float) + 1) / 2  # ties at their mean rank
        deviations.append(ranks - ((drawn * ranks).sum(axis=1) / n)[:, None])
    x, y = deviations
    scale = np.sqrt((drawn * x * x).sum(axis=1) * (drawn * y * y).sum(axis=1))
    shared = (drawn * x * y).sum(axis=1)
    found: Numbers = np.clip(shared[scale > 0] / scale[scale > 0], -1.0, 1.0)
    return found


def kendalls(a: Numbers, b: Numbers, drawn: Numbers, counted: Numbers | None = None) -> Numbers:
    """tau-b of each draw, in the same way; only over the pairs that are 1 in `counted` (n, n), if given."""
    import numpy as np

    signs_a, signs_b = signs_of(a), signs_of(b)
    if counted is not None:
        signs_a, signs_b = signs_a * counted, signs_b * counted

    def total(signs: Numbers) -> Numbers:
        found: Numbers = ((drawn @ signs) * drawn).sum(axis=1)
        return found

    untied = np.sqrt(total(np.abs(signs_a)) * total(np.abs(signs_b)))
    found: Numbers = total(signs_a * signs_b)[untied > 0] / untied[untied > 0]
    return found


def signs_of(values: Numbers) -> Numbers:
    """(n, n): 1 where the first of two is larger, -1 where the second is."""
    import numpy as np

    found: Numbers = np.sign(np.subtract.outer(values, values))
    return found


def spearman(a: Numbers, b: Numbers) -> float | None:
    """Pearson's correlation of the ranks, ties at their mean rank; None where one side is constant."""
    return _pearson(_ranks(a), _ranks(b))


def kendall(a: Numbers, b: Numbers) -> float | None:
    """tau-b; None where one side is constant."""
    signs_a, signs_b = signs_of(a), signs_of(b)
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
    import numpy as np

    sizes = np.array([one.size for one in pairs])
    counted = np.tri(len(pairs), k=-1, dtype=bool)
    if near:
        counted &= np.abs(np.subtract.outer(sizes, sizes)) < NEAR * np.maximum.outer(sizes, sizes)
    both = _orders([one.bounds_a for one in pairs]) * _orders([one.bounds_b for one in pairs])
    return [int(counted.sum()), int((both[counted] != 0).sum()), int((both[counted] > 0).sum())]


def _orders(bounds: Sequence[Bounds | None]) -> NDArray[np.int8]:
    """For each two: 1 where the first is surely larger, -1 where surely smaller, 0 where that cannot be told."""
    import numpy as np

    sure = np.array([one is not None and is_firm(one) for one in bounds], dtype=bool)
    low, high = (np.array([math.nan if one is None else one[side] for one in bounds]) for side in (0, 1))
    found: NDArray[np.int8] = np.greater.outer(low, high).astype(np.int8) - np.less.outer(high, low).astype(np.int8)
    found[~np.logical_and.outer(sure, sure)] = 0
    return found

"""How well a proxy ranks trained models: correlations over all pairs and over those that size does not decide.

Kendall's tau-b (Kendall 1945) over a choice of pairs: (pairs in the same order less pairs in the opposite one) / sqrt
(pairs that the proxy tells apart * pairs that the labels tell apart). Pairs are of equal size where they differ by less
than a tenth of the larger. The common ratio is the share of the truly best models among those that the proxy puts
first, as in LiteTransformerSearch (arXiv 2203.02094). Intervals: bootstrap over architectures, percentiles.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edge_lts.proxies.shape import Shape
from edge_lts_host.report.ranks import NEAR, kendalls, signs_of, spearman, spearmans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TOPS = (10, 30, 50)  # percent
MIN_PAIRS = 10  # below, a correlation over chosen pairs says nothing
_N_DRAWS = 1000
_SEED = 0x7031  # the same data always give the same interval

Statistic = dict[str, Any]  # value and ci95, both None where they cannot be told; n_pairs where pairs are chosen


def near(values: Array) -> Array:
    """(n, n), 1 where two values differ by less than a tenth of the larger. NaN is near nothing."""
    import numpy as np

    apart = np.abs(np.subtract.outer(values, values))
    found: Array = (apart < NEAR * np.maximum.outer(values, values)).astype(float)
    return found


def rank_statistics(score: Array, quality: Array, shape: Shape) -> dict[str, Statistic]:
    """Every statistic of a score (n,) against quality (n,); quadratic in n. Larger is better in both."""
    import numpy as np

    n = len(quality)
    rng = np.random.default_rng(_SEED)
    drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(_N_DRAWS)]).astype(float)
    sizes, totals = np.asarray(shape.decoder_params, dtype=float), np.asarray(shape.total_params, dtype=float)
    same_embedding = np.equal.outer(shape.d_embed, shape.d_embed).astype(float)
    value = spearman(score, quality)
    found: dict[str, Statistic] = {"spearman": _statistic(value, spearmans(score, quality, drawn))}
    pairs = {
        "kendall_tau": np.ones((n, n)),
        "equal_size_tau": near(sizes),
        "equal_size_tau_within_d_embed": near(sizes) * same_embedding,
        "equal_total_params_tau": near(totals),
    }
    for name, counted in pairs.items():
        found[name] = _kendall(score, quality, counted, drawn)
    ratios = _common_ratios(score, quality, drawn)
    for percent in TOPS:
        found[f"common_ratio_top{percent}"] = _statistic(common_ratio(score, quality, percent), ratios[percent])
    return found


def _kendall(score: Array, quality: Array, counted: Array, drawn: Array) -> Statistic:
    import numpy as np

    n_pairs = round(float(np.tril(counted, -1).sum()))
    if n_pairs < MIN_PAIRS:
        return {"value": None, "ci95": None, "n_pairs": n_pairs}
    found = _statistic(kendall_of_pairs(score, quality, counted), kendalls(score, quality, drawn, counted))
    return {**found, "n_pairs": n_pairs}


def kendall_of_pairs(score: Array, quality: Array, counted: Array) -> float | None:
    """tau-b over the pairs that are 1 in `counted` (n, n); None where all of them are tied on one side."""
    import numpy as np

    a, b = signs_of(score) * counted, signs_of(quality) * counted
    untied = math.sqrt(float(np.abs(a).sum()) * float(np.abs(b).sum()))
    return float((a * b).sum()) / untied if untied else None


def equal_size_tau(score: Array, quality: Array, sizes: Array) -> float | None:
    """tau-b over the pairs of equal size."""
    return kendall_of_pairs(score, quality, near(sizes))


def common_ratio(score: Array, quality: Array, percent: int) -> float:
    """The share of the best `percent` of models that the score, too, has among its best. Ties: the first ones."""
    import numpy as np

    k = _top(len(quality), percent)
    best, chosen = (np.argsort(-values, kind="stable")[:k] for values in (quality, score))
    return len(np.intersect1d(best, chosen)) / k


def _common_ratios(score: Array, quality: Array, drawn: Array) -> dict[int, Array]:
    """Of each draw, by percent of TOPS."""
    import numpy as np

    n = len(quality)
    index = np.stack([np.repeat(np.arange(n), times.astype(int)) for times in drawn])
    orders = [np.argsort(-values[index], axis=1, kind="stable") for values in (quality, score)]
    found = {}
    for percent in TOPS:
        k = _top(n, percent)
        chosen = np.zeros((2, *index.shape), dtype=bool)
        for side, order in zip(chosen, orders, strict=True):
            np.put_along_axis(side, order[:, :k], True, axis=1)
        found[percent] = chosen.all(axis=0).sum(axis=1) / k
    return found


def _top(n: int, percent: int) -> int:
    return max(1, round(n * percent / 100))


def _statistic(value: float | None, draws: Array) -> Statistic:
    import numpy as np

    if value is None or len(draws) <= _N_DRAWS // 2:
        return {"value": value, "ci95": None}
    low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
    return {"value": value, "ci95": [min(low, value), max(high, value)]}

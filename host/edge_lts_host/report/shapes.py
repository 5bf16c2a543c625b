"""Which genes differ between two frontiers: shapes of members of the same size, with a permutation test.

Larger members have larger genes whatever the board, so members are compared within classes of size, and only where
both frontiers have members. Members of one frontier are no independent sample: the test says that a difference is more
than relabelling members would make, and nothing else. Holm's correction over the genes (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_lts.stats import median, quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MIN_MEMBERS = 5
LEVEL = 0.05
_CLASSES = 4
_N_PERMUTATIONS = 2000
_SEED = 0x6765


def _mean_d_inner(arch: Mapping[str, Any]) -> float:
    layers = arch["layers"]
    return float(sum(layer["d_inner"] for layer in layers)) / len(layers) / float(arch["d_model"])


def _mean_d_head(arch: Mapping[str, Any]) -> float:
    layers = arch["layers"]
    if arch.get("d_head"):
        return float(arch["d_head"])
    return float(arch["d_model"]) * float(sum(1 / layer["n_head"] for layer in layers)) / len(layers)


# Means over layers where a gene is each layer's own.
GENES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "n_layer": lambda arch: float(len(arch["layers"])),
    "d_model": lambda arch: float(arch["d_model"]),
    "d_inner/d_model": _mean_d_inner,
    "d_head": _mean_d_head,
    "d_embed/d_model": lambda arch: arch["d_embed"] / arch["d_model"],
    "vocab_size": lambda arch: float(arch["vocab_size"]),
}


def differing_genes(
    a: Sequence[tuple[float, Mapping[str, Any]]], b: Sequence[tuple[float, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """For each gene that varies, of (size, architecture) of two frontiers: `a`, `b` [quartile, median, quartile],
    `difference` (b minus a at equal size), `p`, and `is_different`, None where members are too few to tell."""
    import numpy as np

    low = max(min((size for size, _ in side), default=math.inf) for side in (a, b))
    high = min(max((size for size, _ in side), default=-math.inf) for side in (a, b))
    a, b = ([one for one in side if low <= one[0] <= high] for side in (a, b))
    if not a or not b:
        return []
    sizes = np.array([size for size, _ in (*a, *b)])
    is_b = np.array([False] * len(a) + [True] * len(b))
    classes = _classes(sizes, is_b)
    rng = np.random.default_rng(_SEED)
    labels = _relabelled(rng, is_b, classes)
    found = []
    for gene, value in GENES.items():
        values = np.array([value(arch) for _, arch in (*a, *b)])
        if np.ptp(values) == 0:
            continue
        difference = float(_difference(values, is_b[None, :], classes)[0])
        drawn = _difference(values, labels, classes)
        beyond = int((np.abs(drawn) >= abs(difference) * (1 - 1e-12)).sum())
        found.append(
            {
                "gene": gene,
                "a": _quartiles(values[~is_b].tolist()),
                "b": _quartiles(values[is_b].tolist()),
                "difference": difference,
                "p": (beyond + 1) / (_N_PERMUTATIONS + 1),
                "is_different": None,
            }
        )
    if min(len(a), len(b)) >= MIN_MEMBERS:
        _judge(found)
    return found


def _judge(found: Sequence[dict[str, Any]]) -> None:
    """Holm's steps: the smallest p against LEVEL / n, the next against LEVEL / (n - 1), until one fails."""
    is_open = True
    for step, one in enumerate(sorted(found, key=lambda one: one["p"])):
        is_open = is_open and one["p"] <= LEVEL / (len(found) - step)
        one["is_different"] = is_open


def _classes(sizes: Numbers, is_b: NDArray[np.bool_]) -> Numbers:
    """The class of size of each member; classes of which one side has no member are joined with the next larger."""
    import numpy as np

    edges = np.quantile(sizes, np.linspace(0, 1, _CLASSES + 1)[1:-1])
    classes = np.searchsorted(edges, sizes, side="left").astype(float)
    for number in range(_CLASSES):
        own = classes == number
        if own.any() and (is_b[own].all() or not is_b[own].any()):
            classes[own] = min(number + 1, _CLASSES - 1) if number < _CLASSES - 1 else _below(classes, number)
    return classes


def _below(classes: Numbers, number: int) -> float:
    smaller = classes[classes < number]
    return float(smaller.max()) if len(smaller) else float(number)


def _relabelled(rng: np.random.Generator, is_b: NDArray[np.bool_], classes: Numbers) -> NDArray[np.bool_]:
    """(permutations, members): which member is called b, as many in each class as there are."""
    import numpy as np

    labels = np.tile(is_b, (_N_PERMUTATIONS, 1))
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        labels[:, own] = rng.permuted(labels[:, own], axis=1)
    return labels


def _difference(values: Numbers, labels: NDArray[np.bool_], classes: Numbers) -> Numbers:
    """Mean of b minus mean of a within classes, weighted by how much each class can say; one for each row of labels."""
    import numpy as np

    total, weights = np.zeros(len(labels)), 0.0
    for number in np.unique(classes):
        own = classes == number
        is_b = labels[:, own]
        n_b = is_b.sum(axis=1)
        n_a = is_b.shape[1] - n_b
        if not n_a[0] or not n_b[0]:
            continue
        weight = n_a[0] * n_b[0] / (n_a[0] + n_b[0])
        total += weight * ((is_b @ values[own]) / n_b - (~is_b @ values[own]) / n_a)
        weights += weight
    return total / weights if weights else total


def _quartiles(values: Sequence[float]) -> list[float]:
    return [quantile(values, 0.25), median(values), quantile(values, 0.75)]


def words(arch: Mapping[str, Any]) -> str:
    """A shape at a glance, such as `6 x 160, ffn 832-896, heads 4`."""
    layers = arch["layers"]
    ffn = value_range([layer["d_inner"] for layer in layers])
    return f"{len(layers)} x {arch['d_model']}, ffn {ffn}, heads {heads(layers)}"


def heads(layers: Sequence[Mapping[str, Any]]) -> str:
    """How many, such as `4-8`; of those that share keys and values also how many of these there are: `8/2`."""
    shown = value_range([layer["n_head"] for layer in layers])
    if not any("n_kv_head" in layer for layer in layers):
        return shown
    return f"{shown}/{value_range([layer.get('n_kv_head', layer['n_head']) for layer in layers])}"


def value_range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"

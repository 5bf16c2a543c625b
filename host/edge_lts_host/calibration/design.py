"""Which architectures to train: few that say most about how quality depends on the shape, and some worth having.

A Bayesian D-optimal design (Chaloner and Verdinelli 1995) over the terms that a calibration may use: each choice adds
the most to the logarithm of the information's determinant, then choices are exchanged while that still helps (Fedorov
1972). A quarter at least is taken from a frontier, where the search will look: labels from elsewhere alone say little
about it (facts: rho on a published frontier fell from 0.986 to 0.70).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_lts.arch import Architecture
from edge_lts.errors import SpaceError
from edge_lts.footprint import predicted_bytes
from edge_lts.pareto import nondominated
from edge_lts.proxies.shape import Shape
from edge_lts.records import Protocol
from edge_lts.search.design import homogeneous_stacks
from edge_lts.space import SearchSpace
from edge_lts.training import Recipe
from edge_lts_host.errors import UsageError
from edge_lts_host.spaces import seconds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

FRONTIER_SHARE = 0.25
N_POOL = 1500
PRIOR = 0.1  # variance of noise over that of a standardised term's coefficient
MAX_EXCHANGES = 50
# One core of a laptop, training such models; a slow board has a tenth. Only to leave out what a budget cannot train.
ASSUMED_FLOPS = 1e10
FLOPS_PER_PARAM = 6  # forward and backward, per token
LEAST_TOKENS = 300_000


def trainable(arch: Architecture, vocab_size: int, recipe: Recipe) -> Architecture:
    """`arch` with the text's vocabulary in one plain table and room for the recipe's windows: the decoder is the same.

    Its decoder parameters stay, those of the embedding, the head and the positions change.
    """
    return arch.replace(
        vocab_size=vocab_size,
        embedding_factor=1,
        cutoffs=None,
        max_seq_len=max(recipe.sequence_tokens, 2),
        precision=None,
    )


def most_params(budget_s: float, n_trainings: int, processes: int) -> int:
    """Decoder parameters of the largest model worth training when so many share a budget."""
    per_model_s = budget_s * min(processes, n_trainings) / n_trainings
    return int(per_model_s * ASSUMED_FLOPS / FLOPS_PER_PARAM / LEAST_TOKENS)


def draw_pool(space: SearchSpace, max_params: int, rng: np.random.Generator) -> list[Architecture]:
    """Members to choose from, none above `max_params`: drawn at random, and stacks of equal layers.

    Raises UsageError where the space has nothing so small.
    """
    try:
        small = space.restricted(max_decoder_params=max_params)
    except SpaceError as exc:
        raise UsageError(
            f"--space: {space.name} has no member below {max_params} decoder parameters, which is what --budget has "
            "room for: give more, train fewer models, or choose a smaller space"
        ) from exc
    return list(dict.fromkeys([*homogeneous_stacks(small), *(small.sample(rng) for _ in range(N_POOL))]))


def provisional_frontier(pool: Sequence[Architecture]) -> list[Architecture]:
    """Those of `pool` that no other beats in decoder parameters, guessed time and predicted memory."""
    protocol = Protocol()
    losses = np.array(
        [[-arch.decoder_params, seconds_of(arch, protocol), predicted_bytes(arch, protocol)] for arch in pool]
    )
    return [arch for arch, is_member in zip(pool, nondominated(losses), strict=True) if is_member]


def choose(pool: Sequence[Architecture], frontier: Sequence[Architecture], n: int) -> list[Architecture]:
    """`n` different ones, a quarter or more of them from `frontier`, in order of their decoder parameters.

    Deterministic. Raises UsageError where there are not so many.
    """
    everyone = list(dict.fromkeys([*frontier, *pool]))
    if len(everyone) < n:
        raise UsageError(f"--models: only {len(everyone)} architectures are there to choose {n} from")
    n_frontier = min(len(frontier), math.ceil(FRONTIER_SHARE * n))
    rows = standardised_terms(everyone)
    on_frontier = np.arange(len(everyone)) < len(dict.fromkeys(frontier))
    chosen = _greedy(rows, [], n_frontier, on_frontier)
    chosen = _greedy(rows, chosen, n - n_frontier, np.ones(len(everyone), dtype=bool))
    chosen = _exchanged(rows, chosen, n_frontier, on_frontier)
    return sorted((everyone[index] for index in chosen), key=lambda arch: (arch.decoder_params, arch.arch_id))


def spread(archs: Sequence[Architecture], n: int) -> list[Architecture]:
    """`n` of them, evenly over their order: to be trained a second time."""
    n = min(n, len(archs))
    return [archs[(2 * index + 1) * len(archs) // (2 * n)] for index in range(n)]


def standardised_terms(archs: Sequence[Architecture]) -> Matrix:
    """(n, 1 + terms): a constant, and the terms of size and shape with mean 0 and deviation 1; constant ones are left
    out."""
    shape = Shape.of_many(archs)
    size, depth, width = (np.log(values) for values in (shape.decoder_params, shape.n_layer, shape.d_model))
    terms = np.stack(
        [
            size,
            depth,
            width,
            *((term - term.mean()) ** 2 for term in (size, depth, width)),  # else only the extremes would be chosen
            np.log(shape.d_embed),
            np.log(shape.attention_params) - size,
            np.asarray(shape.log_heads),
        ],
        axis=1,
    )
    deviations = terms.std(axis=0)
    kept = deviations > 1e-9
    standard: Matrix = (terms[:, kept] - terms[:, kept].mean(axis=0)) / deviations[kept]
    return np.hstack([np.ones((len(archs), 1)), standard])


def information(rows: Matrix) -> float:
    """Logarithm of the determinant that a design is to have large."""
    matrix = rows.T @ rows + PRIOR * np.eye(rows.shape[1])
    return float(np.linalg.slogdet(matrix)[1])


def _greedy(rows: Matrix, chosen: list[int], n_more: int, allowed: NDArray[np.bool_]) -> list[int]:
    chosen = list(chosen)
    inverse = np.linalg.inv(rows[chosen].T @ rows[chosen] + PRIOR * np.eye(rows.shape[1]))
    for _ in range(n_more):
        gain = np.einsum("ij,jk,ik->i", rows, inverse, rows)
        gain[~allowed] = -np.inf
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        if gain[best] == -np.inf:
            break
        chosen.append(best)
        x = inverse @ rows[best]
        inverse -= np.outer(x, x) / (1.0 + float(rows[best] @ x))
    return chosen


def _exchanged(rows: Matrix, chosen: list[int], n_frontier: int, on_frontier: NDArray[np.bool_]) -> list[int]:
    """Swap one for another while that adds information; the first `n_frontier` only for others of the frontier."""
    chosen = list(chosen)
    best = information(rows[chosen])
    for _ in range(MAX_EXCHANGES):
        before = best
        for place in range(len(chosen)):
            others = [index for index in chosen if index != chosen[place]]
            allowed = on_frontier if place < n_frontier else np.ones(len(rows), dtype=bool)
            candidate = _greedy(rows, others, 1, allowed)
            found = information(rows[candidate])
            if len(candidate) == len(chosen) and found > best + 1e-9:
                chosen[place], best = candidate[-1], found
        if best <= before:
            break
    return chosen

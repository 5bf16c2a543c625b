"""Which members to measure first: those that say most about the cost terms per second of measuring.

Greedy D-optimal design (Fedorov 1972): each choice adds the most to the logarithm of the information's determinant,
here divided by the square root of its expected time. Layers are thus timed in place, inside whole members.
"""

import numpy as np

from edge_lts.arch import Architecture
from edge_lts.search.cost_model import COSTS, Conditions, terms_of
from edge_lts.space import SearchSpace

N_POOL = 200


def choose_design(space: SearchSpace, conditions: Conditions, n: int, rng: np.random.Generator) -> list[Architecture]:
    """Up to `n` members from a pool of homogeneous stacks and random members.

    Rows are the terms of both costs over the operations' prior time.
    """
    pool = list(dict.fromkeys([*homogeneous_stacks(space), *(space.sample(rng) for _ in range(N_POOL))]))
    rows, prior = [], []
    for arch in pool:
        terms = [terms_of(cost, arch, conditions) for cost in COSTS]
        seconds = [1e-10 * float(term.sum()) + 1e-4 for term in terms]
        rows.append([term / second for term, second in zip(terms, seconds, strict=True)])
        prior.append(sum(seconds))
    matrices = np.array(rows)
    scale = np.abs(matrices).max(axis=0)
    matrices = matrices / np.where(scale > 0, scale, 1.0)
    n_terms = matrices.shape[2]
    inverse = np.stack([np.eye(n_terms) * 1e6 for _ in COSTS])
    weight = 1.0 / np.sqrt(np.array(prior))
    chosen: list[int] = []
    for _ in range(min(n, len(pool))):
        gain = np.zeros(len(pool))
        for which in range(len(COSTS)):
            x = matrices[:, which]
            gain += np.log1p(np.einsum("ij,jk,ik->i", x, inverse[which], x))
        gain = gain * weight
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        for which in range(len(COSTS)):
            x = inverse[which] @ matrices[best, which]
            inverse[which] -= np.outer(x, x) / (1.0 + float(matrices[best, which] @ x))
    return [pool[index] for index in chosen]


def homogeneous_stacks(space: SearchSpace) -> list[Architecture]:
    """Stacks of equal layers at every width: three depths, three widths of FFN, fewest and most heads, and with most
    also the fewest that are not shared."""
    stacks = []
    for table in space.tables:
        for depth in {table.depths[0], table.depths[len(table.depths) // 2], table.depths[-1]}:
            for inner in {table.d_inner[0], table.d_inner[len(table.d_inner) // 2], table.d_inner[-1]}:
                for head, shared in {
                    table.heads[0],
                    (table.n_head[-1], table.shared_with(table.n_head[-1])[0]),
                    table.heads[-1],
                }:
                    picks = [table.index(inner, head, shared)] * depth
                    if table.is_within(picks):
                        stacks.append(space.build(table, picks))
    return sorted(stacks, key=lambda arch: arch.canonical_json())

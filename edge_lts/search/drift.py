"""How much of a measured time is the machine's speed at that moment, learned from the anchors timed beside it.

    log T(model, moment) = log T(model) + sum over anchors k of (g_k + h_k z) log(a_k(moment) / usual a_k)

z is the model's weight bytes in logarithms, centred and scaled: large weights follow the anchor that streams from
memory, small ones those that stay in the caches. g and h are found by ridge regression around "as the anchor of the
same kind does" (Hoerl and Kennard 1970), so that a few models on a quiet machine say nothing foolish.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture
from edge_lts.footprint import weight_bytes
from edge_lts.speed import ANCHORS, EXPONENTS, Anchors

Floats = NDArray[np.float64]

_PRIOR_SD = 0.4  # of an exponent, and of its change over one standard deviation of log size
_NOISE = 0.08  # of a time after correction, for the weight of the prior
_MAX_MOVE = 2.0  # of a logarithm: an anchor that is off by more than that was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Usual anchor times in seconds and what their change does to one cost; see the module."""

    usual_s: dict[str, float]
    middle: float
    spread: float
    exponents: Floats

    @classmethod
    def none(cls) -> "Drift":
        return cls(usual_s={}, middle=0.0, spread=1.0, exponents=np.zeros(0))

    def terms(self, arch: Architecture, anchors: Anchors) -> Floats:
        """(2 k,) logarithmic change of each usual anchor, and that times z; 0 where it was not timed."""
        moves = np.array([_move(anchors.get(name), usual) for name, usual in self.usual_s.items()], dtype=np.float64)
        z = (np.log(weight_bytes(arch)) - self.middle) / self.spread
        return np.concatenate([moves, moves * z])

    def factor(self, arch: Architecture, anchors: Anchors) -> float:
        """Time at the moment of these anchors over the usual time."""
        return float(np.exp(self.terms(arch, anchors) @ self.exponents))

    def to_json(self) -> dict[str, dict[str, float]]:
        """Exponent at the middle size, and its change for a size larger by a standard deviation."""
        k = len(self.usual_s)
        return {
            name: {"usual_s": usual, "exponent": float(self.exponents[i]), "per_size": float(self.exponents[k + i])}
            for i, (name, usual) in enumerate(self.usual_s.items())
        }


def _move(seconds: float | None, usual: float) -> float:
    if seconds is None or seconds <= 0:
        return 0.0
    return float(np.clip(np.log(seconds / usual), -_MAX_MOVE, _MAX_MOVE))


def usual_anchors(archs: Sequence[Architecture], anchors: Sequence[Anchors], cost: str) -> Drift:
    """The prior: median anchor times, exponents as the anchors of the same kind."""
    usual = {}
    for name in ANCHORS:
        seen = [found[name] for found in anchors if found.get(name, 0) > 0]
        if seen:
            usual[name] = float(np.median(seen))
    if not usual:
        return Drift.none()
    prior = {name: EXPONENTS[cost].get(name, 0.0) for name in usual}
    total = sum(prior.values())
    wanted = sum(EXPONENTS[cost].values())
    scale = min(wanted / total, max(1.0, 1.0 / total)) if total else 0.0  # what was not timed is left to the others
    main = [prior[name] * scale for name in usual]
    sizes = np.log([weight_bytes(arch) for arch in archs])
    return Drift(
        usual_s=usual,
        middle=float(sizes.mean()),
        spread=max(float(sizes.std()), 0.1),
        exponents=np.array([*main, *(0.0 for _ in main)]),
    )


def refit(prior: Drift, terms: Floats, errors: Floats) -> Drift:
    """Exponents from logarithmic errors (n,) of the uncorrected times, `terms` (n, 2 k); large errors weigh less."""
    if not prior.usual_s:
        return prior
    exponents = prior.exponents
    for _ in range(3):
        left = errors - terms @ exponents
        left = left - np.median(left)
        scale = max(1.4826 * float(np.median(np.abs(left))), 0.01)
        weights = np.minimum(1.0, 1.5 * scale / np.maximum(np.abs(left), 1e-12))
        centre = np.average(terms, axis=0, weights=weights)
        x = (terms - centre) * np.sqrt(weights)[:, None]
        y = (errors - np.average(errors, weights=weights)) * np.sqrt(weights)
        ridge = (_NOISE / _PRIOR_SD) ** 2 * np.eye(terms.shape[1])
        exponents = prior.exponents + np.linalg.solve(x.T @ x + ridge, x.T @ (y - x @ prior.exponents))
    return Drift(usual_s=prior.usual_s, middle=prior.middle, spread=prior.spread, exponents=exponents)

"""A calibrated proxy from few trained models: quality as a smooth function of size and shape (numpy only).

Many small models are fitted and averaged, because sixteen labels cannot say which one is right. Each has the constant,
size, and any choice of the other terms of edge_lts.proxies.calibrated: with or without depth, width, embedding, heads;
width flattening or not; coefficients of shape held near zero strongly, weakly or hardly; noise small or large. Ridge
regression gives the coefficients (Hoerl and Kennard 1970), its leave-one-out predictions, which need no refitting
(Rasmussen and Williams 2006, equations 5.10 to 5.12), how well each model predicts labels that it was not fitted to;
the weights are the products of those likelihoods (pseudo-Bayesian model averaging: Gelfand 1996; Yao et al. 2018,
arXiv 1704.02030, section 3.4). Where shape predicts nothing the models without it win, and quality falls back to size.

Everything is scaled by what the labels gain per e-fold of size, so that the unit of the labels does not matter. Then
the coefficient of size is made positive: that of a normal distribution cut off at zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_lts.proxies.calibrated import SIZE, TERMS, CalibratedProxy, Term, Z, curve, slope
from edge_lts.proxies.shape import Shape
from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MIN_LABELS = 6
SIZE_EXPONENTS = (0.0, 0.15, 0.3)
# The terms of shape, and how the worth of each may flatten: what lies below its labels' mean counts for more.
SHAPE_EXPONENTS: dict[str, tuple[float, ...]] = {
    "n_layer": (0.0,),
    "d_model": (0.0, 0.5, 1.0),
    "embedding_ratio": (0.0,),
    "n_head": (0.0,),
}
# Standard deviations before any label is seen. Those of coefficients in units of the labels' gain per e-fold of size,
# those of the noise in units of the labels' own standard deviation.
SIZE_MEAN, SIZE_SD = 0.6, 0.6
SHAPE_SDS = (0.12, 0.4, 1.2)
NOISES = tuple(0.01 * 1.5**step for step in range(10))
MIN_SIZE_SPREAD = 0.3  # of ln decoder_params: below it the gain per e-fold cannot be told from the labels
# Beyond its labels a shape term is worth anything from nothing to what it was: the mean and the deviation of that.
KEPT, KEPT_SD = 0.5, 0.29
SIZE_KEPT_SD = 0.2  # and size from three fifths to seven fifths
FLOOR_SD = 0.1  # of any shape term beyond its labels, in units of the gain per e-fold
_NEGLIGIBLE = 1e-4  # of a weight


class _Model(NamedTuple):
    """One of the models that are averaged: the exponent of size, of each shape term in it, and their deviation."""

    size_exponent: float
    exponents: tuple[tuple[str, float], ...]
    shape_sd: float
    log_prior: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Logarithms of size and shape, and quality, all less their means; `gain` and `sd` are the units of the priors."""

    size: Array
    terms: Mapping[str, Array]
    quality: Array
    gain: float
    sd: float
    noise: float


def fit(
    shape: Shape,
    quality: Array,
    *,
    unit: str,
    backbone: str | None,
    source: Mapping[str, Any],
    known_noise: float = 0.0,
    with_shape: bool = True,
) -> CalibratedProxy:
    """The proxy that `quality` (n,), negative log-perplexity of models of `shape` (fields (n,)), says.

    known_noise: standard deviation of a label that repeated trainings have shown; more may be found, never less.
    with_shape false: of size alone, to compare with. The same labels always give the same proxy. Raises UsageError with
    fewer than MIN_LABELS labels or of one size alone.
    """
    import numpy as np

    quality = np.asarray(quality, dtype=float)
    if len(quality) < MIN_LABELS:
        raise UsageError(f"{len(quality)} labels are too few to calibrate from; at least {MIN_LABELS} are needed")
    logs = {name: np.broadcast_to(of(shape), quality.shape).astype(float) for name, of in TERMS.items()}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    centred = {name: values - centres[name] for name, values in logs.items()}
    live = [name for name in SHAPE_EXPONENTS if with_shape and np.ptp(centred[name]) > 1e-9]
    size_sd, quality_sd = float(centred[SIZE].std()), float(quality.std())
    if size_sd < 1e-9 or quality_sd < 1e-12:
        raise UsageError(f"the labels do not differ in {'quality' if size_sd >= 1e-9 else SIZE}; choose others")
    labels = _Labels(
        size=centred[SIZE],
        terms={name: centred[name] for name in live},
        quality=quality - quality.mean(),
        gain=quality_sd / max(size_sd, MIN_SIZE_SPREAD),
        sd=quality_sd,
        noise=known_noise,
    )
    size_exponent, coefficients, covariance, noise = _averaged(labels, _models(live))
    coefficients[0] += quality.mean()
    coefficients, covariance = _growing(coefficients, covariance)
    terms = _terms(labels, centres, size_exponent, coefficients, covariance)
    return CalibratedProxy(
        unit=unit,
        backbone=backbone,
        terms=terms,
        coefficients=tuple(coefficients.tolist()),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        noise=noise,
        source=source,
    )


def _models(live: Sequence[str]) -> list[_Model]:
    """All of them; each term is in half of the weight before any label is seen, and each other choice is even."""
    found = []
    choices = [(None, *SHAPE_EXPONENTS[name]) for name in live]
    for size_exponent in SIZE_EXPONENTS:
        for chosen in itertools.product(*choices):
            pairs = zip(live, chosen, strict=True)
            exponents = tuple((name, exponent) for name, exponent in pairs if exponent is not None)
            n_ways = math.prod(len(SHAPE_EXPONENTS[name]) for name, _ in exponents)
            sds = SHAPE_SDS if exponents else (0.0,)
            for sd in sds:
                found.append(_Model(size_exponent, exponents, sd, -math.log(n_ways * len(sds))))
    return found


def _design(labels: _Labels, model: _Model) -> tuple[Array, Array, Array]:
    """Columns (n, k) of a model, and the means and variances of their coefficients before any label is seen."""
    import numpy as np

    n = len(labels.quality)
    columns = [np.ones(n), curve(labels.size, model.size_exponent)]
    columns += [curve(labels.terms[name], exponent) for name, exponent in model.exponents]
    means, sds = np.zeros(len(columns)), np.full(len(columns), model.shape_sd * labels.gain)
    means[1] = SIZE_MEAN * labels.gain
    sds[0], sds[1] = 10 * labels.sd, SIZE_SD * labels.gain
    return np.stack(columns, axis=1), means, sds**2


def _averaged(labels: _Labels, models: Sequence[_Model]) -> tuple[float, Array, Array, float]:
    """The exponent of size with most weight; coefficients, covariance and noise averaged over its models.

    A coefficient's variance has two parts: each model's own, and how far the models are apart.
    """
    import numpy as np

    noises = np.sqrt(labels.noise**2 + (np.array(NOISES) * labels.sd) ** 2)
    designs = [_design(labels, model) for model in models]
    kernels = np.stack([(columns * variances) @ columns.T for columns, _, variances in designs])
    residuals = np.stack([labels.quality - columns @ means for columns, means, _ in designs])
    weights = _weights(kernels, residuals, noises) + np.array([model.log_prior for model in models])[:, None]
    weights = np.exp(weights - weights.max())
    totals = dict.fromkeys(SIZE_EXPONENTS, 0.0)
    for model, of_model in zip(models, weights, strict=True):
        totals[model.size_exponent] += float(of_model.sum())
    size_exponent = max(SIZE_EXPONENTS, key=lambda exponent: totals[exponent])
    weights /= totals[size_exponent]
    places = {place: 2 + at for at, place in enumerate(_places(labels.terms))}
    n = 2 + len(places)
    mean, square, noise, total = np.zeros(n), np.zeros((n, n)), 0.0, 0.0
    for model, (columns, means, variances), of_model in zip(models, designs, weights, strict=True):
        if model.size_exponent != size_exponent or of_model.sum() < _NEGLIGIBLE:
            continue
        at = [0, 1, *(places[place] for place in model.exponents)]
        for weight, sd in zip(of_model.tolist(), noises.tolist(), strict=True):
            if weight < _NEGLIGIBLE:
                continue
            own = np.linalg.inv(columns.T @ columns / sd**2 + np.diag(1 / variances))
            found = own @ (columns.T @ labels.quality / sd**2 + means / variances)
            mean[at] += weight * found
            square[np.ix_(at, at)] += weight * (own + np.outer(found, found))
            noise += weight * sd**2
            total += weight
    mean /= total
    covariance = square / total - np.outer(mean, mean)
    return size_exponent, mean, (covariance + covariance.T) / 2, math.sqrt(noise / total)


def _weights(kernels: Array, residuals: Array, noises: Array) -> Array:
    """Log-likelihoods (models, noises) of all labels, each predicted from the others.

    kernels (models, n, n): covariances of the labels without noise; residuals (models, n): labels less prior means.
    """
    import numpy as np

    values, vectors = np.linalg.eigh(kernels)
    total = np.maximum(values, 0)[:, None, :] + noises[None, :, None] ** 2
    rotated = np.einsum("mij,mi->mj", vectors, residuals)
    inverse_residuals = np.einsum("mij,msj->msi", vectors, rotated[:, None, :] / total)
    inverse_diagonal = np.einsum("mij,msj->msi", vectors**2, 1 / total)
    found: Array = 0.5 * (np.log(inverse_diagonal) - inverse_residuals**2 / inverse_diagonal).sum(axis=-1)
    return found


def _places(terms: Mapping[str, Array]) -> list[tuple[str, float]]:
    return [(name, exponent) for name in terms for exponent in SHAPE_EXPONENTS[name]]


def _growing(coefficients: Array, covariance: Array) -> tuple[Array, Array]:
    """The same, given that size is worth something: its coefficient's distribution cut off at zero.

    The others follow as far as they hang together with it. Then, if need be, the variance is made small enough that
    the lower bound grows, too. Johnson, Kotz and Balakrishnan 1994, §10.1, for the mean and variance of the rest.
    """
    mean, variance = float(coefficients[1]), float(covariance[1, 1])
    if variance <= 0:
        return coefficients, covariance
    sd = math.sqrt(variance)
    hazard = _hazard(mean / sd)
    new_mean = mean + sd * hazard
    new_variance = variance * max(0.0, 1 - hazard * (hazard + mean / sd))
    new_variance = min(new_variance, new_mean**2 * (1 / Z**2 - SIZE_KEPT_SD**2) * (1 - 1e-6))
    pull = covariance[:, 1] / variance
    found = coefficients + pull * (new_mean - mean)
    shrunk = covariance - pull[:, None] * pull[None, :] * (variance - new_variance)
    return found, (shrunk + shrunk.T) / 2


def _hazard(x: float) -> float:
    """phi(x) / Phi(x) of the normal distribution; far below zero by its asymptote."""
    if x < -30:
        return -x - 1 / x
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) / (math.erfc(-x / math.sqrt(2)) / 2)


def _terms(
    labels: _Labels, centres: Mapping[str, float], size_exponent: float, coefficients: Array, covariance: Array
) -> tuple[Term, ...]:
    """Ranges of the labels, and what size and each term of shape may be worth beyond them."""
    import numpy as np

    found, at = [], 1
    for name, x in {SIZE: labels.size, **labels.terms}.items():
        is_size = name == SIZE
        exponents = (size_exponent,) if is_size else SHAPE_EXPONENTS[name]
        places = slice(at, at + len(exponents))
        spreads = []
        for end in (float(x.min()), float(x.max())):
            steepness = np.array([float(slope(end, exponent)) for exponent in exponents])
            worth = abs(float(steepness @ coefficients[places]))
            doubt = float(steepness @ covariance[places, places] @ steepness)
            if is_size:
                spreads.append(SIZE_KEPT_SD * worth)
            else:
                spreads.append(math.sqrt((KEPT_SD * worth) ** 2 + max(0.0, doubt) + (FLOOR_SD * labels.gain) ** 2))
        found.append(
            Term(
                name=name,
                exponents=exponents,
                centre=centres[name],
                low=float(x.min()),
                high=float(x.max()),
                kept=1.0 if is_size else KEPT,
                spread_below=spreads[0],
                spread_above=spreads[1],
            )
        )
        at += len(exponents)
    return tuple(found)

"""Fitting a proxy to few trained models: what it finds, when it falls back to size, and what it never does."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts.proxies.shape import Shape
from edge_lts_host.calibration import fit as fitting
from edge_lts_host.calibration.from_table import draw
from edge_lts_host.calibration.panel import read_panel
from edge_lts_host.calibration.statistics import equal_size_tau
from edge_lts_host.errors import UsageError
from edge_lts_host.report.ranks import spearman
from tests.panels import architectures, log_perplexity, published


def labels(archs: Sequence[Architecture], *, shape: float = 1.0, noise: float = 0.01, seed: int = 1) -> np.ndarray:
    rng = random.Random(seed)
    return -np.array([log_perplexity(arch, shape=shape, noise=noise, rng=rng) for arch in archs])


def fitted(archs: Sequence[Architecture], quality: np.ndarray, **more: object) -> CalibratedProxy:
    fields = {"unit": "nats/token", "backbone": "gpt2", "source": {}} | more
    return fitting.fit(Shape.of_many(archs), quality, **fields)  # type: ignore[arg-type]


ARCHS = architectures(100, 0)


def test_sixteen_labels_tell_models_of_one_size_apart() -> None:
    quality, shape = labels(ARCHS), Shape.of_many(ARCHS)
    one = fitted(ARCHS[:16], quality[:16])
    rest = Shape.of_many(ARCHS[16:])
    found = equal_size_tau(one.quality(rest), quality[16:], rest.decoder_params)
    of_size = equal_size_tau(rest.decoder_params, quality[16:], rest.decoder_params)
    assert found is not None
    assert of_size is not None
    assert found > of_size + 0.2
    assert len(shape.decoder_params) == 100


def test_where_shape_does_nothing_it_says_what_size_says() -> None:
    quality = labels(ARCHS, shape=0.0, noise=0.002)
    one = fitted(ARCHS[:16], quality[:16])
    rest = Shape.of_many(ARCHS[16:])
    low = one.quality(rest)
    assert spearman(low, rest.decoder_params) > 0.99
    assert np.abs(one.predict(rest)[0] - quality[16:]).max() < 0.03
    assert max(abs(value) for value in one.coefficients[2:]) < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_its_bound_never_falls_with_size_whatever_the_labels_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    archs = architectures(12, seed)
    sizes = np.log(Shape.of_many(archs).decoder_params)
    quality = rng.normal(0, 0.3, 12) - (0.0, 0.5, -0.5)[seed % 3] * sizes
    one = fitted(archs, quality)
    assert one.smallest_slope() >= 0
    grown = Shape(
        decoder_params=np.exp(np.linspace(sizes.min() - 3, sizes.max() + 3, 200)),
        attention_params=1.0,
        n_layer=40.0,
        d_model=2048.0,
        d_embed=64.0,
        log_heads=3.0,
    )
    mean, low, _ = one.predict(grown)
    assert np.diff(mean).min() >= 0
    assert np.diff(low).min() >= -1e-9


def test_beyond_the_labels_quality_grows_linearly_and_the_interval_widens() -> None:
    one = fitted(ARCHS[:16], labels(ARCHS[:16]))
    top = np.log(Shape.of_many(ARCHS[:16]).decoder_params).max()
    beyond = Shape(
        decoder_params=np.exp(top + np.array([0.0, 1.0, 2.0, 3.0])),
        attention_params=1.0,
        n_layer=8.0,
        d_model=256.0,
        d_embed=256.0,
        log_heads=1.3,
    )
    mean, low, high = one.predict(beyond)
    assert np.diff(mean, 2) == pytest.approx(np.zeros(2), abs=1e-9)
    assert np.diff(high - low).min() > 0
    assert one.is_beyond(beyond).tolist() == [False, True, True, True]


def test_the_unit_of_the_labels_does_not_matter() -> None:
    quality = labels(ARCHS[:16])
    per_token, per_byte = fitted(ARCHS[:16], quality), fitted(ARCHS[:16], quality * 0.17, unit="nats/byte")
    shape = Shape.of_many(ARCHS)
    for a, b in zip(per_token.predict(shape), per_byte.predict(shape), strict=True):
        assert b == pytest.approx(0.17 * a, rel=1e-6)


def test_the_order_of_the_labels_does_not_matter() -> None:
    quality, order = labels(ARCHS[:16]), np.random.default_rng(0).permutation(16)
    one, other = fitted(ARCHS[:16], quality), fitted([ARCHS[index] for index in order], quality[order])
    shape = Shape.of_many(ARCHS)
    assert other.quality(shape) == pytest.approx(one.quality(shape), abs=1e-6)


def test_known_noise_is_the_least_that_is_assumed() -> None:
    quality = labels(ARCHS[:16], noise=0.0)
    assert fitted(ARCHS[:16], quality).noise < 0.02
    assert fitted(ARCHS[:16], quality, known_noise=0.08).noise >= 0.08


def test_nine_in_ten_lie_above_the_bound() -> None:
    shares = []
    for seed in range(8):
        archs = architectures(80, seed)
        quality = labels(archs, noise=0.02, seed=seed)
        one, rest = fitted(archs[:16], quality[:16]), Shape.of_many(archs[16:])
        shares.append(float((quality[16:] >= one.quality(rest)).mean()))
    assert 0.8 <= sum(shares) / len(shares) <= 0.98


def test_a_term_that_does_not_vary_is_left_out() -> None:
    archs = [arch.replace(d_embed=arch.d_model) for arch in ARCHS[:16]]
    names = [term.name for term in fitted(archs, labels(archs)).terms]
    assert names == ["decoder_params", "n_layer", "d_model", "n_head"]
    assert [term.name for term in fitted(archs, labels(archs), with_shape=False).terms] == ["decoder_params"]


def test_too_few_labels_and_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="5 labels are too few"):
        fitted(ARCHS[:5], labels(ARCHS[:5]))
    with pytest.raises(UsageError, match="do not differ in decoder_params"):
        fitted([ARCHS[0]] * 8, labels(ARCHS[:8]))
    with pytest.raises(UsageError, match="do not differ in quality"):
        fitted(ARCHS[:8], np.zeros(8))


# --- the published tables ---


@pytest.mark.parametrize(
    ("name", "least_tau", "least_rho"), [("random_GPT2_wt103", 0.42, 0.97), ("random_TransXL_lm1b", 0.63, 0.99)]
)
def test_sixteen_published_labels_rank_the_other_models(name: str, least_tau: float, least_rho: float) -> None:
    panel = read_panel(published(name))
    taus, rhos = [], []
    for seed in range(8):
        chosen = draw(panel, 16, seed)
        one = fitting.fit(chosen.shape, chosen.quality, unit=panel.unit, backbone=None, source={})
        rest = panel.without([model.key for model in chosen.models])
        low = one.quality(rest.shape)
        taus.append(equal_size_tau(low, rest.quality, rest.shape.decoder_params))
        rhos.append(spearman(low, rest.quality))
    assert sum(taus) / 8 >= least_tau  # type: ignore[arg-type]
    assert sum(rhos) / 8 >= least_rho  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labelled", "judged"),
    [
        ("random_TransXL_lm1b", "pareto_TransXL_lm1b_titanxp"),
        ("random_GPT2_wt103", "pareto_GPT2_lm1b_corei7"),
    ],
)
def test_labels_from_random_models_still_rank_a_published_frontier(labelled: str, judged: str) -> None:
    panel, frontier = read_panel(published(labelled)), read_panel(published(judged))
    of_size = spearman(frontier.shape.decoder_params, frontier.quality)
    found = []
    for seed in range(6):
        chosen = draw(panel, 16, seed)
        one = fitting.fit(chosen.shape, chosen.quality, unit=panel.unit, backbone=None, source={})
        found.append(spearman(one.quality(frontier.shape), frontier.quality))
    assert sum(found) / 6 > of_size - 0.005  # type: ignore[operator, arg-type]

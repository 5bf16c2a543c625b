"""Proxies of quality on the board: what a shape is, the closed forms, and the calibrated proxy as a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import attention_params
from edge_lts.errors import SpecError
from edge_lts.proxies import closed
from edge_lts.proxies.calibrated import CalibratedProxy, Term, Z
from edge_lts.proxies.shape import FIELDS, Shape


def gpt2(d_model: int, layers: list[tuple[int, int]], **more: Any) -> Architecture:
    specs = tuple(LayerSpec(n_head=n_head, d_inner=d_inner) for n_head, d_inner in layers)
    return Architecture(backbone="gpt2", d_model=d_model, layers=specs, **more)


def term(name: str, *, low: float = -1.0, high: float = 1.0, centre: float = 0.0, **more: Any) -> Term:
    fields = {"exponents": (0.0,), "kept": 1.0, "spread_below": 0.0, "spread_above": 0.0} | more
    return Term(name=name, low=low, high=high, centre=centre, **fields)


def proxy(**changes: Any) -> CalibratedProxy:
    """Quality = -4 + 0.3 ln(N / e^14) + 0.1 ln(n_layer / e), with a standard deviation of 0.02 within the labels."""
    fields: dict[str, Any] = {
        "unit": "nats/token",
        "backbone": "gpt2",
        "terms": (
            term("decoder_params", centre=14.0, spread_below=0.05, spread_above=0.05),
            term("n_layer", centre=1.0, kept=0.5, spread_below=0.04, spread_above=0.06),
        ),
        "coefficients": (-4.0, 0.3, 0.1),
        "covariance": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        "noise": 0.02,
        "source": {"name": "made up, 8 models"},
    }
    return CalibratedProxy(**{**fields, **changes})


def at(log_size: float, log_depth: float = 1.0, **more: float) -> Shape:
    """A shape by the logarithms of its size and depth."""
    fields = {"attention_params": 1.0, "d_model": 256.0, "d_embed": 256.0, "log_heads": 1.0} | more
    return Shape(decoder_params=math.exp(log_size), n_layer=math.exp(log_depth), **fields)


# --- shapes and closed forms ---


def test_a_shape_holds_the_architecture_s_own_counts() -> None:
    arch = gpt2(256, [(4, 700), (8, 900), (2, 512)], d_embed=128)
    shape = Shape.of(arch)
    assert shape.decoder_params == arch.decoder_params
    assert shape.total_params == arch.total_params
    assert shape.attention_params == attention_params(arch) == 3 * (4 * 256**2 + 4 * 256)
    assert (shape.n_layer, shape.d_model, shape.d_embed) == (3, 256, 128)
    assert shape.log_heads == pytest.approx((math.log(4) + math.log(8) + math.log(2)) / 3)


def test_many_shapes_are_those_of_each() -> None:
    archs = [gpt2(256, [(4, 700)]), gpt2(128, [(2, 300), (2, 400)], d_embed=64)]
    many = Shape.of_many(archs)
    for field in FIELDS:
        assert getattr(many, field).tolist() == [getattr(Shape.of(arch), field) for arch in archs]


def test_spectral_capacity_is_the_integral_that_the_paper_defines() -> None:
    rows, columns, sigma = 512, 128, 0.02
    ratio = columns / rows
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    angle = (np.arange(200_000) + 0.5) / 200_000 * math.pi  # x = centre - radius cos(angle): no singular ends
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = (high - low) / 2 * np.sin(angle) / (2 * math.pi * ratio * x)
    step = (high - low) / 2 * np.sin(angle) * math.pi / 200_000
    expected = columns * float((np.log(1 + sigma**2 * rows * x) * density * step).sum())
    assert closed.spectral_capacity(rows, columns, sigma) == pytest.approx(expected, rel=1e-8)
    assert closed.spectral_capacity(columns, rows, sigma) == closed.spectral_capacity(rows, columns, sigma)


def test_nsc_is_the_authors_number() -> None:
    # The published implementation, with scipy's quadrature, on two layers of 4 heads, 128 wide: 121.820170.
    assert closed.score("nsc", gpt2(128, [(4, 256), (4, 512)])) == pytest.approx(121.820170, abs=1e-6)


def test_formulas_count_what_their_names_say() -> None:
    arch = gpt2(256, [(4, 700), (8, 900)], d_embed=64)
    assert closed.score("decoder_params", arch) == arch.decoder_params
    assert closed.score("attention_params", arch) == attention_params(arch)
    assert closed.score("decoder_params_embed", arch) == arch.decoder_params * 8


@pytest.mark.parametrize("name", ["attention_params", "nsc"])
def test_sums_over_layers_are_sums(name: str) -> None:
    first, second = gpt2(256, [(4, 700)]), gpt2(256, [(8, 900)])
    both = gpt2(256, [(4, 700), (8, 900)])
    assert closed.score(name, both) == pytest.approx(closed.score(name, first) + closed.score(name, second))


# --- the calibrated proxy as a formula ---


def test_a_prediction_is_the_sum_that_the_formula_says() -> None:
    mean, low, high = proxy().predict(at(14.5, 1.4))
    assert mean == pytest.approx(-4 + 0.3 * 0.5 + 0.1 * 0.4)
    assert low == pytest.approx(mean - Z * 0.02)
    assert high == pytest.approx(mean + Z * 0.02)
    assert proxy().quality(at(14.5, 1.4)) == low


def test_the_covariance_of_the_coefficients_widens_the_interval() -> None:
    covariance = ((1e-4, 0.0, 5e-5), (0.0, 4e-4, 0.0), (5e-5, 0.0, 9e-4))
    mean, low, _ = proxy(covariance=covariance).predict(at(14.5, 1.4))
    variance = 1e-4 + 2 * 5e-5 * 0.4 + 4e-4 * 0.25 + 9e-4 * 0.16 + 0.02**2
    assert mean - low == pytest.approx(Z * math.sqrt(variance))


def test_beyond_the_labels_size_goes_on_shape_half_and_the_interval_grows() -> None:
    one = proxy()
    mean, low, _ = one.predict(at(16.0, 2.6))
    assert mean == pytest.approx(-4 + 0.3 * 2 + 0.1 * (1 + 0.5 * 0.6))
    assert mean - low == pytest.approx(Z * math.sqrt(0.02**2 + (0.05 * 1) ** 2 + (0.06 * 0.6) ** 2))
    below, low, _ = one.predict(at(14.0, -0.5))
    assert below == pytest.approx(-4 + 0.1 * (-1 - 0.5 * 0.5))
    assert below - low == pytest.approx(Z * math.sqrt(0.02**2 + (0.04 * 0.5) ** 2))


def test_curves_flatten_and_go_on_along_their_tangents() -> None:
    size = term("decoder_params", centre=14.0, exponents=(0.5,))
    one = proxy(terms=(size,), coefficients=(0.0, 1.0), covariance=((0.0, 0.0), (0.0, 0.0)))
    assert one.predict(at(14.6))[0] == pytest.approx((1 - math.exp(-0.3)) / 0.5)
    end, step = (1 - math.exp(-0.5)) / 0.5, math.exp(-0.5)
    assert one.predict(at(17.0))[0] == pytest.approx(end + 2 * step)


def test_what_lies_beyond_the_labels_is_known() -> None:
    one = proxy()
    assert not one.is_beyond(at(14.9, 1.9))
    assert one.is_beyond(at(15.1, 1.9))
    assert one.is_beyond(at(14.9, -0.1))


def test_arrays_give_what_single_shapes_give() -> None:
    one = proxy()
    sizes, depths = np.linspace(12, 17, 7), np.linspace(-1, 3, 7)
    rest = dict.fromkeys(("attention_params", "d_model", "d_embed", "log_heads"), 1.0)
    shape = Shape(decoder_params=np.exp(sizes), n_layer=np.exp(depths), **rest)
    for column, values in enumerate(one.predict(shape)):
        single = [one.predict(at(*pair))[column] for pair in zip(sizes, depths, strict=True)]
        assert values == pytest.approx(single)
    assert one.is_beyond(shape).tolist() == [bool(one.is_beyond(at(*p))) for p in zip(sizes, depths, strict=True)]


numbers = st.floats(0, 0.4)


@settings(max_examples=150, deadline=None)
@given(
    slope=st.floats(0.01, 0.5),
    exponent=st.floats(0, 0.5),
    spread=numbers,
    sds=st.tuples(numbers, numbers, numbers),
    correlation=st.floats(-0.99, 0.99),
    depth=st.floats(-3, 3),
)
def test_neither_mean_nor_bound_falls_when_the_decoder_grows(
    slope: float, exponent: float, spread: float, sds: tuple[float, float, float], correlation: float, depth: float
) -> None:
    a, b, c = sds
    covariance = ((a * a, correlation * a * b, 0.0), (correlation * a * b, b * b, 0.0), (0.0, 0.0, c * c))
    size = term("decoder_params", centre=14.0, exponents=(exponent,), spread_below=spread, spread_above=spread)
    try:
        one = proxy(terms=(size, term("n_layer")), coefficients=(0.0, slope, -0.2), covariance=covariance)
    except SpecError:
        assume(False)
    shape = Shape(
        decoder_params=np.exp(np.linspace(9, 19, 401)),
        n_layer=math.exp(depth),
        **dict.fromkeys(("attention_params", "d_model", "d_embed", "log_heads"), 1.0),
    )
    mean, low, _ = one.predict(shape)
    assert np.diff(mean).min() >= 0
    assert np.diff(low).min() >= -1e-12


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": (-4.0, -0.1, 0.1)},
        {"covariance": ((0.0, 0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, 0.0))},
        {"terms": (term("decoder_params", spread_above=0.3), term("n_layer"))},
        {"terms": (term("decoder_params", kept=0.0, spread_below=0.01), term("n_layer"))},
    ],
)
def test_a_proxy_whose_bound_could_fall_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="falls when decoder_params grows"):
        proxy(**changes)


def test_it_survives_its_json_with_its_digest() -> None:
    one = proxy()
    again = CalibratedProxy.from_json(one.to_json())
    assert again == one
    assert again.digest == one.digest
    assert len(one.digest) == 12
    assert again.name == "made up, 8 models"
    assert proxy(noise=0.03).digest != one.digest


def changed(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("schema_version", to=2),
        changed("schema_version", to=None),
        changed("unit", to="bits"),
        changed("unit", to=["nats/token"]),
        changed("backbone", to=3),
        changed("confidence", to=0.5),
        changed("noise", to=-0.1),
        changed("noise", to=float("nan")),
        changed("noise", to=10**400),
        changed("noise", to="0.1"),
        changed("source", to=[]),
        changed("terms", to={}),
        changed("terms", to=[]),
        changed("terms", 0, to=None),
        changed("terms", 0, "name", to="n_layer"),
        changed("terms", 1, "name", to="decoder_params"),
        changed("terms", 1, "name", to="weather"),
        changed("terms", 1, "name", to=[]),
        changed("terms", 1, "low", to=2.0),
        changed("terms", 1, "high", to=1e9),
        changed("terms", 1, "kept", to=1.5),
        changed("terms", 1, "exponents", to=[]),
        changed("terms", 1, "exponents", to=[99.0]),
        changed("terms", 1, "spread_above", to=-1.0),
        changed("terms", 1, "extra", to=1.0),
        changed("coefficients", to=[0.0, 1.0]),
        changed("coefficients", 1, to=True),
        changed("coefficients", to=0.3),
        changed("covariance", to=[[0.0] * 3] * 2),
        changed("covariance", 1, to=0.0),
        changed("covariance", 0, 1, to=0.1),
        changed("covariance", 0, 0, to=-0.1),
    ],
)
def test_anything_else_is_one_declared_error(change: Callable[[dict[str, Any]], None]) -> None:
    data = proxy().to_json()
    change(data)
    with pytest.raises(SpecError):
        CalibratedProxy.from_json(data)


@pytest.mark.parametrize("data", [None, [], "proxy", 3, {}])
def test_what_is_no_object_is_no_proxy(data: object) -> None:
    with pytest.raises(SpecError):
        CalibratedProxy.from_json(data)


@pytest.mark.parametrize("key", sorted(proxy().to_json()))
def test_a_missing_key_is_named(key: str) -> None:
    data = proxy().to_json()
    del data[key]
    with pytest.raises(SpecError, match=key):
        CalibratedProxy.from_json(data)


LEAVES: list[tuple[str | int, ...]] = [
    ("noise",),
    *((key, index) for key in ("terms", "coefficients", "covariance") for index in (0, 1)),
    *(("terms", index, key) for index in (0, 1) for key in Term.__slots__),
    *(("covariance", row, column) for row in range(3) for column in range(3)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(leaf=st.sampled_from(LEAVES), value=JSON)
def test_whatever_stands_in_the_file_it_is_refused_or_it_predicts(leaf: tuple[str | int, ...], value: object) -> None:
    data = proxy().to_json()
    changed(*leaf, to=value)(data)
    try:
        one = CalibratedProxy.from_json(data)
    except SpecError:
        return
    assert CalibratedProxy.from_json(one.to_json()).digest == one.digest
    for log_size in (6.0, 14.0, 24.0):
        low, high = one.predict(at(log_size))[1:]
        assert math.isfinite(low)
        assert low <= high

"""What a layer costs on this board: an additive model fitted to whole models measured on it.

A decoder's time is nearly a sum: what lies outside the layers (embedding, head) plus each layer's. The model says

    T(arch) = B(arch) (1 + b(width)) + sum over layers of L(d, f, h) (1 + e(d, f, h)),    times the machine's speed then

B and L are smooth: non-negative combinations of operation and byte counts (`_layer_terms`, `_base_terms`), found by
non-negative least squares on relative errors. The deviations e and b are a Gaussian process over (log d_model, log
d_inner, heads, style), so a shape measured often keeps its own deviation and one measured once is shrunk towards its
neighbours and the smooth fit by as much as its noise demands; an optimiser would otherwise pick lucky noise. Widths of
the kernel and the noise are chosen by marginal likelihood. Decoding has two regimes, weights resident in the last-level
cache and beyond it; each has its own smooth rates where enough models were measured in it. What the cache costs is
known from the same models timed at two cache depths, linear between.

The machine's speed is followed by anchors, fixed small jobs that every measuring process times as well (`drift`).

Sources: Rasmussen and Williams 2006 (eq. 2.25 to 2.27 posterior, 5.12 leave-one-out), Lawson and Hanson 1974 (NNLS).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import weight_bytes
from edge_lts.records import Evaluation, Measurement, Protocol
from edge_lts.search.drift import Drift, refit, usual_anchors
from edge_lts.speed import Anchors, anchors_of
from edge_lts.style import STYLE_KEYS, relu_power

Floats = NDArray[np.float64]
# d_model, d_inner, n_head, n_kv_head, width of a head, code of the style; d_inner 0 is what lies outside the layers
Shape = tuple[int, int, int, int, int, int]

COSTS = ("decode_latency_s", "prefill_latency_s")
MIN_PER_REGIME = 12
MIN_NOISE = 0.005
_LENGTH = 0.6  # of the kernel, in natural logarithms of d_model and d_inner
_OTHER_HEADS = 0.8  # correlation of the deviations of two shapes that differ in their heads only, or in style only
_AMPLITUDES = (0.0, 0.01, 0.03, 0.08)
_WIDTHS = (0.0, 0.03, 0.1, 0.3)
_NUGGETS = (0.0, 0.01, 0.03, 0.1)
_NOISES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the terms depend on besides the shape. `cache_bytes` is the last-level cache; None: one regime."""

    prompt_tokens: int = 192
    context_tokens: int = 192
    is_all_logits: bool = False
    cache_bytes: int | None = None

    @classmethod
    def of(cls, protocol: Protocol, cache_bytes: int | None) -> "Conditions":
        return cls(
            prompt_tokens=protocol.prompt_tokens,
            context_tokens=protocol.context_tokens,
            is_all_logits=protocol.logits == "all",
            cache_bytes=cache_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A measured model: its time, the time's relative standard error, the anchors' times in the same process, and (of
    decoding) the time behind a shallower cache."""

    architecture: Architecture
    seconds: float
    relative_error: float = 0.0
    anchors: Anchors = field(default_factory=dict)
    shallow_tokens: int | None = None
    shallow_s: float | None = None


def observation_of(outcome: Evaluation, cost: str) -> Observation | None:
    """What an evaluation says of one cost; None where it was not measured."""
    value = outcome.objectives.get(cost)
    if not isinstance(value, Measurement) or value.median <= 0:
        return None
    error = 0.0 if value.ci95 is None else (value.ci95[1] - value.ci95[0]) / 3.92 / value.median
    shallow = outcome.conditions.get("shallow_decode") if cost == "decode_latency_s" else None
    tokens, seconds = (
        (shallow.get("context_tokens"), shallow.get("median_s")) if isinstance(shallow, Mapping) else 2 * (None,)
    )
    return Observation(
        architecture=outcome.architecture,
        seconds=value.median,
        relative_error=min(error, 0.5),
        anchors=anchors_of(outcome),
        shallow_tokens=tokens if isinstance(tokens, int) else None,
        shallow_s=float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None,
    )


def _layer_terms(cost: str, arch: Architecture, layers: Sequence[LayerSpec], conditions: Conditions) -> Floats:
    """(m, 8) counts per layer of `arch`'s width and style: one, projections, FFN, attention over the context, per-head
    work, activation, operators that its backbone does not have, numbers that convolutions and rotations go over."""
    f = np.array([layer.d_inner for layer in layers], dtype=np.float64)
    h = np.array([layer.n_head for layer in layers], dtype=np.float64)
    width = np.array([arch.head_width(layer) for layer in layers], dtype=np.float64)
    q, kv = h * width, np.array([layer.n_kv_head for layer in layers]) * width
    d, one = float(arch.d_model), np.ones(len(layers))
    projections, ffn = d * (q + kv) / 2, d * f * (1.5 if arch.is_gated else 1.0)
    usual = arch.family
    own = _passes(arch.activation, arch.is_gated) / _passes(usual.activation, usual.is_gated)
    further = _operators(arch.norm, arch.position, arch.qkv_conv) - _operators(
        usual.norm, usual.position, usual.qkv_conv
    )
    over = 2 * (arch.qkv_conv or 0) * (q + 2 * kv) + (2 * (q + kv) if arch.position == "rotary" else 0.0)
    if cost == "prefill_latency_s":
        t = float(conditions.prompt_tokens)
        counts = [one, t * projections, t * ffn, t * t * q, t * t * h, t * f * own, further * one, t * over]
    else:
        c = float(conditions.context_tokens)
        counts = [one, projections, ffn, c * kv, h, f * own, further * one, over]
    return np.column_stack(np.broadcast_arrays(*counts))


def _passes(activation: str | None, is_gated: bool | None) -> float:
    """How often an activation goes over d_inner numbers, roughly: what matters is its ratio to another one's."""
    power = relu_power(activation or "")
    return (4.0 if power is None else 1.0 if power == 1 else 2.0) + (2.0 if is_gated else 0.0)


def _operators(norm: str | None, position: str | None, qkv_conv: int | None) -> float:
    """How many operators of torch a layer calls for these, more than a GPT-2's."""
    return 8.0 * (norm == "rmsnorm") + 6.0 * (position == "rotary") + 4.0 * bool(qkv_conv)


def _shape(arch: Architecture, layer: LayerSpec) -> Shape:
    code = zlib.crc32(repr([getattr(arch, key) for key in STYLE_KEYS]).encode())
    return arch.d_model, layer.d_inner, layer.n_head, layer.n_kv_head, arch.head_width(layer), code


def _outside(arch: Architecture) -> Shape:
    return arch.d_model, 0, 0, 0, 0, 0


def _base_terms(cost: str, arch: Architecture, conditions: Conditions) -> Floats:
    """(4,) counts outside the layers: one, the head's table, its projections, a pass over the logits."""
    tokens = float(conditions.prompt_tokens) if cost == "prefill_latency_s" else 1.0
    rows = tokens if conditions.is_all_logits and cost == "prefill_latency_s" else 1.0
    table = float(sum(n * width for n, width in arch.clusters))
    has_projection = arch.embedding_factor > 1 or arch.d_embed != arch.d_model
    projected = float(arch.d_model * sum(width for _, width in arch.clusters)) if has_projection else 0.0
    return np.array([1.0, rows * table, tokens * (projected + arch.d_model), rows * arch.vocab_size])


def terms_of(cost: str, arch: Architecture, conditions: Conditions) -> Floats:
    """(12,) terms of a whole model: those of its layers added up, then those outside the layers."""
    layers = _layer_terms(cost, arch, arch.layers, conditions).sum(axis=0)
    return np.concatenate([layers, _base_terms(cost, arch, conditions)])


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """Lawson and Hanson's active-set method; `matrix` (n, k) with k small. Columns are scaled here."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    a = matrix / scale
    k = a.shape[1]
    x = np.zeros(k)
    passive = np.zeros(k, dtype=bool)
    gradient = a.T @ (target - a @ x)
    for _ in range(30 * k):
        if passive.all() or gradient[~passive].max(initial=-1.0) <= 1e-12 * max(1.0, float(np.abs(target).sum())):
            break
        free = np.where(passive, -np.inf, gradient)
        passive[int(free.argmax())] = True
        while True:
            trial = np.zeros(k)
            trial[passive] = np.linalg.lstsq(a[:, passive], target, rcond=None)[0]
            if not passive.any() or trial[passive].min() > 0:
                break
            worst = passive & (trial <= 0)
            step = float((x[worst] / np.maximum(x[worst] - trial[worst], 1e-300)).min())
            x += step * (trial - x)
            passive &= x > 1e-14
            x[~passive] = 0.0
        x = trial
        gradient = a.T @ (target - a @ x)
    solution: Floats = x / scale
    return solution


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """Smooth rates of one regime: seconds per count, for layers and for what lies outside."""

    layer: Floats
    base: Floats


@dataclass(slots=True, kw_only=True)
class CostModel:
    """One cost (decode or prefill) fitted to observations; see the module. Make it with `fit`.

    overconfidence: how many times larger left-out errors are than the model expects, at least 1 (their 68 % quantile,
    which a few disturbed measurements do not move).
    """

    cost: str
    conditions: Conditions
    drift: Drift
    noise: float
    scales: tuple[float, ...]
    n_observations: int
    overconfidence: float
    left_out_errors: Floats = field(repr=False)
    _rates: dict[bool, _Rates] = field(repr=False)
    _shapes: list[Shape] = field(repr=False)
    _weights: Floats = field(repr=False)
    _mixing: Floats = field(repr=False)
    _inverse: Floats = field(repr=False)

    def is_beyond_cache(self, arch: Architecture) -> bool:
        return _is_beyond(self.cost, arch, self.conditions)

    def layer_costs(
        self, arch: Architecture, layers: Sequence[LayerSpec], is_beyond: bool, margin: float = 0.0
    ) -> Floats:
        """Seconds (m,) of each layer shape at the width and in the style of `arch`, plus `margin` standard deviations
        of what is not known about it."""
        smooth = _layer_terms(self.cost, arch, layers, self.conditions) @ self._rates[is_beyond].layer
        deviation, spread = self._deviation([_shape(arch, layer) for layer in layers])
        seconds: Floats = smooth * (1 + deviation + margin * spread)
        return seconds

    def base_cost(self, arch: Architecture, is_beyond: bool, margin: float = 0.0) -> float:
        """Seconds outside the layers at this width, embedding and vocabulary; `margin` as above."""
        base = float(_base_terms(self.cost, arch, self.conditions) @ self._rates[is_beyond].base)
        deviation, spread = self._deviation([_outside(arch)])
        return base * (1 + float(deviation[0]) + margin * float(spread[0]))

    def predict(self, arch: Architecture) -> float:
        """Seconds of a whole model at the machine's usual speed."""
        is_beyond = self.is_beyond_cache(arch)
        return float(self.layer_costs(arch, arch.layers, is_beyond).sum()) + self.base_cost(arch, is_beyond)

    def _deviation(self, shapes: list[Shape]) -> tuple[Floats, Floats]:
        kernels = _kernels(shapes, self._shapes)
        cross = sum(scale**2 * kernel for scale, kernel in zip(self.scales, kernels, strict=True)) @ self._mixing.T
        prior = sum(scale**2 for scale in self.scales)
        variance = prior - ((cross @ self._inverse) * cross).sum(axis=1)
        return cross @ self._weights, np.sqrt(np.maximum(variance, 0.0))

    def to_json(self) -> dict[str, object]:
        """What was learned, for a person to read."""
        return {
            "cost": self.cost,
            "n_observations": self.n_observations,
            "noise": self.noise,
            "deviation_scales": dict(zip(SCALE_NAMES, self.scales, strict=True)),
            "anchors": self.drift.to_json(),
            "left_out_median_error": float(np.median(np.abs(self.left_out_errors))),
            "left_out_p90_error": float(np.quantile(np.abs(self.left_out_errors), 0.9)),
            "seconds_per_count": {
                "beyond cache" if is_beyond else "resident": {
                    "layer": dict(zip(LAYER_TERM_NAMES, rates.layer.tolist(), strict=True)),
                    "outside": dict(zip(BASE_TERM_NAMES, rates.base.tolist(), strict=True)),
                }
                for is_beyond, rates in self._rates.items()
            },
        }


LAYER_TERM_NAMES = ("layer", "projections", "ffn", "attention", "heads", "activation", "operators", "elementwise")
SCALE_NAMES = ("smooth", "width", "shape")
BASE_TERM_NAMES = ("call", "head_table", "embedding", "logits")


def _is_beyond(cost: str, arch: Architecture, conditions: Conditions) -> bool:
    return (
        cost == "decode_latency_s"
        and conditions.cache_bytes is not None
        and weight_bytes(arch) > conditions.cache_bytes
    )


def _kernels(rows: list[Shape], columns: list[Shape]) -> tuple[Floats, Floats, Floats]:
    """Correlations of the relative deviations of shapes: smooth in the shape, common to a width, a shape's own."""
    a, b = np.array(rows, dtype=np.float64), np.array(columns, dtype=np.float64)
    same_kind = (a[:, None, 1] == 0) == (b[None, :, 1] == 0)
    d = np.log(a[:, None, 0]) - np.log(b[None, :, 0])
    f = np.log1p(a[:, None, 1]) - np.log1p(b[None, :, 1])
    heads = np.where((a[:, None, 2:4] == b[None, :, 2:4]).all(axis=2), 1.0, _OTHER_HEADS)
    style = np.where(a[:, None, 5] == b[None, :, 5], 1.0, _OTHER_HEADS)
    smooth = np.where(same_kind, np.exp(-0.5 * (d**2 + f**2) / _LENGTH**2) * heads * style, 0.0)
    width = (same_kind & (d == 0)).astype(np.float64)
    shape: Floats = (a[:, None, :] == b[None, :, :]).all(axis=2).astype(np.float64)
    return smooth, width, shape


def _climb(score: Callable[[Sequence[float]], float], grids: Sequence[Sequence[float]]) -> list[float]:
    """The best point of a grid as far as two rounds over its coordinates find it, from the middle."""
    choice = [grid[len(grid) // 2] for grid in grids]
    for _ in range(2):
        for axis, grid in enumerate(grids):
            choice = max(([*choice[:axis], value, *choice[axis + 1 :]] for value in grid), key=score)
    return choice


def fit(cost: str, observations: Sequence[Observation], conditions: Conditions) -> CostModel:
    """Fit one cost. Needs at least 4 observations with positive times; raises ValueError otherwise."""
    if cost not in COSTS:
        raise ValueError(f"no such cost: {cost}")
    if len(observations) < 4 or any(item.seconds <= 0 for item in observations):
        raise ValueError("a cost model needs at least 4 positive times")
    archs = [item.architecture for item in observations]
    drift = usual_anchors(archs, [item.anchors for item in observations], cost)
    moves = np.array([drift.terms(item.architecture, item.anchors) for item in observations])
    rows = np.array([terms_of(cost, item.architecture, conditions) for item in observations])
    beyond = np.array([_is_beyond(cost, item.architecture, conditions) for item in observations])
    measured = np.array([item.seconds for item in observations])
    cache_rate = _cache_rate(observations, conditions)
    for _ in range(3):
        seconds = measured * np.exp(-moves @ drift.exponents)
        smooth = _smooth_totals(rows, beyond, _fit_rates(rows, beyond, seconds, cache_rate))
        drift = refit(drift, moves, np.log(measured / smooth))
    seconds = measured * np.exp(-moves @ drift.exponents)
    rates = _fit_rates(rows, beyond, seconds, cache_rate)
    totals = _smooth_totals(rows, beyond, rates)
    return _fit_deviations(cost, observations, seconds, totals, conditions, rates, drift)


def _cache_rate(observations: Sequence[Observation], conditions: Conditions) -> float | None:
    """Seconds per number of a key (or value) read from the cache, from the same models timed at two cache depths.

    The weighted median of (difference of times) / (difference of counts), which a few disturbed processes cannot move;
    None where fewer than MIN_PER_REGIME models were timed at both.
    """
    ratios, weights = [], []
    for item in observations:
        if item.shallow_s is not None and item.shallow_tokens is not None:
            count = (conditions.context_tokens - item.shallow_tokens) * item.architecture.width_sums["kv_width"]
            if count > 0:
                ratios.append((item.seconds - item.shallow_s) / count)
                weights.append(count / item.seconds)
    if len(ratios) < MIN_PER_REGIME:
        return None
    order = np.argsort(ratios)
    below = np.cumsum(np.array(weights)[order])
    return max(0.0, ratios[int(order[int(np.searchsorted(below, below[-1] / 2))])])


def _fit_rates(
    rows: Floats, beyond: NDArray[np.bool_], seconds: Floats, cache_rate: float | None
) -> dict[bool, _Rates]:
    """Rates of both regimes from the terms (n, 12) of the models measured in each, or of all where they are too few.

    A known `cache_rate` is kept and its part taken off the times first.
    """
    cache = LAYER_TERM_NAMES.index("attention")
    known = np.zeros(len(rows)) if cache_rate is None else rows[:, cache] * cache_rate
    free = rows.copy()
    if cache_rate is not None:
        free[:, cache] = 0.0
    rates = {}
    for regime in (False, True):
        chosen = beyond == regime
        if chosen.sum() < MIN_PER_REGIME:
            chosen = np.ones(len(rows), dtype=bool)
        target = 1.0 - known[chosen] / seconds[chosen]
        solution = nonnegative_least_squares(free[chosen] / seconds[chosen, None], target)
        if cache_rate is not None:
            solution[cache] = cache_rate
        rates[regime] = _Rates(layer=solution[: len(LAYER_TERM_NAMES)], base=solution[len(LAYER_TERM_NAMES) :])
    return rates


def _smooth_totals(rows: Floats, beyond: NDArray[np.bool_], rates: dict[bool, _Rates]) -> Floats:
    """Smooth seconds (n,) of whole models, each at the rates of its regime."""
    resident, larger = (rows @ np.concatenate([rates[regime].layer, rates[regime].base]) for regime in (False, True))
    totals: Floats = np.maximum(np.where(beyond, larger, resident), 1e-12)
    return totals


def _fit_deviations(
    cost: str,
    observations: Sequence[Observation],
    seconds: Floats,
    totals: Floats,
    conditions: Conditions,
    rates: dict[bool, _Rates],
    drift: Drift,
) -> CostModel:
    index: dict[Shape, int] = {}
    entries: list[tuple[int, int, float]] = []
    for row, item in enumerate(observations):
        arch = item.architecture
        regime = rates[_is_beyond(cost, arch, conditions)]
        shares = _layer_terms(cost, arch, arch.layers, conditions) @ regime.layer / totals[row]
        outside = float(_base_terms(cost, arch, conditions) @ regime.base) / totals[row]
        inside = [_shape(arch, layer) for layer in arch.layers]
        for shape, share in zip([*inside, _outside(arch)], [*shares.tolist(), outside], strict=True):
            entries.append((row, index.setdefault(shape, len(index)), share))
    shapes = list(index)
    mixing = np.zeros((len(observations), len(shapes)))
    for row, column, share in entries:
        mixing[row, column] += share
    residual = seconds / totals - 1
    own = np.array([item.relative_error for item in observations])
    parts = [mixing @ part @ mixing.T for part in _kernels(shapes, shapes)]
    own_variance = np.maximum(own, MIN_NOISE) ** 2

    def covariance_of(scales: Sequence[float], noise: float) -> Floats:
        total = np.diag(own_variance + noise**2)
        for scale, part in zip(scales, parts, strict=True):
            total = total + scale**2 * part
        return total

    def likelihood(choice: Sequence[float]) -> float:
        cholesky = np.linalg.cholesky(covariance_of(choice[:-1], choice[-1]))
        white = np.linalg.solve(cholesky, residual)
        return -0.5 * float(white @ white) - float(np.log(np.diag(cholesky)).sum())

    choice = _climb(likelihood, (_AMPLITUDES, _WIDTHS, _NUGGETS, _NOISES))
    scales, noise = choice[:-1], choice[-1]
    covariance = covariance_of(scales, noise)
    inverse: Floats = np.linalg.inv(covariance).astype(np.float64)
    weights = inverse @ residual
    return CostModel(
        cost=cost,
        conditions=conditions,
        drift=drift,
        noise=noise,
        scales=tuple(scales),
        n_observations=len(observations),
        overconfidence=max(1.0, float(np.quantile(np.abs(weights) / np.sqrt(np.diag(inverse)), 0.683))),
        left_out_errors=weights / np.diag(inverse),
        _rates=rates,
        _shapes=shapes,
        _weights=weights,
        _mixing=mixing,
        _inverse=inverse,
    )

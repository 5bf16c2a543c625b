"""The arithmetic of the benchmarks that train: what they conclude, from numbers whose answer is known."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.training import Point, Recipe, Trained

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Any]:
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            if name.startswith(("bench_", "common", "trainings")):
                del sys.modules[name]


def curve(*points: tuple[float, float]) -> Trained:
    arch = Architecture(backbone="gpt2", d_model=32, layers=(LayerSpec(d_inner=64, n_head=2),))
    return Trained(
        key="0" * 12, architecture=arch, seed=1, recipe=Recipe(), loss_nats=points[-1][1], bits_per_byte=1.0, steps=1,
        tokens=1, seconds=points[-1][0],
        curve=tuple(Point(tokens=1, seconds=s, training_loss=0.0, validation_loss=loss) for s, loss in points),
    )  # fmt: skip


def test_savings_are_those_of_parallel_power_laws(benchmarks: Any) -> None:
    primer = benchmarks("bench_primer")
    laws = {"gpt2": 1.0, "primer-ez": 1.5, "worse": 0.8}
    losses = {name: [(s, 2.0 * (saved * s) ** -0.07) for s in (90.0, 180.0, 360.0)] for name, saved in laws.items()}
    found = primer.slope_savings(losses)
    assert found == pytest.approx({**laws, "k": 0.07})


def test_the_moment_at_which_a_curve_has_a_loss_lies_between_its_points(benchmarks: Any) -> None:
    reach = benchmarks("bench_primer").seconds_to_reach
    one = curve((10.0, 3.0), (20.0, 2.0), (30.0, 1.0))
    assert reach(one, 1.5) == 25.0
    assert reach(one, 3.5) == 10.0
    assert reach(one, 0.5) is None


def test_all_arms_have_the_same_decoder_parameters_and_seeds_come_last(benchmarks: Any) -> None:
    primer = benchmarks("bench_primer")
    speeds = {(size, arm): 1e-4 * (1 + n / 10) for size in primer.SIZES for n, arm in enumerate(primer.ARMS)}
    asked = primer.timed(speeds)
    assert len({one.key for one in asked.values()}) == len(asked) == 36
    for (size, arm, _), one in asked.items():
        step_s = one.recipe.batch_tokens * speeds[size, arm]
        assert abs(one.recipe.steps * step_s - primer.SIZES[size][1]) <= 0.51 * step_s
    for size in primer.SIZES:
        params = [primer.arch_of(size, **style).decoder_params for style in primer.ARMS.values()]
        assert max(params) - min(params) < 0.005 * min(params)
    assert [seed for _, _, seed in asked] == [1] * 12 + [2] * 12 + [3] * 12
    assert len({one.key for one in primer.powers().values()}) == 18


def test_seconds_are_tokens_at_the_speed_measured_before(benchmarks: Any) -> None:
    one = benchmarks("bench_primer").at_speed(curve((10.0, 3.0), (20.0, 2.0)), 0.25)
    assert one.seconds == 0.25
    assert [point.seconds for point in one.curve] == [0.25, 0.25]


def test_choices_are_pairs_that_differ_and_keep_the_latency(benchmarks: Any) -> None:
    panel = benchmarks("bench_panel")
    rng = np.random.default_rng(0)
    seconds, params = rng.uniform(1, 10, 400), rng.uniform(1, 10, 400)
    quality = params + rng.normal(0, 2, 400)
    chosen, n_same = panel.levels(seconds, params, quality)
    assert 3 < len(chosen) <= panel.N_PAIRS
    assert len({pair[1:] for pair in chosen}) == len(chosen)
    for level, by_params, by_quality in chosen:
        allowed = seconds <= level
        assert by_params != by_quality
        assert allowed[by_params]
        assert allowed[by_quality]
        assert params[by_params] == params[allowed].max()
        assert quality[by_quality] == quality[allowed].max()
    assert panel.levels(seconds, params, params) == ([], 60)
    assert n_same < 60


def test_an_interval_of_pairs_is_about_their_mean(benchmarks: Any) -> None:
    interval = benchmarks("trainings").paired_interval
    found = interval([[-0.02, -0.03], [-0.01, -0.04], [-0.05, -0.03]])
    assert found["mean"] == pytest.approx(-0.03)
    assert -0.05 < found["ci95"][0] < -0.03 < found["ci95"][1] < 0
    assert interval([[1.0, 1.0]] * 4)["ci95"] == [1.0, 1.0]


def test_other_blocks_have_the_panel_models_size(benchmarks: Any) -> None:
    panel = benchmarks("bench_panel")
    layers = (LayerSpec(d_inner=256, n_head=4), LayerSpec(d_inner=512, n_head=8), LayerSpec(d_inner=640, n_head=8))
    arch = Architecture(backbone="gpt2", d_model=128, layers=layers, vocab_size=256, max_seq_len=128)
    others = panel.in_other_blocks(arch)
    assert [other.backbone for other in others] == ["llama", "transformer++", "primer-ez", "llama"]
    assert others[3].layers[0].n_kv_head == 2
    for other in others:
        assert other.decoder_params == pytest.approx(arch.decoder_params, rel=0.005)
        assert other.n_layer == 3
    assert math.isclose(np.mean([other.d_model for other in others]), 128)

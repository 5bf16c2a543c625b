"""Guided search and its cost model over a pretended machine whose costs are known."""

import math
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpecError
from edge_lts.footprint import predicted_bytes
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.pareto import hypervolume
from edge_lts.records import Evaluation, Measurement, Protocol
from edge_lts.search import make_searcher
from edge_lts.search.base import BaseSearcher
from edge_lts.search.cost_model import COSTS, Conditions, Observation, fit, nonnegative_least_squares
from edge_lts.search.guided import GuidedSearcher
from edge_lts.search.solver import LayerTable, solve
from edge_lts.space import SearchSpace

PROTOCOL = Protocol()
OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s", "peak_memory_bytes"])
SPACE = SearchSpace.from_json(
    {
        "name": "space",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 8},
            "d_model": {"min": 64, "max": 384, "step": 64},
            "d_inner": {"min": 128, "max": 1536, "step": 128},
            "n_head": [2, 4],
        },
        "fixed": {"vocab_size": 4096},
    }
)


def layer_seconds(d_model: int, layer: LayerSpec, slow: tuple[int, int] | None = None) -> float:
    efficiency = 1 + 0.2 * math.sin(d_model / 60)
    if slow == (d_model, layer.d_inner):
        efficiency *= 1.6
    return (4 * d_model**2 + 2 * d_model * layer.d_inner) * 4e-10 * efficiency + 2e-5 + 1e-6 * layer.n_head


def seconds(arch: Architecture, slow: tuple[int, int] | None = None) -> float:
    return (
        5e-5 + arch.vocab_size * arch.d_model * 3e-10 + sum(layer_seconds(arch.d_model, x, slow) for x in arch.layers)
    )


class Machine:
    """Times with noise and with a slow drift that the anchor shares."""

    def __init__(self, noise: float = 0.01, drift: float = 0.15, slow: tuple[int, int] | None = None) -> None:
        self.rng = np.random.default_rng(7)
        self.noise, self.drift, self.slow = noise, drift, slow
        self.n = 0

    def measure(self, candidate_id: int, arch: Architecture) -> Evaluation:
        self.n += 1
        speed = math.exp(self.drift * math.sin(self.n / 10))
        values = {
            cost: scale * seconds(arch, self.slow) * speed * (1 + self.noise * self.rng.standard_normal())
            for cost, scale in (("decode_latency_s", 1.0), ("prefill_latency_s", 40.0))
        }
        objectives: dict[str, Any] = {
            "decoder_params": arch.decoder_params,
            "peak_memory_bytes": Measurement(median=predicted_bytes(arch, PROTOCOL) * 1.02 + 1e6, n=1),
            **{
                name: Measurement(median=value, ci95=(value * 0.99, value * 1.01), n=20)
                for name, value in values.items()
            },
        }
        conditions = {"anchor_s": dict.fromkeys(COSTS, 1e-3 * speed)}
        return Evaluation(
            candidate_id=candidate_id, architecture=arch, objectives=objectives, samples={}, conditions=conditions
        )


def drive(searcher: BaseSearcher, machine: Machine, n: int) -> list[Architecture]:
    found: list[Architecture] = []
    while len(found) < n:
        candidates = searcher.ask(1)
        if not candidates:
            break
        found.append(candidates[0].architecture)
        searcher.tell(candidates[0].candidate_id, machine.measure(candidates[0].candidate_id, found[-1]))
    return found


def volume(found: list[Architecture], slow: tuple[int, int] | None = None) -> float:
    """True hypervolume of (decoder_params, decode latency) in logarithms."""
    losses = np.array([[-math.log(arch.decoder_params), math.log(seconds(arch, slow))] for arch in found])
    return hypervolume(losses, np.array([-math.log(1e5), math.log(1.0)]))


def test_nonnegative_least_squares_finds_the_constrained_optimum() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix, target = rng.normal(size=(12, 4)), rng.normal(size=12)
        found = nonnegative_least_squares(matrix, target)
        assert (found >= 0).all()
        gradient = matrix.T @ (target - matrix @ found)  # the Karush-Kuhn-Tucker conditions
        assert (gradient <= 1e-6).all()
        assert np.abs(gradient * found).max() < 1e-6


def test_the_model_predicts_what_it_has_not_seen_and_follows_the_drift() -> None:
    rng = np.random.default_rng(2)
    model = fit("decode_latency_s", observe(Machine(), 60), Conditions())
    assert 0.9 <= model.gamma <= 1.0
    errors = [model.predict(arch) / seconds(arch) - 1 for arch in (SPACE.sample(rng) for _ in range(50))]
    bias = float(np.median(errors))  # the anchor's usual speed is not the machine's at drift zero
    assert np.median(np.abs(np.array(errors) - bias)) < 0.015
    assert np.quantile(np.abs(np.array(errors) - bias), 0.9) < 0.05


def test_a_cost_model_needs_observations() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        fit("decode_latency_s", [], Conditions())
    with pytest.raises(ValueError, match="no such cost"):
        fit("speed", [], Conditions())


def test_guided_beats_evolution_and_random_at_equal_measurements() -> None:
    guided = volume(drive(GuidedSearcher(SPACE, OBJECTIVES, 1, protocol=PROTOCOL), Machine(), 100))
    for strategy in ("evolution", "random"):
        other = volume(drive(make_searcher(strategy, SPACE, OBJECTIVES, 1), Machine(), 300))
        assert guided > other, strategy


def observe(machine: Machine, n: int) -> list[Observation]:
    rng = np.random.default_rng(1)
    observations = []
    for index in range(n):
        outcome = machine.measure(index, SPACE.sample(rng))
        value = outcome.objectives["decode_latency_s"]
        assert isinstance(value, Measurement)
        anchor = outcome.conditions["anchor_s"]["decode_latency_s"]
        observation = Observation(
            architecture=outcome.architecture, seconds=value.median, relative_error=0.005, anchor_s=anchor
        )
        observations.append(observation)
    return observations


def test_a_slow_shape_is_avoided() -> None:
    """A layer shape that is 1.6 times as slow as its neighbours costs more to the model and is left out by the
    solver."""
    slow = (256, 1024)
    model = fit("decode_latency_s", observe(Machine(noise=0.005, slow=slow), 200), Conditions())
    layers = tuple(LayerSpec(d_inner=d_inner, n_head=2) for d_inner in range(256, 1537, 128))
    costs, _ = model.layer_costs(256, layers, False)
    at = [layer.d_inner for layer in layers].index(slow[1])
    assert costs[at] > 1.3 * (costs[at - 1] + costs[at + 1]) / 2
    table = LayerTable(
        d_model=256,
        step=128,
        depths=(4, 6, 8),
        layers=layers,
        costs=costs[:, None],
        features=np.zeros((len(layers), 0), dtype=np.int64),
    )
    states = solve(table)
    used = [layer.d_inner for row in range(len(states)) for layer in states.layers(row)]
    # It is used only where every layer may be no wider, and another choice costs nothing there.
    assert used.count(slow[1]) < 0.5 * min(used.count(slow[1] - 128), used.count(slow[1] + 128))


def test_the_frontier_keeps_its_constraints() -> None:
    limit = Constraint(name="decode_latency_s", maximum=0.8e-3)
    searcher = GuidedSearcher(SPACE, OBJECTIVES, 1, constraints=(limit,), protocol=PROTOCOL)
    found = drive(searcher, Machine(drift=0.0), 60)
    aimed = [arch for arch in found[24:] if searcher._origin.get(arch) == "frontier"]
    assert aimed
    assert np.mean([seconds(arch) <= 0.8e-3 * 1.1 for arch in aimed]) > 0.9


def test_two_latencies_at_once_are_solved() -> None:
    objectives = resolve_objectives(["decoder_params", "decode_latency_s", "prefill_latency_s"])
    searcher = GuidedSearcher(SPACE, objectives, 1, protocol=PROTOCOL)
    drive(searcher, Machine(), 40)
    prediction = searcher.solve()
    assert not prediction.is_exact
    assert prediction.losses.shape[1] == 3
    assert len(prediction.losses) > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"design": 2}, "design must be"),
        ({"batch": True}, "batch must be"),
        ({"gap": 0}, "gap must lie"),
        ({"cache_bytes": -1}, "cache_bytes must be"),
        ({"speed": 1}, "no setting 'speed'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_searcher("guided", SPACE, OBJECTIVES, 1, settings)

"""Guided search for a calibrated quality: what the solver carries adds up, and its frontier is the true one."""

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.errors import SpecError
from edge_lts.estimating import with_quality
from edge_lts.footprint import cache_bytes, cache_tokens, weight_bytes, working_set_bytes
from edge_lts.objectives import QUALITY, Constraint, Objective, resolve_objectives
from edge_lts.pareto import nondominated
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts.proxies.shape import Shape
from edge_lts.records import Evaluation, Outcome
from edge_lts.search import make_searcher, predictor, solver
from edge_lts.search.guided import GuidedSearcher
from edge_lts.search.layout import Layout
from edge_lts.search.predictor import Prediction, Predictor, log_losses
from edge_lts.search.solver import LayerTable, solve
from edge_lts.space import SearchSpace
from tests.calibrated import proxy
from tests.pretended import PROTOCOL, SPACE, Machine, drive

SMALL = SearchSpace.from_json(
    {
        "name": "small",
        "backbone": "gpt2",
        "genes": {
            "n_layer": [2, 3],
            "d_model": [64, 128],
            "d_inner": [128, 256, 512],
            "n_head": [2, 4, 8],
            "d_embed": [64, 128],
        },
        "fixed": {"vocab_size": 1024},
    }
)
SIXES = SearchSpace.from_json(
    {
        "name": "sixes",
        "backbone": "gpt2",
        "genes": {"n_layer": [1, 3], "d_model": [96], "d_inner": [128, 192, 320], "n_head": [2, 3, 4, 6, 12]},
        "fixed": {"vocab_size": 1024},
    }
)
SETS = (
    (QUALITY, "decode_latency_s"),
    (QUALITY, "decode_latency_s", "peak_memory_bytes"),
    (QUALITY, "decoder_params", "decode_latency_s"),
    (QUALITY, "peak_memory_bytes"),
)


class Judged(Machine):
    """A pretended machine whose records have a quality, too."""

    def __init__(self, judge: CalibratedProxy, noise: float = 0.01) -> None:
        super().__init__(noise=noise, drift=0.0)
        self.judge = judge

    def measure(self, candidate_id: int, arch: Architecture) -> Evaluation:
        outcome: Outcome = with_quality(super().measure(candidate_id, arch), self.judge)
        assert isinstance(outcome, Evaluation)
        return outcome


def fitted(space: SearchSpace, judge: CalibratedProxy | None, n: int = 40) -> Predictor:
    found, machine, rng = Predictor(PROTOCOL, None, judge), Machine(drift=0.0), np.random.default_rng(3)
    for index in range(n):
        found.tell(machine.measure(index, space.sample(rng)))
    assert found.fit()
    return found


def every_loss(found: Predictor, space: SearchSpace, objectives: Sequence[Objective]) -> np.ndarray:
    rows = []
    for arch in space.enumerate():
        known = {**found.predict(arch), **found.by_formula(arch)}
        rows.append([objective.loss(known[objective.name]) for objective in objectives])
    return np.array(rows)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is thinned."""
    monkeypatch.setattr(predictor, "RESOLUTION", 1 + 1e-10)
    monkeypatch.setattr(predictor, "LOG_RESOLUTION", 1e-10)


def same_frontier(prediction: Prediction, everything: np.ndarray) -> None:
    """Each point of either is matched by one of the other, to within rounding."""
    truth = everything[nondominated(everything)]
    slack = 1e-9 * np.abs(everything).max(axis=0)
    for one, others in itertools.chain(
        ((row, prediction.losses) for row in truth), ((row, everything) for row in prediction.losses)
    ):
        assert (others <= one + slack).all(axis=1).any(), one
    beaten = [(everything < row - slack).all(axis=1).any() for row in prediction.losses]
    assert not any(beaten)


@pytest.mark.parametrize("names", SETS, ids="-".join)
@pytest.mark.parametrize("heads", [0.0, 0.06])
@pytest.mark.parametrize("space", [SMALL, SIXES], ids=["small", "sixes"])
def test_the_solved_frontier_is_that_of_every_member(
    exact: None, names: tuple[str, ...], heads: float, space: SearchSpace
) -> None:
    """Brute force: no member of the space is better than the solution, and each point of it is a member's."""
    judge = proxy(heads=heads)
    found, objectives = fitted(space, judge), resolve_objectives(names)
    prediction = found.frontier(space, objectives)
    assert prediction.cover == "exact"
    same_frontier(prediction, every_loss(found, space, objectives))
    for index in range(len(prediction)):
        arch = prediction.architecture(index)
        assert space.contains(arch)
        known = {**found.predict(arch), **found.by_formula(arch)}
        mine = [objective.loss(known[objective.name]) for objective in objectives]
        assert prediction.losses[index] == pytest.approx(mine, rel=1e-6)


def test_a_bound_on_quality_is_kept_exactly(exact: None) -> None:
    found, objectives = fitted(SMALL, proxy()), resolve_objectives([QUALITY, "decode_latency_s"])
    everything = every_loss(found, SMALL, objectives)
    floor = float(-np.median(everything[:, 0]))
    prediction = found.frontier(SMALL, objectives, [Constraint(name=QUALITY, minimum=floor)])
    same_frontier(prediction, everything[everything[:, 0] <= -floor])


def test_at_its_usual_resolution_nothing_is_better_by_more_than_a_step() -> None:
    found, objectives = fitted(SMALL, proxy(heads=0.06)), resolve_objectives(SETS[1])
    prediction = found.frontier(SMALL, objectives)
    points, truth = (
        log_losses(prediction.losses, objectives),
        log_losses(every_loss(found, SMALL, objectives), objectives),
    )
    steps = predictor.log_steps(objectives) + 1e-9
    for row in truth[nondominated(truth)]:
        assert (points <= row + steps).all(axis=1).any()


@pytest.mark.parametrize("backbone", ["gpt2", "opt", "transformer-xl"])
def test_what_the_states_say_is_what_the_stacks_are(backbone: str) -> None:
    space = SearchSpace.from_json({**SMALL.to_json(), "backbone": backbone})
    judge = proxy(heads=0.05, backbone=None)
    for table in space.tables:
        layout = Layout(table, space.build(table, [table.frame]), PROTOCOL, judge)
        costs = np.random.default_rng(5).uniform(1.0, 2.0, (len(table.shapes), 1))
        states = solve(
            LayerTable(
                d_model=table.d_model,
                step=math.gcd(*table.d_inner),
                depths=table.depths,
                layers=table.shapes,
                costs=costs,
                features=layout.features,
                levels=layout.levels,
            )
        )
        decoder, stored, quality = layout.decoder_params(states), layout.stored_bytes(states), layout.quality(states)
        for row in range(0, len(states), 17):
            arch = space.build(table, [table.index_of(layer) for layer in states.layers(row)])
            assert decoder[row] == arch.decoder_params
            assert stored[row] == weight_bytes(arch) + cache_bytes(arch, cache_tokens(arch, PROTOCOL))
            assert quality[row] == pytest.approx(float(judge.quality(Shape.of(arch))), abs=1e-12)
            assert states.level[row] >= working_set_bytes(arch, PROTOCOL)


def test_heads_that_are_too_much_to_carry_are_weighed_against_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said so; every point is a member's, and most of the true frontier is found."""
    judge, objectives = proxy(heads=0.06), resolve_objectives(SETS[0])
    found = fitted(SIXES, judge)
    monkeypatch.setattr(solver, "MAX_STATES", 4 * 24)  # four depths of at most 24 sums: no room for heads
    prediction = found.frontier(SIXES, objectives)
    assert prediction.cover == "weightings"
    everything = every_loss(found, SIXES, objectives)
    for index in range(len(prediction)):
        arch = prediction.architecture(index)
        known = {**found.predict(arch), **found.by_formula(arch)}
        assert prediction.losses[index] == pytest.approx([one.loss(known[one.name]) for one in objectives], rel=1e-6)
    near = [
        ((prediction.losses[:, 0] <= row[0] + 0.01) & (prediction.losses[:, 1] <= row[1] * 1.02)).any()
        for row in everything[nondominated(everything)]
    ]
    assert np.mean(near) > 0.8


def test_heads_are_carried_only_where_the_proxy_looks_at_them() -> None:
    (table,) = (table for table in SMALL.tables if (table.d_model, table.d_embed) == (64, 64))
    one = SMALL.build(table, [table.frame])
    assert Layout(table, one, PROTOCOL, proxy()).features.shape == (9, 0)
    assert Layout(table, one, PROTOCOL, None).features.shape == (9, 0)
    assert Layout(table, one, PROTOCOL, proxy(heads=0.05)).features.tolist() == 3 * [[0], [1], [2]]


def test_at_equal_time_the_solution_for_quality_is_better_than_the_one_for_size() -> None:
    """The proxy prefers width and heads; by size alone depth, width and heads are alike."""
    judge = proxy(heads=0.03)
    found = fitted(SPACE, judge)
    best: dict[str, list[float]] = {}
    for first in (QUALITY, "decoder_params"):
        prediction = found.frontier(SPACE, resolve_objectives([first, "decode_latency_s"]))
        archs = [prediction.architecture(index) for index in range(len(prediction))]
        points = [
            (row[1], float(judge.quality(Shape.of(arch)))) for row, arch in zip(prediction.losses, archs, strict=True)
        ]
        best[first] = [max(value for cost, value in points if cost <= limit) for limit in np.geomspace(3e-4, 2e-3, 12)]
    gains = np.array(best[QUALITY]) - np.array(best["decoder_params"])
    assert gains.min() >= -predictor.LOG_RESOLUTION
    assert gains.mean() > 0.005


def test_a_plainer_shape_never_loses_quality() -> None:
    judge = proxy(heads=0.1)
    objectives = resolve_objectives([QUALITY, "decode_latency_s"])
    searcher = GuidedSearcher(SMALL, objectives, 1, protocol=PROTOCOL, proxy=judge)
    drive(searcher, Judged(judge, noise=0.02), 30)
    for arch in itertools.islice(SMALL.enumerate(), 0, None, 7):
        plain = searcher._plainest(arch)
        assert judge.quality(Shape.of(plain)) >= judge.quality(Shape.of(arch))


def test_quality_needs_its_proxy() -> None:
    objectives = resolve_objectives([QUALITY, "decode_latency_s"])
    with pytest.raises(SpecError, match="without the calibrated proxy"):
        make_searcher("guided", SMALL, objectives, 1, protocol=PROTOCOL)


def test_the_papers_space_with_a_proxy_that_looks_at_heads_is_solved_in_seconds() -> None:
    space = SearchSpace.from_json(
        {
            "name": "paper",
            "backbone": "gpt2",
            "genes": {
                "n_layer": {"min": 2, "max": 15},
                "d_model": [128, 512, 960],
                "d_inner": {"min": 128, "max": 4032, "step": 64},
                "n_head": [2, 4, 8],
            },
            "rules": {"d_inner_over_d_model": {"above": 1.7}, "decoder_params": {"at_least": 6_000_000}},
        }
    )
    found, objectives = fitted(space, proxy(heads=0.03)), resolve_objectives(SETS[1])
    begun = time.process_time()
    prediction = found.frontier(space, objectives)
    took_s = time.process_time() - begun
    assert prediction.cover == "exact"
    assert len(prediction) > 50
    assert took_s < 30, f"{took_s} s for 3 of the 14 widths"

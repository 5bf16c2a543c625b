"""Guided search and its cost model over a pretended machine whose costs are known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError, SpecError
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.pareto import hypervolume
from edge_lts.records import Evaluation, Failure, Measurement, Outcome
from edge_lts.search import make_searcher, solver
from edge_lts.search.cost_model import COSTS, Conditions, Observation, fit, nonnegative_least_squares
from edge_lts.search.guided import GuidedSearcher
from edge_lts.search.solver import LayerTable, solve
from edge_lts.space import SearchSpace
from tests.pretended import OBJECTIVES, PROTOCOL, SPACE, Machine, drive, seconds


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
    assert sum(anchor["exponent"] for anchor in model.drift.to_json().values()) == pytest.approx(1.0, abs=0.1)
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
        anchors = outcome.conditions["anchor_s"]
        observation = Observation(
            architecture=outcome.architecture, seconds=value.median, relative_error=0.005, anchors=anchors
        )
        observations.append(observation)
    return observations


def test_a_slow_shape_is_avoided() -> None:
    """A layer shape that is 1.6 times as slow as its neighbours costs more to the model and is left out by the
    solver."""
    slow = (256, 1024)
    model = fit("decode_latency_s", observe(Machine(noise=0.005, slow=slow), 200), Conditions())
    layers = tuple(LayerSpec(d_inner=d_inner, n_head=2) for d_inner in range(256, 1537, 128))
    costs = model.layer_costs(Architecture(backbone="gpt2", d_model=256, layers=layers), layers, False)
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
    assert prediction.cover == "0.5 %"
    assert prediction.losses.shape[1] == 3
    assert len(prediction.losses) > 10


def test_a_short_budget_gets_a_short_design() -> None:
    for expected, n_design in ((None, 24), (100, 24), (30, 15), (5, 10)):
        searcher = make_searcher("guided", SPACE, OBJECTIVES, 1, {"expected_candidates": expected}, protocol=PROTOCOL)
        assert isinstance(searcher, GuidedSearcher)
        drive(searcher, Machine(), 30)
        origins = list(searcher._origin.values())
        assert origins.count("design") == n_design
        assert "frontier" in origins[:29]


def test_widen_goes_on_beyond_the_bounds_that_the_frontier_leans_on() -> None:
    narrow = SPACE.to_json()
    narrow["genes"] = {"n_layer": [2, 3], "d_model": [128, 192], "d_inner": [256, 512, 1024], "n_head": [2, 4]}
    space = SearchSpace.from_json(narrow)
    objectives = resolve_objectives(["decoder_params", "decode_latency_s"])
    found = {}
    for widen in (False, True):
        searcher = make_searcher("guided", space, objectives, 1, {"widen": widen}, protocol=PROTOCOL)
        found[widen] = drive(searcher, Machine(drift=0.0), 110)
    assert all(space.contains(arch) for arch in found[False])
    assert max(arch.decoder_params for arch in found[True]) > 1.2 * max(arch.decoder_params for arch in found[False])
    again = make_searcher("guided", space, objectives, 1, {"widen": True}, protocol=PROTOCOL)
    assert drive(again, Machine(drift=0.0), 110) == found[True]  # what a resume relies on


def test_layers_that_never_run_are_left_out() -> None:
    """A layer of 1,024 at width 256 crashes; the rounds find out and go around it."""

    def crashes(arch: Architecture) -> bool:
        return arch.d_model == 256 and any(layer.d_inner == 1024 for layer in arch.layers)

    searcher, machine, told = GuidedSearcher(SPACE, OBJECTIVES, 1, protocol=PROTOCOL), Machine(), []
    while len(told) < 100 and (candidates := searcher.ask(1)):
        (candidate,) = candidates
        told.append(candidate)
        outcome: Outcome = machine.measure(candidate.candidate_id, candidate.architecture)
        if crashes(candidate.architecture):
            outcome = Failure(
                candidate_id=candidate.candidate_id, architecture=candidate.architecture, kind="crash", message="SIGILL"
            )
        searcher.tell(candidate.candidate_id, outcome)
    aimed = [item for item in told if item.origin == "frontier"]
    assert len(aimed) > 30
    failed = [index for index, item in enumerate(aimed) if crashes(item.architecture)]
    assert len(failed) <= 3
    assert sum(item.architecture.d_model == 256 for item in aimed) > 5


def test_of_shapes_alike_the_plainest_is_taken() -> None:
    """On a machine where heads and the distribution of d_inner cost nothing, members are homogeneous where they can be,
    with heads of 32 to 128; where four heads cost a fifth more, they have two."""
    found = {}
    for cost_of_four in (0.0, 0.2):

        class Uneven(Machine):
            extra = cost_of_four

            def measure(self, candidate_id: int, arch: Architecture) -> Evaluation:
                outcome = super().measure(candidate_id, arch)
                share = sum(layer.n_head == 4 for layer in arch.layers) / arch.n_layer
                values = {
                    name: replace(value, median=value.median * (1 + self.extra * share), ci95=None)
                    if isinstance(value, Measurement) and name in COSTS
                    else value
                    for name, value in outcome.objectives.items()
                }
                return replace(outcome, objectives=values)

        objectives = resolve_objectives(["decoder_params", "decode_latency_s"])
        searcher = GuidedSearcher(SPACE, objectives, 1, protocol=PROTOCOL)
        told = drive(searcher, Uneven(noise=0.01, drift=0.0), 80)
        found[cost_of_four] = [arch for arch in told if searcher._origin.get(arch) == "frontier"]
    wide = [arch for arch in found[0.0] if arch.d_model >= 320]  # with two heads those would be wider than validated
    assert len(wide) > 5
    assert np.mean([layer.n_head == 4 for arch in wide for layer in arch.layers]) > 0.8
    even = [arch for arch in found[0.0] if not sum(layer.d_inner for layer in arch.layers) % (128 * arch.n_layer)]
    assert np.mean([len(set(arch.layers)) == 1 for arch in even]) > 0.8
    late = [arch for arch in found[0.2][8:] if arch.d_model >= 320]
    assert len(late) > 3
    assert np.mean([layer.n_head == 2 for arch in late for layer in arch.layers]) > 0.8


def test_what_the_cache_costs_is_learned_from_two_depths() -> None:
    """Decode times with 2e-9 s a cached number more at 192 tokens than at 48; projections alone cannot explain it."""
    machine, rate = Machine(noise=0.002, drift=0.0), 2e-10
    observations = []
    for item in observe(machine, 40):
        per_token = rate * item.architecture.n_layer * item.architecture.d_model
        deep = item.seconds + 192 * per_token
        observations.append(replace(item, seconds=deep, shallow_s=item.seconds + 48 * per_token, shallow_tokens=48))
    model = fit("decode_latency_s", observations, Conditions())
    assert model.to_json()["seconds_per_count"]["resident"]["layer"]["attention"] == pytest.approx(rate, rel=1e-6)
    without = [replace(item, shallow_s=None) for item in observations]
    assert fit("decode_latency_s", without, Conditions()).n_observations == 40


def test_constraints_on_what_is_not_searched_are_solved_for_too() -> None:
    objectives = resolve_objectives(["decoder_params", "peak_memory_bytes"])
    limit = Constraint(name="prefill_latency_s", maximum=0.03)
    searcher = GuidedSearcher(SPACE, objectives, 1, constraints=(limit,), protocol=PROTOCOL)
    found = drive(searcher, Machine(drift=0.0), 50)
    aimed = [arch for arch in found[24:] if searcher._origin.get(arch) == "frontier"]
    assert len(aimed) >= 8
    assert np.mean([40 * seconds(arch) <= 0.03 * 1.1 for arch in aimed]) > 0.9


def test_two_costs_in_a_space_too_large_for_a_cover_are_solved_by_weightings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said so, and every member's two costs are those that the model predicts for it."""
    objectives = resolve_objectives(["decoder_params", "decode_latency_s", "prefill_latency_s"])
    searcher = GuidedSearcher(SPACE, objectives, 1, protocol=PROTOCOL)
    drive(searcher, Machine(), 30)
    monkeypatch.setattr(solver, "MAX_IMPROVEMENTS", 3000)
    prediction = searcher.solve()
    assert prediction.cover == "weightings"
    assert len(prediction) > 10
    for index in range(0, len(prediction), 5):
        predicted = searcher.predict(prediction.architecture(index))
        assert prediction.losses[index, 1] == pytest.approx(predicted["decode_latency_s"])
        assert prediction.losses[index, 2] == pytest.approx(predicted["prefill_latency_s"])
    monkeypatch.setattr(solver, "MAX_IMPROVEMENTS", 10)
    with pytest.raises(SpaceError, match="more than 10 improvements"):
        searcher.solve()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widen": 1}, "widen must be"),
        ({"expected_candidates": 0}, "expected_candidates must be"),
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

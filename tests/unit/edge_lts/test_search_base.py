"""What is told is checked in one place; strategies are made by name."""

import math
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError, SpecError
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.records import Evaluation, Failure, Measurement
from edge_lts.search import STRATEGIES, TellError, make_searcher
from edge_lts.search.base import check_tell, narrowed
from edge_lts.search.evolution import EvolutionSearcher
from edge_lts.search.random import RandomSearcher
from edge_lts.space import SearchSpace

OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s"])
GENES = {"n_layer": [1, 2], "d_model": [32], "d_inner": [64, 128], "n_head": [2]}
SPACE = SearchSpace.from_json({"name": "t", "backbone": "gpt2", "genes": GENES})
ASKED = [Architecture(backbone="gpt2", d_model=32, layers=(LayerSpec(d_inner=f, n_head=2),)) for f in (64, 128)]


def evaluation(candidate_id: int = 1, **objectives: Any) -> Evaluation:
    values = {"decoder_params": ASKED[1].decoder_params, "decode_latency_s": Measurement(median=0.5), **objectives}
    return Evaluation(candidate_id=candidate_id, architecture=ASKED[1], objectives=values, samples={}, conditions={})


def test_a_score_holds_losses_in_the_order_of_the_objectives() -> None:
    score = check_tell(ASKED, {}, 1, evaluation(), OBJECTIVES)
    assert score is not None
    assert score.losses == (-ASKED[1].decoder_params, 0.5)
    assert score.violation == 0


def test_a_failure_has_no_score() -> None:
    failure = Failure(candidate_id=1, architecture=ASKED[1], kind="oom", message="")
    assert check_tell(ASKED, {}, 1, failure, OBJECTIVES) is None


def test_violation_is_the_sum_of_relative_excesses() -> None:
    constraints = (
        Constraint(name="decode_latency_s", maximum=0.4),
        Constraint(name="peak_memory_bytes", minimum=10, maximum=100),
        Constraint(name="prefill_latency_s", maximum=0),
    )
    told = evaluation(peak_memory_bytes=5, prefill_latency_s=2)
    score = check_tell(ASKED, {}, 1, told, OBJECTIVES, constraints)
    assert score is not None
    assert score.violation == pytest.approx(0.25 + 0.5 + 2)


@pytest.mark.parametrize(
    ("candidate_id", "outcome", "message"),
    [
        (2, evaluation(2), "candidate 2 was never asked; 2 were"),
        (-1, evaluation(-1), "candidate -1 was never asked"),
        (True, evaluation(1), "candidate True was never asked"),
        (0, evaluation(0), "candidate 0 was told before"),
        (1, evaluation(0), "candidate 1 was told the outcome of candidate 0"),
        (1, Failure(candidate_id=1, architecture=ASKED[0], kind="oom", message=""), "is architecture"),
        (1, evaluation(decode_latency_s=None), "decode_latency_s is missing"),
        (1, evaluation(decode_latency_s=math.nan), "decode_latency_s is nan"),
        (1, evaluation(decode_latency_s=Measurement(median=math.inf)), "decode_latency_s is inf"),
        (1, evaluation(decoder_params=10**400), "decoder_params is 1000000"),
    ],
)
def test_what_does_not_fit_is_refused(candidate_id: int, outcome: Any, message: str) -> None:
    with pytest.raises(TellError, match=message):
        check_tell(ASKED, {0: None}, candidate_id, outcome, OBJECTIVES)


def test_a_constrained_quantity_must_be_told_too() -> None:
    with pytest.raises(TellError, match="prefill_latency_s is missing"):
        check_tell(ASKED, {}, 1, evaluation(), OBJECTIVES, (Constraint(name="prefill_latency_s", maximum=1),))


def test_strategies_by_name() -> None:
    assert {"random", "evolution"} <= set(STRATEGIES)
    assert isinstance(make_searcher("random", SPACE, OBJECTIVES, 1), RandomSearcher)
    assert isinstance(make_searcher("evolution", SPACE, OBJECTIVES, 1, {}), EvolutionSearcher)


@pytest.mark.parametrize(
    ("strategy", "seed", "settings", "message"),
    [
        ("annealing", 1, {}, "unknown strategy 'annealing'; known: guided, evolution, random"),
        ("random", -1, {}, "seed must be"),
        ("random", True, {}, "seed must be"),
        ("random", 1, {"population": 5}, "random has no setting 'population'"),
        ("evolution", 1, {"size": 5}, "evolution has no setting 'size'; known: population, parents"),
        ("evolution", 1, {"population": 0}, "population must be an integer from 1"),
        ("evolution", 1, {"population": "5"}, "population must be an integer"),
        ("evolution", 1, {"parents": 2.5}, "parents must be an integer"),
        ("evolution", 1, {"mutations": 0, "crossovers": 0}, "both 0"),
        ("evolution", 1, {"p": 0}, "p must be a probability"),
        ("evolution", 1, {"p": math.nan}, "p must be a probability"),
        ("evolution", 1, {"patience": -1}, "patience must be"),
    ],
)
def test_what_makes_no_sense_is_refused(strategy: str, seed: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_searcher(strategy, SPACE, OBJECTIVES, seed, settings)


def test_constraints_by_formula_narrow_the_space() -> None:
    smallest = ASKED[0].decoder_params
    cut = narrowed(SPACE, (Constraint(name="decoder_params", maximum=smallest + 0.5),))
    assert list(cut.enumerate()) == ASKED[:1]
    with pytest.raises(SpaceError, match="decoder_params"):
        narrowed(SPACE, (Constraint(name="decoder_params", minimum=1e9),))
    assert narrowed(SPACE, (Constraint(name="decode_latency_s", maximum=1),)) == SPACE

"""Any two to four of the built-in objectives can be searched by every strategy, quality among them with a proxy."""

import itertools
from typing import Any

import pytest

from edge_lts.errors import SpecError
from edge_lts.estimating import with_quality
from edge_lts.frontier import members
from edge_lts.objectives import OBJECTIVES, QUALITY, CommandObjective, Objective, resolve_objectives
from edge_lts.records import Evaluation, central
from edge_lts.search import make_searcher
from edge_lts.space import SearchSpace
from tests.calibrated import proxy
from tests.pretended import PROTOCOL, Machine

SPACE = SearchSpace.from_json(
    {
        "name": "sets",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 5},
            "d_model": [64, 128, 192],
            "d_inner": {"min": 128, "max": 768, "step": 128},
            "n_head": [2, 4],
        },
        "fixed": {"vocab_size": 1024},
    }
)
BY_FORMULA = [name for name in OBJECTIVES if name not in ("energy_j_per_token", QUALITY)]
SETS = [names for n in (2, 3, 4) for names in itertools.combinations(BY_FORMULA, n)]
SETS += [(QUALITY, *names) for n in (1, 2) for names in itertools.combinations(BY_FORMULA, n)]
JUDGE = proxy(heads=0.05)
N_MEASURED = 30
STRATEGIES: dict[str, dict[str, Any]] = {
    "guided": {"design": 12, "batch": 4},
    "evolution": {"population": 10},
    "random": {},
}


@pytest.mark.parametrize("names", SETS, ids="-".join)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_searches_every_set_of_objectives(strategy: str, names: tuple[str, ...]) -> None:
    objectives = resolve_objectives(names)
    searcher = make_searcher(strategy, SPACE, objectives, 1, STRATEGIES[strategy], protocol=PROTOCOL, proxy=JUDGE)
    machine = Machine(drift=0.0)  # times as they are told are the times that the frontier takes
    outcomes: list[Evaluation] = []
    origins = set()
    while len(outcomes) < N_MEASURED and (candidates := searcher.ask(1)):
        (candidate,) = candidates
        assert SPACE.violation(candidate.architecture) is None
        origins.add(candidate.origin)
        outcome = with_quality(machine.measure(candidate.candidate_id, candidate.architecture), JUDGE)
        assert isinstance(outcome, Evaluation)
        outcomes.append(outcome)
        searcher.tell(candidate.candidate_id, outcomes[-1])
    assert len({outcome.architecture for outcome in outcomes}) == len(outcomes)
    assert len(outcomes) == N_MEASURED or searcher.stop()
    if strategy == "guided":  # it came as far as solving for these objectives
        assert "frontier" in origins or searcher.stop() == ("frontier measured",)

    losses = {outcome.architecture.arch_id: losses_of(outcome, objectives) for outcome in outcomes}
    best = {
        arch_id
        for arch_id, own in losses.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in losses.values())
    }
    found = members(outcomes, objectives)
    assert {member.arch_id for member in found if not member.probably_dominated} == best
    assert best


def losses_of(outcome: Evaluation, objectives: tuple[Objective, ...]) -> tuple[float, ...]:
    losses = []
    for objective in objectives:
        value = central(outcome.objectives[objective.name])
        assert value is not None
        losses.append(objective.loss(value))
    return tuple(losses)


def test_energy_is_searched_by_strategies_that_predict_nothing() -> None:
    objectives = resolve_objectives(["decoder_params", "energy_j_per_token"])
    with pytest.raises(SpecError, match=r"energy_j_per_token: .* use --strategy evolution"):
        make_searcher("guided", SPACE, objectives, 1, protocol=PROTOCOL)
    for strategy in ("evolution", "random"):
        assert make_searcher(strategy, SPACE, objectives, 1, protocol=PROTOCOL).ask(1)


def test_guided_search_refuses_what_it_cannot_predict_by_name() -> None:
    command = CommandObjective(name="score", direction="max", command="echo 1")
    objectives = resolve_objectives(["decoder_params", "decode_latency_s", "score"], [command])
    with pytest.raises(SpecError, match=r"score: .* use --strategy evolution"):
        make_searcher("guided", SPACE, objectives, 1, protocol=PROTOCOL)
    for strategy in ("evolution", "random"):
        assert make_searcher(strategy, SPACE, objectives, 1, protocol=PROTOCOL).ask(1)

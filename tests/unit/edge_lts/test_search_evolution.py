"""What evolution does beyond the contract: who has children, how generations run, and that it is worth its name."""

from typing import Any

import numpy as np

from edge_lts.arch import Architecture
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.pareto import hypervolume
from edge_lts.records import Evaluation, Failure, Outcome
from edge_lts.search import Candidate, make_searcher
from edge_lts.search.base import BaseSearcher, Score
from edge_lts.search.evolution import EvolutionSearcher, EvolutionSettings, breeders
from edge_lts.space import SearchSpace

OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s"])
SPACE = SearchSpace.from_json(
    {
        "name": "t",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 12},
            "d_model": {"min": 64, "max": 512, "step": 64},
            "d_inner": {"min": 64, "max": 2048, "step": 64},
            "n_head": [2, 4, 8],
        },
    }
)
SETTINGS = {"population": 20}


def latency_s(arch: Architecture) -> float:
    """A pretended board: wide FFNs are cheap, depth and many heads are dear."""
    return sum(
        1e-3 + 1e-9 * arch.d_model * (8 * arch.d_model + layer.d_inner) * (1 + layer.n_head / 4)
        for layer in arch.layers
    )


def evaluate(candidate: Candidate) -> Evaluation:
    arch = candidate.architecture
    objectives = {"decoder_params": arch.decoder_params, "decode_latency_s": latency_s(arch)}
    return Evaluation(
        candidate_id=candidate.candidate_id, architecture=arch, objectives=objectives, samples={}, conditions={}
    )


def failure(candidate: Candidate) -> Failure:
    return Failure(candidate_id=candidate.candidate_id, architecture=candidate.architecture, kind="timeout", message="")


def make(seed: int = 1, constraints: tuple[Constraint, ...] = (), **settings: Any) -> EvolutionSearcher:
    searcher = make_searcher("evolution", SPACE, OBJECTIVES, seed, {**SETTINGS, **settings}, constraints)
    assert isinstance(searcher, EvolutionSearcher)
    return searcher


def run(searcher: BaseSearcher, n: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < n:
        for candidate in searcher.ask(1):
            outcomes.append(evaluate(candidate))
            searcher.tell(candidate.candidate_id, outcomes[-1])
    return outcomes


def test_defaults_are_the_papers() -> None:
    settings = EvolutionSettings()
    assert EvolutionSettings.from_json({}) == settings
    assert (settings.population, settings.parents, settings.mutations, settings.crossovers) == (100, 20, 40, 40)
    assert settings.p == 0.3
    assert EvolutionSettings.from_json({"population": 100}) == settings
    assert EvolutionSettings.from_json({"population": 1}) == EvolutionSettings(
        population=1, parents=1, mutations=1, crossovers=1
    )


def test_batches_end_with_the_generation() -> None:
    searcher = make()
    sizes = []
    for _ in range(4):
        batch = searcher.ask(1000)
        sizes.append(len(batch))
        for candidate in batch:
            searcher.tell(candidate.candidate_id, evaluate(candidate))
    assert sizes == [20, 16, 16, 16]


def test_the_order_of_telling_a_batch_does_not_matter() -> None:
    asked = []
    for step in (1, -1):
        searcher = make()
        for _ in range(3):
            batch = searcher.ask(1000)
            for candidate in batch[::step]:
                searcher.tell(candidate.candidate_id, evaluate(candidate))
        asked.append([candidate.architecture for candidate in searcher.ask(1000)])
    assert asked[0] == asked[1]


def test_breeders_are_the_weakly_nondominated() -> None:
    losses = [(1, 5), (2, 5), (2, 3), (2, 3), (4, 4)]
    scores = {i: Score(losses=pair, violation=0.0) for i, pair in enumerate(losses)}
    assert breeders({**scores, 9: None}, 3) == [0, 2, 3]


def test_offenders_breed_only_while_nothing_keeps_the_constraints() -> None:
    scores = {i: Score(losses=(float(-i), 0.0), violation=v) for i, v in enumerate((0.5, 0.1, 0.9, 0.1))}
    assert breeders(scores, 2) == [1, 3]
    assert breeders(scores, 3) == [0, 1, 3]
    assert breeders({**scores, 7: Score(losses=(99.0, 99.0), violation=0.0)}, 3) == [7]
    assert breeders({0: None}, 3) == []


def test_failures_never_become_parents() -> None:
    searcher = make()
    failed = set()
    for index, candidate in enumerate(searcher.ask(20)):
        is_failure = index % 2 == 0
        if is_failure:
            failed.add(candidate.architecture)
        searcher.tell(candidate.candidate_id, failure(candidate) if is_failure else evaluate(candidate))
    for _ in range(4):
        for candidate in searcher.ask(100):
            searcher.tell(candidate.candidate_id, failure(candidate))
            failed.add(candidate.architecture)
        assert searcher._parents
        assert not failed.intersection(searcher._parents)


def test_a_generation_is_random_when_everything_failed() -> None:
    searcher = make()
    for _ in range(3):
        batch = searcher.ask(100)
        assert batch
        for candidate in batch:
            searcher.tell(candidate.candidate_id, failure(candidate))
    assert searcher.stop() == ()


def test_measured_constraints_keep_offenders_from_breeding() -> None:
    limit = 0.02
    searcher = make(constraints=(Constraint(name="decode_latency_s", maximum=limit),))
    run(searcher, 120)
    assert all(latency_s(parent) <= limit for parent in searcher._parents)


def test_formula_constraints_are_never_asked() -> None:
    searcher = make(constraints=(Constraint(name="decoder_params", minimum=1_000_000, maximum=2_000_000),))
    for outcome in run(searcher, 100):
        assert 1_000_000 <= outcome.architecture.decoder_params <= 2_000_000


def test_parents_used_less_are_likelier() -> None:
    searcher = make(population=50)
    run(searcher, 300)
    used = searcher._times_used
    newest = max(breeders(searcher.scores, 1))
    assert sum(used.values()) == 10 * 7
    assert used.get(newest, 0) < max(used.values())


def test_it_beats_random_on_a_pretended_board() -> None:
    """Hypervolume after 300 candidates, in the mean over five seeds."""

    def volume(strategy: str, seed: int) -> float:
        settings = SETTINGS if strategy == "evolution" else {}
        outcomes = run(make_searcher(strategy, SPACE, OBJECTIVES, seed, settings), 300)
        losses = [(-outcome.architecture.decoder_params, latency_s(outcome.architecture)) for outcome in outcomes]
        return hypervolume(losses, [0.0, 0.2])

    ratios = [volume("evolution", seed) / volume("random", seed) for seed in range(5)]
    assert np.mean(ratios) > 1.05

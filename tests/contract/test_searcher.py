"""What every search strategy promises: one suite, subclassed per strategy."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpecError
from edge_lts.objectives import Constraint, resolve_objectives
from edge_lts.records import Evaluation, Failure, Measurement, Outcome
from edge_lts.search import Candidate, TellError, make_searcher
from edge_lts.search.base import BaseSearcher
from edge_lts.space import SearchSpace

ROOT = Path(__file__).parents[2]
OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s", "peak_memory_bytes"])
SMALL = SearchSpace.from_json(
    {
        "name": "small",
        "backbone": "gpt2",
        "genes": {"n_layer": [1, 2, 3], "d_model": [32, 64], "d_inner": [64, 128], "n_head": [1, 2]},
        "fixed": {"vocab_size": 64, "max_seq_len": 32},
    }
)
LARGE = SearchSpace.from_json(
    {
        "name": "large",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 10},
            "d_model": {"min": 64, "max": 512, "step": 64},
            "d_inner": {"min": 128, "max": 2048, "step": 64},
            "n_head": [2, 4, 8],
        },
        "rules": {"d_inner_over_d_model": {"above": 1.7}, "decoder_params": {"at_most": 20_000_000}},
    }
)


def outcome_of(candidate: Candidate) -> Outcome:
    """A pretended measurement, the same for the same candidate in any process; every ninth one fails."""
    arch = candidate.architecture
    if candidate.candidate_id % 9 == 5:
        return Failure(candidate_id=candidate.candidate_id, architecture=arch, kind="oom", message="pretended")
    noise = 1 + (candidate.candidate_id * 37 % 11) / 100
    objectives: dict[str, Any] = {
        "decoder_params": arch.decoder_params,
        "decode_latency_s": Measurement(median=1e-9 * arch.total_params * noise + 1e-3 * arch.n_layer, n=5),
        "peak_memory_bytes": 4 * arch.total_params + 4 * 192 * max(layer.d_inner for layer in arch.layers),
    }
    return Evaluation(
        candidate_id=candidate.candidate_id, architecture=arch, objectives=objectives, samples={}, conditions={}
    )


def drive(searcher: BaseSearcher, n: int, batch: int = 1) -> list[Outcome]:
    """Ask and tell until `n` candidates are told or the searcher stops."""
    outcomes: list[Outcome] = []
    while len(outcomes) < n and not searcher.stop():
        for candidate in searcher.ask(min(batch, n - len(outcomes))):
            outcomes.append(outcome_of(candidate))
        for outcome in outcomes[-batch:]:
            if outcome.candidate_id not in searcher.scores:
                searcher.tell(outcome.candidate_id, outcome)
    return outcomes


def ids(outcomes: list[Outcome]) -> list[str]:
    return [outcome.architecture.arch_id for outcome in outcomes]


class SearcherContract:
    strategy: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}

    def make(self, space: SearchSpace = LARGE, seed: int = 1, constraints: tuple[Constraint, ...] = ()) -> BaseSearcher:
        return make_searcher(self.strategy, space, OBJECTIVES, seed, self.settings, constraints)

    def test_ids_count_up_and_nothing_is_proposed_twice(self) -> None:
        outcomes = drive(self.make(), 150)
        assert [outcome.candidate_id for outcome in outcomes] == list(range(150))
        assert len(set(ids(outcomes))) == 150

    def test_proposals_are_canonical_members(self) -> None:
        for outcome in drive(self.make(), 100):
            assert LARGE.violation(outcome.architecture) is None
            assert outcome.architecture == outcome.architecture.canonical()

    def test_same_seed_and_tells_give_the_same_asks(self) -> None:
        first = ids(drive(self.make(seed=3), 120))
        random.seed(5)
        np.random.seed(5)  # the global state, which must not matter
        assert ids(drive(self.make(seed=3), 120)) == first
        assert ids(drive(self.make(seed=4), 120)) != first

    def test_asking_in_batches_gives_the_same(self) -> None:
        assert ids(drive(self.make(), 100, batch=7)) == ids(drive(self.make(), 100))

    def test_hash_seed_does_not_matter(self) -> None:
        code = (
            f"from tests.contract.test_searcher import {type(self).__name__} as T, drive, ids\n"
            "print(*ids(drive(T().make(), 90)))"
        )
        lines = []
        for hash_seed in ("0", "4242"):
            environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
            )
            lines.append(done.stdout.split())
        assert lines == [ids(drive(self.make(), 90))] * 2

    def test_replaying_a_ledger_continues_as_if_never_interrupted(self) -> None:
        whole = drive(self.make(), 140)
        resumed = self.make()
        for outcome in whole[:77]:
            (candidate,) = resumed.ask(1)
            assert (candidate.candidate_id, candidate.architecture) == (outcome.candidate_id, outcome.architecture)
            resumed.tell(candidate.candidate_id, outcome)
        assert ids(drive(resumed, 63)) == ids(whole[77:])

    def test_an_interrupted_candidate_is_asked_again(self) -> None:
        """A candidate that was asked but never told is not in the ledger: the replay asks it next."""
        searcher = self.make()
        told = drive(searcher, 40)
        (lost,) = searcher.ask(1)
        resumed = self.make()
        for outcome in told:
            resumed.tell(resumed.ask(1)[0].candidate_id, outcome)
        assert resumed.ask(1) == [lost]

    def test_a_small_space_is_searched_to_its_last_member(self) -> None:
        searcher = self.make(SMALL)
        outcomes = drive(searcher, 10_000)
        assert set(ids(outcomes)) == {arch.arch_id for arch in SMALL.enumerate()}
        assert len(outcomes) == SMALL.size() == 68
        assert searcher.stop() == ("space exhausted",)
        assert searcher.ask(5) == []

    def test_it_goes_on_when_everything_fails(self) -> None:
        searcher = self.make()
        for index in range(60):
            (candidate,) = searcher.ask(1)
            searcher.tell(
                index, Failure(candidate_id=index, architecture=candidate.architecture, kind="oom", message="")
            )
        assert searcher.stop() == ()
        assert len(searcher.ask(1)) == 1

    def test_formula_constraints_are_never_asked(self) -> None:
        constraint = Constraint(name="decoder_params", minimum=1_000_000, maximum=1_500_000)
        for outcome in drive(self.make(constraints=(constraint,)), 60):
            assert constraint.allows(outcome.architecture.decoder_params)

    @pytest.mark.parametrize("n", [0, -1, True, 1.5])
    def test_asking_for_nothing_is_an_error(self, n: Any) -> None:
        with pytest.raises(SpecError, match="positive"):
            self.make().ask(n)

    def test_wrong_tells_are_refused_and_change_nothing(self) -> None:
        searcher = self.make()
        first, second = searcher.ask(2)
        stranger = Architecture(backbone="gpt2", d_model=8, layers=(LayerSpec(d_inner=16, n_head=2),))
        good = outcome_of(first)
        with pytest.raises(TellError, match="never asked"):
            searcher.tell(2, outcome_of(Candidate(candidate_id=2, architecture=stranger)))
        with pytest.raises(TellError, match="is architecture"):
            searcher.tell(0, outcome_of(Candidate(candidate_id=0, architecture=stranger)))
        with pytest.raises(TellError, match="outcome of candidate 1"):
            searcher.tell(0, outcome_of(second))
        assert not searcher.scores
        searcher.tell(0, good)
        with pytest.raises(TellError, match="told before"):
            searcher.tell(0, good)
        assert ids(drive(searcher, 1)) == ids(drive(self.make(), 3))[2:]

    def test_it_prints_nothing_and_reads_no_clock(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden() -> float:
            raise AssertionError("a searcher read the clock")

        with monkeypatch.context() as patch:
            for name in ("time", "monotonic", "perf_counter", "process_time", "time_ns", "monotonic_ns"):
                patch.setattr(time, name, forbidden)
            drive(self.make(), 40)
        assert capfd.readouterr() == ("", "")


class TestRandom(SearcherContract):
    strategy = "random"


class TestEvolution(SearcherContract):
    strategy = "evolution"
    settings: ClassVar[dict[str, Any]] = {"population": 20}


class TestEvolutionAsPublished(SearcherContract):
    strategy = "evolution"


class TestGuided(SearcherContract):
    strategy = "guided"
    settings: ClassVar[dict[str, Any]] = {"design": 12, "tolerance": 1e-9, "gap": 1e-4}

    def test_a_small_space_is_searched_to_its_last_member(self) -> None:
        """Guided search ends when the frontier that it predicts is measured, and has then found the true one."""
        searcher = self.make(SMALL)
        outcomes = drive(searcher, 10_000)
        assert searcher.stop() in (("frontier measured",), ("frontier stable",))
        assert searcher.ask(5) == []
        assert len(set(ids(outcomes))) == len(outcomes) < 68

    def test_it_stops_when_the_frontier_moves_no_more(self) -> None:
        searcher = make_searcher("guided", LARGE, OBJECTIVES, 1, {})
        outcomes = drive(searcher, 1000)
        assert searcher.stop() == ("frontier stable",)
        assert len(outcomes) < 400

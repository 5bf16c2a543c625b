"""Asking for several candidates before telling: the same search, whatever the order in which they are measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.errors import LedgerError
from edge_lts.records import Outcome
from edge_lts.search import Candidate, make_searcher
from edge_lts.space import SearchSpace
from edge_lts_host.pool.batches import Batches
from tests import fake_agent
from tests.pretended import OBJECTIVES, PROTOCOL, SPACE, Machine, drive

SETTINGS: dict[str, dict[str, Any]] = {
    "guided": {"design": 12, "batch": 6},
    "evolution": {"population": 15},
    "random": {},
    "impatient": {"design": 12, "batch": 6, "tolerance": 0.05, "gap": 0.2, "patience": 2},
}


class Steady(Machine):
    """Measures an architecture always alike, whenever it is its turn."""

    def measure(self, candidate_id: int, arch: Architecture) -> Any:
        self.rng, self.n = np.random.default_rng(int(arch.arch_id[:8], 16)), 0
        return super().measure(candidate_id, arch)


def searcher(strategy: str) -> Any:
    name = "guided" if strategy == "impatient" else strategy
    return make_searcher(name, SPACE, OBJECTIVES, 5, SETTINGS[strategy], protocol=PROTOCOL)


def nothing(candidate: Candidate) -> None:
    return None


def shuffled(strategy: str, n: int, n_boards: int, seed: int) -> list[Architecture]:
    """The candidates by id, measured by boards that finish in any order."""
    rng = np.random.default_rng(seed)
    batches, machine = Batches(searcher(strategy), nothing), Steady()
    asked: dict[int, Architecture] = {}
    running: list[Candidate] = []
    while len(asked) < n or running:
        while len(running) < n_boards and len(asked) < n and (candidate := batches.next()) is not None:
            asked[candidate.candidate_id] = candidate.architecture
            running.append(candidate)
        if not running:
            break
        done = running.pop(int(rng.integers(len(running))))
        batches.done(machine.measure(done.candidate_id, done.architecture))
    return [asked[index] for index in sorted(asked)]


@pytest.mark.parametrize("strategy", ["guided", "evolution", "random"])
def test_a_pool_proposes_what_one_board_proposes(strategy: str) -> None:
    alone = drive(searcher(strategy), Steady(), 36)
    assert len(alone) == 36
    for n_boards, seed in ((1, 0), (2, 1), (5, 3)):
        assert shuffled(strategy, 36, n_boards, seed) == alone


def test_guided_search_stops_when_it_would_on_one_board() -> None:
    alone = drive(searcher("impatient"), Steady(), 200)
    assert shuffled("impatient", 200, 4, 1) == alone
    assert 20 < len(alone) < 200


def test_nothing_is_asked_while_a_batch_is_open() -> None:
    batches, machine = Batches(searcher("guided"), nothing), Steady()
    batch = []
    while (candidate := batches.next()) is not None:
        batch.append(candidate)
    assert len(batch) == 12
    for candidate in batch[1:]:
        batches.done(machine.measure(candidate.candidate_id, candidate.architecture))
        assert batches.next() is None
    batches.done(machine.measure(batch[0].candidate_id, batch[0].architecture))
    assert batches.next() is not None
    assert not batches.is_over


def test_what_is_put_back_is_handed_out_next() -> None:
    batches = Batches(searcher("random"), nothing)
    first, second = batches.next(), batches.next()
    assert first is not None
    assert second is not None
    batches.put_back(second)
    assert batches.next() is second


def test_an_architecture_known_already_is_not_measured_again() -> None:
    machine = Steady()
    known = drive(searcher("random"), machine, 3)

    def recall(candidate: Candidate) -> Outcome | None:
        is_known = candidate.architecture in known
        return machine.measure(candidate.candidate_id, candidate.architecture) if is_known else None

    candidate = Batches(searcher("random"), recall).next()
    assert candidate is not None
    assert candidate.candidate_id == 3


def test_it_is_over_when_the_last_is_told() -> None:
    small = SearchSpace.from_json(fake_agent.SPACE)
    batches = Batches(make_searcher("random", small, OBJECTIVES, 1, {}), nothing)
    machine, n = Steady(), 0
    while (candidate := batches.next()) is not None:
        assert not batches.is_over
        batches.done(machine.measure(candidate.candidate_id, candidate.architecture))
        n += 1
    assert batches.is_over
    assert batches.reasons() == ("space exhausted",)
    assert n == small.size()


def test_a_record_that_was_never_proposed_is_refused() -> None:
    machine = Steady()
    archs = drive(searcher("random"), machine, 3)
    batches = Batches(searcher("random"), nothing)
    batches.replay(machine.measure(1, archs[1]), "the ledger")
    for wrong in (
        machine.measure(0, archs[2]),
        machine.measure(1, archs[1]),
        dataclasses.replace(machine.measure(0, archs[0]), candidate_id=900),
    ):
        with pytest.raises(LedgerError, match="the ledger does not belong to this spec"):
            batches.replay(wrong, "the ledger")
    candidate = batches.next()
    assert candidate is not None
    assert candidate.candidate_id == 0

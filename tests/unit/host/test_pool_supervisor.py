"""A search on several boards, in the time of a pretended clock."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edge_lts.errors import EvaluationError, LedgerError, LockedError
from edge_lts.records import Outcome, Protocol
from edge_lts_host.errors import ConnectionLostError, PreflightError
from edge_lts_host.pool.crew import Task
from edge_lts_host.pool.supervisor import NOBODY_S
from tests.fake_agent import Board, failure, write_spec
from tests.pool import Pool, objective

ALIKE = {"a": 1.0, "b": 1.04}


def pool(root: Path, run_id: str = "run", *, tolerance: float = 0.1, **spec: Any) -> Pool:
    return Pool(write_spec(root, run_id, **{"seed": 3, "max_candidates": 20, **spec}), tolerance=tolerance)


def boards_of(records: list[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in records:
        found.setdefault(one["arch_id"], set()).add(one["board"])
    return found


@pytest.mark.parametrize("strategy", ["random", "evolution", "guided"])
def test_a_pool_measures_what_one_board_would_in_about_half_the_time(tmp_path: Path, strategy: str) -> None:
    """Also guided search, whose rounds end with a board that has to wait."""
    settings: dict[str, Any] = {"strategy": strategy, "max_candidates": 27}
    if strategy == "evolution":
        settings["settings"] = {"population": 10}
    alone, shared = pool(tmp_path, "alone", **settings), pool(tmp_path, "shared", **settings)
    alone_s, shared_s = alone.run(alone.crew(a=1.0)), shared.run(shared.crew(a=1.0, b=1.0))
    assert shared_s < 0.62 * alone_s
    searched = [{one["candidate_id"]: one["arch_id"] for one in each.records("search")} for each in (alone, shared)]
    assert len(searched[0]) == 27
    if strategy != "guided":  # whose second round depends on what was measured
        assert searched[0] == searched[1]


def test_a_pool_of_one_proposes_what_the_board_itself_would(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "strategy": "evolution",
        "settings": {"population": 10},
        "max_candidates": 30,
        "seed": 3,
    }
    board = Board(write_spec(tmp_path, "board", **settings))
    board.run()
    one = pool(tmp_path, "pool", **settings)
    one.run(one.crew(a=1.0))
    own = [record["arch_id"] for record in board.records() if record["purpose"] == "search"]
    assert [record["arch_id"] for record in one.records("search")] == own


def test_members_are_measured_on_two_boards_and_in_three_processes(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.02, c=1.01)
    run.run(crew)
    tried = boards_of(run.records())
    members = run.json("frontier.json")["frontier"]
    assert members
    assert all(len(tried[member["arch_id"]]) >= 2 for member in members if not member["probably_dominated"])
    assert all(member["n_processes"] >= 3 for member in members)
    assert run.json("status.json")["reasons"] == ["max_candidates reached", "frontier confirmed"]
    assert {one["board"] for one in run.records()} == {"a", "b", "c"}
    assert crew.is_closed
    assert crew.most_at_once == 3


def test_a_slower_board_is_corrected_beside_what_it_measured(tmp_path: Path) -> None:
    run = pool(tmp_path)
    run.run(run.crew(**ALIKE))
    records = run.records()
    factors = {one["board"]: one["conditions"]["board_factor"] for one in records}
    ratio = factors["b"]["decode_latency_s"] / factors["a"]["decode_latency_s"]
    assert ratio == pytest.approx(1.04, rel=0.004)
    assert factors["b"]["anchor_s"]["stream_s"] / factors["a"]["anchor_s"]["stream_s"] == pytest.approx(1.04, rel=0.004)
    both = [arch_id for arch_id, tried in boards_of(records).items() if tried == {"a", "b"}]
    arch_id = both[0]
    raw = {one["board"]: objective(one) for one in records if one["arch_id"] == arch_id}
    assert raw["b"] / raw["a"] == pytest.approx(1.04, rel=0.015), "the ledger keeps what was measured"
    member = next(one for one in run.json("frontier.json")["frontier"] if one["arch_id"] == arch_id)
    assert set(raw.values()) <= set(member["process_medians"]["decode_latency_s"])
    middle = (raw["a"] * raw["b"]) ** 0.5
    assert member["objectives"]["decode_latency_s"]["median"] == pytest.approx(middle, rel=0.01)


def test_a_board_s_own_speed_decides_nothing(tmp_path: Path) -> None:
    """Without the correction a candidate that a slow board measured would look worse than one of a fast board."""
    alike, unlike = pool(tmp_path, "alike"), pool(tmp_path, "unlike")
    alike.run(alike.crew(a=1.0, b=1.0))
    unlike.run(unlike.crew(a=1.0, b=1.09))
    members = [{one["arch_id"] for one in run.json("frontier.json")["frontier"]} for run in (alike, unlike)]
    assert members[0] == members[1]


def test_boards_that_differ_too_much_are_not_pooled(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(fast=1.0, slow=1.25, other=1.02)
    with pytest.raises(PreflightError, match=r"slow and fast cannot share a search: slow takes 2[45]\.\d% more in dec"):
        run.run(crew)
    assert crew.is_closed
    assert run.records() == []
    assert run.json("status.json")["state"] == "failed"
    n_anchors = Counter((board, arch_id) for board, arch_id, _, _ in crew.measured)
    assert set(n_anchors.values()) == {3}, "measured again before it is said"
    again = pool(tmp_path, "again", tolerance=0.3)
    again.run(again.crew(fast=1.0, slow=1.25, other=1.02))
    assert again.records()


@pytest.mark.parametrize("lost", ["a", "b"])
def test_either_board_may_be_lost(tmp_path: Path, lost: str) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.0)
    crew.script = [(1095.0, lambda: crew.lose(lost))]
    run.run(crew)
    searched = run.records("search")
    assert sorted(one["candidate_id"] for one in searched) == list(range(20)), "what was in flight is measured, once"
    late = {one["board"] for one in run.records() if one["spent_s"] > 100}
    assert late == {"a", "b"} - {lost}
    assert run.named("board_lost")[0]["board"] == lost
    status = run.json("status.json")
    assert status["state"] == "done"
    assert "no second board" in status["reasons"][-1]


def test_a_board_that_comes_back_goes_on_measuring(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.0)
    crew.script = [(1095.0, lambda: crew.lose("b")), (1150.0, lambda: crew.bring_back("b"))]
    run.run(crew)
    assert {one["board"] for one in run.records() if one["spent_s"] > 160} == {"a", "b"}
    assert run.json("status.json")["reasons"][-1] == "frontier confirmed"


def test_without_any_board_the_run_stops_and_does_not_fail(tmp_path: Path) -> None:
    run = pool(tmp_path, budget_s=10_000.0)
    crew = run.crew(a=1.0, b=1.0)
    crew.script = [(1095.0, lambda: crew.lose("b")), (1096.0, lambda: crew.lose("a"))]
    taken_s = run.run(crew)
    status = run.json("status.json")
    assert (status["state"], status["reasons"]) == ("stopped", [f"no board answered for {NOBODY_S:.0f} s"])
    assert taken_s == pytest.approx(96 + NOBODY_S, abs=2)


def test_a_board_lost_while_boards_are_compared_is_left_out(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.0, c=1.0)
    crew.script = [(1015.0, lambda: crew.lose("c")), (1100.0, lambda: crew.bring_back("c"))]
    run.run(crew)
    assert {one["board"] for one in run.records()} == {"a", "b"}
    assert set(run.named("pooled")[0]["factors"]) == {"a", "b"}


def test_ctrl_c_ends_it_cleanly_and_resume_measures_nothing_twice(tmp_path: Path) -> None:
    run = pool(tmp_path, strategy="guided", max_candidates=30)
    crew = run.crew(**ALIKE)
    crew.script = [(1125.0, lambda: os.kill(os.getpid(), signal.SIGINT))]
    run.run(crew)
    assert run.json("status.json")["state"] == "stopped"
    assert (crew.is_closed, crew.is_cancelled) == (True, True)
    before = run.records()
    assert 0 < len(before) < 30
    again = run.crew(**ALIKE)
    run.run(again)
    assert run.records()[: len(before)] == before
    searched = [one["arch_id"] for one in run.records("search")]
    assert len(searched) == len(set(searched)) == 30
    assert sorted(one["candidate_id"] for one in run.records("search")) == list(range(30))
    assert not [one for one in again.measured if one[2] == "single"], "the factors are known"
    whole = pool(tmp_path, "whole", strategy="guided", max_candidates=24)
    whole.run(whole.crew(**ALIKE))
    design = {one["candidate_id"]: one["arch_id"] for one in whole.records("search")}
    assert design.items() <= {one["candidate_id"]: one["arch_id"] for one in run.records("search")}.items()


def test_the_budget_is_counted_over_lives_and_shared_by_boards(tmp_path: Path) -> None:
    run = pool(tmp_path, budget_s=400.0, max_candidates=None)
    crew = run.crew(a=1.0, b=1.0)
    crew.script = [(1125.0, lambda: os.kill(os.getpid(), signal.SIGTERM))]
    first_s = run.run(crew)
    run.clock.now_s += 5000  # between the lives
    second_s = run.run(run.crew(a=1.0, b=1.0))
    assert 380 < first_s + second_s < 420
    assert run.json("status.json")["reasons"][0] == "budget spent"
    n_search = len(run.records("search"))
    assert n_search == pytest.approx(2 * (320 - 30) / 10, abs=8)


def test_a_resumed_pool_may_lack_a_board_and_have_a_new_one(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.08)
    crew.script = [(1085.0, lambda: os.kill(os.getpid(), signal.SIGTERM))]
    run.run(crew)
    factor = run.named("pooled")[0]["factors"]
    run.run(run.crew(b=1.08, c=1.04))
    later = run.named("pooled")[1]["factors"]
    assert (later["a"], later["b"]) == (factor["a"], factor["b"]), "what records were divided by stays"
    of_c = later["c"]["decode_latency_s"] / later["a"]["decode_latency_s"]
    assert of_c == pytest.approx(1.04, rel=0.004)
    assert {one["board"] for one in run.records()} == {"a", "b", "c"}


@pytest.mark.parametrize("error", [ConnectionLostError("b", "no route"), LockedError("b: in use by run x")])
def test_boards_that_cannot_be_had_raise_and_the_run_may_be_resumed(tmp_path: Path, error: Exception) -> None:
    run = pool(tmp_path, max_candidates=4)
    crew = run.crew(**ALIKE)

    def refuse(**_: object) -> Any:
        raise error

    crew.connect = refuse  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        run.run(crew)
    assert crew.is_closed
    assert run.json("status.json")["state"] == "stopped"
    run.run(run.crew(**ALIKE))
    assert run.json("status.json")["state"] == "done"


def test_a_ledger_of_another_search_is_refused(tmp_path: Path) -> None:
    run = pool(tmp_path, max_candidates=6)
    run.run(run.crew(**ALIKE))
    other = pool(tmp_path, "other", seed=4, max_candidates=6)
    (other.folder / "ledger.jsonl").write_bytes((run.folder / "ledger.jsonl").read_bytes())
    with pytest.raises(LedgerError, match="does not belong to this spec"):
        other.run(other.crew(**ALIKE))


def test_a_candidate_that_fails_is_told_and_kept_with_its_board(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(**ALIKE)

    def outcome(task: Task, board: str) -> Outcome | None:
        is_bad = task.purpose == "search" and task.candidate_id == 4
        return failure(task.architecture, 4, "oom") if is_bad else None

    crew.outcome = outcome
    run.run(crew)
    (failed,) = [one for one in run.records() if one["kind"] == "failure"]
    assert failed["board"] in ALIKE
    assert run.named("failed")[0]["board"] == failed["board"]


def test_a_run_ends_when_every_candidate_fails(tmp_path: Path) -> None:
    run = pool(tmp_path, max_candidates=None, budget_s=100_000.0, space=_larger())
    crew = run.crew(**ALIKE)
    crew.outcome = lambda task, board: (
        failure(task.architecture, task.candidate_id) if task.purpose == "search" else None
    )
    with pytest.raises(EvaluationError, match="50 candidates failed in a row"):
        run.run(crew)
    assert crew.is_closed


def _larger() -> dict[str, Any]:
    return {
        "name": "larger",
        "backbone": "gpt2",
        "genes": {"n_layer": [1, 2, 3, 4, 5], "d_model": [32, 48, 64], "d_inner": [64, 128, 192], "n_head": [1, 2]},
        "fixed": {"vocab_size": 256, "max_seq_len": 512},
    }


def test_the_pool_is_described_in_device_json(tmp_path: Path) -> None:
    run = pool(tmp_path, protocol=Protocol(threads=2))
    crew = run.crew(**ALIKE)
    crew.infos["b"] = dataclasses.replace(crew.infos["b"], memory_available_bytes=1000_000_000)
    run.run(crew)
    device = run.json("device.json")
    assert device["extra"]["memory_limit_bytes"] == 800_000_000, "of the smallest board"
    assert set(device["extra"]["pool"]["boards"]) == {"a", "b"}
    assert device["extra"]["pool"]["threads"] == 2
    alone = [one for one in run.records() if one["purpose"] == "one_thread"]
    assert {one["arch_id"] for one in alone} == {
        one["arch_id"] for one in run.json("frontier.json")["frontier"] if not one["probably_dominated"]
    }
    assert all("board_factor" not in one["conditions"] for one in alone)

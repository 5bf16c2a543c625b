"""Baselines of a run that several boards share, in the time of a pretended clock."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from edge_lts.records import Outcome
from edge_lts_host.pool.crew import Task
from tests.fake_agent import failure, write_spec
from tests.pool import Pool
from tests.unit.edge_lts.test_baselining import beside, shape


def pool(root: Path, **spec: Any) -> Pool:
    return Pool(write_spec(root, "run", **{"seed": 3, "max_candidates": 20, "baselines": beside(1, 2, 3), **spec}))


def processes(run: Pool) -> Counter[str]:
    return Counter(record["arch_id"] for record in run.records("baseline"))


def test_boards_share_the_baselines_and_correct_them_like_candidates(tmp_path: Path) -> None:
    run = pool(tmp_path)
    run.run(run.crew(a=1.0, b=1.04))
    assert processes(run) == {shape(depth).arch_id: 3 for depth in (1, 2, 3)}
    records = run.records("baseline")
    assert {record["board"] for record in records} == {"a", "b"}
    assert all("board_factor" in record["conditions"] for record in records)
    searched = [record["candidate_id"] for record in run.records("search")]
    assert sorted(searched) == list(range(20))
    on_frontier = {member["arch_id"] for member in run.json("frontier.json")["frontier"]}
    assert not on_frontier & set(processes(run))
    first = run.records().index(records[0])
    assert any(record["purpose"] == "search" for record in run.records()[first:]), "beside the search, not after it"
    assert run.json("status.json")["n_baselines"] == 3


def test_they_change_nothing_of_what_the_boards_search(tmp_path: Path) -> None:
    with_them, without = pool(tmp_path / "a"), pool(tmp_path / "b", baselines=())
    for run in (with_them, without):
        run.run(run.crew(a=1.0, b=1.0))
    ids = [{one["candidate_id"]: one["arch_id"] for one in run.records("search")} for run in (with_them, without)]
    assert ids[0] == ids[1]
    assert "n_baselines" not in without.json("status.json")


def test_a_resumed_pool_measures_what_was_lacking(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.0)
    crew.script = [(1095.0, lambda: os.kill(os.getpid(), signal.SIGTERM))]
    run.run(crew)
    assert run.json("status.json")["state"] == "stopped"
    before = processes(run)
    assert sum(before.values()) < 9
    run.run(run.crew(a=1.0, b=1.0))
    assert run.json("status.json")["state"] == "done"
    assert processes(run) == {shape(depth).arch_id: 3 for depth in (1, 2, 3)}


def test_one_that_fails_is_not_tried_on_another_board(tmp_path: Path) -> None:
    run = pool(tmp_path)
    crew = run.crew(a=1.0, b=1.0)

    def outcome(task: Task, board: str) -> Outcome | None:
        is_large = task.purpose == "baseline" and task.architecture == shape(3)
        return failure(task.architecture, task.candidate_id, "oom") if is_large else None

    crew.outcome = outcome
    run.run(crew)
    failed = [record for record in run.records("baseline") if record["kind"] == "failure"]
    assert [record["arch_id"] for record in failed] == [shape(3).arch_id]
    assert run.json("status.json")["n_failed"] == 0

"""Baselines beside a search, in the time of a pretended clock: in their share, in rounds, once where they fail."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_lts import device
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.baselines import MAX_BASELINES, Baseline
from edge_lts.baselining import SHARE, Baselining
from edge_lts.budget import Budget, Durations
from edge_lts.errors import SpecError
from edge_lts.frontier import members
from edge_lts.records import RunSpec, outcome_from_json
from tests.fake_agent import SPACE, Board, FakeMeasurer, failure, write_spec


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def shape(n_layer: int, backbone: str = "gpt2") -> Architecture:
    layers = (LayerSpec(d_inner=96, n_head=2),) * n_layer
    return Architecture(backbone=backbone, d_model=40, layers=layers, vocab_size=256, max_seq_len=512)


def beside(*depths: int) -> tuple[Baseline, ...]:
    return tuple(Baseline(family="scaled", architecture=shape(depth)) for depth in depths)


def board(root: Path, baselines: tuple[Baseline, ...] = beside(1, 2, 3), **changes: Any) -> Board:
    return Board(write_spec(root, baselines=baselines, **changes))


def of(one: Board, purpose: str) -> list[dict[str, Any]]:
    return [record for record in one.records() if record["purpose"] == purpose]


def seconds(one: Board, purpose: str) -> float:
    """A pretended measurement takes 10 s."""
    return 10.0 * len(of(one, purpose))


# --- the spec ---


def test_a_spec_without_baselines_is_the_spec_it_was() -> None:
    plain = RunSpec(run_id="a", space=SPACE, budget_s=10.0, target="local")
    assert "baselines" not in plain.to_json()
    assert RunSpec.from_json(plain.to_json()) == plain


def test_baselines_survive_the_spec_with_all_that_an_architecture_has() -> None:
    own = (*beside(1), Baseline(family="opt-350m", architecture=shape(2, "opt")))
    spec = RunSpec(run_id="a", space=SPACE, budget_s=10.0, target="local", baselines=own)
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))).baselines == own


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"family": "x"}], "a baseline must be an object with family and architecture"),
        ([{"family": "x", "architecture": {"backbone": "gpt2"}}], "baseline 'x': the architecture lacks 'd_model'"),
        ([{"family": "../x", "architecture": shape(1).to_json()}], "names no baseline"),
        ([{"family": 3, "architecture": shape(1).to_json()}], "names no baseline"),
        ([beside(1)[0].to_json()] * 2, "stands there twice"),
        ([one.to_json() for one in beside(*range(1, MAX_BASELINES + 2))], "65 baselines are more than 64"),
        ("scaled", "baselines must be a list"),
    ],
)
def test_what_is_wrong_with_a_baseline_is_said(data: Any, message: str) -> None:
    spec = RunSpec(run_id="a", space=SPACE, budget_s=10.0, target="local").to_json()
    with pytest.raises(SpecError, match=message):
        RunSpec.from_json({**spec, "baselines": data})


# --- when they are measured ---


def test_each_is_measured_in_three_processes_and_stands_on_no_frontier(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=12)
    one.run()
    found = Counter((record["candidate_id"], record["arch_id"]) for record in of(one, "baseline"))
    assert found == {(number, shape(number + 1).arch_id): 3 for number in range(3)}
    on_frontier = {member["arch_id"] for member in one.json("frontier.json")["frontier"]}
    assert on_frontier
    assert not on_frontier & {shape(depth).arch_id for depth in (1, 2, 3)}
    status = one.json("status.json")
    assert (status["n_measured"], status["n_baselines"], status["n_failed"]) == (12, 3, 0)
    assert status["reasons"] == ["max_candidates reached", "frontier confirmed"]
    spec = one.folder.read_spec()
    again = members([outcome_from_json(record) for record in one.records()], spec.resolved_objectives)
    assert {member.arch_id for member in again} == on_frontier


def test_they_are_spread_over_the_run_within_their_share(tmp_path: Path) -> None:
    depths = tuple(range(1, 31))  # more than the share holds three times
    one = board(tmp_path, beside(*depths), budget_s=2000.0)
    one.run()
    records = one.records()
    taken = seconds(one, "baseline")
    assert SHARE * 2000 - 10 <= taken <= SHARE * 2000 + 10
    searched = [index for index, record in enumerate(records) if record["purpose"] == "search"]
    assert searched[0] == 0, "something is searched first"
    halves = [records[: searched[-1] // 2], records[searched[-1] // 2 : searched[-1]]]
    n = [sum(record["purpose"] == "baseline" for record in half) for half in halves]
    assert min(n) >= 0.3 * sum(n)
    first = [record["arch_id"] for record in of(one, "baseline")][:30]
    assert len(set(first)) == 30, "all of them once before any a second time"
    assert first != [shape(depth).arch_id for depth in depths], "in an order that is not that of their size"
    assert one.json("status.json")["spent_s"] <= 2020


def test_the_search_keeps_its_share_of_the_time(tmp_path: Path) -> None:
    one = board(tmp_path, beside(*range(1, 31)), budget_s=1000.0)
    one.run()
    assert 0.6 * 1000 - 20 <= seconds(one, "search") <= 0.6 * 1000 + 20
    plain = Board(write_spec(tmp_path / "plain", budget_s=1000.0))
    plain.run()
    assert 0.8 * 1000 - 20 <= seconds(plain, "search") <= 0.8 * 1000 + 20


def test_baselines_change_nothing_of_what_is_proposed(tmp_path: Path) -> None:
    one, plain = board(tmp_path, max_candidates=15), Board(write_spec(tmp_path / "plain", max_candidates=15))
    one.run()
    plain.run()
    assert [record["arch_id"] for record in of(one, "search")] == [record["arch_id"] for record in of(plain, "search")]


def test_every_cut_through_the_ledger_resumes_without_a_duplicate(tmp_path: Path) -> None:
    one = board(tmp_path, beside(1, 2), max_candidates=6)
    one.run()
    ledger = one.folder / "ledger.jsonl"
    whole = ledger.read_bytes()
    expected = [record["arch_id"] for record in of(one, "search")]
    for size in range(0, len(whole), 4999):
        ledger.write_bytes(whole[:size])
        (one.folder / "status.json").unlink()
        one.new_measurer()
        one.run()
        assert [record["arch_id"] for record in of(one, "search")] == expected
        assert set(Counter(record["arch_id"] for record in of(one, "baseline")).values()) == {3}
        assert ledger.read_bytes().startswith(whole[:size][: whole[:size].rfind(b"\n") + 1])


def test_one_that_fails_is_recorded_and_not_tried_again(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=8)
    large = shape(3)

    def before(measurer: FakeMeasurer, arch: Architecture, number: int) -> Any:
        return failure(arch, number, "oom") if arch == large else None

    one.measurer.before = before
    one.run()
    records = of(one, "baseline")
    failed = [record for record in records if record["kind"] == "failure"]
    assert [(record["arch_id"], record["error"]["kind"]) for record in failed] == [(large.arch_id, "oom")]
    assert Counter(record["arch_id"] for record in records)[shape(1).arch_id] == 3
    status = one.json("status.json")
    assert (status["state"], status["n_failed"], status["n_baselines"]) == ("done", 0, 2)


def test_without_time_for_all_it_is_said_how_many_are_lacking(tmp_path: Path) -> None:
    one = board(tmp_path, beside(*range(1, 31)), budget_s=300.0)
    one.run()
    n = len({record["arch_id"] for record in of(one, "baseline")})
    assert 5 <= n <= 8
    assert one.json("status.json")["reasons"][-1] == f"no time for {30 - n} of 30 baselines"


def test_a_large_one_is_expected_to_take_longer_than_a_small_one() -> None:
    large = Baseline(family="large", architecture=shape(1).replace(layers=shape(1).layers * 200))
    spec = RunSpec(run_id="a", space=SPACE, budget_s=1000.0, target="local", baselines=(*beside(1), large))
    progress: Any = SimpleNamespace(baseline_s=100.0, baseline_processes=Counter(), failed_baselines=set())
    ratio = large.architecture.total_params / shape(1).total_params
    assert ratio > 50

    def lacking(small_s: float, limit_bytes: int | None = None) -> list[int]:
        baselining = Baselining(spec, progress, Durations())
        baselining.memory_limit_bytes = limit_bytes
        baselining.saw(shape(1), small_s)
        found: list[int] = []
        while (
            number := baselining.lacking(Budget(1000.0, spent_before_s=500.0, clock=lambda: 0.0), found)
        ) is not None:
            found.append(number)
        return sorted(found)

    assert lacking(100.0 / ratio) == [0, 1]
    assert lacking(300.0 / ratio) == [0], "100 s are left, and it would take 300"
    assert lacking(300.0 / ratio, limit_bytes=1 << 20) == [0, 1], "what fits no memory is refused in no time"

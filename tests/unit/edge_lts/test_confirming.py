"""How often the frontier's members are measured again, over a fake board whose processes differ by a known share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts import device
from edge_lts.arch import Architecture
from edge_lts.confirming import MAX_PROCESSES, MIN_CANDIDATES_ALONG, TIGHT
from edge_lts.records import Evaluation
from edge_lts.stats import summarise
from tests.fake_agent import Board, FakeMeasurer, evaluation, failure, noise, write_spec

MEASURE_S = 10.0


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def board(tmp_path: Path, spread: float = 0.0, *, cost: str = "decode_latency_s", **changes: Any) -> Board:
    """A board where `cost` differs between processes of one architecture by up to `spread` to either side."""
    one = Board(write_spec(tmp_path, **{"max_candidates": 4, "budget_s": 1e5, **changes}))
    one.measurer.before = uneven(spread, cost)
    return one


def uneven(spread: float, cost: str) -> Any:
    def before(measurer: FakeMeasurer, arch: Architecture, number: int) -> Evaluation:
        process = 1 + sum(arch_id == arch.arch_id for arch_id, _ in measurer.measured)
        outcome = evaluation(arch, candidate_id=number)
        median_s = 1e-9 * arch.total_params * (1 + spread * (2 * noise(arch.arch_id, process) - 1))
        samples = [median_s * (1 + 0.001 * index) for index in range(8)]
        return replace(
            outcome,
            objectives={**outcome.objectives, cost: summarise(samples)},
            samples={**outcome.samples, cost: samples},
        )

    return before


def frontier(one: Board) -> list[dict[str, Any]]:
    """Members; without those that are only probably dominated, who are not tightened."""
    members: list[dict[str, Any]] = one.json("frontier.json")["frontier"]
    return [member for member in members if not member["probably_dominated"]]


def share(member: dict[str, Any], cost: str = "decode_latency_s") -> float:
    value = member["objectives"][cost]
    low, high = value["pi95"]
    return float((high - low) / 2 / value["median"])


def confirmations(one: Board) -> list[str]:
    return [record["arch_id"] for record in one.records() if record["purpose"] == "confirm"]


def test_an_even_board_stops_at_three_processes(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.002)
    one.run()
    assert {member["n_processes"] for member in frontier(one)} == {3}
    assert all(share(member) <= TIGHT for member in frontier(one))
    assert one.json("status.json")["reasons"][-1] == "frontier confirmed"


def test_time_left_tightens_the_intervals(tmp_path: Path) -> None:
    """With processes apart by 0.9 % on average, three of them leave more than 2 % and a few more do not."""
    one = board(tmp_path, spread=0.018)
    one.run()
    n_processes = [member["n_processes"] for member in frontier(one)]
    assert max(n_processes) > 3
    assert all(share(member) <= TIGHT or member["n_processes"] == MAX_PROCESSES for member in frontier(one))
    assert one.json("status.json")["reasons"][-1] == "frontier confirmed"


def test_an_uneven_board_stops_at_ten_processes_long_before_the_budget(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.1)
    one.run()
    assert {member["n_processes"] for member in frontier(one)} == {MAX_PROCESSES}
    assert all(share(member) > TIGHT for member in frontier(one))
    assert one.json("status.json")["state"] == "done"
    assert one.json("status.json")["spent_s"] < 0.05 * 1e5


def test_all_have_three_before_one_has_four_and_rounds_stay_even(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.1)
    one.run()
    members = {member["arch_id"] for member in frontier(one)}
    so_far = Counter(dict.fromkeys(members, 1))
    assert len(members) > 1
    for arch_id in confirmations(one):
        if arch_id in members:
            assert so_far[arch_id] == min(so_far.values())
            so_far[arch_id] += 1


def test_the_budget_ends_the_tightening_and_the_frontier_is_still_confirmed(tmp_path: Path) -> None:
    reached = board(tmp_path / "long", spread=0.1)
    reached.run()
    three_each = 5.0 + MEASURE_S * (4 + 2 * len(frontier(reached)))
    one = board(tmp_path / "short", spread=0.1, budget_s=three_each + 2.5 * MEASURE_S, confirm_fraction=0.0)
    one.run()
    n_processes = [member["n_processes"] for member in frontier(one)]
    assert min(n_processes) >= 3
    assert max(n_processes) == 4
    assert one.json("status.json")["spent_s"] <= three_each + 3 * MEASURE_S
    assert one.json("status.json")["reasons"][-1] == "frontier confirmed"


def test_only_searched_latencies_are_tightened(tmp_path: Path) -> None:
    """Prefill is always measured; a run that does not search it does not spend its time on it."""
    for objectives, n_processes in (
        (("decoder_params", "decode_latency_s"), 3),
        (("decoder_params", "peak_memory_bytes"), 3),
        (("decoder_params", "prefill_latency_s"), MAX_PROCESSES),
    ):
        one = board(tmp_path / objectives[1], spread=0.1, cost="prefill_latency_s", objectives=objectives)
        one.run()
        assert {member["n_processes"] for member in frontier(one)} == {n_processes}, objectives


def test_a_member_without_an_interval_is_not_tried_again(tmp_path: Path) -> None:
    one = board(tmp_path)
    good = uneven(0.1, "decode_latency_s")

    def before(measurer: FakeMeasurer, arch: Any, number: int) -> Any:
        is_first = all(arch_id != arch.arch_id for arch_id, _ in measurer.measured)
        return good(measurer, arch, number) if is_first else failure(arch, number)

    one.measurer.before = before
    one.run()
    assert set(Counter(confirmations(one)).values()) == {2}


def test_a_third_of_the_time_to_confirm_is_spent_along_the_way(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.02, budget_s=890.0, max_candidates=None)  # too short for a sweep of threads
    one.run()
    purposes = [record["purpose"] for record in one.records()]
    n_searched = purposes.count("search")
    last = len(purposes) - 1 - purposes[::-1].index("search")
    along = [index for index in range(last) if purposes[index] == "confirm"]
    assert 3 <= len(along) <= 6  # a third of 178 s, in 10 s each, and what chance takes off
    assert purposes[:MIN_CANDIDATES_ALONG] == ["search"] * MIN_CANDIDATES_ALONG
    assert all(purposes[index - 1] == "search" for index in along)
    assert along[-1] - along[0] > n_searched / 3  # spread over the search
    assert n_searched == pytest.approx(0.8 * 890 / MEASURE_S, abs=2)
    assert purposes[-1] == "confirm"
    medians = [member["process_medians"]["decode_latency_s"] for member in frontier(one)]
    assert [len(values) for values in medians] == [member["n_processes"] for member in frontier(one)]
    assert max(len(values) for values in medians) >= 3


def test_nothing_is_confirmed_along_the_way_without_a_share_of_the_budget(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.02, budget_s=600.0, max_candidates=None, confirm_fraction=0.0)
    one.run()
    assert {record["purpose"] for record in one.records()} == {"search"}


def test_those_probably_dominated_are_confirmed_after_the_members(tmp_path: Path) -> None:
    one = board(tmp_path, spread=0.1, max_candidates=30, budget_s=500.0)
    one.run()
    everyone = one.json("frontier.json")["frontier"]
    marked = [member for member in everyone if member["probably_dominated"]]
    assert marked
    assert everyone[-len(marked) :] == marked
    assert len(marked) <= (len(everyone) - len(marked) + 1) // 2
    if any(member["n_processes"] > 1 for member in marked):
        assert min(member["n_processes"] for member in frontier(one)) >= 3


def test_a_run_stopped_while_it_confirms_along_the_way_goes_on_alike(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_candidates": 30, "budget_s": 500.0, "confirm_fraction": 0.5}
    whole = board(tmp_path / "whole", spread=0.1, **settings)
    whole.run()
    lines = (whole.folder / "ledger.jsonl").read_bytes().splitlines(True)
    expected = [(record["arch_id"], record["purpose"]) for record in whole.records()]
    purposes = [purpose for _, purpose in expected]
    first = purposes.index("confirm")
    until = len(purposes) - purposes[::-1].index("search")
    assert purposes[first:until].count("confirm") > 3
    for cut in sorted({4, first, first + 1, until - 3}):
        parts = board(tmp_path / f"cut{cut}", spread=0.1, **settings)
        (parts.folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
        # the fake numbers depend on how often an architecture was measured
        parts.measurer.measured = [(record["arch_id"], record["purpose"]) for record in parts.records()]
        parts.measurer.start_s = 0.0
        parts.run()
        found = [(record["arch_id"], record["purpose"]) for record in parts.records()]
        assert found[: until - 2] == expected[: until - 2]  # what the budget still holds may differ by a start


def test_a_resumed_run_confirms_in_the_order_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = board(tmp_path / "whole", spread=0.1)
    whole.run()
    expected = confirmations(whole)
    assert len(expected) > 20
    lines = (whole.folder / "ledger.jsonl").read_bytes().splitlines(True)
    for cut in (4, 7, len(lines) - 9):
        parts = board(tmp_path / f"cut{cut}", spread=0.1)
        (parts.folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
        # the fake numbers depend on how often an architecture was measured
        parts.measurer.measured = [(record["arch_id"], record["purpose"]) for record in parts.records()]
        parts.run()
        assert confirmations(parts) == expected

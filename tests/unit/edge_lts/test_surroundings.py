"""What a run does to its board, and about it: threads, one thread, heat, governor, meters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_lts import placement, surroundings
from edge_lts.agent import Supervisor
from edge_lts.errors import SpecError
from edge_lts.placement import REFERENCE, Placement
from edge_lts.records import Protocol
from tests.fake_agent import Board, write_spec

N_COUNTS, N_PASSES = 2, 2


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(threads_wanted: int = 0, root: Path = Path("/")) -> Placement:
        return Placement(cpus=(0, 1), threads=threads_wanted or 2, n_clusters=1, policy="all-cores")

    monkeypatch.setattr(surroundings.placement, "place", place)


def board(tmp_path: Path, **changes: Any) -> Board:
    return Board(write_spec(tmp_path, **{"max_candidates": 6, "protocol": Protocol(), **changes}))


def purposes(one: Board) -> list[str]:
    return [purpose for _, purpose in one.measurer.measured]


def test_threads_are_swept_once_and_recorded(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=4)
    one.run()
    assert [arch_id for arch_id, _ in one.measurer.measured[: N_COUNTS * N_PASSES]] == [REFERENCE.arch_id] * 4
    assert one.measurer.threads[: N_COUNTS * N_PASSES] == [1, 1, 2, 2]
    found = one.json("device.json")["extra"]
    assert found["placement"]["policy"] == "all-cores"
    assert set(found["thread_sweep"]["decode_s"]) == {"1", "2"}
    (event,) = one.named("thread_sweep")
    assert event["threads"] == found["thread_sweep"]["threads"]
    search = [threads for threads, purpose in zip(one.measurer.threads, purposes(one), strict=True)][4:8]
    assert search == [found["thread_sweep"]["threads"]] * 4
    assert all(record["arch_id"] != REFERENCE.arch_id for record in one.records())


def test_a_resume_uses_the_sweep_of_the_first_start(tmp_path: Path) -> None:
    one = board(tmp_path)

    def stop_at_two(measurer: object, arch: object, candidate_id: int) -> None:
        if candidate_id == 2:
            raise KeyboardInterrupt

    one.measurer.before = stop_at_two
    with pytest.raises(KeyboardInterrupt):
        one.run()
    one.new_measurer()
    one.run()
    assert len(one.named("thread_sweep")) == 1
    assert REFERENCE.arch_id not in [arch_id for arch_id, _ in one.measurer.measured]


@pytest.mark.parametrize("changes", [{"budget_s": 800.0}, {"is_emulated": True}])
def test_no_sweep_where_it_would_cost_too_much(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = board(tmp_path, **changes)
    one.run()
    assert not one.named("thread_sweep")
    assert set(one.measurer.threads) == {1, 2}


def test_an_explicit_number_of_threads_is_not_overruled(tmp_path: Path) -> None:
    one = board(tmp_path, protocol=Protocol(threads=2))
    one.run()
    (event,) = one.named("thread_sweep")
    assert event["threads"] == 2
    assert event["fastest"] in (1, 2)


def test_members_are_measured_on_one_thread_and_that_is_part_of_nothing_else(tmp_path: Path) -> None:
    one = board(tmp_path)
    one.run()
    frontier = [member for member in one.json("frontier.json")["frontier"] if not member["probably_dominated"]]
    alone = [record for record in one.records() if record["purpose"] == "one_thread"]
    assert {record["arch_id"] for record in alone} == {member["arch_id"] for member in frontier}
    assert len(alone) == len(frontier)
    pairs = list(zip(purposes(one), one.measurer.threads, strict=True))
    assert all(threads == 1 for purpose, threads in pairs if purpose == "one_thread")
    for member in frontier:
        assert set(member["one_thread"]) == {"decode_latency_s", "prefill_latency_s"}
        assert member["n_processes"] == 3
    assert one.json("status.json")["n_confirmations"] == purposes(one).count("confirm")


def test_one_thread_is_measured_where_nothing_is_left_to_tighten(tmp_path: Path) -> None:
    one = board(tmp_path, objectives=("decoder_params", "peak_memory_bytes"), max_candidates=4)
    one.run()
    assert "one_thread" in purposes(one)
    assert one.json("status.json")["state"] == "done"


def test_a_warm_board_in_burst_mode_is_waited_for_and_the_wait_is_in_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "system/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("45000\n")
    one = board(tmp_path, protocol=Protocol(threads=1), budget_s=800.0)

    def heat(measurer: object, arch: object, candidate_id: int) -> None:
        (zone / "temp").write_text("84000\n")

    def cool(seconds: float) -> None:
        one.clock.now_s += seconds
        degrees = int((zone / "temp").read_text()) - 2000
        (zone / "temp").write_text(f"{max(44000, degrees)}\n")

    one.measurer.before = heat
    monkeypatch.setattr(surroundings.time, "sleep", cool)
    Supervisor(
        one.folder,
        emit=one.emit,
        make_measurer=one.measurer.make,
        clock=one.clock,
        probe=lambda **_: one.info,
        heartbeat_s=3600,
        system_root=tmp_path / "system",
    ).run()
    cooled = one.named("cooled")
    assert cooled
    assert all(event["reason"] == "reached" and event["to_c"] <= 50 for event in cooled)
    first, second = one.records()[:2]
    assert second["spent_s"] - first["spent_s"] == pytest.approx(10 + cooled[0]["waited_s"], abs=0.1)


def test_sustained_mode_keeps_the_board_busy_before_the_first_candidate(tmp_path: Path) -> None:
    one = board(tmp_path, protocol=Protocol(threads=1, heat="sustained"), budget_s=800.0)
    one.run()
    (event,) = one.named("warmed")
    assert event["reason"] == "no_sensor"
    assert one.measurer.measured[0][0] == REFERENCE.arch_id
    assert all(record["arch_id"] != REFERENCE.arch_id for record in one.records())


def test_energy_is_not_searched_without_a_meter(tmp_path: Path) -> None:
    one = board(tmp_path, objectives=("decoder_params", "energy_j_per_token"))
    with pytest.raises(SpecError, match="name a meter with --meter"):
        Supervisor(
            one.folder,
            emit=one.emit,
            make_measurer=one.measurer.make,
            clock=one.clock,
            probe=lambda **_: one.info,
            system_root=tmp_path,
        ).run()
    assert not one.measurer.measured


def test_the_reference_is_what_every_board_can_hold() -> None:
    assert placement.REFERENCE.total_params * 4 < 100e6

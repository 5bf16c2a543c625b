"""Transfer regret: who is held against whom, what a session keeps, and what follows from it."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from edge_lts.arch import Architecture
from edge_lts.errors import LedgerError
from edge_lts.records import Failure, Measurement, Protocol
from edge_lts_host import store, transfers
from edge_lts_host.cli import main
from edge_lts_host.errors import LockedError, PreflightError
from edge_lts_host.report import transfer
from edge_lts_host.report.sides import load_sides
from edge_lts_host.report.transfer import Planned, Session, plan, regrets
from edge_lts_host.store import RunFolder
from tests.unit.host.sample_runs import architecture, change_evaluations, evaluation, write_run

A = "20261122-101530-rpi5-ab12"
B = "20261123-101530-rpi4-cd34"
DECODE = "decode_latency_s"
PROTOCOL = Protocol(threads=4)
NOW = datetime.datetime(2026, 11, 24, 8, tzinfo=datetime.timezone.utc)


def entry(arch: Architecture, seconds: float, *, probably_dominated: bool = False) -> dict[str, Any]:
    return {
        "arch_id": arch.arch_id,
        "architecture": arch.to_json(),
        "objectives": {"decoder_params": arch.decoder_params, DECODE: {"median": seconds}},
        "probably_dominated": probably_dominated,
    }


def session_of(
    seconds: Mapping[str, float], planned: list[Planned], archs: Mapping[str, Architecture], *, noise: float = 0.01
) -> Session:
    """Three rounds; in each the whole board is slower by a third than in the last."""
    rng = random.Random(3)
    session = Session(session="20261124-080000", onto=B, latency=DECODE, plan=planned)
    for number in range(3):
        for arch_id, value in seconds.items():
            median = value * (4 / 3) ** number * (1 + noise * rng.gauss(0, 1))
            outcome = evaluation(0, archs[arch_id], purpose="single")
            outcome.objectives[DECODE] = Measurement(median=median, n=10)
            session.outcomes.append((number, outcome))
    return session


def test_a_rival_is_as_large_in_as_little_memory_and_was_fastest_there() -> None:
    small, wide, deep = architecture(4, 64, 256), architecture(4, 192, 512), architecture(8, 128, 512)
    huge = architecture(8, 256, 1024)
    assert wide.decoder_params < deep.decoder_params
    frontier = [entry(small, 1e-3), entry(wide, 2e-3), entry(huge, 9e-3)]
    members = [entry(small, 5e-3), entry(deep, 5e-3), entry(architecture(12, 256, 1024), 5e-3)]
    found = plan(A, members, frontier, PROTOCOL, DECODE)
    assert [one.rival for one in found] == [small.arch_id, None, None]  # huge would need more memory than deep
    twin = architecture(8, 128, 448)
    assert (
        plan(A, [entry(deep, 1.0)], [entry(deep, 3e-3), entry(twin, 1e-3)], PROTOCOL, DECODE)[0].rival == deep.arch_id
    )
    doubtful = [entry(deep, 3e-3, probably_dominated=True)]
    assert plan(A, [entry(deep, 1.0)], doubtful, PROTOCOL, DECODE)[0].rival is None


def test_members_are_spread_over_the_frontier_and_none_is_doubtful() -> None:
    entries = [entry(architecture(4, 64, 64 * n), 1.0, probably_dominated=n == 3) for n in range(1, 12)]
    chosen = transfer.chosen(entries, 4)
    assert (chosen[0], chosen[-1]) == (entries[0], entries[-1])
    assert len(chosen) == 4
    assert len(transfer.chosen(entries, 99)) == 10
    assert len(transfer.chosen(entries, 1)) == 1


def test_regret_is_what_was_measured_whatever_the_speed_of_the_board_did_meanwhile() -> None:
    archs = {arch.arch_id: arch for arch in (architecture(4, 64, 64 * n) for n in range(1, 9))}
    ids = list(archs)
    truth = {
        ids[0]: 1.2e-3,
        ids[1]: 1.0e-3,
        ids[2]: 2.0e-3,
        ids[3]: 2.0e-3,
        ids[4]: 2.7e-3,
        ids[5]: 3.0e-3,
        ids[6]: 5e-3,
    }
    planned = [
        Planned(source=A, arch_id=ids[0], rival=ids[1]),
        Planned(source=A, arch_id=ids[2], rival=ids[3]),
        Planned(source=A, arch_id=ids[4], rival=ids[5]),
        Planned(source=A, arch_id=ids[6], rival=ids[6]),
        Planned(source=A, arch_id=ids[5], rival=None),
        Planned(source=A, arch_id=ids[7], rival=ids[1]),
    ]
    session = session_of(truth, planned, archs)
    session.outcomes.append((0, Failure(candidate_id=0, architecture=archs[ids[7]], kind="oom", message="no")))
    [found] = regrets(session)
    worse, same, better, itself, alone, failed = found["members"]
    assert worse["regret"] == pytest.approx(0.2, abs=0.02)
    assert worse["low"] < 0.2 < worse["high"]
    assert worse["is_worse"]
    assert same["low"] < 0 < same["high"]
    assert (same["is_worse"], same["is_better"]) == (False, False)
    assert better["is_better"]
    assert better["regret"] == pytest.approx(-0.1, abs=0.02)
    assert (itself["regret"], itself["low"], itself["high"]) == (0.0, 0.0, 0.0)
    assert alone["regret"] is None
    assert alone["latency_s"] is not None
    assert failed["n"] == 0
    assert (found["n_compared"], found["n_without_rival"], found["n_failed"]) == (4, 1, 1)
    assert (found["n_worse"], found["n_better"]) == (1, 1)
    assert found["spread"] == pytest.approx(0.01, rel=0.6)  # not the third by which rounds differ
    low, high = found["median_ci95"]
    assert low <= found["median_regret"] <= high
    assert found["largest_regret"] == worse["regret"]


def test_intervals_of_regret_cover_what_is_true() -> None:
    archs = {arch.arch_id: arch for arch in (architecture(4, 64, 64 * n) for n in range(1, 7))}
    a, b, *others = archs
    planned = [Planned(source=A, arch_id=a, rival=b)]
    covered = 0
    for trial in range(200):
        rng = random.Random(trial)
        session = Session(session="s", onto=B, latency=DECODE, plan=planned)
        for number in range(3):
            shift = rng.gauss(0, 0.2)
            for arch_id, value in ((a, 1.1), (b, 1.0), *((other, 2.0) for other in others)):
                outcome = evaluation(0, archs[arch_id], purpose="single")
                outcome.objectives[DECODE] = Measurement(
                    median=value * 2.718281828 ** (shift + rng.gauss(0, 0.03)), n=10
                )
                session.outcomes.append((number, outcome))
        [member] = regrets(session)[0]["members"]
        covered += member["low"] <= 0.1 <= member["high"]
    assert 180 <= covered <= 199  # 95 % of 200 are 190


@pytest.mark.parametrize(("freedom", "exact"), [(2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (40, 2.0211)])
def test_students_t(freedom: int, exact: float) -> None:
    assert transfer.t975(freedom) == pytest.approx(exact, rel=0.005)


class FakeBoard:
    """Measures by the clock of the test and remembers the order."""

    def __init__(self, **conditions: Any) -> None:
        self.now_s = 5.0
        self.order: list[str] = []
        self.conditions = conditions

    def __call__(self, arch: Architecture) -> Mapping[str, Any]:
        self.now_s += 2.0
        self.order.append(arch.arch_id)
        outcome = evaluation(0, arch, scale=1.0 + 0.001 * len(self.order), purpose="single")
        outcome.conditions.update(self.conditions)
        return outcome.to_json()


def measured(board: FakeBoard, planned: list[Planned], archs: Mapping[str, Architecture]) -> Session:
    return transfers.measure_session(
        B, DECODE, planned, archs, board, PROTOCOL, torch="2.9.1+cpu", clock=lambda: board.now_s, now=lambda: NOW
    )


def test_a_session_measures_everybody_in_each_round_and_reads_back() -> None:
    archs = {arch.arch_id: arch for arch in (architecture(4, 64, 64 * n) for n in range(1, 6))}
    ids = list(archs)
    planned = [Planned(source=A, arch_id=ids[n], rival=ids[n + 1]) for n in range(3)]
    board = FakeBoard()
    session = measured(board, planned, archs)
    rounds = [board.order[start : start + 4] for start in range(0, 12, 4)]
    assert all(sorted(one) == sorted(ids[:4]) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert [outcome.spent_s for _, outcome in session.outcomes] == [2.0 * n for n in range(1, 13)]
    [read] = transfers.load_sessions([A, B])
    assert read == session
    assert regrets(read) == regrets(session)


def test_a_session_that_broke_off_counts_as_far_as_it_went() -> None:
    archs = {arch.arch_id: arch for arch in (architecture(4, 64, 64 * n) for n in range(1, 6))}
    ids = list(archs)
    planned = [Planned(source=A, arch_id=ids[n], rival=ids[n + 1]) for n in range(3)]
    measured(FakeBoard(), planned, archs)
    path = transfers.path_of(B)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:11]) + lines[11][:50])
    [read] = transfers.load_sessions([B])
    assert len(read.outcomes) == 10
    assert regrets(read)[0]["n_compared"] == 3
    measured(FakeBoard(), planned, archs)
    assert [len(one.outcomes) for one in transfers.load_sessions([B])] == [12]  # the same second: the same session
    path.write_bytes(path.read_bytes().replace(b'"round"', b'"rund"', 1))
    with pytest.raises(LedgerError, match=rf"{B}\.jsonl, line 2"):
        transfers.load_sessions([B])


@pytest.mark.parametrize(
    ("conditions", "words"), [({"threads": 2}, "threads 4"), ({"torch": "2.13.0"}, "torch 2.9.1")], ids=str
)
def test_a_board_that_measures_otherwise_now_is_refused(conditions: dict[str, Any], words: str) -> None:
    arch = architecture(4, 64, 64)
    planned = [Planned(source=A, arch_id=arch.arch_id, rival=None)]
    with pytest.raises(PreflightError, match=words):
        measured(FakeBoard(**conditions), planned, {arch.arch_id: arch})
    assert transfers.load_sessions([B])[0].outcomes == []


def test_one_session_at_a_time_on_a_board() -> None:
    arch = architecture(4, 64, 64)
    planned = [Planned(source=A, arch_id=arch.arch_id, rival=None)]

    class Nested(FakeBoard):
        def __call__(self, arch: Architecture) -> Mapping[str, Any]:
            with pytest.raises(LockedError, match="another compare --transfer"):
                measured(FakeBoard(), planned, {arch.arch_id: arch})
            return super().__call__(arch)

    assert len(measured(Nested(), planned, {arch.arch_id: arch}).outcomes) == 3


def test_another_method_cannot_be_re_timed() -> None:
    with pytest.raises(PreflightError, match="was measured by method 1"):
        transfers.check_method(B, Protocol(method_version=1))


def test_what_was_re_timed_is_shown_and_ranks_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    root = store.runs_root()
    write_run(root, A)
    folder = write_run(root, B)
    change_evaluations(folder, lambda record: None)
    sides = load_sides([RunFolder(root / A), RunFolder(root / B)])
    members = transfer.chosen(sides[0].members, 4)
    planned = plan(A, members, sides[1].members, PROTOCOL, DECODE)
    archs = {one["arch_id"]: Architecture.from_json(one["architecture"]) for one in members}
    measured(FakeBoard(), planned, archs)
    assert main(["compare", A, B, "-o", "json"]) == 0
    [group] = json.loads(capsys.readouterr().out)["groups"]
    [found] = group["transfers"]
    assert (found["from"], found["onto"], found["n_compared"]) == (A, B, 4)
    assert found["median_regret"] == 0.0  # each is its own rival: the frontiers are the same
    assert main(["compare", A, B]) == 0
    text = capsys.readouterr().out
    assert "A's frontier on B (re-timed 20261124-080000)" in text
    assert "itself" in text
    assert "regret at the median member +0.0%" in text
    assert "of 4 members 0 are surely slower than what B found itself" in text


def test_nothing_is_timed_on_an_emulated_board(capsys: pytest.CaptureFixture[str]) -> None:
    root = store.runs_root()
    for run_id in (A, B):
        write_run(root, run_id, is_emulated=True)
    assert main(["compare", A, B, "--transfer"]) == 2
    error = capsys.readouterr().err
    assert "is emulated" in error
    assert "none of these runs has a board" in error

"""One supervisor over a fake board: budget, resume, confirmation, failures and clean ends."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edge_lts import agent, budget, device, job, preparation
from edge_lts.errors import EdgeLtsError, EvaluationError, LedgerError, LockedError, SpaceError, SpecError
from edge_lts.records import METHOD_VERSION, Protocol, outcome_from_json
from edge_lts.runfolder import RunFolder
from tests.fake_agent import SPACE, Board, FakeMeasurer, device_info, evaluation, failure, write_spec


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def board(tmp_path: Path, **changes: Any) -> Board:
    return Board(write_spec(tmp_path, **changes))


def search_ids(one: Board) -> list[tuple[int, str]]:
    return [(r["candidate_id"], r["arch_id"]) for r in one.records() if r["purpose"] == "search"]


def interrupt_at(one: Board, candidate_id: int, signum: int = signal.SIGTERM) -> None:
    def before(measurer: FakeMeasurer, arch: object, current: int) -> None:
        if current == candidate_id:
            os.kill(os.getpid(), signum)

    one.measurer.before = before


def test_a_run_searches_confirms_and_ends_within_its_budget(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=1000.0)
    assert one.run() == 0
    status, records = one.json("status.json"), one.records()
    assert status["state"] == "done"
    assert "budget spent" in status["reasons"]
    assert 990 <= status["spent_s"] <= 1010
    assert status["n_measured"] + status["n_confirmations"] == len(records) == len(one.measurer.measured)
    search = [record for record in records if record["purpose"] == "search"]
    n_along = len([record for record in records[: records.index(search[-1])] if record["purpose"] == "confirm"])
    assert 1 <= n_along <= 7  # a third of 200 s, in 10 s each; that time comes off confirming and not off the search
    assert 0.8 * 1000 - 10 <= search[-1]["spent_s"] - 10 * n_along <= 0.8 * 1000 + 10
    assert [record["candidate_id"] for record in search] == list(range(len(search)))
    assert len({record["arch_id"] for record in search}) == len(search)
    assert [event["event"] for event in one.events][:3] == ["started", "ready", "measured"]
    assert one.events[-1]["event"] == "finished"
    assert one.events == [json.loads(line) for line in (one.folder / "events.jsonl").read_text().splitlines()]
    assert one.measurer.is_closed


def test_each_member_is_confirmed_in_three_processes_when_time_allows(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=6)
    one.run()
    frontier = one.json("frontier.json")["frontier"]
    assert frontier
    assert {member["n_processes"] for member in frontier} == {3}
    for member in frontier:
        value = member["objectives"]["decode_latency_s"]
        assert value["pi95"][0] < value["median"] < value["pi95"][1]
        assert value["ci95"] is not None
        assert value["n"] == 24
    assert one.json("status.json")["reasons"] == ["max_candidates reached", "frontier confirmed"]
    purposes = [purpose for _, purpose in one.measurer.measured]
    assert purposes == sorted(purposes, reverse=True)  # search first, then confirm
    confirmed = Counter(arch_id for arch_id, purpose in one.measurer.measured if purpose == "confirm")
    assert {confirmed[member["arch_id"]] for member in frontier} == {2}
    assert max(confirmed.values()) == 2


def test_without_time_for_all_members_some_are_confirmed_completely(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=400.0)
    one.run()
    n_processes = Counter(member["n_processes"] for member in one.json("frontier.json")["frontier"])
    assert n_processes[3] >= 2  # 80 s in 10 s each: four members, had they needed nothing but two more
    assert n_processes[1] >= 1
    assert "no time to confirm" in one.json("status.json")["reasons"][-1]


def test_what_guided_search_predicted_stands_in_the_record(tmp_path: Path) -> None:
    one = board(tmp_path, strategy="guided", max_candidates=30)
    one.run()
    searched = [record for record in one.records() if record["purpose"] == "search"]
    assert {record["conditions"]["origin"] for record in searched} >= {"design", "frontier"}
    for record in searched:
        is_design = record["conditions"]["origin"] == "design"
        assert ("decode_latency_s" in record["predicted"]) is not is_design
    confirmed = [record for record in one.records() if record["purpose"] == "confirm"]
    assert confirmed
    assert not any(record["predicted"] for record in confirmed)


def test_a_small_space_ends_by_itself(tmp_path: Path) -> None:
    genes = {"n_layer": [1, 2], "d_model": [32], "d_inner": [64, 128], "n_head": [1, 2]}
    one = board(tmp_path, budget_s=1e6, space={**SPACE, "genes": genes})
    one.run()
    assert one.json("status.json")["n_measured"] == 4 + 10
    assert one.json("status.json")["reasons"] == ["space exhausted", "frontier confirmed"]


@pytest.mark.parametrize(("strategy", "cut"), [("random", 1), ("random", 7), ("evolution", 7), ("guided", 29)])
def test_a_resumed_run_proposes_what_an_uninterrupted_one_does(tmp_path: Path, strategy: str, cut: int) -> None:
    n = 33 if strategy == "guided" else 20  # guided fits its first model after 24
    whole = board(tmp_path / "whole", strategy=strategy, max_candidates=n)
    whole.run()
    parts = board(tmp_path / "parts", strategy=strategy, max_candidates=n)
    interrupt_at(parts, cut)
    assert parts.run() == 0
    assert parts.json("status.json")["state"] == "stopped"
    assert parts.json("status.json")["reasons"] == ["stopped by SIGTERM"]
    assert len(parts.json("frontier.json")["frontier"]) >= 1
    parts.new_measurer()
    parts.run()
    assert parts.named("resumed")[0]["n_measured"] == cut
    assert search_ids(parts) == search_ids(whole)
    assert parts.json("status.json")["state"] == "done"


def test_every_cut_through_the_ledger_resumes_without_a_duplicate(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=5)
    one.run()
    whole = (one.folder / "ledger.jsonl").read_bytes()
    for size in range(0, len(whole), 997):
        (one.folder / "ledger.jsonl").write_bytes(whole[:size])
        (one.folder / "status.json").unlink()
        one.events.clear()
        one.new_measurer()
        one.run()
        n_kept = whole[:size].count(b"\n")
        assert (one.folder / "ledger.jsonl").read_bytes().startswith(b"".join(whole.splitlines(True)[:n_kept]))
        ids = [arch_id for _, arch_id in search_ids(one)]
        assert len(ids) == len(set(ids)) == 5
        torn = size - (whole[:size].rfind(b"\n") + 1)
        assert [event["n_bytes"] for event in one.named("dropped_tail")] == ([torn] if torn else [])


def test_the_budget_counts_what_was_spent_before(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=300.0, confirm_fraction=0.0)
    interrupt_at(one, 10)
    one.run()
    spent_s = one.json("status.json")["spent_s"]
    one.clock.now_s = 50.0  # another boot: the clock starts anew
    one.new_measurer()
    one.run()
    assert one.records()[-1]["spent_s"] == pytest.approx(300, abs=11)
    assert one.records()[10]["spent_s"] == pytest.approx(spent_s + 15)


def test_a_finished_run_says_so_and_measures_nothing(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=3)
    one.run()
    before = {name: (one.folder / name).read_bytes() for name in ("status.json", "ledger.jsonl", "frontier.json")}
    one.events.clear()
    one.new_measurer()
    assert one.run() == 0
    assert one.measurer.measured == []
    assert [event["event"] for event in one.events] == ["finished"]
    assert "already finished" in one.events[0]["message"]
    assert before == {name: (one.folder / name).read_bytes() for name in before}


def test_a_spent_budget_without_a_status_ends_without_measuring(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=100.0)
    one.run()
    (one.folder / "status.json").write_text("garbage")
    one.new_measurer()
    one.run()
    assert one.measurer.measured == []
    assert one.json("status.json")["state"] == "done"
    assert one.json("frontier.json")["frontier"]


def test_a_slow_start_still_leaves_one_measurement(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=100.0)
    one.new_measurer(start_s=99.0)
    one.run()
    assert one.json("status.json")["n_measured"] == 1


def test_a_measurement_that_would_burst_the_budget_is_not_begun(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=100.0, confirm_fraction=0.0)
    one.new_measurer(duration_s=40.0)
    one.run()
    assert len(one.measurer.measured) == 2  # 5 + 40 + 40; of the third less than half would fit


def test_failures_are_recorded_told_and_counted(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=6)
    one.measurer.before = lambda _, arch, number: failure(arch, number, "oom") if number % 2 else None
    one.run()
    assert one.json("status.json")["n_failed"] == 3
    assert {event["kind"] for event in one.named("failed")} == {"oom"}
    assert [record["kind"] for record in one.records()[:4]] == ["evaluation", "failure"] * 2


def test_a_board_where_everything_fails_ends_the_run(tmp_path: Path) -> None:
    one = board(tmp_path, budget_s=1e6)
    one.measurer.before = lambda _, arch, number: failure(arch, number)
    with pytest.raises(EvaluationError, match="50 candidates failed in a row, the last one with: it fell over"):
        one.run()
    assert one.json("status.json")["state"] == "failed"


def test_a_member_that_fails_to_be_confirmed_is_not_tried_forever(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=2)

    def before(measurer: FakeMeasurer, arch: Any, number: int) -> Any:
        return failure(arch, number) if any(a == arch.arch_id for a, _ in measurer.measured) else None

    one.measurer.before = before
    one.run()
    frontier = one.json("frontier.json")["frontier"]
    assert len(one.measurer.measured) == 2 + 2 * len(frontier)
    assert {member["n_processes"] for member in frontier} == {1}


def test_an_objective_that_the_board_cannot_measure_is_a_failure_to_the_searcher(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=4)

    def before(measurer: FakeMeasurer, arch: Any, number: int) -> Any:
        outcome = evaluation(arch, candidate_id=number)
        outcome.objectives["peak_memory_bytes"] = None
        return outcome

    one.measurer.before = before
    one.run()
    assert one.json("frontier.json")["frontier"] == []
    assert {record["kind"] for record in one.records()} == {"evaluation"}


def test_a_record_with_nan_becomes_a_failure(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=2)

    def before(measurer: FakeMeasurer, arch: Any, number: int) -> Any:
        outcome = evaluation(arch, candidate_id=number)
        outcome.conditions["temperature_c"] = float("nan")
        return outcome if number == 0 else None

    one.measurer.before = before
    one.run()
    assert one.records()[0]["error"]["kind"] == "nonfinite"


def test_garbage_in_the_ledger_ends_the_run_and_leaves_the_file_alone(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=4)
    one.run()
    path = one.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[1:]))
    before = path.read_bytes()
    (one.folder / "status.json").unlink()
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 2") as info:
        one.run()
    assert info.value.exit_code == 1
    assert path.read_bytes() == before
    assert one.json("status.json")["state"] == "failed"
    assert "line 2" in one.json("status.json")["message"]


def test_a_ledger_of_another_spec_is_refused(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=4)
    one.run()
    write_spec(tmp_path, max_candidates=4, seed=2)
    (one.folder / "status.json").unlink()
    with pytest.raises(LedgerError, match=r"does not belong to this spec\.json"):
        one.run()


def test_a_full_disk_fails_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = board(tmp_path, max_candidates=6)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if b'"candidate_id":3' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(LedgerError, match=r"cannot write .*ledger\.jsonl: No space left on device; free some space"):
        one.run()
    assert len(one.records()) == 3
    assert one.json("status.json")["state"] == "failed"
    monkeypatch.undo()
    one.new_measurer()
    one.run()
    assert one.json("status.json")["state"] == "done"
    assert one.json("status.json")["message"] == ""
    assert [number for number, _ in search_ids(one)] == list(range(6))


def test_two_runs_at_once_are_refused_by_name(tmp_path: Path) -> None:
    first, second = board(tmp_path, max_candidates=2), Board(write_spec(tmp_path, "other"))
    errors: list[EdgeLtsError] = []

    def before(measurer: FakeMeasurer, arch: Any, number: int) -> None:
        for other in (second, Board(first.folder)):
            try:
                other.run()
            except LockedError as exc:
                errors.append(exc)

    first.measurer.before = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.Lock.__init__, "__kwdefaults__", {"patience_s": 0.0})
        first.run()
    assert len(errors) == 2 * len(first.measurer.measured)
    assert all(exc.exit_code == 7 for exc in errors)
    assert f"this board ({tmp_path}) is in use by run run (pid {os.getpid()}" in str(errors[0])
    assert "the run run is in use by run run" in str(errors[1])
    assert not (second.folder / "status.json").exists()
    assert first.json("status.json")["state"] == "done"


def test_the_space_is_cut_by_the_memory_of_the_first_start(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=200, budget_s=1e6)
    one.info = device_info(memory_available_bytes=375_000)
    interrupt_at(one, 5)
    one.run()
    assert one.measurer.memory_limit_bytes == 300_000
    one.info = device_info(memory_available_bytes=1 << 30)  # more is free now; the space must stay what it was
    one.new_measurer()
    one.run()
    architectures = [outcome_from_json(record).architecture for record in one.records()]
    assert max(arch.total_params * 4 for arch in architectures) <= 300_000
    assert 5 < one.json("status.json")["n_measured"] < 102


def test_a_board_without_memory_for_any_member_is_told_which_rule(tmp_path: Path) -> None:
    one = board(tmp_path)
    one.info = device_info(memory_available_bytes=1000)
    with pytest.raises(SpaceError, match="memory") as info:
        one.run()
    assert info.value.exit_code == 2
    assert one.json("status.json")["state"] == "failed"


@pytest.mark.parametrize("change", [{"torch": "9.8"}, {"page_size_bytes": 16384}])
def test_a_run_does_not_go_on_where_numbers_would_differ(tmp_path: Path, change: dict[str, Any]) -> None:
    one = board(tmp_path)
    interrupt_at(one, 2)
    one.run()
    one.info = device_info(**change)
    one.new_measurer()
    with pytest.raises(LedgerError, match="cannot be compared: begin a new run"):
        one.run()


def test_a_spec_that_is_not_of_this_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="measures by method"):
        board(tmp_path, protocol=Protocol(method_version=METHOD_VERSION + 1)).run()
    folder = write_spec(tmp_path)
    moved = folder.path.rename(folder.path.with_name("moved"))
    with pytest.raises(SpecError, match="is of run run, but its folder is named moved"):
        Board(RunFolder(moved)).run()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "\0", '{"schema_version": 1, "run_id": 5}'])
def test_a_broken_spec_is_one_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    folder = write_spec(tmp_path)
    (folder / "spec.json").write_text(text)
    with pytest.raises(SpecError, match=r"spec\.json"):
        Board(folder).run()
    (folder / "spec.json").unlink()
    with pytest.raises(SpecError, match="does not exist"):
        Board(folder).run()


def test_a_signal_while_torch_is_imported_ends_the_run_cleanly(tmp_path: Path) -> None:
    one = board(tmp_path)
    real = one.measurer.start

    def start() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return real()

    one.measurer.start = start  # type: ignore[method-assign]
    assert one.run() == 0
    assert one.measurer.measured == []
    assert one.json("status.json")["reasons"] == ["stopped by SIGINT"]
    assert one.json("frontier.json")["frontier"] == []


def test_what_a_killed_supervisor_left_half_written_is_removed(tmp_path: Path) -> None:
    one = board(tmp_path, max_candidates=1)
    (one.folder / ".frontier.json.123.part").write_text("half")
    one.run()
    assert not list(one.folder.path.glob(".*"))


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    board(tmp_path, max_candidates=1).run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_repeated_proposal_is_answered_from_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_lts.search import Candidate

    class Stubborn:
        def __init__(self, searcher: Any) -> None:
            self.inner, self.n = searcher, 0
            self.told: list[tuple[int, int, str]] = []
            self.first: Any = None

        def ask(self, n: int = 1) -> list[Candidate]:
            self.n += 1
            self.first = self.first or self.inner.ask(1)[0].architecture
            arch = self.first if self.n <= 3 else self.inner.ask(1)[0].architecture
            return [Candidate(candidate_id=self.n - 1, architecture=arch)] if self.n <= 5 else []

        def tell(self, candidate_id: int, outcome: Any) -> None:
            self.told.append((candidate_id, outcome.candidate_id, outcome.architecture.arch_id))

        def stop(self) -> tuple[str, ...]:
            return ()

    made: list[Stubborn] = []
    real = preparation.make_searcher

    def make_stubborn(*args: Any) -> Stubborn:
        made.append(Stubborn(real(*args)))
        return made[-1]

    monkeypatch.setattr(agent, "make_searcher", make_stubborn)
    one = board(tmp_path)
    interrupt_at(one, 4)
    one.run()
    one.new_measurer()
    one.run()
    assert [number for number, _ in search_ids(one)] == [0, 3, 4]
    assert [told[:2] for told in made[1].told] == [(number, number) for number in range(5)]


def test_the_same_run_is_proposed_whatever_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.fake_agent import SPACE, Board, write_spec\n"
        "one = Board(write_spec(Path(sys.argv[1]), strategy='evolution', max_candidates=30)); one.run()\n"
        "print([(r['arch_id'], r['purpose']) for r in one.records()], one.json('frontier.json'))"
    )
    results = set()
    for seed in ("0", "1"):
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            capture_output=True,
            check=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
        )
        results.add(result.stdout)
    assert len(results) == 1


def test_durations_come_from_the_nearest_neighbours() -> None:
    durations = budget.Durations()
    assert durations.fits("new", 5, 0.1)
    for size in range(10):
        durations.add(str(size), size, float(size))
    assert durations.estimate_s("3", 3) == 3.0
    assert durations.estimate_s("new", 100) == 7.0
    assert durations.fits("new", 100, 3.5)
    assert not durations.fits("new", 100, 3.4)
    assert not durations.fits("0", 0, 0.0)

"""The index over all ledgers: what it reads, when it reads again, and that it says what the records say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.errors import EdgeLtsError
from edge_lts.frontier import Frontier
from edge_lts.objectives import DEFAULT_OBJECTIVES, resolve_objectives
from edge_lts.records import Evaluation, Failure, Protocol
from edge_lts.speed import ANCHORS, BOARD_FACTOR, EXPONENTS, UsualSpeed
from edge_lts_host import store
from edge_lts_host.errors import StoreError
from edge_lts_host.index import boards, build, columns, database, lines
from edge_lts_host.report.across import compare_sides
from edge_lts_host.store import RunFolder
from tests.unit.host.sample_runs import architecture, evaluation, observed, write_run

RUN, OTHER = "20261122-101530-rpi5-ab12", "20261123-101530-rpi5-cd34"


def line_of(outcome: Evaluation | Failure) -> bytes:
    """As edge_lts.ledger.Ledger writes it."""
    return json.dumps(outcome.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def measured(number: int, speed: float = 1.0, **changes: Any) -> Evaluation:
    """A process on a machine that is `speed` times as slow as usual, which its anchors say, too."""
    arch = architecture(4, 64 + 32 * (number % 12), 256 + 64 * (number // 12))
    conditions = {**observed(), "threads": 4, "anchor_s": dict.fromkeys(ANCHORS, 1e-3 * speed)}
    found = evaluation(number, arch, scale=speed)
    return replace(found, conditions=conditions, spent_s=float(number), **changes)


def write_ledger(folder: Path, outcomes: list[Any]) -> None:
    (folder / "ledger.jsonl").write_bytes(b"".join(map(line_of, outcomes)))


def updated() -> tuple[database.Index, build.Built]:
    index = database._open(database.path_of_index())
    return index, build.update(index)


def a_run(run_id: str = RUN, n: int = 30, **settings: Any) -> Path:
    folder = write_run(store.runs_root(), run_id, **settings)
    write_ledger(folder, [measured(number, 1 + 0.2 * (number % 3)) for number in range(n)])
    (store.runs_root() / database.FOLDER).mkdir(exist_ok=True)
    return folder


def all_columns(index: database.Index) -> dict[str, list[Any]]:
    found = index.columns(index.runs(), tuple(columns.TYPES))
    return {name: [None if value != value else value for value in column.tolist()] for name, column in found.items()}


# Lines ----------------------------------------------------------------------------------------------------------------


def same(a: lines.Line, b: lines.Line) -> None:
    assert a._replace(row=None) == b._replace(row=None)
    assert np.array_equal(np.array(a.row, dtype=float), np.array(b.row, dtype=float), equal_nan=True)


def test_the_short_cut_finds_what_reading_the_whole_record_finds() -> None:
    plain = measured(3, flags=("noisy", "framework_bound"), predicted={"decode_latency_s": 0.1})
    for one in (plain, replace(plain, board="pi5-b", purpose="confirm"), replace(plain, conditions={"threads": 2})):
        line = line_of(one)
        assert lines._ends_of(line) is not None
        same(lines.read_line(line, 17), lines.read_whole(line, 17))


def test_the_short_cut_reads_every_record_of_a_real_agent_as_the_long_way_does() -> None:
    root = Path(__file__).resolve().parents[2] / "data" / "runs"
    n = 0
    for ledger in root.glob("*/ledger.jsonl"):
        for line in ledger.read_bytes().splitlines(keepends=True):
            found, whole = lines.read_line(line, n), lines.read_whole(line, n)
            if found.row is None or whole.row is None:
                assert found == whole
            else:
                same(found, whole)
            n += 1
    assert n > 10


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.text(max_size=12))
def test_no_order_of_keys_and_no_text_in_a_record_changes_what_is_read(rng: Any, text: str) -> None:
    data = measured(5).to_json()
    hostile = {'x,"spent_s":': 9.0, ',"conditions":{': {"anchor_s": {"stream_s": 5.0}}, text: '","anchor_s":{'}
    data["conditions"]["origin"] = hostile
    data["conditions"]["nested"] = {"samples": {"spent_s": 1e9}, "spent_s": 7.0, "conditions": {"a": 1}}
    keys = list(data)
    rng.shuffle(keys)
    line = json.dumps({key: data[key] for key in keys}, separators=(",", ":")).encode() + b"\n"
    found, whole = lines.read_line(line, 0), lines.read_whole(line, 0)
    assert found.row is not None
    assert whole.row is not None
    same(found, whole)


def test_a_board_of_a_pool_is_read_at_the_speed_of_the_pool() -> None:
    one = measured(2)
    factors = {"decode_latency_s": 2.0, "anchor_s": dict.fromkeys(ANCHORS, 4.0)}
    pooled = replace(one, conditions={**one.conditions, BOARD_FACTOR: factors}, board="pi5-b")
    found, plain = (
        dict(zip([n for n, _ in columns.FIELDS], lines.read_line(line_of(x), 0).row or (), strict=True))
        for x in (pooled, one)
    )
    assert found["decode_latency_s"] == plain["decode_latency_s"] / 2
    assert found["anchor_stream_s"] == plain["anchor_stream_s"] / 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch_id", "000000000000"),
        ("purpose", "magic"),
        ("flags", "noisy"),
        ("schema_version", 99),
        ("spent_s", None),
        ("objectives", {"decoder_params": 1, "decode_latency_s": {"median": float("nan"), "ci95": None, "n": 1}}),
        ("objectives", {"decoder_params": 1, "decode_latency_s": {"median": 1.0, "ci95": [1.0], "n": 1}}),
        ("objectives", {"decoder_params": 10**400}),
    ],
)
def test_a_record_that_cannot_be_is_refused(key: str, value: Any) -> None:
    data = {**measured(1).to_json(), key: value}
    with pytest.raises(EdgeLtsError):
        lines.read_line(json.dumps(data, separators=(",", ":")).encode() + b"\n", 0)


# Columns --------------------------------------------------------------------------------------------------------------


def test_whole_columns_are_brought_to_the_usual_speed_as_one_process_is() -> None:
    rng = np.random.default_rng(3)
    outcomes = [
        measured(number, float(speed), purpose="one_thread" if number % 7 == 0 else "search")
        for number, speed in enumerate(np.exp(0.2 * rng.standard_normal(60)))
    ]
    outcomes[5] = replace(outcomes[5], conditions={"threads": 4})  # no anchors
    found = columns.to_columns([lines.read_line(line_of(one), 0).row or () for one in outcomes])
    usual = UsualSpeed()
    for one in outcomes:
        if one.purpose == "search":
            usual.add(one.conditions.get("anchor_s", {}))
    slow = columns.slowdowns(found)
    for name in EXPONENTS:
        expected = [usual.slowdown(name, one.conditions.get("anchor_s", {})) for one in outcomes]
        assert slow[f"slowdown_{name}"] == pytest.approx(expected, rel=1e-12)
        assert max(expected) > 1.1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 9) | st.just(float("nan"))), max_size=40))
def test_medians_of_groups_are_medians(pairs: list[tuple[int, float]]) -> None:
    groups, values = np.array([g for g, _ in pairs], dtype=int), np.array([v for _, v in pairs], dtype=float)
    found = columns.group_medians(groups, 6, values)
    for group in range(6):
        own = [v for g, v in pairs if g == group and v == v]
        assert found[group] == pytest.approx(np.median(own)) if own else np.isnan(found[group])


# Building -------------------------------------------------------------------------------------------------------------


def test_a_second_look_reads_nothing_and_a_longer_ledger_only_what_is_new() -> None:
    folder = a_run(n=20)
    index, built = updated()
    size = (folder / "ledger.jsonl").stat().st_size
    assert (built.n_runs, built.n_read, built.n_records, built.n_bytes) == (1, 1, 20, size)
    index.close()
    index, built = updated()
    assert (built.n_read, built.n_bytes) == (0, 0)
    index.close()
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(line_of(measured(20, 1.3)) + line_of(measured(21)))
    index, built = updated()
    assert (built.n_read, built.n_records) == (1, 2)
    grown = all_columns(index)
    index.close()
    database.path_of_index().unlink()
    index, built = updated()
    assert built.n_records == 22
    assert all_columns(index) == grown
    index.close()


def test_a_torn_last_line_is_read_when_it_is_whole() -> None:
    folder = a_run(n=3)
    whole = line_of(measured(3))
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(whole[:500])
    index, built = updated()
    assert built.n_records == 3
    assert not built.problems
    index.close()
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(whole[500:])
    index, built = updated()
    assert built.n_records == 1
    assert len(all_columns(index)["arch"]) == 4
    index.close()


def test_a_ledger_that_is_another_one_is_read_from_its_beginning() -> None:
    folder = a_run(n=12)
    updated()[0].close()
    write_ledger(folder, [measured(number, 3.0) for number in range(15)])
    index, built = updated()
    assert built.n_records == 15
    assert all_columns(index)["decode_latency_s"][0] == measured(0, 3.0).objectives["decode_latency_s"].median  # type: ignore[union-attr]
    index.close()


def test_damage_in_the_middle_ends_that_run_there_and_no_other_and_is_said_until_it_is_mended() -> None:
    folder = a_run(n=6)
    a_run(OTHER, n=4)
    path = folder / "ledger.jsonl"
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"candidate_id":3', b'"candidate_id:3', 1))
    for _ in range(2):
        index, built = updated()
        assert len(all_columns(index)["arch"]) == 3 + 4
        assert len(built.problems) == 1
        assert RUN in built.problems[0]
        index.close()
    path.write_bytes(sound)
    index, built = updated()
    assert not built.problems
    assert len(all_columns(index)["arch"]) == 6 + 4
    index.close()


def test_a_run_that_is_gone_is_forgotten_and_a_folder_without_sense_is_a_problem_of_its_own() -> None:
    folder = a_run()
    a_run(OTHER)
    updated()[0].close()
    shutil.rmtree(folder)
    (store.runs_root() / OTHER / "spec.json").write_text('{"schema_version": 99}')
    index, built = updated()
    assert [run.run_id for run in index.runs()] == [OTHER]
    assert "schema_version 99" in built.problems[0]
    assert all_columns(index)["arch"] == []
    index.close()


def test_threads_that_were_left_to_the_board_are_those_it_took() -> None:
    a_run(protocol=Protocol(threads=0))
    index, _ = updated()
    [run] = index.runs()
    assert run.protocol.threads == 4
    index.close()


def test_a_damaged_index_is_thrown_away_and_built_anew() -> None:
    a_run()
    updated()[0].close()
    path = database.path_of_index()
    path.write_bytes(b"no database at all, and longer than a header of sqlite would be" * 9)
    index, built = updated()
    assert built.n_records == 30
    index.close()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4 : -64] = b"\xa5" * (len(raw) - len(raw) // 4 - 64)
    path.write_bytes(bytes(raw))

    def look() -> None:
        with database.opened() as index:
            build.update(index)
            all_columns(index)

    with pytest.raises(StoreError, match=r"damaged|holds nothing"):
        look()
    path.unlink(missing_ok=True)
    with database.opened() as index:
        assert build.update(index).n_records == 30


def test_processes_for_each_core_read_what_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        a_run(f"2026112{n}-101530-rpi5-ab1{n}", n=20 + n)
    a_run("20261123-101530-rpi5-bad0", n=3)
    with (store.runs_root() / "20261123-101530-rpi5-bad0" / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b"damage\n" + line_of(measured(7)))
    alone, built_alone = updated()
    expected = (all_columns(alone), [run.facts for run in alone.runs()], alone.n_architectures())
    alone.close()
    database.path_of_index().unlink()
    monkeypatch.setattr(build, "_ALONE_BYTES", 0)
    monkeypatch.setattr(build.os, "cpu_count", lambda: 2)
    index, built = updated()
    assert (all_columns(index), [run.facts for run in index.runs()], index.n_architectures()) == expected
    assert replace(built, seconds=0.0) == replace(built_alone, seconds=0.0)
    assert (built.n_records, len(built.problems)) == (66, 1)
    # What grew is read from where the last look ended, by other processes, too.
    for n in range(2):
        with (store.runs_root() / f"2026112{n}-101530-rpi5-ab1{n}" / "ledger.jsonl").open("ab") as ledger:
            ledger.write(line_of(measured(40)))
    assert build.update(index).n_records == 2
    index.close()


def test_an_index_of_another_layout_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a_run()
    updated()[0].close()
    monkeypatch.setattr(database, "LAYOUT", "another")
    index, built = updated()
    assert built.n_records == 30
    index.close()


def test_where_nothing_can_be_written_there_is_an_answer_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a_run()
    (store.runs_root() / database.FOLDER).rmdir()
    (store.runs_root() / database.FOLDER).write_text("a file in the way")
    with database.opened() as index:
        assert build.update(index).n_records == 30


# Boards ---------------------------------------------------------------------------------------------------------------


def test_the_frontier_of_a_board_is_that_of_its_run() -> None:
    """Medians at the run's usual speed, as `edge_lts.frontier` has them from the same processes."""
    folder = a_run(n=40)
    index, _ = updated()
    [board] = boards.boards_of(index)
    found = boards.Rows(index, board).frontier()
    index.close()
    frontier = Frontier(resolve_objectives(DEFAULT_OBJECTIVES))
    for outcome in RunFolder(folder).outcomes():
        assert isinstance(outcome, Evaluation)
        frontier.add(outcome.architecture.arch_id, outcome)
    expected = {member.arch_id: member for member in frontier.members() if not member.probably_dominated}
    assert {member.arch_id for member in found} == set(expected)
    for member in found:
        for name in DEFAULT_OBJECTIVES:
            own, other = member.to_json(), expected[member.arch_id].to_json()
            assert own["objectives"][name] == other["objectives"][name] or own["objectives"][name][
                "median"
            ] == pytest.approx(other["objectives"][name]["median"], rel=1e-12)
    assert [member.architecture.decoder_params for member in found] == sorted(
        member.architecture.decoder_params for member in found
    )


def test_processes_of_two_runs_on_one_kind_of_board_are_one_value_with_an_interval() -> None:
    a_run(host="pi5-a")
    a_run(OTHER, host="pi5-b")
    index, _ = updated()
    [board] = boards.boards_of(index)
    assert board.to_json()["hosts"] == ["pi5-a", "pi5-b"]
    number = int(measured(0).architecture.arch_id, 16)
    member = boards.Rows(index, board).members([number])[number]
    assert member.n_processes == 2
    index.close()


def test_boards_are_apart_where_anything_differs_that_numbers_depend_on() -> None:
    a_run()
    a_run(OTHER, protocol=Protocol(threads=4, precision="int8-qnnpack"))
    index, _ = updated()
    names = [board.name for board in boards.boards_of(index)]
    assert len(names) == 2
    assert sum("int8" in name for name in names) == 1
    assert [board.name for board in boards.boards_of(index, each_run=True)] == [RUN, OTHER]
    index.close()


def test_what_was_measured_beside_the_search_is_on_no_frontier() -> None:
    folder = a_run(n=5)
    beside = [replace(measured(40), purpose="one_thread"), replace(measured(41), purpose="baseline")]
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b"".join(map(line_of, beside)))
    index, _ = updated()
    [board] = boards.boards_of(index)
    rows = boards.Rows(index, board)
    assert len(rows) == 6  # the one on one thread is by another protocol
    ids = {member.arch_id for member in rows.frontier()}
    assert not ids & {one.architecture.arch_id for one in beside}
    assert int(beside[1].architecture.arch_id, 16) in rows.processes([int(beside[1].architecture.arch_id, 16)])
    index.close()


def test_of_very_many_processes_some_say_how_wide_and_all_say_where() -> None:
    folder = a_run(n=0)
    rng = np.random.default_rng(4)
    speeds = np.exp(0.05 * rng.standard_normal(80))
    again = [
        replace(measured(1, float(speed)), conditions={"threads": 4}, spent_s=10.0 * n)
        for n, speed in enumerate(speeds)
    ]
    write_ledger(folder, again)
    index, _ = updated()
    [board] = boards.boards_of(index)
    number = int(again[0].architecture.arch_id, 16)
    rows = boards.Rows(index, board)
    member = rows.members([number])[number]
    few = rows.processes([number], boards.MOST_PROCESSES)[number]
    assert [one.spent_s for one in few] == sorted({one.spent_s for one in few})
    assert len(few) == boards.MOST_PROCESSES
    assert few[-1].spent_s > 600
    index.close()
    value = member.to_json()["objectives"]["decode_latency_s"]
    medians = [one.to_json()["objectives"]["decode_latency_s"]["median"] for one in again]
    assert value["median"] == pytest.approx(np.median(medians))
    assert value["pi95"][0] < value["median"] < value["pi95"][1]
    assert member.n_processes == 80


def test_of_a_large_frontier_a_comparison_has_as_many_as_it_may_and_those_that_cost_least_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_run(n=40)
    a_run(OTHER, n=40, protocol=Protocol(threads=2))
    index, _ = updated()
    board = boards.boards_of(index)[0]
    rows = boards.Rows(index, board)
    everything = rows.undominated()
    assert boards.side_of(index, board).notes == []
    fewer = rows.undominated(len(everything) - 3)
    assert len(fewer) == len(everything) - 3
    assert fewer == [number for number in everything if number in fewer]
    assert {fewer[0], fewer[-1]} == {everything[0], everything[-1]}
    monkeypatch.setattr(boards, "MOST_MEMBERS", 5)
    sides = [boards.side_of(index, one) for one in boards.boards_of(index)]
    assert [len(side.members) for side in sides] == [5, 5]
    assert f"has {len(everything)} members, of which 5 are compared" in sides[0].notes[0]
    shared = sides[0].shared_ids(sides[1], 7)
    assert shared == sorted(sides[0].measured_ids() & sides[1].measured_ids())[:7]
    assert len(shared) == 7
    data = compare_sides(sides, across=["threads"], n_levels=2)
    assert sides[0].notes[0] in data["groups"][0]["warnings"]
    index.close()


def test_what_costs_least_at_its_size_is_kept_before_what_does_not() -> None:
    size = np.arange(12.0)
    is_best = size % 3 == 0
    table = np.column_stack([size, np.where(is_best, 12 - size, 30.0), np.full(12, 5.0)])
    assert [boards._most_telling(table, n).tolist() for n in (3, 4, 6)] == [
        [0, 6, 9],
        [0, 3, 6, 9],
        [0, 1, 3, 6, 9, 11],
    ]


def test_an_overview_for_a_table_works_out_the_ends_alone() -> None:
    a_run(n=40)
    index, _ = updated()
    [board] = boards.boards_of(index)
    whole, ends = (boards.overview(index, board, is_whole=is_whole) for is_whole in (True, False))
    index.close()
    assert whole["n_members"] == len(whole["frontier"]) == ends["n_members"] > 2
    assert ends["frontier"] == [whole["frontier"][0], whole["frontier"][-1]]

"""What a report shows where it was measured: energy and its meter, one thread, dispatch, members that hardly belong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts.records import Protocol
from edge_lts_host import store
from edge_lts_host.cli import main
from edge_lts_host.report import compare, energy, pages, single
from edge_lts_host.report.decode_time import rank_changes
from edge_lts_host.store import RunFolder
from tests.unit.host.sample_runs import architecture, change_evaluations, evaluation, observed, write_run

RUN = "20261122-101530-rpi5-ab12"
OLD = Path(__file__).resolve().parents[2] / "data" / "runs"
FRAMEWORK = {
    "width8_decode_s": 1e-4,
    "dispatch_share": 0.34,
    "stream_bytes_per_s": 8e9,
    "bytes_per_token": 2e6,
    "bandwidth_floor_s": 0.00025,
}
METER = {"meter": "pi5-pmic", "scope": "soc-rails", "idle_w": 2.4, "busy_w": 6.1, "n_tokens": 900, "window_s": 10.0}


def value(median: float, width: float = 0.01) -> dict[str, Any]:
    ci95 = [median * (1 - width), median * (1 + width)]
    return {"median": median, "mad": None, "ci95": ci95, "pi95": None, "n": 10}


@pytest.fixture
def report() -> dict[str, Any]:
    return compare.build_report([RunFolder(write_run(store.runs_root(), RUN))])


def entries_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report["runs"][0]["frontier"]
    return found


def table_of(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a title, headings first."""
    lines = text[text.index(title) :].splitlines()[2:]
    rows = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows if not row.startswith("---")]


# --- one thread ---


def entry(arch_id: str, usual: float, one: float | None, width: float = 0.01) -> dict[str, Any]:
    return {
        "arch_id": arch_id,
        "objectives": {"decode_latency_s": value(usual, width)},
        "one_thread": {} if one is None else {"decode_latency_s": value(one, width)},
        "flags": [],
    }


def test_pairs_that_swap_on_one_thread_are_found() -> None:
    entries = [entry("a", 1.0, 3.0), entry("b", 2.0, 2.5), entry("c", 3.0, 4.0), entry("d", 0.5, None)]
    assert rank_changes(entries) == {"decode_latency_s": {"n_members": 3, "pairs": [["b", "a"]]}}
    assert rank_changes(entries[:1]) == {}
    assert rank_changes([]) == {}


@pytest.mark.parametrize(("usual", "one"), [((1.0, 1.01), (3.0, 2.5)), ((1.0, 2.0), (3.0, 2.99))])
def test_intervals_that_overlap_make_no_pair(usual: tuple[float, float], one: tuple[float, float]) -> None:
    entries = [entry("a", usual[0], one[0]), entry("b", usual[1], one[1])]
    assert rank_changes(entries)["decode_latency_s"]["pairs"] == []
    for item in entries:  # without intervals the medians decide
        for measured in (*item["objectives"].values(), *item["one_thread"].values()):
            measured["ci95"] = None
    assert rank_changes(entries)["decode_latency_s"]["pairs"] == [["b", "a"]]


def test_a_second_table_shows_how_the_decode_time_is_spent(report: dict[str, Any]) -> None:
    run, entries = report["runs"][0], entries_of(report)
    first, second, third, last = (item["arch_id"] for item in entries)
    for item, one in zip(entries, (0.002, 0.0055, 0.0054, None), strict=True):
        item["one_thread"] = {} if one is None else {"decode_latency_s": value(one, 0.001)}
        item["framework"] = {} if item is entries[1] else FRAMEWORK
    entries[0]["flags"] = ["framework_bound"]
    entries[1]["objectives"]["decode_latency_s"]["pi95"] = [0.00144, 0.00167]
    run["rank_changes"] = rank_changes(entries)
    text = pages.report(report, "table")
    headings, *rows = table_of(text, "How the decode time is spent")
    assert headings == ["arch_id", "decode ms", "1 thread ms", "floor ms", "dispatch"]
    assert rows == [
        [first, "0.577 (0.573, 0.581)", "2.00 (2.00, 2.00)", "0.25", "34%"],
        [second, "1.55 [1.44, 1.67]", "5.50 (5.49, 5.51)", "-", "-"],
        [third, "2.91 (2.89, 2.93)", "5.40 (5.39, 5.41)", "0.25", "34%"],
        [last, "4.67 (4.63, 4.70)", "-", "0.25", "34%"],
    ]
    assert (
        f"\n- at one thread 2 of 3 members would rank differently by decode latency: {third} before {second}\n" in text
    )
    assert "\n- 1 of 4 members is bound by the framework: a runtime in C would be faster there\n" in text
    assert "dispatch: share of a token" in text
    cut = pages.report(report, "table", 2)
    assert len(table_of(cut, "How the decode time is spent")) == 3
    page = pages.report(report, "md")
    assert "\n\n#### How the decode time is spent\n\n| arch_id" in page
    assert f"\n- at one thread 2 of 3 members would rank differently by decode latency: {third} before" in page


def test_the_second_table_has_only_the_columns_that_were_measured(report: dict[str, Any]) -> None:
    run, entries = report["runs"][0], entries_of(report)
    for item in entries:
        item["one_thread"] = {"decode_latency_s": value(item["objectives"]["decode_latency_s"]["median"] * 3)}
    run["rank_changes"] = rank_changes(entries)
    text = pages.report(report, "table")
    assert table_of(text, "How the decode time")[0] == ["arch_id", "decode ms", "1 thread ms"]
    assert "\n- at one thread the 4 members rank by decode latency as they do at 4\n" in text
    assert "dispatch" not in text
    run["is_emulated"] = True
    headings = table_of(pages.report(report, "table"), "How the decode time")[0]
    assert headings == ["arch_id", "decode ms (emulated)", "1 thread ms (emulated)"]


def test_long_lists_of_pairs_are_cut_after_three(report: dict[str, Any]) -> None:
    run, entries = report["runs"][0], entries_of(report)
    for rank, item in enumerate(entries):
        item["one_thread"] = {"decode_latency_s": value(0.1 - 0.01 * rank)}
        item["one_thread"]["prefill_latency_s"] = value(0.1 + 0.01 * rank, 0.001)
    run["rank_changes"] = rank_changes(entries)
    text = pages.report(report, "table")
    assert "at one thread 4 of 4 members would rank differently by decode latency: " in text
    [named] = [line for line in text.splitlines() if line.startswith("- at one thread")]
    assert named.count(" before ") == 3
    assert named.endswith(" and 3 more")
    assert "prefill latency" not in text  # nothing changes there


def test_nothing_of_this_appears_where_nothing_was_measured(report: dict[str, Any]) -> None:
    text = pages.report(report, "table") + pages.report(report, "md")
    for words in ("How the decode time", "one thread", "dispatch", "energy mJ", "~", "health"):
        assert words not in text


def test_one_thread_and_framework_come_from_the_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(store.runs_root(), RUN)

    def confirmed(record: dict[str, Any]) -> None:
        if record["purpose"] == "confirm":
            record["conditions"]["framework"] = FRAMEWORK

    change_evaluations(folder, confirmed)
    ledger = folder / "ledger.jsonl"
    last = json.loads(ledger.read_text().splitlines()[-1])
    assert last["purpose"] == "confirm"
    last["purpose"] = "one_thread"
    last["objectives"] |= {"decode_latency_s": value(0.004), "prefill_latency_s": value(0.1)}
    ledger.write_text(ledger.read_text() + json.dumps(last) + "\n")
    assert main(["report", "-o", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["one_thread_decode_latency_s"] for row in rows] == ["", "0.004", "", ""]
    assert [row["dispatch_share"] for row in rows] == ["", "0.34", "", ""]
    assert main(["report"]) == 0
    assert "\n7725f1c2b0be  1.55 " in capsys.readouterr().out.partition("How the decode time is spent")[2]


@pytest.mark.parametrize(
    "conditions",
    [
        {"framework": {"dispatch_share": float("nan"), "bandwidth_floor_s": "x"}, "one_thread": 3},
        {"framework": [1], "one_thread": {}},
        {"framework": {"dispatch_share": True}, "energy": {"meter": 3, "scope": [], "idle_w": float("inf")}},
    ],
)
def test_what_a_strange_board_says_of_them_breaks_nothing(
    capsys: pytest.CaptureFixture[str], conditions: dict[str, Any]
) -> None:
    folder = write_run(store.runs_root(), RUN)

    def change(record: dict[str, Any]) -> None:
        record["conditions"].update(conditions)
        record["objectives"]["energy_j_per_token"] = value(0.01)

    change_evaluations(folder, change)
    for output in ("table", "md", "csv", "json", "jsonl"):
        assert main(["report", "-o", output]) == 0
        assert "nan" not in capsys.readouterr().out


# --- probably dominated, precision, heat ---


def test_a_member_that_is_only_probably_dominated_is_marked(report: dict[str, Any]) -> None:
    entries = entries_of(report)
    entries[1]["probably_dominated"] = True
    for output in ("table", "md"):
        text = pages.report(report, output)
        assert f"~{entries[1]['arch_id']} " in text
        assert text.count("~") == 3  # in both tables and the legend
        assert "\n~: dominated by the medians, but with less than 95 %" in text
    rows = list(csv.DictReader(io.StringIO(pages.report(report, "csv"))))
    assert [row["probably_dominated"] for row in rows] == ["false", "true", "false", "false"]
    assert rows[1]["arch_id"] == entries[1]["arch_id"]


def test_precision_and_sustained_heat_stand_in_the_heading() -> None:
    write_run(store.runs_root(), RUN, protocol=Protocol(precision="int8-qnnpack", heat="sustained"))
    text = pages.report(compare.build_report([store.resolve(RUN)]), "table")
    assert "4 threads, int8-qnnpack, sustained heat, method 2" in text
    rows = pages.report(compare.build_report([store.resolve(RUN)]), "csv")
    assert next(csv.DictReader(io.StringIO(rows)))["protocol_heat"] == "sustained"


def test_runs_of_other_precision_or_heat_stand_apart() -> None:
    ids = [f"2026112{day}-101530-rpi5-ab12" for day in (2, 3, 4)]
    for run_id, changes in zip(ids, ({}, {"heat": "sustained"}, {"precision": "bfloat16"}), strict=True):
        write_run(store.runs_root(), run_id, protocol=Protocol(**changes))
    assert compare.build_report(store.list_runs())["comparable"] == [[run_id] for run_id in ids]


def test_a_precision_that_is_a_gene_has_a_column_and_counts_in_the_bytes() -> None:
    folder = write_run(store.runs_root(), RUN)
    plain = entries_of(compare.build_report([RunFolder(folder)]))[-1]
    ledger = folder / "ledger.jsonl"
    small = evaluation(9, architecture(4, 256, 1024).replace(precision="int8-qnnpack"), scale=0.5)
    ledger.write_text(ledger.read_text() + json.dumps(small.to_json()) + "\n")
    report = compare.build_report([RunFolder(folder)])
    [found] = [item for item in entries_of(report) if item["architecture"].get("precision")]
    assert found["split"]["bytes"]["cache"] == plain["split"]["bytes"]["cache"]  # stays float32
    assert 0.24 < found["split"]["bytes"]["decoder"] / plain["split"]["bytes"]["decoder"] < 0.26
    text = pages.report(report, "table")
    assert "  precision  " in text
    assert "  int8-qnnpack  " in text
    rows = list(csv.DictReader(io.StringIO(pages.report(report, "csv"))))
    assert {row["precision"] for row in rows} == {"float32", "int8-qnnpack"}
    assert {row["protocol_precision"] for row in rows} == {"float32"}


# --- energy ---


def with_energy(record: dict[str, Any]) -> None:
    record["objectives"]["energy_j_per_token"] = value(0.0123)
    record["conditions"]["energy"] = METER


def test_energy_of_a_meter_on_the_board_has_a_column_and_says_what_it_covers() -> None:
    folder = write_run(store.runs_root(), RUN)
    change_evaluations(folder, with_energy)
    report = compare.build_report([RunFolder(folder)])
    assert report["runs"][0]["energy"] == [
        {"meter": "pi5-pmic", "scope": "soc-rails", "where": "board", "idle_w": 2.4, "n_members": 4}
    ]
    assert entries_of(report)[0]["energy"] == {
        "meter": "pi5-pmic",
        "scope": "soc-rails",
        "where": "board",
        "idle_w": 2.4,
    }
    text = pages.report(report, "table")
    assert "  energy mJ/token\n" in text
    assert "12.3 (12.2, 12.4)" in text
    assert (
        "\n- energy: pi5-pmic on the board, measures the SoC's rails, not what hangs on the board's 5 V; "
        "2.4 W of idling subtracted\n" in text
    )
    row = next(csv.DictReader(io.StringIO(pages.report(report, "csv"))))
    assert (row["energy_j_per_token"], row["energy_meter"], row["energy_scope"]) == ("0.0123", "pi5-pmic", "soc-rails")
    report["runs"][0]["is_emulated"] = True
    assert "energy mJ/token (emulated)" in pages.report(report, "table")


def test_a_meter_on_the_workstation_fills_in_what_the_board_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(store.runs_root(), RUN)
    plain = compare.build_report([RunFolder(folder)])
    ids = [item["arch_id"] for item in entries_of(plain)]

    def only_the_first(record: dict[str, Any]) -> None:
        if record["arch_id"] == ids[0]:
            with_energy(record)

    change_evaluations(folder, only_the_first)
    other = {"meter": "um25c", "scope": "board-input", "n_windows": 3}
    values = {
        ids[0]: {"value": value(9.0), "idle_w": 1.0, **other},
        ids[1]: {"value": value(0.02), "idle_w": 2.0, **other},
        ids[2]: {"value": value(0.03), "idle_w": 3.0, **other},
        "of no member": {"value": value(1.0), "idle_w": 9.0, **other},
    }
    monkeypatch.setattr(compare, "workstation_values", lambda run: (values, {"too_few_readings": 2, "silent": 1}))
    report = compare.build_report([RunFolder(folder)])
    entries = entries_of(report)
    found = [item["objectives"].get("energy_j_per_token") for item in entries]
    assert found == [value(0.0123), value(0.02), value(0.03), None]
    assert [item["energy"] and item["energy"]["where"] for item in entries] == [
        "board",
        "workstation",
        "workstation",
        None,
    ]
    assert report["runs"][0]["energy"] == [
        {"meter": "pi5-pmic", "scope": "soc-rails", "where": "board", "idle_w": 2.4, "n_members": 1},
        {"meter": "um25c", "scope": "board-input", "where": "workstation", "idle_w": 2.5, "n_members": 2},
    ]
    text = pages.report(report, "table")
    assert "\n- energy: um25c on the workstation, measures the board's input; 2.5 W of idling subtracted\n" in text
    assert "- energy: the workstation's meter gave no value for 3 records (1 silent, 2 too few readings)\n" in text
    assert [item["arch_id"] for item in entries] == ids  # who is a member does not depend on it


def test_without_a_recording_there_is_nothing_to_add() -> None:
    assert energy.workstation_values(RunFolder(write_run(store.runs_root(), RUN))) == ({}, {})


# --- one measurement ---


def record_of(**conditions: Any) -> dict[str, Any]:
    record = evaluation(0, architecture(4, 64, 256), purpose="single", flags=("contended",)).to_json()
    record["conditions"].update(conditions)
    return json.loads(json.dumps(record))  # type: ignore[no-any-return]


def test_measure_shows_one_thread_floor_dispatch_health_and_meter() -> None:
    record = record_of(**observed(), framework=FRAMEWORK, one_thread={"decode_latency_s": value(0.002)}, energy=METER)
    record["objectives"]["energy_j_per_token"] = value(0.0123)
    rows = dict(line.split("  ", 1) for line in single.page(record, "table").splitlines())
    shown = {name.strip(): text.strip() for name, text in rows.items()}
    assert shown["decode"] == "0.577 (0.573, 0.581) ms"
    assert shown["decode, 1 thread"] == "2.00 (1.98, 2.02) ms"
    assert shown["decode floor"] == "0.25 ms"
    assert shown["dispatch"] == "34%"
    assert shown["energy"] == "12.3 (12.2, 12.4) mJ/token"
    assert shown["health"].startswith("90% of 20 samples undisturbed (2 shared its cores), 2 taken again; 71 C at most")
    assert shown["meter"].startswith("pi5-pmic on the board, measures the SoC's rails")
    assert shown["flags"] == "shared its cores"
    assert single.page(record, "md").count("|") > 20


def test_measure_as_json_is_the_record_and_as_csv_its_values_in_columns() -> None:
    record = record_of(framework=FRAMEWORK, one_thread={"decode_latency_s": value(0.002)})
    assert json.loads(single.page(record, "json")) == json.loads(single.page(record, "jsonl")) == record
    [row] = csv.DictReader(io.StringIO(single.page(record, "csv")))
    assert row["decode_latency_s"] == repr(record["objectives"]["decode_latency_s"]["median"])
    assert row["one_thread_decode_latency_s_ci95_low"] == repr(0.002 * 0.99)
    assert (row["dispatch_share"], row["bandwidth_floor_s"], row["flags"]) == ("0.34", "0.00025", "contended")


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "jsonl"])
@pytest.mark.parametrize(
    "conditions",
    [{}, {"quality": 3, "health": "x", "one_thread": 7, "framework": [1], "energy": False}, {"framework": {}}],
)
def test_measure_of_before_all_this_or_of_a_strange_board_still_reads(output: str, conditions: dict[str, Any]) -> None:
    text = single.page(record_of(**conditions), output)
    assert "decode" in text
    assert "health" not in text or output in ("json", "jsonl")


def test_a_failure_still_has_a_page() -> None:
    failure = {"kind": "failure", "arch_id": "a" * 12, "error": {"kind": "oom", "message": "out of memory"}}
    assert "a" * 12 in single.page(failure, "table")


def test_the_kept_runs_of_method_1_are_still_read(capsys: pytest.CaptureFixture[str]) -> None:
    show: Callable[[list[str]], int] = main
    assert show(["report", *map(str, sorted(OLD.iterdir())), "-o", "json"]) == 0
    for run in json.loads(capsys.readouterr().out)["runs"]:
        assert (run["quality"], run["energy"], run["rank_changes"]) == (None, [], {})
        assert run["protocol"]["method_version"] == 1

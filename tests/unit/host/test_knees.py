"""Knee points, and which members a report shows in which order: `--sort`, `--filter`."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.objectives import resolve_objectives
from edge_lts_host import store
from edge_lts_host.errors import UsageError
from edge_lts_host.report import pages, selection
from edge_lts_host.report.knees import MIN_MEMBERS, knees
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import write_run

RUN = "20261122-101530-rpi5-ab12"
AXES = resolve_objectives(["decoder_params", "decode_latency_s"])


def member(
    arch_id: str, params: int, decode_s: float | None, width: float | None = None, **changes: Any
) -> dict[str, Any]:
    pi95 = None if width is None or decode_s is None else [decode_s / (1 + width), decode_s * (1 + width)]
    value = None if decode_s is None else {"median": decode_s, "ci95": None, "pi95": pi95, "n": 30}
    return {
        "arch_id": arch_id,
        "architecture": {
            "d_model": params,
            "d_embed": params,
            "vocab_size": 4096,
            "layers": [{"n_head": 2, "d_inner": 64}, {"n_head": 4, "d_inner": 32}],
        },
        "objectives": {"decoder_params": params, "decode_latency_s": value},
        "flags": [],
        "n_processes": 3,
        "probably_dominated": False,
        **changes,
    }


def bent(width: float | None = 0.01, at: int = 3) -> list[dict[str, Any]]:
    """Seven members that cost half as much as their size grows, up to `at`, and then three times as much."""
    entries, decode_s = [], 0.001
    for index in range(7):
        entries.append(member(f"m{index}", 1000 * 2**index, decode_s, width))
        decode_s *= 2**0.5 if index < at else 2**3
    return entries


def test_the_knee_is_where_size_begins_to_cost_more() -> None:
    [found] = knees(bent(), AXES, None)
    assert (found["objective"], found["quality"], found["arch_id"]) == ("decode_latency_s", "decoder_params", "m3")
    assert found["before"] == pytest.approx(0.5)
    assert found["after"] == pytest.approx(3.0)
    assert found["stability"] == 1.0


@pytest.mark.parametrize("at", [1, 2, 4, 5])
def test_it_moves_with_the_bend(at: int) -> None:
    [found] = knees(bent(at=at), AXES, None)
    assert found["arch_id"] == f"m{at}"


def test_a_straight_frontier_and_a_small_one_have_none() -> None:
    straight = [member(f"m{index}", 1000 * 2**index, 0.001 * 2**index) for index in range(9)]
    assert knees(straight, AXES, None) == []
    assert knees(bent()[: MIN_MEMBERS - 1], AXES, None) == []
    assert knees([], AXES, None) == []
    assert knees([member("a", 10, None)] * 9, AXES, None) == []


def test_a_knee_that_noise_could_have_made_is_not_called_firm() -> None:
    [firm], [loose] = knees(bent(0.02), AXES, None), knees(bent(3.0), AXES, None)
    assert firm["stability"] == 1.0
    assert loose["stability"] < 0.8
    [unknown] = knees(bent(None), AXES, None)
    assert unknown["stability"] is None


def test_members_that_hardly_belong_and_those_beaten_on_that_cost_make_no_knee() -> None:
    entries = bent()
    lucky = member("lucky", 7800, 0.0011, 0.01, probably_dominated=True)
    beaten = member("beaten", 5000, 0.01, 0.01)
    [found] = knees([*entries, lucky, beaten], AXES, None)
    assert found["arch_id"] == "m3"
    [found] = knees([*entries, {**lucky, "probably_dominated": False}], AXES, None)
    assert found["arch_id"] == "lucky"


def report_of(entries: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    run = {"run_id": RUN, "spec": {}, "frontier": entries, "knees": knees(entries, AXES, None), **changes}
    return {"runs": [run], "comparable": [[RUN]]}


def chosen(entries: list[dict[str, Any]], *filters: str, order: str | None = None, **changes: Any) -> list[str]:
    [run] = selection.select(report_of(entries, **changes), filters, order)["runs"]
    return [entry["arch_id"] for entry in run["frontier"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decode<=2.1ms", ["m0", "m1", "m2"]),
        ("decode <= 0.0021", ["m0", "m1", "m2"]),
        ("decode_latency_s>100ms", ["m5", "m6"]),
        ("decoder>=32k", ["m5", "m6"]),
        ("params=1000", ["m0"]),
        ("params!=1k", ["m1", "m2", "m3", "m4", "m5", "m6"]),
        ("d_model<3000", ["m0", "m1"]),
        ("layers==2", [f"m{index}" for index in range(7)]),
        ("layers>2", []),
        ("n_head>=4", [f"m{index}" for index in range(7)]),
        ("d_inner>64", []),
        ("processes>=4", []),
        ("knee", ["m3"]),
        ("sure", ["m0", "m1", "m2", "m3", "m4", "m5"]),
        ("undisturbed", ["m1", "m2", "m3", "m4", "m5", "m6"]),
        ("confirmed", [f"m{index}" for index in range(7)]),
        ("peak<1GiB", []),  # not measured: no filter lets it in
    ],
)
def test_a_filter_leaves_those_for_which_it_holds(text: str, expected: list[str]) -> None:
    entries = bent()
    entries[0]["flags"] = ["noisy", "framework_bound"]
    entries[1]["flags"] = ["framework_bound"]
    entries[6]["probably_dominated"] = True
    assert chosen(entries, text) == expected


def test_filters_all_hold_and_order_is_that_of_a_name() -> None:
    entries = bent()
    assert chosen(entries, "decode>1ms", "params<16k") == ["m1", "m2", "m3"]
    assert chosen(entries, "params<4k", order="decode:desc") == ["m1", "m0"]
    lacking = [*entries[:2], member("none", 5, None), *entries[2:]]
    assert chosen(lacking, order="decode:desc")[-1] == "none"
    assert chosen(lacking, order="decode")[-1] == "none"
    assert chosen(lacking, order="d_model")[0] == "none"


def test_the_objective_of_a_command_can_be_named_too() -> None:
    entries = bent()
    for index, entry in enumerate(entries):
        entry["objectives"]["score"] = {"median": 10 - index, "ci95": None, "pi95": None, "n": 1}
    spec = {"commands": [{"name": "score", "direction": "max", "command": "./score"}]}
    assert chosen(entries, "score>8", order="score", spec=spec) == ["m1", "m0"]


@pytest.mark.parametrize(
    ("filters", "order", "words"),
    [
        (["speed<3"], None, "--filter: 'speed' is no column"),
        (["decode"], None, "is neither NAME<=VALUE"),
        (["decode<=fast"], None, "--filter decode_latency_s: 'fast' is no duration"),
        (["peak<=2ms"], None, "--filter peak_memory_bytes: '2ms' is no size"),
        (["params<x"], None, "is no number of parameters"),
        (["energy<3kWh"], None, "is no energy"),
        (["layers<nan"], None, "is no number"),
        ([], "speed", "--sort: 'speed' is no column"),
        ([], "decode:down", "must end with :asc or :desc"),
    ],
)
def test_what_cannot_be_meant_is_refused_even_without_runs(filters: list[str], order: str | None, words: str) -> None:
    for report in (report_of([]), report_of(bent()), {"runs": []}):
        with pytest.raises(UsageError, match="--") as caught:
            selection.select(report, filters, order)
        assert words in str(caught.value)


REPORT = report_of(bent())


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        selection.select(REPORT, [text], None)
    except UsageError as error:
        assert str(error).startswith("--filter")


def test_the_report_names_knees_and_says_what_was_selected(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    text = run("report", "--filter", "decode<4ms", "--filter", "layers=4", "--sort", "peak:desc")
    assert "3 of 4 members with decode<4ms and layers=4, sorted by peak:desc" in text
    assert "- d_head: 1 of 4 members is below 32" in text  # what is said of the frontier is said of all of it
    found = json.loads(run("report", "--filter", "decode<4ms", "--sort", "decode:desc", "-o", "json"))["runs"][0]
    assert found["selection"] == {"filters": ["decode<4ms"], "sort": "decode:desc", "n_frontier": 4}
    medians = [entry["objectives"]["decode_latency_s"]["median"] for entry in found["frontier"]]
    assert medians == sorted(medians, reverse=True)
    assert len(medians) == 3
    rows = list(csv.DictReader(io.StringIO(run("report", "--filter", "decode<4ms", "-o", "csv"))))
    assert len(rows) == 3
    assert "selection" not in json.loads(run("report", "-o", "json"))["runs"][0]
    assert "No member of the frontier is left." in run("report", "--filter", "layers>90")
    assert "is no column" in run("report", "--filter", "speed<3", status=2)
    assert "--cost-model has no" in run("report", "--cost-model", "--sort", "decode", status=2)


def test_a_knee_is_always_in_the_table_marked_and_put_into_words(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    report = json.loads(run("report", "-o", "json"))
    [entry] = report["runs"]
    third = entry["frontier"][2]["arch_id"]
    knee = {"objective": "decode_latency_s", "quality": "decoder_params", "arch_id": third, "height": 0.2}
    entry["knees"] = [{**knee, "stability": 0.9, "before": 0.5, "after": 3.04}]
    text = pages.report(report, "table", 2)
    [row] = [line for line in text.splitlines() if line.startswith(third) and "knee (decode)" in line]
    assert row.split()[-2:] == ["knee", "(decode)"]
    assert (
        f"- knee by decode: {third}, 4 x 192, ffn 768-960, heads 4; one percent more decoder costs 0.5 % more" in text
    )
    assert "3 % beyond it; drawn anew within the intervals, it stays within 10 % of this in 90% of cases" in text
    rows = list(csv.DictReader(io.StringIO(pages.report(report, "csv"))))
    assert [row["knee"] for row in rows] == ["", "", "decode_latency_s", ""]


def test_a_flag_that_all_members_have_is_said_once(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    report = json.loads(run("report", "-o", "json"))
    for entry in report["runs"][0]["frontier"]:
        entry["flags"] = ["emulated_precision"]
    report["runs"][0]["frontier"][0]["flags"] = ["emulated_precision", "noisy"]
    text = pages.report(report, "table")
    assert text.count("precision emulated by this CPU") == 1
    assert "- every member: precision emulated by this CPU\n" in text
    assert text.count("noisy timings") == 1

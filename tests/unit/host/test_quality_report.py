"""Runs ranked by a calibrated proxy, as they are shown, compared and decided on; and `run --proxy` before it starts."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture
from edge_lts.estimating import estimate
from edge_lts.objectives import DEFAULT_OBJECTIVES, PROXY_OBJECTIVES, QUALITY
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts.records import Evaluation
from edge_lts_host import api, store
from edge_lts_host.report import along
from edge_lts_host.report.points import drawn_together
from edge_lts_host.report.proxy import LEGEND
from edge_lts_host.report.sides import load_sides, shared_axes, side_of
from edge_lts_host.store import RunFolder
from tests.calibrated import proxy
from tests.support import require
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import change_evaluations, write_run
from tests.unit.host.test_baselines import LARGER, SMALLER, beside, slow

JUDGE = proxy()


def judged(run_id: str, judge: CalibratedProxy = JUDGE, lines: Sequence[Evaluation] = (), **changes: Any) -> Path:
    """A run by that proxy with further `lines`, all records with what the proxy says."""
    settings = {"objectives": PROXY_OBJECTIVES, "proxy": judge.to_json(), **changes}
    folder = write_run(store.runs_root(), run_id, **settings)
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write("".join(json.dumps(line.to_json()) + "\n" for line in lines))

    def add(record: dict[str, Any]) -> None:
        found = estimate(judge, Architecture.from_json(record["architecture"]))
        value = None if found is None else found.to_json()
        record["objectives"] = {QUALITY: value, **record["objectives"]}

    change_evaluations(folder, add)
    return folder


def reported(run: Run, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("report", *words, "-o", "json"))["runs"][0]
    return found


# Reports --------------------------------------------------------------------------------------------------------------


def test_a_report_says_which_proxy_ranked_and_shows_quality_with_its_interval(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    data, text = reported(run), run("report")
    assert data["proxy"] == {
        "name": "16 of panel.csv",
        "digest": JUDGE.digest,
        "unit": "nats/token",
        "backbone": "gpt2",
    }
    assert data["spec"]["proxy"] == JUDGE.to_json()
    lows = [member["objectives"][QUALITY]["low"] for member in data["frontier"]]
    assert lows == sorted(lows)  # along the run's first objective
    value = data["frontier"][0]["objectives"][QUALITY]
    assert f"{value['mean']:.3f} {{{value['low']:.3f}, {value['high']:.3f}}}" in text
    assert "quality nats" in text
    assert f"16 of panel.csv ({JUDGE.digest}), nats per token, gpt2" in text
    assert LEGEND.splitlines()[0] in text
    for output in ("md", "html", "latex"):
        assert JUDGE.digest in run("report", "-o", output)


def test_members_beyond_the_labels_are_marked(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    data, text = reported(run), run("report")
    beyond = [one["arch_id"] for one in data["frontier"] if one["objectives"][QUALITY]["is_extrapolated"]]
    assert beyond
    (note,) = (note for note in data["health"] if note["kind"] == "extrapolated")
    assert set(note["members"]) <= set(beyond)
    assert "beyond everything that the proxy was calibrated on" in text
    assert text.count("beyond the labels") == len(beyond)
    assert not any(note["kind"] == "unvalidated" and note["rule"] == "decoder_params" for note in data["health"])


def test_a_run_without_a_proxy_has_no_word_of_it(run: Run) -> None:
    write_run(store.runs_root(), "20261122-101530-rpi5-ab12")
    assert reported(run)["proxy"] is None
    assert "quality nats" not in run("report")
    assert QUALITY not in next(csv.reader(io.StringIO(run("report", "-o", "csv"))))


def test_csv_has_the_bound_that_members_are_compared_by_and_the_interval(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    members = reported(run)["frontier"]
    rows = list(csv.DictReader(io.StringIO(run("report", "-o", "csv"))))
    for row, member in zip(rows, members, strict=True):
        value = member["objectives"][QUALITY]
        assert float(row[QUALITY]) == value["low"]
        assert [float(row[f"quality_{key}"]) for key in ("mean", "high")] == [value["mean"], value["high"]]
        assert row["quality_is_extrapolated"] == str(value["is_extrapolated"]).lower()
        assert float(row["decoder_params"]) == member["objectives"]["decoder_params"]
    assert [row[QUALITY] for row in api.frontier()] == [member["objectives"][QUALITY]["low"] for member in members]


def test_members_are_filtered_and_sorted_by_the_lower_bound(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    lows = sorted(member["objectives"][QUALITY]["low"] for member in reported(run)["frontier"])
    kept = reported(run, "--filter", f"quality>={lows[1]}", "--sort", "quality:desc")["frontier"]
    assert [member["objectives"][QUALITY]["low"] for member in kept] == lows[:0:-1]


def test_html_and_progress_take_negative_logarithms_as_they_are(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    page = run("report", "-o", "html")
    assert '"quality":{"name":"quality","label":"quality nats"}' in page
    side = side_of(RunFolder(store.runs_root() / "20261122-101530-rpi5-ab12"))
    (curve,) = along.hypervolumes([side], shared_axes([side]))
    assert curve["share"][-1] == pytest.approx(1.0)


# Comparisons ----------------------------------------------------------------------------------------------------------


def test_runs_by_one_proxy_are_compared_at_equal_quality(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    judged("20261122-101531-rpi5-cd34", scale=1.5)
    (group,) = json.loads(run("compare", "ab12", "cd34", "-o", "json"))["groups"]
    assert group["quality"] == QUALITY
    levels = [level["quality"] for level in group["levels"]]
    assert levels == sorted(levels)
    assert max(levels) < 0
    steps = [b - a for a, b in itertools.pairwise(levels)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert group["hypervolume"]["axes"] == list(PROXY_OBJECTIVES)
    assert group["hypervolume"]["reference"][QUALITY] < min(levels)
    shares = [one["share"] for one in group["hypervolume"]["runs"]]
    assert shares[0] > shares[1] > 0
    assert "quality nats" in run("compare", "ab12", "cd34")


@pytest.mark.parametrize("other", ["another proxy", "no proxy"])
def test_runs_by_different_proxies_are_not_compared_on_quality(run: Run, other: str) -> None:
    judged("20261122-101530-rpi5-ab12")
    if other == "no proxy":
        write_run(store.runs_root(), "20261122-101531-rpi5-cd34")
    else:
        judged("20261122-101531-rpi5-cd34", proxy(heads=0.1, name="other labels"))
    data = json.loads(run("compare", "ab12", "cd34", "-o", "json"))
    (group,) = data["groups"]
    assert QUALITY not in group["axes"]
    assert (group["quality"], group["levels"], group["hypervolume"]) == (None, [], None)
    assert any("ranked architectures differently" in warning for warning in group["warnings"])
    text = run("compare", "ab12", "cd34")
    assert JUDGE.digest in text
    assert "nothing to be set side by side by" in text
    sides = load_sides(
        [RunFolder(store.runs_root() / one) for one in ("20261122-101530-rpi5-ab12", "20261122-101531-rpi5-cd34")]
    )
    assert [len(group) for group in drawn_together(sides)] == [1, 1]


def test_baselines_are_held_against_members_of_at_least_their_quality(run: Run) -> None:
    foreign = SMALLER.replace(backbone="opt")
    lines = [*slow(0, SMALLER, n=3), *slow(1, foreign, n=3), *slow(2, LARGER)]
    judged("20261122-101530-rpi5-ab12", lines=lines, baselines=beside("mine", SMALLER, foreign, LARGER))
    data = reported(run)
    found = data["baselines"]
    assert found["quality"] == QUALITY
    small, other, large = found["members"]
    wanted = small["objectives"][QUALITY]["low"]
    able = [one for one in data["frontier"] if one["objectives"][QUALITY]["low"] >= wanted]
    fastest = min(able, key=lambda one: float(one["objectives"]["decode_latency_s"]["median"]))
    assert small["rivals"]["decode_latency_s"]["arch_id"] == fastest["arch_id"]
    assert (other["objectives"][QUALITY], other["rivals"], other["nearest"]) == (None, {}, None)
    best = max(one["objectives"][QUALITY]["low"] for one in data["frontier"])
    assert large["nearest"]["quality_ratio"] is None
    assert large["nearest"]["quality_gap_nats"] == pytest.approx(large["objectives"][QUALITY]["low"] - best)
    text = run("report")
    assert "a member that is at least as good" in text
    assert "1 better than anything on the frontier" in text


def test_pictures_take_negative_logarithms_as_they_are(run: Run, tmp_path: Path) -> None:
    require("matplotlib", importlib.util.find_spec("matplotlib"), "pip install matplotlib")
    judged("20261122-101530-rpi5-ab12")
    run("report", "--plots", str(tmp_path / "pictures"))
    drawn = (tmp_path / "pictures" / "frontier-20261122-101530-rpi5-ab12.svg").read_text()
    assert "quality nats" in drawn


# Decisions ------------------------------------------------------------------------------------------------------------


def test_pick_takes_the_highest_lower_bound_and_says_by_whom(run: Run) -> None:
    judged("20261122-101530-rpi5-ab12")
    members = reported(run)["frontier"]
    data = json.loads(run("pick", "-o", "json"))
    best = max(members, key=lambda one: float(one["objectives"][QUALITY]["low"]))
    assert data["best"]["arch_id"] == best["arch_id"]
    assert data["ranked_by"] == {"name": QUALITY, "direction": "max", "proxy": reported(run)["proxy"]}
    assert {"kind": "calibrated", "unit": "nats/token"} in data["notes"]
    middle = sorted(one["objectives"]["decode_latency_s"]["median"] for one in members)[1]
    limited = json.loads(run("pick", "--max-decode-latency", f"{middle * 1e3}ms", "-o", "json"))
    (cost,) = limited["limits_cost"]
    its = limited["best"]["objectives"][QUALITY]["low"]
    assert cost["gain"] is None
    assert cost["gain_nats"] == pytest.approx(best["objectives"][QUALITY]["low"] - its)
    text = run("pick", "--max-decode-latency", f"{middle * 1e3}ms")
    assert "nats better by the proxy" in text
    assert f"highest lower bound of quality, by the proxy 16 of panel.csv ({JUDGE.digest})" in text
    rows = list(csv.DictReader(io.StringIO(run("pick", "-o", "csv"))))
    assert float(rows[0][QUALITY]) == best["objectives"][QUALITY]["low"]


def test_a_limit_on_quality_is_one_on_its_lower_bound() -> None:
    judged("20261122-101530-rpi5-ab12")
    lows = sorted(member["objectives"][QUALITY]["low"] for member in api.report()["runs"][0]["frontier"])
    data = api.pick(limits={QUALITY: (lows[1], None)})
    assert data["n_within"] == len(lows) - 1
    assert api.pick(limits={QUALITY: (0.0, None)})["best"] is None


# Every run ------------------------------------------------------------------------------------------------------------


def test_the_index_knows_quality_by_proxy_and_exports_it(run: Run, tmp_path: Path) -> None:
    judged("20261122-101530-rpi5-ab12")
    judged("20261122-101531-rpi5-cd34", proxy(heads=0.1))
    write_run(store.runs_root(), "20261122-101532-rpi5-ef56")
    member = api.report("ab12")["runs"][0]["frontier"][0]
    other = proxy(heads=0.1)
    arch = Architecture.from_json(member["architecture"])
    expected = sorted(
        ({"proxy": one.digest, "low": found.low} for one in (JUDGE, other) if (found := estimate(one, arch))),
        key=lambda item: str(item["proxy"]),
    )
    assert api.query(member["arch_id"])["quality"] == expected
    assert JUDGE.digest in run("bench", "query", member["arch_id"])
    rows = api.measurements()
    assert {row["proxy"] for row in rows} == {JUDGE.digest, other.digest, None}
    assert all((row[QUALITY] is None) == (row["proxy"] is None) for row in rows)
    path = tmp_path / "all.jsonl.gz"
    api.export_measurements(path)
    assert api.query(member["arch_id"], source=path)["quality"] == expected
    assert api.measurements(source=path) == rows


# Before a run starts --------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "proxy.json"
    path.write_text(json.dumps(JUDGE.to_json()))
    return str(path)


def planned(run: Run, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("run", "--target", "local", "--budget", "5m", "--space", "demo", "--dry-run", *words)
    )
    return found


def test_run_with_a_proxy_searches_quality_instead_of_size(run: Run, file: str) -> None:
    spec = planned(run, "--proxy", file)
    assert spec["objectives"] == list(PROXY_OBJECTIVES)
    assert spec["proxy"] == JUDGE.to_json()
    assert spec["strategy"] == "guided"
    chosen = planned(run, "--proxy", file, "--objectives", "quality,decoder_params,prefill_latency_s")
    assert chosen["objectives"] == ["quality", "decoder_params", "prefill_latency_s"]
    assert planned(run)["objectives"] == list(DEFAULT_OBJECTIVES)
    assert "proxy" not in planned(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "schema_version"),
        (json.dumps({**JUDGE.to_json(), "noise": -1}), "noise"),
        (json.dumps(proxy(backbone="opt").to_json()), "backbone opt, the space builds gpt2"),
        ("\udcff", "it is not JSON"),
    ],
)
def test_a_file_that_is_no_proxy_for_this_is_one_line_that_names_it(
    run: Run, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    error = run(
        "run", "--target", "local", "--budget", "5m", "--space", "demo", "--proxy", str(path), "--dry-run", status=2
    )
    assert str(path) in error
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_quality_without_a_proxy_says_what_to_do(run: Run, tmp_path: Path) -> None:
    error = run(
        "run",
        "--target",
        "local",
        "--budget",
        "5m",
        "--space",
        "demo",
        "--objectives",
        "quality,decode_latency_s",
        "--dry-run",
        status=2,
    )
    assert "run --proxy FILE" in error
    missing = tmp_path / "none.json"
    error = run("run", "--target", "local", "--budget", "5m", "--proxy", str(missing), "--space", "demo", status=2)
    assert "edge-lts calibrate writes one" in error


def test_a_proxy_of_unknown_backbone_is_taken_and_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proxy.json"
    path.write_text(json.dumps(proxy(backbone=None).to_json()))
    from edge_lts_host.cli import main

    words = ["run", "--target", "local", "--budget", "5m", "--space", "demo", "--proxy", str(path), "--dry-run"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["proxy"]["backbone"] is None
    assert "does not say which backbone" in captured.err
    assert math.isfinite(json.loads(captured.out)["proxy"]["noise"])

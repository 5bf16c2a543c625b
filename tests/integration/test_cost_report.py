"""`report --cost-model` over runs of a pretended board."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_lts import device
from edge_lts.arch import Architecture
from edge_lts.records import Measurement, Outcome
from edge_lts.speed import ANCHORS
from edge_lts_host.errors import UsageError
from edge_lts_host.report import compare, cost_model, pages
from edge_lts_host.store import RunFolder
from tests.fake_agent import Board, FakeMeasurer, evaluation, write_spec


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def finished_run(tmp_path: Path, strategy: str, n: int) -> RunFolder:
    folder = write_spec(tmp_path, strategy=strategy, max_candidates=n)
    Board(folder).run()
    return RunFolder(folder.path)


def test_a_guided_run_says_what_layers_cost_and_how_well_it_predicted(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "guided", 45)
    report = cost_model.cost_report(folder)
    n_searched = sum(outcome.purpose == "search" for outcome in folder.outcomes())
    assert n_searched > 30
    assert [model["cost"] for model in report["models"]] == ["decode_latency_s", "prefill_latency_s"]
    assert all(model["n_observations"] == n_searched for model in report["models"])
    origins = {(row["objective"], row["origin"]): row for row in report["errors"]}
    row = origins["decode_latency_s", "frontier"]
    assert row["n"] >= 8
    assert 0 <= row["median_error"] <= row["p90_error"]
    assert json.loads(cost_model.pages([report], "json"))["cost_models"] == [json.loads(json.dumps(report))]
    text = cost_model.pages([report], "table")
    assert "any size, layer: s per ffn" in text  # one regime: the fake board has no cache
    assert "Predicted before measuring" in text


def test_the_report_of_a_guided_run_certifies_its_frontier_and_says_how_the_speed_moved(tmp_path: Path) -> None:
    folder = write_spec(tmp_path, strategy="guided", max_candidates=40)
    board = Board(folder)

    def at_another_speed(measurer: FakeMeasurer, arch: Architecture, candidate_id: int) -> Outcome:
        """The machine slows down by half and recovers, again and again; the anchors say so."""
        n = len(measurer.measured)
        speed = 1 + 0.5 * (n % 8) / 8
        measured = evaluation(arch, candidate_id=candidate_id, process=n)
        values = {
            name: replace(value, median=value.median * speed, ci95=None)
            if isinstance(value, Measurement) and name.endswith("_s")
            else value
            for name, value in measured.objectives.items()
        }
        anchors = dict.fromkeys(ANCHORS, 1e-3 * speed)
        return replace(measured, objectives=values, conditions={**measured.conditions, "anchor_s": anchors})

    board.measurer.before = at_another_speed
    board.run()
    run = compare.report_run(RunFolder(folder.path))
    assert set(run["drift"]) == set(ANCHORS)
    moved = run["drift"]["stream_s"]["p90_s"] / run["drift"]["stream_s"]["p10_s"] - 1
    assert 0.25 < moved < 0.5
    (certificate,) = run["certificates"]
    assert certificate["objective"] == "decode_latency_s"
    assert len(certificate["shares"]) == sum(not member["probably_dominated"] for member in run["frontier"])
    assert 0 <= certificate["median_share"] <= certificate["largest_share"] < 1
    text = pages.report({"runs": [run], "comparable": [[run["run_id"]]]}, "table")
    assert "no architecture in this space is more than" in text
    assert f"streaming from memory {moved:.0%}" in text
    assert "predicted decode" in text


def test_any_strategy_will_do_but_not_too_few_models(tmp_path: Path) -> None:
    report = cost_model.cost_report(finished_run(tmp_path / "many", "random", 20))
    assert report["models"]
    assert report["errors"] == []
    with pytest.raises(UsageError, match="a cost model needs 12"):
        cost_model.cost_report(finished_run(tmp_path / "few", "random", 5))

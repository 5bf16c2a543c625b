"""`report --cost-model` over runs of a pretended board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_lts import device
from edge_lts_host.errors import UsageError
from edge_lts_host.report import cost_model
from edge_lts_host.store import RunFolder
from tests.fake_agent import Board, write_spec


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


def test_any_strategy_will_do_but_not_too_few_models(tmp_path: Path) -> None:
    report = cost_model.cost_report(finished_run(tmp_path / "many", "random", 20))
    assert report["models"]
    assert report["errors"] == []
    with pytest.raises(UsageError, match="a cost model needs 12"):
        cost_model.cost_report(finished_run(tmp_path / "few", "random", 5))

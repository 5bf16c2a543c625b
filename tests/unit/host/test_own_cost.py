"""What a run says of its own time and energy, and of what training its candidates would have taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import store
from edge_lts_host.report import own_cost
from edge_lts_host.report.compare import report_run
from edge_lts_host.store import RunFolder
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import architecture, change_evaluations, evaluation, write_run

RUN = "20261122-101530-rpi5-ab12"


def cost(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = report_run(RunFolder(folder))["own_cost"]
    return found


def words(folder: Path) -> dict[str, str]:
    return dict(own_cost.lines(report_run(RunFolder(folder))))


def test_time_is_split_by_purpose_and_adds_up() -> None:
    folder = write_run(store.runs_root(), RUN)  # searched until 70 s, confirmed until 90 s, ended at 95.5 s
    with (folder / "ledger.jsonl").open("a") as file:
        for purpose, spent_s in (("one_thread", 91.0), ("baseline", 94.0)):
            record = replace(evaluation(0, architecture(2, 64, 64), purpose=purpose), spent_s=spent_s)
            file.write(json.dumps(record.to_json()) + "\n")
    found = cost(folder)
    assert found["by_purpose_s"] == {"search": 70.0, "confirm": 20.0, "one_thread": 1.0, "baseline": 3.0, "other": 1.5}
    assert sum(found["by_purpose_s"].values()) == found["spent_s"] == 95.5
    assert words(folder)["took"].startswith(
        "95.5 s: searching 70.0 s, confirming 20.0 s, one thread 1.00 s, baselines 3.00 s"
    )


def test_training_counts_what_was_judged_and_names_what_it_assumes(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN)
    training = cost(folder)["training"]
    assert training["n_candidates"] == 5, "no failures, no confirmations"
    assert training["hours"] == pytest.approx(5 * 5186 / 3600)
    assert training["gpu_hours"] == pytest.approx(5 * 8 * 5186 / 3600)
    assert "arXiv 2203.02094" in training["source"]
    assert "V100" in training["source"]
    text = " ".join(run("report").split())
    assert (
        "5 candidates, each trained as the paper's were (1h26m on 8 V100), would have taken 7 h, 58 GPU hours" in text
    )


@pytest.mark.parametrize(("backbone", "seconds"), [("transformer-xl", 15589.0), ("opt", None)])
def test_a_backbone_without_a_published_figure_gets_none(backbone: str, seconds: float | None) -> None:
    training = cost(write_run(store.runs_root(), RUN, space={"name": "x", "backbone": backbone}))["training"]
    assert (training and training["s_per_candidate"]) == seconds


def test_energy_that_nobody_measured_is_not_guessed() -> None:
    folder = write_run(store.runs_root(), RUN)
    assert cost(folder)["energy"] is None
    assert words(folder)["took"].endswith("energy not measured")


def test_a_meter_on_the_board_gives_a_bracket() -> None:
    folder = write_run(store.runs_root(), RUN)

    def change(record: dict[str, Any]) -> None:
        record["conditions"]["energy"] = {"meter": "pmic", "scope": "soc-rails", "idle_w": 2.0, "busy_w": 6.0}

    change_evaluations(folder, change)
    energy = cost(folder)["energy"]
    assert (energy["how"], energy["low_j"], energy["high_j"]) == ("bracket", 2.0 * 95.5, 6.0 * 95.5)
    assert "between 191 J (idling) and 573 J (decoding throughout) by pmic" in words(folder)["took"]


def test_a_recording_is_integrated_without_its_gaps() -> None:
    folder = write_run(store.runs_root(), RUN)
    header = {
        "kind": "header",
        "schema_version": 1,
        "boot_id": "b",
        "meter": "um25c",
        "model": "UM25C",
        "scope": "board-input",
    }
    readings = [(float(t), 4.0) for t in range(31)] + [(100.0 + t, 6.0) for t in range(31)]
    lines = [header, *({"t_s": t_s, "power_w": power_w} for t_s, power_w in readings)]
    (folder / "meter.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    energy = cost(folder)["energy"]
    assert (energy["how"], energy["low_j"], energy["covered_s"]) == ("integrated", 30 * 4.0 + 30 * 6.0, 60.0)
    assert "300 J over 60.0 s of it by UM25C" in words(folder)["took"]

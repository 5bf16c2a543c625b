"""A report shows the numbers of a user's own command beside the built-in objectives."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from edge_lts.objectives import CommandObjective
from edge_lts_host import store
from edge_lts_host.cli import main
from tests.unit.host.sample_runs import write_run

RUN = "20261122-101530-rpi5-ab12"
OTHER = "20261123-101530-rpi5-cd34"


@pytest.fixture(autouse=True)
def run_with_a_command() -> None:
    command = CommandObjective(name="score", direction="max", command="./score")
    folder = write_run(
        store.runs_root(), RUN, objectives=("score", "decode_latency_s"), commands=(command,), strategy="evolution"
    )
    write_scores(folder)


def write_scores(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            width = record["architecture"]["d_model"]
            record["objectives"]["score"] = {"median": width / 3, "mad": None, "ci95": None, "pi95": None, "n": 1}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def report(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["report", *words]) == 0
    return capsys.readouterr().out


def test_a_table_has_a_column_with_the_plain_number(capsys: pytest.CaptureFixture[str]) -> None:
    for output in ("table", "md"):
        lines = report(capsys, "-o", output).splitlines()
        heading = next(line for line in lines if "arch_id" in line)
        assert heading.split().index("score") > heading.split().index("peak")
        rows = [line for line in lines if " x " in line and re.match(r"(\| )?[0-9a-f]{12} ", line)]
        assert [next(f"{w / 3:.6g}" for w in (64, 128, 192, 256) if f" {w / 3:.6g} " in f"{row} ") for row in rows] == [
            "21.3333",
            "42.6667",
            "64",
            "85.3333",
        ]


def test_json_and_csv_carry_it_too_and_csv_only_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = json.loads(report(capsys, "-o", "json"))["runs"]
    assert run["spec"]["commands"] == [{"name": "score", "direction": "max", "command": "./score"}]
    assert [member["objectives"]["score"]["median"] for member in run["frontier"]] == [64 / 3, 128 / 3, 64, 256 / 3]
    write_run(store.runs_root(), OTHER)
    rows = list(csv.DictReader(io.StringIO(report(capsys, "--all", "-o", "csv"))))
    assert [row["score"] for row in rows if row["run_id"] == RUN] == [repr(w / 3) for w in (64, 128, 192, 256)]
    assert {row["score"] for row in rows if row["run_id"] == OTHER} == {""}
    assert "score" not in report(capsys, OTHER, "-o", "csv").splitlines()[0].split(",")

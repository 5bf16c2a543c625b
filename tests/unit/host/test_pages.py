"""What pages name has to be there: the tests of docs/security.md, the codes of docs/troubleshooting.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edge_lts.records import TAINTS
from edge_lts_host import store
from edge_lts_host.report import render
from edge_lts_host.report.doctor import WORDS
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import change_evaluations, write_run

ROOT = Path(__file__).resolve().parents[3]
REPORTS = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# In the form of a code, and none.
OTHER_WORDS = {"ru_maxrss", "rpi_volt", "scaling_cur_freq", "ssh_config"}


def test_the_page_on_reports_explains_each_column(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    table = render.table
    monkeypatch.setattr(
        render, "table", lambda cells, headings, output: seen.update(headings) or table(cells, headings, output)
    )
    folders = [
        write_run(store.runs_root(), run_id) for run_id in ("20261122-101530-rpi5-ab12", "20261123-101530-rpi5-cd34")
    ]

    def change(record: dict[str, Any]) -> None:
        record["predicted"] = {"decode_latency_s": 0.001}
        record["flags"] = ["noisy"] if record["candidate_id"] == 2 else []
        framework = {"dispatch_share": 0.3, "bandwidth_floor_s": 1e-4, "width8_decode_s": 1e-4}
        record["conditions"] |= {"framework": framework, "decode_split_s": {"head": 0.1, "embedding": 0, "decoder": 1}}

    for folder in folders:
        change_evaluations(folder, change)
    run("report", "--all")
    run("compare", *(folder.name for folder in folders))
    cells = [line.split(" | ")[0].strip("| ") for line in REPORTS.splitlines() if line.startswith("| ")]
    names = {name.strip() for cell in cells for name in cell.split(",")}
    shown = {heading for heading in seen if heading}
    assert {"arch_id", "decode ms", "peak MiB", "marks", "bytes outside", "dispatch", "B / A", "volume"} <= shown
    assert not {heading for heading in shown if heading not in names and heading.split()[0] not in names}


def test_every_test_that_the_page_names_exists() -> None:
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(?:[a-z_/]+/)?(?:(test_\w+\.py)|…)(?:::(test_\w+)(…)?)?`", PAGE)
    assert len(named) > 30
    last = ""
    for file, test, is_cut in named:
        last = file or last
        assert last in files, last
        if test:
            assert re.search(rf"def {test}{'' if is_cut else chr(92) + 'b'}", files[last].read_text()), (last, test)


def test_every_answer_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(rows) > 20
    for row in rows:
        assert "test_" in row.rpartition(" | ")[2] or "docs/" in row.rpartition(" | ")[2], row


def test_each_of_the_fifteen_pitfalls_is_answered_by_what_the_tool_does() -> None:
    parts = re.split(r"^### (\d+)\. ", TROUBLE.partition("## Getting in")[0], flags=re.MULTILINE)[1:]
    assert parts[::2] == [str(number) for number in range(1, 16)]
    for text in parts[1::2]:
        assert "\n- By itself: " in text
        assert "\n- Left to you: " in text


def test_the_codes_that_troubleshooting_names_are_those_of_doctor() -> None:
    codes = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", TROUBLE)) - OTHER_WORDS - set(TAINTS)
    assert len(codes) > 25
    assert codes <= set(WORDS)

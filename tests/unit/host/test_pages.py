"""What pages name has to be there: the tests of docs/security.md, the codes of docs/troubleshooting.md."""

from __future__ import annotations

import re
from pathlib import Path

from edge_lts.records import TAINTS
from edge_lts_host.report.doctor import WORDS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# In the form of a code, and none.
OTHER_WORDS = {"ru_maxrss", "rpi_volt", "scaling_cur_freq", "ssh_config"}


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

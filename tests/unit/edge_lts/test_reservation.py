"""A board that somebody keeps: who is refused, who is not, and what is said about it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edge_lts import status
from edge_lts.errors import LockedError
from edge_lts.job import Lock, boot_id, read_holder
from edge_lts.reservation import OWNER_VARIABLE, age_s, check, claims
from edge_lts.transfer import clean
from tests.fake_agent import Board, write_spec


def reserve(root: Path, owner: str | None = "ann@desk", **more: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    record = {"owner": owner, "since": "2026-11-22T10:00:00Z", "since_s": time.monotonic() - 60, "boot_id": boot_id()}
    (root / "reserved.json").write_text(json.dumps({**record, **more}))


def test_somebody_elses_board_is_refused_and_ones_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path)  # nobody's
    reserve(tmp_path, note="demo")
    monkeypatch.setenv(OWNER_VARIABLE, "ann@desk")
    check(tmp_path)
    for other in ("bob@lap", ""):
        monkeypatch.setenv(OWNER_VARIABLE, other)
        with pytest.raises(LockedError, match=r"locked by ann@desk, for 6\d s \(demo\); .*unlock --force") as caught:
            check(tmp_path)
        assert caught.value.exit_code == 7


@pytest.mark.parametrize("content", ["", "junk", "[]", "{}", '{"owner": null}'])
def test_a_lock_that_cannot_be_read_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.delenv(OWNER_VARIABLE, raising=False)
    (tmp_path / "reserved.json").write_text(content)
    with pytest.raises(LockedError, match="locked by somebody"):
        check(tmp_path)


def test_a_run_respects_it_and_lets_the_board_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(write_spec(tmp_path, max_candidates=1))
    reserve(tmp_path)
    monkeypatch.setenv(OWNER_VARIABLE, "bob@lap")
    with pytest.raises(LockedError, match="locked by ann@desk"):
        board.run()
    assert not (board.folder / "ledger.jsonl").exists()
    with pytest.raises(LockedError, match="locked by ann@desk"):
        clean(lambda event: None, tmp_path, keep_runs=False, is_dry_run=False)
    monkeypatch.setenv(OWNER_VARIABLE, "ann@desk")
    assert board.run() == 0


def test_whoever_is_refused_by_a_run_learns_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, "bob@lap")
    with Lock(tmp_path / "board.lock", run_id="run-1", what="this board"):
        assert read_holder(tmp_path / "board.lock")["owner"] == "bob@lap"
        with pytest.raises(LockedError, match=r"in use by run run-1 of bob@lap \(pid"):
            Lock(tmp_path / "board.lock", run_id="run-2", what="this board", patience_s=0)
        found = claims(tmp_path)
        assert (found["run"]["run_id"], found["run"]["owner"], found["reserved"]) == ("run-1", "bob@lap", None)
        assert 0 <= found["run"]["age_s"] < 60
    assert claims(tmp_path)["run"] is None


def test_status_of_a_root_says_who_has_the_board(tmp_path: Path) -> None:
    write_spec(tmp_path)
    reserve(tmp_path)
    events: list[Any] = []
    status.answer(events.append, [tmp_path], show_all=False)
    assert [event["event"] for event in events] == ["board", "status"]
    assert events[0]["reserved"]["owner"] == "ann@desk"
    assert events[0]["run"] is None


def test_a_deployed_root_without_runs_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".edge-lts-root").touch()
    events: list[Any] = []
    status.answer(events.append, [tmp_path], show_all=False)
    assert [event["event"] for event in events] == ["board"]


def test_age_is_by_the_clock_that_cannot_jump_where_it_can_be() -> None:
    now = {"since": "2001-01-01T00:00:00Z", "since_s": time.monotonic() - 60, "boot_id": boot_id()}
    assert age_s(now) == pytest.approx(60, abs=5)
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 600))
    assert age_s({"since": begun, "since_s": 5.0, "boot_id": "another boot"}) == pytest.approx(600, abs=5)
    assert age_s({"since": "2999-01-01T00:00:00Z", "boot_id": "x"}) == 0
    assert age_s({"since": 7}) is None

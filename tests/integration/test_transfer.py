"""`compare --transfer` with real measurements: one frontier timed on another's board, which is this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_lts.records import Protocol
from edge_lts_host import store, transfers
from edge_lts_host.cli import main
from edge_lts_host.store import RunFolder
from tests.fake_agent import Board, device_info, write_spec
from tests.support import require

QUICK = Protocol(threads=1, prompt_tokens=8, context_tokens=8, prefill_samples=4, decode_samples=4, warmup=1)


def searched(root: Path, run_id: str, seed: int, protocol: Protocol = QUICK) -> RunFolder:
    """A search of made-up numbers on a board that says it is this machine."""
    written = write_spec(root, run_id, seed=seed, max_candidates=8, protocol=protocol)
    board = Board(written)
    board.info = device_info(torch=importlib.metadata.version("torch"))
    board.run()
    folder = RunFolder(written.path)
    place = {"root": str(root), "python": "python3", "site": None, "agent": "x", "run_dir": str(folder.path)}
    folder.write_host_meta({"host": None, "destination": "", "target": "local", **place})
    return folder


def test_a_frontier_is_timed_on_the_other_board_and_its_regret_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    for run_id, seed in (("run-a", 1), ("run-b", 2)):
        searched(tmp_path, run_id, seed)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "runs").rglob("*.json*"))}
    status = main(["compare", "run-a", "run-b", "--transfer", "--transfer-members", "1", "-o", "json", "--no-progress"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    data = json.loads(captured.out)
    found = {(one["from"], one["onto"]): one for one in data["groups"][0]["transfers"]}
    assert set(found) == {("run-a", "run-b"), ("run-b", "run-a")}
    for one in found.values():
        assert one["n_processes"] == transfers.N_ROUNDS
        assert all(member["latency_s"] > 0 for member in one["members"])
        assert one["n_compared"] + one["n_without_rival"] == len(one["members"]) == 1
    [session] = transfers.load_sessions(["run-a"])
    assert all(outcome.conditions["threads"] == 1 for _, outcome in session.outcomes)
    assert {path: path.read_bytes() for path in before} == before  # the runs themselves are left alone
    assert store.list_runs()[0].run_id == "run-a"
    assert len(store.list_runs()) == 2  # and transfers are no run


def test_a_board_with_another_torch_than_its_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    for run_id, seed in (("run-a", 1), ("run-b", 2)):
        folder = searched(tmp_path, run_id, seed)
        info = folder.read_device()
        assert info is not None
        (folder / "device.json").write_text(json.dumps(replace(info, torch="1.0").to_json()))
    assert main(["compare", "run-a", "run-b", "--transfer", "--transfer-members", "1"]) == 5
    assert "was measured with torch 1.0, and its board now has" in capsys.readouterr().err

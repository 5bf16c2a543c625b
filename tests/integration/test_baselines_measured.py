"""Baselines measured by the real server: other backbones beside a search, one that no memory holds, a kill -9."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.baselines import Baseline
from edge_lts.ledger import read_outcomes
from edge_lts.records import Evaluation, Failure
from edge_lts.runfolder import RunFolder
from edge_lts_host import store
from edge_lts_host.report.compare import report_run
from tests.integration.test_agent_process import run_agent, spec, start, wait_for
from tests.support import require

pytestmark = pytest.mark.torch
start = start  # the fixture


@pytest.fixture(autouse=True)
def _torch() -> None:
    require("torch", importlib.util.find_spec("torch"), "the measuring server imports it")


def tiny(backbone: str, **changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=64, n_head=2),) * 2
    return Architecture(backbone=backbone, d_model=32, layers=layers, vocab_size=256, max_seq_len=64).replace(**changes)


HUGE = tiny("opt", d_model=65536, layers=(LayerSpec(d_inner=262144, n_head=64),) * 24)  # 5 TB
OWN = (
    Baseline(family="opt", architecture=tiny("opt", d_embed=16)),
    Baseline(family="xl", architecture=tiny("transformer-xl", embedding_factor=2, cutoffs=(64,))),
    Baseline(family="huge", architecture=HUGE),
)


def processes(folder: RunFolder) -> Counter[str]:
    outcomes, _ = read_outcomes(folder / "ledger.jsonl")
    return Counter(
        one.architecture.arch_id for one in outcomes if one.purpose == "baseline" and isinstance(one, Evaluation)
    )


def check(folder: RunFolder) -> dict[str, Any]:
    """Three processes of each that fits, one recorded failure of that which does not; the report."""
    outcomes, _ = read_outcomes(folder / "ledger.jsonl")
    assert processes(folder) == {one.architecture.arch_id: 3 for one in OWN[:2]}
    failed = [one for one in outcomes if isinstance(one, Failure)]
    assert [(one.architecture, one.kind, one.purpose) for one in failed] == [(HUGE, "oom", "baseline")]
    searched = [one for one in outcomes if one.purpose == "search"]
    assert [one.candidate_id for one in searched] == list(range(4))
    run = report_run(store.RunFolder(folder.path))
    assert run["baselines"]["members"][2]["failure"]["kind"] == "oom"
    assert [one["n_processes"] for one in run["baselines"]["members"]] == [3, 3, 0]
    assert not {entry["arch_id"] for entry in run["frontier"]} & set(processes(folder))
    assert run["own_cost"]["by_purpose_s"]["baseline"] > 0
    return run


def test_other_backbones_are_measured_beside_the_search_and_what_fits_no_memory_is_a_failure(tmp_path: Path) -> None:
    folder = spec(tmp_path, strategy="random", max_candidates=4, baselines=OWN)
    code, _ = run_agent("search", folder.path)
    assert code == 0
    check(folder)


def test_a_run_killed_among_its_baselines_goes_on_with_those_that_are_lacking(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    folder = spec(tmp_path, strategy="random", max_candidates=4, baselines=OWN)
    process = start("search", folder.path)
    wait_for(
        lambda: (folder / "ledger.jsonl").exists() and b'"baseline"' in (folder / "ledger.jsonl").read_bytes(), "one"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, _ = run_agent("search", folder.path)
    assert code == 0
    check(folder)

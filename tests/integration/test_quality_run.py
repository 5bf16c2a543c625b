"""Runs ranked by a calibrated proxy: recorded, searched, resumed, pooled, and all the way on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_lts import device
from edge_lts.arch import Architecture
from edge_lts.errors import SpecError
from edge_lts.estimating import estimate
from edge_lts.objectives import PROXY_OBJECTIVES, QUALITY
from edge_lts.records import outcome_from_json
from tests.calibrated import proxy
from tests.fake_agent import Board, FakeMeasurer, write_spec
from tests.pool import Pool
from tests.support import require

ROOT = Path(__file__).resolve().parents[2]
JUDGE = proxy(heads=0.05)


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


def board(root: Path, **changes: Any) -> Board:
    return Board(write_spec(root, **{"objectives": PROXY_OBJECTIVES, "proxy": JUDGE.to_json(), **changes}))


def check_records(records: list[dict[str, Any]]) -> None:
    """Every measurement has the value that the proxy gives it, and its size."""
    assert records
    for record in records:
        arch = Architecture.from_json(record["architecture"])
        found = estimate(JUDGE, arch)
        assert found is not None
        assert record["objectives"][QUALITY] == found.to_json()
        assert record["objectives"]["decoder_params"] == arch.decoder_params


@pytest.mark.parametrize("strategy", ["guided", "evolution", "random"])
def test_every_strategy_searches_quality_and_its_frontier_is_one_of_lower_bounds(tmp_path: Path, strategy: str) -> None:
    one = board(tmp_path, strategy=strategy, max_candidates=34)
    assert one.run() == 0
    assert one.json("status.json")["state"] == "done"
    check_records(one.records())
    assert {record["purpose"] for record in one.records()} >= {"search", "confirm"}
    members = [member for member in one.json("frontier.json")["frontier"] if not member["probably_dominated"]]
    assert members
    medians = [
        {
            name: value["median"]
            for name, value in one["objectives"].items()
            if isinstance(value, dict) and "median" in value
        }
        for one in members
    ]
    losses = [
        (-member["objectives"][QUALITY]["low"], median["decode_latency_s"], median["peak_memory_bytes"])
        for member, median in zip(members, medians, strict=True)
    ]
    for own in losses:
        assert not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in losses)
    if strategy == "guided":
        assert {record["conditions"]["origin"] for record in one.records() if record["purpose"] == "search"} >= {
            "design",
            "frontier",
        }


@pytest.mark.parametrize(("strategy", "cut"), [("evolution", 7), ("guided", 29)])
def test_a_resumed_run_proposes_what_an_uninterrupted_one_does(tmp_path: Path, strategy: str, cut: int) -> None:
    def asked(one: Board) -> list[str]:
        return [record["arch_id"] for record in one.records() if record["purpose"] == "search"]

    whole = board(tmp_path / "whole", strategy=strategy, max_candidates=33)
    whole.run()
    parts = board(tmp_path / "parts", strategy=strategy, max_candidates=33)

    def before(measurer: FakeMeasurer, arch: object, current: int) -> None:
        if current == cut:
            os.kill(os.getpid(), signal.SIGTERM)

    parts.measurer.before = before
    parts.run()
    assert parts.json("status.json")["state"] == "stopped"
    parts.new_measurer()
    parts.run()
    assert asked(parts) == asked(whole)


def test_a_proxy_without_its_objective_is_recorded_and_changes_no_proposal(tmp_path: Path) -> None:
    plain = Board(write_spec(tmp_path / "plain", strategy="guided", max_candidates=30))
    beside = board(
        tmp_path / "beside", strategy="guided", max_candidates=30, objectives=("decoder_params", *PROXY_OBJECTIVES[1:])
    )
    for one in (plain, beside):
        one.run()
    check_records(beside.records())
    assert QUALITY not in plain.records()[0]["objectives"]
    ids = [[record["arch_id"] for record in one.records() if record["purpose"] == "search"] for one in (plain, beside)]
    assert ids[0] == ids[1]


def test_a_proxy_of_another_backbone_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    one = board(tmp_path, proxy=proxy(backbone="opt").to_json())
    with pytest.raises(SpecError, match="calibrated on models of backbone opt"):
        one.run()
    assert not (one.folder / "ledger.jsonl").exists()


def test_a_pool_of_boards_records_quality_as_one_board_does(tmp_path: Path) -> None:
    folder = write_spec(
        tmp_path, objectives=PROXY_OBJECTIVES, proxy=JUDGE.to_json(), strategy="evolution", max_candidates=20
    )
    pool = Pool(folder)
    pool.run(pool.crew(a=1.0, b=1.0))
    check_records(pool.records())
    assert pool.json("frontier.json")["frontier"][0]["objectives"][QUALITY]["low"] < 0


def test_quality_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from tests.calibrated import proxy\n"
        "from tests.fake_agent import evaluation\n"
        "from tests.unit.edge_lts.test_ledger import ARCH\n"
        "from edge_lts.estimating import with_quality\n"
        "from edge_lts.search import make_searcher\n"
        "print(with_quality(evaluation(ARCH), proxy()).objectives['quality'].low, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


# The real thing

TINY = """
name = "tiny"
backbone = "gpt2"
[genes]
n_layer = [1, 2]
d_model = [32, 64]
d_inner = [64, 128, 192]
n_head = [1, 2, 4]
[fixed]
vocab_size = 256
max_seq_len = 64
"""


@pytest.mark.torch
@pytest.mark.timeout(600)
def test_from_a_proxy_file_to_a_decision_on_this_machine(tmp_path: Path) -> None:
    """`run --proxy` measures here, and report, pick and bench answer by quality."""
    require("torch", importlib.util.find_spec("torch"), "pip install torch")
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "proxy.json").write_text(json.dumps(JUDGE.to_json()))
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}",
        "HOME": str(tmp_path),
        "EDGE_LTS_RUNS": str(tmp_path / "share" / "runs"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def cli(*words: str) -> str:
        argv = [sys.executable, "-m", "edge_lts_host", *words]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--prompt-tokens", "8", "--context-tokens", "8", "--threads", "1", "--space", "tiny.toml"]
    cli("run", "--target", "local", "--budget", "90s", "--max-candidates", "28", "--proxy", "proxy.json", *small)
    (run,) = json.loads(cli("report", "-o", "json"))["runs"]
    assert run["spec"]["objectives"] == list(PROXY_OBJECTIVES)
    assert run["spec"]["strategy"] == "guided"
    assert run["proxy"] == {
        "name": JUDGE.name,
        "digest": JUDGE.digest,
        "unit": "nats/token",
        "backbone": "gpt2",
    }
    (folder,) = (tmp_path / "share" / "runs").iterdir()
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    check_records([json.loads(line) for line in lines])
    assert {"design", "frontier"} <= {outcome_from_json(json.loads(line)).conditions.get("origin") for line in lines}  # type: ignore[union-attr]
    text = cli("report")
    assert "quality nats" in text
    assert JUDGE.digest in text
    decided = json.loads(cli("pick", "-o", "json"))
    lows = [member["objectives"][QUALITY]["low"] for member in run["frontier"]]
    assert decided["best"]["objectives"][QUALITY]["low"] == max(lows)
    assert decided["ranked_by"]["proxy"]["digest"] == JUDGE.digest
    (known,) = json.loads(cli("bench", "query", decided["best"]["arch_id"], "-o", "json"))["quality"]
    assert known == {"proxy": JUDGE.digest, "low": max(lows)}

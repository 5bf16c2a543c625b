"""From a text to a proxy: `calibrate --corpus` trains through the agent on this machine, once, and fits."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_lts.arch import Architecture
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts_host.calibration import training
from edge_lts_host.cli import main
from edge_lts_host.hosts import LOCAL_HOST, HostEntry
from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.sshd import Sshd
from tests.support import require

SPACE = """
name = "tiny"
backbone = "gpt2"
[genes]
n_layer = { min = 1, max = 3, step = 1 }
d_model = { min = 16, max = 48, step = 16 }
d_inner = { min = 32, max = 128, step = 32 }
n_head = [1, 2, 4]
[fixed]
vocab_size = 1000
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "share/runs"))
    return tmp_path


def test_a_text_becomes_labels_and_a_proxy_and_the_same_command_trains_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(f"{n} bottles stand on the wall; {n + 1} stood there, and {n * n} more." for n in range(1500))
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "tiny.toml").write_text(SPACE)
    proxy = tmp_path / "proxy.json"
    words = (
        "calibrate", "--corpus", str(tmp_path / "text.txt"), "--space", str(tmp_path / "tiny.toml"), "--models", "6",
        "--repeats", "1", "--tokens", "6000", "--processes", "2", "--seed", "3", "--to", str(proxy), "-o", "json",
    )  # fmt: skip
    assert main(words) == 0
    first = capsys.readouterr()
    assert "7 of 7: " in first.err
    json.loads(first.out)
    written = proxy.read_bytes()
    found = CalibratedProxy.from_json(json.loads(written))
    assert found.unit == "nats/byte"
    rows = list(csv.DictReader((tmp_path / "proxy.labels.csv").read_text().splitlines()))
    assert (len(rows), len({row["name"] for row in rows})) == (7, 6)
    assert all(0.5 < float(row["bits_per_byte"]) < 8.5 for row in rows)
    results = sorted((tmp_path / "share/trainings").glob("*/*/result.json"))
    stamps = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 7
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in results] == stamps
    assert proxy.read_bytes() == written


@pytest.mark.sshd
def test_a_board_trains_what_this_machine_would_and_its_results_are_not_asked_for_twice(
    tmp_path: Path, sshd: Sshd, ssh_options: Callable[..., SshOptions]
) -> None:
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"{n} green bottles, {n * n} more in the cellar" for n in range(1500))
    )
    (tmp_path / "tiny.toml").write_text(SPACE)
    board = HostEntry(
        name="pi",
        destination=sshd.destination,
        root=str(tmp_path / "board"),
        python=sys.executable,
        agent="none yet",
        device={"n_cores": 2, "memory_total_bytes": 8 << 30},
    )
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    words = ["--corpus", str(tmp_path / "text.txt"), "--space", str(tmp_path / "tiny.toml"), "--tokens", "4000"]
    args = parser.parse_args([*words, "--repeats", "0", "--processes", "1"])
    args.models, args.seed = 6, 0
    said: list[str] = []
    plan = training.make_plan(args, board, said.append)
    there = training.train(plan, board, ssh_options(), said.append)
    assert len(list((tmp_path / "board/trainings" / plan.job.job_id).glob("*/result.json"))) == 6
    assert training.train(plan, board, ssh_options(), said.append) == there
    here = training.train(plan, LOCAL_HOST, None, said.append)
    assert [one.loss_nats for one in here] == [one.loss_nats for one in there]
    assert all(one.error is None for one in there)


def test_architectures_are_scored_by_proxies_that_need_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for depth in (1, 3):
        arch = {"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": 64}] * depth, "vocab_size": 300}
        files.append(tmp_path / f"{depth}.json")
        files[-1].write_text(json.dumps(arch))
    assert main(["proxies", *map(str, files), "--proxy", "synflow,snip", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["architectures"]
    assert [row["arch_id"] for row in rows] == [
        Architecture.from_json(json.loads(file.read_text())).arch_id for file in files
    ]
    assert rows[1]["synflow"] > rows[0]["synflow"] > 0
    assert "grad_norm" not in rows[0]
    assert main(["proxies", str(files[0]), "--proxy", "magic"]) == 2
    assert "magic" in capsys.readouterr().err

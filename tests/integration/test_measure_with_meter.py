"""`edge-lts measure --meter` and `run --meter`: a meter on this machine, beside a board that is this machine, too.

The meter is simulated byte for byte on a pseudo-terminal. What it shows follows how busy this machine's cores really
are, so idle, load steps and decoding are found in its log or not at all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts_host.cli import main
from tests.meters_simulated import SimulatedUm, plugged_in

IDLE_W, CORES_W = 2.0, 6.0
ARCH = {
    "backbone": "gpt2",
    "d_model": 256,
    "layers": [{"n_head": 4, "d_inner": 1024}] * 4,
    "vocab_size": 4000,
}


class CoreLoad:
    """(volts, amperes) of a board that draws IDLE_W and, per share of its cores that works, CORES_W more."""

    def __init__(self) -> None:
        self.share = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, _: float) -> tuple[float, float]:
        return 5.0, (IDLE_W + CORES_W * self.share) / 5.0

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)

    def _run(self) -> None:
        before = ticks()
        while not self._ended.wait(0.2):
            now = ticks()
            idle, total = now[0] - before[0], now[1] - before[1]
            if total:
                self.share = 1 - idle / total
                before = now


def ticks() -> tuple[int, int]:
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


@pytest.fixture
def meter() -> Iterator[str]:
    load = CoreLoad()
    try:
        with plugged_in(SimulatedUm("UM25C", load)) as simulated:
            yield f"um25c:{simulated.path}"
    finally:
        load.close()


@pytest.mark.torch
def test_measure_finds_the_energy_of_a_token_in_the_log_of_a_meter_on_this_machine(
    meter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(ARCH))
    begun = time.monotonic()
    code = main(["measure", str(path), "--target", "local", "--meter", meter, "-o", "json"])
    took_s = time.monotonic() - begun
    record = json.loads(capsys.readouterr().out)
    assert code == 0
    energy, value = record["conditions"]["energy"], record["objectives"]["energy_j_per_token"]
    assert "rejected" not in energy, energy
    decode_s = record["objectives"]["decode_latency_s"]["median"]
    assert value["median"] > 0
    assert value["median"] < 3 * CORES_W * decode_s  # no token takes more than all cores for thrice its usual time
    assert energy["idle_w"] < IDLE_W + 0.5 * CORES_W
    assert energy["scope"] == "board-input"
    assert took_s > energy["window_s"] >= 10


def test_a_meter_that_does_not_answer_is_said_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["run", "--target", "local", "--space", "tiny", "--budget", "5s", "--meter"]
    assert main([*words, f"um25c:{tmp_path / 'nothing'}"]) != 0
    assert "nothing" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))
    assert main([*words, "um25c:/dev/null", "--detach"]) == 2
    assert "--wait" in capsys.readouterr().err

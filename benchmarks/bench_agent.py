"""The agent's weight: payload size, time to start, and what the supervisor adds to an interpreter with numpy.

usage: python benchmarks/bench_agent.py [-n RUNS] [--board] [--out FILE]

Requirements: payload at most 128 KiB, the full one 192; the supervisor at most 15 MB above an interpreter that has
imported numpy (strategies random and evolution; guided search solves for the frontier in the supervisor and is reported
beside them).
`--board` also starts the agent on the emulated arm64 board (root, qemu-user-static, debootstrap); those times prove
that it starts and are no performance figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, where

from edge_lts.records import Protocol, RunSpec
from edge_lts_host.payload import MAX_FULL_BYTES, MAX_PAYLOAD_BYTES, build_payload
from edge_lts_host.spaces import load_space

SUPERVISOR_LIMIT_BYTES = 15_000_000
N_CANDIDATES = 40
PEAK = "print([int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def start_times(command: list[str], n: int) -> list[float]:
    times = []
    for _ in range(n):
        begun = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        times.append(round(time.perf_counter() - begun, 4))
    return times


def numpy_peak_bytes() -> int:
    code = f"import numpy, numpy.random; {PEAK}"
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    peaks = [
        int(subprocess.run([sys.executable, "-I", "-c", code], env=environ, capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    return int(statistics.median(peaks))


def supervisor_peak_bytes(agent: Path, strategy: str) -> int:
    """The watermark of the supervisor of a run of N_CANDIDATES tiny models, read just before it ends."""
    space, _ = load_space("tiny")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "runs" / "bench"
        folder.mkdir(parents=True)
        spec = RunSpec(
            run_id="bench",
            space=space,
            budget_s=600.0,
            target="local",
            strategy=strategy,
            protocol=Protocol(prompt_tokens=16, context_tokens=16, prefill_samples=2, decode_samples=2, threads=1),
            max_candidates=N_CANDIDATES,
        )
        (folder / "spec.json").write_text(json.dumps(spec.to_json()))
        process = subprocess.Popen(
            [sys.executable, "-I", str(agent), "search", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        peak = max(peak, int(line.split()[1]) * 1024)
            except OSError:
                break
            time.sleep(0.05)
        if process.wait():
            sys.exit(f"the run of {strategy} ended with {process.returncode}")
    return peak


def on_the_board(data: bytes, n: int) -> dict[str, Any]:
    from tests.board.emulated import EmulatedBoard, build_root

    with EmulatedBoard(build_root()) as board:
        agent = board.home / "agent.pyz"
        agent.write_bytes(data)
        os.chmod(agent, 0o644)
        bare, probes = [], []
        for _ in range(n):
            for times, command in ((bare, "python3 -I -c pass"), (probes, "python3 -I agent.pyz probe")):
                begun = time.perf_counter()
                board.ssh(command)
                times.append(round(time.perf_counter() - begun, 3))
    return {
        "note": "emulated Cortex-A72: proves that the agent starts, says nothing about a real board",
        "python_over_ssh_s": bare,
        "probe_over_ssh_s": probes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=15)
    parser.add_argument("--board", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "agent_x86_64_202611.json")
    args = parser.parse_args()
    payload, full = build_payload(), build_payload("train")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        agent = Path(directory) / payload.name
        agent.write_bytes(payload.data)
        bare = start_times([sys.executable, "-I", "-c", "pass"], args.n)
        probe = start_times([sys.executable, "-I", str(agent), "probe"], args.n)
        base = numpy_peak_bytes()
        added = {name: supervisor_peak_bytes(agent, name) - base for name in ("random", "evolution", "guided")}
    is_within = (
        len(payload.data) <= MAX_PAYLOAD_BYTES
        and len(full.data) <= MAX_FULL_BYTES
        and max(added["random"], added["evolution"]) <= SUPERVISOR_LIMIT_BYTES
    )
    result = {
        "command": f"python benchmarks/bench_agent.py -n {args.n}" + " --board" * args.board,
        "payload_bytes": len(payload.data),
        "payload_limit_bytes": MAX_PAYLOAD_BYTES,
        "full_payload_bytes": len(full.data),
        "full_payload_limit_bytes": MAX_FULL_BYTES,
        "start_s": {"python": bare, "agent_probe": probe},
        "median_start_s": {"python": statistics.median(bare), "agent_probe": statistics.median(probe)},
        "numpy_interpreter_bytes": base,
        "supervisor_added_bytes": added,
        "supervisor_limit_bytes": SUPERVISOR_LIMIT_BYTES,
        "n_candidates": N_CANDIDATES,
        "is_within_limits": is_within,
        "board": on_the_board(payload.data, 3) if args.board else None,
        "conditions": where(load_before=load_before),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"payload      {len(payload.data)} of {MAX_PAYLOAD_BYTES} bytes; full: {len(full.data)} of {MAX_FULL_BYTES}")
    print(f"agent probe  {statistics.median(probe) * 1e3:.0f} ms (bare Python {statistics.median(bare) * 1e3:.0f} ms)")
    for name, value in added.items():
        print(f"supervisor   {value / 1e6:.1f} MB above numpy's interpreter ({name}, {N_CANDIDATES} candidates)")
    if args.board:
        print(f"on the board {result['board']}")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long `edge-lts --help` takes, in fresh processes, and what of it is Python itself.

usage: python benchmarks/bench_cli.py [-n RUNS] [--out FILE]

The requirement is a median below 150 ms. Interleaved with a bare `python -c pass` (A/A of the machine's mood): what
edge-lts adds is the difference. Writes raw times and conditions as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, where

LIMIT_S = 0.150
ENVIRON = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}"}
# What the installed script does, without needing an installation.
SCRIPT = [sys.executable, "-c", "import sys; from edge_lts_host.__main__ import main; sys.exit(main())"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "help": [*SCRIPT, "--help"],
    "run_help": [*SCRIPT, "run", "--help"],
    "targets": [*SCRIPT, "targets", "-o", "json"],
}


def run(command: list[str]) -> tuple[float, float]:
    """(wall time, CPU time) in seconds; the second hardly feels what else the machine does."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRON)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cli_x86_64_202611.json")
    args = parser.parse_args()
    for command in COMMANDS.values():
        run(command)  # writes byte code, fills the page cache
    load_before = os.getloadavg()[0]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(args.n):
        for name, command in COMMANDS.items():
            times[name].append(run(command))
    medians = {name: statistics.median(wall_s for wall_s, _ in values) for name, values in times.items()}
    cpu = {name: statistics.median(cpu_s for _, cpu_s in values) for name, values in times.items()}
    result = {
        "what": "seconds from start to exit of a fresh process, nothing reads its output",
        "command": f"python benchmarks/bench_cli.py -n {args.n}",
        "median_s": medians,
        "median_cpu_s": cpu,
        "limit_s": LIMIT_S,
        "is_within_limit": medians["help"] < LIMIT_S,
        "conditions": where(load_before=load_before),
        "samples_s": {name: [round(wall_s, 5) for wall_s, _ in values] for name, values in times.items()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, median_s in medians.items():
        low_s = min(wall_s for wall_s, _ in times[name])
        print(f"{name:10} median {median_s * 1e3:6.1f} ms   min {low_s * 1e3:6.1f}   CPU {cpu[name] * 1e3:6.1f}")
    return 0 if result["is_within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())

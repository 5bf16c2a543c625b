"""How long does guided search take to solve for a frontier, and how much memory, for size and for a calibrated quality?

usage: python benchmarks/bench_solver.py

In the paper's GPT-2 space, with cost models fitted to the measurements of bench_cost_model.py (they need not be of
today: what is timed is the solving). Three sets of objectives, each with decode latency and memory: decoder_params;
quality by the proxy of bench_panel.py, in which heads count, so that the solver carries one more integer; and quality
by the same proxy with the term of heads struck out. Each in a process of its own, in turn; medians of processor
seconds, and the process's peak less what it had before.

Writes results/solver_<machine>_<yyyymm>.{json,md}.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import evaluation_from, fitted, load_space, read_rows, where, where_line, write_result
from trainings import results_path

from edge_lts.objectives import resolve_objectives
from edge_lts.profile.memory import read_status, reset_watermark
from edge_lts.proxies.calibrated import CalibratedProxy

N_ROUNDS = 3
CASES = ("decoder_params", "quality", "quality, heads left out")
HEADS = "n_head"


def proxy_of(case: str) -> CalibratedProxy | None:
    if case == "decoder_params":
        return None
    proxy = CalibratedProxy.from_json(json.loads(results_path("panel", "calibrated", ".json").read_text()))
    if case == "quality":
        return proxy
    names = ["", *(term.name for term in proxy.terms for _ in term.exponents)]  # of each coefficient, constant first
    is_kept = np.array([name != HEADS for name in names], dtype=float)
    return dataclasses.replace(
        proxy,
        coefficients=tuple((np.array(proxy.coefficients) * is_kept).tolist()),
        covariance=tuple(map(tuple, (np.array(proxy.covariance) * np.outer(is_kept, is_kept)).tolist())),
        terms=tuple(
            dataclasses.replace(term, spread_below=0.0, spread_above=0.0) if term.name == HEADS else term
            for term in proxy.terms
        ),
    )


def solve_once(case: str) -> None:
    """Print {"seconds", "bytes", "n"} as JSON."""
    proxy = proxy_of(case)
    predictor = fitted(map(evaluation_from, read_rows(results_path("cost_model"))), proxy=proxy)
    space = load_space("lts-gpt2")
    names = ("decoder_params" if proxy is None else "quality", "decode_latency_s", "peak_memory_bytes")
    reset_watermark()
    before, begun = _peak_bytes(), time.process_time()
    prediction = predictor.frontier(space, resolve_objectives(names))
    found = {"seconds": time.process_time() - begun, "bytes": _peak_bytes() - before, "n": len(prediction)}
    print(json.dumps({**found, "cover": prediction.cover}))


def _peak_bytes() -> int:
    status = read_status()
    assert status is not None, "no /proc/self/status here"
    return status.peak_rss_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        solve_once(args.case)
        return 0
    rows: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(N_ROUNDS):
        for case in CASES:
            argv = [sys.executable, __file__, "--case", case]
            rows[case].append(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))
    about = where(rounds=N_ROUNDS)
    lines = ["# Solving for the frontier of the paper's GPT-2 space", "", where_line(about), ""]
    lines += [
        "| objectives beside decode latency and memory | seconds | MB | members | cover |",
        "|---|---|---|---|---|",
    ]
    for case, found in rows.items():
        seconds, peak = (statistics.median(row[key] for row in found) for key in ("seconds", "bytes"))
        lines.append(f"| {case} | {seconds:.2f} | {peak / 1e6:.0f} | {found[0]['n']:,} | {found[0]['cover']} |")
    write_result(results_path("solver", suffix=".json"), {"where": about, "cases": rows}, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

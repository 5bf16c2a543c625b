"""What watching costs: the same candidate with and without the gate.

usage: python benchmarks/bench_monitoring.py [-n PAIRS] [--threads N] [--out FILE.jsonl] [--evaluate]

Pairs of processes in random order, one with the gate (clocks, counters, sensors) and one without, which take equally
many samples: the ratio of their medians is an A/A comparison if watching is free. Since processes differ by far more
than the limit (10 % and more on a virtual machine), each pair is followed by one process in which every second sample
is watched. The candidate is the smallest of the benchmarks: with samples of about 2 ms, watching weighs most. Limits:
1 % of the measuring process's CPU time; the interval within processes inside 0.5 %, and the one between processes must
not lie wholly outside. `chrt -r 1` before the command (as root) keeps others away.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, read_rows, where, where_line, write_result

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.records import Protocol

MAX_CPU_SHARE, MAX_MOVE = 0.01, 0.005
ARCH = Architecture(
    backbone="gpt2", d_model=128, layers=(LayerSpec(d_inner=256, n_head=2),) * 2, vocab_size=50_257, max_seq_len=1024
)
N_ALTERNATING = 200


def alternating(trial: Any) -> dict[str, Any]:
    """Seconds of decoding, watched and not, sample by sample in one process."""
    from edge_lts import stats
    from edge_lts.profile import latency

    gate = trial.gate()
    _, decode, _ = trial.timers()
    with latency.resting_garbage_collector():
        decode.warm_up(trial.protocol.warmup, trial.protocol.min_sample_s)
        gate.begin()
        for _ in range(N_ALTERNATING):
            for chosen in (gate, None):
                decode.gate = chosen
                decode.sample()
    watched, unwatched = decode.samples_s[::2], decode.samples_s[1::2]
    return {"ratio": stats.median([one / other for one, other in zip(watched, unwatched, strict=True)])}


def run(path: Path, n: int, protocol: Protocol, seed: int) -> None:
    from trials import NAMES, Trial

    rng = random.Random(seed)
    n_done = len(read_rows(path))
    begun = time.monotonic()
    with path.open("a") as out:
        for count in range(1, n - n_done + 1):
            order = [True, False]
            rng.shuffle(order)
            results = {}
            for has_gate in order:
                with Trial(ARCH, protocol, has_gate=has_gate) as trial:
                    results[has_gate] = trial.finish()
            with Trial(ARCH, protocol, job=alternating) as trial:
                within = trial.finish()["ratio"]
            watched, plain = results[True], results[False]
            row = {
                "ratios": {name: watched["all_s"][name] / plain["all_s"][name] for name in NAMES},
                "within": within,
                "monitoring_s": watched["quality"]["monitoring_s"],
                "cpu_s": watched["cpu_s"],
                "wall_s": watched["wall_s"],
                "others_share": watched["quality"]["others_share"],
                "flags": watched["flags"],
            }
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
            if count % 10 == 0 or count == n - n_done:
                elapsed = time.monotonic() - begun
                to_go = elapsed / count * (n - n_done - count)
                print(f"{count}/{n - n_done} pairs, {elapsed:.0f} s, about {to_go:.0f} s to go", flush=True)


def evaluate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from trials import NAMES, median_interval

    ratios = {name: median_interval([row["ratios"][name] for row in rows]) for name in NAMES}
    within = median_interval([row["within"] for row in rows])
    share, *share_interval = median_interval([row["monitoring_s"] / row["cpu_s"] for row in rows])
    is_within = (
        share <= MAX_CPU_SHARE
        and all(not math.isnan(bound) and abs(bound - 1) <= MAX_MOVE for bound in within[1:])
        and all(low <= 1 + MAX_MOVE and high >= 1 - MAX_MOVE for _, low, high in ratios.values())
    )
    return {
        "n": len(rows),
        "cpu_share": {"median": share, "ci95": share_interval, "limit": MAX_CPU_SHARE},
        "ratio_between_processes": ratios,
        "ratio_within_processes": within,
        "is_within_limits": is_within,
    }


def page(result: dict[str, Any], raw: str) -> list[str]:
    def ratio(found: tuple[float, float, float]) -> str:
        return f"{found[0] - 1:+.2%} (95 % interval {found[1] - 1:+.2%} to {found[2] - 1:+.2%})"

    between = result["ratio_between_processes"]
    return [
        "# What watching costs",
        "",
        where_line(result["conditions"]),
        f"`{result['command']}`; raw: [{raw}]({raw}). {result['n']} pairs of processes and as many that alternate.",
        "",
        f"- CPU time of the monitoring: {result['cpu_share']['median']:.2%} of the process's "
        f"(limit {MAX_CPU_SHARE:.0%})",
        f"- decode latency, watched against unwatched samples of one process: {ratio(result['ratio_within_processes'])}"
        f" (limit {MAX_MOVE:.1%})",
        f"- decode latency, processes with the gate against without: {ratio(between['decode_latency_s'])}",
        f"- prefill latency, likewise: {ratio(between['prefill_latency_s'])}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"monitoring_{platform.machine()}_202611.jsonl")
    parser.add_argument("--evaluate", action="store_true")
    args = parser.parse_args()
    # No early end and no retries: both sides take the same number of samples.
    protocol = Protocol(
        threads=args.threads, prefill_samples=20, decode_samples=40, ci_fraction=0.0, max_retries=0, min_sample_s=0.002
    )
    if not args.evaluate:
        run(args.out, args.n, protocol, args.seed)
    result = {
        "what": "latency with the gate divided by latency without, and the gate's share of CPU time",
        "command": f"python benchmarks/bench_monitoring.py -n {args.n} --threads {args.threads}",
        **evaluate(read_rows(args.out)),
        "conditions": where(protocol=protocol.to_json(), architecture=ARCH.to_json()),
    }
    lines = page(result, args.out.name)
    write_result(args.out.with_suffix(".json"), result, lines)
    print("\n".join(lines[5:]))
    return 0 if result["is_within_limits"] else 1


if __name__ == "__main__":
    sys.exit(main())

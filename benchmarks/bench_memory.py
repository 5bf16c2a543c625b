"""Is the recorded peak memory what another process sees? Random models, both backbones, all precisions.

usage: python benchmarks/bench_memory.py [-n MODELS] [--seconds S] [--seed N] [--out FILE.json]

Each model is built and run in a forked child by the steps of the evaluator, with its MemoryMeter. The parent is the
observer and uses nothing of that: it reads the child's /proc/PID/smaps_rollup (Rss + Swap, counted page by page) while
the child stands still at its baseline, and, while the child then repeats its prefill and its token for S seconds with
the same malloc settings, both smaps_rollup and statm as often as it can. What it saw at most, less what it saw at the
baseline, is compared with the `running_peak_bytes` of the record. Required: within 2 % or 1 MB, whichever is more, for
all. Also reported: the peak while loading against the size of a float32 copy, and the prediction by formula.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import select
import sys
import time
from pathlib import Path
from typing import Any

import torch  # imported by the parent, used by its children only
from common import ROOT, where, where_line

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_tokens, predicted_bytes, weight_bytes
from edge_lts.model import build_model
from edge_lts.precision import PRECISIONS
from edge_lts.profile.anchor import Anchor
from edge_lts.profile.latency import make_timers
from edge_lts.profile.memory import MemoryMeter, run_twice, set_malloc
from edge_lts.profile.weights import fill_tensors, fill_weights
from edge_lts.records import Protocol

MB = 1_000_000
MAX_SHARE, MAX_BYTES = 0.02, 1 * MB
PAGE = os.sysconf("SC_PAGE_SIZE")


def random_arch(rng: random.Random, index: int) -> Architecture:
    d_model = rng.choice((128, 256, 384, 512, 640))
    heads = [head for head in (2, 4, 8) if 32 <= d_model // head <= 128]
    layers = tuple(
        LayerSpec(d_inner=64 * rng.randint(4, 40), n_head=rng.choice(heads)) for _ in range(rng.randint(2, 10))
    )
    return Architecture(
        backbone=("gpt2", "transformer-xl")[index % 2],
        d_model=d_model,
        layers=layers,
        d_embed=rng.choice((d_model, d_model, 256)),
        embedding_factor=rng.choice((1, 1, 4)),
        vocab_size=rng.choice((50257, 50257, 8192)),
        tie_embeddings=rng.random() < 0.8,
        precision=PRECISIONS[index // 2 % len(PRECISIONS)],
    )


def child(arch: Architecture, protocol: Protocol, said: int, heard: int) -> None:
    """The evaluator's order of things; stops at "baseline" and "ran" until the observer lets it go on."""

    def pause(message: dict[str, Any]) -> None:
        os.write(said, json.dumps(message).encode() + b"\n")
        os.read(heard, 1)

    torch.set_num_threads(protocol.threads)
    set_malloc(keeps_freed=False)
    with torch.inference_mode():
        anchor = Anchor(arch, protocol)
        meter = MemoryMeter()
        pause({})
        model = build_model(arch)
        weights = fill_weights(model)
        meter.end_loading()
        cache = model.new_cache(capacity=cache_tokens(arch, protocol))
        fill_tensors(cache.tensors())
        prefill, decode, _ = make_timers(model, cache, protocol)
        run_twice(prefill, decode)
        meter.end_running()
        set_malloc(keeps_freed=False)
        pause({**meter.to_json(), "weights_bytes": weights})
        while not select.select([heard], [], [], 0)[0]:
            run_twice(prefill, decode)
        del anchor


def rollup(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", "rb") as lines:
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith((b"Rss:", b"Swap:")))


def observe(arch: Architecture, protocol: Protocol, seconds: float) -> dict[str, Any]:
    from_child, said = os.pipe()
    heard, to_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(arch, protocol, said, heard)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(said)
    os.close(heard)
    try:
        with open(from_child, "rb") as messages:
            if not messages.readline():
                raise SystemExit(f"{arch.to_json()}: the child ended early")
            baseline = rollup(pid)
            os.write(to_child, b".")
            line = messages.readline()
            if not line:
                raise SystemExit(f"{arch.to_json()}: the child ended early")
            behind = rollup(pid)
            os.write(to_child, b".")
            exact, counted, n_exact, n_counted = behind, 0, 0, 0
            until = time.monotonic() + seconds
            with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
                while time.monotonic() < until:
                    exact, n_exact = max(exact, rollup(pid)), n_exact + 1
                    for _ in range(200):
                        statm.seek(0)
                        counted = max(counted, PAGE * int(statm.read(64).split()[1]))
                        n_counted += 1
            os.write(to_child, b".")
    finally:
        os.close(to_child)
        os.waitpid(pid, 0)
    return {
        "recorded": json.loads(line),
        "baseline_bytes": baseline,
        "exact_peak_bytes": exact - baseline,
        "counted_peak_bytes": counted - baseline,
        "n_exact": n_exact,
        "n_counted": n_counted,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=ROOT / f"benchmarks/results/memory_{platform.machine()}_202611.json"
    )
    args = parser.parse_args()
    rng, protocol, rows = random.Random(args.seed), Protocol(threads=1), []
    for index in range(args.n):
        arch = random_arch(rng, index)
        seen = observe(arch, protocol, args.seconds)
        recorded = seen["recorded"]["running_peak_bytes"]
        observed = max(seen["exact_peak_bytes"], seen["counted_peak_bytes"])
        error = recorded - observed
        row = {
            "architecture": arch.to_json(),
            **seen,
            "recorded_bytes": recorded,
            "observed_bytes": observed,
            "error_bytes": error,
            "is_within": abs(error) <= max(MAX_SHARE * observed, MAX_BYTES),
            "loading_bytes": seen["recorded"]["loading_peak_bytes"],
            "float32_bytes": weight_bytes(arch.replace(precision=None)),
            "predicted_bytes": predicted_bytes(arch, protocol),
        }
        rows.append(row)
        print(
            f"{index:3} {arch.backbone:14} {arch.precision:12} recorded {recorded / MB:8.2f} observed "
            f"{observed / MB:8.2f} MB  {100 * error / observed:+6.2f} %  {'' if row['is_within'] else 'OUTSIDE'}  "
            f"loading {row['loading_bytes'] / MB:7.1f} predicted {row['predicted_bytes'] / MB:7.1f}",
            flush=True,
        )
    n_within = sum(row["is_within"] for row in rows)
    largest = max(abs(row["error_bytes"]) for row in rows)
    shares = sorted(abs(row["error_bytes"]) / row["observed_bytes"] for row in rows)
    text = [
        "# Peak memory against an independent observer",
        "",
        where_line(where()),
        "",
        f"{n_within} of {len(rows)} models within 2 % or 1 MB. Largest difference {largest / MB:.2f} MB; median "
        f"{100 * shares[len(shares) // 2]:.2f} %, largest {100 * shares[-1]:.2f} %. Page size {PAGE} bytes.",
        "",
        "| precision | models | within | largest difference, MB | recorded / predicted |",
        "|---|---|---|---|---|",
    ]
    for precision in PRECISIONS:
        own = [row for row in rows if row["architecture"]["precision"] == precision]
        if own:
            ratios = [row["recorded_bytes"] / row["predicted_bytes"] for row in own]
            text.append(
                f"| {precision} | {len(own)} | {sum(row['is_within'] for row in own)} | "
                f"{max(abs(row['error_bytes']) for row in own) / MB:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"where": where(), "rows": rows}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return 0 if n_within == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

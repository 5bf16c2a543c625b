"""How well the additive cost model predicts whole models that it has not seen: time and memory, quiet and disturbed.

usage: python benchmarks/bench_cost_model.py [measure|report] [--load] [--tests N] [--training N]

`measure` times, on one core and one thread, in one random order: guided search's design of the paper's GPT-2 space,
random members to learn from, random members to test with (three times each), and twenty permutations of one model's
layers, five times each. `--load` does the same (without permutations) while a process that streams through memory on
the other core comes and goes. `report` fits the cost model to the design, then to more and more of the training
members, and compares its predictions with the tests. To reach on a quiet machine: latency median 2 %, 90th percentile 5
%, memory 2 %, and permutations within 1 %.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    RESULTS,
    Job,
    Protocol,
    evaluation_from,
    fitted,
    load_space,
    measure_jobs,
    read_rows,
    stay_on_one_core,
    where,
    where_line,
    write_result,
)

from edge_lts.arch import Architecture
from edge_lts.footprint import weight_bytes
from edge_lts.objectives import resolve_objectives
from edge_lts.records import central
from edge_lts.search.cost_model import COSTS, Conditions
from edge_lts.search.design import choose_design
from edge_lts.stats import quantile

PROTOCOL = Protocol(threads=1, warmup=1, prefill_samples=3, decode_samples=12)
TIMES = (*COSTS, "peak_memory_bytes")
N_PERMUTATIONS, PERMUTATION_REPEATS = 20, 5
TEST_REPEATS = 3
LIMITS = {"median": 0.02, "p90": 0.05, "permutation": 0.01}


def jobs_for(n_training: int, n_tests: int) -> list[Job]:
    space, rng = load_space("lts-gpt2"), np.random.default_rng(5)
    design = choose_design(space, Conditions.of(PROTOCOL, None), 24, rng)
    archs = list(dict.fromkeys([*design, *(space.sample(rng) for _ in range(2 * (n_training + n_tests)))]))
    drawn = archs[len(design) :]
    return [
        *(Job("design", arch) for arch in design),
        *(Job("training", arch) for arch in drawn[:n_training]),
        *(Job("test", arch) for arch in drawn[n_training : n_training + n_tests]),
    ]


def permutations() -> list[Job]:
    """One heterogeneous model with its layers in twenty orders."""
    space = load_space("small")
    rng = np.random.default_rng(6)
    arch = max((space.sample(rng) for _ in range(200)), key=lambda found: len(set(found.layers)))
    shuffled = random.Random(7)
    return [
        Job("permutation", arch.replace(layers=tuple(shuffled.sample(arch.layers, arch.n_layer))))
        for _ in range(N_PERMUTATIONS)
    ]


def stream(seed: int) -> None:
    """Copy 64 MB over and over for 2 to 12 s, rest as long, until ended or left alone."""
    rng, parent = random.Random(seed), os.getppid()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = np.ones(8_000_000)
    while os.getppid() == parent:
        until = time.monotonic() + rng.uniform(2, 12)
        while time.monotonic() < until:
            source = source * 1.0000001
        time.sleep(rng.uniform(2, 12))


@contextlib.contextmanager
def load_that_comes_and_goes() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=stream, args=(11,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def errors_of(rows: list[dict[str, Any]], n_learned: int) -> dict[str, Any]:
    """Errors on the tests of a model that learned from the design and the first training members."""
    known = [row for row in rows if row["tag"] in ("design", "training")]
    known = sorted(known, key=lambda row: row["job"])[:n_learned]
    predictor = fitted((evaluation_from(row) for row in sorted(known, key=lambda row: row["at_s"])), PROTOCOL)
    tests: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["tag"] == "test":
            tests.setdefault(row["job"], []).append(row)
    result: dict[str, Any] = {"n_learned": len(known), "n_tests": len(tests)}
    for name in TIMES:
        signed, scatter = [], []
        for own in tests.values():
            arch = Architecture.from_json(own[0]["architecture"])
            model = predictor.models.get(name)
            values = []
            for row in own:
                speed = 1.0 if model is None else model.drift.factor(arch, row["anchor_s"])
                values.append(float(central(evaluation_from(row).objectives[name]) or 1) / speed)
            middle = statistics.median(values)
            scatter += [abs(value / middle - 1) for value in values if value != middle]
            signed.append((weight_bytes(arch), predictor.predict(arch)[name] / middle - 1))
        absolute = [abs(error) for _, error in signed]
        result[name] = {
            "bias": statistics.median(error for _, error in signed),
            "median": statistics.median(absolute),
            "p90": quantile(absolute, 0.9),
            "max": max(absolute),
            "test_scatter": statistics.median(scatter) if scatter else None,
            "noise": predictor.models[name].noise if name in predictor.models else None,
            "by_weights": by_weights(signed),
        }
    return result


def by_weights(signed: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Median error in three classes of weight bytes: below, about and above the last-level cache or the middle."""
    edges = (0, 150e6, 300e6, float("inf"))
    found = []
    for low, high in itertools.pairwise(edges):
        errors = [abs(error) for size, error in signed if low <= size < high]
        if errors:
            above = None if high == float("inf") else int(high)
            found.append({"from": int(low), "to": above, "n": len(errors), "median": statistics.median(errors)})
    return found


def permutation_spread(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far each order's median over its processes lies from the median of all orders."""
    result = {}
    for name in COSTS:
        by_job: dict[int, list[float]] = {}
        for row in rows:
            if row["tag"] == "permutation":
                anchor = row["anchor_s"][name]
                by_job.setdefault(row["job"], []).append(row["objectives"][name]["median"] / anchor)
        medians = [statistics.median(values) for values in by_job.values()]
        if medians:
            middle = statistics.median(medians)
            far = [abs(value / middle - 1) for value in medians]
            within = [abs(value / statistics.median(values) - 1) for values in by_job.values() for value in values]
            result[name] = {"median": statistics.median(far), "max": max(far), "same_order": statistics.median(within)}
    return result


def solving(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and memory for the predicted frontier of the whole space, at the costs learned from everything."""
    learned = [row for row in rows if row["tag"] != "permutation" and row["repeat"] == 0]
    space, predictor = load_space("lts-gpt2"), fitted(map(evaluation_from, learned), PROTOCOL)
    found = []
    for names in (
        ("decoder_params", "decode_latency_s"),
        ("decoder_params", "decode_latency_s", "peak_memory_bytes"),
        ("decoder_params", "decode_latency_s", "prefill_latency_s"),
    ):
        reader, writer = os.pipe()
        if not os.fork():
            before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            prediction = predictor.frontier(space, resolve_objectives(names))
            seconds = time.perf_counter() - begun
            added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            entry = {"objectives": names, "seconds": seconds, "bytes": added, "n": len(prediction)}
            os.write(writer, json.dumps({**entry, "cover": prediction.cover}).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            found.append(json.loads(pipe.read()))
        os.wait()
    return found


def report(path: Path, is_loaded: bool) -> None:
    rows = read_rows(path)
    if not rows:
        sys.exit(f"{path} holds nothing: run `measure` first")
    n_known = sum(1 for row in rows if row["tag"] in ("design", "training"))
    sizes = [size for size in (24, 48, 96) if size < n_known] + [n_known]
    found = where(is_loaded=is_loaded)
    result = {
        "what": "errors of predicted against measured values of random members of the paper's GPT-2 space",
        "command": f"python benchmarks/bench_cost_model.py measure{' --load' if is_loaded else ''}; ... report",
        "raw": path.name,
        "limits": LIMITS,
        "conditions": found,
        "errors": [errors_of(rows, size) for size in sizes],
        "permutations": permutation_spread(rows),
        "solving": solving(rows),
    }
    lines = [
        f"# How well the cost model predicts ({'with a competing load' if is_loaded else 'quiet'})",
        "",
        f"{where_line(found)} One thread on one core. `{result['command']}`; raw: [{path.name}]({path.name}).",
        "Errors of predictions for random members of the paper's GPT-2 space that were not learned from, against the "
        f"median of {TEST_REPEATS} processes each at random times, at the machine's usual speed. Scatter: how far one "
        "process lies from that median.",
        "",
        "| learned from | objective | median | p90 | largest | bias | model's noise | a test's own scatter |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["errors"]:
        for name in TIMES:
            entry = row[name]
            noise, scatter = ("" if entry[key] is None else f"{entry[key]:.1%}" for key in ("noise", "test_scatter"))
            lines.append(
                f"| {row['n_learned']} | {name} | {entry['median']:.1%} | {entry['p90']:.1%} | {entry['max']:.1%} | "
                f"{entry['bias']:+.1%} | {noise} | {scatter} |"
            )
    last = result["errors"][-1]
    lines += ["", f"Decode by weights (n = {last['n_tests']}), learned from {last['n_learned']}:", ""]
    for part in last["decode_latency_s"]["by_weights"]:
        upper = "more" if part["to"] is None else f"{part['to'] / 1e6:.0f} MB"
        lines.append(f"- {part['from'] / 1e6:.0f} MB to {upper}: median {part['median']:.1%} ({part['n']} models)")
    for name, entry in result["permutations"].items():
        lines.append(
            f"- {name}, {N_PERMUTATIONS} orders of one model's layers, {PERMUTATION_REPEATS} processes each: an "
            f"order's median lies {entry['median']:.1%} from the middle (largest {entry['max']:.1%}); one process of "
            f"an order {entry['same_order']:.1%} from that order's median"
        )
    lines += ["", "Solving the whole space at these costs, on one core:", ""]
    lines += [
        f"- {', '.join(item['objectives'])}: {item['seconds']:.1f} s, {item['bytes'] / 1e6:.0f} MB ({item['cover']})"
        for item in result["solving"]
    ]
    write_result(path.with_suffix(".json"), result, lines)
    print("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "report"), nargs="?", default="report")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--training", type=int, default=72)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = "cost_model_load_x86_64_202611.jsonl" if args.load else "cost_model_x86_64_202611.jsonl"
    path = args.out or RESULTS / name
    if args.what == "measure":
        jobs = jobs_for(args.training, args.tests)
        with contextlib.ExitStack() as stack:
            if args.load:
                stack.enter_context(load_that_comes_and_goes())
            stay_on_one_core()
            measure_jobs(jobs, path, seed=3, protocol=PROTOCOL)
            tests = frozenset(index for index, job in enumerate(jobs) if job.tag == "test")
            measure_jobs(jobs, path, repeats=TEST_REPEATS, seed=5, protocol=PROTOCOL, only=tests)
            if not args.load:
                extra = [*jobs, *permutations()]
                measure_permutations(extra, len(jobs), path)
    report(path, args.load)
    return 0


def measure_permutations(jobs: list[Job], first: int, path: Path) -> None:
    """The permutations in random order, their numbers following those of the other jobs."""
    numbered = {index: job for index, job in enumerate(jobs) if index >= first}
    measure_jobs(jobs, path, repeats=PERMUTATION_REPEATS, seed=4, protocol=PROTOCOL, only=frozenset(numbered))


if __name__ == "__main__":
    sys.exit(main())

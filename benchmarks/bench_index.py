"""How long do answers over a million measurements take, in how much memory, and how quickly is their index built?

usage: python benchmarks/bench_index.py [--measurements N] [--runs R] [-n TIMES] [--work DIR] [--out FILE]

Ledgers are made up, in the format of a real agent: records of `Evaluation.to_json` with 60 samples, anchors, and the
conditions that method 2 writes, 3.6 kB each. Eight kinds of board that measured alike, R runs of them, whose speed
drifts by a tenth; a third of the measurements are of an architecture that another run may have measured, too, and one
in six confirms one of its own run. Times in them are those of a formula: this measures edge-lts and no board.

Every command is a fresh process, `edge-lts bench ...` as a user types it; the ledgers have just been written, so that
the disk is no part of it unless memory is short. Limits: 50 MB/s to build, 3 s and 500 MB for each answer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, where, where_line, write_result

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.records import Evaluation, Measurement, Protocol, RunSpec
from edge_lts.stats import summarise

sys.path.insert(0, str(ROOT))
from tests.unit.host.sample_runs import RPI5

LIMIT_S, LIMIT_BYTES, LIMIT_RATE = 3.0, 500e6, 50e6
SCRIPT = [sys.executable, "-c", "import sys; from edge_lts_host.__main__ import main; sys.exit(main())"]
# Model, CPU, seconds per parameter and token: made up, a factor of six from the first to the last.
BOARDS = tuple((f"Pretended board {number}", f"Pretended-A{70 + number}", 1e-9 * 1.3**number) for number in range(8))
PROTOCOL = Protocol(threads=4)
SHARED = 0.4


def architecture(number: int) -> Architecture:
    """The architecture of that number, always the same one: 4 to 12 layers, each with a width of its own."""
    rng = random.Random(number)
    d_model = 64 * rng.randint(3, 12)
    layers = sorted(
        LayerSpec(d_inner=64 * rng.randint(4, 40), n_head=rng.choice([2, 4, 8])) for _ in range(rng.randint(4, 12))
    )
    return Architecture(backbone="gpt2", d_model=d_model, layers=tuple(layers), vocab_size=8192, max_seq_len=512)


def measured(
    rng: random.Random, arch: Architecture, candidate_id: int, seconds: float, speed: float, purpose: Any
) -> Evaluation:
    """One process on a machine that is `speed` times as slow as usual; `seconds` per parameter and token."""
    total, decoder = arch.total_params, arch.decoder_params
    decode_s = (seconds * total + 2e-5 * arch.n_layer) * speed
    samples = {
        "decode_latency_s": [round(decode_s * math.exp(0.01 * rng.gauss(0, 1)), 10) for _ in range(40)],
        "prefill_latency_s": [round(60 * decode_s * math.exp(0.01 * rng.gauss(0, 1)), 9) for _ in range(20)],
    }
    peak = 4 * total + 5_000_000 + 4096 * rng.randint(0, 50)
    health: dict[str, Any] = {
        "temperature_c": {"before": 52.3, "max": 61.8, "after": 60.2},
        "frequency_hz": {"before": 1_500_000_000, "min": 1_500_000_000, "after": 1_500_000_000},
        "throttle": {"now": 0, "before": 0, "after": 0, "source": "vcio"},
        "governor": "ondemand",
    }
    quality = {
        "n_retried": 1,
        "taints": {"contended": 1},
        "tainted_samples": {"decode_latency_s": [12], "prefill_latency_s": []},
        **dict.fromkeys(("steal_share", "others_share", "memory_pressure_share"), 0.0),
        "cpu_pressure_share": round(rng.random() / 1000, 15),
        "involuntary_switches": rng.randint(0, 30),
        **dict.fromkeys(("major_faults", "swap_ins"), 0),
        "load_1min": round(rng.random(), 6),
        "monitoring_s": round(rng.random() / 100, 9),
    }
    memory = {
        "baseline_bytes": 207867904,
        "loading_peak_bytes": peak // 2,
        "running_peak_bytes": peak,
        "timed_peak_bytes": peak + 600_000,
        "rss_bytes": 207867904 + peak,
        "rss_exact_bytes": 207867904 + peak,
        "swap_bytes": 0,
        "page_size_bytes": 4096,
        "huge_pages": "madvise",
        "is_watermark_reset": True,
        "is_malloc_set": True,
        "weights_bytes": 4 * total,
        "cache_bytes": 494080,
        "predicted_bytes": 4 * total + 1_400_000,
        "precision": "float32",
        "is_emulator_counted": False,
    }
    anchors = {"prefill_latency_s": 0.00225, "decode_latency_s": 0.00041, "stream_s": 0.00066}
    conditions = {
        "threads": 4,
        "torch": "2.9.1+cpu",
        "method_version": PROTOCOL.method_version,
        "precision": "float32",
        "wall_s": rng.random(),
        "cpu_s": rng.random(),
        "quality": quality,
        "health": health,
        "block_sizes": {"decode": 3, "prefill": 1},
        "n_forwards": {"decode": 167, "prefill": 25},
        "anchor_s": {name: value * speed * math.exp(0.01 * rng.gauss(0, 1)) for name, value in anchors.items()},
        "shallow_decode": {"context_tokens": 48, "median_s": decode_s * 0.94},
        "memory": memory,
        "framework": {
            "width8_decode_s": decode_s * 0.3,
            "dispatch_share": rng.random(),
            "stream_bytes_per_s": 5e9 * rng.random(),
            "bytes_per_token": 4 * total,
            "bandwidth_floor_s": decode_s * 0.4,
        },
        **{
            name: rng.random()
            for name in ("forward_s", "process_warmup_s", "load_s", "child_s", "total_s", "overhead_s")
        },
        "isolation": "fork",
        "origin": "frontier",
    }
    return Evaluation(
        candidate_id=candidate_id,
        architecture=arch,
        objectives={
            "decoder_params": decoder,
            **{name: summarise(values) for name, values in samples.items()},
            "peak_memory_bytes": Measurement(median=float(peak)),
        },
        samples=samples,
        conditions=conditions,
        purpose=purpose,
        spent_s=round(2.5 * candidate_id + 2.5, 3),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_795_000_000 + 2 * candidate_id)),
        predicted={"decode_latency_s": decode_s / speed, "prefill_latency_s": 60 * decode_s / speed},
    )


def write_run(root: str, number: int, n_measurements: int, n_shared: int) -> int:
    """One run of one board; bytes of its ledger."""
    rng = random.Random(1_000_003 * number + 1)
    model, cpu, seconds = BOARDS[number % len(BOARDS)]
    run_id = f"202611{1 + number // 1440 % 28:02d}-{number // 60 % 24:02d}{number % 60:02d}00-pretended-{number:04d}"
    folder = Path(root) / run_id
    folder.mkdir(parents=True)
    space = {"name": "pretended", "backbone": "gpt2"}
    spec = RunSpec(run_id=run_id, space=space, budget_s=10800.0, target="arm64", protocol=PROTOCOL, strategy="guided")
    device = replace(RPI5, model=model, cpu_model=cpu, boot_id=None)
    (folder / "spec.json").write_text(json.dumps(spec.to_json()))
    (folder / "device.json").write_text(json.dumps(device.to_json()))
    own: list[Architecture] = []
    with (folder / "ledger.jsonl").open("wb") as ledger:
        for index in range(n_measurements):
            is_confirmation = own and rng.random() < 1 / 6
            if is_confirmation:
                arch = own[rng.randrange(min(len(own), 40))]
            else:
                shared = rng.random() < SHARED
                arch = architecture(rng.randrange(n_shared) if shared else 10**9 + number * 10**6 + index)
                own.append(arch)
            speed = math.exp(0.1 * math.sin(index / 60 + number))
            record = measured(rng, arch, index, seconds, speed, "confirm" if is_confirmation else "search").to_json()
            # Exactly as edge_lts.ledger.Ledger.append writes it, but for its fsync.
            ledger.write(json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n")
        return ledger.tell()


def edge_lts(root: Path, *words: str) -> tuple[float, int, str]:
    """(wall seconds, peak resident bytes, stdout) of a fresh process."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}", "EDGE_LTS_RUNS": str(root)}
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*SCRIPT, "-q", *words], stdout=out, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(words)} ended with {process.returncode}")
        out.seek(0)
        return wall_s, usage.ru_maxrss * 1024, out.read().decode()


def answers(root: Path, times: int) -> dict[str, Any]:
    """Each question `times` over, in turn."""
    arch_id = json.loads(first_line(root))["arch_id"]
    questions = {
        "query": ("bench", "query", arch_id),
        "boards": ("bench", "boards"),
        "compare": ("bench", "compare"),
        "compare two": ("bench", "compare", "--device", "board 0", "--device", "board 5"),
    }
    found: dict[str, Any] = {
        name: {"command": " ".join(("edge-lts", *words)), "wall_s": [], "peak_bytes": 0}
        for name, words in questions.items()
    }
    for _ in range(times):
        for name, words in questions.items():
            wall_s, peak_bytes, _ = edge_lts(root, *words)
            found[name]["wall_s"].append(round(wall_s, 4))
            found[name]["peak_bytes"] = max(found[name]["peak_bytes"], peak_bytes)
    for one in found.values():
        one["median_s"] = statistics.median(one["wall_s"])
    return found


def first_line(root: Path) -> str:
    with (sorted(root.glob("2*"))[0] / "ledger.jsonl").open() as ledger:
        return ledger.readline()


def one_more(root: Path) -> dict[str, Any]:
    """A run that grew by ten measurements: what the next question pays for."""
    folder = sorted(root.glob("2*"))[0]
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b"".join([(folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)[0]] * 10))
    wall_s, _, text = edge_lts(root, "bench", "index", "-o", "json")
    return {"wall_s": wall_s, **json.loads(text)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measurements", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("-n", type=int, default=5, help="times that each question is asked")
    parser.add_argument(
        "--work", type=Path, help="make the ledgers there and keep them (default: a folder that goes away)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "index_x86_64_202611.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (args.work or Path(scratch)) / "runs"
        if not root.exists():
            n_each, n_shared = args.measurements // args.runs, max(1, args.measurements // 10)
            with ProcessPoolExecutor() as pool:
                sizes = [pool.submit(write_run, str(root), number, n_each, n_shared) for number in range(args.runs)]
                print(f"{args.runs} runs made, {sum(size.result() for size in sizes) / 1e9:.2f} GB", flush=True)
        (root / "index" / "ledgers.sqlite").unlink(missing_ok=True)
        wall_s, peak_bytes, text = edge_lts(root, "bench", "index", "-o", "json")
        build = {"wall_s": wall_s, "peak_bytes": peak_bytes, **json.loads(text)}
        build["index_bytes"] = (root / "index" / "ledgers.sqlite").stat().st_size
        print(f"built: {build['n_records']:,} records, {build['bytes_per_s'] / 1e6:.1f} MB/s", flush=True)
        asked = answers(root, args.n)
        out = Path(scratch) / "measured.jsonl.gz"
        export_s, export_peak, text = edge_lts(root, "bench", "export", str(out), "-o", "json")
        export = {"wall_s": export_s, "peak_bytes": export_peak, **json.loads(text), "path": out.name}
        grown = one_more(root)
    found = where(pandas=None)
    command = f"python benchmarks/bench_index.py --measurements {args.measurements} --runs {args.runs} -n {args.n}"
    result = {
        "where": found,
        "command": command,
        "limits": {"answer_s": LIMIT_S, "answer_bytes": LIMIT_BYTES, "build_bytes_per_s": LIMIT_RATE},
        "build": build,
        "answers": asked,
        "export": export,
        "grown": grown,
    }
    is_met = build["bytes_per_s"] >= LIMIT_RATE and all(
        one["median_s"] < LIMIT_S and one["peak_bytes"] < LIMIT_BYTES for one in asked.values()
    )
    result["is_within_limits"] = is_met
    lines = page(found, result)
    write_result(args.out, result, lines)
    print("\n".join(lines))
    return 0 if is_met else 1


def page(found: dict[str, Any], result: dict[str, Any]) -> list[str]:
    build, export, grown = result["build"], result["export"], result["grown"]
    lines = [
        f"# Answers over {build['n_records']:,} measurements",
        "",
        where_line(found),
        f"`{result['command']}`: {build['n_runs']} made-up runs on {len(BOARDS)} kinds of board in the",
        f"format of real ledgers, {build['n_bytes'] / 1e9:.2f} GB. Each answer is a fresh process.",
        "",
        "| | median | slowest | peak memory | limit |",
        "|---|---|---|---|---|",
    ]
    limits = f"{LIMIT_S:.0f} s, {LIMIT_BYTES / 1e6:.0f} MB"
    lines += [
        f"| `{one['command']}` | {one['median_s']:.2f} s | {max(one['wall_s']):.2f} s | "
        f"{one['peak_bytes'] / 1e6:.0f} MB | {limits} |"
        for one in result["answers"].values()
    ]
    lines += [
        "",
        f"Building the index: {build['seconds']:.1f} s, {build['bytes_per_s'] / 1e6:.1f} MB/s (limit",
        f"{LIMIT_RATE / 1e6:.0f}), {build['peak_bytes'] / 1e6:.0f} MB of memory; it takes "
        f"{build['index_bytes'] / 1e6:.0f} MB on the disk.",
        f"After one run grew by {grown['n_records']} records: {grown['wall_s']:.2f} s, in which {grown['n_bytes']:,}",
        "bytes were read.",
        f"`bench export`: {export['wall_s']:.1f} s, {export['n_bytes'] / 1e6:.0f} MB, "
        f"{export['peak_bytes'] / 1e6:.0f} MB of memory.",
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())

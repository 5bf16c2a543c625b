"""How long `edge-lts status` takes to ask many boards: 100 OpenSSH servers on loopback ports, one command each.

usage: python benchmarks/bench_fleet.py [-n HOSTS] [--runs RUNS] [--out FILE]

The requirement is every answer in under 20 s, one command per board, with threads and memory bounded by --parallel and
not by the number of boards: asking a fifth as many shows that. Servers, agents and the workstation share the cores of
this machine, so most of the time is theirs; on real boards only the workstation's share is left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, where, where_line, write_result

sys.path.insert(0, str(ROOT))
from tests.integration.shelf import Outcome, Shelf

LIMIT_S = 20.0
MAX_THREADS = 200  # 32 boards at a time, five threads each at most, and some
MAX_MEMORY_BYTES = 200 << 20


def ask(shelf: Shelf, *words: str) -> dict[str, Any]:
    """One `status` of every board; seconds, threads, bytes, and whether each board was asked once."""
    before = shelf.n_commands()
    outcome = shelf.command("status", *words, "-o", "json")
    asked = {name: n - before[name] for name, n in shelf.n_commands().items()}
    return {
        "words": ["status", *words],
        "exit_status": outcome.status,
        "n_boards": len(shelf.servers),
        "n_answers": n_answers(outcome),
        "commands_per_board": [min(asked.values()), max(asked.values())],
        "took_s": round(outcome.took_s, 3),
        "cpu_s": round(outcome.cpu_s, 3),
        "peak_threads": outcome.peak_threads,
        "peak_memory_bytes": outcome.peak_memory_bytes,
    }


def n_answers(outcome: Outcome) -> int:
    try:
        return sum(row["is_reachable"] for row in json.loads(outcome.stdout)["runs"])
    except ValueError:
        print(outcome.stderr[-2000:], file=sys.stderr)
        return 0


def is_good(sample: dict[str, Any]) -> bool:
    return (
        sample["exit_status"] == 0
        and sample["n_answers"] == sample["n_boards"]
        and sample["commands_per_board"] == [1, 1]
        and sample["took_s"] < LIMIT_S
        and sample["peak_threads"] <= MAX_THREADS
        and sample["peak_memory_bytes"] <= MAX_MEMORY_BYTES
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=100, help="boards (default: 100)")
    parser.add_argument("--runs", type=int, default=5, help="how often each is asked (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "fleet_x86_64_202611.json")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        for n in (max(1, args.n // 5), args.n):
            where_it_is = Path(folder) / str(n)
            where_it_is.mkdir()
            with Shelf(where_it_is, n) as shelf:
                ask(shelf, "--all")  # fills the page cache
                for _ in range(args.runs):
                    for words in (["--all"], ["--limit", "*"]):
                        samples.append(ask(shelf, *words))
                        print(json.dumps(samples[-1]), flush=True)
    large = [sample for sample in samples if sample["n_boards"] == args.n]
    conditions = where(load_before=load_before)
    median_s = statistics.median(sample["took_s"] for sample in large)
    worst_s = max(sample["took_s"] for sample in large)
    ok = all(is_good(sample) for sample in large)
    result = {
        "what": "one `edge-lts status` of many boards, each an sshd on a loopback port of this machine",
        "command": f"python benchmarks/bench_fleet.py -n {args.n} --runs {args.runs}",
        "median_s": median_s,
        "worst_s": worst_s,
        "limits": {"took_s": LIMIT_S, "threads": MAX_THREADS, "memory_bytes": MAX_MEMORY_BYTES},
        "is_within_limit": ok,
        "conditions": conditions,
        "samples": samples,
    }
    lines = [
        "# A hundred boards, one command line",
        "",
        where_line(conditions),
        "",
        f"`{result['command']}`: sshd, agents and the workstation share {conditions['n_cores']} cores here.",
        "",
        "| boards | asked | answers | commands per board | median s | worst s | threads | memory MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted({sample["n_boards"] for sample in samples}):
        for words in (["--all"], ["--limit", "*"]):
            group = [one for one in samples if one["n_boards"] == n and one["words"] == ["status", *words]]
            times = [one["took_s"] for one in group]
            lines.append(
                f"| {n} | `status {' '.join(words)}` | {min(one['n_answers'] for one in group)} "
                f"| {max(one['commands_per_board'][1] for one in group)} "
                f"| {statistics.median(times):.1f} | {max(times):.1f} | {max(one['peak_threads'] for one in group)} "
                f"| {max(one['peak_memory_bytes'] for one in group) / 2**20:.0f} |"
            )
    lines += ["", f"Limit: {LIMIT_S:g} s, {MAX_THREADS} threads, {MAX_MEMORY_BYTES >> 20} MiB. Raw: `{args.out.name}`."]
    write_result(args.out, result, lines)
    print("\n".join(lines))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

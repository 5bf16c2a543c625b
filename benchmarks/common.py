"""What the benchmarks share: where they ran, measuring a list of models in random order, and writing results.

`measure_jobs` measures each job in a process of its own, exactly as a search does, in one random order over all jobs
and repeats, so that a machine that changes its speed for minutes meets all of them alike. It appends one line per
measurement and takes up where it was stopped.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "host")]

from edge_lts.arch import Architecture  # noqa: E402  (a checkout needs no installation)
from edge_lts.measurer import Measurer  # noqa: E402
from edge_lts.proxies.calibrated import CalibratedProxy  # noqa: E402
from edge_lts.records import Evaluation, Measurement, Protocol  # noqa: E402
from edge_lts.search.predictor import Predictor  # noqa: E402
from edge_lts.space import SearchSpace  # noqa: E402

SERVE = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from edge_lts.profile.server import serve; "
    "sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))"
)
ONE_THREAD = Protocol(threads=1, prefill_samples=5, decode_samples=20)


@dataclass(frozen=True, slots=True)
class Job:
    """One model to measure and what it is for."""

    tag: str
    arch: Architecture


def load_space(name: str) -> SearchSpace:
    from edge_lts_host import spaces

    return SearchSpace.from_json(spaces.load_space(name)[0])


@contextmanager
def measurer(protocol: Protocol, memory_limit_bytes: int | None = None) -> Iterator[Measurer]:
    """A measuring server of this checkout on this machine; the child of one candidate may take `memory_limit_bytes`."""
    with Measurer(
        [sys.executable, "-c", SERVE],
        protocol,
        candidate_timeout_s=600,
        memory_limit_bytes=memory_limit_bytes,
        log=sys.stderr.buffer,
    ) as found:
        found.start()
        yield found


def stay_on_one_core() -> int | None:
    """Bind this process and its children to the last core that it may use; the core's number."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def trimmed(outcome: Evaluation, **extra: Any) -> dict[str, Any]:
    """The parts of a record that the benchmarks need: medians with intervals, the anchor, seconds spent, taints."""
    return {
        **extra,
        "architecture": outcome.architecture.to_json(),
        "objectives": {
            name: value.to_json() if isinstance(value, Measurement) else value
            for name, value in outcome.objectives.items()
        },
        "anchor_s": outcome.conditions.get("anchor_s"),
        "shallow_decode": outcome.conditions.get("shallow_decode"),
        "total_s": round(outcome.conditions.get("total_s", 0.0), 4),
        "flags": list(outcome.flags),
    }


def evaluation_from(row: dict[str, Any], candidate_id: int = 0) -> Evaluation:
    """A `trimmed` row as the evaluation that a searcher is told."""
    from edge_lts.records import value_from_json

    return Evaluation(
        candidate_id=candidate_id,
        architecture=Architecture.from_json(row["architecture"]),
        objectives={name: value_from_json(value) for name, value in row["objectives"].items()},
        samples={},
        conditions={"anchor_s": row["anchor_s"], "shallow_decode": row.get("shallow_decode")},
        flags=tuple(row["flags"]),
    )


def measure_jobs(
    jobs: Sequence[Job],
    path: Path,
    *,
    repeats: int = 1,
    seed: int = 0,
    protocol: Protocol = ONE_THREAD,
    only: frozenset[int] | None = None,
) -> list[dict[str, Any]]:
    """Measure every job `repeats` times in random order, appending rows to `path` (JSON lines); returns all rows.

    The order is one shuffle of all (job, repeat) pairs; rows that `path` holds already are kept. `only` names the jobs
    to measure by number, None means all.
    """
    wanted = range(len(jobs)) if only is None else sorted(only)
    order = [(repeat, index) for repeat in range(repeats) for index in wanted]
    random.Random(seed).shuffle(order)
    rows = read_rows(path)
    done = {(row["job"], row["repeat"]) for row in rows}
    left = [entry for entry in order if (entry[1], entry[0]) not in done]
    begun = time.monotonic()
    with measurer(protocol) as server, path.open("a") as out:
        for count, (repeat, index) in enumerate(left, 1):
            job = jobs[index]
            outcome = server.measure(index, job.arch, "single")
            if not isinstance(outcome, Evaluation):
                sys.exit(f"{job.tag} {job.arch.arch_id}: {outcome.kind}: {outcome.message}")
            elapsed = time.monotonic() - begun
            row = trimmed(outcome, job=index, tag=job.tag, repeat=repeat, at_s=round(elapsed, 2))
            rows.append(row)
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
            if count % 20 == 0 or count == len(left):
                left_s = elapsed / count * (len(left) - count)
                print(f"{count}/{len(left)} measured, {elapsed:.0f} s, about {left_s:.0f} s to go", flush=True)
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def where(**extra: Any) -> dict[str, Any]:
    """Commit, date, machine and load: what a result must carry."""
    from edge_lts.device import probe

    info = probe()
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "is_tree_dirty": bool(_git("status", "--porcelain", "edge_lts")),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": platform.machine(),
        "cpu": info.cpu_model or platform.processor() or "unknown CPU",
        "n_cores": os.cpu_count(),
        "last_level_cache_bytes": info.extra.get("last_level_cache_bytes"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": info.torch,
        "load": os.getloadavg()[0],
        **extra,
    }


def where_line(found: dict[str, Any]) -> str:
    dirty = " with changes" if found["is_tree_dirty"] else ""
    return (
        f"{found['cpu']} ({found['machine']}, {found['n_cores']} cores), Linux {found['kernel']}, Python "
        f"{found['python']}, torch {found['torch']}, {found['date']}, commit {found['commit']}{dirty}."
    )


def fitted(
    evaluations: Iterable[Evaluation], protocol: Protocol = ONE_THREAD, proxy: CalibratedProxy | None = None
) -> Predictor:
    """The cost models of guided search after these evaluations."""
    predictor = Predictor(protocol, proxy=proxy)
    for evaluation in evaluations:
        predictor.tell(evaluation)
    predictor.fit()
    return predictor


def write_result(path: Path, result: dict[str, Any], lines: Sequence[str]) -> None:
    """JSON, and a page beside it."""
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

"""Does any input make a reader fail otherwise than by its declared errors? Ten million of them (docs/security.md).

    python benchmarks/bench_fuzz.py                       # judges the committed run
    python benchmarks/bench_fuzz.py run                   # 10 million inputs, about 20 minutes on one core; resumable

Readers are those of tests/fuzz: of ledgers, agents, serial frames, TOML, architectures, meters and what else
comes from outside. Three engines: `mutate` damages valid inputs, reproducible by batch number; `hypothesis` draws
bytes and JSON; `atheris`, if it can be imported (pip install atheris; nothing else needs it), follows coverage with
libFuzzer, in a process of its own that learns from every input. One JSON line per finished batch is appended to the
raw file, and a batch that stands there is not done again. A finding is an exception that the reader does not declare,
an assertion of its target, or an input that takes more CPU than `SLOW_S`; it exits with 1.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.argv[1:2] == ["atheris"]:
    import atheris  # type: ignore[import-not-found, unused-ignore]  # has to see the readers being imported

    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in (".", "host")]
    with atheris.instrument_imports(include=["edge_lts", "edge_lts_host", "tests.fuzz", "tomllib"]):
        from tests.fuzz import targets as fuzzing
from common import RESULTS, read_rows, stay_on_one_core, where, where_line, write_result

from tests.fuzz import targets as fuzzing

RAW = RESULTS / "fuzz_x86_64_202611.jsonl"
BATCH = 50_000
N_HYPOTHESIS = 500
N_ATHERIS = 100_000
SLOW_S = 2.0
MEMORY_BYTES = 4 << 30
MAX_FINDINGS = 20  # kept of a batch
GOAL = 10_000_000
UNFINISHED = 75
# Batches of `mutate`. Many for what comes from a board, fewer for slow readers of files that the user wrote.
BATCHES = {
    "agent protocol": 30,
    "serial": 16,
    "serial login": 4,
    "ledger": 26,
    "architecture file": 24,
    "meter um": 18,
    "meter yzx": 18,
    "run files": 12,
    "report": 2,
    "meter log": 4,
    "probe's answer": 6,
    "known_hosts": 6,
    "destination": 6,
    "target file": 6,
    "hosts.json": 4,
    "inventory": 2,
    "meter tc66c": 2,
    "space file": 2,
}


class Batch:
    """Feeds inputs and counts what became of them: read, or refused at so many different places."""

    def __init__(self, target: fuzzing.Target) -> None:
        self.target = target
        self.n = self.n_read = 0
        self.slowest_s = 0.0
        self.errors: Counter[str] = Counter()
        self.places: set[tuple[type[BaseException], Any, int]] = set()
        self.findings: dict[str, dict[str, str]] = {}

    def feed(self, data: bytes) -> None:
        self.n += 1
        begun = (
            time.thread_time()
        )  # not the clock on the wall: a machine that is busy elsewhere stands still for seconds
        try:
            error = fuzzing.judge(self.target, data)
        except Exception as exc:  # noqa: BLE001  (that is what is looked for)
            self._found(exc, data)
            return
        took_s = time.thread_time() - begun
        if took_s > self.slowest_s:
            self.slowest_s = took_s
            if took_s > SLOW_S:
                self._found(TimeoutError(f"{took_s:.1f} s"), data)
        if error is None:
            self.n_read += 1
        else:
            self.errors[type(error).__name__] += 1
            self.places.add((type(error), *_place(error)))

    def _found(self, exc: Exception, data: bytes) -> None:
        code, line = _place(exc)
        name = f"{type(exc).__name__} at {Path(code.co_filename).name if code else '?'}:{line}"
        if len(self.findings) < MAX_FINDINGS:
            self.findings.setdefault(name, {"said": str(exc)[:200], "input": base64.b64encode(data).decode()})

    def row(self, engine: str, number: int, seconds: float) -> dict[str, Any]:
        return {
            "target": self.target.name,
            "engine": engine,
            "batch": number,
            "n": self.n,
            "n_read": self.n_read,
            "errors": dict(self.errors.most_common()),
            "places": sorted(
                f"{kind.__name__} {Path(code.co_filename).name}:{line}" for kind, code, line in self.places
            ),
            "slowest_cpu_s": round(self.slowest_s, 4),
            "seconds": round(seconds, 1),
            "findings": self.findings,
        }


def _place(exc: BaseException) -> tuple[Any, int]:
    while exc.__cause__ is not None:  # where it began, not where it was given the name of its file
        exc = exc.__cause__
    trace, code, line = exc.__traceback__, None, 0
    while trace is not None:
        code, line, trace = trace.tb_frame.f_code, trace.tb_lineno, trace.tb_next
    return code, line


# Engines ------------------------------------------------------------------------------------------------------------


def mutate(batch: Batch, number: int, n_inputs: int) -> None:
    rng = random.Random(f"{batch.target.name}/{number}")
    for _ in range(n_inputs):
        batch.feed(fuzzing.mutated(rng, batch.target))


def with_hypothesis(batch: Batch, number: int, n_inputs: int) -> None:
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    json_text = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode() + b"\n")
    kept = st.sampled_from(batch.target.seeds)
    cut = st.tuples(kept, st.integers(0, 4000), st.binary(max_size=40) | json_text, st.integers(0, 100))
    inputs = st.binary(max_size=400) | json_text | cut.map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + t[3] :])

    @seed(number)
    @settings(max_examples=n_inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def each(data: bytes) -> None:
        batch.feed(data)

    each()


def with_atheris(target: fuzzing.Target, number: int, n_inputs: int) -> dict[str, Any]:
    """In a child, because libFuzzer ends the process; its row."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for index, data in enumerate(target.seeds):
            (corpus / str(index)).write_bytes(data)
        (Path(folder) / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if len(word) < 60))
        out = Path(folder) / "row.json"
        flags = [f"-runs={n_inputs}", f"-seed={number + 1}", "-max_len=6000", f"-dict={folder}/words", "-verbosity=0"]
        argv = [sys.executable, __file__, "atheris", target.name, str(number), str(n_inputs), str(out)]
        done = subprocess.run([*argv, *flags, str(corpus)], capture_output=True, cwd=folder, check=False)
        if not out.exists():
            raise SystemExit(f"atheris ended with {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}")
        row: dict[str, Any] = json.loads(out.read_bytes())
        return row


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def atheris_child(name: str, number: str, n_inputs: str, out: str, *flags: str) -> None:
    batch = Batch(fuzzing.all_targets()[name])
    begun = time.monotonic()

    def one(data: bytes) -> None:
        batch.feed(data)
        if batch.n == int(n_inputs):
            Path(out).write_text(json.dumps(batch.row("atheris", int(number), time.monotonic() - begun)))

    atheris.Setup(["fuzz", *flags], one)
    atheris.Fuzz()


# The run ------------------------------------------------------------------------------------------------------------


def plan(share: float, engines: list[str]) -> Iterator[tuple[str, str, int, int]]:
    """(target, engine, batch number, inputs), the engines of all targets in turn, so that any beginning is a sample."""
    names = [name for name in BATCHES if name in fuzzing.all_targets()]
    if "hypothesis" in engines:
        yield from ((name, "hypothesis", 0, N_HYPOTHESIS) for name in names)
    if "atheris" in engines:
        yield from ((name, "atheris", 0, N_ATHERIS) for name in names)
    if "mutate" in engines:
        for number in range(max(BATCHES.values())):
            yield from ((name, "mutate", number, BATCH) for name in names if number < round(BATCHES[name] * share))


def run(path: Path, share: float, engines: list[str], seconds: float) -> bool:
    """Do what is left of the plan, for as long as `seconds`; whether that was all."""
    stay_on_one_core()
    end = time.monotonic() + seconds
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    done = {(row["target"], row["engine"], row["batch"]) for row in read_rows(path)}
    do: dict[str, Callable[[Batch, int, int], None]] = {"mutate": mutate, "hypothesis": with_hypothesis}
    n_total = sum(row["n"] for row in read_rows(path))
    for name, engine, number, n_inputs in plan(share, engines):
        if (name, engine, number) in done:
            continue
        if time.monotonic() > end:
            return False
        target = fuzzing.all_targets()[name]
        begun = time.monotonic()
        if engine == "atheris":
            row = with_atheris(target, number, n_inputs)
        else:
            batch = Batch(target)
            do[engine](batch, number, n_inputs)
            row = batch.row(engine, number, time.monotonic() - begun)
        with path.open("a") as out:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
        n_total += row["n"]
        found = f", FOUND {', '.join(row['findings'])}" if row["findings"] else ""
        print(f"{n_total:>10,} {name}, {engine} {number}: {row['n']:,} in {row['seconds']:.0f} s{found}", flush=True)
    return True


def judge(path: Path) -> int:
    rows = read_rows(path)
    n_total = sum(row["n"] for row in rows)
    findings = {(row["target"], name): found for row in rows for name, found in row["findings"].items()}
    by_target: dict[str, dict[str, Any]] = {}
    for name in BATCHES:
        own = [row for row in rows if row["target"] == name]
        if own:
            engines = sorted({row["engine"] for row in own})
            by_target[name] = {
                "n": sum(row["n"] for row in own),
                **{f"n_{engine}": sum(row["n"] for row in own if row["engine"] == engine) for engine in engines},
                "n_read": sum(row["n_read"] for row in own),
                "errors": dict(sum((Counter(row["errors"]) for row in own), Counter()).most_common()),
                "n_places": len({place for row in own for place in row["places"]}),
                "slowest_cpu_s": max(row.get("slowest_cpu_s", 0.0) for row in own),
                "seconds": round(sum(row["seconds"] for row in own), 1),
            }
    conditions = where()
    result = {"where": conditions, "n": n_total, "goal": GOAL, "targets": by_target, "findings": len(findings)}
    seconds = sum(row["seconds"] for row in rows)
    lines = [
        "# Fuzzing: what comes from outside is read or refused, never a crash",
        "",
        where_line(conditions),
        f"{n_total:,} inputs in {seconds / 60:.0f} minutes on one core, {len(findings)} undeclared errors; raw data: "
        f"[{path.name}]({path.name}), command `python benchmarks/bench_fuzz.py run`.",
        "",
        "| reader | inputs | by coverage (atheris) | read | refused, with | at places | slowest |",
        "|---|---:|---:|---:|---|---:|---:|",
        *(
            f"| {name} | {one['n']:,} | {one.get('n_atheris', 0):,} | {one['n_read']:,} | "
            f"{', '.join(one['errors']) or '-'} | {one['n_places']} | {one['slowest_cpu_s'] * 1e3:.0f} ms |"
            for name, one in by_target.items()
        ),
        "",
        "A place is a line of code that raised; an input counts as read when nothing was wrong with it, or only with",
        "what that reader passes over. Slowest is the CPU time of one input.",
    ]
    write_result(path.with_suffix(".json"), result, lines)
    print("\n".join(lines))
    for (target, name), found in findings.items():
        print(f"{target}: {name}: {found['said']}", file=sys.stderr)
    if n_total < GOAL:
        print(f"{n_total:,} inputs are fewer than {GOAL:,}", file=sys.stderr)
    return 1 if findings or n_total < GOAL else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", nargs="?", choices=("run", "judge"), default="judge")
    parser.add_argument("--raw", type=Path, default=RAW, help="file of finished batches (default: the committed one)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the mutated inputs, from 0 to 1 (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="end after so long, with status 75 if unfinished"
    )
    parser.add_argument("--engines", default="mutate,hypothesis,atheris", help="which of them, by comma")
    args = parser.parse_args()
    if args.do == "run":
        engines = args.engines.split(",")
        if "atheris" in engines and importlib.util.find_spec("atheris") is None:
            print("atheris is not installed: without it", file=sys.stderr)
            engines.remove("atheris")
        if not run(args.raw, args.share, engines, args.seconds):
            return UNFINISHED
    return judge(args.raw)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore"
    if sys.argv[1:2] == ["atheris"]:
        atheris_child(*sys.argv[2:])
    sys.exit(main())

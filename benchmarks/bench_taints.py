"""Is trouble seen? Measurements that are disturbed on purpose, each between two that are not.

usage: python benchmarks/bench_taints.py [--trials N] [--kinds K,K] [--threads N] [--out FILE.jsonl] [--evaluate]
                                         [--with EARLIER.jsonl] [--quiet N]

Kinds, in random order:
    busy        a busy loop for each thread that runs and stops in turn, from one round's middle to the next
    frozen      SIGSTOP for 50 to 300 ms, again and again, 40 ms apart in the mean
    background  5 ms of every 100 ms on each core
    throttle    a false sysfs tree says `throttled` from some moment on, for a while or for good, and forwards take 40 %
                longer meanwhile, by busy waiting inside the forward: no clock but the wall's can tell, only the sensor
The undisturbed measurements before and after are the reference and, all together, the quiet rounds.

A trial is *moved* if the median of all samples, which is what would have been reported without a gate, lies more than
5 % beyond both references in prefill or decode: the machine's own drift between them is no taint. It is *detected* if
its record is flagged with what this kind should show, or has more samples with that taint than 95 % of the quiet rounds
have. *Mended* are those whose kept samples are within 5 % of the references again, which drift can also prevent. If a
reference is flagged for more than noise, nothing can be said. Appends rows and takes up where it was stopped;
`--evaluate` only computes the page. Trials in an EARLIER file count for detection; quiet rounds are those of FILE, for
the earlier ones were sampled by other rules. `--quiet N` adds N undisturbed measurements by the default protocol, whose
numbers of samples and retries are twice those of the trials; where there are any, they alone are the quiet rounds.

The limit: per kind, of the moved trials, a one-sided 95 % Clopper-Pearson bound of at least 0.92 for detection (36
moved trials if none is missed); and at most 5 % of the quiet rounds flagged.
"""

from __future__ import annotations

import argparse
import json
import mmap
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import RESULTS, read_rows, where, where_line, write_result

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.records import Protocol

KINDS = ("busy", "frozen", "background", "throttle")
EXPECTED = {
    "busy": {"contended"},
    "frozen": {"frozen", "contended"},
    "background": {"contended"},
    "throttle": {"throttled"},
}
MOVED, MIN_BOUND, MAX_FALSE = 0.05, 0.92, 0.05
QUIET_STEAL, QUIET_OTHERS = 0.005, 0.05
SLOWER_PERCENT = 40
ARCH = Architecture(
    backbone="gpt2", d_model=512, layers=(LayerSpec(d_inner=2048, n_head=8),) * 4, vocab_size=10_000, max_seq_len=256
)
LOOP = "while True: pass"
BACKGROUND = """
import time
while True:
    until = time.perf_counter() + 0.005
    while time.perf_counter() < until: pass
    time.sleep(0.095)
"""
# For what needs another machine: run it there with this before the command, e.g. ["ssh", "-p", "2222", "root@board"].
COMMAND_PREFIX: tuple[str, ...] = ()


def start(code: str, cpu: int | None = None) -> subprocess.Popen[bytes]:
    pin = "" if cpu is None else f"import os; os.sched_setaffinity(0, {{{cpu}}})\n"
    return subprocess.Popen([*COMMAND_PREFIX, sys.executable, "-S", "-c", pin + code])


def disturbed(kind: str | None, protocol: Protocol, rng: random.Random) -> dict[str, Any]:
    """One measurement under `kind`; None is an undisturbed one."""
    from trials import Trial

    with ExitStack() as stack:
        helpers: list[subprocess.Popen[bytes]] = []
        stack.callback(lambda: [(helper.kill(), helper.wait()) for helper in helpers])
        options: dict[str, Any] = {}
        if kind == "throttle":
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = {"slowdown": mmap.mmap(-1, 1), "sensors_root": root}
            throttled = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
            throttled.parent.mkdir(parents=True)
            throttled.write_text("0\n")
        elif kind == "busy":
            helpers += [start(LOOP) for _ in range(protocol.threads)]
        elif kind == "background":
            for cpu in range(protocol.threads):
                helpers.append(start(BACKGROUND, cpu))
                time.sleep(0.05)
        if kind == "busy":
            for helper in helpers:
                helper.send_signal(signal.SIGSTOP)
        trial = stack.enter_context(Trial(ARCH, protocol, **options))
        while trial.wait() != "begun":
            pass
        if kind == "busy":
            is_on = bool(rng.getrandbits(1))
            while trial.wait() != "done":
                is_on = not is_on
                for helper in helpers:
                    helper.send_signal(signal.SIGCONT if is_on else signal.SIGSTOP)
        elif kind == "frozen":
            while not _until_done(trial, rng.expovariate(1 / 0.04)):
                _signal(trial, signal.SIGSTOP)
                time.sleep(rng.uniform(0.05, 0.3))
                _signal(trial, signal.SIGCONT)
        elif kind == "throttle":
            lasts_s = rng.choice([rng.uniform(0.5, 2.0), 1e9])
            if not _until_done(trial, rng.uniform(0.1, 0.5)):
                options["slowdown"][0] = SLOWER_PERCENT
                throttled.write_text("40004\n")
                if not _until_done(trial, lasts_s):
                    options["slowdown"][0] = 0
                    throttled.write_text("40000\n")
        return trial.finish() if trial.result is None else trial.result


def _until_done(trial: Any, seconds: float) -> bool:
    """Wait so long; whether the trial ended meanwhile."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if trial.wait(min(left, 3600)) == "done":
            return True
    return trial.result is not None


def _signal(trial: Any, number: int) -> None:
    import os

    os.kill(trial.pid, number)  # the child is not reaped before the trial ends


def run(path: Path, kinds: Sequence[str], n_trials: int, protocol: Protocol, seed: int) -> None:
    plan = [kind for kind in kinds for _ in range(n_trials // len(kinds))]
    random.Random(seed).shuffle(plan)
    done = {row["trial"] for row in read_rows(path) if row["kind"] != "quiet"}
    left = [index for index in range(len(plan)) if index not in done]
    begun, before = time.monotonic(), None
    with path.open("a") as out:
        for count, index in enumerate(left, 1):
            rng = random.Random(f"{seed}/{index}")
            before = before or disturbed(None, protocol, rng)
            during = disturbed(plan[index], protocol, rng)
            after = disturbed(None, protocol, rng)
            row = {"trial": index, "kind": plan[index], "before": before, "during": during, "after": after}
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
            before = after
            if count % 10 == 0 or count == len(left):
                elapsed = time.monotonic() - begun
                to_go = elapsed / count * (len(left) - count)
                print(f"{count}/{len(left)} trials, {elapsed:.0f} s, about {to_go:.0f} s to go", flush=True)


def run_quiet(path: Path, n: int, protocol: Protocol) -> None:
    rng = random.Random(0)
    n_done = sum(row["kind"] == "quiet" for row in read_rows(path))
    with path.open("a") as out:
        for count in range(n_done, n):
            row = {"trial": f"quiet-{count}", "kind": "quiet", "after": disturbed(None, protocol, rng)}
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
            if count % 10 == 9:
                print(f"{count + 1}/{n} quiet rounds", flush=True)


def is_beyond(values_s: dict[str, float], references: dict[str, list[float]]) -> bool:
    """Whether a latency lies more than 5 % beyond the lower and the higher reference."""
    return any(
        not low / (1 + MOVED) <= values_s[name] <= high * (1 + MOVED) for name, (low, high) in references.items()
    )


def n_expected(result: dict[str, Any], kind: str) -> int:
    """Samples that carry a taint which this kind should show."""
    return sum(result["quality"]["taints"].get(taint, 0) for taint in EXPECTED[kind])


def judged(row: dict[str, Any], usual: int) -> dict[str, bool] | None:
    """None if the references say nothing. `usual` is how many tainted samples hardly any quiet round exceeds."""
    one, other, during = row["before"], row["after"], row["during"]
    if {*one["flags"], *other["flags"]} - {"noisy"}:
        return None
    pairs = {name: sorted((value, other["kept_s"][name])) for name, value in one["kept_s"].items()}
    is_flagged = bool(EXPECTED[row["kind"]] & {*during["flags"]})
    return {
        "moved": is_beyond(during["all_s"], pairs),
        "detected": is_flagged or n_expected(during, row["kind"]) > usual,
        "flagged": is_flagged,
        "mended": not is_beyond(during["kept_s"], pairs),
    }


def evaluate(rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    alone = [row for row in rows if row["kind"] == "quiet"]
    rows = [row for row in rows if row["kind"] != "quiet"]
    quiet = quiet_rounds(rows)
    usual, usual_earlier = usual_taints(quiet), usual_taints(quiet_rounds(earlier))
    verdicts: dict[str, list[dict[str, bool] | None]] = {kind: [] for kind in KINDS}
    for some, limits in ((rows, usual), (earlier, usual_earlier)):
        for row in some:
            verdicts[row["kind"]].append(judged(row, limits[row["kind"]]))
    kinds = {kind: counted(found) for kind, found in verdicts.items() if found}
    undisturbed = alone or rows
    quiet = quiet_rounds(undisturbed)
    n_flagged = sum(bool(one["flags"]) for one in quiet)
    return {
        "kinds": kinds,
        "usual_tainted_samples": usual,
        "quiet": {
            "n": len(undisturbed),
            "n_quiet": len(quiet),
            "n_flagged": n_flagged,
            "n_flagged_for_interference": sum(bool({*one["flags"]} - {"noisy"}) for one in quiet),
            "flagged_share": n_flagged / len(quiet) if quiet else None,
            "n_with_a_tainted_sample": sum(bool(one["quality"]["taints"]) for one in quiet),
        },
        "is_within_limits": all(found["lower_bound"] >= MIN_BOUND for found in kinds.values())
        and bool(quiet)
        and n_flagged <= MAX_FALSE * len(quiet),
    }


def quiet_rounds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Undisturbed measurements while nobody else wanted the cores."""
    return [
        one
        for one in (row["after"] for row in rows)
        if (one["quality"]["steal_share"] or 0) < QUIET_STEAL and (one["quality"]["others_share"] or 0) < QUIET_OTHERS
    ]


def usual_taints(quiet: list[dict[str, Any]]) -> dict[str, int]:
    """Per kind, how many tainted samples 95 % of the quiet rounds do not exceed."""
    tainted = {kind: sorted(n_expected(one, kind) for one in quiet) for kind in KINDS}
    return {kind: counts[int(0.95 * (len(counts) - 1))] if counts else 0 for kind, counts in tainted.items()}


def counted(verdicts: list[dict[str, bool] | None]) -> dict[str, Any]:
    from trials import lower_bound

    decided = [verdict for verdict in verdicts if verdict is not None]
    moved = [verdict for verdict in decided if verdict["moved"]]
    counts = {name: sum(verdict[name] for verdict in moved) for name in ("detected", "flagged", "mended")}
    return {
        "n_trials": len(verdicts),
        "n_decided": len(decided),
        "n_moved": len(moved),
        **{f"n_{name}": count for name, count in counts.items()},
        "lower_bound": lower_bound(counts["detected"], len(moved)) if moved else 0.0,
    }


def page(result: dict[str, Any], raw: Sequence[str]) -> list[str]:
    quiet = result["quiet"]
    rows = [
        f"| {kind} | {found['n_trials']} | {found['n_decided']} | {found['n_moved']} | "
        f"{found['n_detected']} | {found['lower_bound']:.3f} | {found['n_flagged']} | {found['n_mended']} |"
        for kind, found in result["kinds"].items()
    ]
    share = "-" if quiet["flagged_share"] is None else f"{quiet['flagged_share']:.1%}"
    return [
        "# Is trouble seen?",
        "",
        where_line(result["conditions"]),
        f"`{result['command']}`; raw: {', '.join(f'[{name}]({name})' for name in raw)}. What the words mean stands at "
        "the top of `bench_taints.py`.",
        "",
        "| kind | trials | decided | moved by > 5 % | detected | 95 % lower bound | flagged | mended |",
        "|---|" + "---:|" * 7,
        *rows,
        "",
        f"- Limit of the bound: {MIN_BOUND}. Those flagged and those mended may be the same.",
        f"- Undisturbed measurements: {quiet['n']}, of which "
        f"{quiet['n_quiet']} quiet (steal under {QUIET_STEAL:.1%}, "
        f"others under {QUIET_OTHERS:.0%} of the cores); flagged {quiet['n_flagged']} ({share}, limit "
        f"{MAX_FALSE:.0%}), {quiet['n_flagged_for_interference']} of them for anything but noise. "
        f"{quiet['n_with_a_tainted_sample']} had a tainted sample, which was taken again.",
        "- `throttle` is a false sysfs tree and a forward that waits; `busy` and `background` share the cores that "
        "measure. A neighbour that only takes memory bandwidth is in none of them, and clocks do not see it.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"taints_{platform.machine()}_202611.jsonl")
    parser.add_argument("--with", dest="earlier", type=Path, action="append", default=[])
    parser.add_argument("--quiet", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    args = parser.parse_args()
    protocol = Protocol(threads=args.threads, prefill_samples=10, decode_samples=20, max_retries=12)
    if not args.evaluate:
        run(args.out, args.kinds.split(","), args.trials, protocol, args.seed)
        run_quiet(args.out, args.quiet, Protocol(threads=args.threads))
    result = {
        "what": "disturbed measurements that were seen, and undisturbed ones that were flagged",
        "command": f"python benchmarks/bench_taints.py --trials {args.trials} --threads {args.threads}",
        **evaluate(read_rows(args.out), [row for path in args.earlier for row in read_rows(path)]),
        "conditions": where(protocol=protocol.to_json(), architecture=ARCH.to_json()),
    }
    lines = page(result, [*(path.name for path in args.earlier), args.out.name])
    write_result(args.out.with_suffix(".json"), result, lines)
    print("\n".join(lines[5:]))
    return 0 if result["is_within_limits"] else 1


if __name__ == "__main__":
    sys.exit(main())

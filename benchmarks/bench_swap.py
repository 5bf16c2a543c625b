"""Does the quality gate see a swap storm? Trials inside a whole emulated arm64 board, which has a kernel of its own.

    python benchmarks/bench_swap.py [--trials 100]         boots the board, deploys to it, runs, writes the results
        --disk FILE                                        the disk of such a board that was deployed to before
    python benchmarks/bench_swap.py --evaluate             only the page

After each undisturbed measurement of one small model come three that a storm meets on the way: a process that touches,
page after page, more memory than the board has left, with its swap on a file of the disk. Timings under emulation are
no performance; what counts is that the kernel, its swap and its counters are real, and whether a measurement whose
number the storm moved by more than 5 % says so.

This file is also what runs on the board, beside the sources (`--inside SITE N`): it speaks JSON lines.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOVED, MIN_BOUND = 0.05, 0.92
STORMS_IN_A_ROW = 3  # between two quiet measurements
STORM_PAGES = 500  # swapped during a measurement; with fewer it is none
RAW = "swap_emulated-arm64_202611.jsonl"
EXPECTED = {"swapped", "memory_pressure", "frozen", "contended"}
SWAP_BYTES = 1 << 30
MEMORY_BYTES = 1 << 30
BEYOND_MIB = (48, 160)  # more than is available when it begins
LATEST_S = 4.0  # after the measurement's begin
PACE_MIB_PER_S = (4, 400)  # that it touches; drawn evenly on a logarithmic scale
# argv: bytes, seconds to wait, bytes per second. Fills its memory and then touches page after page in turn, so that
# what it needs next has just been pushed out.
HOG = """
import mmap, sys, time
size, pace = int(sys.argv[1]), float(sys.argv[3])
time.sleep(float(sys.argv[2]))
memory = mmap.mmap(-1, size)
step = 1 << 20
for place in range(0, size - step, step):
    memory[place:place + step] = bytes([place // step % 251 + 1]) * step
number = 0
while True:
    number += 1
    for place in range(0, size - step, step):
        memory[place:place + step:4096] = bytes([number % 251]) * (step // 4096)
        time.sleep(step / pace)
"""


def inside(site: str, n_trials: int) -> None:
    """On the board: one JSON line per measurement."""
    here = str(Path(__file__).parent)
    sys.path[:0] = [here, site]
    from edge_lts.arch import Architecture, LayerSpec
    from edge_lts.device import memory_available_bytes
    from edge_lts.measurer import Measurer
    from edge_lts.records import Evaluation, Protocol

    arch = Architecture(
        backbone="gpt2", d_model=128, layers=(LayerSpec(d_inner=256, n_head=4),) * 2, vocab_size=4000, max_seq_len=64
    )
    protocol = Protocol(
        threads=1, prompt_tokens=32, context_tokens=32, prefill_samples=16, decode_samples=64, ci_fraction=0.0
    )
    code = f"import sys; sys.path[:0] = [{here!r}]; from edge_lts.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--site", site]
    with (
        open("measurer.log", "ab") as log,
        Measurer(
            command, protocol, candidate_timeout_s=300, memory_limit_bytes=None, log=log, is_emulated=True
        ) as measurer,
    ):
        hog = None
        try:
            for trial in range(n_trials):
                is_storm = trial % (STORMS_IN_A_ROW + 1) > 0
                pages, begun = swapped_pages(), time.monotonic()
                if is_storm:
                    rng = random.Random(trial)
                    size = (memory_available_bytes() or 0) + rng.randrange(*BEYOND_MIB) * (1 << 20)
                    low, high = map(math.log, PACE_MIB_PER_S)
                    pace = math.exp(rng.uniform(low, high)) * (1 << 20)
                    hog = subprocess.Popen(
                        [sys.executable, "-c", HOG, str(size), str(rng.uniform(0, LATEST_S)), str(pace)]
                    )
                outcome = measurer.measure(trial, arch)
                line: dict[str, Any] = {
                    "trial": trial,
                    "is_storm": is_storm,
                    "took_s": time.monotonic() - begun,
                    "swapped_pages": swapped_pages() - pages,
                }
                if isinstance(outcome, Evaluation):
                    conditions = outcome.conditions
                    line.update(
                        flags=list(outcome.flags),
                        quality=conditions.get("quality"),
                        swapped_bytes=conditions["memory"].get("swap_bytes"),
                        decode_samples_s=outcome.samples["decode_latency_s"],
                        prefill_samples_s=outcome.samples["prefill_latency_s"],
                        decode_s=outcome.objectives["decode_latency_s"].median,
                    )
                else:
                    line.update(failure=outcome.kind, message=outcome.message)
                print(json.dumps(line), flush=True)
                if hog is not None:
                    hog.kill()
                    hog.wait()
                    hog = None
                    time.sleep(2.0)
        finally:
            if hog is not None:
                hog.kill()


def swapped_pages() -> int:
    """Pages that went to and from swap since boot."""
    words = [line.split() for line in Path("/proc/vmstat").read_text().splitlines()]
    return sum(int(number) for name, number in words if name in ("pswpin", "pswpout"))


def n_tainted(line: dict[str, Any]) -> int:
    """Samples with a taint that a storm explains: pages missing, or threads that wait while the kernel swaps."""
    taints = (line["quality"] or {}).get("taints", {})
    return sum(n for name, n in taints.items() if name in EXPECTED)


def verdict(line: dict[str, Any], references: dict[str, list[float]], usual: int) -> dict[str, bool]:
    """Whether a storm moved the number that a profiler without a gate would have given, and whether it was seen.

    `usual` is how many tainted samples hardly any quiet measurement exceeds.
    """
    if "failure" in line:
        return {"is_killed": True, "is_moved": True, "is_detected": True}
    all_s = {kind: statistics.median(line[f"{kind}_samples_s"]) for kind in references}
    moved = any(value > (1 + MOVED) * references[kind][1] for kind, value in all_s.items())
    is_detected = bool(EXPECTED & {*line["flags"]}) or n_tainted(line) > usual
    return {"is_killed": False, "is_moved": moved, "is_detected": is_detected}


def evaluate(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Each storm against the nearest quiet measurements before and after it."""
    from trials import lower_bound

    quiet = [line for line in lines if not line["is_storm"] and "failure" not in line]
    usual = sorted(map(n_tainted, quiet))[int(0.95 * (len(quiet) - 1))]
    verdicts = []
    for index, line in enumerate(lines):
        if not line["is_storm"] or line["swapped_pages"] < STORM_PAGES:
            continue
        before = [one for one in lines[:index] if not one["is_storm"] and "failure" not in one][-1:]
        after = [one for one in lines[index:] if not one["is_storm"] and "failure" not in one][:1]
        around = before + after
        if not around:
            continue
        references = {}
        for kind in ("decode", "prefill"):
            medians = sorted(statistics.median(one[f"{kind}_samples_s"]) for one in around)
            references[kind] = [medians[0], medians[-1]]
        verdicts.append(verdict(line, references, usual))
    moved = [one for one in verdicts if one["is_moved"]]
    n_detected = sum(one["is_detected"] for one in moved)
    return {
        "n_storms": len(verdicts),
        "n_moved": len(moved),
        "n_detected": n_detected,
        "n_killed": sum(one["is_killed"] for one in verdicts),
        "lower_bound": lower_bound(n_detected, len(moved)) if moved else 0.0,
        "n_quiet": len(quiet),
        "n_quiet_flagged": sum(bool({*line["flags"]} & EXPECTED) for line in quiet),
    }


def outside(n_trials: int, disk: str) -> int:
    """On this machine: boot, deploy, run, write."""
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root)]
    from common import RESULTS

    from tests.board.whole import WholeBoard, build_board

    raw = RESULTS / RAW
    original = Path(disk) if disk else None
    with (
        WholeBoard(build_board(), memory_bytes=MEMORY_BYTES, disk=original) as board,
        tempfile.TemporaryDirectory() as scratch,
    ):
        if not disk:
            print(f"booted; deploying (minutes under emulation) to port {board.port}", flush=True)
            environ = {**os.environ, "PYTHONPATH": f"{root / 'host'}:{root}", "XDG_STATE_HOME": scratch}
            subprocess.run(
                [
                    sys.executable, "-m", "edge_lts_host", "deploy", "--host", f"pi@{board.address}:{board.port}",
                    "--identity", board.identity_file, "--known-hosts", board.known_hosts,
                ],
                env=environ,
                check=True,
            )  # fmt: skip
        with raw.open("w") as out:
            run_on(board, n_trials, out)
    return conclude()


def conclude() -> int:
    """The page from the raw data."""
    from common import RESULTS, read_rows, where, where_line, write_result

    raw = RESULTS / RAW
    lines = read_rows(raw)
    result = {
        "what": "measurements during a swap storm that were seen or ended",
        "command": f"python benchmarks/bench_swap.py --trials {len(lines)}",
        **evaluate(lines),
        "conditions": where(board="qemu-system-aarch64, cortex-a72, 2 cores, 1 GiB, swap file of 1 GiB"),
    }
    write_result(raw.with_suffix(".json"), result, page(result, raw.name, where_line(result["conditions"])))
    print("\n".join(page(result, raw.name, "")))
    return 0 if result["lower_bound"] >= MIN_BOUND else 1


def page(result: dict[str, Any], raw: str, conditions: str) -> list[str]:
    return [
        "# Is a swap storm seen?",
        "",
        conditions,
        f"`{result['command']}`; raw: [{raw}]({raw}). On an emulated board (qemu-system-aarch64, 1 GiB, a swap file), "
        "whose timings are no performance.",
        "",
        "| storms | moved by > 5 % | seen | 95 % lower bound | ended by the watchdog | quiet | of these flagged |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {result['n_storms']} | {result['n_moved']} | {result['n_detected']} | {result['lower_bound']:.3f} | "
        f"{result['n_killed']} | {result['n_quiet']} | {result['n_quiet_flagged']} |",
        "",
        f"- Limit of the bound: {MIN_BOUND}. Seen: flagged, or with more tainted samples than 95 % of the quiet "
        "measurements have (swapped, short of memory, frozen, contended); what the watchdog ends is a failure of kind "
        "oom and counts as seen. Moved: above both quiet neighbours.",
    ]


def run_on(board: Any, n_trials: int, out: Any) -> list[dict[str, Any]]:
    """Swap on, this very file over, and the lines that it prints there."""
    board.ssh(
        f"sudo sh -c 'fallocate -l {SWAP_BYTES} /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap'",
        timeout_s=300,
    )
    target = f"{board.user}@{board.address}"
    here = Path(__file__).resolve()
    files = [str(here), str(here.parents[1] / "edge_lts")]
    subprocess.run(["scp", "-q", "-r", *scp_options(board), *files, f"{target}:"], check=True)
    command = f"python3 bench_swap.py --inside $(ls -d $HOME/.local/share/edge-lts/env/*/ | head -n 1) {n_trials}"
    lines = []
    with subprocess.Popen(
        ["ssh", *board.ssh_options, target, command], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            line = json.loads(text)
            lines.append(line)
            out.write(text)
            out.flush()
            said = line.get("failure") or f"{line['flags']} {(line['quality'] or {}).get('taints')}"
            storm = "storm" if line["is_storm"] else "quiet"
            print(f"{line['trial'] + 1}/{n_trials} {storm} {line['took_s']:.1f} s {said}", flush=True)
    return lines


def _option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def scp_options(board: Any) -> list[str]:
    return [word if word != "-p" else "-P" for word in board.ssh_options]


if __name__ == "__main__":
    if "--inside" in sys.argv:
        place = sys.argv.index("--inside")
        inside(sys.argv[place + 1], int(sys.argv[place + 2]))
    elif "--evaluate" in sys.argv:
        sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
        sys.exit(conclude())
    else:
        sys.exit(outside(int(_option("--trials", "100")), _option("--disk", "")))

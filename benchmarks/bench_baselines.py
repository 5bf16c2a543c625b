"""The paper's baselines against what a search finds here: both backbones, on this machine.

usage: python benchmarks/bench_baselines.py [gpt2] [transformer-xl] [--budget 45m] [--threads 1] [--root DIR]

For each backbone one `edge-lts run` in the paper's space with its scaled family as baselines (and OPT-350M beside the
GPT-2s, whose space ends at 100M decoder parameters: it is shown with what it takes, and nothing on the frontier is as
large), then that run's own report: for every baseline the member that is at least as large and takes least, with the
ratio's interval. The runs' folders stay below --root (default: .cache/bench_baselines in the checkout); a second call
reports them without measuring again, and a run that was interrupted is resumed.

No limit is set: the paper's 1.5 and 2.5 times (16 layers, a Core i7 in training mode, prefill) are another measurement
on another machine, quoted beside ours and not a target for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, where, where_line, write_result

from edge_lts_host.report import baselines, own_cost, render

FAMILIES: Mapping[str, Sequence[str]] = {
    "gpt2": ("scaled-gpt2", "opt-350m"),
    "transformer-xl": ("scaled-transformer-xl",),
}
PUBLISHED = {
    "gpt2": "the paper says of 16 layers: up to 1.5 times less latency, 1.2 times less memory",
    "transformer-xl": "the paper says of 16 layers: up to 2.5 times less latency, 2.0 times less memory",
}


def edge_lts(root: Path, *words: str) -> str:
    """What `edge-lts` of this checkout prints, with its runs below `root`. Ends the benchmark where it fails."""
    environment = {
        **os.environ,
        "EDGE_LTS_RUNS": str(root / "runs"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'host'}",
    }
    argv = [sys.executable, "-m", "edge_lts_host", *words]
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def measured(root: Path, backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """One entry of `runs` of the report; the run is made, or gone on with, unless it is over."""
    run_id = f"baselines-{backbone}"
    if not (root / "runs" / run_id / "spec.json").exists():
        named = [word for name in FAMILIES[backbone] for word in ("--baseline", name)]
        protocol = ["--protocol", args.protocol, "--threads", str(args.threads)]
        space = ["--space", f"lts-{backbone}", "--seed", str(args.seed)]
        edge_lts(
            root, "run", "--target", "local", "--budget", args.budget, "--run-id", run_id, *space, *protocol, *named
        )
    data: dict[str, Any] = json.loads(edge_lts(root, "report", run_id, "-o", "json"))["runs"][0]
    if data["state"] in ("stopped", "interrupted"):
        edge_lts(root, "resume", run_id, "--wait")
        data = json.loads(edge_lts(root, "report", run_id, "-o", "json"))["runs"][0]
    if data["state"] != "done":
        sys.exit(f"{run_id} is {data['state']}")
    return data


def page(backbone: str, run: Mapping[str, Any]) -> list[str]:
    """What the result says of one backbone, as Markdown."""
    lines = [f"## {backbone}", "", f"{PUBLISHED[backbone]}. Here, decoding one token and measured peaks:", ""]
    lines += [baselines.section(run, "md"), ""]
    lines += [f"- {name}: {render.markdown(words)}" for name, words in own_cost.lines(run)]
    lines += [f"- searched: {run['n_measured']} candidates, {len(run['frontier'])} on the frontier", ""]
    return lines


def kept(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the raw result holds of a run: everything but the parts of a report that say nothing of baselines."""
    left_out = ("certificates", "health", "rank_changes", "warnings")
    return {key: value for key, value in run.items() if key not in left_out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE", help=f"of {', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--budget", default="45m", help="of each run (default: 45m)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1, as in the paper)")
    parser.add_argument("--protocol", choices=("default", "lts"), default="default", help="(default: default)")
    parser.add_argument("--seed", type=int, default=1, help="of each search (default: 1)")
    parser.add_argument(
        "--root", type=Path, default=ROOT / ".cache" / "bench_baselines", help="where the runs are kept"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "baselines_x86_64_202611.json", help="the result, as JSON"
    )
    args = parser.parse_args()
    chosen = args.backbones or list(FAMILIES)
    if unknown := [name for name in chosen if name not in FAMILIES]:
        parser.error(f"unknown backbone {unknown[0]}; known: {', '.join(FAMILIES)}")
    here = where(budget=args.budget, threads=args.threads, seed=args.seed, command=" ".join(sys.argv))
    runs = {backbone: measured(args.root, backbone, args) for backbone in chosen}
    lines = [
        "# Baselines of the paper against this machine's frontiers",
        "",
        where_line(here),
        "",
        baselines.LEGEND,
        "",
    ]
    for backbone, run in runs.items():
        lines += page(backbone, run)
    write_result(args.out, {**here, "runs": {backbone: kept(run) for backbone, run in runs.items()}}, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

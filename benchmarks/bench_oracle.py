"""Strategies against a space that was measured completely: how far from the true frontier, and does the certificate
hold?

usage: python benchmarks/bench_oracle.py [measure|replay] [--seeds N]

`measure` times all 470 members of a space (widths 128 to 320, depths 2 to 8, three widths of FFN in any mixture, which
includes every homogeneous and two-block stack) three times each, in one random order, on one core and one thread.
`replay` lets every strategy search in that table: each candidate is answered with one of its three measurements. What a
strategy has found is its frontier with members confirmed, as in a run: their value is the median of all three.

The truth of a member is the mean of its three times (logarithms, divided by the anchor's change), pulled towards a cost
model fitted to all 1,410 measurements by as much as the noise of three measurements demands; otherwise the true
frontier would be a list of lucky measurements. Regret: at the decoder_params of every member of the true frontier, the
true time of the fastest architecture found so far that is at least as large, over the true minimum; geometric mean.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ONE_THREAD,
    RESULTS,
    Job,
    evaluation_from,
    fitted,
    measure_jobs,
    read_rows,
    stay_on_one_core,
    where,
    where_line,
    write_result,
)
from contenders import reported

from edge_lts.arch import Architecture
from edge_lts.objectives import resolve_objectives
from edge_lts.pareto import nondominated
from edge_lts.records import Evaluation
from edge_lts.search import make_searcher
from edge_lts.search.cost_model import COSTS
from edge_lts.space import SearchSpace
from edge_lts_host.report.certificate import certify

SPACE = SearchSpace.from_json(
    {
        "name": "oracle",
        "backbone": "gpt2",
        "genes": {
            "n_layer": [2, 4, 6, 8],
            "d_model": [128, 160, 192, 256, 320],
            "d_inner": [576, 1024, 1536],
            "n_head": [4],
        },
        "fixed": {"vocab_size": 1000, "max_seq_len": 512},
    }
)
REPEATS = 3
CHECKPOINTS = (24, 33, 42, 60, 100, 200)
STRATEGIES = ("guided", "evolution", "random")


class Oracle:
    """The table: rows by architecture, and the truth of one cost."""

    def __init__(self, rows: list[dict[str, Any]], cost: str) -> None:
        self.cost = cost
        self.rows: dict[Architecture, list[dict[str, Any]]] = {}
        for row in rows:
            self.rows.setdefault(Architecture.from_json(row["architecture"]), []).append(row)
        self.archs = [arch for arch, found in self.rows.items() if len(found) == REPEATS]
        model = fitted(evaluation_from(row) for row in sorted(rows, key=lambda row: row["at_s"])).models[cost]
        logs = np.array(
            [
                [
                    math.log(row["objectives"][cost]["median"] / model.drift.factor(arch, row["anchor_s"]))
                    for row in self.rows[arch]
                ]
                for arch in self.archs
            ]
        )
        predicted = np.log([model.predict(arch) for arch in self.archs])
        means = np.median(logs, axis=1)
        within = float(np.median(np.abs(logs - means[:, None])) * 1.4826)  # robust: some processes are disturbed
        between = float(np.median(np.abs(means - predicted - np.median(means - predicted))) * 1.4826)
        noise = within**2 / REPEATS
        self.trust = max(0.0, 1 - noise / max(between**2, 1e-12))
        self.noise, self.model_error = within, between
        centred = predicted + np.median(means - predicted)
        truth = np.exp(centred + self.trust * (means - centred))
        self.truth = dict(zip(self.archs, truth.tolist(), strict=True))
        losses = np.array([[-arch.decoder_params, self.truth[arch]] for arch in self.archs], dtype=np.float64)
        self.frontier = [self.archs[index] for index in np.flatnonzero(nondominated(losses))]

    def evaluation(self, candidate_id: int, arch: Architecture, rng: np.random.Generator) -> Evaluation:
        return evaluation_from(self.rows[arch][int(rng.integers(REPEATS))], candidate_id)

    def regret(self, reported: list[Architecture]) -> float:
        """Geometric mean over the true frontier of (true time of the best reported at least as large) / minimum, less
        1. Where none is as large, the largest stands in at its time divided by its share of the size."""
        ratios = []
        for member in self.frontier:
            fitting = [self.truth[arch] for arch in reported if arch.decoder_params >= member.decoder_params]
            if not fitting:
                largest = max(reported, key=lambda arch: arch.decoder_params)
                fitting = [self.truth[largest] * member.decoder_params / largest.decoder_params]
            ratios.append(min(fitting) / self.truth[member])
        return statistics.geometric_mean(ratios) - 1


def confirmed(oracle: Oracle, told: list[Evaluation]) -> dict[Architecture, float]:
    """The frontier as a run would report it: members are brought to three measurements until the frontier consists of
    such members. Those measurements come on top of `n`, for every strategy alike."""
    seen, done = list(told), set()
    while True:
        found = reported(seen, oracle.cost)
        if done.issuperset(found):
            return found
        for arch in found:
            if arch not in done:
                done.add(arch)
                first = next(item for item in told if item.architecture == arch)
                rows = (evaluation_from(row) for row in oracle.rows[arch])
                seen += [other for other in rows if other.conditions != first.conditions]


def replay(oracle: Oracle, strategy: str, seed: int) -> dict[str, Any]:
    objectives = resolve_objectives(["decoder_params", oracle.cost])
    searcher = make_searcher(strategy, SPACE, objectives, seed, protocol=ONE_THREAD)
    rng = np.random.default_rng([seed, 99])
    told: list[Evaluation] = []
    regrets: dict[int, float] = {}
    limit = len(oracle.archs) if strategy == "guided" else CHECKPOINTS[-1]
    while len(told) < limit:
        candidates = searcher.ask(1)
        if not candidates:
            break
        outcome = oracle.evaluation(candidates[0].candidate_id, candidates[0].architecture, rng)
        told.append(outcome)
        searcher.tell(outcome.candidate_id, outcome)
        if len(told) in CHECKPOINTS:
            regrets[len(told)] = oracle.regret(list(confirmed(oracle, told)))
    reported = confirmed(oracle, told)
    result: dict[str, Any] = {
        "strategy": strategy,
        "seed": seed,
        "n": len(told),
        "reasons": list(searcher.stop()),
        "regret": oracle.regret(list(reported)),
        "regret_after": regrets,
    }
    if strategy == "guided":
        result["certificate"] = check_certificate(oracle, told, reported)
    return result


def check_certificate(oracle: Oracle, told: list[Evaluation], reported: dict[Architecture, float]) -> dict[str, Any]:
    """Whether anything in the space is truly faster than the certificate allows, at any member's decoder_params."""
    objectives = resolve_objectives(["decoder_params", oracle.cost])
    members = [(arch, {oracle.cost: seconds}) for arch, seconds in reported.items()]
    (certificate,) = certify(fitted(told), SPACE, objectives, (), members)
    held, really = [], []
    for (arch, _), share in zip(members, certificate.shares, strict=True):
        fastest = min(oracle.truth[other] for other in oracle.archs if other.decoder_params >= arch.decoder_params)
        really.append(1 - fastest / oracle.truth[arch])
        held.append(really[-1] <= share)
    return {
        "holds": all(held),
        "members": len(held),
        "members_held": sum(held),
        "median_share": statistics.median(certificate.shares),
        "largest_share": max(certificate.shares),
        "median_true_share": statistics.median(really),
        "largest_miss": max(true - share for true, share in zip(really, certificate.shares, strict=True)),
    }


def page(result: dict[str, Any], raw: str) -> list[str]:
    lines = [
        "# Strategies in a space that was measured completely",
        "",
        f"{where_line(result['conditions'])} One thread on one core. `{result['command']}`; raw: [{raw}]({raw}).",
        f"{result['n_members']} members, {REPEATS} measurements each; {result['n_seeds']} seeds a strategy. Regret is "
        "the geometric-mean excess of true latency over the true frontier at equal decoder_params.",
    ]
    for cost, part in result["costs"].items():
        lines += [
            "",
            f"## {cost}",
            "",
            f"Noise of one process {part['noise']:.1%}; a full fit misses a member's mean by "
            f"{part['model_error']:.1%}; true frontier: {part['n_frontier']} members.",
            "",
            "| strategy | " + " | ".join(f"after {n}" for n in CHECKPOINTS) + " | at its end (median n) |",
            "|---|" + "---:|" * (len(CHECKPOINTS) + 1),
        ]
        for strategy in STRATEGIES:
            found = [run for run in part["runs"] if run["strategy"] == strategy]
            cells = []
            for n in CHECKPOINTS:
                known = [run["regret_after"][n] for run in found if n in run["regret_after"]]
                cells.append(f"{statistics.median(known):.1%}" if len(known) == len(found) else "ended")
            ends = statistics.median(run["regret"] for run in found)
            n_end = statistics.median(run["n"] for run in found)
            lines.append(f"| {strategy} | " + " | ".join(cells) + f" | {ends:.1%} ({n_end:.0f}) |")
        certificates = [run["certificate"] for run in part["runs"] if "certificate" in run]
        n_held, n_all = (sum(item[key] for item in certificates) for key in ("members_held", "members"))
        lines += [
            "",
            f"Certificate (95 %): held for the whole frontier in {sum(item['holds'] for item in certificates)} of "
            f"{len(certificates)} runs, for {n_held} of {n_all} members; it says that nothing is more than "
            f"{statistics.median(item['median_share'] for item in certificates):.1%} faster (median member), where "
            f"truly the fastest is {statistics.median(item['median_true_share'] for item in certificates):.1%} faster.",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "replay"), nargs="?", default="replay")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "oracle_x86_64_202611.jsonl")
    args = parser.parse_args()
    if args.what == "measure":
        stay_on_one_core()
        measure_jobs([Job("member", arch) for arch in SPACE.enumerate()], args.out, repeats=REPEATS, seed=1)
    rows = read_rows(args.out)
    if not rows:
        sys.exit(f"{args.out} holds nothing: run `measure` first")
    result: dict[str, Any] = {
        "what": "regret of strategies that search in a completely measured space, and coverage of the certificate",
        "command": f"python benchmarks/bench_oracle.py replay --seeds {args.seeds}",
        "raw": args.out.name,
        "conditions": where(),
        "n_members": len({row["job"] for row in rows}),
        "n_seeds": args.seeds,
        "costs": {},
    }
    for cost in COSTS:
        oracle = Oracle(rows, cost)
        runs = [replay(oracle, strategy, seed) for strategy in STRATEGIES for seed in range(1, args.seeds + 1)]
        result["costs"][cost] = {
            "noise": oracle.noise,
            "model_error": oracle.model_error,
            "trust_in_means": oracle.trust,
            "n_frontier": len(oracle.frontier),
            "runs": runs,
        }
    lines = page(result, args.out.name)
    write_result(args.out.with_suffix(".json"), result, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

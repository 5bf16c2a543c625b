"""Searches compared at equal seconds on one core: guided, evolution, random, and stronger anchors.

usage: python benchmarks/bench_search.py [reduced|full|report] [--space reduced|full] [--seconds S] [--seeds N]
       [--cost decode_latency_s|prefill_latency_s]

All searches advance side by side, the one that has spent least next, so that a machine that changes its speed meets all
alike; each has a clock of its own. The last fifth of a search's time confirms its frontier, as a run does. Then one
common harness measures, for each of eight sizes, the fastest architecture that each search reports, in one random
order.

Anchors: (a) the exact frontier by operations and bytes, nothing timed; (b) the best homogeneous grid on guided search's
cost model; (c) NSGA-II on the same cost model; (d) optuna's NSGA-II and TPE. The curves over time are valued by a
referee: a cost model fitted to everything that all searches measured.

`reduced`: 2 to 6 layers, width up to 384, vocabulary 1,000. `full`: the paper's GPT-2 space, one seed, guided
and evolution, at most 500 models each. Measuring needs optuna (pip install optuna); `report` evaluates the raw data
again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ONE_THREAD,
    RESULTS,
    Job,
    evaluation_from,
    fitted,
    load_space,
    measure_jobs,
    measurer,
    read_rows,
    stay_on_one_core,
    trimmed,
    where,
    where_line,
    write_result,
)
from contenders import (
    Contender,
    by_operations,
    compact,
    expand,
    frontier_of,
    homogeneous_grid,
    nsga_on_the_model,
    optuna_contender,
    product,
    reported,
)

from edge_lts.arch import Architecture
from edge_lts.objectives import resolve_objectives
from edge_lts.pareto import hypervolume
from edge_lts.records import Evaluation
from edge_lts.space import SearchSpace

REDUCED = SearchSpace.from_json(
    {
        "name": "reduced",
        "backbone": "gpt2",
        "genes": {
            "n_layer": {"min": 2, "max": 6},
            "d_model": {"min": 64, "max": 384, "step": 64},
            "d_inner": {"min": 128, "max": 1536, "step": 64},
            "n_head": [2, 4, 8],
        },
        "fixed": {"vocab_size": 1000, "max_seq_len": 512},
        "rules": {"d_inner_over_d_model": {"above": 1.7}, "decoder_params": {"at_least": 200_000}},
    }
)
N_LEVELS = 8
LEVELS = {"reduced": (4e5, 6e6), "full": (9e6, 8.5e7)}
HARNESS_REPEATS = 2
CHECKPOINTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_REFEREE_ROWS = 1200
MODEL_FREE = ("(a) by operations", "(b) homogeneous grid", "(c) NSGA-II on model")


def space_of(name: str) -> SearchSpace:
    return REDUCED if name == "reduced" else load_space("lts-gpt2")


def contenders(name: str, cost: str, seeds: Sequence[int], seconds: float) -> list[Contender]:
    space = space_of(name)
    found = []
    for seed in seeds:
        for strategy in ("guided", "evolution", "random") if name == "reduced" else ("guided", "evolution"):
            found.append(product(strategy, space, cost, seed, seconds))
        if name == "reduced":
            for sampler in ("optuna NSGA-II", "optuna TPE"):
                found.append(optuna_contender(sampler, space, cost, seed, seconds))
    for contender in found:
        contender.max_candidates = 500 if name == "full" else None
    return found


def search(everyone: list[Contender], path: Path) -> None:
    """Advance whoever has spent least until all are done; one row per measurement."""
    active = list(everyone)
    total = sum(contender.budget_s for contender in everyone)
    with measurer(ONE_THREAD) as server, path.open("w") as out:
        count = 0
        while active:
            contender = min(active, key=lambda item: item.spent_s)
            step = contender.next()
            if step is None:
                active.remove(contender)
                continue
            purpose, number, arch = step
            outcome = server.measure(max(0, number), arch, "single")
            if not isinstance(outcome, Evaluation):
                sys.exit(f"{contender.strategy}: {arch.arch_id}: {outcome.kind}: {outcome.message}")
            row = trimmed(outcome, strategy=contender.strategy, seed=contender.seed, purpose=purpose)
            contender.add(purpose, number, outcome, row["total_s"])
            row["architecture"] = compact(arch)
            row["spent_s"] = round(contender.spent_s, 3)
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
            out.flush()
            count += 1
            if count % 100 == 0:
                spent = sum(item.spent_s for item in everyone)
                print(f"{count} measured, {spent:.0f} of at most {total:.0f} s", flush=True)


def told(rows: list[dict[str, Any]], space: SearchSpace) -> list[Evaluation]:
    return [
        evaluation_from({**row, "architecture": expand(space, row["architecture"]).to_json()}, index)
        for index, row in enumerate(rows)
    ]


def levels_of(name: str) -> list[float]:
    low, high = LEVELS[name]
    return [float(value) for value in np.geomspace(low, high, N_LEVELS)]


def picks(seconds: dict[Architecture, float], levels: list[float]) -> list[Architecture | None]:
    """For each size the fastest architecture that is at least as large, as far as its search knows."""
    members = frontier_of(seconds)
    chosen: list[Architecture | None] = []
    for level in levels:
        fitting = [arch for arch in members if arch.decoder_params >= level]
        chosen.append(min(fitting, key=lambda arch: seconds[arch]) if fitting else None)
    return chosen


def all_picks(rows: list[dict[str, Any]], name: str, cost: str) -> dict[tuple[str, int], list[Architecture | None]]:
    """What every search and every anchor proposes for each size; anchors (b) and (c) use guided search's model."""
    space, levels = space_of(name), levels_of(name)
    found: dict[tuple[str, int], list[Architecture | None]] = {}
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["seed"]), []).append(row)
    for key, own in groups.items():
        found[key] = picks(reported(told(own, space), cost), levels)
    operations = by_operations(space, cost)
    for (strategy, seed), own in groups.items():
        if strategy == "guided":
            model = fitted(told([row for row in own if row["purpose"] == "search"], space))
            sets = {
                MODEL_FREE[0]: operations,
                MODEL_FREE[1]: homogeneous_grid(space, cost, model),
                MODEL_FREE[2]: nsga_on_the_model(space, cost, model, seed),
            }
            for label, archs in sets.items():
                order = {arch: float(index) for index, arch in enumerate(sorted(archs, key=lambda a: a.decoder_params))}
                found[label, seed] = picks(order, levels)
    return found


def save_picks(path: Path, chosen: dict[tuple[str, int], list[Architecture | None]]) -> None:
    rows = [
        {"search": label, "seed": seed, "picks": [None if arch is None else compact(arch) for arch in own]}
        for (label, seed), own in chosen.items()
    ]
    path.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")


def load_picks(path: Path, space: SearchSpace) -> dict[tuple[str, int], list[Architecture | None]]:
    return {
        (row["search"], row["seed"]): [None if data is None else expand(space, data) for data in row["picks"]]
        for row in json.loads(path.read_text())
    }


def harness(chosen: dict[tuple[str, int], list[Architecture | None]], path: Path) -> list[dict[str, Any]]:
    archs = sorted({arch for own in chosen.values() for arch in own if arch is not None}, key=lambda a: a.arch_id)
    random.Random(0).shuffle(archs)
    return measure_jobs([Job("harness", arch) for arch in archs], path, repeats=HARNESS_REPEATS, seed=2)


class Referee:
    """A cost model fitted to what all searches measured, and its exact frontier."""

    def __init__(self, rows: list[dict[str, Any]], space: SearchSpace, cost: str) -> None:
        sample = random.Random(3).sample(rows, min(MAX_REFEREE_ROWS, len(rows)))
        self._cost, self._known = cost, dict[Architecture, float]()
        self._model = fitted(told(sample, space))
        exact = self._model.frontier(space, resolve_objectives(["decoder_params", cost]))
        self.sizes, self.best = -exact.losses[:, 0], exact.losses[:, 1]

    def seconds(self, arch: Architecture) -> float:
        if arch not in self._known:
            self._known[arch] = self._model.predict(arch)[self._cost]
        return self._known[arch]

    def floor(self, size: float) -> float:
        """Seconds of the fastest architecture at least as large, or of the largest."""
        fitting = self.best[self.sizes >= size]
        return float(fitting.min() if fitting.size else self.best.max())


def compare(
    chosen: dict[tuple[str, int], list[Architecture | None]],
    rows: list[dict[str, Any]],
    cost: str,
    referee: Referee,
) -> dict[str, Any]:
    """Geometric-mean latency of every strategy over guided's of the same seed, at equal size, from the harness.

    Harness times are divided by the machine's speed at that moment, as a model fitted to the harness says, and brought
    from an architecture's own size to the size in question along the referee's frontier: what is measured is how good
    the shapes are, not how closely a search's sizes happen to lie.
    """
    evaluations = [evaluation_from(row) for row in rows]
    drift = fitted(evaluations).models[cost].drift
    times: dict[Architecture, list[float]] = {}
    for row, item in zip(rows, evaluations, strict=True):
        factor = drift.factor(item.architecture, row["anchor_s"])
        times.setdefault(item.architecture, []).append(row["objectives"][cost]["median"] / factor)
    seconds = {arch: statistics.geometric_mean(values) for arch, values in times.items()}
    result: dict[str, Any] = {}
    for label in dict.fromkeys(label for label, _ in chosen):
        by_seed = []
        for (other, seed), own in chosen.items():
            pairs = zip(own, chosen["guided", seed], strict=True)
            ratios = [
                seconds[arch] / referee.floor(arch.decoder_params) / seconds[best] * referee.floor(best.decoder_params)
                for arch, best in pairs
                if arch is not None and best is not None
            ]
            if other == label and ratios:
                by_seed.append({"seed": seed, "ratio": statistics.geometric_mean(ratios), "n_levels": len(ratios)})
        values = [item["ratio"] for item in by_seed]
        logs = np.log(values)
        error = float(logs.std(ddof=1) / np.sqrt(len(logs))) if len(values) > 1 else None
        result[label] = {
            "ratio": statistics.geometric_mean(values),
            "standard_error": error,
            "levels": sum(item["n_levels"] for item in by_seed),
            "seeds": by_seed,
        }
    return result


def curves(rows: list[dict[str, Any]], name: str, cost: str, seconds: float, referee: Referee) -> dict[str, Any]:
    """By the referee: excess over its own exact frontier at equal size, and share of its log hypervolume, over time."""
    space, levels = space_of(name), levels_of(name)
    ideal = [referee.floor(level) for level in levels]
    reference = np.array([-np.log(levels[0] / 2), np.log(ideal[-1] * 4)])
    whole = hypervolume(np.column_stack([-np.log(referee.sizes), np.log(referee.best)]), reference)
    result: dict[str, Any] = {}
    for label in dict.fromkeys(row["strategy"] for row in rows):
        series: dict[str, list[Any]] = {"share_of_time": list(CHECKPOINTS), "excess": [], "hypervolume": [], "n": []}
        for checkpoint in CHECKPOINTS:
            excesses, volumes, counts = [], [], []
            for seed in {row["seed"] for row in rows}:
                own = [row for row in rows if row["strategy"] == label and row["seed"] == seed]
                own = [row for row in own if row["spent_s"] <= checkpoint * seconds]
                if not own:
                    continue
                members = list(reported(told(own, space), cost))
                known = {arch: referee.seconds(arch) for arch in members}
                ratios = []
                for level, floor in zip(levels, ideal, strict=True):
                    fitting = [known[arch] for arch in members if arch.decoder_params >= level]
                    if fitting:
                        ratios.append(min(fitting) / floor)
                    else:  # nothing so large yet: the largest, as if it could be stretched
                        largest = max(members, key=lambda arch: arch.decoder_params)
                        ratios.append(known[largest] / floor * level / largest.decoder_params)
                points = np.array([[-np.log(arch.decoder_params), np.log(known[arch])] for arch in members])
                excesses.append(statistics.geometric_mean(ratios) - 1)
                volumes.append(hypervolume(points, reference) / whole)
                counts.append(len(own))
            for key, values in (("excess", excesses), ("hypervolume", volumes), ("n", counts)):
                series[key].append(statistics.median(values) if values else None)
        result[label] = series
    return result


def page(result: dict[str, Any], raw: str) -> list[str]:
    cost = result["cost"]
    lines = [
        f"# Searches at equal seconds: {result['space']} space, {cost}",
        "",
        f"{where_line(result['conditions'])} One thread on one core, {result['seconds']:.0f} s a search, "
        f"{result['n_seeds']} seed(s). `{result['command']}`; raw: [{raw}]({raw}).",
        "",
        "Latency over guided search's at equal decoder_params (geometric mean of eight sizes, common harness; each "
        "time is brought to the size in question along the referee's frontier; above 1: guided is faster):",
        "",
        "| search | latency / guided's | standard error over seeds | sizes reached |",
        "|---|---:|---:|---:|",
    ]
    n_all = N_LEVELS * result["n_seeds"]
    for label, entry in result["harness"].items():
        error = "" if entry["standard_error"] is None else f"{entry['standard_error']:.1%}"
        lines.append(f"| {label} | {entry['ratio']:.3f} | {error} | {entry['levels']} of {n_all} |")
    lines += [
        "",
        "Over time, by the referee's cost model (excess latency over its exact frontier at equal size; medians):",
        "",
        "| search | " + " | ".join(f"{share:.0%}" for share in CHECKPOINTS) + " | models |",
        "|---|" + "---:|" * (len(CHECKPOINTS) + 1),
    ]
    for label, series in result["curves"].items():
        cells = ["" if value is None else f"{value:.1%}" for value in series["excess"]]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {series['n'][-1]:.0f} |")
    lines += ["", "Share of the referee's hypervolume (logarithmic axes):", ""]
    lines += ["| search | " + " | ".join(f"{share:.0%}" for share in CHECKPOINTS) + " |"]
    lines += ["|---|" + "---:|" * len(CHECKPOINTS)]
    for label, series in result["curves"].items():
        cells = ["" if value is None else f"{value:.3f}" for value in series["hypervolume"]]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {fact}" for fact in result["facts"])]
    return lines


def facts_of(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[str]:
    guided, evolution = result["curves"]["guided"], result["curves"]["evolution"]
    final = evolution["hypervolume"][-1]
    passed = [
        share
        for share, value in zip(CHECKPOINTS, guided["hypervolume"], strict=True)
        if value is not None and final is not None and value >= final
    ]
    facts = [
        f"guided search passes evolution's final hypervolume by {passed[0]:.0%} of the time"
        if passed
        else "guided search does not pass evolution's final hypervolume"
    ]
    for seed in sorted({row["seed"] for row in rows}):
        own = [
            row for row in rows if row["strategy"] == "guided" and row["seed"] == seed and row["purpose"] == "search"
        ]
        facts.append(f"guided, seed {seed}: searched {len(own)} models in {own[-1]['spent_s']:.0f} s")
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("reduced", "full", "report"), nargs="?", default="report")
    parser.add_argument("--space", choices=("reduced", "full"), default="reduced")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--cost", default="decode_latency_s")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = args.space if args.what == "report" else args.what
    short = args.cost.split("_", 1)[0]
    path = args.out or RESULTS / f"search_{name}_{short}_x86_64_202611.jsonl"
    harness_path = path.with_name(path.stem + "_harness.jsonl")
    seconds = args.seconds or {"reduced": 60.0, "full": 700.0}[name]
    n_seeds = args.seeds or {"reduced": 5, "full": 1}[name]
    if args.what != "report":
        stay_on_one_core()
        search(contenders(name, args.cost, range(1, n_seeds + 1), seconds), path)
    rows = read_rows(path)
    if not rows:
        sys.exit(f"{path} holds nothing: run `{name}` first")
    n_seeds = len({row["seed"] for row in rows})
    picks_path = path.with_name(path.stem + "_picks.json")
    if args.what != "report":
        chosen = all_picks(rows, name, args.cost)
        save_picks(picks_path, chosen)
        measured = harness(chosen, harness_path)
    else:
        chosen = load_picks(picks_path, space_of(name))
        measured = read_rows(harness_path)
    referee = Referee(rows, space_of(name), args.cost)
    result: dict[str, Any] = {
        "what": "searches at equal seconds, their frontiers measured again by one harness",
        "command": f"python benchmarks/bench_search.py {name} --seconds {seconds:.0f} --cost {args.cost}",
        "raw": [path.name, picks_path.name, harness_path.name],
        "space": name,
        "cost": args.cost,
        "seconds": seconds,
        "n_seeds": n_seeds,
        "conditions": where(),
        "harness": compare(chosen, measured, args.cost, referee),
        "curves": curves(rows, name, args.cost, seconds, referee),
    }
    result["facts"] = facts_of(rows, result)
    lines = page(result, path.name)
    write_result(path.with_suffix(".json"), result, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Do proxies rank models that are trained here, across kinds of blocks too, and does a calibrated choice beat LTS's?

usage: python benchmarks/bench_panel.py [choose | train | measure | pairs | report] [--minutes M]

One after the other, each written down before the next begins:
  choose   a panel of 28: 16 GPT-2s by the optimal design that `calibrate` uses, and three of their sizes as llama,
           llama with shared keys, transformer++ and primer-ez at equal decoder parameters. No training has happened.
  train    each on equally many tokens, eight of them with a second seed. May share the machine; once per core.
  measure  decode latency of 60 members of the same space on one core, for a cost model. A timing.
  pairs    fits a proxy to the 16 GPT-2s, then, at latencies over the space's range, chooses from 3,000 members the one
           with most decoder parameters that is predicted to keep the latency (LTS's choice) and the one with the best
           lower bound of quality (the calibrated choice); 12 levels at which they differ are written down.
  train    then trains those as well, with two new seeds each.
  report   rank correlations of every proxy with bootstrap intervals, on the GPT-2s, on the other blocks, on all, and on
           the pairs' models, which no proxy has seen; the mean difference of pairs in log-perplexity with its paired
           bootstrap interval. "Not shown" where that holds zero.

Writes results/panel_<machine>_<yyyymm>{_models,_proxy,_pairs,}.json, .md and .jsonl, and _latency.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ONE_THREAD,
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
from trainings import paired_interval, results_path, train_all, with_params

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts.proxies.closed import FORMULAS, score
from edge_lts.proxies.shape import Shape
from edge_lts.search.cost_model import Conditions
from edge_lts.search.design import choose_design
from edge_lts.space import SearchSpace
from edge_lts.training import Recipe, Trained, Training
from edge_lts_host.calibration import design, from_table, labels
from edge_lts_host.calibration.statistics import rank_statistics

NAME = "panel"
RECIPE = Recipe(tokens=524_288, curve_points=8)
SPACE = {
    "name": "panel",
    "backbone": "gpt2",
    "genes": {
        "n_layer": {"min": 2, "max": 10, "step": 1},
        "d_model": {"min": 64, "max": 256, "step": 32},
        "d_inner": {"min": 64, "max": 1024, "step": 32},
        "n_head": [2, 4, 8],
    },
    "fixed": {"vocab_size": 256, "max_seq_len": 128},
    "rules": {
        "d_inner_over_d_model": {"at_least": 1, "at_most": 8},
        "d_head": {"at_least": 16, "at_most": 128},
        "decoder_params": {"at_least": 100_000, "at_most": 1_600_000},
    },
}
N_DESIGN, N_REPEATED, N_PAIRS, N_MEASURED, N_POOL = 16, 8, 12, 60, 3000
PANEL_SEED, PAIR_SEEDS = 1, (11, 12)
DESIGN, BLOCKS = "design", "blocks"
MODEL_BASED = ("synflow", "snip", "grad_norm", "jacob_cov")
CALIBRATED = "calibrated"
SHOWN = ("spearman", "kendall_tau", "equal_size_tau", "common_ratio_top30")


def file(part: str, suffix: str = ".json") -> Path:
    return results_path(NAME, part, suffix)


# --- choosing ---


def choose() -> None:
    """Write the panel down, once."""
    if file("models").exists():
        return
    space = SearchSpace.from_json(SPACE)
    pool = design.draw_pool(space, 1_600_000, np.random.default_rng(PANEL_SEED))
    plain = design.choose(pool, design.provisional_frontier(pool), N_DESIGN)
    rows = [{"role": DESIGN, "architecture": arch.to_json()} for arch in plain]
    for arch in design.spread(plain, 3):
        rows += [{"role": BLOCKS, "architecture": other.to_json()} for other in in_other_blocks(arch)]
    file("models").write_text(json.dumps(rows, indent=1) + "\n")


def in_other_blocks(arch: Architecture) -> list[Architecture]:
    """The same width and depth with the other backbones, at the same decoder parameters."""
    middle = arch.layers[arch.n_layer // 2]
    heads = middle.n_head
    layers = (LayerSpec(d_inner=middle.d_inner, n_head=heads),) * arch.n_layer
    grouped = (LayerSpec(d_inner=middle.d_inner, n_head=heads, n_kv_head=max(1, heads // 4)),) * arch.n_layer
    variants = [arch.replace(backbone=name, layers=layers) for name in ("llama", "transformer++", "primer-ez")]
    variants.append(arch.replace(backbone="llama", layers=grouped))
    return [with_params(other, arch.decoder_params) for other in variants]


def panel() -> list[tuple[str, Architecture]]:
    """(role, architecture). Exits where none has been chosen."""
    if not file("models").exists():
        raise SystemExit("no panel yet: bench_panel.py choose")
    return [
        (row["role"], Architecture.from_json(row["architecture"])) for row in json.loads(file("models").read_text())
    ]


def pairs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file("pairs").read_text())["pairs"] if file("pairs").exists() else []
    return found


def panel_trainings() -> list[Training]:
    archs = [arch for _, arch in panel()]
    again = design.spread(sorted(archs, key=lambda arch: (arch.decoder_params, arch.arch_id)), N_REPEATED)
    asked = [(arch, PANEL_SEED) for arch in archs] + [(arch, PANEL_SEED + 1) for arch in again]
    return [Training(architecture=arch, seed=seed, recipe=RECIPE) for arch, seed in asked]


def pair_trainings() -> dict[tuple[str, int], Training]:
    """By arch_id and seed."""
    archs = {arch.arch_id: arch for pair in pairs() for arch in (_arch(pair, "lts"), _arch(pair, CALIBRATED))}
    return {
        (arch_id, seed): Training(architecture=arch, seed=seed, recipe=RECIPE)
        for seed in PAIR_SEEDS
        for arch_id, arch in archs.items()
    }


def _arch(pair: Mapping[str, Any], which: str) -> Architecture:
    return Architecture.from_json(pair[which]["architecture"])


def measure() -> None:
    """Latencies of members that the cost model's own design chooses; tokens and context as in a search."""
    stay_on_one_core()
    space = SearchSpace.from_json(SPACE)
    conditions = Conditions.of(protocol(), None)
    archs = choose_design(space, conditions, N_MEASURED, np.random.default_rng(PANEL_SEED))
    jobs = [Job(tag=f"{arch.n_layer}x{arch.d_model}", arch=arch) for arch in archs]
    measure_jobs(jobs, file("latency", ".jsonl"), repeats=2, protocol=protocol())


def protocol() -> Any:
    """The models have positions for 128 tokens."""
    return dataclasses.replace(ONE_THREAD, context_tokens=96, prompt_tokens=96)


def fit(found: Mapping[str, Trained]) -> CalibratedProxy:
    """The proxy of the 16 GPT-2s, written down once."""
    if not file(CALIBRATED).exists():
        wanted = {arch.arch_id for role, arch in panel() if role == DESIGN}
        rows = [one for one in found.values() if one.architecture.arch_id in wanted and one.seed < min(PAIR_SEEDS)]
        if len({one.architecture.arch_id for one in rows if one.loss_nats is not None}) < N_DESIGN:
            raise SystemExit("the panel is not trained yet: bench_panel.py train")
        labels.write_labels(file("labels", ".csv"), rows)
        from_table.calibrate_file(file("labels", ".csv"), to=file(CALIBRATED), seed=PANEL_SEED, label="bits_per_byte")
    return CalibratedProxy.from_json(json.loads(file(CALIBRATED).read_text()))


def choose_pairs(found: Mapping[str, Trained]) -> None:
    """Write the pairs down, once, before any of them is trained."""
    if file("pairs").exists():
        return
    rows = read_rows(file("latency", ".jsonl"))
    if not rows:
        raise SystemExit("no latencies yet: bench_panel.py measure")
    proxy = fit(found)
    predictor = fitted([evaluation_from(row, index) for index, row in enumerate(rows)], protocol())
    space = SearchSpace.from_json(SPACE)
    rng = np.random.default_rng(PANEL_SEED + 1)
    pool = list(dict.fromkeys(space.sample(rng) for _ in range(N_POOL)))
    seconds = np.array([predictor.predict(arch)["decode_latency_s"] for arch in pool])
    params = np.array([arch.decoder_params for arch in pool])
    quality = np.asarray(proxy.quality(Shape.of_many(pool)))
    chosen, n_same = levels(seconds, params, quality)
    listed = [
        {
            "latency_s": level,
            **{
                name: {
                    "architecture": pool[index].to_json(),
                    "decoder_params": int(params[index]),
                    "predicted_latency_s": float(seconds[index]),
                    "quality": float(quality[index]),
                }
                for name, index in (("lts", by_params), (CALIBRATED, by_quality))
            },
        }
        for level, by_params, by_quality in chosen
    ]
    note = {"n_levels_with_one_choice": n_same, "n_pool": len(pool), "pairs": listed}
    file("pairs").write_text(json.dumps(note, indent=1) + "\n")
    print(f"{len(listed)} pairs; at {n_same} levels both choose the same")


def levels(seconds: Any, params: Any, quality: Any, n_levels: int = 60) -> tuple[list[tuple[float, int, int]], int]:
    """N_PAIRS levels at which the choices differ, no pair twice, spread over those there are; and at how many of
    `n_levels` they do not differ."""
    found: dict[tuple[int, int], float] = {}
    n_same = 0
    for level in np.geomspace(np.quantile(seconds, 0.05), np.quantile(seconds, 0.95), n_levels):
        allowed = seconds <= level
        by_params = int(np.where(allowed, params, -np.inf).argmax())
        by_quality = int(np.where(allowed, quality, -np.inf).argmax())
        if by_params == by_quality:
            n_same += 1
        else:
            found.setdefault((by_params, by_quality), float(level))
    listed = [(level, *pair) for pair, level in found.items()]
    picked = sorted({round(index) for index in np.linspace(0, len(listed) - 1, min(N_PAIRS, len(listed)))})
    return [listed[index] for index in picked], n_same


# --- reporting ---


def mean_labels(found: Mapping[str, Trained], archs: Sequence[Architecture]) -> dict[str, float]:
    """Bits per byte, the mean over seeds, by arch_id."""
    losses: dict[str, list[float]] = {}
    wanted = {arch.arch_id for arch in archs}
    for one in found.values():
        if one.architecture.arch_id in wanted and one.recipe == RECIPE and one.bits_per_byte is not None:
            losses.setdefault(one.architecture.arch_id, []).append(one.bits_per_byte)
    return {arch_id: float(np.mean(values)) for arch_id, values in losses.items()}


def proxy_scores(archs: Sequence[Architecture], proxy: CalibratedProxy | None) -> dict[str, Any]:
    """By proxy, an array over `archs`; larger is better."""
    from edge_lts.proxies.model_based import scores

    found: dict[str, Any] = {name: np.array([score(name, arch) for arch in archs]) for name in FORMULAS}
    looked_at = [scores(arch, MODEL_BASED)["scores"] for arch in archs]
    for name in MODEL_BASED:
        found[name] = np.array([math.nan if one[name] is None else one[name] for one in looked_at], dtype=float)
    if proxy is not None:
        found[CALIBRATED] = np.asarray(proxy.predict(Shape.of_many(archs))[0])
    return found


def correlations(
    archs: Sequence[Architecture], found: Mapping[str, Trained], proxy: CalibratedProxy | None
) -> dict[str, dict[str, Any]]:
    """Of every proxy with what training reached."""
    losses = mean_labels(found, archs)
    there = [arch for arch in archs if arch.arch_id in losses]
    if len(there) < 5:
        return {}
    reached = np.array([-losses[arch.arch_id] for arch in there])
    result = {}
    for name, values in proxy_scores(there, proxy).items():
        usable = np.isfinite(values)
        shape = Shape.of_many([arch for arch, is_usable in zip(there, usable, strict=True) if is_usable])
        result[name] = rank_statistics(values[usable], reached[usable], shape)
    return result


def differences(found: Mapping[str, Trained]) -> dict[str, Any] | None:
    """Log-perplexity (nats per token, here per byte) of the calibrated choice less that of LTS's, by pair and seed."""
    asked = pair_trainings()
    losses = {key: found[one.key].loss_nats for key, one in asked.items() if one.key in found}
    rows, listed = [], []
    for pair in pairs():
        ids = [_arch(pair, which).arch_id for which in (CALIBRATED, "lts")]
        by_seed = [
            losses[ids[0], seed] - losses[ids[1], seed]
            for seed in PAIR_SEEDS
            if losses.get((ids[0], seed)) is not None and losses.get((ids[1], seed)) is not None
        ]
        if by_seed:
            rows.append(by_seed)
            listed.append({"latency_s": pair["latency_s"], "calibrated": ids[0], "lts": ids[1], "by_seed": by_seed})
    if not rows:
        return None
    result = paired_interval(rows)
    low, high = result["ci95"]
    verdict = "better" if high < 0 else "worse" if low > 0 else "not shown"
    return {**result, "verdict": verdict, "is_complete": len(losses) == len(asked), "pairs": listed}


def noise(found: Mapping[str, Trained]) -> float | None:
    """Standard deviation between two seeds of one model, bits per byte, pooled over the panel's eight."""
    by_id: dict[str, list[float]] = {}
    for one in found.values():
        if one.seed < min(PAIR_SEEDS) and one.bits_per_byte is not None:
            by_id.setdefault(one.architecture.arch_id, []).append(one.bits_per_byte)
    squares = [(values[0] - values[1]) ** 2 / 2 for values in by_id.values() if len(values) == 2]
    return math.sqrt(float(np.mean(squares))) if squares else None


def report(found: Mapping[str, Trained]) -> list[str]:
    roles = panel()
    proxy = CalibratedProxy.from_json(json.loads(file(CALIBRATED).read_text())) if file(CALIBRATED).exists() else None
    of: Callable[[str], list[Architecture]] = lambda wanted: [arch for role, arch in roles if role == wanted]  # noqa: E731
    pair_archs = list({one.architecture.arch_id: one.architecture for one in pair_trainings().values()}.values())
    groups = {
        "the 16 GPT-2s (the calibrated proxy was fitted to these)": of(DESIGN),
        "other blocks": of(BLOCKS),
        "all blocks": [arch for _, arch in roles],
        "models of the pairs (held out)": pair_archs,
    }
    tables = {what: correlations(archs, found, proxy) for what, archs in groups.items()}
    about = where()
    result = {
        "where": about,
        "recipe": RECIPE.to_json(),
        "n_trained": len(found),
        "seed_deviation_bits_per_byte": noise(found),
        "correlations": tables,
        "pairs": differences(found),
    }
    lines = ["# A panel trained here", "", where_line(about), ""]
    lines.append(f"{RECIPE.tokens:,} tokens (bytes) of Python's documentation each; labels are bits per held-out byte.")
    if result["seed_deviation_bits_per_byte"] is not None:
        lines.append(f"Standard deviation between seeds: {result['seed_deviation_bits_per_byte']:.4f} bits per byte.")
    for what, table in tables.items():
        if not table:
            continue
        lines += ["", f"## {what[0].upper()}{what[1:]}", ""]
        keys = [key for key in SHOWN if key in next(iter(table.values()))]
        lines += ["| proxy | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
        lines += [f"| {name} | " + " | ".join(_cell(row[key]) for key in keys) + " |" for name, row in table.items()]
    lines += ["", "## Choices at equal latency", ""]
    found_pairs = result["pairs"]
    if found_pairs is None:
        lines.append("Not trained yet.")
    else:
        low, high = found_pairs["ci95"]
        lines.append(
            f"Log-perplexity of the calibrated choice less that of LTS's, {found_pairs['n_pairs']} pairs: "
            f"{found_pairs['mean']:+.4f} [{low:+.4f}, {high:+.4f}]: {found_pairs['verdict']}."
        )
        if not found_pairs["is_complete"]:
            lines.append("Some of the pairs are not trained yet.")
    write_result(results_path(NAME).with_suffix(".json"), result, lines)
    return lines


def _cell(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "-" if value is None else f"{value:.3g}"
    low, high = value.get("ci95") or (math.nan, math.nan)
    return "-" if value.get("value") is None else f"{value['value']:.3f} [{low:.2f}, {high:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = ("report", "choose", "train", "measure", "pairs")
    parser.add_argument("what", nargs="?", choices=steps, default="report")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no training after that (default: none)"
    )
    args = parser.parse_args()
    if args.what == "choose":
        choose()
        print(f"{file('models')}: {len(panel())} models")
        return 0
    if args.what == "measure":
        measure()
        return 0
    if args.what == "train":
        choose()
    elif not file("models").exists():
        print("no panel yet: bench_panel.py choose, then train")
        return 0
    found = train_all(NAME, [*panel_trainings(), *pair_trainings().values()], args)
    if args.what == "pairs":
        choose_pairs(found)
        return 0
    print("\n".join(report(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Does Primer's claim hold at our size? GPT-2, GPT-2 with squared ReLU, Transformer++ and Primer-EZ, trained here.

usage: python benchmarks/bench_primer.py [speed | train [--minutes M] [--part time|power]]

Equal decoder parameters (d_inner makes up for what a variant has besides) and equal wall-clock: `speed` times training
steps of all arms and sizes, in turn, on one core (a timing: nothing else may run). `train` then gives every arm as many
steps as fit the size's seconds at that speed, three seeds, the same batches for all arms of a seed: what else the
machine does changes nothing, and the comparison can be repeated exactly. Seconds are steps times the step's time
throughout. Reported: bits per byte at the end, differences from GPT-2 paired by seed; and how much compute is saved,
in two ways:
  by the curves   the share of its time in which an arm's curve reaches GPT-2's final loss (cautious: the arm's rate has
                  not come down by then);
  by the slope    loss = a * seconds ** -k over the three sizes, k common to all arms (So et al. 2021, arXiv 2109.08668,
                  section 4.2): GPT-2's seconds over the arm's at one loss.
The ablation over the power of ReLU is of equal tokens, in Primer-EZ at the smallest size (a GPT-2 has not learnt to
look back after so few), three seeds.

Writes results/primer_<machine>_<yyyymm>.{jsonl,json,md} and _speed.json. Resumable within a training, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import stay_on_one_core, where, where_line, write_result
from trainings import (
    load_text,
    mean_and_deviation,
    paired_interval,
    results_path,
    stack,
    train_all,
    with_params,
)

from edge_lts.arch import Architecture
from edge_lts.training import Recipe, Trained, Training

NAME = "primer"
SEEDS = (1, 2, 3)
RECIPE = Recipe(curve_points=20)
# (n_layer, d_model, d_inner, n_head) of GPT-2, and the seconds that each of its size has.
SIZES = {"small": ((4, 96, 384, 4), 30.0), "medium": ((4, 144, 576, 4), 60.0), "large": ((5, 192, 768, 4), 120.0)}
ARMS: Mapping[str, dict[str, Any]] = {
    "gpt2": {"backbone": "gpt2"},
    "gpt2, squared ReLU": {"backbone": "gpt2", "activation": "relu2"},
    "transformer++": {"backbone": "transformer++"},
    "primer-ez": {"backbone": "primer-ez"},
}
POWERS = ("gelu", "relu", "relu1.5", "relu2", "relu3", "relu4")
POWER_TOKENS = 262_144
N_DRAWS = 2000
N_ROUNDS = 15
SPEED = results_path(NAME, "speed", ".json")
Speeds = Mapping[tuple[str, str], float]  # seconds per token, by size and arm


def arch_of(size: str, **style: Any) -> Architecture:
    """One arm at one size, with GPT-2's decoder parameters."""
    shape, _ = SIZES[size]
    fields = {"backbone": "gpt2", **style}
    plain = stack("gpt2", *shape, RECIPE)
    return with_params(stack(fields.pop("backbone"), *shape, RECIPE, **fields), plain.decoder_params)


def measure_speed() -> None:
    """Median over rounds of the quickest of a few steps; the order is drawn anew in every round."""
    from edge_lts.train.loop import seconds_per_token

    stay_on_one_core()
    data, _ = load_text()
    keys = [(size, arm) for size in SIZES for arm in ARMS]
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    order = random.Random(1)
    for number in range(N_ROUNDS):
        for size, arm in order.sample(keys, len(keys)):
            training = Training(architecture=arch_of(size, **ARMS[arm]), seed=1, recipe=RECIPE)
            taken[size, arm].append(seconds_per_token(training, data))
        print(f"round {number + 1} of {N_ROUNDS}")
    rows = [
        {"size": size, "arm": arm, "seconds_per_token": statistics.median(found), "rounds": found}
        for (size, arm), found in taken.items()
    ]
    SPEED.write_text(json.dumps({"where": where(), "speeds": rows}, indent=1) + "\n")


def read_speeds() -> dict[tuple[str, str], float]:
    """Exits where none were measured."""
    if not SPEED.exists():
        raise SystemExit("no speeds yet: bench_primer.py speed")
    rows = json.loads(SPEED.read_text())["speeds"]
    return {(row["size"], row["arm"]): float(row["seconds_per_token"]) for row in rows}


def timed(speeds: Speeds) -> dict[tuple[str, str, int], Training]:
    """By size, arm and seed. Seeds come last: after a third of the time there is one of everything."""
    found = {}
    for seed in SEEDS:
        for size, (_, seconds) in SIZES.items():
            for arm, style in ARMS.items():
                steps = round(seconds / (speeds[size, arm] * RECIPE.batch_tokens))
                recipe = dataclasses.replace(RECIPE, tokens=steps * RECIPE.batch_tokens)
                found[size, arm, seed] = Training(architecture=arch_of(size, **style), seed=seed, recipe=recipe)
    return found


def at_speed(one: Trained, seconds_per_token: float) -> Trained:
    """With the seconds that its tokens take at that speed, whatever they took that day."""
    curve = tuple(dataclasses.replace(point, seconds=point.tokens * seconds_per_token) for point in one.curve)
    return dataclasses.replace(one, curve=curve, seconds=one.tokens * seconds_per_token)


def powers() -> dict[tuple[str, int], Training]:
    recipe = dataclasses.replace(RECIPE, tokens=POWER_TOKENS)
    return {
        (activation, seed): Training(
            architecture=arch_of("small", backbone="primer-ez", activation=activation), seed=seed, recipe=recipe
        )
        for seed in SEEDS
        for activation in POWERS
    }


def seconds_to_reach(one: Trained, loss: float) -> float | None:
    """When the curve first has `loss`, straight between points; None if it never has."""
    before = None
    for point in one.curve:
        if point.validation_loss <= loss:
            if before is None or before.validation_loss <= point.validation_loss:
                return point.seconds
            share = (before.validation_loss - loss) / (before.validation_loss - point.validation_loss)
            return before.seconds + share * (point.seconds - before.seconds)
        before = point
    return None


def slope_savings(losses: Mapping[str, Sequence[tuple[float, float]]], baseline: str = "gpt2") -> dict[str, float]:
    """Times the baseline's compute over each arm's at equal loss; `losses` are (seconds, loss) by arm. And `k`.

    Least squares of ln loss = ln a_arm - k ln seconds with one k: parallel lines.
    """
    names = list(losses)
    rows, targets = [], []
    for index, name in enumerate(names):
        for seconds, loss in losses[name]:
            rows.append([*(float(index == other) for other in range(len(names))), -math.log(seconds)])
            targets.append(math.log(loss))
    fitted = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    k = float(fitted[-1])
    levels = dict(zip(names, fitted[:-1], strict=True))
    found = {name: float(np.exp((levels[baseline] - levels[name]) / k)) for name in names if k > 0}
    return {**found, "k": k}


def evaluate_time(found: Mapping[tuple[str, str, int], Trained]) -> dict[str, Any]:
    """Final losses, differences and savings, from whatever is complete."""
    table: list[dict[str, Any]] = []
    for size in SIZES:
        for arm in ARMS:
            runs = [found[size, arm, seed] for seed in SEEDS if (size, arm, seed) in found]
            runs = [one for one in runs if one.bits_per_byte is not None]
            if not runs:
                continue
            mean, deviation = mean_and_deviation(one.bits_per_byte for one in runs if one.bits_per_byte is not None)
            entry: dict[str, Any] = {
                "size": size,
                "arm": arm,
                "decoder_params": runs[0].architecture.decoder_params,
                "seconds": SIZES[size][1],
                "bits_per_byte": mean,
                "deviation": deviation,
                "n_seeds": len(runs),
                "tokens": [one.tokens for one in runs],
            }
            pairs = [(one, found.get((size, "gpt2", one.seed))) for one in runs]
            usable = [(one, base) for one, base in pairs if base is not None and base.loss_nats is not None]
            if arm != "gpt2" and usable:
                entry["difference"] = paired_interval(
                    [[one.bits_per_byte - base.bits_per_byte] for one, base in usable]
                )
                reached = [seconds_to_reach(one, base.curve[-1].validation_loss) for one, base in usable]
                shares = [base.seconds / at for at, (_, base) in zip(reached, usable, strict=True) if at]
                entry["speedup_by_curve"] = float(np.mean(shares)) if len(shares) == len(usable) else None
            table.append(entry)
    result: dict[str, Any] = {"losses": table}
    if len(found) == len(SIZES) * len(ARMS) * len(SEEDS) and all(one.loss_nats is not None for one in found.values()):
        result["savings"] = _savings(found)
    return result


def _savings(found: Mapping[tuple[str, str, int], Trained]) -> dict[str, Any]:
    """With 95 % intervals over seeds, drawn anew for each size, the same ones for all arms."""

    def of(seeds: Mapping[str, Sequence[int]]) -> dict[str, float]:
        points = {
            arm: [(seconds, float(np.mean([found[size, arm, seed].loss_nats for seed in seeds[size]])))
                  for size, (_, seconds) in SIZES.items()]
            for arm in ARMS
        }  # fmt: skip
        return slope_savings(points)

    rng = np.random.default_rng(1)
    draws = [of({size: rng.choice(SEEDS, len(SEEDS)).tolist() for size in SIZES}) for _ in range(N_DRAWS)]
    central = of(dict.fromkeys(SIZES, SEEDS))
    return {
        name: {
            "value": value,
            "ci95": np.quantile([draw[name] for draw in draws if name in draw], [0.025, 0.975]).tolist(),
        }
        for name, value in central.items()
    }


def evaluate_powers(found: Mapping[tuple[str, int], Trained]) -> list[dict[str, Any]]:
    rows = []
    for activation in POWERS:
        runs = [found[activation, seed] for seed in SEEDS if (activation, seed) in found]
        losses = [one.bits_per_byte for one in runs if one.bits_per_byte is not None]
        if losses:
            mean, deviation = mean_and_deviation(losses)
            rows.append(
                {"activation": activation, "bits_per_byte": mean, "deviation": deviation, "n_seeds": len(losses)}
            )
    return rows


def page(about: dict[str, Any], result: dict[str, Any]) -> list[str]:
    lines = ["# Primer's blocks at our size", "", where_line(about), ""]
    lines += [
        "Python's documentation, bytes; equal decoder parameters; one core. Bits per byte of held-out text after equal "
        "wall-clock (as many steps as fit it at the speed measured before), mean and deviation over seeds; difference "
        "from GPT-2 paired by seed, 95 % bootstrap interval.",
        "",
        "| size | arm | decoder parameters | seconds | bits per byte | difference | speed-up by the curve |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["losses"]:
        difference, speedup = row.get("difference"), row.get("speedup_by_curve")
        cells = [
            row["size"],
            row["arm"],
            f"{row['decoder_params']:,}",
            f"{row['seconds']:.0f}",
            f"{row['bits_per_byte']:.4f} ± {row['deviation']:.4f} (n = {row['n_seeds']})",
            "" if difference is None else _interval(difference, "+.4f"),
            "" if speedup is None else f"{speedup:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if "savings" in result:
        lines += ["", "Compute saved against GPT-2, by parallel power laws over the three sizes (1 is none):", ""]
        for name, value in result["savings"].items():
            lines.append(f"- {name}: {value['value']:.3f} [{value['ci95'][0]:.3f}, {value['ci95'][1]:.3f}]")
    else:
        lines += ["", "Not complete: no slope yet."]
    if result["powers"]:
        lines += [
            "",
            f"The power of ReLU, in Primer-EZ of the smallest size, {POWER_TOKENS:,} tokens each:",
            "",
            "| activation | bits per byte |",
            "|---|---|",
        ]
        for row in result["powers"]:
            numbers = f"{row['bits_per_byte']:.4f} ± {row['deviation']:.4f} (n = {row['n_seeds']})"
            lines.append(f"| {row['activation']} | {numbers} |")
    return lines


def _interval(found: Mapping[str, Any], form: str) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:{form}} [{low:{form}}, {high:{form}}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("report", "speed", "train"), default="report")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after that (default: none)")
    parser.add_argument("--part", choices=("time", "power"), help="train only that (default: both)")
    args = parser.parse_args()
    if args.what == "speed":
        measure_speed()
        return 0
    speeds = {} if args.part == "power" else read_speeds()
    by_time, by_power = timed(speeds) if speeds else {}, powers()
    chosen = [*(by_time.values() if args.part != "power" else ()), *(by_power.values() if args.part != "time" else ())]
    found = train_all(NAME, chosen, args)
    if args.what == "train" and args.part:
        return 0
    reached = {key: found[one.key] for key, one in by_time.items() if one.key in found}
    result = evaluate_time({key: at_speed(one, speeds[key[0], key[1]]) for key, one in reached.items()})
    result["powers"] = evaluate_powers({key: found[one.key] for key, one in by_power.items() if one.key in found})
    about = where()
    lines = page(about, result)
    write_result(results_path(NAME).with_suffix(".json"), {"where": about, **result}, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Which learning rate serves every width? The sweep that `edge_lts.training.Recipe`'s defaults come from.

usage: python benchmarks/bench_recipe.py [train [--minutes M]]

GPT-2 of three widths and a llama, each trained on equally many tokens of Python's documentation with every learning
rate of a grid, under three rules: the same rate at every width, and rates of matrices that fall with the width, as
width ** -0.5 and width ** -1. Reported: the best rate of each model under each rule, and what using one rate for all
costs: the mean excess of bits per byte over each model's own best. Then, at the rule and rate chosen and width 128: the
length of windows, windows per step, the rate of tables and norms, and what else a recipe has. Last, with the windows
that did best (for both models together), the rates once more at every width. One seed: differences below a few
thousandths of a bit are noise.

Writes results/recipe_<machine>_<yyyymm>.{jsonl,json,md}. Resumable; start it once per core.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from common import where, where_line, write_result
from trainings import add_arguments, results_path, stack, train_all

from edge_lts.arch import Architecture
from edge_lts.training import BASE_WIDTH, Recipe, Trained, Training

NAME = "recipe"
TOKENS = 524_288
BASE = Recipe(tokens=TOKENS, curve_points=2, sequence_tokens=128, batch=8)
RATES = (0.0005, 0.001, 0.002, 0.004, 0.008)
EXPONENTS = (0.0, 0.5, 1.0)
WINDOWS = ((2, 128), (4, 128), (16, 128), (2, 64), (4, 64), (8, 64))  # windows per step, tokens of each
TWO = ("gpt2-128", "llama-128")
LAST_RATES = (0.0005, 0.001, 0.002, 0.004)
SEED = 1


def models(recipe: Recipe) -> dict[str, Architecture]:
    return {
        "gpt2-64": stack("gpt2", 4, 64, 256, 2, recipe),
        "gpt2-128": stack("gpt2", 4, 128, 512, 4, recipe),
        "gpt2-256": stack("gpt2", 2, 256, 1024, 4, recipe),
        "llama-128": stack("llama", 4, 128, 344, 4, recipe),
    }


def sweep() -> dict[tuple[str, float, float], Training]:
    """By model, exponent and rate. At width 128 the rule makes no difference: those trainings are the same."""
    found = {}
    for name, arch in models(BASE).items():
        for exponent in EXPONENTS:
            for rate in RATES:
                used = EXPONENTS[0] if arch.d_model == BASE_WIDTH else exponent
                recipe = dataclasses.replace(BASE, learning_rate=rate, width_exponent=used)
                found[name, exponent, rate] = Training(architecture=arch, seed=SEED, recipe=recipe)
    return found


def variants(chosen: Recipe) -> dict[tuple[str, str], Training]:
    """Changes of one thing at a time, on the two models of width 128: by what is changed, and the model."""
    changes: dict[str, dict[str, Any]] = {
        "as chosen": {},
        **{f"{n} windows of {tokens}": {"batch": n, "sequence_tokens": tokens} for n, tokens in WINDOWS},
        "tables at 0.3 of the rate": {"table_rate": 0.3},
        "tables at 3 times the rate": {"table_rate": 3.0},
        "no decay": {"weight_decay": 0.0},
        "beta2 0.99": {"beta2": 0.99},
    }
    found = {}
    for what, change in changes.items():
        recipe = dataclasses.replace(chosen, **change)
        archs = models(recipe)
        for name in TWO:
            found[what, name] = Training(architecture=archs[name], seed=SEED, recipe=recipe)
    return found


def best_windows(chosen: Recipe, done: Mapping[tuple[str, str], float]) -> Recipe | None:
    """`chosen` with the windows whose mean over the models is least; None until all are there."""
    means = {}
    for n, tokens in WINDOWS:
        losses = [done.get((f"{n} windows of {tokens}", name)) for name in TWO]
        if None in losses:
            return None
        means[n, tokens] = float(np.mean(losses))
    n, tokens = min(means, key=lambda key: means[key])
    return dataclasses.replace(chosen, batch=n, sequence_tokens=tokens)


def last(chosen: Recipe) -> dict[tuple[str, float], Training]:
    """By model and rate."""
    found = {}
    for rate in LAST_RATES:
        recipe = dataclasses.replace(chosen, learning_rate=rate)
        for name, arch in models(recipe).items():
            found[name, rate] = Training(architecture=arch, seed=SEED, recipe=recipe)
    return found


def choose(found: dict[str, Trained]) -> tuple[dict[str, Any], Recipe] | None:
    """The rule and rate with the least mean excess; None until the sweep is complete."""
    asked = sweep()
    losses = {}
    for key, training in asked.items():
        one = found.get(training.key)
        if one is None:
            return None
        losses[key] = one.bits_per_byte if one.bits_per_byte is not None else float("inf")
    names = list(models(BASE))
    best = {name: min(loss for key, loss in losses.items() if key[0] == name) for name in names}
    excess = {
        (exponent, rate): float(np.mean([losses[name, exponent, rate] - best[name] for name in names]))
        for exponent in EXPONENTS
        for rate in RATES
    }
    exponent, rate = min(excess, key=lambda key: excess[key])
    table = {
        "bits_per_byte": [[*key, loss] for key, loss in losses.items()],
        "mean_excess": [[*key, value] for key, value in excess.items()],
        "chosen": {"width_exponent": exponent, "learning_rate": rate},
    }
    return table, dataclasses.replace(BASE, learning_rate=rate, width_exponent=exponent)


def _losses(asked: Mapping[Any, Training], found: Mapping[str, Trained]) -> dict[Any, float]:
    """Bits per byte of what is trained; infinite where it failed."""
    reached = {key: found[one.key].bits_per_byte for key, one in asked.items() if one.key in found}
    return {key: float("inf") if loss is None else loss for key, loss in reached.items()}


def _cell(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    # Small models first: a first look comes early.
    order = sorted(dict.fromkeys(sweep().values()), key=lambda one: one.architecture.decoder_params)
    chosen = choose(train_all(NAME, order, args))
    if chosen is None:
        print("the sweep is not complete: start it again to go on")
        return 0
    table, recipe = chosen
    asked = variants(recipe)
    found = train_all(NAME, list(dict.fromkeys(asked.values())), args)
    done = _losses(asked, found)
    windows = best_windows(recipe, done)
    at_last = {} if windows is None else last(windows)
    ended = _losses(at_last, train_all(NAME, list(at_last.values()), args))
    about = where()
    result = {
        "where": about,
        **table,
        "variants": [[*key, loss] for key, loss in done.items()],
        "windows": None if windows is None else [windows.batch, windows.sequence_tokens],
        "last": [[*key, loss] for key, loss in ended.items()],
        "recipe": (windows or recipe).to_json(),
    }
    losses = {(name, exponent, rate): loss for name, exponent, rate, loss in table["bits_per_byte"]}
    lines = [
        "# A learning rate for every width",
        "",
        where_line(about),
        f"{TOKENS:,} tokens (bytes) of Python's documentation each, one seed; bits per byte of held-out text.",
        "Matrices have the rate times (128 / width) ** exponent.",
        "",
        "| exponent | rate | " + " | ".join(models(BASE)) + " | mean excess |",
        "|---|---|" + "---|" * (len(models(BASE)) + 1),
    ]
    for exponent, rate, value in table["mean_excess"]:
        cells = " | ".join(f"{losses[name, exponent, rate]:.3f}" for name in models(BASE))
        lines.append(f"| {exponent} | {rate} | {cells} | {value:.3f} |")
    chosen_rate, exponent = (table["chosen"][name] for name in ("learning_rate", "width_exponent"))
    lines += ["", f"Chosen: {chosen_rate} with the exponent {exponent}. With it, on the models of width 128:", ""]
    lines += ["| changed | gpt2-128 | llama-128 |", "|---|---|---|"]
    for what in dict.fromkeys(what for what, _ in done):
        lines.append(f"| {what} | " + " | ".join(_cell(done.get((what, name))) for name in TWO) + " |")
    if windows is not None:
        lines += ["", f"With {windows.batch} windows of {windows.sequence_tokens} tokens in a step:", ""]
        lines += ["| rate | " + " | ".join(models(BASE)) + " |", "|---|" + "---|" * len(models(BASE))]
        for rate in LAST_RATES:
            lines.append(f"| {rate} | " + " | ".join(_cell(ended.get((name, rate))) for name in models(BASE)) + " |")
    write_result(results_path(NAME).with_suffix(".json"), result, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

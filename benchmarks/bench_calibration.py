"""Do sixteen labels tell models of one size apart, on published panels, and does the proxy stay right beyond them?

usage: python benchmarks/bench_calibration.py [--draws N] [--tables FOLDER] [--out FILE]

The tables are those of LiteTransformerSearch's authors (`EDGE_LTS_LTS_TABLES`, or ../shared/data/lts_tables), which are
not ours to ship: without them nothing is judged. Every table `random_*.csv` of the folder is treated alike: 100 times,
16 of its rows are drawn, the calibrated proxy is fitted to them, and it and the closed forms rank the other rows. "Best
of four" is the closed form that ranks the same 16 labels best (tau-b). Then: labels from random rows, judged on the
published frontier; labels of at most 8 layers, judged on deeper ones; other numbers of labels; other settings.

Two contenders show what the parts are for: a ridge regression on the same logarithms (quadratic in size, penalty by
leave-one-out, nothing held back beyond the labels), and the calibrated proxy without its terms of shape.

Fails when, on the panel of GPT-2 on WikiText-103, the mean tau at equal size is not above that of the best of four or
below 0.42, or rho is below 0.97; or when, on that of Transformer-XL on One Billion Word, it is worse than size by more
than 0.03 in more than a tenth of the draws.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, where, where_line, write_result

from edge_lts.proxies.calibrated import TERMS
from edge_lts.proxies.closed import FORMULAS
from edge_lts_host.calibration import fit as fitting
from edge_lts_host.calibration.from_table import draw
from edge_lts_host.calibration.panel import Panel, read_panel
from edge_lts_host.calibration.statistics import common_ratio, equal_size_tau, kendall_of_pairs
from edge_lts_host.calibration.validation import score
from edge_lts_host.report.ranks import kendall, spearman

N_LABELS = 16
NUMBERS = (8, 12, 16, 24, 40, 60)
GPT2, TRANSFORMER_XL = "random_GPT2_wt103", "random_TransXL_lm1b"
FRONTIERS = (
    (TRANSFORMER_XL, "pareto_TransXL_lm1b_titanxp"),
    (GPT2, "pareto_GPT2_lm1b_corei7"),
    (TRANSFORMER_XL, "pareto_GPT2_lm1b_corei7"),
    (GPT2, "pareto_TransXL_lm1b_titanxp"),
)
MAX_DEPTH = 8
CONTENDERS = (*FORMULAS, "best of four", "ridge", "calibrated, size alone", "calibrated, mean", "calibrated")
WORSE = 0.03
LIMITS = {"tau": 0.42, "rho": 0.97, "share_worse": 0.10}
# What else could have been chosen: constants of edge_lts_host.calibration.fit, one change at a time.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "shape held near zero twice as hard": {"SHAPE_SDS": tuple(sd / 2 for sd in fitting.SHAPE_SDS)},
    "shape held half as hard": {"SHAPE_SDS": tuple(sd * 2 for sd in fitting.SHAPE_SDS)},
    "size expected to be worth half": {"SIZE_MEAN": fitting.SIZE_MEAN / 2},
    "size expected to be worth twice": {"SIZE_MEAN": fitting.SIZE_MEAN * 2},
    "size does not flatten": {"SIZE_EXPONENTS": (0.0,)},
    "width does not flatten": {"SHAPE_EXPONENTS": {**fitting.SHAPE_EXPONENTS, "d_model": (0.0,)}},
    "no noise below a tenth of the spread": {"NOISES": tuple(noise for noise in fitting.NOISES if noise >= 0.1)},
    "shape ends with the labels": {"KEPT": 0.0, "KEPT_SD": 0.58},
    "shape goes on as it is": {"KEPT": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--tables", type=Path, default=Path(os.environ.get("EDGE_LTS_LTS_TABLES", "")) or None)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration_x86_64_202611.json")
    args = parser.parse_args()
    beside = ROOT.parent / "shared" / "data" / "lts_tables"
    folder = args.tables if args.tables and args.tables.name else beside
    tables = {path.stem: read_panel(path) for path in sorted(folder.glob("*.csv"))}
    if GPT2 not in tables or TRANSFORMER_XL not in tables:
        print(f"{folder} does not hold the published tables; set EDGE_LTS_LTS_TABLES")
        return
    seeds = range(args.draws)
    few = range(max(1, args.draws * 3 // 10))
    randoms = [name for name in tables if name.startswith("random_")]
    result: dict[str, Any] = {"where": where(draws=args.draws, n_labels=N_LABELS, limits=LIMITS)}
    result["panels"] = {name: _drawn(tables[name], tables[name], seeds, N_LABELS) for name in randoms}
    result["frontiers"] = {
        f"{labelled} -> {judged}": _drawn(tables[labelled], tables[judged], seeds, N_LABELS)
        for labelled, judged in FRONTIERS
        if judged in tables
    }
    result["deeper"] = {}
    for name in randoms:
        panel = tables[name]
        shallow = [one.key for one in panel.models if one.shape.n_layer <= MAX_DEPTH]
        labelled, deep = panel.only(shallow), panel.without(shallow)
        if len(deep.models) > N_LABELS < len(labelled.models):
            result["deeper"][name] = _drawn(labelled, deep, seeds, N_LABELS)
    print("other numbers of labels", flush=True)
    result["numbers"] = {
        name: {str(n): _drawn(tables[name], tables[name], few, n, is_short=True) for n in NUMBERS} for name in randoms
    }
    print("other settings", flush=True)
    result["settings"] = {words: _with_settings(changes, tables, randoms, few) for words, changes in SETTINGS.items()}
    problems = _problems(result)
    result["problems"] = problems
    write_result(args.out, result, _page(result, few))
    print(args.out.with_suffix(".md").read_text())
    if problems:
        sys.exit("; ".join(problems))


@contextmanager
def _changed(changes: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(fitting, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(fitting, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(fitting, name, value)


def _with_settings(
    changes: dict[str, Any], tables: dict[str, Panel], randoms: Sequence[str], seeds: range
) -> dict[str, Any]:
    with _changed(changes):
        found = {name: _drawn(tables[name], tables[name], seeds, N_LABELS, is_short=True) for name in randoms}
        for labelled, judged in FRONTIERS[:2]:
            if judged in tables:
                found[judged] = _drawn(tables[labelled], tables[judged], seeds, N_LABELS, is_short=True)
    return found


def _drawn(labelled: Panel, judged: Panel, seeds: range, n_labels: int, *, is_short: bool = False) -> dict[str, Any]:
    """Statistics of each contender over the draws: means, 5th and 95th percentiles, and how often it is behind size."""
    names = ("decoder_params", "calibrated") if is_short else CONTENDERS
    scores = {name: (score(name, labelled), score(name, judged)) for name in FORMULAS}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    coverage, chosen_names = [], []
    for seed in seeds:
        labels = draw(labelled, n_labels, seed)
        keys = {one.key for one in labels.models}
        chosen = np.array([one.key in keys for one in labelled.models])
        kept = np.array([one.key not in keys for one in judged.models])
        rest = judged.without(sorted(keys))
        one = fitting.fit(labels.shape, labels.quality, unit=labels.unit, backbone=None, source={})
        mean, low, _ = one.predict(rest.shape)
        coverage.append(float((rest.quality >= low).mean()))
        values = {"calibrated": low, "decoder_params": scores["decoder_params"][1][kept]}
        if not is_short:
            on_labels = {name: kendall(own[chosen], labels.quality) or 0.0 for name, (own, _) in scores.items()}
            best = max(on_labels, key=lambda name: on_labels[name])
            chosen_names.append(best)
            values |= {name: others[kept] for name, (_, others) in scores.items()}
            values["best of four"] = values[best]
            values["ridge"] = _ridge(labels, rest)
            alone = fitting.fit(
                labels.shape, labels.quality, unit=labels.unit, backbone=None, source={}, with_shape=False
            )
            values["calibrated, size alone"] = alone.quality(rest.shape)
            values["calibrated, mean"] = mean
        for name in names:
            rows[name].append(_statistics(values[name], rest))
    print(f"{labelled.name} -> {judged.name}: {len(seeds)} draws of {n_labels}", flush=True)
    of_size = np.array([row["equal_size_tau"] for row in rows["decoder_params"]])
    found = {name: _summary(rows[name], of_size) for name in names}
    found["calibrated"]["share_above_bound"] = float(np.mean(coverage))
    if chosen_names:
        found["best of four"]["chosen"] = {name: chosen_names.count(name) for name in FORMULAS}
    return {
        "n_judged": len(judged.models),
        "n_draws": len(seeds),
        "n_labels": n_labels,
        "is_same_label": labelled.sha256 == judged.sha256,
        "contenders": found,
    }


def _statistics(values: np.ndarray, rest: Panel) -> dict[str, float]:
    shape, quality = rest.shape, rest.quality
    sizes, same = np.asarray(shape.decoder_params), np.equal.outer(shape.d_embed, shape.d_embed)
    near = np.abs(np.subtract.outer(sizes, sizes)) < 0.1 * np.maximum.outer(sizes, sizes)
    found = {
        "equal_size_tau": equal_size_tau(values, quality, sizes),
        "equal_size_tau_within_d_embed": kendall_of_pairs(values, quality, (near & same).astype(float)),
        "spearman": spearman(values, quality),
        "kendall_tau": kendall(values, quality),
        "common_ratio_top10": common_ratio(values, quality, 10),
    }
    return {key: math.nan if value is None else value for key, value in found.items()}


def _summary(rows: Sequence[dict[str, float]], of_size: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        low, high = np.nanquantile(values, [0.05, 0.95])
        found[key] = {"mean": float(np.nanmean(values)), "p5": float(low), "p95": float(high)}
    taus = np.array([row["equal_size_tau"] for row in rows])
    found["share_worse_than_size"] = float((taus < of_size - WORSE).mean())
    found["equal_size_taus"] = [round(float(tau), 4) for tau in taus]
    return found


def _ridge(labels: Panel, rest: Panel) -> np.ndarray:
    """Quadratic in ln size and linear in the other logarithms, standardised; the penalty of least squared error of
    left-out labels. Nothing keeps it from going on beyond them."""

    def columns(panel: Panel) -> np.ndarray:
        logs = [np.broadcast_to(of(panel.shape), panel.quality.shape) for of in TERMS.values()]
        return np.stack([logs[0], logs[0] ** 2, *logs[1:]], axis=1)

    x = columns(labels)
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    x, y = (x - centre) / scale, labels.quality - labels.quality.mean()
    x = np.where(np.ptp(x, axis=0) > 0, x, 0.0)
    best, found = math.inf, np.zeros(x.shape[1])
    for penalty in np.geomspace(1e-3, 1e3, 25):
        inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
        hat = x @ inverse @ x.T + 1 / len(y)
        error = float((((y - hat @ y) / (1 - np.diag(hat))) ** 2).sum())
        if error < best:
            best, found = error, inverse @ x.T @ y
    prediction: np.ndarray = (columns(rest) - centre) / scale @ found
    return prediction


def _problems(result: dict[str, Any]) -> list[str]:
    found = []
    gpt2, txl = (result["panels"][name]["contenders"] for name in (GPT2, TRANSFORMER_XL))
    tau, best = gpt2["calibrated"]["equal_size_tau"]["mean"], gpt2["best of four"]["equal_size_tau"]["mean"]
    rho = gpt2["calibrated"]["spearman"]["mean"]
    if tau <= best or tau < LIMITS["tau"] or rho < LIMITS["rho"]:
        found.append(f"{GPT2}: tau at equal size {tau:.3f} (best of four {best:.3f}), rho {rho:.3f}")
    share = txl["calibrated"]["share_worse_than_size"]
    if share > LIMITS["share_worse"]:
        found.append(f"{TRANSFORMER_XL}: worse than size in {share:.0%} of the draws")
    return found


def _page(result: dict[str, Any], few: range) -> list[str]:
    draws = result["where"]["draws"]
    lines = [
        "# Calibrated quality on published panels",
        "",
        where_line(result["where"]),
        f"{draws} draws of {N_LABELS} labels each, the other rows ranked; means over the draws, in parentheses the 5th "
        f"and 95th percentile. tau: Kendall's tau-b over pairs of equal size (decoder parameters within 10 %). Worse: "
        f"share of draws with a tau more than {WORSE} below that of size. `python benchmarks/bench_calibration.py`; no "
        "timing, so it may run beside anything.",
    ]
    for title, key in (
        ("The same panel", "panels"),
        ("Labels from random rows, judged on a published frontier (the last two: of another backbone)", "frontiers"),
        (f"Labels of at most {MAX_DEPTH} layers, judged on deeper models", "deeper"),
    ):
        for name, one in result[key].items():
            lines += ["", f"## {title}: {name}", "", *_table(one)]
    lines += ["", f"## Other numbers of labels ({len(few)} draws each)", ""]
    lines += [
        "tau of the calibrated proxy / of size, and the share of models above the bound, of which 90 % is meant.",
        "",
    ]
    lines += ["| panel | " + " | ".join(str(n) for n in NUMBERS) + " |", "|---|" + "---:|" * len(NUMBERS)]
    for name, of_panel in result["numbers"].items():
        cells = []
        for n in NUMBERS:
            covered = of_panel[str(n)]["contenders"]["calibrated"]["share_above_bound"]
            taus = [_mean(of_panel[str(n)], one) for one in ("calibrated", "decoder_params")]
            cells.append(f"{taus[0]} / {taus[1]}, {covered:.0%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    columns = list(result["settings"]["as it is"])
    lines += ["", f"## Other settings ({len(few)} draws each): tau / rho of the calibrated proxy", ""]
    lines += ["| setting | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for words, found in result["settings"].items():
        cells = [
            _mean(found[name], "calibrated") + f" / {found[name]['contenders']['calibrated']['spearman']['mean']:.4f}"
            for name in columns
        ]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    limits = "; ".join(result["problems"]) + " (missed)" if result["problems"] else "all kept"
    lines += ["", f"Limits: {limits}."]
    return lines


def _mean(found: dict[str, Any], name: str) -> str:
    return f"{found['contenders'][name]['equal_size_tau']['mean']:.3f}"


def _table(one: dict[str, Any]) -> list[str]:
    lines = [
        "| ranked by | tau | within one d_embed | rho | best 10 % in common | worse |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in CONTENDERS:
        found = one["contenders"][name]
        tau = found["equal_size_tau"]
        lines.append(
            f"| {name} | {tau['mean']:.3f} ({tau['p5']:.3f}, {tau['p95']:.3f}) "
            f"| {found['equal_size_tau_within_d_embed']['mean']:.3f} | {found['spearman']['mean']:.4f} "
            f"| {found['common_ratio_top10']['mean']:.2f} | {found['share_worse_than_size']:.0%} |"
        )
    chosen = ", ".join(f"{name} {n}" for name, n in one["contenders"]["best of four"]["chosen"].items() if n)
    lines += ["", f"Best of four was {chosen}."]
    if one["is_same_label"]:
        covered = one["contenders"]["calibrated"]["share_above_bound"]
        lines[-1] += f" Above the calibrated lower bound lie {covered:.0%} of the models."
    return lines


if __name__ == "__main__":
    main()

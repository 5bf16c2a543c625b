"""What the benchmarks that train share: one text, a list of trainings that any number of processes work through, and
intervals of differences between seeds.

`train_all` appends a line to a committed file for each training that ends, and takes up where it was stopped: within a
training from its checkpoint (in .cache, not committed), else from the lines. Start the same command twice for two
cores: a training belongs to whoever holds its lock. Equal-token trainings are no timings and may share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, read_rows

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import LockedError
from edge_lts.job import Lock
from edge_lts.training import Point, Recipe, Text, Trained, Training
from edge_lts_host.corpus import DEFAULT, ByteVocabulary, load_corpus, write_ids

CACHE = ROOT / ".cache" / "trainings"
MONTH = "x86_64_202611"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", choices=("report", "train"), default="report", help="evaluate what is there, or train first"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no training after that (default: none)"
    )


def load_text() -> tuple[Any, dict[str, Any]]:
    """Python's own documentation, byte by byte, as `edge_lts.train.data.Data`; and what identifies it."""
    from edge_lts.train.data import read_data

    corpus = load_corpus(DEFAULT)
    folder = CACHE / f"text-{corpus.sha256[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    text = Text.from_json(write_ids(folder, corpus, ByteVocabulary()))
    about = {
        "corpus": corpus.name,
        "sha256": corpus.sha256,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
        "training_bytes": len(corpus.training),
        "validation_bytes": len(corpus.validation),
        "vocabulary": "bytes",
    }
    return read_data(folder, text), about


def results_path(name: str, part: str = "", suffix: str = ".jsonl") -> Path:
    """The trainings of a benchmark, or a `part` of what it writes beside them."""
    return RESULTS / f"{name}_{MONTH}{part and '_'}{part}{suffix}"


def read_results(path: Path) -> dict[str, Trained]:
    """By key; of two lines with one key the first."""
    found: dict[str, Trained] = {}
    for row in read_rows(path):
        one = Trained.from_json(row)
        found.setdefault(one.key, one)
    return found


def train_all(
    name: str, trainings: Sequence[Training], args: argparse.Namespace, *, say: Callable[[str], None] = print
) -> dict[str, Trained]:
    """Train whatever has no line yet and nobody else is at; all results that there are then, by key."""
    path = results_path(name)
    if args.what != "train":
        return read_results(path)
    from edge_lts.train.loop import train

    data, about = load_text()
    begun = time.monotonic()
    for training in trainings:
        place = CACHE / name / training.key
        place.mkdir(parents=True, exist_ok=True)
        if training.key in read_results(path):
            continue
        try:
            lock = Lock(place / "lock", run_id=training.key, what="the training", patience_s=0.0)
        except LockedError:
            continue
        with lock:
            done = read_results(path)
            if training.key in done:
                continue
            if time.monotonic() - begun > 60 * args.minutes:
                say(f"time is up; {len(done)} of {len(trainings)} are done")
                break
            for record in train(training, data, checkpoint=place / "checkpoint.pt"):
                if isinstance(record, Point):
                    continue
                row = {**record.to_json(), "text": about}
                _append(path, json.dumps(row, separators=(",", ":")))
                (place / "checkpoint.pt").unlink(missing_ok=True)
                arch, reached = record.architecture, record.error or f"{record.bits_per_byte:.4f} bits per byte"
                say(
                    f"{sum(one.key in done for one in trainings) + 1}/{len(trainings)} {arch.backbone} "
                    f"{arch.decoder_params:,} seed {record.seed}: {reached}, {record.tokens:,} tokens, "
                    f"{record.seconds:.0f} s"
                )
    return read_results(path)


def _append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


def stack(
    backbone: str, n_layer: int, d_model: int, d_inner: int, n_head: int, recipe: Recipe, **changes: Any
) -> Architecture:
    """Equal layers, a vocabulary of bytes, positions for the recipe's windows."""
    layer = LayerSpec(d_inner=d_inner, n_head=n_head, n_kv_head=changes.pop("n_kv_head", 0))
    return Architecture(
        backbone=backbone,
        d_model=d_model,
        layers=(layer,) * n_layer,
        vocab_size=256,
        max_seq_len=recipe.sequence_tokens,
        **changes,
    )


def with_params(arch: Architecture, wanted: int) -> Architecture:
    """`arch` with one d_inner for all layers, such that it has as nearly `wanted` decoder parameters as can be."""

    def of(d_inner: int) -> Architecture:
        layers = tuple(
            LayerSpec(d_inner=d_inner, n_head=layer.n_head, n_kv_head=layer.n_kv_head) for layer in arch.layers
        )
        return arch.replace(layers=layers)

    slope = of(2).decoder_params - of(1).decoder_params
    d_inner = max(1, round((wanted - of(1).decoder_params) / slope) + 1)
    return of(d_inner)


def paired_interval(differences: Sequence[Sequence[float]], n_draws: int = 10_000, seed: int = 1) -> dict[str, Any]:
    """Mean over pairs, and its 95 % bootstrap interval: pairs are drawn, and within each its seeds."""
    rng = np.random.default_rng(seed)
    means = np.empty(n_draws)
    for draw in range(n_draws):
        picked = rng.integers(len(differences), size=len(differences))
        means[draw] = np.mean([np.mean(rng.choice(differences[pair], len(differences[pair]))) for pair in picked])
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(np.mean([np.mean(pair) for pair in differences]))
    return {"mean": mean, "ci95": [float(low), float(high)], "n_pairs": len(differences)}


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")

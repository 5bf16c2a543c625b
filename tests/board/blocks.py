"""Runs on a board: `python3 -I blocks.py AGENT SITE FOLDER` trains, interrupts, resumes and scores a tiny model of each
kind of block, and measures those of MEASURED. All in one process, because importing torch takes an emulated board most
of a minute. stdout gets one JSON object for each. The modules are those of the agent, a full one.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

MEASURED = ("llama", "primer")
VOCABULARY = 32


def use(agent: str) -> None:
    """Import `edge_lts` from the agent, as the agent does."""
    archive = zipfile.ZipFile(agent)
    main: dict[str, Any] = {"__name__": "agent_main"}
    exec(archive.read("__main__.py"), main)
    sys.meta_path.insert(0, main["Sources"](agent, json.loads(lzma.decompress(archive.read("edge_lts.json.xz")))))


def architectures() -> list[Any]:
    """One of each kind; two heads share one of keys and values where the kind has that."""
    from edge_lts.arch import Architecture, LayerSpec

    shared = {"llama": 2}
    return [
        Architecture(
            backbone=backbone,
            d_model=32,
            layers=(LayerSpec(d_inner=48, n_head=4, n_kv_head=shared.get(backbone, 4)),) * 2,
            vocab_size=VOCABULARY,
            max_seq_len=16,
        )
        for backbone in ("gpt2", "llama", "transformer++", "primer-ez", "primer")
    ]


def trained(arch: Any, folder: Path) -> dict[str, Any]:
    """Losses of a training at its points; those of the same one given up after the first point and resumed."""
    import numpy as np
    import torch

    from edge_lts.train.data import Data
    from edge_lts.train.loop import train
    from edge_lts.training import Recipe, Training

    ids = (np.arange(3000) * 7 % VOCABULARY).astype("<u2")
    data = Data(ids[:2500], ids[2500:], 1.0)
    recipe = Recipe(tokens=1024, sequence_tokens=16, batch=4, curve_points=4, point_tokens=64, learning_rate=0.01)
    training = Training(architecture=arch, seed=1, recipe=recipe)
    *_, whole = train(training, data)
    checkpoint = folder / f"{training.key}.pt"
    running = train(training, data, checkpoint=checkpoint, save_every_s=0.0)
    next(running)
    next(running)
    running.close()
    n_saved = int(torch.load(checkpoint, weights_only=True)["n_steps"])
    *_, resumed = train(training, data, checkpoint=checkpoint)
    return {
        "error": whole.error or resumed.error,
        "losses": [point.validation_loss for point in whole.curve],
        "resumed": [point.validation_loss for point in resumed.curve],
        "n_saved": n_saved,
        "n_steps": resumed.steps,
    }


def measured(arch: Any) -> dict[str, float]:
    from edge_lts.evaluator import evaluate
    from edge_lts.records import Protocol, central

    rules = Protocol(prompt_tokens=4, context_tokens=4, threads=1, prefill_samples=2, decode_samples=2)
    found = evaluate(arch, rules, is_emulated=True)
    names = ("prefill_latency_s", "decode_latency_s")
    return {name: float(central(found.objectives[name]) or math.nan) for name in names}


def main(agent: str, site: str, folder: str) -> None:
    sys.path.insert(0, site)
    use(agent)
    from edge_lts.proxies.model_based import SCORES, scores

    archs = architectures()
    for arch in sorted(archs, key=lambda one: one.backbone not in MEASURED):  # before anything has warmed the heap
        said: dict[str, Any] = {"backbone": arch.backbone}
        if arch.backbone in MEASURED:
            said["measured"] = measured(arch)
        said |= {"trained": trained(arch, Path(folder)), "scores": scores(arch, list(SCORES))["scores"]}
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

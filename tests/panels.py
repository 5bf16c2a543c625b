"""Tables of trained models for tests: made up by a law that is known, or the published ones where they are at hand."""

from __future__ import annotations

import csv
import math
import os
import random
from pathlib import Path

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import attention_params
from tests.support import require

COLUMNS = (
    *("name", "n_layer", "d_model", "d_embed", "div_val", "vocab_size", "n_head", "d_inner"),
    *("attention_params", "decoder_params", "total_params", "valid_ppl"),
)


def published(name: str) -> Path:
    """A published table; skips with a reason where the tables are not at hand (they are not ours to ship)."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "lts_tables"
    path = Path(os.environ.get("EDGE_LTS_LTS_TABLES", beside)) / f"{name}.csv"
    require("lts_tables", path.is_file(), f"{path} is not there; set EDGE_LTS_LTS_TABLES")
    return path


def architectures(n: int, seed: int) -> list[Architecture]:
    """GPT-2s of 2 to 16 layers, 64 to 512 wide, some with a projected embedding, as the published panels draw them."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        layers = [
            LayerSpec(n_head=rng.choice((2, 4, 8)), d_inner=rng.randint(512, 2048)) for _ in range(rng.randint(2, 16))
        ]
        d_model, d_embed = rng.choice((64, 128, 256, 512)), rng.choice((128, 256, 512))
        found.append(
            Architecture(backbone="gpt2", d_model=d_model, d_embed=d_embed, vocab_size=1000, layers=tuple(layers))
        )
    return found


def log_perplexity(arch: Architecture, *, shape: float, noise: float, rng: random.Random) -> float:
    """4.5 less 0.2 per e-fold of size; `shape` scales what depth and width beyond it are worth."""
    size = math.log(arch.decoder_params / 1e6)
    of_shape = 0.1 * math.log(arch.n_layer / 6) - 0.15 * 256 / arch.d_model + 0.05 * math.log(arch.d_embed / 256)
    return 4.5 - 0.2 * size - shape * of_shape + rng.gauss(0, noise)


def row(name: str, arch: Architecture, valid_ppl: float) -> dict[str, object]:
    return {
        "name": name,
        "n_layer": arch.n_layer,
        "d_model": arch.d_model,
        "d_embed": arch.d_embed,
        "div_val": 1,
        "vocab_size": arch.vocab_size,
        "n_head": ";".join(str(layer.n_head) for layer in arch.layers),
        "d_inner": ";".join(str(layer.d_inner) for layer in arch.layers),
        "attention_params": attention_params(arch),
        "decoder_params": arch.decoder_params,
        "total_params": arch.total_params,
        "valid_ppl": valid_ppl,
    }


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for one in rows for key in one)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_up(path: Path, n: int = 80, *, shape: float = 1.0, noise: float = 0.01, seed: int = 0) -> Path:
    """A table of so many models whose loss follows `log_perplexity`."""
    rng = random.Random(seed + 1)
    rows = [
        row(f"m{index}", arch, math.exp(log_perplexity(arch, shape=shape, noise=noise, rng=rng)))
        for index, arch in enumerate(architectures(n, seed))
    ]
    return write_table(path, rows)

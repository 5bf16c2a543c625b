"""A training script for one architecture, with a learning rate and a batch for its shape (`pick --recipe DIR`).

DIR gets model.py, config.json and example.py (`edge_lts_host.export`), train.py and recipe.json. Where the numbers come
from stands beside them in recipe.json:

    tokens          --train-tokens, else 20 per parameter (Hoffmann et al. 2022, table 3)
    learning rate   0.3118 C^-0.1250, and
    batch           0.2920 C^0.3271 tokens: Bi et al. 2024 (DeepSeek LLM, arXiv 2401.02954, eq. 1), C = 6 x the FLOPs of
                    a forward pass of the decoder, by token, times tokens; fitted for 1e17 to 2e19 FLOPs with AdamW and
                    pre-norm decoders
    post-norm       a Transformer-XL, and an OPT, gets at most 2.5e-4 (Dai et al. 2019, arXiv 1901.02860, WikiText-103
                    base), because post-norm diverges at rates that pre-norm takes
    the rest        AdamW (0.9, 0.95), weight decay 0.1, clipping at 1.0 as in Bi et al.; a cosine to a tenth over the
                    whole run as in Hoffmann et al.
They are a place to begin, not an optimum: nothing here was tuned on these shapes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture
from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.report.loss_law import TOKENS_PER_PARAM

RECIPE = "recipe.json"
SCRIPT = "train.py"
FITTED_FLOPS = (1e17, 2e19)
POST_NORM_RATE = 2.5e-4
MAX_WINDOW = 1024
MAX_WARMUP = 2000
_SCRIPT_SOURCE = Path(__file__).resolve().parent / "train.py.txt"


def recipe(architecture: Architecture, train_tokens: float | None = None) -> dict[str, Any]:
    """Everything that train.py reads, and `sources` and `notes` for people."""
    tokens = train_tokens or float(TOKENS_PER_PARAM * architecture.total_params)
    window = min(architecture.max_seq_len, MAX_WINDOW)
    flops = flops_per_token(architecture, window) * tokens
    rate = 0.3118 * flops**-0.1250
    rate_source = "0.3118 C^-0.1250, Bi et al. 2024, arXiv 2401.02954, eq. 1"
    if architecture.backbone in ("transformer-xl", "opt") and rate > POST_NORM_RATE:
        rate, rate_source = POST_NORM_RATE, "post-norm: Dai et al. 2019, arXiv 1901.02860, WikiText-103 base"
    batch = max(1, round(0.2920 * flops**0.3271 / window))
    steps = max(1, math.ceil(tokens / (batch * window)))
    notes = []
    if not FITTED_FLOPS[0] <= flops <= FITTED_FLOPS[1]:
        notes.append(
            f"{flops:.2g} FLOPs lie outside the {FITTED_FLOPS[0]:g} to {FITTED_FLOPS[1]:g} that rate and batch were "
            "fitted for"
        )
    if tokens < TOKENS_PER_PARAM * architecture.total_params:
        notes.append(f"under {TOKENS_PER_PARAM} tokens per parameter: a smaller model would use these tokens better")
    if architecture.precision not in (None, "float32"):
        notes.append(f"training is in float32; {architecture.precision} is for the board")
    return {
        "schema_version": 1,
        "arch_id": architecture.arch_id,
        "tokens": round(tokens),
        "flops": flops,
        "learning_rate": float(f"{rate:.3g}"),
        "sequence_length": window,
        "batch_windows": batch,
        "steps": steps,
        "warmup_steps": min(MAX_WARMUP, max(1, steps // 10)),
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "clip": 1.0,
        "validation_windows": 16,
        "sources": {
            "tokens": "--train-tokens"
            if train_tokens
            else f"{TOKENS_PER_PARAM} per parameter, Hoffmann et al. 2022, arXiv 2203.15556, table 3",
            "learning_rate": rate_source,
            "batch_windows": "0.2920 C^0.3271 tokens, Bi et al. 2024, arXiv 2401.02954, eq. 1",
            "sequence_length": f"max_seq_len, at most {MAX_WINDOW}",
            "warmup_steps": f"{MAX_WARMUP}, at most a tenth, Bi et al. 2024, section 2.3",
            "weight_decay": "Bi et al. 2024, section 2.3, with betas and clip",
            "schedule": "cosine to a tenth over the whole run, Hoffmann et al. 2022, section 3.1",
        },
        "notes": notes,
    }


def flops_per_token(architecture: Architecture, window: int) -> float:
    """Of training, without embedding and head: 6 per decoder parameter, and attention over `window` (as Bi et al.)."""
    return 6.0 * architecture.decoder_params + 12.0 * architecture.width_sums["q_width"] * window


def write_recipe(architecture: Architecture, folder: Path, train_tokens: float | None = None) -> dict[str, Any]:
    """Write the folder and return its recipe. Raises UsageError for a folder that holds anything but a recipe."""
    from edge_lts_host.export import write_torch

    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECIPE).is_file())):
        raise UsageError(f"--recipe: {folder} is there already and holds no recipe; name an empty or a new folder")
    data = recipe(architecture, train_tokens)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_torch(architecture, folder)
        (folder / SCRIPT).write_text(_SCRIPT_SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
        (folder / RECIPE).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as exc:
        raise StoreError(f"cannot write {folder}: {exc.strerror or exc}") from exc
    return data

"""Trained models as a panel: a CSV file in the published tables' columns, a row for each training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_lts.counting import attention_params
from edge_lts.training import Trained
from edge_lts_host.report.render import to_csv
from edge_lts_host.store import write_atomic

# Those of the published tables, then what they lack. `valid_ppl` is per token: of this vocabulary alone.
COLUMNS = (
    "name",
    "backbone",
    "n_layer",
    "d_model",
    "d_embed",
    "div_val",
    "vocab_size",
    "n_head",
    "n_kv_head",
    "d_inner",
    "attention_params",
    "decoder_params",
    "total_params",
    "valid_ppl",
    "bits_per_byte",
    "seed",
    "tokens",
    "seconds",
)


def row(trained: Trained) -> dict[str, Any]:
    """One training that ended with a loss. Equal architectures have equal names: they are repeats."""
    assert trained.loss_nats is not None
    arch = trained.architecture
    return {
        "name": arch.arch_id,
        "backbone": arch.backbone,
        "n_layer": arch.n_layer,
        "d_model": arch.d_model,
        "d_embed": arch.d_embed,
        "div_val": arch.embedding_factor,
        "vocab_size": arch.vocab_size,
        "n_head": [layer.n_head for layer in arch.layers],
        "n_kv_head": [layer.n_kv_head for layer in arch.layers],
        "d_inner": [layer.d_inner for layer in arch.layers],
        "attention_params": attention_params(arch),
        "decoder_params": arch.decoder_params,
        "total_params": arch.total_params,
        "valid_ppl": math.exp(trained.loss_nats),
        "bits_per_byte": trained.bits_per_byte,
        "seed": trained.seed,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
    }


def write_labels(path: Path, results: Iterable[Trained]) -> int:
    """Those that have a loss; returns how many."""
    rows: list[Mapping[str, Any]] = [row(one) for one in results if one.loss_nats is not None]
    write_atomic(path, to_csv(rows, COLUMNS).encode("utf-8"))
    return len(rows)

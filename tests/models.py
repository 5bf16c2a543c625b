"""Models for tests that compare outputs. Imports torch: import this after the check that torch is there."""

from __future__ import annotations

from typing import Any

import torch

from edge_lts.arch import Architecture
from edge_lts.model import build_model


def filled(arch: Architecture, *, std: float = 0.1) -> Any:
    """A model whose every parameter matters for the result: larger values than those that training begins with."""
    model = build_model(arch)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return model

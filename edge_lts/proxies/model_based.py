"""[torch] Proxies that look at an untrained model: one or two passes instead of a training.

    synflow    sum of |w dR/dw| with all weights made positive and R the sum of all outputs, in float64 (Tanaka et al.
               2020, arXiv 2006.05467)
    snip       sum of |w dL/dw|, L the loss of one batch (Lee et al. 2019, arXiv 1810.02340)
    grad_norm  sum of the Euclidean norms of dL/dw, parameter by parameter (Abdelfattah et al. 2021, arXiv 2101.08134)
    jacob_cov  how little the windows of a batch are told apart by the model's derivative: from the eigenvalues of their
               Jacobians' correlations (Mellor et al. 2021, arXiv 2006.04647, v1)

As LiteTransformerSearch takes them, with two differences: weights are those of the decoder alone, as in
`decoder_params`, since tables of a large vocabulary would drown it; and the batch is text without meaning, tokens of
the Zipf law that measurements use (its seed given), so that no corpus is needed. Derivatives by the input are taken at
the embedding's output. Larger is better, by what each paper claims; edge-lts makes no claim that it is so.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge_lts.arch import Architecture
from edge_lts.errors import SpecError
from edge_lts.model import Model, build_model
from edge_lts.profile.latency import zipf_tokens
from edge_lts.train.initial import initialise
from edge_lts.train.loop import mean_loss

BATCH = 16
SEQUENCE_TOKENS = 64
_SMALL = 1e-5


def scores(arch: Architecture, names: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """`scores` and `seconds` by name. A score that is not finite is None. Raises EvaluationError, MemoryError."""
    length = min(SEQUENCE_TOKENS, arch.max_seq_len)
    windows = zipf_tokens(BATCH * (length + 1), arch.vocab_size, seed).view(BATCH, length + 1)
    found: dict[str, float | None] = {}
    seconds: dict[str, float] = {}
    for name in names:
        model = build_model(arch.replace(precision=None))
        initialise(model, arch, seed)
        begun = time.perf_counter()
        value = SCORES[name](model, windows)
        seconds[name] = round(time.perf_counter() - begun, 4)
        found[name] = value if abs(value) < float("inf") else None
    return {"scores": found, "seconds": seconds}


def check_names(names: Sequence[object]) -> None:
    """Raises SpecError for a name that is no proxy of this room."""
    for name in names:
        if name not in SCORES:
            raise SpecError(f"unknown proxy {name!r:.60}; those that need the model: {', '.join(SCORES)}")


def synflow(model: Model, windows_BT: Tensor) -> float:
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(windows_BT[:1, :-1], None, "all").sum().backward()
    return _saliency(model)


def snip(model: Model, windows_BT: Tensor) -> float:
    mean_loss(model, windows_BT).backward()  # type: ignore[no-untyped-call]
    return _saliency(model)


def grad_norm(model: Model, windows_BT: Tensor) -> float:
    mean_loss(model, windows_BT).backward()  # type: ignore[no-untyped-call]
    return sum(float(weight.grad.norm()) for weight in _weights(model) if weight.grad is not None)


def jacob_cov(model: Model, windows_BT: Tensor) -> float:
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.token_embedding.register_forward_hook(keep)
    try:
        model(windows_BT[:, :-1], None, "all").sum().backward()
    finally:
        handle.remove()
    assert embedded[0].grad is not None
    jacobians = embedded[0].grad.flatten(1).double()
    values = torch.linalg.eigvalsh(torch.corrcoef(jacobians)).clamp(min=0.0) + _SMALL
    return -float((values.log() + 1.0 / values).sum())


SCORES: dict[str, Callable[[Model, Tensor], float]] = {
    "synflow": synflow,
    "snip": snip,
    "grad_norm": grad_norm,
    "jacob_cov": jacob_cov,
}


def _weights(model: Model) -> list[Tensor]:
    """The decoder's matrices."""
    return [weight for weight in model.decoder.parameters() if weight.ndim > 1]


def _saliency(model: Model) -> float:
    return sum(
        float((weight.detach() * weight.grad).abs().sum()) for weight in _weights(model) if weight.grad is not None
    )

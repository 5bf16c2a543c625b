"""Where a member's latency goes by kind of layer, as plain data: by the cost model, fitted to what the run measured.

Nothing is timed layer by layer on the board; the parts are the terms of the fitted model (`edge_lts.search.cost_model`)
scaled to its own prediction, and the measured whole stands beside their sum. Terms that grow alike in a space (the
projections and the feed-forward part, where d_inner follows d_model) can hardly be told apart by a fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.search.cost_model import BASE_TERM_NAMES, COSTS, LAYER_TERM_NAMES, CostModel, terms_of
from edge_lts_host.report.certificate import fitted
from edge_lts_host.report.compare import resolved_protocol
from edge_lts_host.report.sides import Side

# Kind -> terms of the cost model, in the order in which they are drawn.
KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("projections", "attention", "heads", "elementwise"),
    "feed-forward": ("ffn", "activation"),
    "constant per layer": ("layer", "operators"),
    "embedding and head": ("head_table", "embedding", "logits"),
    "constant per call": ("call",),
}


def breakdown(side: Side, entries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By latency: {"arch_id", "predicted_s", "parts": {kind: seconds}} of each of `entries`; {} where too little was
    measured to fit a model."""
    predictor = fitted(side.spec, side.device_info, side.outcomes, resolved_protocol(side.spec, side.outcomes))
    if predictor is None:
        return {}
    return {
        cost: [_parts(predictor.models[cost], cost, entry) for entry in entries]
        for cost in COSTS
        if cost in predictor.models
    }


def _parts(model: CostModel, cost: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    arch = Architecture.from_json(entry["architecture"])
    regimes: Any = model.to_json()["seconds_per_count"]
    rates = regimes.get("beyond cache" if model.is_beyond_cache(arch) else "resident") or next(iter(regimes.values()))
    counts = terms_of(cost, arch, model.conditions).tolist()
    names = [*LAYER_TERM_NAMES, *BASE_TERM_NAMES]
    per_count = {**rates["layer"], **rates["outside"]}
    seconds = {name: per_count[name] * count for name, count in zip(names, counts, strict=True)}
    predicted_s, smooth_s = model.predict(arch), sum(seconds.values())
    scale = predicted_s / smooth_s if smooth_s > 0 else 0.0
    parts = {kind: scale * sum(seconds[term] for term in terms) for kind, terms in KINDS.items()}
    return {"arch_id": entry["arch_id"], "predicted_s": predicted_s, "parts": parts}

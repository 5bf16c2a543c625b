"""The proxies there are, in words: what each costs, and what speaks for it. For `edge-lts proxies` and the docs."""

from __future__ import annotations

from typing import Any

from edge_lts.proxies.closed import FORMULAS
from edge_lts_host.calibration.scores import NAMES

_FREE = "nothing: a formula"
_MODEL = "a model is built; forward and backward passes of one batch"
_PANELS = "benchmarks/results/calibration_x86_64_202611.md"
_TRAINED = "no better than size over models trained here: benchmarks/results/panel_x86_64_202611.md"
_WORDS: dict[str, tuple[str, str, str]] = {  # (what it is, its source, what speaks for it here)
    "decoder_params": (
        "parameters of attention, FFN and norms",
        "Javaheripi et al. 2022, arXiv 2203.02094",
        f"ranks sizes, not shapes of one size: {_PANELS}",
    ),
    "attention_params": (
        "those of attention alone",
        "counted beside the proxy of arXiv 2203.02094",
        f"better than size on one published panel, worse on others: {_PANELS}",
    ),
    "decoder_params_embed": (
        "decoder_params times the root of d_embed",
        "own; the embedding is what decoder_params leaves out",
        f"better than size where d_embed varies: {_PANELS}",
    ),
    "nsc": (
        "spectral capacity of all matrices",
        "Neural Spectral Capacity 2026, arXiv 2609.23087",
        f"slightly better than size on published panels: {_PANELS}",
    ),
    "synflow": ("sum of |w dR/dw|, weights positive", "Tanaka et al. 2020, arXiv 2006.05467", _TRAINED),
    "snip": ("sum of |w dL/dw|", "Lee et al. 2019, arXiv 1810.02340", _TRAINED),
    "grad_norm": ("sum of gradients' norms", "Abdelfattah et al. 2021, arXiv 2101.08134", _TRAINED),
    "jacob_cov": ("how well inputs are told apart", "Mellor et al. 2021, arXiv 2006.04647", _TRAINED),
}
_CALIBRATED = {
    "name": "calibrated",
    "kind": "calibrated",
    "is_additive": False,
    "what": "quality fitted to few trained models (edge-lts calibrate), with an interval",
    "cost": "the labels: 16 trained models, or a table of them; then a formula",
    "source": "own: ridge regressions averaged by leave-one-out; docs/quality.md",
    "evidence": _PANELS,
}


def catalogue() -> list[dict[str, Any]]:
    """One record for each, formulas first. is_additive: a sum over layers at given widths, as the exact solver needs;
    the calibrated one is a growing function of such sums, which it can carry as well."""
    found = []
    for name in (*FORMULAS, *NAMES):
        what, source, evidence = _WORDS[name]
        is_formula = name in FORMULAS
        found.append(
            {
                "name": name,
                "kind": "formula" if is_formula else "model",
                "is_additive": is_formula,
                "what": what,
                "cost": _FREE if is_formula else _MODEL,
                "source": source,
                "evidence": evidence,
            }
        )
    return [*found, dict(_CALIBRATED)]

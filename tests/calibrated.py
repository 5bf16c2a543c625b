"""A calibrated proxy with known coefficients, as `calibrate` might have written it."""

from __future__ import annotations

import math

from edge_lts.proxies.calibrated import SIZE, CalibratedProxy, Term


def proxy(*, heads: float = 0.0, backbone: str | None = "gpt2", name: str = "16 of panel.csv") -> CalibratedProxy:
    """Prefers width to depth, and with `heads` many heads to few; labels around a million decoder parameters."""
    worth = {SIZE: 0.3, "n_layer": -0.06, "d_model": 0.05, "embedding_ratio": 0.04} | (
        {"n_head": heads} if heads else {}
    )
    centres = {SIZE: 1e6, "n_layer": 5.0, "d_model": 180.0, "embedding_ratio": 1.0, "n_head": 3.0}
    terms = [
        Term(
            name=term,
            exponents=(0.15,) if term == SIZE else (0.0,),
            centre=math.log(centres[term]),
            low=-1.5 if term == SIZE else -0.8,
            high=1.5 if term == SIZE else 0.8,
            kept=1.0 if term == SIZE else 0.5,
            spread_below=0.02,
            spread_above=0.02,
        )
        for term in worth
    ]
    n = 1 + len(terms)
    return CalibratedProxy(
        unit="nats/token",
        backbone=backbone,
        terms=tuple(terms),
        coefficients=(-3.5, *worth.values()),
        covariance=tuple(tuple(1e-4 if row == column else 1e-5 for column in range(n)) for row in range(n)),
        noise=0.02,
        source={"name": name},
    )

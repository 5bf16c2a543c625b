"""`edge-lts calibrate --labels TABLE.csv`: draw rows, fit a proxy to them, write proxy.json.

The rows that were used are recorded in it, so that `validate` can leave them out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import edge_lts
from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts_host.calibration import fit as fitting
from edge_lts_host.calibration.panel import Panel, read_panel
from edge_lts_host.errors import UsageError

DEFAULT_MODELS = 16


def calibrate_file(
    path: str | Path,
    *,
    to: str | Path,
    seed: int,
    models: int | None = None,
    label: str | None = None,
    backbone: str | None = None,
    at_most: bool = False,
) -> dict[str, Any]:
    """Fit to `models` rows of a table, drawn by `seed` (None: to all), and write the proxy. Returns what `emit` shows.

    at_most: all models, where the table has no more. Raises UsageError for a table that does not do.
    """
    from edge_lts_host.report.render import dump_json
    from edge_lts_host.store import write_atomic

    panel = read_panel(path, backbone=backbone, label=label)
    if at_most and models is not None and models >= len(panel.models):
        models = None
    labels = draw(panel, models, seed)
    proxy = fit_panel(labels, file=Path(path).name, seed=None if models is None else seed)
    text = dump_json(proxy.to_json()) + "\n"
    try:
        write_atomic(Path(to), text.encode("ascii"))
    except OSError as exc:
        raise UsageError(f"{to}: it cannot be written: {exc.strerror or exc}") from exc
    return summary(proxy, labels) | {"proxy": str(to)}


def draw(panel: Panel, models: int | None, seed: int) -> Panel:
    """So many of the panel's models, each as likely as any other; the same for the same seed."""
    import numpy as np

    if models is None:
        return panel
    if not fitting.MIN_LABELS <= models <= len(panel.models):
        raise UsageError(
            f"{models} models cannot be drawn from the {len(panel.models)} of {panel.name}; "
            f"between {fitting.MIN_LABELS} and all of them can"
        )
    if seed < 0:
        raise UsageError(f"the seed must be at least 0, not {seed}")
    chosen = np.random.default_rng(seed).permutation(len(panel.models))[:models]
    return panel.only([panel.models[index].key for index in chosen.tolist()])


def fit_panel(labels: Panel, *, file: str, seed: int | None) -> CalibratedProxy:
    """The proxy that all models of `labels` give."""
    return fitting.fit(
        labels.shape,
        labels.quality,
        unit=labels.unit,
        backbone=labels.backbone,
        source={
            "name": f"{labels.name}, {len(labels.models)} models",
            "labels": file,
            "sha256": labels.sha256,
            "label": labels.label,
            "seed": seed,
            "n_models": len(labels.models),
            "n_trainings": sum(one.n_trainings for one in labels.models),
            "edge_lts": edge_lts.__version__,
            "rows": [{"name": one.name, "key": one.key} for one in labels.models],
        },
        known_noise=labels.known_noise,
    )


def summary(proxy: CalibratedProxy, labels: Panel) -> dict[str, Any]:
    """What is said of a new proxy: what its error is on labels that it was not fitted to, beside that of size alone."""
    rows = labels.models
    sizes = [one.shape.decoder_params for one in rows]
    return {
        "name": proxy.name,
        "digest": proxy.digest,
        "unit": proxy.unit,
        "backbone": proxy.backbone,
        "n_models": len(rows),
        "noise": proxy.noise,
        "error": _left_out_error(labels, with_shape=True),
        "error_of_size_alone": _left_out_error(labels, with_shape=False),
        "decoder_params": [min(sizes), max(sizes)],
        "rows": [one.name for one in rows],
        "warnings": list(labels.warnings),
    }


def _left_out_error(labels: Panel, *, with_shape: bool) -> float | None:
    """Root mean square error of each label, predicted by a fit to all others; None where they are too few for that."""
    if len(labels.models) <= fitting.MIN_LABELS:
        return None
    squares = []
    for one in labels.models:
        others = labels.without([one.key])
        proxy = fitting.fit(
            others.shape,
            others.quality,
            unit=labels.unit,
            backbone=labels.backbone,
            source={},
            known_noise=labels.known_noise,
            with_shape=with_shape,
        )
        squares.append((float(proxy.predict(one.shape)[0]) - one.quality) ** 2)
    return math.sqrt(math.fsum(squares) / len(squares))


def emit(result: dict[str, Any], output: str) -> None:
    """Print what `calibrate_file` returned."""
    from edge_lts_host.calibration import pages
    from edge_lts_host.report import render

    for warning in result["warnings"]:
        render.warn(warning)
    render.emit(pages.calibrated(result, output))

"""`edge-lts validate`: how well proxies rank the trained models of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_lts.proxies.calibrated import CalibratedProxy
from edge_lts.proxies.closed import FORMULAS
from edge_lts_host.calibration import scores
from edge_lts_host.calibration.panel import Panel, describe
from edge_lts_host.calibration.statistics import equal_size_tau, rank_statistics
from edge_lts_host.errors import HostError, UsageError
from edge_lts_host.proxy_files import load_proxy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_lts.arch import Architecture

    Array = NDArray[np.float64]
    Scores = dict[str, Array]

SCHEMA_VERSION = 1
MIN_MODELS = 3
Say = Callable[[str], None]


def resolve(name: str) -> str | CalibratedProxy:
    """A proxy by its name, or the calibrated one in a file. Raises UsageError."""
    if name in FORMULAS or name in scores.NAMES:
        return name
    if name.endswith(".json") or Path(name).exists():
        return load_proxy(name)
    raise UsageError(
        f"there is no proxy {name!r:.80}; there are {', '.join((*FORMULAS, *scores.NAMES))} and files that "
        "edge-lts calibrate wrote"
    )


def used_rows(proxies: Sequence[str | CalibratedProxy]) -> list[str]:
    """Keys of the rows that any of these was fitted to."""
    found = []
    for proxy in proxies:
        rows = proxy.source.get("rows") if isinstance(proxy, CalibratedProxy) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                found.append(row["key"])
    return found


def validate(
    panel: Panel, proxies: Sequence[str | CalibratedProxy], left_out: Sequence[str], say: Say, known: Scores
) -> list[Any]:
    """For each proxy its statistics on the panel's models without those rows; JSON. Raises UsageError.

    `known` gets the scores of the proxies that have a name: for `points`, which would have to work them out once more.
    """
    kept = panel.without(left_out)
    n_left_out = len(panel.models) - len(kept.models)
    if len(kept.models) < MIN_MODELS:
        raise UsageError(f"{len(kept.models)} models are left of {panel.name}; at least {MIN_MODELS} are needed")
    known |= score_all([proxy for proxy in proxies if isinstance(proxy, str)], kept, say)
    found = []
    for proxy in proxies:
        head: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "proxy": _described(proxy),
            "panel": describe(panel),
            "n_rows": len(kept.models),
            "n_left_out": n_left_out,
        }
        warnings = list(panel.warnings)
        if isinstance(proxy, CalibratedProxy):
            mean, low, _ = proxy.predict(kept.shape)
            head |= rank_statistics(low, kept.quality, kept.shape)
            head["of_mean"] = rank_statistics(mean, kept.quality, kept.shape)
            head["share_beyond_labels"] = float(proxy.is_beyond(kept.shape).mean())
            head["share_above_bound"] = float((kept.quality >= low).mean()) if proxy.unit == panel.unit else None
            if proxy.backbone and panel.backbone and proxy.backbone != panel.backbone:
                warnings.append(f"{proxy.name} was fitted to {proxy.backbone}, {panel.name} is of {panel.backbone}")
        else:
            head |= rank_statistics(known[proxy], kept.quality, kept.shape)
        found.append(head | {"warnings": warnings})
    return found


def _described(proxy: str | CalibratedProxy) -> dict[str, Any]:
    if isinstance(proxy, CalibratedProxy):
        return {"name": proxy.name, "kind": "calibrated", "digest": proxy.digest, "unit": proxy.unit}
    return {"name": proxy, "kind": "formula" if proxy in FORMULAS else "model", "digest": None, "unit": None}


def score(name: str, panel: Panel) -> Array:
    """One of them, of every model (n,)."""
    return score_all([name], panel)[name]


def score_all(names: Sequence[str], panel: Panel, say: Say = lambda text: None) -> Scores:
    """Of every model (n,), by formulas and, for those that need the model, by one agent on this machine.

    Raises UsageError for what the panel does not say, HostError for models that could not be scored.
    """
    found = {name: _by_formula(name, panel) for name in names if name in FORMULAS}
    if others := [name for name in dict.fromkeys(names) if name not in FORMULAS]:
        found |= _by_agent(others, panel, say)
    return found


def _by_formula(name: str, panel: Panel) -> Array:
    import numpy as np

    if name == "nsc":
        _architectures(panel, name)
    values = [FORMULAS[name](one.shape, one.architecture) for one in panel.models]
    if any(math.isnan(value) for value in values):
        raise UsageError(f"{panel.name} does not have what {name} counts; --backbone says how to count it")
    return np.array(values)


def _by_agent(names: Sequence[str], panel: Panel, say: Say) -> Scores:
    import numpy as np

    if panel.backbone is None:
        raise UsageError(f"{names[0]} builds the models: --backbone says what those of {panel.name} are")
    events = scores.events(_architectures(panel, names[0]), names, say=say)
    for name in names:
        missing = [index for index, event in enumerate(events) if event["scores"].get(name) is None]
        if missing:
            why = events[missing[0]]["error"] or "the score is not finite"
            raise HostError(
                f"{name} could not be had for {len(missing)} of {len(events)} models, such as "
                f"{panel.models[missing[0]].name}: {why}"
            )
    return {name: np.array([event["scores"][name] for event in events], dtype=float) for name in names}


def _architectures(panel: Panel, name: str) -> list[Architecture]:
    found = [one.architecture for one in panel.models if one.architecture is not None]
    if len(found) < len(panel.models):
        bad = next(one.name for one in panel.models if one.architecture is None)
        raise UsageError(f"{panel.name}: {bad} is no architecture that can be built, which {name} needs")
    return found


class Points(NamedTuple):
    """What a picture shows of one proxy: a score and a quality for each model, and their sizes."""

    name: str
    score: Array
    quality: Array
    decoder_params: Array
    unit: str
    equal_size_tau: float | None


def points(
    panel: Panel, proxies: Sequence[str | CalibratedProxy], left_out: Sequence[str], known: Scores
) -> list[Points]:
    """Of the models that `validate` looked at, with the scores that it found."""
    kept = panel.without(left_out)
    found = []
    for proxy in proxies:
        values = proxy.quality(kept.shape) if isinstance(proxy, CalibratedProxy) else known[proxy]
        tau = equal_size_tau(values, kept.quality, kept.shape.decoder_params)
        name = proxy.name if isinstance(proxy, CalibratedProxy) else proxy
        found.append(Points(name, values, kept.quality, kept.shape.decoder_params, kept.unit, tau))
    return found

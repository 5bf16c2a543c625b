"""The quality that a calibrated proxy gives an architecture: what runs with a `proxy` in their spec record and search.

Nothing here needs torch or the board: it is a formula of the architecture (edge_lts.proxies.calibrated), worked out by
the supervisor and written into the record beside what was measured.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from edge_lts.arch import Architecture
from edge_lts.objectives import QUALITY
from edge_lts.records import Estimate, Evaluation, Outcome

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy


def estimate(proxy: "CalibratedProxy", arch: Architecture) -> Estimate | None:
    """Negative log-perplexity of `arch` once trained as the labels were; None for another backbone than theirs."""
    if proxy.backbone not in (None, arch.backbone):
        return None
    from edge_lts.proxies.shape import Shape

    shape = Shape.of(arch)
    mean, low, high = (float(value) for value in proxy.predict(shape))
    return Estimate(mean=mean, low=low, high=high, is_extrapolated=bool(proxy.is_beyond(shape)))


def with_quality(outcome: Outcome, proxy: "CalibratedProxy | None") -> Outcome:
    """The record with its `quality` in front of what was measured, null where the proxy says nothing of it."""
    if proxy is None or not isinstance(outcome, Evaluation):
        return outcome
    value = estimate(proxy, outcome.architecture)
    return replace(outcome, objectives={QUALITY: value, **outcome.objectives})

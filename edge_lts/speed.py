"""A run's usual speed: what a latency would have been, had the machine run as fast as it usually did in this run.

Machines change their speed by tens of percent for minutes, so raw medians of different minutes rank the minutes as much
as the models: the fastest of many is mostly a lucky one. Each process times anchors that never change, once in each of
its rounds (`edge_lts.profile.anchor`); a latency is divided by what their change against the run's median says:

    T / product over anchors k of (a_k / median a_k) ** (exponent_k * trust_k),    trust_k = max(0, 1 - (1 % / s_k)^2)

s_k is the robust standard deviation of log a_k over the run's processes; 1 % is what an anchor scatters by itself, so
that nothing is corrected on a machine that is steadier than its anchors. No anchor counts for more than three s_k: one
that was disturbed while its candidate was not would make that one the fastest of all. The exponents say that a prefill
slows down as the computing anchor does and a token as a mixture of all three; they come from the models that
bench_oracle.py timed three times each on a busy machine. The ledger keeps what was measured.

In a pool of boards a record also carries how much slower its board is than the pool (`BOARD_FACTOR` of its conditions,
by objective and, under `anchor_s`, by anchor): `at_pool_speed` divides by that first.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from edge_lts.records import Evaluation, Measurement, Value
from edge_lts.stats import mad, median

ANCHORS = ("prefill_latency_s", "decode_latency_s", "stream_s")
EXPONENTS: Mapping[str, Mapping[str, float]] = {
    "prefill_latency_s": {"prefill_latency_s": 0.9},
    "decode_latency_s": {"prefill_latency_s": 0.2, "decode_latency_s": 0.5, "stream_s": 0.5},
}
MIN_PROCESSES = 10  # below that no speed is usual
MOST_SPREADS = 3.0  # that an anchor may lie from its median
_OWN_SCATTER = 0.01
_MAD_TO_SD = 1.4826

BOARD_FACTOR = "board_factor"

Anchors = Mapping[str, float]


def anchors_of(evaluation: Evaluation) -> dict[str, float]:
    """Anchor times in seconds as a record has them; empty for one without."""
    found = evaluation.conditions.get("anchor_s")
    if not isinstance(found, Mapping):
        return {}
    return {name: float(found[name]) for name in ANCHORS if _is_positive(found.get(name))}


def at_pool_speed(evaluation: Evaluation) -> Evaluation:
    """As a board of the pool's own speed would have measured it; the record itself where it carries no factor."""
    factors = evaluation.conditions.get(BOARD_FACTOR)
    if not isinstance(factors, Mapping):
        return evaluation
    of_anchors = factors.get("anchor_s")
    conditions = {name: value for name, value in evaluation.conditions.items() if name != BOARD_FACTOR}
    if isinstance(of_anchors, Mapping):
        conditions["anchor_s"] = {name: s / _factor(of_anchors, name) for name, s in anchors_of(evaluation).items()}
    return replace(
        evaluation,
        objectives={
            name: divided(value, _factor(factors, name)) if name in EXPONENTS else value
            for name, value in evaluation.objectives.items()
        },
        samples={
            name: [sample / _factor(factors, name) for sample in samples] if name in EXPONENTS else samples
            for name, samples in evaluation.samples.items()
        },
        conditions=conditions,
    )


def divided(value: Value, factor: float) -> Value:
    """A measured value, with its spread, divided by `factor`; anything else as it is."""
    if factor == 1.0 or not isinstance(value, Measurement):
        return value
    low_high = None if value.ci95 is None else (value.ci95[0] / factor, value.ci95[1] / factor)
    spread = None if value.mad is None else value.mad / factor
    return replace(value, median=value.median / factor, mad=spread, ci95=low_high)


def _factor(factors: Mapping[str, object], name: str) -> float:
    found = factors.get(name)
    return float(found) if isinstance(found, (int, float)) and _is_positive(found) else 1.0


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def trust_of(mad_of_logs: float) -> tuple[float, float]:
    """(robust standard deviation of an anchor's logarithms, how much of its changes is the machine's)."""
    spread = _MAD_TO_SD * mad_of_logs
    return spread, max(0.0, 1 - (_OWN_SCATTER / spread) ** 2) if spread else 0.0


class UsualSpeed:
    """Median anchors and their trust over the processes added so far."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {name: [] for name in ANCHORS}
        self._usual: dict[str, tuple[float, float, float]] | None = None

    def add(self, anchors: Anchors) -> None:
        for name, seconds in anchors.items():
            self._seen[name].append(math.log(seconds))
        self._usual = None

    def slowdown(self, objective: str, anchors: Anchors) -> float:
        """Time at the moment of these anchors over the usual time; 1 for what is no latency or cannot be told."""
        exponents = EXPONENTS.get(objective)
        if exponents is None or not anchors:
            return 1.0
        total = 0.0
        for name, exponent in exponents.items():
            usual = self._usual_logs().get(name)
            if usual is not None and name in anchors:
                middle, trust, limit = usual
                total += exponent * trust * min(limit, max(-limit, math.log(anchors[name]) - middle))
        return math.exp(total)

    def _usual_logs(self) -> dict[str, tuple[float, float, float]]:
        """(median logarithm, trust, how far to believe it) by anchor."""
        if self._usual is None:
            self._usual = {}
            for name, logs in self._seen.items():
                if len(logs) >= MIN_PROCESSES:
                    spread, trust = trust_of(mad(logs))
                    self._usual[name] = (median(logs), trust, MOST_SPREADS * spread)
        return self._usual

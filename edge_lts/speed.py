"""A run's usual speed: what a latency would have been, had the machine run as fast as it usually did in this run.

Machines change their speed by tens of percent for minutes, so raw medians of different minutes rank the minutes as much
as the models: the fastest of many is mostly a lucky one. Each process times anchors that never change, once in each of
its rounds (`edge_lts.profile.anchor`); a latency is divided by what their change against the run's median says:

    T / product over anchors k of (a_k / median a_k) ** (exponent_k * trust_k),    trust_k = max(0, 1 - (1 % / s_k)^2)

s_k is the robust standard deviation of log a_k over the run's processes; 1 % is what an anchor scatters by itself, so
that nothing is corrected on a machine that is steadier than its anchors. The exponents say that a prefill slows down as
the computing anchor does and a token as a mixture of all three; they come from the models that bench_oracle.py timed
three times each on a busy machine. The ledger keeps what was measured.
"""

import math
from collections.abc import Mapping

from edge_lts.records import Evaluation
from edge_lts.stats import mad, median

ANCHORS = ("prefill_latency_s", "decode_latency_s", "stream_s")
EXPONENTS: Mapping[str, Mapping[str, float]] = {
    "prefill_latency_s": {"prefill_latency_s": 0.9},
    "decode_latency_s": {"prefill_latency_s": 0.2, "decode_latency_s": 0.5, "stream_s": 0.5},
}
MIN_PROCESSES = 10  # below that no speed is usual
_OWN_SCATTER = 0.01
_MAD_TO_SD = 1.4826

Anchors = Mapping[str, float]


def anchors_of(evaluation: Evaluation) -> dict[str, float]:
    """Anchor times in seconds as a record has them; empty for one without."""
    found = evaluation.conditions.get("anchor_s")
    if not isinstance(found, Mapping):
        return {}
    return {name: float(found[name]) for name in ANCHORS if _is_positive(found.get(name))}


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


class UsualSpeed:
    """Median anchors and their trust over the processes added so far."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {name: [] for name in ANCHORS}
        self._usual: dict[str, tuple[float, float]] | None = None

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
                total += exponent * usual[1] * (math.log(anchors[name]) - usual[0])
        return math.exp(total)

    def _usual_logs(self) -> dict[str, tuple[float, float]]:
        """(median logarithm, trust) by anchor."""
        if self._usual is None:
            self._usual = {}
            for name, logs in self._seen.items():
                if len(logs) >= MIN_PROCESSES:
                    spread = _MAD_TO_SD * mad(logs)
                    self._usual[name] = (median(logs), max(0.0, 1 - (_OWN_SCATTER / spread) ** 2) if spread else 0.0)
        return self._usual

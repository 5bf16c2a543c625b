"""What a run itself took, and what the same candidates would have cost to train: data in, a line of words out.

Time is the budget's clock, by purpose. Energy is the power of a meter on the workstation integrated over what it
recorded; where only the board has a meter, which is read beside single candidates, it is a bracket: idle power and
decoding power, each over the whole time. Neither is guessed where there is no meter.

Training hours are candidates judged (searched and measured, without failures) times what one of them took the authors
of LiteTransformerSearch to train on WikiText-103 (Javaheripi et al. 2022, arXiv 2203.02094): the mean wall time of the
training logs that they published with their code (microsoft/archai, branch neurips-lts), 5,186 s for a GPT-2 and
15,589 s for a Transformer-XL, on the eight V100 that their dispatcher asks for by default. Nothing else is assumed: not
that every candidate would be trained to the end by a cleverer search, nor that other models take as long.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.records import Evaluation, Outcome, RunSpec
from edge_lts.stats import median
from edge_lts_host.report import render
from edge_lts_host.report.quality import mapping, number
from edge_lts_host.store import RunFolder

TRAINING_S = {"gpt2": 5186.0, "transformer-xl": 15589.0}
TRAINING_GPUS = 8
TRAINING_SOURCE = (
    "mean wall time of one model on WikiText-103 in the training logs published with LiteTransformerSearch "
    "(arXiv 2203.02094; microsoft/archai, branch neurips-lts), on its dispatcher's default of 8 V100"
)
MAX_GAP_S = 5.0  # between two readings, beyond which nothing is integrated
WORDS = {"search": "searching", "confirm": "confirming", "one_thread": "one thread", "baseline": "baselines"}


def own_cost(folder: RunFolder, spec: RunSpec, outcomes: Sequence[Outcome], spent_s: float) -> dict[str, Any]:
    """`own_cost` of a run's report: {"spent_s", "by_purpose_s", "energy", "training"}."""
    n_judged = sum(isinstance(one, Evaluation) and one.purpose == "search" for one in outcomes)
    return {
        "spent_s": spent_s,
        "by_purpose_s": _by_purpose(outcomes, spent_s),
        "energy": _integrated(folder, spent_s) or _bracket(outcomes, spent_s),
        "training": _training(str(spec.space.get("backbone")), n_judged),
    }


def _by_purpose(outcomes: Sequence[Outcome], spent_s: float) -> dict[str, float]:
    """Seconds between a record and the one before it count for the later one; `other` is what no record ends."""
    found: dict[str, float] = {}
    before_s = 0.0
    for one in outcomes:
        found[one.purpose] = found.get(one.purpose, 0.0) + max(0.0, one.spent_s - before_s)
        before_s = max(before_s, one.spent_s)
    return {**found, "other": max(0.0, spent_s - before_s)}


def _training(backbone: str, n_judged: int) -> dict[str, Any] | None:
    """None for a backbone without a published figure."""
    if backbone not in TRAINING_S:
        return None
    hours = n_judged * TRAINING_S[backbone] / 3600
    return {
        "n_candidates": n_judged,
        "s_per_candidate": TRAINING_S[backbone],
        "n_gpus": TRAINING_GPUS,
        "hours": hours,
        "gpu_hours": hours * TRAINING_GPUS,
        "assumption": "every candidate judged would have been trained once",
        "source": TRAINING_SOURCE,
    }


def _integrated(folder: RunFolder, spent_s: float) -> dict[str, Any] | None:
    from edge_lts_host.meters.energy import read_log
    from edge_lts_host.meters.recorder import METER_LOG

    recordings = read_log(folder / METER_LOG)
    joules = covered_s = 0.0
    for recording in recordings:
        for (begin_s, begin_w), (end_s, end_w) in itertools.pairwise(recording.readings):
            if 0 < end_s - begin_s <= MAX_GAP_S:
                joules += (begin_w + end_w) / 2 * (end_s - begin_s)
                covered_s += end_s - begin_s
    if not covered_s:
        return None
    return {
        "how": "integrated",
        "low_j": joules,
        "high_j": joules,
        "covered_s": covered_s,
        "meter": recordings[-1].name,
        "scope": recordings[-1].scope,
    }


def _bracket(outcomes: Sequence[Outcome], spent_s: float) -> dict[str, Any] | None:
    found = []
    for one in outcomes:
        about = mapping(one.conditions.get("energy")) if isinstance(one, Evaluation) else {}
        idle_w, busy_w = number(about.get("idle_w")), number(about.get("busy_w"))
        if idle_w is not None and busy_w is not None and idle_w <= busy_w:
            found.append((idle_w, busy_w, str(about.get("meter")), str(about.get("scope"))))
    if not found:
        return None
    return {
        "how": "bracket",
        "low_j": median([one[0] for one in found]) * spent_s,
        "high_j": median([one[1] for one in found]) * spent_s,
        "covered_s": spent_s,
        "meter": found[-1][2],
        "scope": found[-1][3],
    }


def lines(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """For the head of a run's page: what the run took, and what training would have taken."""
    data = run.get("own_cost")
    if not data:
        return []
    parts = [
        f"{words} {render.duration(data['by_purpose_s'][purpose])}"
        for purpose, words in WORDS.items()
        if data["by_purpose_s"].get(purpose)
    ]
    energy = data["energy"]
    if energy is None:
        parts.append("energy not measured")
    elif energy["how"] == "integrated":
        share = energy["covered_s"] / data["spent_s"] if data["spent_s"] else 1.0
        note = "" if share > 0.95 else f" over {render.duration(energy['covered_s'])} of it"
        parts.append(f"{render.energy(energy['low_j'])}{note} by {render.text(energy['meter'])}")
    else:
        low, high = render.energy(energy["low_j"]), render.energy(energy["high_j"])
        parts.append(f"between {low} (idling) and {high} (decoding throughout) by {render.text(energy['meter'])}")
    found = [("took", f"{render.duration(data['spent_s'])}: {', '.join(parts)}")]
    training = data["training"]
    if training is not None and (n := training["n_candidates"]):
        found.append(
            (
                "training",
                f"{n} candidate{'s' * (n != 1)}, each trained as the paper's were "
                f"({render.duration(training['s_per_candidate'])} on {training['n_gpus']} V100), would have taken "
                f"{training['hours']:,.0f} h, {training['gpu_hours']:,.0f} GPU hours; none was",
            )
        )
    return found

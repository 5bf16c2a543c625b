"""What a run's measurements say about the costs of layers on its board, and how well that predicts as data and as
pages.

The model is the one that guided search uses (`edge_lts.search.cost_model`), fitted again here to all that the ledger
holds, so any run can be looked at, whatever its strategy. The errors compare what was predicted *before* measuring with
what was measured; along the frontier and at random apart, because an optimiser prefers what the model flatters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edge_lts.records import Evaluation, central
from edge_lts.search.cost_model import COSTS
from edge_lts.stats import median, quantile
from edge_lts_host.errors import UsageError
from edge_lts_host.report import render
from edge_lts_host.report.certificate import MIN_EVALUATIONS, fitted
from edge_lts_host.report.compare import resolved_protocol
from edge_lts_host.store import RunFolder

ORIGINS = ("frontier", "random")


def cost_report(folder: RunFolder) -> dict[str, Any]:
    """Per cost: rates, deviations, noise, left-out errors; per objective and origin: errors of past predictions.

    Raises UsageError for a run with fewer than MIN_EVALUATIONS evaluations.
    """
    spec, device = folder.read_spec(), folder.read_device()
    outcomes = folder.outcomes()
    evaluations = [item for item in outcomes if isinstance(item, Evaluation) and item.purpose == "search"]
    if len(evaluations) < MIN_EVALUATIONS:
        raise UsageError(
            f"{spec.run_id} has {len(evaluations)} evaluations; a cost model needs {MIN_EVALUATIONS}: wait or resume"
        )
    predictor = fitted(spec, device, outcomes, resolved_protocol(spec, outcomes))
    models = [] if predictor is None else [model.to_json() for model in predictor.models.values()]
    return {"run_id": spec.run_id, "models": models, "errors": _errors(evaluations)}


def _errors(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    rows = []
    for name in (*COSTS, "peak_memory_bytes"):
        for origin in ORIGINS:
            errors = [
                item.predicted[name] / measured - 1
                for item in evaluations
                if item.conditions.get("origin") == origin
                and name in item.predicted
                and (measured := central(item.objectives.get(name)))
            ]
            if errors:
                absolute = [abs(error) for error in errors]
                rows.append(
                    {
                        "objective": name,
                        "origin": origin,
                        "n": len(errors),
                        "bias": median(errors),
                        "median_error": median(absolute),
                        "p90_error": quantile(absolute, 0.9),
                    }
                )
    return rows


def pages(reports: Sequence[dict[str, Any]], output: str) -> str:
    """Cost reports as text, Markdown or LaTeX; json and jsonl carry everything."""
    if output == "json":
        return render.dump_json({"schema_version": 1, "cost_models": list(reports)})
    if output == "jsonl":
        return "\n".join(json.dumps(report, allow_nan=False) for report in reports)
    return "\n\n".join(part for report in reports for part in _page(report, output))


def _page(report: dict[str, Any], output: str) -> list[str]:
    rows = [(model["cost"], name, value) for model in report["models"] for name, value in _facts(model)]
    table = render.table([list(row) for row in rows], ("cost", "what", "value"), output)
    parts = [render.paragraph(render.text(report["run_id"]), output), table]
    if report["errors"]:
        cells = [
            [row["objective"], row["origin"], str(row["n"]), *(render.percent(row[key]) for key in _ERROR_KEYS)]
            for row in report["errors"]
        ]
        headings = ("objective", "members", "n", "bias", "median error", "90 % within")
        parts += [
            render.paragraph("Predicted before measuring, against measured:", output),
            render.table(cells, headings, output),
        ]
    return parts


_ERROR_KEYS = ("bias", "median_error", "p90_error")


def _exponent(anchor: dict[str, float]) -> str:
    return f"to the power {anchor['exponent']:.2f}, {anchor['per_size']:+.2f} for larger weights"


def _facts(model: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("models measured", str(model["n_observations"])),
        ("noise", render.percent(model["noise"])),
        *((f"deviations: {name}", render.percent(scale)) for name, scale in model["deviation_scales"].items()),
        *((f"follows the anchor {name}", _exponent(anchor)) for name, anchor in model["anchors"].items()),
        ("left-out error, median", render.percent(model["left_out_median_error"])),
        ("left-out error, 90 % within", render.percent(model["left_out_p90_error"])),
    ]
    regimes = model["seconds_per_count"]
    if len({json.dumps(rates) for rates in regimes.values()}) == 1:
        regimes = {"any size": next(iter(regimes.values()))}
    for regime, rates in regimes.items():
        for place, terms in rates.items():
            facts += [(f"{regime}, {place}: s per {term}", f"{rate:.3g}") for term, rate in terms.items()]
    return facts

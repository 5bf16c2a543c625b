"""A decision (pick.build_pick) as table, md, latex, html, csv, json or jsonl. Layout only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES, QUALITY
from edge_lts_host.report import proxy, render, shapes
from edge_lts_host.report.facts import health_line, protocol, where
from edge_lts_host.report.html import page
from edge_lts_host.report.loss_law import LAWS
from edge_lts_host.report.rows import value_columns, value_keys

COSTS = ("decode_latency_s", "prefill_latency_s", "peak_memory_bytes", "energy_j_per_token")


def pick(data: Mapping[str, Any], output: str) -> str:
    """json carries everything, jsonl and csv the best and the runners-up, one a line."""
    if output == "json":
        return render.dump_json(data)
    chosen = [one for one in (data["best"], *data["runners_up"]) if one is not None]
    if output == "jsonl":
        return "\n".join(json.dumps(one, allow_nan=False) for one in chosen)
    if output == "csv":
        return _csv(chosen)
    if data["best"] is None:
        return ""
    parts = [render.paragraph(_verdict(data), output), _table(data, chosen, output)]
    lines = [*(_cost(item, data) for item in data["limits_cost"]), *(_note(note, data) for note in data["notes"])]
    if lines:
        parts.append(render.bullets(lines, output))
    parts.append(render.title("Evidence", output) + "\n\n" + render.bullets(_evidence(data), output))
    text = "\n\n".join(parts)
    return page.simple(f"edge-lts: pick of {render.text(data['run_id'])}", text) if output == "html" else text


def nothing(data: Mapping[str, Any]) -> str:
    """One line for a run that has nothing within the limits: what would have to give."""
    near = data["nearest"]
    parts = []
    for limit in near["limits"]:
        extreme = "none measured" if limit["extreme"] is None else _with_unit(limit["name"], limit["extreme"])
        word = "largest" if limit["maximum"] is None else "smallest"
        parts.append(f"{_limit(limit)} alone is kept by {limit['n_within']} ({word} measured: {extreme})")
    entry = near["entry"]
    hint = ""
    if entry is not None:
        values = ", ".join(_with_unit(one["name"], one["value"]) for one in entry["limits"])
        hint = f"; nearest is {render.text(entry['arch_id'])} with {values}"
    sure = " with its whole interval" if data["only_sure"] else ""
    return f"{data['run_id']}: nothing that was measured keeps all limits{sure}: {'; '.join(parts)}{hint}"


def _verdict(data: Mapping[str, Any]) -> str:
    best = data["best"]
    limits = " and ".join(_limit(limit) for limit in data["limits"]) or "no limit"
    shape = shapes.words(best["architecture"])
    text = f"{render.text(best['arch_id'])}: {shape} is the best of {data['n_within']} measured within {limits}"
    text += f"\n(run {render.text(data['run_id'])}, by {_ranked_by(data)})."
    unsure = [one for one in best["limits"] if not one["is_sure"]]
    if unsure:
        names = " and ".join(_heading(one["name"]) for one in unsure)
        sure = data["best_sure"]
        instead = (
            "nothing within the limits is sure to keep them"
            if sure is None
            else f"surely within is {render.text(sure['arch_id'])} (--sure)"
        )
        text += f"\nBy its median only: what a fresh process shows of {names} may be beyond the limit; {instead}."
    return text


def _ranked_by(data: Mapping[str, Any]) -> str:
    by = data["ranked_by"]
    if "train_tokens" not in by and by["name"] == QUALITY:
        return f"highest lower bound of quality, by the proxy {proxy.words(by['proxy'])}"
    if "train_tokens" not in by:
        return f"most {render.text(by['name'])}" if by["direction"] == "max" else f"least {render.text(by['name'])}"
    return f"lowest loss after {render.count(by['train_tokens'])} training tokens, law {by['name']}: {by['citation']}"


def _table(data: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]], output: str) -> str:
    is_emulated = data["evidence"]["is_emulated"]
    own = [] if data["ranked_by"]["name"] in (*OBJECTIVES, *LAWS) else [data["ranked_by"]["name"]]
    names = [
        name
        for name in ("decoder_params", QUALITY, *own, *COSTS)
        if any(one["objectives"].get(name) is not None for one in chosen)
    ]
    has_loss = chosen[0]["loss"] is not None
    headings = ["", "arch_id", "shape"] + [render.objective_heading(name, is_emulated=is_emulated) for name in names]
    headings += ["loss, nats", "tokens/param"] * has_loss + ["of limits", "processes"]
    has_flags = any(one["flags"] for one in chosen)
    headings += ["flags"] * has_flags
    rows = []
    for place, one in enumerate(chosen):
        row = ["best" if place == 0 else str(place + 1), render.member(one), shapes.words(one["architecture"])]
        row += [render.objective(name, one["objectives"].get(name)) for name in names]
        if has_loss:
            row += [f"{one['loss']['nats']:.3f}", f"{one['loss']['tokens_per_param']:.3g}"]
        used = [limit["used"] for limit in one["limits"] if limit["used"] is not None]
        row += [", ".join(map(render.percent, used)) or "-", str(one["n_processes"])]
        row += [render.flag_words(one["flags"])] * has_flags
        rows.append(row)
    return render.table(rows, headings, output)


def _cost(item: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if not item["is_binding"]:
        return f"{_limit(item)} costs nothing: without it the same one is picked"
    without = item["without"]
    gain = f"{item['gain']:.2f} times the {_heading(data['ranked_by']['name'])}" if item["gain"] else "more"
    if item["gain_nats"] is not None:
        gain = f"{render.nats(item['gain_nats'])} nats better by the proxy"
    if item["loss_gain"] is not None:
        gain = f"{item['loss_gain']:.3f} nats less by the law"
    return (
        f"{_limit(item)} costs: without it {render.text(without['arch_id'])} ({shapes.words(without['architecture'])}) "
        f"is picked, {gain}, and needs {_with_unit(item['name'], item['needs'])}"
    )


def _note(note: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    kind = note["kind"]
    if kind == "equal_convergence":
        return (
            "ranked by size, which assumes that every one is trained until it has converged; --train-tokens N ranks by "
            "what N tokens allow"
        )
    if kind == "calibrated":
        return (
            f"ranked by what a calibrated proxy expects of each ({render.text(note['unit'])}; mean {{low, high}}, each "
            "bound with 90 %) if it is trained as its labels were; nothing was trained"
        )
    if kind == "beyond_labels":
        who = ", ".join(render.text(arch_id) for arch_id in note["members"])
        return f"warning: {who} lies beyond everything that the proxy was calibrated on; its bounds are wide for that"
    if kind == "few_tokens":
        who = ", ".join(render.text(arch_id) for arch_id in note["members"])
        return (
            f"warning: under {note['least']} tokens per parameter for {who}: a smaller model would use them better "
            "and is faster"
        )
    if kind == "extrapolated":
        return (
            f"the law was fitted on {data['ranked_by']['fitted_on']}: its losses here are extrapolated and speak of no "
            f"particular text; at equal tokens they rank by {data['ranked_by']['counts']}"
        )
    if kind == "embedding":
        return (
            f"the law counts the embedding, too; {render.text(note['arch_id'])} has the larger decoder, which is what "
            "the proxy was shown to rank by (--loss-law kaplan counts it alone)"
        )
    if kind == "vocabularies":
        return "warning: vocabularies differ, and losses per token of different vocabularies cannot be compared"
    if kind == "unvalidated":
        side = "below" if note["side"] == "low" else "above"
        return f"its {render.text(note['rule'])} lies {side} {note['value']:g}, where the proxy was never checked"
    if kind == "emulated":
        return f"warning: {render.EMULATED_NOTE}: pick on the board itself"
    return "~: another member is better by the medians, with less than 95 % certainty"


def _evidence(data: Mapping[str, Any]) -> list[str]:
    found, best = data["evidence"], data["best"]
    device = found["device"] or {}
    model = render.text(device.get("model") or device.get("cpu_model") or device.get("machine"))
    lines = [
        f"measured on {model} ({where(found)}) with torch {render.text(device.get('torch'))}",
        protocol(found["protocol"]),
        f"{found['n_measured']} architectures measured, this one in {best['n_processes']} "
        f"process{'es' * (best['n_processes'] != 1)}: {_times(found['measured_at'])}",
    ]
    for name, values in best["process_medians"].items():
        if name.endswith("_latency_s") and len(values) > 1:
            shown = ", ".join(render.objective(name, value) for value in values)
            lines.append(f"{render.objective_heading(name, is_emulated=False)} of each process, as measured: {shown}")
    for name in sorted(best["predicted"]):
        if name in OBJECTIVES:
            words = render.predicted(name, best["predicted"][name], best["objectives"].get(name))
            lines.append(f"{render.objective_heading(name, is_emulated=False)} predicted before measuring: {words}")
    for item in found["certificates"]:
        if item["share"] is not None:
            lines.append(
                f"{_heading(item['objective'])}: no architecture in the space is more than {item['share']:.0%} faster "
                "at its size and memory (95 %, if costs add up)"
            )
    if found["quality"]:
        lines.append(f"health of the run: {health_line(found['quality'])}")
    if not best["on_frontier"]:
        lines.append("not on the run's frontier, which knew nothing of these limits")
    return lines


def _times(times: Sequence[str]) -> str:
    known = sorted(time for time in times if time)
    if not known:
        return "at an unknown time"
    return render.text(known[0]) if len(known) == 1 else f"{render.text(known[0])} to {render.text(known[-1])}"


def _limit(limit: Mapping[str, Any]) -> str:
    name = _heading(limit["name"])
    bounds = [
        f"{words} {_with_unit(limit['name'], limit[side])}"
        for side, words in (("minimum", "at least"), ("maximum", "at most"))
        if limit[side] is not None
    ]
    return f"{name} {' and '.join(bounds)}"


def _heading(name: str) -> str:
    return {"decoder_params": "decoder parameters", "peak_memory_bytes": "peak memory"}.get(
        name, render.objective_heading(name, is_emulated=False).split()[0]
    )


def _with_unit(name: str, value: float | None) -> str:
    if name == "decoder_params":
        return render.count(value)
    _, cell = render.OBJECTIVE_CELLS.get(name, (name, str))
    return cell(value)


def _csv(chosen: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for one in chosen for name in one["objectives"]))
    keys = ["place", "arch_id", "n_layer", "d_model", "d_inner", "n_head"]
    rows = []
    for place, one in enumerate(chosen, 1):
        arch, loss = one["architecture"], one["loss"] or {}
        row = {
            "place": place,
            "arch_id": one["arch_id"],
            "n_layer": len(arch["layers"]),
            "d_model": arch["d_model"],
            **{key: [layer[key] for layer in arch["layers"]] for key in ("d_inner", "n_head")},
            "loss_nats": loss.get("nats"),
            "tokens_per_param": loss.get("tokens_per_param"),
            "is_sure": all(limit["is_sure"] for limit in one["limits"]),
            "n_processes": one["n_processes"],
            "flags": one["flags"],
        }
        for name, value in one["objectives"].items():
            row.update(value_columns(name, value))
        rows.append(row)
    for name in names:
        is_measured = any(isinstance(one["objectives"].get(name), Mapping) for one in chosen)
        keys += value_keys(name) if is_measured else [name]
    return render.to_csv(rows, [*keys, "loss_nats", "tokens_per_param", "is_sure", "n_processes", "flags"])

"""A report (compare.build_report) as table, md, csv, json or jsonl. Layout only: render.py turns numbers into words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES
from edge_lts.space_rules import VALIDATED
from edge_lts_host.report import render
from edge_lts_host.report.compare import outside_share

LEGEND = (
    "[low, high]: where a fresh process would land, 95 % (from three processes on). "
    "(low, high): 95 % interval of\n"
    "the median on this occasion. predicted: what guided search expected before it measured, and its error.\n"
    "outside: share in embedding and head, not in the decoder."
)
APART = "These runs measured differently; do not compare their numbers across the groups."
# What a Protocol.comparison_key is made of, in words for a heading.
_PROTOCOL_KEYS = ("name", "prompt_tokens", "context_tokens", "logits", "threads", "precision", "method_version")
MEMBERS_SHOWN = 20
MEMBERS_NAMED = 5


def report(data: Mapping[str, Any], output: str, members: int = MEMBERS_SHOWN) -> str:
    """json and jsonl carry everything (jsonl one run per line), csv one frontier member per row.

    A table, for reading, shows `members` of each frontier, evenly spread over its order and its ends included; 0: all.
    """
    if output == "json":
        return render.dump_json(data)
    if output == "jsonl":
        return "\n".join(json.dumps(run, allow_nan=False) for run in data["runs"])
    if output == "csv":
        rows = [csv_row(run, member) for run in data["runs"] for member in run["frontier"]]
        own = dict.fromkeys(key for run in data["runs"] for name in _own_objectives(run) for key in _value_keys(name))
        return render.to_csv(rows, (*CSV_KEYS, *own))
    return _pages(data, output, members)


def _pages(data: Mapping[str, Any], output: str, members: int) -> str:
    runs = {run["run_id"]: run for run in data["runs"]}
    groups = data["comparable"]
    parts = []
    if len(groups) > 1:
        parts.append(f"> {APART}" if output == "md" else APART)
    for number, group in enumerate(groups, 1):
        if len(groups) > 1:
            how = _protocol(runs[group[0]]["protocol"])
            parts.append(f"## Group {number}: {how}" if output == "md" else f"== group {number}: {how} ==")
        parts += [_page(runs[run_id], output, members) for run_id in group]
    if any(run["frontier"] for run in data["runs"]):
        parts.append(LEGEND)
    return "\n\n".join(parts)


def _page(run: Mapping[str, Any], output: str, members: int) -> str:
    facts = _facts(run)
    shown = _spread(run["frontier"], members)
    if len(shown) < len(run["frontier"]):
        facts.append(("frontier", f"{len(shown)} of {len(run['frontier'])} members, evenly spread; --members 0: all"))
    if output == "md":
        head = f"### {render.text(run['run_id'])}\n\n" + "\n".join(
            f"- {name}: {render.markdown(value)}" for name, value in facts
        )
    else:
        width = max(len(name) for name, _ in facts)
        head = f"{render.text(run['run_id'])}\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in facts)
    frontier = run["frontier"]
    if not frontier:
        return f"{head}\n\nNothing measured yet that satisfies the constraints."
    headings, cells = _frontier_table(run, shown)
    page = f"{head}\n\n{render.table(cells, headings, output)}"
    notes = [_certificate_note(item, run) for item in run["certificates"]]
    notes += [_health_note(note, run) for note in run["health"]]
    if notes:
        page += "\n\n" + "\n".join(f"- {render.markdown(note) if output == 'md' else note}" for note in notes)
    return page


def _certificate_note(item: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """How much faster anything could be, in the terms that the frontier was searched in."""
    formulas = [name for name in ("decoder_params", "peak_memory_bytes") if name in run["spec"]["objectives"]]
    at = f" at a member's {' and '.join(formulas)}" if formulas else ""
    return (
        f"{item['objective']}: no architecture in this space is more than {render.percent(item['median_share'])} faster"
        f"{at} ({item['confidence']:.0%}; median member, {render.percent(item['largest_share'])} for any member)"
    )


def _health_note(note: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """One entry of `health` as a sentence that names gene or rule, and the first members."""
    ids, is_low = note["members"], note["side"] == "low"
    who = f"{len(ids)} of {len(run['frontier'])} members {'is' if len(ids) == 1 else 'are'}"
    named = ", ".join(ids[:MEMBERS_NAMED]) + (f" and {len(ids) - MEMBERS_NAMED} more" * (len(ids) > MEMBERS_NAMED))
    if note["kind"] == "unvalidated":
        where = f"{'below' if is_low else 'above'} {render.count(note['value'])}"
        return f"{note['rule']}: {who} {where} ({named}); the proxy was not checked there"
    bound = f"{'lower' if is_low else 'upper'} bound {note['value']}"
    return f"{note['gene']}: {who} at its {bound} ({named}); {_remedy(note, run['spec'])}"


def _remedy(note: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    lowest, _ = VALIDATED.get(note["gene"], (None, None))
    if note["side"] == "low" and lowest is not None and note["value"] <= lowest:
        return "beyond it the proxy was not checked"
    if note["side"] == "low" and note["gene"] in ("d_embed", "vocab_size"):
        return "no decoder parameters are lost by less of it"
    if spec["strategy"] != "guided" or spec["settings"].get("widen"):
        return "the space may be too small: take a larger one"
    return "the space may be too small: --widen"


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    device, spec = run["device"] or {}, run["spec"]
    is_over = run["state"] in ("done", "stopped", "failed")
    state = render.text(run["state"]) + (
        "" if is_over or not run["updated_at"] else f" as of {render.text(run['updated_at'])}"
    )
    if run["reasons"]:
        state += f" ({render.text(', '.join(run['reasons']))})"
    measured = f"{run['n_measured']} candidates"
    if run["n_failed"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in run["failures"].items())
        measured += f", {run['n_failed']} failed ({kinds})"
    facts = [
        ("target", render.text(run["target"])),
        ("host", render.text(run["host"] or "this machine")),
        ("device", _device(device)),
        ("torch", f"{render.text(device.get('torch'))}, Python {render.text(device.get('python'))}"),
        ("protocol", _protocol(run["protocol"])),
        (
            "space",
            f"{render.text(spec['space'].get('name', '-'))}, {render.text(spec['strategy'])}, seed {spec['seed']}",
        ),
        ("measured", measured),
        ("budget", f"{render.duration(run['spent_s'])} of {render.duration(spec['budget_s'])}"),
        ("state", state),
    ]
    if run["drift"]:
        facts.append(("speed", _drift(run["drift"])))
    if run["is_emulated"]:
        facts.append(("note", render.EMULATED_NOTE))
    return facts + [("warning", render.text(warning, 300)) for warning in run["warnings"]]


_ANCHORS = {"prefill_latency_s": "computing", "decode_latency_s": "small weights", "stream_s": "streaming from memory"}


def _drift(drift: Mapping[str, Mapping[str, float]]) -> str:
    """How far the anchors moved while the run measured."""
    moved = [
        f"{words} {render.percent(drift[name]['p90_s'] / drift[name]['p10_s'] - 1)}"
        for name, words in _ANCHORS.items()
        if name in drift
    ]
    return f"moved by {', '.join(moved)} (anchors, 10th to 90th percentile); latencies are given at its usual speed"


def _device(device: Mapping[str, Any]) -> str:
    model = device.get("model") or device.get("cpu_model")
    if model is None:
        return render.text(device.get("machine"))
    memory = device.get("memory_total_bytes")
    parts = [render.text(model), render.text(device.get("machine"))]
    if device.get("n_cores"):
        parts.append(f"{render.text(device['n_cores'])} cores")
    if isinstance(memory, (int, float)):
        parts.append(render.size(memory))
    if device.get("governor"):
        parts.append(f"governor {render.text(device['governor'])}")
    return ", ".join(parts)


def _protocol(protocol: Mapping[str, Any]) -> str:
    threads = protocol["threads"]
    return (
        f"{protocol['name']}: prompt {protocol['prompt_tokens']}, context {protocol['context_tokens']}, "
        f"{_memory_length(protocol)}"
        f"logits {protocol['logits']}, {'all cores' if threads == 0 else f'{threads} thread' + 's' * (threads != 1)}, "
        f"{protocol['precision']}, method {protocol['method_version']}"
    )


def _memory_length(protocol: Mapping[str, Any]) -> str:
    mem_len = protocol.get("mem_len")  # runs of before Transformer-XL have none
    return "" if mem_len is None else f"mem_len {mem_len}, "


def _spread(frontier: Sequence[Any], n: int) -> Sequence[Any]:
    if n == 0 or len(frontier) <= n:
        return frontier
    last = len(frontier) - 1
    return [frontier[round(last * i / max(1, n - 1))] for i in range(n)]


def _frontier_table(run: Mapping[str, Any], frontier: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    is_emulated = run["is_emulated"]
    known = [*OBJECTIVES, *_own_objectives(run)]
    names = [name for name in known if any(member["objectives"].get(name) is not None for member in frontier)]
    has_time = any("decode_s" in member["split"] for member in frontier)
    has_flags = any(member["flags"] for member in frontier)
    searched = [name for name in names if name.endswith("_s") and name in run["spec"]["objectives"]]
    predicted = [name for name in searched if any(name in member["predicted"] for member in frontier)]
    embedding_keys = _embedding_keys(run)
    headings = ["arch_id", "layers x d_model", "d_inner", "heads", *embedding_keys]
    headings += [render.objective_heading(name, is_emulated=is_emulated) for name in names]
    headings += [f"predicted {name.split('_')[0]}" for name in predicted]
    headings += ["bytes outside"] + ["time outside"] * has_time + ["flags"] * has_flags
    cells = []
    for member in frontier:
        split = member["split"]
        row = [render.text(member["arch_id"]), *_shape(member["architecture"])]
        row += [str(member["architecture"][key]) for key in embedding_keys]
        row += [render.objective(name, member["objectives"].get(name)) for name in names]
        row += [
            render.predicted(name, member["predicted"].get(name), member["objectives"].get(name)) for name in predicted
        ]
        row.append(render.percent(outside_share(split["bytes"])))
        if has_time:
            row.append(render.percent(outside_share(split["decode_s"]) if "decode_s" in split else None))
        if has_flags:
            row.append(render.flag_words(member["flags"]))
        cells.append(row)
    return headings, cells


def _shape(architecture: Mapping[str, Any]) -> tuple[str, str, str]:
    layers = architecture["layers"]
    shape = f"{len(layers)} x {architecture['d_model']}"
    return shape, _range([layer["d_inner"] for layer in layers]), _range([layer["n_head"] for layer in layers])


def _embedding_keys(run: Mapping[str, Any]) -> list[str]:
    """What tells members' embeddings apart besides their width."""
    architectures = [member["architecture"] for member in run["frontier"]]
    if all(architecture["d_embed"] == architecture["d_model"] for architecture in architectures):
        keys = ["vocab_size"]
    else:
        keys = ["d_embed", "vocab_size"]
    return [key for key in keys if len({architecture[key] for architecture in architectures}) > 1]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _own_objectives(run: Mapping[str, Any]) -> list[str]:
    """Objectives that a command of the user's gave."""
    return [command["name"] for command in run["spec"].get("commands", [])]


def _value_keys(name: str) -> tuple[str, ...]:
    return tuple(name + suffix for suffix in ("", "_ci95_low", "_ci95_high", "_pi95_low", "_pi95_high", "_n"))


_MEASURED_KEYS = tuple(
    key for name, objective in OBJECTIVES.items() for key in (_value_keys(name) if objective.is_measured else (name,))
)
CSV_KEYS = (
    "run_id",
    "target",
    "host",
    "device",
    "machine",
    "torch",
    "is_emulated",
    "state",
    "n_measured",
    "spent_s",
    "budget_s",
    *(f"protocol_{key}" for key in _PROTOCOL_KEYS),
    "arch_id",
    "n_layer",
    "d_model",
    "d_inner",
    "n_head",
    "d_embed",
    "vocab_size",
    *_MEASURED_KEYS,
    "bytes_outside_decoder",
    "n_processes",
    "flags",
)


def csv_row(run: Mapping[str, Any], member: Mapping[str, Any]) -> dict[str, Any]:
    device, architecture = run["device"] or {}, member["architecture"]
    row: dict[str, Any] = {
        **{key: run[key] for key in ("run_id", "target", "host", "is_emulated", "state", "n_measured", "spent_s")},
        "device": device.get("model") or device.get("cpu_model"),
        "machine": device.get("machine"),
        "torch": device.get("torch"),
        "budget_s": run["spec"]["budget_s"],
        **{f"protocol_{key}": run["protocol"][key] for key in _PROTOCOL_KEYS},
        "arch_id": member["arch_id"],
        "n_layer": len(architecture["layers"]),
        "d_model": architecture["d_model"],
        "d_inner": [layer["d_inner"] for layer in architecture["layers"]],
        "n_head": [layer["n_head"] for layer in architecture["layers"]],
        "d_embed": architecture["d_embed"],
        "vocab_size": architecture["vocab_size"],
        "bytes_outside_decoder": outside_share(member["split"]["bytes"]),
        "n_processes": member.get("n_processes"),
        "flags": member["flags"],
    }
    for name, value in member["objectives"].items():
        if isinstance(value, Mapping):
            row[name], row[f"{name}_n"] = value["median"], value["n"]
            for kind in ("ci95", "pi95"):
                row[f"{name}_{kind}_low"], row[f"{name}_{kind}_high"] = value[kind] or (None, None)
        else:
            row[name] = value
    return row

"""A comparison (across.build_comparison) as table, md, latex, csv, json or jsonl, and the text of its html page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts_host.report import render, shapes
from edge_lts_host.report.facts import protocol
from edge_lts_host.report.sides import is_performance

APART = "These runs measured differently; the groups are not compared with one another."
LEGEND = (
    "Each row: of each run the member with at least so much of the first column that costs least. [low, high]: where\n"
    "a fresh process would land, 95 %; ±: the run's usual interval, for a member measured too seldom for its own, or\n"
    "how finely memory can be read; (low, high): this occasion alone, from which no difference is claimed. A ratio is\n"
    "given where the intervals are apart."
)
MEMBERS_SHOWN = 20
CSV_KEYS = (
    "group",
    "objective",
    "quality",
    "level",
    "run_id",
    "arch_id",
    "value",
    "low",
    "high",
    "interval",
    "ratio_to",
    "ratio",
    "ratio_low",
    "ratio_high",
    "is_different",
)


def comparison(data: Mapping[str, Any], output: str) -> str:
    """json carries everything, jsonl one group per line, csv one member per level, objective and run."""
    if output == "json":
        return render.dump_json(data)
    if output == "jsonl":
        return "\n".join(json.dumps(group, allow_nan=False) for group in data["groups"])
    if output == "csv":
        rows = [row for number, group in enumerate(data["groups"], 1) for row in _csv_rows(number, group)]
        return render.to_csv(rows, CSV_KEYS)
    runs = {run["run_id"]: run for run in data["runs"]}
    short = letters(data)
    parts = [_runs_table(data, short, output)]
    if len(data["groups"]) > 1:
        parts.append(f"> {APART}" if output == "md" else render.paragraph(APART, output))
    for number, group in enumerate(data["groups"], 1):
        name = f"group {number}: " if len(data["groups"]) > 1 else ""
        parts.append(render.title(f"{name}{_measured(group)}", output, 1))
        parts += _group(group, runs, short, output)
    if any(group["levels"] for group in data["groups"]):
        parts.append(render.paragraph(LEGEND, output))
    return "\n\n".join(part for part in parts if part)


def letters(data: Mapping[str, Any]) -> dict[str, str]:
    """What each run is called in tables and pictures."""
    return {run["run_id"]: _letter(index) for index, run in enumerate(data["runs"])}


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"R{index + 1}"


def _measured(group: Mapping[str, Any]) -> str:
    differs = group["differs"]
    if not differs:
        return protocol(group["protocol"])
    shared = {
        key: value for key, value in group["protocol"].items() if key not in differs or key in ("threads", "precision")
    }
    words = [f"{name} {', '.join(dict.fromkeys(map(str, values.values())))}" for name, values in differs.items()]
    return f"{protocol(shared)}, but {'; '.join(words)}"


def _runs_table(data: Mapping[str, Any], letters: Mapping[str, str], output: str) -> str:
    shares = {run["run_id"]: run for group in data["groups"] for run in (group["hypervolume"] or {"runs": []})["runs"]}
    headings = ["", "run", "target", "device", "threads", "precision", "measured", "members", "volume"]
    cells = []
    for run in data["runs"]:
        device = run["device"] or {}
        n_members = str(run["n_members"]) + (f" + {run['n_probable']} ~" if run["n_probable"] else "")
        cells.append(
            [
                letters[run["run_id"]],
                render.text(run["run_id"]),
                render.text(run["target"]) + (" (emulated)" if run["is_emulated"] else ""),
                render.text(device.get("model") or device.get("cpu_model") or device.get("machine"), 40),
                str(run["protocol"]["threads"] or "all"),
                render.text(run["protocol"]["precision"]),
                str(run["n_measured"]),
                n_members,
                _share(shares.get(run["run_id"])),
            ]
        )
    return render.table(cells, headings, output)


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    left, right = "[]" if found["is_firm"] else "()"
    return f"{found['share']:.0%} {left}{found['low']:.0%}, {found['high']:.0%}{right}"


def _group(group: Mapping[str, Any], runs: Mapping[str, Any], letters: Mapping[str, str], output: str) -> list[str]:
    if len(group["runs"]) == 1:
        return [render.paragraph(f"{letters[group['runs'][0]]} alone: nothing here measured like it.", output)]
    parts = []
    if group["warnings"]:
        parts.append(render.bullets([render.text(text, 300) for text in group["warnings"]], output))
    if not group["levels"]:
        lacking = "nothing to be set side by side by" if group["quality"] is None else "no range of sizes"
        parts.append(render.paragraph(f"These frontiers share {lacking}: no table side by side.", output))
    else:
        parts += [_level_table(group, cost, runs, letters, output) for cost in group["levels"][0]["cells"]]
        parts.append(_who(group, letters, output))
    volume = group["hypervolume"]
    if volume is not None:
        words = (
            f"volume: hypervolume over {', '.join(volume['axes'])} in logarithmic units, as a share of what all of "
            "these frontiers reach together;\nin brackets with all of a run's values at the bad or the good ends of "
            "their intervals at once."
        )
        parts.append(render.paragraph(words, output))
    lines = [line for pair in group["pairs"] for line in _pair(pair, letters)]
    parts.append(render.title("Run against run", output) + "\n\n" + render.bullets(lines, output))
    parts += [_transfer(one, letters, output) for one in group["transfers"]]
    if not group["transfers"] and not any(runs[run_id]["is_emulated"] for run_id in group["runs"]):
        words = "What one frontier loses on another's board was not measured: --transfer re-times it there."
        parts.append(render.paragraph(words, output))
    return parts


def _level_table(
    group: Mapping[str, Any], cost: str, runs: Mapping[str, Any], letters: Mapping[str, str], output: str
) -> str:
    ids = group["runs"]
    is_emulated = any(runs[run_id]["is_emulated"] for run_id in ids)
    heading = render.objective_heading(cost, is_emulated=False)
    first = letters[ids[0]]
    headings = [render.objective_heading(group["quality"], is_emulated=False)]
    headings += [
        letters[run_id] + (" (emulated)" if runs[run_id]["is_emulated"] and is_performance(cost) else "")
        for run_id in ids
    ]
    has_ratios = [letters[run_id] for run_id in ids[1:]] if not (is_emulated and is_performance(cost)) else []
    headings += [f"{letter} / {first}" for letter in has_ratios]
    rows = []
    for level in group["levels"]:
        cells = level["cells"][cost]
        row = [render.objective(group["quality"], level["quality"])]
        row += [_cell(cost, cell) for cell in cells]
        row += [render.ratio(cell["ratio"]) for cell in cells[1:]] if has_ratios else []
        rows.append(row)
    return f"{render.title(heading, output)}\n\n{render.table(rows, headings, output)}"


def _cell(cost: str, cell: Mapping[str, Any]) -> str:
    value, interval = cell["value"], cell["interval"]
    if value is None:
        return "-"
    if interval is None or interval["kind"] == "exact":
        return render.objective(cost, value)
    words = f"{render.objective(cost, interval['low'])}, {render.objective(cost, interval['high'])}"
    signs = {"pi95": "[{}]", "ci95": "({})"}.get(interval["kind"], "±[{}]")
    return f"{render.objective(cost, value)} {signs.format(words)}"


def _who(group: Mapping[str, Any], letters: Mapping[str, str], output: str) -> str:
    """The members behind the rows of the first cost."""
    cost = next(iter(group["levels"][0]["cells"]))
    headings = [render.objective_heading(group["quality"], is_emulated=False), *(letters[one] for one in group["runs"])]
    rows = [
        [render.objective(group["quality"], level["quality"])]
        + [
            "-" if cell["arch_id"] is None else f"{render.text(cell['arch_id'])}: {shapes.words(cell['architecture'])}"
            for cell in level["cells"][cost]
        ]
        for level in group["levels"]
    ]
    name = render.objective_heading(cost, is_emulated=False).split()[0]
    return f"{render.title(f'Who they are, by {name}', output)}\n\n{render.table(rows, headings, output)}"


# Run against run ------------------------------------------------------------------------------------------------------


def _pair(pair: Mapping[str, Any], letters: Mapping[str, str]) -> list[str]:
    a, b = letters[pair["a"]], letters[pair["b"]]
    lines = []
    for cost, found in pair["ratios"].items():
        name = _name(cost)
        if found["n_different"]:
            text = (
                f"{name} differs at {found['n_different']} of {found['n']} levels, {found['low']:.2f} to "
                f"{found['high']:.2f} times (median {found['median']:.2f})"
            )
        elif found["n_open"]:
            text = f"{name}: open, the spread between processes is not known"
        else:
            text = f"{name}: no difference at any of {found['n']} levels"
        lines.append(f"{b} against {a}: {text}")
    lines += [
        f"{a} and {b}: {_name(name)} {_ranks(found)}" for name, found in pair["rank_correlation"].items() if found["n"]
    ]
    if pair["rank_correlation"] and not any(found["n"] for found in pair["rank_correlation"].values()):
        lines.append(f"{a} and {b}: measured no architecture in common, so their ranking cannot be compared")
    if pair["genes"]:
        lines.append(f"{a} and {b}: {_genes(pair['genes'], a, b)}")
    return lines


def _name(objective: str) -> str:
    return render.objective_heading(objective, is_emulated=False).split()[0]


def _ranks(found: Mapping[str, Any]) -> str:
    if found["spearman"] is None or found["kendall"] is None:
        return f"was measured on both for {found['n']} architectures, too few to rank"
    n, decided, alike = found["decided"]
    text = (
        f"ranks {found['n']} architectures with Spearman {_with(found, 'spearman')} and Kendall "
        f"{_with(found, 'kendall')}; {decided} of {n} pairs are decided on both"
    )
    if decided:
        text += f", {alike} of these alike"
    n, decided, alike = found["decided_near"]
    return text + (f"; of {n} pairs within 10 % in size {decided}, {alike} alike" if n else "")


def _with(found: Mapping[str, Any], name: str) -> str:
    interval = found[f"{name}_ci95"]
    return f"{found[name]:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def _genes(genes: Sequence[Mapping[str, Any]], a: str, b: str) -> str:
    if genes[0]["is_different"] is None:
        return "too few members of one size to compare their genes"
    different = [
        f"{gene['gene']} (median {gene['a'][1]:.3g} in {a}, {gene['b'][1]:.3g} in {b}; {gene['difference']:+.3g} at "
        f"equal size, p {gene['p']:.2g})"
        for gene in genes
        if gene["is_different"]
    ]
    others = [gene["gene"] for gene in genes if not gene["is_different"]]
    if not different:
        return f"no gene differs at equal size ({', '.join(others)})"
    return f"genes that differ: {', '.join(different)}" + (f"; not: {', '.join(others)}" if others else "")


def _transfer(found: Mapping[str, Any], letters: Mapping[str, str], output: str) -> str:
    source, onto = letters[found["from"]], letters[found["onto"]]
    name = _name(found["objective"])
    headings = ["arch_id", f"{name} on {onto} ms", f"rival of {onto}", "its ms", "regret"]
    rows = [
        [
            render.text(one["arch_id"]),
            "failed" if one["n"] == 0 else render.objective(found["objective"], one["latency_s"]),
            _rival(one),
            render.objective(found["objective"], one["rival_latency_s"]),
            _regret(one),
        ]
        for one in found["members"][:MEMBERS_SHOWN]
    ]
    title = render.title(f"{source}'s frontier on {onto} (re-timed {render.text(found['session'])})", output)
    return f"{title}\n\n{render.table(rows, headings, output)}\n\n{render.bullets(_verdict(found, onto), output)}"


def _rival(one: Mapping[str, Any]) -> str:
    if one["rival"] is None:
        return "none"
    return "itself" if one["rival"] == one["arch_id"] else render.text(one["rival"])


def _regret(one: Mapping[str, Any]) -> str:
    if one["regret"] is None:
        return "-"
    if one["low"] is None or one["rival"] == one["arch_id"]:
        return f"{one['regret']:+.0%}"
    return f"{one['regret']:+.0%} ({one['low']:+.0%} to {one['high']:+.0%})"


def _verdict(found: Mapping[str, Any], onto: str) -> list[str]:
    lines = []
    if found["median_regret"] is not None:
        interval = found["median_ci95"]
        reach = f" (95 %: {interval[0]:+.1%} to {interval[1]:+.1%})" if interval else ""
        lines.append(
            f"regret at the median member {found['median_regret']:+.1%}{reach}, {found['largest_regret']:+.1%} at the "
            f"worst; of {found['n_compared']} members {found['n_worse']} are surely slower than what {onto} found "
            f"itself, {found['n_better']} surely faster"
        )
    if found["n_without_rival"]:
        lines.append(
            f"{found['n_without_rival']} without a rival: {onto}'s frontier has nothing as large in as little memory"
        )
    if found["n_failed"]:
        lines.append(f"{found['n_failed']} could not be run on {onto} at all")
    return lines or ["nothing could be compared"]


def _csv_rows(number: int, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for level in group["levels"]:
        for cost, cells in level["cells"].items():
            for cell in cells:
                interval, found = cell["interval"] or {}, cell["ratio"] or {}
                rows.append(
                    {
                        "group": number,
                        "objective": cost,
                        "quality": group["quality"],
                        "level": level["quality"],
                        **{key: cell[key] for key in ("run_id", "arch_id", "value")},
                        **{key: interval.get(key) for key in ("low", "high")},
                        "interval": interval.get("kind"),
                        "ratio_to": group["runs"][0] if found else None,
                        "ratio": found.get("ratio"),
                        **{f"ratio_{key}": found.get(key) for key in ("low", "high")},
                        "is_different": found.get("is_different"),
                    }
                )
    return rows

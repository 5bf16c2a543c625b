"""Baselines against the frontier of their run: who is at least as good, at how many times less latency and memory.

Each baseline (`run --baseline`) is held against the members of the frontier that have at least its proxy: the one that
costs least in each searched cost, its *rival* by that cost, with both latencies' and memories' ratios. A ratio is what
the baseline takes over what the rival takes, with an interval made of the ends of both (`intervals.ratio`); differences
inside the intervals are not called differences. Where nothing on the frontier is as large, the largest member stands in
its place (`nearest`), and nothing follows for the proxy.

Where the run was ranked by a calibrated proxy, proxy means its quality, and a baseline of another backbone has none.
Latencies are at the run's usual speed, as members' are. That speed is told by anchors that depend on backbone and kind
of embedding (`edge_lts.profile.anchor`), so a baseline is only corrected by processes of its own kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.frontier import Frontier, Member
from edge_lts.objectives import OBJECTIVES, QUALITY
from edge_lts.records import ASIDE, Evaluation, Failure, Outcome, RunSpec
from edge_lts.stats import median
from edge_lts_host.baselines import label
from edge_lts_host.report import render, shapes
from edge_lts_host.report.intervals import Widths, bounds, centre, ratio, usual_widths
from edge_lts_host.report.quality import LATENCIES

TITLE = "Baselines"
LEGEND = (
    "Baselines: x is what the baseline takes over what the member takes that has at least its proxy and takes least\n"
    "of that, from the ends of both intervals."
)
COSTS = (*LATENCIES, "peak_memory_bytes")
_SHOWN = ("decode_latency_s", "peak_memory_bytes")


def baselines(
    spec: RunSpec,
    outcomes: Sequence[Outcome],
    entries: Sequence[Mapping[str, Any]],
    device: Mapping[str, Any] | None,
    *,
    is_emulated: bool,
) -> dict[str, Any] | None:
    """`baselines` of a run's report; None where the run had none. `entries` are its frontier as reported."""
    if not spec.baselines:
        return None
    quality = next((one.name for one in spec.resolved_objectives if one.direction == "max"), "decoder_params")
    searched = [one.name for one in spec.resolved_objectives if one.direction == "min"]
    costs = list(dict.fromkeys([*searched, *COSTS]))
    found = _members(spec, outcomes, entries)
    failures = {one.architecture.arch_id: one for one in outcomes if one.purpose == "baseline" and _failed(one)}
    measured = [member.to_json() for member in found.values()]
    judge = _Judge(quality, searched, costs, entries, usual_widths([*entries, *measured]), device, is_emulated)
    families: dict[str, list[Architecture]] = {}
    for one in spec.baselines:
        families.setdefault(one.family, []).append(one.architecture)
    members = []
    for one in spec.baselines:
        arch, arch_id = one.architecture, one.architecture.arch_id
        member, failure = found.get(arch_id), failures.get(arch_id)
        data: dict[str, Any] = {
            "family": one.family,
            "label": label(one.family, arch, families[one.family]),
            "arch_id": arch_id,
            "architecture": arch.to_json(),
            "objectives": {},
            "flags": [],
            "n_processes": 0,
            "failure": None,
            "rivals": {},
            "nearest": None,
        }
        if member is not None:
            known = member.to_json()
            data |= {key: known[key] for key in ("objectives", "flags", "n_processes")}
            data |= judge.judged(known)
        elif isinstance(failure, Failure):
            data["failure"] = {"kind": failure.kind, "message": failure.message}
        members.append(data)
    return {
        "quality": quality,
        "costs": costs,
        "searched": searched,
        "families": list(families),
        "n_measured": len(found),
        "n_failed": sum(one["failure"] is not None for one in members),
        "n_processes": sum(one["n_processes"] for one in members),
        "members": members,
        "summary": [_summary(family, members, searched) for family in families],
        "notes": _notes(spec, members, entries),
    }


def _failed(outcome: Outcome) -> bool:
    return isinstance(outcome, Failure)


def _kind(arch: Architecture) -> tuple[str, bool]:
    """What the anchors beside a candidate depend on."""
    return arch.backbone, arch.embedding_factor > 1


def _members(spec: RunSpec, outcomes: Sequence[Outcome], entries: Iterable[Mapping[str, Any]]) -> dict[str, Member]:
    """The baselines that were measured. Their `pi95` pools the frontier's processes of the same kind."""
    on_frontier = {entry["arch_id"] for entry in entries}
    evaluations = [one for one in outcomes if isinstance(one, Evaluation) and one.purpose != "one_thread"]
    found: dict[str, Member] = {}
    for kind in dict.fromkeys(_kind(one.architecture) for one in spec.baselines):
        frontier = Frontier(spec.resolved_objectives)
        own: dict[str, list[Evaluation]] = {}
        others: dict[str, list[Evaluation]] = {}
        for one in evaluations:
            arch_id = one.architecture.arch_id
            if _kind(one.architecture) != kind:
                continue
            frontier.add(arch_id, one)
            if one.purpose == "baseline":
                own.setdefault(arch_id, []).append(one)
            elif one.purpose not in ASIDE and arch_id in on_frontier:
                others.setdefault(arch_id, []).append(one)
        chosen = frontier.combine([*own.items(), *others.items()])
        found |= {member.arch_id: member for member in chosen[: len(own)]}
    return found


class _Judge:
    """One run's frontier, to hold baselines against."""

    def __init__(
        self,
        quality: str,
        searched: Sequence[str],
        costs: Sequence[str],
        entries: Sequence[Mapping[str, Any]],
        widths: Widths,
        device: Mapping[str, Any] | None,
        is_emulated: bool,
    ) -> None:
        self._quality, self._searched, self._costs = quality, searched, costs
        self._entries = [entry for entry in entries if not entry["probably_dominated"]]
        self._widths, self._device, self._is_emulated = widths, device, is_emulated

    def judged(self, baseline: Mapping[str, Any]) -> dict[str, Any]:
        """`rivals` by searched cost, or `nearest`."""
        wanted = centre(baseline["objectives"].get(self._quality))
        if wanted is None:
            return {}
        good = [
            (its, entry)
            for entry in self._entries
            if (its := centre(entry["objectives"].get(self._quality))) is not None
        ]
        able = [entry for its, entry in good if its >= wanted]
        rivals = {}
        for cost in self._searched:
            values = [
                (value, index) for index, entry in enumerate(able) if (value := centre(entry["objectives"].get(cost)))
            ]
            if values:
                rivals[cost] = self._against(baseline, able[min(values)[1]])
        if able or not good:
            return {"rivals": rivals}
        its, largest = max(good, key=lambda one: one[0])
        is_log = self._quality == QUALITY
        gap = {
            "quality_ratio": None if is_log or not wanted else its / wanted,
            "quality_gap_nats": wanted - its if is_log else None,
        }
        return {"nearest": {**gap, **self._against(baseline, largest)}}

    def _against(self, baseline: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
        ratios = {}
        for cost in self._costs:
            one, other = baseline["objectives"].get(cost), entry["objectives"].get(cost)
            x, y = centre(one), centre(other)
            is_performance = OBJECTIVES[cost].unit != "B" if cost in OBJECTIVES else False
            if x is None or y is None or (self._is_emulated and is_performance):
                continue
            found = ratio(x, self._bounds(cost, one), y, self._bounds(cost, other))
            if found is not None:
                ratios[cost] = found
        return {"arch_id": entry["arch_id"], "ratios": ratios}

    def _bounds(self, cost: str, value: Any) -> Any:
        return bounds(cost, value, self._widths, self._device)


def _summary(family: str, members: Sequence[Mapping[str, Any]], searched: Sequence[str]) -> dict[str, Any]:
    """Of a family, by searched cost: baselines with a rival, how many are beaten and beat, median and best ratio."""
    own = [one for one in members if one["family"] == family]
    costs = {}
    for cost in searched:
        found = [
            (one["label"], rival["ratios"][cost])
            for one in own
            if (rival := one["rivals"].get(cost)) and cost in rival["ratios"]
        ]
        if not found:
            continue
        beaten = [(it["ratio"], name, it) for name, it in found if it["is_different"] and it["ratio"] > 1]
        best = max(beaten, key=lambda one: one[:2], default=None)
        costs[cost] = {
            "n": len(found),
            "n_beaten": len(beaten),
            "n_better": sum(bool(it["is_different"]) and it["ratio"] < 1 for _, it in found),
            "median_ratio": median([it["ratio"] for _, it in found]),
            "best": None if best is None else {"label": best[1], **best[2]},
        }
    n_large = sum(one["nearest"] is not None for one in own)
    return {"family": family, "n": len(own), "n_beyond": n_large, "costs": costs}


def _notes(
    spec: RunSpec, members: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What makes the comparison lame, by family: another backbone, another vocabulary or kind of embedding."""
    if not entries:
        return []
    theirs = [entry["architecture"] for entry in entries]
    notes: list[dict[str, Any]] = []
    for family in dict.fromkeys(one["family"] for one in members):
        own = [one["architecture"] for one in members if one["family"] == family and one["objectives"]]
        for key in ("backbone", "vocab_size", "embedding_factor"):
            a, b = sorted({one[key] for one in own}), sorted({one[key] for one in theirs})
            if own and a != b:
                notes.append({"family": family, "differs": key, "baseline": a, "frontier": b})
    return notes


# --- words ------------------------------------------------------------------------------------------------------------


def section(run: Mapping[str, Any], output: str) -> str:
    """The table of a run's baselines and what it says; empty where the run had none."""
    data = run.get("baselines")
    if not data:
        return ""
    measured = [one for one in data["members"] if one["objectives"]]
    lines = [_summary_line(one, data) for one in data["summary"]]
    lines += [_note_line(note) for note in data["notes"]]
    failed = [one for one in data["members"] if one["failure"]]
    lines += [f"{one['label']} failed: {render.text(one['failure']['message'], 160)}" for one in failed]
    n_lacking = len(data["members"]) - len(measured) - data["n_failed"]
    if n_lacking:
        lines.append(f"{n_lacking} of {len(data['members'])} were not measured: no time")
    parts = [render.title(TITLE, output)]
    if measured:
        parts.append(render.table(*_table(run, data, measured), output))
    parts.append(render.bullets(lines, output))
    return "\n\n".join(part for part in parts if part)


def _table(
    run: Mapping[str, Any], data: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]
) -> tuple[list[list[str]], list[str]]:
    shown = [name for name in (data["quality"], *_SHOWN) if any(name in one["objectives"] for one in measured)]
    rivals = [cost for cost in data["searched"] if any(cost in one["rivals"] for one in measured)]
    ratios = [name for name in data["costs"] if name in (*_SHOWN, *data["searched"])]
    is_emulated = run["is_emulated"]
    headings = ["baseline", "shape", *(render.objective_heading(name, is_emulated=is_emulated) for name in shown)]
    for cost in rivals:
        headings += [f"least {_word(cost)}", *(f"{_word(name)} x" for name in ratios)]
    cells = []
    for one in measured:
        arch = one["architecture"]
        row = [
            one["label"],
            shapes.words(arch),
            *(render.objective(name, one["objectives"].get(name)) for name in shown),
        ]
        for cost in rivals:
            rival = one["rivals"].get(cost)
            none = "none as good" if data["quality"] == QUALITY else "none as large"
            row.append(none if rival is None else render.text(rival["arch_id"]))
            row += [render.ratio(None if rival is None else rival["ratios"].get(name)) for name in ratios]
        cells.append(row)
    return cells, headings


def _word(cost: str) -> str:
    """An objective without its unit: decode, peak."""
    return render.OBJECTIVE_UNITS[cost][0] if cost in render.OBJECTIVE_UNITS else cost


def _summary_line(one: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A family in one line."""
    words = []
    for cost in data["searched"]:
        found = one["costs"].get(cost)
        if found is None:
            continue
        good = "good" if data["quality"] == QUALITY else "large"
        text = f"{_word(cost)}: {found['n_beaten']} of {found['n']} take more than a member that is at least as {good}"
        if found["best"] is not None:
            text += f", up to {render.ratio(found['best'])} times ({found['best']['label']})"
        if found["n_better"]:
            text += f"; {found['n_better']} take less"
        words.append(text)
    if one["n_beyond"]:
        better = "better" if data["quality"] == QUALITY else "larger"
        words.append(f"{one['n_beyond']} {better} than anything on the frontier")
        if one["n"] == 1:  # such as OPT-350M
            (nearest,) = (it["nearest"] for it in data["members"] if it["family"] == one["family"])
            share = f"has {render.percent(nearest['quality_ratio'])} of its {_word(data['quality'])}"
            if nearest["quality_gap_nats"] is not None:
                share = f"lacks {render.nats(nearest['quality_gap_nats'])} nats of its quality"
            best = "best" if data["quality"] == QUALITY else "largest"
            words.append(f"the {best} member, {render.text(nearest['arch_id'])}, {share}")
            words += [f"{_word(cost)} x {render.ratio(found)}" for cost, found in nearest["ratios"].items()]
    return f"{one['family']}: {'; '.join(words) or 'nothing to compare'}"


def _note_line(note: Mapping[str, Any]) -> str:
    a, b = (
        ", ".join(f"{value:,}" if isinstance(value, int) else render.text(value) for value in note[key])
        for key in ("baseline", "frontier")
    )
    consequence = {
        "backbone": "the proxy was shown to rank within a backbone, not across",
        "vocab_size": "part of the ratios is the vocabulary",
        "embedding_factor": "part of the ratios is the embedding",
    }[note["differs"]]
    return f"{note['family']} has {note['differs']} {a}, the frontier {b}: {consequence}"

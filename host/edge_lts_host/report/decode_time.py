"""How members spend the time of a decoded token: on one thread, against the memory's bandwidth, on dispatch.

`rank_changes` says which members would stand in another order on one thread; `section` puts it all into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts_host.report import render
from edge_lts_host.report.quality import LATENCIES, mapping, number

TITLE = "How the decode time is spent"
PAIRS_NAMED = 3
LEGEND = (
    "floor: reading each weight and the cache once at the memory's measured bandwidth. dispatch: share of a token's\n"
    "time that torch takes to start operators, as the same layers at width 8 show it."
)


def rank_changes(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per latency: `n_members` measured on one thread too, and `pairs` [a, b] of arch_ids where a is faster on one
    thread although b is faster on the run's threads. Only pairs whose intervals are apart in both. Quadratic."""
    found: dict[str, dict[str, Any]] = {}
    for name in LATENCIES:
        both = [
            (entry["arch_id"], one, usual)
            for entry in entries
            if (one := _bounds(one_thread(entry).get(name))) and (usual := _bounds(entry["objectives"].get(name)))
        ]
        if len(both) > 1:
            pairs = [
                [a, b]
                for a, one_a, usual_a in both
                for b, one_b, usual_b in both
                if one_a[1] < one_b[0] and usual_b[1] < usual_a[0]
            ]
            found[name] = {"n_members": len(both), "pairs": pairs}
    return found


def section(run: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], output: str) -> str:
    """A small table of the members shown, and what it means; empty where none of this was measured."""
    has_one = any(one_thread(entry).get("decode_latency_s") is not None for entry in shown)
    has_floor = any(framework(entry) for entry in shown)
    if not (has_one or has_floor):
        return ""
    mark = " (emulated)" if run["is_emulated"] else ""
    headings = ["arch_id", render.objective_heading("decode_latency_s", is_emulated=run["is_emulated"])]
    headings += [f"1 thread ms{mark}"] * has_one + [f"floor ms{mark}", "dispatch"] * has_floor
    cells = []
    for entry in shown:
        row = [render.member(entry), render.objective("decode_latency_s", entry["objectives"].get("decode_latency_s"))]
        if has_one:
            row.append(render.objective("decode_latency_s", one_thread(entry).get("decode_latency_s")))
        if has_floor:
            parts = framework(entry)
            row.append(render.objective("decode_latency_s", number(parts.get("bandwidth_floor_s"))))
            row.append(render.percent(number(parts.get("dispatch_share"))))
        cells.append(row)
    text = f"{render.title(TITLE, output)}\n\n{render.table(cells, headings, output)}"
    notes = _notes(run)
    return text + ("\n\n" + render.bullets(notes, output) if notes else "")


def one_thread(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Latencies of a member on one thread; empty where they were not measured."""
    return mapping(entry.get("one_thread"))


def framework(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a member's decoding owes to the framework; empty where that was not measured."""
    return mapping(entry.get("framework"))


def _bounds(value: object) -> tuple[float, float] | None:
    """The interval of a Measurement in JSON, or its median twice."""
    median = number(mapping(value).get("median"))
    if median is None:
        return None
    interval = mapping(value).get("ci95")
    low, high = map(number, interval) if isinstance(interval, (list, tuple)) and len(interval) == 2 else (None, None)
    return (median, median) if low is None or high is None else (low, high)


def _notes(run: Mapping[str, Any]) -> list[str]:
    notes = []
    threads = run["protocol"]["threads"]
    for name, words in (("decode_latency_s", "decode"), ("prefill_latency_s", "prefill")):
        change = run["rank_changes"].get(name)
        if change is None:
            continue
        pairs, n = change["pairs"], change["n_members"]
        n_moved = len({arch_id for pair in pairs for arch_id in pair})
        named = ", ".join(f"{render.text(a)} before {render.text(b)}" for a, b in pairs[:PAIRS_NAMED])
        more = f" and {len(pairs) - PAIRS_NAMED} more" if len(pairs) > PAIRS_NAMED else ""
        if pairs:
            notes.append(
                f"at one thread {n_moved} of {n} members would rank differently by {words} latency: {named}{more}"
            )
        elif words == "decode":
            notes.append(f"at one thread the {n} members rank by decode latency as they do at {threads}")
    n_bound = sum("framework_bound" in entry["flags"] for entry in run["frontier"])
    if n_bound:
        who = f"{n_bound} of {len(run['frontier'])} members {'is' if n_bound == 1 else 'are'}"
        notes.append(f"{who} {render.flag_words(['framework_bound'])}: a runtime in C would be faster there")
    return notes

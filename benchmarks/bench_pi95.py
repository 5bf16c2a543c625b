"""Does `pi95` hold what a fresh process measures later?

usage: python benchmarks/bench_pi95.py [measure|report] [--sessions N] [--members N] [--pause S] [--out FILE]

`measure` holds sessions one after the other. In each, members of the demo space that no other session has are measured
in three fresh processes each, all in one random order; after a pause of 10 to `--pause` seconds each is measured once
more, in another random order. `report` gives a session's first processes to the code that makes a run's frontier and
asks how often its `pi95` holds the raw median of the later one; beside it, what Student's t without occasions and
samples would have said. To reach: 90 to 99 % of at least 300 cases, for each objective.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ONE_THREAD,
    RESULTS,
    evaluation_from,
    load_space,
    measurer,
    read_rows,
    stay_on_one_core,
    trimmed,
    where,
    where_line,
    write_result,
)

from edge_lts.arch import Architecture
from edge_lts.frontier import Frontier
from edge_lts.objectives import resolve_objectives
from edge_lts.records import Evaluation, Interval, Measurement
from edge_lts.speed import EXPONENTS
from edge_lts.stats import median

N_FIRST = 3
SHORTEST_PAUSE_S = 10.0
LOW, HIGH, ENOUGH = 0.90, 0.99, 300
COSTS = ("decode_latency_s", "prefill_latency_s")


def draw_members(n_sessions: int, n_members: int) -> list[list[Architecture]]:
    space, rng = load_space("demo"), np.random.default_rng(17)
    found = list(dict.fromkeys(space.sample(rng) for _ in range(2 * n_sessions * n_members)))
    return [found[index * n_members : (index + 1) * n_members] for index in range(n_sessions)]


def measure(path: Path, sessions: Sequence[Sequence[Architecture]], longest_pause_s: float) -> None:
    """Append what is missing; a session that was cut short is measured anew, since its time has passed."""
    rows = read_rows(path)
    complete = {
        number
        for number, members in enumerate(sessions)
        if sum(row["session"] == number for row in rows) == (N_FIRST + 1) * len(members)
    }
    path.write_text("".join(as_line(row) for row in rows if row["session"] in complete))
    begun = time.monotonic()
    with measurer(ONE_THREAD) as server, path.open("a") as out:
        for number, members in enumerate(sessions):
            if number in complete:
                continue
            rng = random.Random(1000 + number)
            first = [index for index in range(len(members)) for _ in range(N_FIRST)]
            later = list(range(len(members)))
            rng.shuffle(first)
            rng.shuffle(later)
            pause_s = rng.uniform(SHORTEST_PAUSE_S, longest_pause_s)
            for is_later, order in ((False, first), (True, later)):
                if is_later:
                    time.sleep(pause_s)
                for index in order:
                    outcome = server.measure(index, members[index], "search")
                    if not isinstance(outcome, Evaluation):
                        sys.exit(f"{members[index].arch_id}: {outcome.kind}: {outcome.message}")
                    at_s = round(time.monotonic() - begun, 3)
                    extra = {"session": number, "member": index, "is_later": is_later, "at_s": at_s}
                    out.write(as_line(trimmed(outcome, **extra)))
                    out.flush()
            print(f"session {number + 1}/{len(sessions)}, {time.monotonic() - begun:.0f} s", flush=True)


def as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def cases_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case for each member and objective of one session."""
    groups: dict[str, list[Evaluation]] = {}
    later: dict[str, Evaluation] = {}
    frontier = Frontier(resolve_objectives(["decoder_params", *COSTS]))
    for row in rows:
        outcome = replace(evaluation_from(row), spent_s=row["at_s"])
        arch_id = outcome.architecture.arch_id
        if row["is_later"]:
            later[arch_id] = outcome
        else:
            groups.setdefault(arch_id, []).append(outcome)
            frontier.add(arch_id, outcome)
    found = frontier.combine(list(groups.items()))
    cases = []
    for name in COSTS:
        values = [member.objectives[name] for member in found]
        medians = [member.process_medians[name] for member in found]
        for member, value, raw, old in zip(found, values, medians, by_student_t(medians), strict=True):
            fresh = later[member.arch_id].objectives[name]
            if not isinstance(value, Measurement) or not isinstance(fresh, Measurement) or value.pi95 is None:
                sys.exit(f"{member.arch_id} has no pi95 or no later {name}")
            moved = value.median / median(raw)
            cases.append(
                {
                    "session": rows[0]["session"],
                    "arch_id": member.arch_id,
                    "name": name,
                    "value": value.median,
                    "later": fresh.median,
                    "pi95": list(value.pi95),
                    "by_student_t": [old[0] * moved, old[1] * moved],
                }
            )
    return cases


def by_student_t(medians: Sequence[Sequence[float]]) -> list[Interval]:
    """What `pi95` was before: the members' pooled spread around the mean, as if all processes were independent."""
    logs = [[math.log(value) for value in values] for values in medians]
    freedom = sum(len(values) - 1 for values in logs)
    squares = sum((value - np.mean(values)) ** 2 for values in logs for value in values)
    reach = student_t(freedom) * math.sqrt(squares / freedom)
    centres = [(float(np.mean(values)), reach * math.sqrt(1 + 1 / len(values))) for values in logs]
    return [(math.exp(centre - half), math.exp(centre + half)) for centre, half in centres]


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, by adding up its density."""
    grid = np.linspace(0, 40, 400_001)
    density = (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    return float(grid[np.searchsorted(np.cumsum(density) * scale * grid[1], 0.475)])


def clopper_pearson(hits: int, n: int) -> Interval:
    """The exact 95 % interval of a share."""

    def at_least(share: float, k: int) -> float:
        return math.fsum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k, n + 1))

    low = root(lambda share: at_least(share, hits) - 0.025) if hits else 0.0
    high = root(lambda share: at_least(share, hits + 1) - 0.975) if hits < n else 1.0
    return (low, high)


def root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low


def summary(cases: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    hits = [case[key][0] <= case["later"] <= case[key][1] for case in cases]
    by_session: dict[int, list[bool]] = {}
    for case, hit in zip(cases, hits, strict=True):
        by_session.setdefault(case["session"], []).append(hit)
    widths = [(case[key][1] - case[key][0]) / 2 / case["value"] for case in cases]
    return {
        "n": len(cases),
        "share": sum(hits) / len(hits),
        "interval": clopper_pearson(sum(hits), len(hits)),
        "by_session": [round(sum(found) / len(found), 3) for found in by_session.values()],
        "half_width": {share: float(np.quantile(widths, share)) for share in (0.1, 0.5, 0.9)},
    }


def report(path: Path, command: str) -> int:
    rows = read_rows(path)
    if not rows:
        sys.exit(f"{path} holds nothing: run `measure` first")
    sessions = sorted({row["session"] for row in rows})
    cases = [case for number in sessions for case in cases_of([row for row in rows if row["session"] == number])]
    found = {
        name: {
            "moved": float(
                np.median([abs(math.log(case["later"] / case["value"])) for case in cases if pick(case, name)])
            ),
            **{key: summary([case for case in cases if pick(case, name)], key) for key in ("pi95", "by_student_t")},
        }
        for name in (*COSTS, "both")
    }
    is_reached = all(
        found[name]["pi95"]["n"] >= ENOUGH and LOW <= found[name]["pi95"]["share"] <= HIGH for name in COSTS
    )
    conditions = where(protocol=ONE_THREAD.to_json(), corrected_by=sorted(EXPONENTS))
    result = {
        "what": "how often pi95 holds what a fresh process measures later",
        "command": command,
        "raw": path.name,
        "limits": {"low": LOW, "high": HIGH, "n": ENOUGH},
        "is_reached": is_reached,
        "conditions": conditions,
        "coverage": found,
        "cases": cases,
    }
    taken = f"{len(sessions)} sessions of {len({(row['session'], row['member']) for row in rows}) // len(sessions)}"
    lines = [
        "# Does `pi95` hold what a fresh process measures later?",
        "",
        f"{where_line(conditions)} One thread on one core. `{command}`; raw: [{path.name}]({path.name}).",
        f"{taken} members of the demo space, {N_FIRST} processes each at random times, then, after a pause, one more "
        f"each. `pi95` is computed as for a run's frontier. To reach: {LOW:.0%} to {HIGH:.0%} of at least {ENOUGH} "
        f"cases: {'reached' if is_reached else 'missed'}.",
        "",
        "| objective | cases | `pi95` holds it (95 % interval) | half-width: 10 %, median, 90 % | t without drift | "
        "its half-width | median distance of the later value |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, entry in found.items():
        new, old = entry["pi95"], entry["by_student_t"]
        low, high = new["interval"]
        widths = ", ".join(f"{value:.1%}" for value in new["half_width"].values())
        lines.append(
            f"| {name} | {new['n']} | {new['share']:.1%} ({low:.1%} to {high:.1%}) | {widths} | {old['share']:.1%} | "
            f"{old['half_width'][0.5]:.1%} | {entry['moved']:.1%} |"
        )
    lines += ["", "The members of a session share its drift, so cases are not independent. By session:", ""]
    lines += [
        f"- {name}: " + ", ".join(f"{share:.0%}" for share in found[name]["pi95"]["by_session"]) for name in COSTS
    ]
    write_result(path.with_suffix(".json"), result, lines)
    print("\n".join(lines))
    return 0 if is_reached else 1


def pick(case: dict[str, Any], name: str) -> bool:
    return name in ("both", case["name"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "report"), nargs="?", default="report")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--pause", type=float, default=60.0, help="the longest, in seconds")
    parser.add_argument("--out", type=Path, default=RESULTS / "pi95_x86_64_202611.jsonl")
    args = parser.parse_args()
    if args.what == "measure":
        stay_on_one_core()
        measure(args.out, draw_members(args.sessions, args.members), args.pause)
    changed = "".join(
        f" --{name} {getattr(args, name)}"
        for name in ("sessions", "members", "pause")
        if getattr(args, name) != parser.get_default(name)
    )
    return report(args.out, f"python benchmarks/bench_pi95.py measure{changed}")


if __name__ == "__main__":
    sys.exit(main())

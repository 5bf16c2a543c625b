"""Which members of a frontier a report shows, and in which order: `--filter` and `--sort`.

A filter is `NAME OP VALUE` with one of <, <=, >, >=, =, !=, values with the units that people write (`decode<=2ms`,
`peak<20MiB`, `decoder>=3M`, `layers=6`), or one of the words in `WORDS`. Several filters all hold. Order is that of a
name, ascending; `NAME:desc` turns it around. A member that lacks the value stands last, and no filter on it lets it in.
Errors are UsageErrors that begin with the flag's name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_lts.objectives import OBJECTIVES
from edge_lts_host.counts import parse_count
from edge_lts_host.errors import UsageError
from edge_lts_host.report.intervals import centre
from edge_lts_host.report.quality import taints_of
from edge_lts_host.units import parse_bytes, parse_duration

Entry = Mapping[str, Any]
Number = Callable[[Entry], float | None]
Test = Callable[[Entry], bool]

ALIASES = {
    "decoder": "decoder_params",
    "params": "decoder_params",
    "decode": "decode_latency_s",
    "prefill": "prefill_latency_s",
    "peak": "peak_memory_bytes",
    "memory": "peak_memory_bytes",
    "energy": "energy_j_per_token",
}
SHAPE: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "layers": lambda arch: float(len(arch["layers"])),
    "d_model": lambda arch: float(arch["d_model"]),
    "d_embed": lambda arch: float(arch["d_embed"]),
    "vocab_size": lambda arch: float(arch["vocab_size"]),
    "d_inner": lambda arch: max(float(layer["d_inner"]) for layer in arch["layers"]),
    "n_head": lambda arch: max(float(layer["n_head"]) for layer in arch["layers"]),
}
OWN: dict[str, Number] = {"processes": lambda entry: float(entry["n_processes"])}
WORDS = {
    "knee": "knee points",
    "sure": "no ~: surely on the frontier",
    "undisturbed": "no taint among the flags",
    "confirmed": "an interval from three processes",
}
_FORM = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|!=|==|<|>|=)\s*(\S.*?)\s*")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


def names() -> list[str]:
    """What `--sort` and `--filter` may name besides objectives of a command of the user's."""
    return [*OBJECTIVES, *ALIASES, *SHAPE, *OWN]


def select(report: Mapping[str, Any], filters: Sequence[str], order: str | None) -> dict[str, Any]:
    """The report with the frontiers filtered and sorted; each run says so in `selection` where anything was asked for.

    The report itself is left as it is. Raises UsageError for a filter or an order that no run can mean.
    """
    if not filters and order is None:
        return dict(report)
    own = {command["name"] for run in report["runs"] for command in run["spec"].get("commands", [])}
    for text in filters:  # also where there is no run or no member to try them on
        _test(text, own, {})
    by = None if order is None else _order(order, own)
    runs = []
    for run in report["runs"]:
        tests = [_test(text, own, run) for text in filters]
        frontier = [entry for entry in run["frontier"] if all(test(entry) for test in tests)]
        if by is not None:
            frontier = _sorted(frontier, *by)
        selection = {"filters": list(filters), "sort": order, "n_frontier": len(run["frontier"])}
        runs.append({**run, "frontier": frontier, "selection": selection})
    return {**report, "runs": runs}


def _sorted(frontier: Sequence[Any], number: Number, is_descending: bool) -> list[Any]:
    known = [entry for entry in frontier if number(entry) is not None]
    lacking = [entry for entry in frontier if number(entry) is None]
    return sorted(known, key=lambda entry: number(entry) or 0.0, reverse=is_descending) + lacking


def _order(text: str, own: set[str]) -> tuple[Number, bool]:
    name, colon, way = text.partition(":")
    if colon and way not in ("asc", "desc"):
        raise UsageError(f"--sort: {text!r:.60} must end with :asc or :desc, or with neither")
    return _number(name.strip(), own, "--sort"), way == "desc"


def _number(name: str, own: set[str], flag: str) -> Number:
    full = ALIASES.get(name, name)
    if full in OBJECTIVES or full in own:
        return lambda entry: centre(entry["objectives"].get(full))
    if name in SHAPE:
        return lambda entry: SHAPE[name](entry["architecture"])
    if name in OWN:
        return OWN[name]
    known = ", ".join([*ALIASES, *SHAPE, *OWN, *sorted(own)])
    raise UsageError(f"{flag}: {name!r:.60} is no column; known: {known}, and the full names of objectives")


def _test(text: str, own: set[str], run: Mapping[str, Any]) -> Test:
    word = text.strip()
    if word in WORDS:
        return _word(word, run)
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"--filter: {text!r:.60} is neither NAME<=VALUE (<, <=, >, >=, =, !=) nor {', '.join(WORDS)}")
    name, sign, written = match.groups()
    number, wanted = _number(name, own, "--filter"), _value(ALIASES.get(name, name), written)

    def test(entry: Entry) -> bool:
        value = number(entry)
        return value is not None and _SIGNS[sign](value, wanted)

    return test


def _word(word: str, run: Mapping[str, Any]) -> Test:
    if word == "knee":
        ids = {one["arch_id"] for one in run.get("knees", [])}
        return lambda entry: entry["arch_id"] in ids
    if word == "sure":
        return lambda entry: not entry["probably_dominated"]
    if word == "undisturbed":
        return lambda entry: not taints_of(entry)
    return lambda entry: any(isinstance(one, Mapping) and one.get("pi95") for one in entry["objectives"].values())


def _value(name: str, text: str) -> float:
    flag = f"--filter {name}"
    if name.endswith("_latency_s"):
        return parse_duration(text, flag)
    if name.endswith("_bytes"):
        return float(parse_bytes(text, flag))
    if name.endswith("_params"):
        return float(parse_count(text, flag))
    if name == "energy_j_per_token":
        return _joules(text, flag)
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{flag}: {text!r:.40} is no number") from None
    if value != value:  # NaN
        raise UsageError(f"{flag}: {text!r:.40} is no number")
    return value


def _joules(text: str, flag: str) -> float:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s?(u|m|)J?", text, re.ASCII)
    if match is None:
        raise UsageError(f"{flag}: {text!r:.40} is no energy; write 3mJ, 0.5J or joules")
    return float(match[1]) * {"u": 1e-6, "m": 1e-3, "": 1.0}[match[2]]

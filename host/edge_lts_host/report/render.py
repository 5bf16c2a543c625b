"""Words and tables for people; with `cli` the only place that prints, and the only one that knows ms and MiB.

Everything here takes plain data (JSON) and returns text, except `emit` (results, to stdout) and `talk`, `warn` (talk,
to stderr). Text that came from a board is made printable before it reaches a terminal. No colour is used anywhere, so
NO_COLOR holds.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_lts.objectives import QUALITY
from edge_lts_host.errors import printable
from edge_lts_host.report.markup import bullets as bullets
from edge_lts_host.report.markup import markdown as markdown
from edge_lts_host.report.markup import paragraph as paragraph
from edge_lts_host.report.markup import table as table
from edge_lts_host.report.markup import title as title

Cell = Callable[[Any], str]

FLAG_WORDS = {
    "noisy": "noisy timings",
    "contended": "shared its cores",
    "frozen": "stood still",
    "stolen": "lost time to other VMs",
    "swapped": "swapped",
    "memory_pressure": "short of memory",
    "throttled": "throttled",
    "slowed_clock": "slowed clock",
    "undervolted": "undervolted",
    "framework_bound": "bound by the framework",
    "emulated_precision": "precision emulated by this CPU",
}
EMULATED_NOTE = "emulated: timings are not performance"


@dataclass
class _Talk:
    verbose: int = 0
    is_quiet: bool = False
    has_progress: bool = True


_talk = _Talk()


def set_talk(*, verbose: int = 0, quiet: bool = False, progress: bool = True) -> None:
    """What -v, -q and --no-progress ask for; for the whole process."""
    _talk.verbose, _talk.is_quiet, _talk.has_progress = verbose, quiet, progress


def shows_progress() -> bool:
    """Whether progress bars are wanted: stderr is a terminal, and neither -q nor --no-progress was given."""
    return _talk.has_progress and not _talk.is_quiet and sys.stderr.isatty()


def emit(text: str) -> None:
    """Results, to stdout, ended by one newline."""
    if text:
        print(text.rstrip("\n"), flush=True)


def talk(text: str, *, level: int = 0) -> None:
    """Talk, to stderr: level 0 unless -q, level 1 with -v, level 2 with -vv."""
    if not _talk.is_quiet and _talk.verbose >= level:
        print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning, to stderr, even with -q."""
    print(f"edge-lts: warning: {printable(text)}", file=sys.stderr, flush=True)


# --- numbers ---


def count(value: float | None) -> str:
    """12610560 -> 12.6 M."""
    if value is None:
        return "-"
    for factor, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_short(value / factor)} {sign}"
    return f"{value:g}"


def size(value: float | None) -> str:
    """Bytes in binary units: 536870912 -> 512 MiB."""
    if value is None:
        return "-"
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(value) >= factor:
            return f"{_short(value / factor)} {unit}"
    return f"{value:g} B"


def duration(value: float | None) -> str:
    """Seconds as 1h30m, 90 s, 12.3 ms."""
    if value is None:
        return "-"
    if value >= 3600:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
    if value >= 600:
        return f"{round(value / 60)}m"
    if value >= 1:
        return f"{_short(value)} s"
    return f"{_short(value * 1e3)} ms" if value >= 1e-3 or value == 0 else f"{_short(value * 1e6)} µs"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def energy(value: float | None) -> str:
    """Joules, from a kilojoule on as watt hours."""
    if value is None:
        return "-"
    return f"{_short(value)} J" if value < 1000 else f"{_short(value / 3600)} Wh"


def ratio(found: Mapping[str, Any] | None) -> str:
    """What `intervals.ratio` found, with its interval where it is a difference."""
    if found is None:
        return "-"
    if found["is_different"] is None:
        return "open"
    if not found["is_different"]:
        return "no difference"
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _short(value: float) -> str:
    """Three digits that matter, never an exponent."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.995 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.4f}"


def nats(value: float | None) -> str:
    """A logarithm: 0.001 of it is 0.1 %."""
    return "-" if value is None else f"{value:.3f}"


def score(value: float | None) -> str:
    """A proxy's score, of any size: four digits, with an exponent where that is shorter."""
    return "-" if value is None else f"{value:.4g}"


def measured(value: Any, factor: float) -> str:
    """A value in units of `factor`, with its interval: `12.3 [12.1, 12.6]`; an exact or single one without.

    Brackets hold what a fresh process would show (pi95), parentheses what this occasion showed (ci95).
    """
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return _short(value / factor)
    median = _short(value["median"] / factor)
    for key, left, right in (("pi95", "[", "]"), ("ci95", "(", ")")):
        if value.get(key) is not None:
            low, high = (_short(bound / factor) for bound in value[key])
            return f"{median} {left}{low}, {high}{right}"
    return median


# Objective -> (heading, its unit in the heading, the unit in SI).
OBJECTIVE_UNITS: dict[str, tuple[str, str, float]] = {
    "decoder_params": ("decoder", "M", 1e6),
    QUALITY: (QUALITY, "nats", 1.0),
    "decode_latency_s": ("decode", "ms", 1e-3),
    "prefill_latency_s": ("prefill", "ms", 1e-3),
    "peak_memory_bytes": ("peak", "MiB", float(1 << 20)),
    "energy_j_per_token": ("energy", "mJ/token", 1e-3),
}


def objective(name: str, value: Any) -> str:
    """In the unit of the objective's heading; the number of a user's own command as it is, to six digits.

    An estimate as `mean {low, high}`.
    """
    if isinstance(value, Mapping) and "mean" in value:
        return f"{nats(value['mean'])} {{{nats(value['low'])}, {nats(value['high'])}}}"
    if name == QUALITY:
        return nats(value)
    if name in OBJECTIVE_UNITS:
        return measured(value, OBJECTIVE_UNITS[name][2])
    number = value["median"] if isinstance(value, Mapping) else value
    return "-" if number is None else f"{number:.6g}"


def predicted(name: str, value: float | None, measured: Any) -> str:
    """A prediction in the objective's unit, and how far it was from what was measured: `4.31 (+2%)`."""
    truth = measured["median"] if isinstance(measured, Mapping) else measured
    if value is None or not truth:
        return "-"
    return f"{objective(name, value)} ({value / truth - 1:+.0%})"


def objective_heading(name: str, *, is_emulated: bool) -> str:
    """Such as `decode ms`; a timing, or the energy, of an emulated device is marked."""
    if name not in OBJECTIVE_UNITS:
        return name
    heading, unit, _ = OBJECTIVE_UNITS[name]
    is_performance = name.endswith("_s") or name == "energy_j_per_token"
    return f"{heading} {unit}" + (" (emulated)" if is_emulated and is_performance else "")


def _with_unit(name: str) -> Cell:
    return lambda value: "-" if value is None else f"{objective(name, value)} {OBJECTIVE_UNITS[name][1]}"


# Objective -> (heading, how to show a value with its unit), for a record rather than a column.
OBJECTIVE_CELLS: dict[str, tuple[str, Cell]] = {
    name: (f"{heading} params" if name.endswith("_params") else heading, _with_unit(name))
    for name, (heading, _, _) in OBJECTIVE_UNITS.items()
}


def flag_words(flags: Sequence[str]) -> str:
    return ", ".join(FLAG_WORDS.get(flag, text(flag).replace("_", " ")) for flag in flags)


def member(entry: Mapping[str, Any]) -> str:
    """A frontier member's arch_id, behind `~` if it is only probably dominated."""
    return ("~" if entry["probably_dominated"] else "") + text(entry["arch_id"])


def text(value: object, width: int = 80) -> str:
    """Any value as one printable line of at most `width` characters."""
    if value is None:
        return "-"
    line = " ".join(printable(str(value)).split())
    return line if len(line) <= width else line[: width - 1] + "…"


# --- tables of records ---

Columns = Sequence[tuple[str, str, Cell]]  # (key, heading, how to show it)

TARGET_COLUMNS: Columns = (
    ("name", "target", text),
    ("extends", "extends", text),
    ("description", "description", text),
    ("arch", "arch", text),
    ("threads", "threads", lambda value: "all cores" if value == 0 else str(value)),
    ("torch", "torch", lambda value: text(value or "as installed")),
    ("memory_headroom", "headroom", percent),
    ("min_memory_bytes", "min memory", size),
    ("origin", "origin", text),
)
DEVICE_COLUMNS: Columns = (
    ("name", "name", text),
    ("destination", "destination", text),
    ("target", "target", text),
    ("model", "model", text),
    ("torch", "torch", text),
    ("memory_total_bytes", "memory", size),
    ("deployed_at", "last deployed", lambda value: "never" if value is None else text(value)),
)
PARAMS_COLUMNS: Columns = (
    ("arch_id", "arch_id", text),
    ("decoder_params", "decoder_params", "{:,}".format),
    ("embedding", "embedding", "{:,}".format),
    ("position", "position", "{:,}".format),
    ("head", "head", "{:,}".format),
    ("total_params", "total_params", "{:,}".format),
)


def device_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A host entry with what a table shows of its device lifted to the top."""
    device = entry.get("device") or {}
    keys = ("model", "torch", "memory_total_bytes")
    return {**entry, **{key: device.get(key) for key in keys}}


def records(rows: Sequence[Mapping[str, Any]], output: str, columns: Columns, name: str) -> str:
    """Many records in a format of common.FORMATS; JSON is {"schema_version": 1, name: [...]} with every key of each."""
    if output == "json":
        return dump_json({"schema_version": 1, name: list(rows)})
    if output == "jsonl":
        return "\n".join(json.dumps(row, allow_nan=False) for row in rows)
    if output == "csv":
        return to_csv([{key: row.get(key) for key, _, _ in columns} for row in rows], [key for key, _, _ in columns])
    cells = [[cell(row.get(key)) for key, _, cell in columns] for row in rows]
    return table(cells, [heading for _, heading, _ in columns], output)


def record(data: Mapping[str, Any], output: str, columns: Columns) -> str:
    """One record; JSON is the object itself."""
    if output in ("json", "jsonl"):
        return dump_json(data) if output == "json" else json.dumps(data, allow_nan=False)
    shown = [column for column in columns if column[0] in data]
    if output == "table":
        return table([[heading, cell(data[key])] for key, heading, cell in shown], (), "plain")
    return records([data], output, shown, "")


def dump_json(data: Any) -> str:
    """One JSON document: indented, and ASCII, so that nothing in it can drive a terminal."""
    return json.dumps(data, indent=2, allow_nan=False)


def to_csv(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """CSV with a header; null is an empty cell, a list is joined by `;`. Values are unrounded, in SI units."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_cell(row.get(key)) for key in keys])
    return buffer.getvalue()


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ";".join(_csv_cell(item) for item in value)
    return printable(value) if isinstance(value, str) else repr(value)

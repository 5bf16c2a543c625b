"""Meters on this workstation that measure a board: what --meter may say, and opening one.

A meter is written KIND[:WHERE], as in `um25c:/dev/rfcomm0`. Kinds that the *board* reads (its PMIC, its INA, RAPL) are
passed on to it; the kinds here are read by this machine while it waits for the run (recorder.py), and energy is worked
out afterwards (alignment.py, energy.py). Nothing here imports pyserial or numpy before a meter is opened.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edge_lts_host.meters.base import Meter, Reading

ON_BOARD = ("auto", "none", "pmic", "ina", "powerz", "rapl")
UM_KINDS = ("um24c", "um25c", "um34c")
ON_PORT = (*UM_KINDS, "tc66c", "yzx")
IN_KERNEL = ("host-powerz", "host-ina")
ON_HOST = (*ON_PORT, *IN_KERNEL)
EXTERNAL = "external"  # what a board is told of a meter that is read here
ENERGY = "energy_j_per_token"


def parse(text: str) -> tuple[str, str]:
    """(kind, where) of KIND[:WHERE]; `where` may be "". Raises UsageError."""
    kind, colon, where = text.partition(":")
    kind = kind.strip().lower()
    if kind not in (*ON_BOARD, *ON_HOST):
        raise UsageError(
            f"--meter: unknown kind {kind!r:.40}; on the board: {', '.join(ON_BOARD)}; on this machine: "
            f"{', '.join(ON_HOST)}"
        )
    if kind in ON_PORT and not where:
        raise UsageError(f"--meter: {kind} needs a port, as in {kind}:/dev/rfcomm0 or {kind}:/dev/serial/by-id/...")
    if kind in ("auto", "none") and colon:
        raise UsageError(f"--meter: {kind} takes nothing after it, not {where!r:.80}")
    return kind, where


def is_on_host(text: str) -> bool:
    """Whether this machine reads the meter. Raises UsageError."""
    return parse(text)[0] in ON_HOST


def board_meter(text: str) -> str:
    """What spec.json says of the meter: itself if the board reads it, else `external`. Raises UsageError."""
    kind, where = parse(text)
    if kind in ON_HOST:
        return EXTERNAL
    return f"{kind}:{where}" if where else kind


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """--meter, as `args.meter`; None where it was not said."""
    group.add_argument(
        "--meter",
        metavar="KIND[:WHERE]",
        default=None,
        help=f"what measures energy: on the board {', '.join(ON_BOARD)}; on this machine, while it waits, "
        f"{', '.join(ON_PORT)} with a port, as in um25c:/dev/rfcomm0, or {', '.join(IN_KERNEL)} (default: auto)",
    )


def check(texts: Sequence[str], *, is_waiting: bool, objectives: Sequence[str] = ()) -> None:
    """Refuse what cannot be, before a board is asked: one meter per board in `texts`. Raises UsageError."""
    here = [text for text in texts if is_on_host(text)]
    if not here:
        return
    twice = [text for text in here if here.count(text) > 1]
    if twice:
        raise UsageError(
            f"--meter {twice[0]}: one meter measures one board, but {here.count(twice[0])} are chosen: narrow "
            "them with --host or --limit, or give each its own power.kind and power.port in the inventory"
        )
    if not is_waiting:
        raise UsageError(f"--meter {here[0]} is read by this machine, so the run must be waited for: add --wait")
    if ENERGY in objectives:
        raise UsageError(
            f"--meter {here[0]} is read by this machine, so {ENERGY} is known only afterwards and cannot steer the "
            "search on the board: leave it out of --objectives; the report shows it"
        )


def open_meter(text: str) -> Meter:
    """Open a meter of this machine; `host-` of KIND[:WHERE] may be left out. Raises MeterError or UsageError."""
    kind, where = text.partition(":")[0].strip().lower(), text.partition(":")[2]
    if kind not in ("powerz", "ina"):
        kind, where = parse(text)
    if kind in UM_KINDS:
        from edge_lts_host.meters.um import UmMeter

        return UmMeter(where, kind)
    if kind == "tc66c":
        from edge_lts_host.meters.tc66c import Tc66c

        return Tc66c(where)
    if kind == "yzx":
        from edge_lts_host.meters.yzx import Yzx

        return Yzx(where)
    if kind.removeprefix("host-") in ("powerz", "ina"):
        from edge_lts_host.meters.hwmon import HwmonMeter

        return HwmonMeter(kind.removeprefix("host-"), where)
    raise UsageError(f"--meter: {kind} is read by the board, not by this machine")


def try_meter(text: str) -> tuple[str, Reading]:
    """Open, read once, close: (what it is, its reading); a label that is wrong is put right in words.

    Raises MeterError: better before a run of hours than after it.
    """
    with open_meter(text) as meter:
        reading = meter.read()
        said = parse(text)[0] if meter.kind in ON_PORT else meter.kind
        other = (
            "" if said not in UM_KINDS or said == meter.model.lower() else f" (not a {said.upper()}: its scale is used)"
        )
        return f"{meter.name}{other}", reading


@contextlib.contextmanager
def recording(text: str | None, folder: Path, warn: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Record the meter into `folder`/meter.jsonl while the block runs; nothing for None or a meter of the board's.

    Never raises for the meter's sake: troubles go to the log, and the first of each series to `warn`.
    """
    if text is None or not is_on_host(text):
        yield
        return
    from edge_lts_host.meters.recorder import Recorder

    recorder = Recorder(text, folder, warn=warn)
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()

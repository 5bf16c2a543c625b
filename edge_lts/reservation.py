"""A board that somebody keeps for themselves: `reserved.json` in the device root, written by `edge-lts devices lock`.

While it is there, runs of others are refused; one that had begun before goes on. Who asks stands in the environment.
This keeps colleagues out of each other's way, not intruders out: whoever may log in may remove the file.
"""

import calendar
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_lts.errors import LockedError
from edge_lts.job import boot_id, is_locked, read_holder
from edge_lts.runfolder import BOARD_LOCK

OWNER_VARIABLE = "EDGE_LTS_OWNER"
RESERVED = "reserved.json"


def owner() -> "str | None":
    """USER@WORKSTATION of whoever started this process; None when it was not said."""
    return os.environ.get(OWNER_VARIABLE) or None


def age_s(record: Mapping[str, Any]) -> "float | None":
    """Seconds since the record's `since`; after a reboot by the wall clock, which may be wrong without an RTC."""
    since = record.get("since_s")
    if record.get("boot_id") == boot_id() and isinstance(since, (int, float)):
        return max(0.0, round(time.monotonic() - since, 1))
    try:
        begun = calendar.timegm(time.strptime(str(record.get("since")), "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return None
    return max(0.0, round(time.time() - begun, 1))


def claims(root: Path) -> dict[str, Any]:
    """Who has the board: `run` that holds its lock now, `reserved` for whom; each None or a record with `age_s`."""
    running = read_holder(root / BOARD_LOCK) if is_locked(root / BOARD_LOCK) else None
    reserved = read_holder(root / RESERVED) if (root / RESERVED).exists() else None
    found = {"run": running, "reserved": reserved}
    return {name: None if one is None else {**one, "age_s": age_s(one)} for name, one in found.items()}


def check(root: Path) -> None:
    """Raises LockedError when the board is reserved for somebody else. A file that cannot be read counts as one."""
    if not (root / RESERVED).exists():
        return
    record = read_holder(root / RESERVED)
    holder, age = record.get("owner"), age_s(record)
    if holder is None or holder != owner():
        since = "" if age is None else f", for {age:.0f} s"
        note = f" ({record['note']!s:.200})" if record.get("note") else ""
        raise LockedError(
            f"this board ({root}) is locked by {holder or 'somebody'!s:.100}{since}{note}; "
            "ask them, or: edge-lts devices unlock --force"
        )

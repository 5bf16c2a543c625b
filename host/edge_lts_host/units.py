"""Durations and sizes as people write them, to SI base units. The way back, for display, is in report/render.py.

Durations: `3h`, `90m`, `1h30m`, `45s`, `0.5h`, `2d`, `250ms`, or bare seconds (`10800`). Sizes: `512MiB`, `1GB`,
`400M`, or bare bytes. `KiB MiB GiB TiB` are powers of 1024, `kB MB GB TB` powers of 1000, and a bare `K M G T` is a
power of 1024, as in ulimit, systemd and docker. Errors are UsageErrors that begin with the flag's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from edge_lts_host.errors import UsageError

MAX_DURATION_S = 366 * 86400.0
MAX_BYTES = 1 << 60

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:d|h|min|ms|m|s))+", re.ASCII)
_PART = re.compile(rf"({_NUMBER})(d|h|min|ms|m|s)", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s?([kKMGT]?)(iB|B|)", re.ASCII)
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_duration(text: str, name: str = "duration") -> float:
    """Seconds, positive and at most a year. `name` is the flag or key that messages begin with."""
    stripped = text.strip()
    if re.fullmatch(_NUMBER, stripped, re.ASCII):
        seconds = float(stripped)
    elif _DURATION.fullmatch(stripped):
        parts = _PART.findall(stripped)
        units = [_SECONDS[unit] for _, unit in parts]
        if any(left <= right for left, right in pairwise(units)):
            raise UsageError(f"{name}: {text!r:.40} must name each unit once, the largest first, as in 1h30m")
        seconds = sum(float(number) * unit for (number, _), unit in zip(parts, units, strict=True))
    else:
        raise UsageError(f"{name}: {text!r:.40} is no duration; write 3h, 90m, 1h30m, 45s or seconds")
    if not 0 < seconds <= MAX_DURATION_S:
        raise UsageError(f"{name}: {text!r:.40} must be more than zero and at most 366d")
    return seconds


def parse_bytes(text: str, name: str = "size") -> int:
    """Bytes, positive and a whole number. `name` is the flag or key that messages begin with."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] == "k" and match[3] == "iB") or (match[2] == "" and match[3] == "iB"):
        raise UsageError(f"{name}: {text!r:.40} is no size; write 512MiB, 1GB, 400M (the same as 400MiB) or bytes")
    base = 1000 if match[2] and match[3] == "B" else 1024
    n_bytes: float = float(match[1]) * float(base ** _POWER[match[2]])
    if not 1 <= n_bytes <= MAX_BYTES:
        raise UsageError(f"{name}: {text!r:.40} must be at least one byte and at most an exbibyte")
    return round(n_bytes)


def duration(name: str) -> Callable[[str], float]:
    """`parse_duration` for argparse's `type=`, with the flag's name in its messages."""
    return lambda text: parse_duration(text, name)


def size(name: str) -> Callable[[str], int]:
    """`parse_bytes` for argparse's `type=`, with the flag's name in its messages."""
    return lambda text: parse_bytes(text, name)

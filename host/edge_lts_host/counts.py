"""Numbers of parameters as people write them (6M, 0.5G, 6000000; they have no unit, so not in units.py), and which of
many things to show where there is room for few."""

from __future__ import annotations

import re
from collections.abc import Callable

from edge_lts_host.errors import UsageError

_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKMG]?)", re.ASCII)
_FACTORS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def parse_count(text: str, name: str) -> int:
    """A number of parameters: 6000000, 6M or 0.5G."""
    match = _COUNT.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise UsageError(f"{name}: {text!r:.40} is no number of parameters; write 6M or 6000000")
    return round(float(match[1]) * _FACTORS[match[2]])


def evenly(n_there: int, n: int) -> list[int]:
    """At most `n` of the places 0 to `n_there` - 1, ascending: evenly spread, both ends included."""
    if n_there <= n:
        return list(range(n_there))
    return sorted({round((n_there - 1) * index / max(1, n - 1)) for index in range(n)})


def count(name: str) -> Callable[[str], int]:
    """`parse_count` for argparse's `type=`, with the flag's name in its messages."""
    return lambda text: parse_count(text, name)

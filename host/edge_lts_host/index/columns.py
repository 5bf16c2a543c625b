"""What is indexed of an evaluation, as columns of numbers, and the arithmetic on whole columns.

A row is one process. Times are in seconds as the board measured them (in a pool: at the pool's speed), NaN is "not
measured", or of `quality` "no proxy". `slowdown_*` are worked out from the anchors of the whole run as `edge_lts.speed`
does it for one process after the other; a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from edge_lts.objectives import OBJECTIVES, QUALITY
from edge_lts.records import ASIDE, NOTES, TAINTS, Purpose
from edge_lts.speed import ANCHORS, EXPONENTS, MIN_PROCESSES, MOST_SPREADS, trust_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Column = NDArray[Any]
    Numbers = NDArray[np.float64]

MEASURED = tuple(name for name, objective in OBJECTIVES.items() if objective.is_measured)
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
FLAGS = (*TAINTS, *NOTES)
SLOWDOWNS = tuple(f"slowdown_{name}" for name in EXPONENTS)
# What a row is made of, in the order of the tuples of `lines`: name, type. The derived columns come behind.
FIELDS: tuple[tuple[str, str], ...] = (
    ("arch", "<u8"),  # the arch_id as a number
    ("offset", "<u8"),  # of the record in its ledger, in bytes
    ("purpose", "u1"),
    ("flags", "<u4"),  # a bit for each of FLAGS
    ("spent_s", "<f8"),
    ("decoder_params", "<f8"),
    (QUALITY, "<f8"),  # the lower bound, by the proxy of its run
    *(
        field
        for name in MEASURED
        for field in ((name, "<f8"), (f"{name}_low", "<f8"), (f"{name}_high", "<f8"), (f"{name}_n", "<u4"))
    ),
    *((f"anchor_{name}", "<f8") for name in ANCHORS),
)
DERIVED = tuple((name, "<f8") for name in SLOWDOWNS)
TYPES: Mapping[str, str] = dict((*FIELDS, *DERIVED))
# A database made with other columns or other meanings is thrown away and made again.
LAYOUT = repr((1, FIELDS, DERIVED, PURPOSES, FLAGS))


def to_columns(rows: Sequence[tuple[Any, ...]]) -> dict[str, Column]:
    """Rows of `lines` as columns, without the derived ones."""
    import numpy as np

    table = np.array(rows, dtype=list(FIELDS))
    return {name: np.ascontiguousarray(table[name]) for name, _ in FIELDS}


def joined(parts: Sequence[Mapping[str, Column]], names: Sequence[str]) -> dict[str, Column]:
    """The columns `names` of several parts one behind the other; empty ones where there is no part."""
    import numpy as np

    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, TYPES[name]) for name in names
    }


def slowdowns(columns: Mapping[str, Column]) -> dict[str, Numbers]:
    """For each row how much slower than usual in this run its latencies were; 1 where that cannot be told.

    The run's usual speed comes from the processes of its search, as with `Frontier.add`.
    """
    import numpy as np

    counted = ~np.isin(columns["purpose"], [PURPOSES.index(name) for name in ASIDE])
    logs: dict[str, Numbers] = {}
    usual: dict[str, tuple[float, float, float]] = {}
    for name in ANCHORS:
        with np.errstate(invalid="ignore", divide="ignore"):
            logs[name] = np.log(columns[f"anchor_{name}"])
        seen = logs[name][counted & ~np.isnan(logs[name])]
        if len(seen) >= MIN_PROCESSES:
            middle = float(np.median(seen))
            spread, trust = trust_of(float(np.median(np.abs(seen - middle))))
            usual[name] = (middle, trust, MOST_SPREADS * spread)
    found = {}
    for objective, exponents in EXPONENTS.items():
        total = np.zeros(len(columns["arch"]))
        for name, exponent in exponents.items():
            if name in usual:
                middle, trust, limit = usual[name]
                step = exponent * trust * np.clip(logs[name] - middle, -limit, limit)
                total += np.where(np.isnan(step), 0.0, step)
        found[f"slowdown_{objective}"] = np.exp(total)
    return found


def group_medians(inverse: Column, n_groups: int, values: Numbers) -> Numbers:
    """The median of the values of each group, NaN left out; `inverse` (n,) is the group of each row."""
    import numpy as np

    known = ~np.isnan(values)
    inverse, values = inverse[known], values[known]
    counts = np.bincount(inverse, minlength=n_groups)
    found = np.full(n_groups, np.nan)
    found[inverse] = values  # right where a group has one row; the rest follows
    several = counts[inverse] > 1
    groups, own = inverse[several], values[several]
    order = np.lexsort((own, groups))
    groups, own = groups[order], own[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    n = np.diff(starts, append=len(groups))
    found[groups[starts]] = (own[starts + (n - 1) // 2] + own[starts + n // 2]) / 2
    return found


def flag_names(bits: int) -> tuple[str, ...]:
    return tuple(name for index, name in enumerate(FLAGS) if bits >> index & 1)


def arch_id_of(number: int) -> str:
    return f"{int(number):012x}"

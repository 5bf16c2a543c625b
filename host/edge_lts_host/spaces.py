"""Search spaces as TOML: finding, reading and checking them, and choosing one when the user names none.

`--space NAME|FILE`: a name is looked up in `$XDG_CONFIG_HOME/edge-lts/spaces/`, then built-in; anything with a `/` or
that ends in `.toml` is a file. The board never sees TOML: it gets what `load_space` returns. Errors are SpaceErrors
naming the file and the key.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.errors import SpaceError
from edge_lts_host.errors import UsageError
from edge_lts_host.toml_files import BadToml, builtin_dir, config_dir, read_toml

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts.counting import ParameterCount
    from edge_lts.records import Protocol

# What `default_space` assumes of a board: a slow one, a Raspberry Pi 4 in float32. Guesses that only choose between our
# own spaces.
ASSUMED_FLOPS = 10e9
ASSUMED_BYTES_PER_S = 3e9
ASSUMED_OVERHEAD_S = 0.6
EMULATION_FACTOR = 30.0
CONFIRM_FRACTION = 0.2  # of a budget, kept for measuring the frontier's members again
MIN_CANDIDATES = 30
N_DRAWN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceFile:
    """A space that can be named; `origin` is `built-in` or the file."""

    name: str
    path: Path
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceChoice:
    """What `default_space` chose, and why in words."""

    name: str
    space: dict[str, Any]
    origin: str
    reason: str


def list_spaces(environ: Mapping[str, str] = os.environ) -> dict[str, SpaceFile]:
    """Spaces by name; the user's own come before ours of the same name."""
    found: dict[str, SpaceFile] = {}
    for folder, is_builtin in ((config_dir(environ) / "spaces", False), (builtin_dir("spaces"), True)):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(
                path.stem, SpaceFile(name=path.stem, path=path, origin="built-in" if is_builtin else str(path))
            )
    return dict(sorted(found.items()))


def load_space(name_or_path: str, environ: Mapping[str, str] = os.environ) -> tuple[dict[str, Any], str]:
    """(the checked space as JSON, where it came from). Raises UsageError for an unknown name, else SpaceError."""
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return read_space(Path(name_or_path)), name_or_path
    spaces = list_spaces(environ)
    if name_or_path not in spaces:
        known = ", ".join(spaces) or "none"
        raise UsageError(
            f"--space: no space is called {name_or_path!r:.80}; known: {known}; a file's name ends in .toml"
        )
    file = spaces[name_or_path]
    return read_space(file.path), file.origin


def read_space(path: Path) -> dict[str, Any]:
    """The file as JSON, checked against every rule. Imports numpy. Raises SpaceError, which begins with the file."""
    try:
        data = read_toml(path)
    except BadToml as exc:
        raise SpaceError(f"{path}: {exc}") from exc
    from edge_lts.space import SearchSpace

    try:
        _check_json("", data)
        SearchSpace.from_json(data)
    except SpaceError as exc:
        raise SpaceError(f"{path}: {exc}") from exc
    return data


def _check_json(key: str, value: object) -> None:
    """TOML has dates, NaN and infinity; JSON has not."""
    if isinstance(value, Mapping):
        for inner, inner_value in value.items():
            _check_json(f"{key}.{inner}" if key else inner, inner_value)
    elif isinstance(value, list):
        for inner_value in value:
            _check_json(key, inner_value)
    elif not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise SpaceError(f"{key:.80} must be a finite number, text, true, false, a list or a table, not {value}")


def seconds_per_candidate(decoder_params: int, head_params: int, protocol: Protocol) -> float:
    """Crude time that measuring one candidate takes on a slow board; see docs/search.md.

    Prefill is bound by arithmetic: 2 operations per decoder parameter and prompt token. Decoding is bound by memory: 4
    bytes of each decoder and head parameter per token. Each is done `warmup` times and for half of the samples that
    sampling may take, on top of a fixed cost per process.
    """
    n_prefill = protocol.warmup + protocol.prefill_samples // 2
    n_decode = protocol.warmup + protocol.decode_samples // 2
    head_positions = protocol.prompt_tokens if protocol.logits == "all" else 1
    prefill_s = 2.0 * (decoder_params * protocol.prompt_tokens + head_params * head_positions) / ASSUMED_FLOPS
    decode_s = max(4.0 * (decoder_params + head_params) / ASSUMED_BYTES_PER_S, protocol.min_sample_s)
    return ASSUMED_OVERHEAD_S + n_prefill * prefill_s + n_decode * decode_s


def default_space(
    budget_s: float,
    memory_bytes: int | None,
    *,
    protocol: Protocol | None = None,
    is_emulated: bool = False,
) -> SpaceChoice:
    """The largest built-in space (by its `rank`) of which at least 30 candidates fit the budget and the memory.

    `memory_bytes` is what a candidate may take, None for unknown. If no space has 30, the smallest is taken.
    """
    from edge_lts.records import Protocol as ProtocolValue

    rules = protocol if protocol is not None else ProtocolValue()
    ranked = sorted(_builtin_ranked(), key=lambda item: item[0], reverse=True)
    if not ranked:
        raise UsageError("--space: none of the built-in spaces has a rank; name one, or a file")
    choice = None
    for _, file, data in ranked:
        fitting = candidates_that_fit(data, budget_s, memory_bytes, rules, is_emulated=is_emulated)
        if fitting is None:
            continue
        n_fit, median_s = fitting
        choice = SpaceChoice(
            name=file.name,
            space=data,
            origin=file.origin,
            reason=f"about {n_fit} of its candidates fit the budget, at a guessed {median_s:.2g} s each",
        )
        if n_fit >= MIN_CANDIDATES:
            return choice
    if choice is None:
        raise SpaceError(
            f"memory: no candidate of any built-in space fits {memory_bytes} bytes; use a board with more memory"
        )
    return choice


def candidates_that_fit(
    data: Mapping[str, Any], budget_s: float, memory_bytes: int | None, protocol: Protocol, *, is_emulated: bool
) -> tuple[int, float] | None:
    """(how many candidates of a space a budget has room for, guessed seconds of each); None if none fits the memory.

    The search's share of the budget over the median `seconds_per_candidate` of 64 candidates drawn with a fixed seed
    from the space cut to `memory_bytes`.
    """
    from edge_lts.space import SearchSpace

    try:
        space = SearchSpace.from_json(data)
        if memory_bytes is not None:
            space = space.restricted(max_weight_bytes=memory_bytes, precision=protocol.precision)
    except SpaceError:
        return None
    median_s = _median_seconds(space, protocol) * (EMULATION_FACTOR if is_emulated else 1.0)
    return int(budget_s * (1 - CONFIRM_FRACTION) / median_s), median_s


def _builtin_ranked() -> list[tuple[int, SpaceFile, dict[str, Any]]]:
    found = []
    for path in sorted(builtin_dir("spaces").glob("*.toml")):
        data = read_space(path)
        rank = data.get("rank")
        if isinstance(rank, int):
            found.append((rank, SpaceFile(name=path.stem, path=path, origin="built-in"), data))
    return found


def _median_seconds(space: Any, protocol: Protocol) -> float:
    import numpy as np

    rng = np.random.default_rng(1)
    counts = [space.sample(rng).parameter_count for _ in range(N_DRAWN)]
    return float(np.median([_seconds(count, protocol) for count in counts]))


def seconds_of(arch: Architecture, protocol: Protocol) -> float:
    """`seconds_per_candidate` of one architecture."""
    return _seconds(arch.parameter_count, protocol)


def _seconds(count: ParameterCount, protocol: Protocol) -> float:
    """A tied head is the embedding's table: that is what a token reads of it."""
    return seconds_per_candidate(count.decoder, count.head or count.embedding, protocol)

"""From the words of a command line to a RunSpec for each board: what `run` does before anything is started.

The target gives what its class implies (threads, headroom, emulation); the command line overrides it. Everything is
checked here, before a board is asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from edge_lts.objectives import DEFAULT_OBJECTIVES, Constraint, resolve_objectives
from edge_lts.records import Protocol, RunSpec
from edge_lts_host import spaces
from edge_lts_host.errors import UsageError
from edge_lts_host.hosts import HostEntry
from edge_lts_host.targets import Target

DEFAULT_TIMEOUT_S = 600.0
EMULATED_TIMEOUT_S = 3600.0


def constraints(args: argparse.Namespace) -> tuple[Constraint, ...]:
    """The bounds that the command line sets, one Constraint per objective. Raises SpecError for an impossible pair."""
    bounds = (
        ("decoder_params", args.min_decoder_params, args.max_decoder_params),
        ("decode_latency_s", None, args.max_decode_latency),
        ("prefill_latency_s", None, args.max_prefill_latency),
        ("peak_memory_bytes", None, args.max_peak_memory),
    )
    return tuple(
        Constraint(name=name, minimum=low, maximum=high)
        for name, low, high in bounds
        if low is not None or high is not None
    )


def protocol(args: argparse.Namespace, target: Target | None) -> Protocol:
    """--protocol with what the command line and the target change in it."""
    changes: dict[str, Any] = {}
    for name in ("prompt_tokens", "context_tokens", "mem_len", "threads"):
        value = getattr(args, name)
        if value is not None:
            changes[name] = value
    if target is not None and target.threads and args.protocol == "default":
        changes.setdefault("threads", target.threads)
    return Protocol.named(args.protocol, **changes)


def objectives(text: str | None) -> tuple[str, ...]:
    names = DEFAULT_OBJECTIVES if text is None else tuple(name.strip() for name in text.split(","))
    resolve_objectives(names)
    return tuple(names)


def memory_bytes(entry: HostEntry, target: Target) -> int | None:
    """What a candidate may take on that board, as far as known here."""
    if entry.is_local:
        from edge_lts.device import memory_available_bytes

        available = memory_available_bytes()
    else:
        device = entry.device or {}
        available = device.get("memory_available_bytes") or device.get("memory_total_bytes")
    return int(available * (1 - target.memory_headroom)) if isinstance(available, int) else None


def is_emulated(entry: HostEntry, target: Target) -> bool:
    return target.is_emulated or bool((entry.device or {}).get("is_emulated"))


def make_spec(
    args: argparse.Namespace, entry: HostEntry, target: Target, run_id: str, say: Callable[[str], None]
) -> RunSpec:
    """The resolved spec of one board. Raises SpecError, SpaceError or UsageError."""
    rules = protocol(args, target)
    emulated = is_emulated(entry, target)
    if args.space is not None:
        space, _ = spaces.load_space(args.space)
    else:
        choice = spaces.default_space(args.budget, memory_bytes(entry, target), protocol=rules, is_emulated=emulated)
        space = choice.space
        say(f"{entry.name}: searching the space {choice.name}: {choice.reason} (--space NAME|FILE to choose)")
    timeout_s = args.candidate_timeout or (EMULATED_TIMEOUT_S if emulated else DEFAULT_TIMEOUT_S)
    return RunSpec(
        run_id=run_id,
        space=space,
        budget_s=args.budget,
        target=target.name,
        seed=args.seed,
        strategy=args.strategy,
        objectives=objectives(args.objectives),
        constraints=constraints(args),
        protocol=rules,
        max_candidates=args.max_candidates,
        candidate_timeout_s=timeout_s,
        memory_headroom=target.memory_headroom,
        is_emulated=emulated,
    )


def target_of(entry: HostEntry, targets: Mapping[str, Target]) -> Target:
    """The target that a host was deployed as. Raises UsageError when its file is gone."""
    if entry.target is None or entry.target not in targets:
        raise UsageError(
            f"{entry.name} was deployed as {entry.target}, a target that is no longer there; deploy to it again"
        )
    return targets[entry.target]

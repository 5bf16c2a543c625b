"""From the words of a command line to a RunSpec for each board: what `run` does before anything is started.

The target gives what its class implies (threads, headroom, emulation); the command line overrides it. Everything is
checked here, before a board is asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_lts.baselines import Baseline
from edge_lts.errors import SpecError
from edge_lts.objectives import (
    DEFAULT_OBJECTIVES,
    PROXY_OBJECTIVES,
    QUALITY,
    CommandObjective,
    Constraint,
    resolve_objectives,
)
from edge_lts.records import Protocol, RunSpec
from edge_lts_host import meters, spaces
from edge_lts_host.errors import UsageError
from edge_lts_host.hosts import HostEntry
from edge_lts_host.proxy_files import load_proxy
from edge_lts_host.targets import Target

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

DEFAULT_TIMEOUT_S = 600.0
EMULATED_TIMEOUT_S = 3600.0
GUIDED_LEAST = 12  # candidates, below which a design makes no sense


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
    for name in ("prompt_tokens", "context_tokens", "mem_len", "threads", "precision", "heat"):
        value = getattr(args, name)
        if value is not None:
            changes[name] = value
    if target is not None and target.threads and args.protocol == "default":
        changes.setdefault("threads", target.threads)
    return Protocol.named(args.protocol, **changes)


def meter(args: argparse.Namespace, entry: HostEntry) -> str:
    """--meter, else what the inventory says of that board, else whatever the board has."""
    return str(args.meter or entry.extra.get("meter") or "auto")


def commands(texts: Sequence[str] | None) -> tuple[CommandObjective, ...]:
    """The objectives that `--objective-command NAME=min:COMMAND` defines. Raises UsageError or SpecError."""
    from edge_lts_host.report.pages import CSV_KEYS

    found = []
    for text in texts or ():
        name, _, rest = text.partition("=")
        direction, colon, command = rest.partition(":")
        if direction not in ("min", "max") or not colon:
            raise UsageError(f"--objective-command: must be NAME=min:COMMAND or NAME=max:COMMAND, not {text!r:.80}")
        one = CommandObjective(name=name, direction="min" if direction == "min" else "max", command=command)
        if one.name in CSV_KEYS:
            raise UsageError(f"--objective-command: reports have another column {one.name}; choose another name")
        found.append(one)
    return tuple(found)


def objectives(text: str | None, own: Sequence[CommandObjective] = (), *, has_proxy: bool = False) -> tuple[str, ...]:
    """Names of the searched objectives: those of --objectives, or the usual ones, and those that `own` define."""
    usual = PROXY_OBJECTIVES if has_proxy else DEFAULT_OBJECTIVES
    names = list(usual) if text is None else [name.strip() for name in text.split(",")]
    names += [command.name for command in own if command.name not in names]
    resolve_objectives(names, own)
    return tuple(names)


def strategy(
    args: argparse.Namespace,
    own: Sequence[CommandObjective],
    say: Callable[[str], None],
    *,
    searched: Sequence[str] = (),
    space: Mapping[str, Any] | None = None,
) -> str:
    """--strategy; without it guided, or evolution where guided cannot search. Raises UsageError for what cannot be."""
    chosen: str | None = args.strategy
    reason = ""
    if own:
        reason = f"cannot predict {own[0].name}, whose values come from a command"
    elif "energy_j_per_token" in searched:
        reason = "cannot predict energy_j_per_token, which is no sum over layers"
    elif ((space or {}).get("genes") or {}).get("precision"):
        reason = "models one precision, and in this space it is a gene"
    if reason and chosen is None:
        say(f"--strategy evolution: guided {reason}")
        chosen = "evolution"
    chosen = chosen or "guided"
    if reason and chosen == "guided":
        raise UsageError(f"--strategy guided {reason}: use --strategy evolution or random")
    if args.widen and chosen != "guided":
        raise UsageError(f"--widen is for --strategy guided, not for {chosen}")
    return chosen


def expected_candidates(
    args: argparse.Namespace,
    space: dict[str, Any],
    memory: int | None,
    rules: Protocol,
    *,
    emulated: bool,
    budget_s: float | None = None,
) -> int | None:
    """How many candidates the run will measure: --max-candidates, else the guess that `default_space` makes too.

    None where no member of the space is known to fit the memory: the board knows better, and says so.
    """
    if args.max_candidates is not None:
        return int(args.max_candidates)
    budget_s = args.budget if budget_s is None else budget_s
    fitting = spaces.candidates_that_fit(space, budget_s, memory, rules, is_emulated=emulated)
    return None if fitting is None else fitting[0]


def guided_settings(args: argparse.Namespace, n_expected: int | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Settings of guided search; says so when it is to learn the board from fewer candidates than it needs."""
    settings: dict[str, Any] = {"widen": True} if args.widen else {}
    from edge_lts.search.guided import GuidedSettings

    usual = GuidedSettings()
    needs = usual.design + usual.batch + 1  # the design and one round
    if n_expected is None or n_expected >= 2 * needs:
        return settings
    settings["expected_candidates"] = max(1, n_expected)
    if n_expected < needs:
        does = (
            f"its design shrinks to {GuidedSettings.from_json(settings).design_size}"
            if n_expected >= GUIDED_LEAST
            else "use --strategy evolution, a smaller --space or more --budget"
        )
        say(f"about {n_expected} candidates are expected, but guided search learns a board from {needs}: {does}")
    return settings


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
    own = commands(args.objective_command)
    proxy = None if args.proxy is None else load_proxy(args.proxy)
    searched = objectives(args.objectives, own, has_proxy=proxy is not None)
    memory = memory_bytes(entry, target)
    budget_s = budget_besides(args)
    if args.space is not None:
        space, _ = spaces.load_space(args.space)
    else:
        choice = spaces.default_space(budget_s, memory, protocol=rules, is_emulated=emulated)
        space = choice.space
        say(f"{entry.name}: searching the space {choice.name}: {choice.reason} (--space NAME|FILE to choose)")
    chosen = strategy(args, own, lambda text: say(f"{entry.name}: {text}"), searched=searched, space=space)
    settings: dict[str, Any] = {}
    if chosen == "guided":
        n_expected = expected_candidates(args, space, memory, rules, emulated=emulated, budget_s=budget_s)
        settings = guided_settings(args, n_expected, lambda text: say(f"{entry.name}: {text}"))
    timeout_s = args.candidate_timeout or (EMULATED_TIMEOUT_S if emulated else DEFAULT_TIMEOUT_S)
    spec = RunSpec(
        run_id=run_id,
        space=space,
        budget_s=args.budget,
        target=target.name,
        seed=args.seed,
        strategy=chosen,
        settings=settings,
        objectives=searched,
        constraints=constraints(args),
        commands=own,
        protocol=rules,
        max_candidates=args.max_candidates,
        confirm_fraction=spaces.CONFIRM_FRACTION,
        candidate_timeout_s=timeout_s,
        memory_headroom=target.memory_headroom,
        is_emulated=emulated,
        meter=meters.board_meter(meter(args, entry)),
        is_tuned=args.tune,
        baselines=beside(args, space, rules, lambda text: say(f"{entry.name}: {text}"), emulated=emulated),
        proxy=None if proxy is None else proxy.to_json(),
    )
    if proxy is not None:
        check_proxy(proxy, spec, args.proxy, lambda text: say(f"{entry.name}: {text}"))
    return spec


def check_proxy(proxy: CalibratedProxy, spec: RunSpec, name: str, say: Callable[[str], None]) -> None:
    """Whether the proxy can judge what the run builds. Raises UsageError; says what is doubtful."""
    from edge_lts.preparation import load_proxy as load

    try:
        load(spec)
    except SpecError as exc:
        raise UsageError(f"--proxy {name}: {exc}") from exc
    if proxy.backbone is None:
        say(f"{name} does not say which backbone its labels had: it is taken to be that of the space")
    if QUALITY not in spec.objectives:
        say(f"{QUALITY} is recorded, but not searched: it is not among the --objectives")


def budget_besides(args: argparse.Namespace) -> float:
    """The budget of a run without baselines that would have as much time to search, seconds."""
    if not args.baseline:
        return float(args.budget)
    from edge_lts.baselining import SHARE

    return float(args.budget * (1 - SHARE / (1 - spaces.CONFIRM_FRACTION)))


def beside(
    args: argparse.Namespace, space: dict[str, Any], rules: Protocol, say: Callable[[str], None], *, emulated: bool
) -> tuple[Baseline, ...]:
    """What --baseline asks for; says what that takes. Raises UsageError."""
    if not args.baseline:
        return ()
    from edge_lts.baselining import SHARE
    from edge_lts_host import baselines
    from edge_lts_host.report import render

    found = baselines.resolve(args.baseline, space)
    slowness = spaces.EMULATION_FACTOR if emulated else 1.0
    for line in baselines.describe(
        found, space, lambda arch: slowness * spaces.seconds_of(arch, rules), SHARE * args.budget, render.duration
    ):
        say(line)
    return found


def target_of(entry: HostEntry, targets: Mapping[str, Target]) -> Target:
    """The target that a host was deployed as. Raises UsageError when its file is gone."""
    if entry.target is None or entry.target not in targets:
        raise UsageError(
            f"{entry.name} was deployed as {entry.target}, a target that is no longer there; deploy to it again"
        )
    return targets[entry.target]

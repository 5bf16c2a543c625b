"""What a board gets: its target, and where its torch comes from. Decides; asks, fetches and installs nothing.

Torch is pushed as locked wheels, or from a directory that the user names; or the board's own Python has it; or it is
fetched by the board itself. Which of these, and why not another, is settled here before anything moves.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_lts.records import DeviceInfo
from edge_lts_host import wheelhouse
from edge_lts_host.board_facts import BoardFacts
from edge_lts_host.errors import PreflightError
from edge_lts_host.targets import Target, most_specific
from edge_lts_host.wheelhouse import WheelSet

DEFAULT_ROOT = "~/.local/share/edge-lts"
_ONLINE_TORCH = "2.9.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says about a deploy; the same for all its boards."""

    root: str = DEFAULT_ROOT
    python: str | None = None
    target: Target | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    wheelhouse: Path | None = None
    is_online: bool = False
    torch_index: str | None = None
    is_dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where torch comes from: the board's own Python (`site` None), pushed `wheels`, or fetched `requirements`."""

    site: str | None
    torch: str
    lock_id: str | None = None
    wheels: WheelSet | None = None
    requirements: tuple[str, ...] = ()
    is_there: bool = False

    @property
    def proof_key(self) -> str:
        """What a proof of torch was about: another environment has to be proved anew."""
        return f"{self.lock_id or 'own'}:{self.torch}"


def choose_target(facts: BoardFacts, options: Options) -> Target:
    """--target if it fits the board, else the most specific one that recognises it."""
    device = DeviceInfo.from_json(facts.device_json())
    if options.target is not None:
        if options.target.arch not in ("any", facts.wheel_machine):
            raise PreflightError(
                f"--target {options.target.name} is for {options.target.arch}, the board is {facts.wheel_machine}",
                "leave --target out to have it recognised",
            )
        return options.target
    found = most_specific(options.targets, device)
    if found is None:
        raise PreflightError(
            f"no target recognises this board ({facts.board_model or facts.wheel_machine})",
            "name one: --target NAME (edge-lts targets lists them)",
        )
    return found


def choose_environment(facts: BoardFacts, target: Target, options: Options) -> Environment:
    """Where torch comes from on this board; installs and asks nothing. Raises PreflightError or WheelhouseError."""
    own = _own_environment(facts, options)
    if own is not None:
        return own
    assert facts.glibc is not None, "checked by check_userland"
    if options.is_online:
        return _online_environment(facts, target, options)
    pin = target.torch if options.wheelhouse is None else None
    wheels = wheelhouse.choose_set(
        facts.python_tag, facts.wheel_machine, facts.glibc, wheelhouse=options.wheelhouse, torch_pin=pin
    )
    return Environment(
        site=posixpath.join(facts.root_path, "env", wheels.lock_id),
        torch=wheels.version("torch"),
        lock_id=wheels.lock_id,
        wheels=wheels,
        is_there=wheels.lock_id in facts.environments,
    )


def _own_environment(facts: BoardFacts, options: Options) -> Environment | None:
    """The board's Python itself, if it has torch and was named, or if no wheels are kept for such a machine."""
    if options.wheelhouse is not None or options.is_online:
        return None
    torch, numpy = facts.installed.get("torch"), facts.installed.get("numpy")
    if options.python is None and facts.wheel_machine == "aarch64":
        return None
    if torch is None or numpy is None:
        return None
    if not wheelhouse.is_torch_accepted(torch):
        if facts.wheel_machine == "aarch64":
            return None
        raise PreflightError(
            f"{facts.executable} there has torch {torch}; edge-lts needs torch{wheelhouse.TORCH_RANGE_TEXT}",
            "upgrade it, or name another with --python PATH",
        )
    return Environment(site=None, torch=torch, is_there=True)


def _online_environment(facts: BoardFacts, target: Target, options: Options) -> Environment:
    if facts.wheel_machine != "aarch64" and options.torch_index is None:
        raise PreflightError(
            f"--online on {facts.wheel_machine} would fetch a CUDA build of several gigabytes",
            "name an index of CPU builds: --torch-index URL",
        )
    locked = wheelhouse.locked_set(facts.python_tag, facts.wheel_machine)
    torch = target.torch or (locked.version("torch") if locked else _ONLINE_TORCH)
    others = ("numpy", "typing_extensions")
    names = [f"torch=={torch}", *(f"{name}=={locked.version(name)}" if locked else name for name in others)]
    text = "\n".join([facts.python_tag, facts.wheel_machine, options.torch_index or "", *names])
    lock_id = f"online-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Environment(
        site=posixpath.join(facts.root_path, "env", lock_id),
        torch=torch,
        lock_id=lock_id,
        requirements=tuple(names),
        is_there=lock_id in facts.environments,
    )

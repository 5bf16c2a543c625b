"""What a search optimises: named quantities with a unit and a direction, and bounds on them (design §4).

`quality` exists only in a run that brings a calibrated proxy (`proxy` of its spec). Besides the built-in objectives, a
run may bring its own: the number that a command of the user's prints on the board (edge_lts.user_command). It has no
unit that we know, and only strategies that assume nothing about an objective search it. Constraints are for the
built-in ones.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_lts.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A quantity with its unit (SI) and its direction. `is_measured` is false where a formula gives the value,
    `is_log` true where the value is a logarithm already: of any sign, and differences of it are what counts."""

    name: str
    unit: str
    direction: Literal["min", "max"]
    is_measured: bool
    is_log: bool = False

    def loss(self, value: float) -> float:
        """The value as something to minimise."""
        return value if self.direction == "min" else -value

    def log(self, value: float) -> float | None:
        """The value on a scale where equal factors are equal steps; None where it has no logarithm."""
        if self.is_log:
            return value
        return math.log(value) if value > 0 else None

    def from_log(self, value: float) -> float:
        """The inverse of `log`."""
        return value if self.is_log else math.exp(value)


QUALITY = "quality"  # predicted negative log-perplexity, of a proxy that trained models calibrated (edge_lts.proxies)
OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(name="decoder_params", unit="1", direction="max", is_measured=False),
        Objective(name=QUALITY, unit="1", direction="max", is_measured=False, is_log=True),
        Objective(name="decode_latency_s", unit="s", direction="min", is_measured=True),
        Objective(name="prefill_latency_s", unit="s", direction="min", is_measured=True),
        Objective(name="peak_memory_bytes", unit="B", direction="min", is_measured=True),
        Objective(name="energy_j_per_token", unit="J", direction="min", is_measured=True),
    )
}
_LARGEST = sys.float_info.max  # math.isfinite raises OverflowError for integers beyond it
DEFAULT_OBJECTIVES = ("decoder_params", "decode_latency_s", "peak_memory_bytes")
PROXY_OBJECTIVES = (QUALITY, *DEFAULT_OBJECTIVES[1:])  # of a run with a calibrated proxy
_COMMAND_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MAX_COMMAND_CHARS = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandObjective:
    """An objective that `command`, a line for /bin/sh on the board, prints for each candidate."""

    name: str
    direction: Literal["min", "max"]
    command: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _COMMAND_NAME.fullmatch(self.name):
            raise SpecError(
                f"{self.name!r:.80} cannot name an objective: a letter of a-z, then up to 39 of a-z, 0-9 and '_'"
            )
        if self.name in OBJECTIVES:
            raise SpecError(f"{self.name} is a built-in objective; call that of the command something else")
        if self.direction not in ("min", "max"):
            raise SpecError(f"the direction of {self.name} must be min or max, not {self.direction!r:.40}")
        if not isinstance(self.command, str) or not self.command.strip():
            raise SpecError(f"the command for {self.name} must be a line for /bin/sh, not {self.command!r:.40}")
        if "\0" in self.command or len(self.command) > _MAX_COMMAND_CHARS:
            raise SpecError(
                f"the command for {self.name} holds a NUL or over {_MAX_COMMAND_CHARS} characters; put it in a file"
            )

    @property
    def objective(self) -> Objective:
        return Objective(name=self.name, unit="1", direction=self.direction, is_measured=True)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "direction": self.direction, "command": self.command}

    @classmethod
    def from_json(cls, data: object) -> "CommandObjective":
        if not isinstance(data, Mapping) or set(data) != {"name", "direction", "command"}:
            raise SpecError(f"a command must be an object with name, direction and command, not {data!r:.80}")
        return cls(name=data["name"], direction=data["direction"], command=data["command"])


def resolve_objectives(names: object, commands: Sequence[CommandObjective] = ()) -> tuple[Objective, ...]:
    """Objectives by name, built-in or of `commands`; two to five of them, none twice. Raises SpecError naming the
    culprit, which may be a command that no name asks for."""
    known = {**OBJECTIVES, **{command.name: command.objective for command in commands}}
    if len(known) != len(OBJECTIVES) + len(commands):
        raise SpecError(f"two commands define one objective: {', '.join(command.name for command in commands)}")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise SpecError("objectives must be a list of names")
    for name in names:
        if name not in known:
            raise SpecError(f"unknown objective {name!r:.80}; known: {', '.join(known)}")
    for command in commands:
        if command.name not in names:
            raise SpecError(f"{command.name} has a command but is not among the objectives: {', '.join(names)}")
    if len(set(names)) != len(names):
        raise SpecError(f"objectives names one twice: {', '.join(names)}")
    if not 2 <= len(names) <= 5:
        raise SpecError(f"a search needs two to five objectives, not {len(names)}")
    return tuple(known[name] for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """An inclusive bound on an objective; None leaves that side open."""

    name: str
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in OBJECTIVES:
            raise SpecError(f"a constraint names the unknown objective {self.name!r:.80}")
        for bound in (self.minimum, self.maximum):
            if bound is not None and (
                isinstance(bound, bool) or not isinstance(bound, (int, float)) or not -_LARGEST <= bound <= _LARGEST
            ):
                raise SpecError(f"the bound on {self.name} must be a finite number, not {bound!r}")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise SpecError(f"the bounds on {self.name} exclude everything: {self.minimum} > {self.maximum}")

    def allows(self, value: float) -> bool:
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "minimum": self.minimum, "maximum": self.maximum}

    @classmethod
    def from_json(cls, data: object) -> "Constraint":
        if not isinstance(data, Mapping) or set(data) - {"name", "minimum", "maximum"} or "name" not in data:
            raise SpecError(f"a constraint must be an object with name, minimum and maximum, not {data!r:.80}")
        return cls(name=data["name"], minimum=data.get("minimum"), maximum=data.get("maximum"))

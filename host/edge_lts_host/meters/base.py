"""What every meter is to the rest: something with a name that gives one reading when asked.

    HostError
    └── MeterError                           1  a meter that is not there, says nothing or nonsense, or was unplugged

A meter's clock is this machine's monotonic clock at the moment the value was asked for (or, of a meter that speaks by
itself, arrived). What the meter smooths before it shows it is left to `alignment`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType

from edge_lts_host.errors import HostError, printable

BOARD_INPUT = "board-input"


class MeterError(HostError):
    """The meter at `where` gave no reading; `remedy` says what to look at."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(where, problem, remedy)
        self.where = printable(where)
        self.problem = printable(problem)
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the meter showed at `t_s` of this machine's monotonic clock. Power flows to the board: never negative."""

    t_s: float
    power_w: float
    voltage_v: float | None = None
    current_a: float | None = None


class Meter(ABC):
    """One meter, open. `kind` is what the user called it, `model` what it says of itself ("" before it spoke).

    `interval_s` is how often reading it says something new; 0 for a meter whose `read` waits for its next value.
    """

    kind: str
    interval_s: float = 0.5
    scope: str = BOARD_INPUT

    def __init__(self, where: str) -> None:
        self.where = where
        self.model = ""

    @property
    def name(self) -> str:
        """As `UM25C at /dev/rfcomm0`."""
        return f"{self.model or self.kind} at {self.where}"

    @abstractmethod
    def read(self) -> Reading:
        """One reading, within a few seconds. Raises MeterError; a later call may succeed if the meter recovers."""

    @abstractmethod
    def close(self) -> None:
        """Give the port back; may be called twice."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

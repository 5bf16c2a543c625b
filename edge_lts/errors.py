"""The errors of edge-lts, board side. Only the two `main()` functions catch the base class.

EdgeLtsError
├── ArchitectureError(ValueError)   an architecture that cannot exist, or a file that does not describe one
├── SpaceError(ValueError)          a search space that is malformed or has no member; names the rule
├── SpecError(ValueError)           a run specification or an objective that makes no sense
├── EvaluationError(kind)           a candidate that could not be measured; becomes a Failure
├── LedgerError                     a ledger that cannot be read or continued
│   └── DiskError                   the disk is full or takes nothing any more
├── LockedError                     another run holds this board or this run folder
├── Interrupted                     a measurement was cancelled, on purpose and from outside
└── HostError                       everything that only the workstation knows (edge_lts_host.errors)
"""

from typing import Literal

FailureKind = Literal["oom", "timeout", "nonfinite", "crash", "unsupported"]


class EdgeLtsError(Exception):
    """Base of every error that a user is shown; `exit_code` is what the process ends with."""

    exit_code = 1


class ArchitectureError(EdgeLtsError, ValueError):
    """The architecture is inconsistent, or the JSON does not describe one."""

    exit_code = 2


class SpaceError(EdgeLtsError, ValueError):
    """The search space is malformed or impossible; the message names the key or the rule."""

    exit_code = 2


class SpecError(EdgeLtsError, ValueError):
    """A run specification, protocol, objective or constraint is malformed."""

    exit_code = 2


class EvaluationError(EdgeLtsError):
    """A candidate could not be measured: out of memory, too slow, not finite, crashed or not supported here."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


class LedgerError(EdgeLtsError):
    """The ledger is damaged before its last line, or belongs to another run."""


class DiskError(LedgerError):
    """The board's disk is full, read-only or failing; what was recorded is still there."""

    exit_code = 5


class LockedError(EdgeLtsError):
    """Another run holds this board or this run folder."""

    exit_code = 7


class Interrupted(EdgeLtsError):
    """A measurement was cancelled before it had a result: nothing is known about the candidate."""

    exit_code = 130

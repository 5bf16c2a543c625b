"""What every search strategy has in common: ask, tell, stop, and the one place where tells are checked.

    while not searcher.stop():
        for candidate in searcher.ask(1):
            searcher.tell(candidate.candidate_id, measure(candidate.architecture))

A searcher proposes members of its space, each at most once, and learns from what it is told. It measures, prints and
stores nothing and reads no clock: the same seed and the same tells give the same asks in any process, so resuming is
replaying. Failures are told like measurements; a searcher knows them and never proposes them again.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, SpaceError, SpecError
from edge_lts.objectives import Constraint, Objective
from edge_lts.records import Failure, Outcome, central
from edge_lts.space import SearchSpace

# Spaces up to this size are listed member by member once drawing at random finds nothing new.
MAX_LISTED = 200_000
SAMPLE_PATIENCE = 200


class TellError(EdgeLtsError, ValueError):
    """What was told does not belong to what was asked: a ledger of another run, or a defect of the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An architecture handed out by `ask`; ids are 0, 1, 2, ... in the order of asking.

    `predicted`: what the strategy expects of each objective, where it predicts; `origin`: why it was proposed, where
    the strategy has more than one reason.
    """

    candidate_id: int
    architecture: Architecture
    predicted: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a searcher remembers of an evaluation: losses in the order of the objectives, and how far it breaks
    constraints (0: not at all; otherwise the sum over constraints of the excess relative to the bound)."""

    losses: tuple[float, ...]
    violation: float


class Searcher(Protocol):
    def ask(self, n: int = 1) -> list[Candidate]:
        """Up to `n` new candidates; fewer where the strategy wants to be told first, none only if `stop` says why."""

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        """Close a candidate, once. Raises TellError and changes nothing if the outcome does not fit it."""

    def stop(self) -> tuple[str, ...]:
        """Why there is nothing more to propose; empty while there is. Known only once `ask` has tried."""


def check_tell(
    asked: Sequence[Architecture],
    told: Container[int],
    candidate_id: int,
    outcome: Outcome,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
) -> Score | None:
    """The score of an evaluation, None for a failure. `asked` is indexed by candidate id.

    Raises TellError for an id that was never asked or is already told, an outcome of another candidate or architecture,
    and an objective or constrained quantity that is missing, null or not finite.
    """
    if isinstance(candidate_id, bool) or not isinstance(candidate_id, int) or not 0 <= candidate_id < len(asked):
        raise TellError(f"candidate {candidate_id!r:.40} was never asked; {len(asked)} were")
    if candidate_id in told:
        raise TellError(f"candidate {candidate_id} was told before")
    if outcome.candidate_id != candidate_id:
        raise TellError(f"candidate {candidate_id} was told the outcome of candidate {outcome.candidate_id}")
    expected, found = asked[candidate_id], outcome.architecture
    if found != expected:
        raise TellError(f"candidate {candidate_id} is architecture {expected.arch_id}, but {found.arch_id} was told")
    if isinstance(outcome, Failure):
        return None
    values: dict[str, float] = {}
    for name in (*(objective.name for objective in objectives), *(constraint.name for constraint in constraints)):
        value = central(outcome.objectives.get(name))
        if value is None:
            raise TellError(f"candidate {candidate_id}: {name} is missing")
        if not abs(value) <= sys.float_info.max:  # NaN, infinity, or an integer that no float can hold
            raise TellError(f"candidate {candidate_id}: {name} is {value!s:.40}, which is not finite")
        values[name] = value
    return Score(
        losses=tuple(float(objective.loss(values[objective.name])) for objective in objectives),
        violation=sum(_excess(constraint, values[constraint.name]) for constraint in constraints),
    )


def _excess(constraint: Constraint, value: float) -> float:
    below = 0.0 if constraint.minimum is None else constraint.minimum - value
    above = 0.0 if constraint.maximum is None else value - constraint.maximum
    if below <= 0 and above <= 0:
        return 0.0
    bound = constraint.minimum if below > above else constraint.maximum
    return max(below, above) / (abs(bound) if bound else 1.0)


class BaseSearcher(ABC):
    """Bookkeeping for strategies: ids, what was seen, scores, constraints by formula, and what to do when stuck.

    Constraints on decoder_params become bounds of the space, so that a candidate that breaks them is never asked;
    SpaceError if they leave no member. Constraints on measured quantities reach a strategy as `Score.violation`.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        constraints: tuple[Constraint, ...] = (),
    ) -> None:
        self._space = narrowed(space, constraints)
        self._objectives = objectives
        self._constraints = constraints
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._asked: list[Architecture] = []
        self._seen: set[Architecture] = set()
        self._scores: dict[int, Score | None] = {}
        self._reasons: tuple[str, ...] = ()
        self._listing: Iterator[Architecture] | None = None

    def ask(self, n: int = 1) -> list[Candidate]:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise SpecError(f"ask needs a positive number of candidates, not {n!r:.40}")
        batch: list[Candidate] = []
        while len(batch) < n and not self._reasons:
            if batch and self._wants_tells():
                break
            arch = self._propose()
            if arch is None:
                break
            batch.append(Candidate(candidate_id=len(self._asked), architecture=arch))
            self._asked.append(arch)
            self._seen.add(arch)
        return batch

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        self._scores[candidate_id] = check_tell(
            self._asked, self._scores, candidate_id, outcome, self._objectives, self._constraints
        )

    def stop(self) -> tuple[str, ...]:
        return self._reasons

    @property
    def scores(self) -> Mapping[int, Score | None]:
        """Score by candidate id, None for a failure; in the order of telling."""
        return self._scores

    @abstractmethod
    def _propose(self) -> Architecture | None:
        """A member that was not seen yet, or None after `_fresh` returned None."""

    def _wants_tells(self) -> bool:
        """Whether the next proposal should wait for what was asked to be told."""
        return False

    def _fresh(self) -> Architecture | None:
        """An unseen member at random; from a small space the next unseen one of its list when drawing finds none.

        None if there is no such member ("space exhausted") or none was found in a space too large to list ("patience").
        """
        try:
            for _ in range(SAMPLE_PATIENCE):
                arch = self._space.sample(self._rng)
                if arch not in self._seen:
                    return arch
        except SpaceError:  # bounds so narrow that drawing finds no member; listing still may
            pass
        if self._listing is None:
            size = self._space.size()
            if not isinstance(size, int) or size > MAX_LISTED:
                self._reasons = ("patience",)
                return None
            self._listing = self._space.enumerate()
        for arch in self._listing:
            if arch not in self._seen:
                return arch
        self._reasons = ("space exhausted",)
        return None


def known_settings(strategy: str, settings: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` as arguments of a strategy's settings class. Raises SpecError naming a setting that it has not."""
    known = [item.name for item in fields(settings)]
    for key in data:
        if key not in known:
            raise SpecError(f"{strategy} has no setting {key!r:.80}; known: {', '.join(known)}")
    return dict(data)


def narrowed(space: SearchSpace, constraints: Sequence[Constraint]) -> SearchSpace:
    """The space without what breaks a constraint that a formula decides. Raises SpaceError if nothing is left."""
    for constraint in constraints:
        if constraint.name == "decoder_params":
            low, high = constraint.minimum, constraint.maximum
            space = space.restricted(
                min_decoder_params=None if low is None else int(np.ceil(low)),
                max_decoder_params=None if high is None else int(np.floor(high)),
            )
    return space

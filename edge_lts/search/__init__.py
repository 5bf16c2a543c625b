"""Search strategies behind one protocol: `make_searcher` by name. See `base` for what a searcher promises."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_lts.errors import SpecError
from edge_lts.objectives import Constraint, Objective
from edge_lts.records import Protocol
from edge_lts.search.base import BaseSearcher, Candidate, Searcher, TellError
from edge_lts.search.evolution import EvolutionSearcher, EvolutionSettings
from edge_lts.search.guided import GuidedSearcher, GuidedSettings
from edge_lts.search.random import RandomSearcher
from edge_lts.space import SearchSpace

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

__all__ = ["STRATEGIES", "Candidate", "Searcher", "TellError", "make_searcher"]

STRATEGIES = ("guided", "evolution", "random")


def make_searcher(
    strategy: str,
    space: SearchSpace,
    objectives: tuple[Objective, ...],
    seed: int,
    settings: Mapping[str, Any] | None = None,
    constraints: tuple[Constraint, ...] = (),
    protocol: Protocol | None = None,
    proxy: "CalibratedProxy | None" = None,
) -> BaseSearcher:
    """A searcher in its first state; all its randomness comes from `seed` (an integer of at least 0). `protocol` is
    what guided search predicts for, `proxy` what it knows quality from; the others do not look at them.

    Raises SpecError for an unknown strategy, setting or unusable seed, SpaceError if the constraints leave no member.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SpecError(f"seed must be an integer of at least 0, not {seed!r:.40}")
    settings = settings or {}
    if strategy == "random":
        for key in settings:
            raise SpecError(f"random has no setting {key!r:.80}; it takes none")
        return RandomSearcher(space, objectives, seed, constraints)
    if strategy == "evolution":
        chosen = EvolutionSettings.from_json(settings)
        return EvolutionSearcher(space, objectives, seed, chosen, constraints)
    if strategy == "guided":
        own = GuidedSettings.from_json(settings)
        return GuidedSearcher(space, objectives, seed, own, constraints, protocol, proxy)
    raise SpecError(f"unknown strategy {strategy!r:.80}; known: {', '.join(STRATEGIES)}")

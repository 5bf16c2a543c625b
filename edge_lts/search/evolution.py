"""The evolutionary search of LiteTransformerSearch, with its defects mended.

Javaheripi et al. 2022 (arXiv 2203.02094), `archai/nlp/nas/evolution.py` on branch neurips-lts: a random population,
then generations of children bred from the Pareto frontier of everything measured so far. Parents are drawn with
replacement, the less often used the likelier (weight 1 / (1 + times used)); some children are mutants of one parent,
some join two. Mended: rules are decided by formula before anything is measured; no architecture is proposed twice, not
even in the first population; dominance is weak, so a point equal in one objective and worse in the others leaves the
frontier; patience is finite; a generation is bred only when it will be measured. Not taken over: measuring the smallest
and the largest member first.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_lts.arch import Architecture
from edge_lts.errors import SpecError
from edge_lts.objectives import Constraint, Objective
from edge_lts.pareto import nondominated
from edge_lts.search.base import BaseSearcher, Score, known_settings
from edge_lts.space import SearchSpace

Step = Literal["sample", "mutate", "cross"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """`population` random members first, then generations of `mutations` + `crossovers` children of `parents` draws.

    p: probability that a mutation draws a gene again. patience: tries per child before a random member takes its place.
    """

    population: int = 100
    parents: int = 20
    mutations: int = 40
    crossovers: int = 40
    p: float = 0.3
    patience: int = 100

    def __post_init__(self) -> None:
        for name, minimum in (("population", 1), ("parents", 1), ("mutations", 0), ("crossovers", 0), ("patience", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 100_000:
                raise SpecError(f"evolution: {name} must be an integer from {minimum} to 100000, not {value!r:.40}")
        if self.mutations + self.crossovers < 1:
            raise SpecError("evolution: mutations and crossovers are both 0; give at least one child per generation")
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not 0 < self.p <= 1:
            raise SpecError(f"evolution: p must be a probability above 0, not {self.p!r:.40}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvolutionSettings":
        """Settings by name; a `population` given alone keeps the paper's shares: 20 % parents, 40 % each child."""
        values = known_settings("evolution", cls, data)
        population = values.get("population")
        if isinstance(population, int) and not isinstance(population, bool):
            values.setdefault("parents", max(1, population // 5))
            values.setdefault("mutations", max(1, 2 * population // 5))
            values.setdefault("crossovers", max(1, 2 * population // 5))
        return cls(**values)


class EvolutionSearcher(BaseSearcher):
    """A generation's parents are chosen when its first candidate is asked, from all that was told by then.

    `ask(n)` never reaches into the next generation, so asking one by one and asking in batches propose the same as long
    as a generation is told completely before the next begins. Whatever breaks a measured constraint has no children
    while anything keeps them all; until then the least offenders do. Failures never have children. Without any
    evaluation to breed from, a generation is random.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        settings: EvolutionSettings | None = None,
        constraints: tuple[Constraint, ...] = (),
    ) -> None:
        super().__init__(space, objectives, seed, constraints)
        self._settings = settings or EvolutionSettings()
        self._plan: deque[Step] = deque(["sample"] * self._settings.population)
        self._parents: list[Architecture] = []
        self._times_used: dict[int, int] = {}

    def _wants_tells(self) -> bool:
        return not self._plan

    def _propose(self) -> Architecture | None:
        if not self._plan:
            self._begin_generation()
        step = self._plan.popleft()
        child = None if step == "sample" else self._breed(step)
        return child if child is not None else self._fresh()

    def _begin_generation(self) -> None:
        settings = self._settings
        eligible = breeders(self._scores, settings.parents)
        if not eligible:
            self._parents = []
            self._plan.extend(["sample"] * (settings.mutations + settings.crossovers))
            return
        weights = np.array([1.0 / (1 + self._times_used.get(candidate_id, 0)) for candidate_id in eligible])
        drawn = self._rng.choice(len(eligible), size=settings.parents, p=weights / weights.sum()).tolist()
        for index in drawn:
            candidate_id = eligible[index]
            self._times_used[candidate_id] = self._times_used.get(candidate_id, 0) + 1
        self._parents = [self._asked[eligible[index]] for index in drawn]
        self._plan.extend(["mutate"] * settings.mutations)
        self._plan.extend(["cross"] * settings.crossovers)

    def _breed(self, step: Step) -> Architecture | None:
        """An unseen child of the parents, or None after `patience` tries. A lone parent is mutated, not joined."""
        for _ in range(self._settings.patience):
            one = self._parents[int(self._rng.integers(len(self._parents)))]
            others = [parent for parent in self._parents if parent != one] if step == "cross" else []
            if others:
                other = others[int(self._rng.integers(len(others)))]
                child = self._space.crossover(one, other, self._rng)
            else:
                child = self._space.mutate(one, self._rng, self._settings.p)
            if child is not None and child not in self._seen:
                return child
        return None


def breeders(scores: Mapping[int, Score | None], n_fallback: int) -> list[int]:
    """Ids that may have children, ascending: the frontier of what keeps all constraints.

    If nothing keeps them: the `n_fallback` least offenders. The order of telling does not matter.
    """
    evaluated = [(candidate_id, score) for candidate_id, score in sorted(scores.items()) if score is not None]
    feasible = [(candidate_id, score) for candidate_id, score in evaluated if score.violation == 0]
    if not feasible:
        least = sorted(evaluated, key=lambda item: (item[1].violation, item[0]))[:n_fallback]
        return sorted(candidate_id for candidate_id, _ in least)
    mask = nondominated([score.losses for _, score in feasible]).tolist()
    return [candidate_id for (candidate_id, _), is_kept in zip(feasible, mask, strict=True) if is_kept]

"""What the supervisor of a pool has in place of a single board's: surroundings, memory, and a set of anchors."""

from __future__ import annotations

from typing import Any

from edge_lts.arch import Architecture
from edge_lts.progress import Progress
from edge_lts.records import ASIDE, Evaluation, Outcome, RunSpec
from edge_lts.runfolder import RunFolder
from edge_lts.speed import at_pool_speed
from edge_lts.surroundings import Surroundings

N_ANCHORS = 3
_STREAM = 0x706F6F6C  # "pool": keeps the draw of the anchors apart from the searcher's
_N_DRAWN = 48


class Elsewhere(Surroundings):
    """This machine does not measure: nothing of it is pinned, tuned or cooled."""

    def __enter__(self) -> Elsewhere:
        return self

    def facts(self) -> dict[str, Any]:
        return {}


class PoolProgress(Progress):
    """Also who measured what; searchers hear times at the pool's speed."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        super().__init__(folder, spec)
        self.boards: dict[str, set[str]] = {}  # arch_id -> boards that tried
        self.baseline_boards: dict[str, set[str]] = {}
        self._last_s: dict[str, float] = {}  # board -> when its last record was made
        self._boards_s = 0.0  # of all boards together, with baselines

    def add(self, outcome: Outcome) -> None:
        """Baselines count for the time of their board, as a share of all boards' time."""
        super().add(outcome)
        arch_id, board = outcome.architecture.arch_id, outcome.board
        before_s = self._last_s.get(board, outcome.spent_s)
        self._last_s[board] = outcome.spent_s
        if outcome.purpose == "baseline":
            self.baseline_boards.setdefault(arch_id, set()).add(board)
            self._boards_s += max(0.0, outcome.spent_s - before_s)
            self.baseline_s = self._boards_s / len(self._last_s)
        elif outcome.purpose not in ASIDE:
            self.boards.setdefault(arch_id, set()).add(board)

    def as_told(self, outcome: Outcome) -> Outcome:
        return super().as_told(at_pool_speed(outcome) if isinstance(outcome, Evaluation) else outcome)


def anchor_set(spec: RunSpec, limit_bytes: int | None) -> list[Architecture]:
    """A small, a middling and a large member of the space; the same for the same seed."""
    import numpy as np

    from edge_lts.space import SearchSpace

    space = SearchSpace.from_json(spec.space)
    if limit_bytes is not None:
        space = space.restricted(max_weight_bytes=limit_bytes, precision=spec.protocol.precision)
    rng = np.random.default_rng([spec.seed, _STREAM])
    drawn = {arch.arch_id: arch for arch in (space.sample(rng) for _ in range(_N_DRAWN))}
    ranked = sorted(drawn.values(), key=lambda arch: (arch.total_params, arch.arch_id))
    places = [round(share * (len(ranked) - 1)) for share in np.linspace(0.1, 0.9, N_ANCHORS)]
    return [ranked[place] for place in dict.fromkeys(places)]

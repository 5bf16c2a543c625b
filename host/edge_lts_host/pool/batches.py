"""Ask/tell for several boards at a time: a whole batch is asked, measured in any order, told in the order of asking.

A searcher plans a round (guided) or a generation (evolution) from what it was told when the first candidate of it is
asked, and `ask` never reaches beyond. Asked again before it is told, guided search would plan from the same model once
more and fill the gaps of a frontier that its last round may have moved (1151 candidates of one round in a test), while
its rule for stopping counts rounds in which nothing was learned. So nothing is asked while anything of a batch is open,
and the order in which boards finish reaches no searcher: a pool proposes what one board would, and a resumed run what
an uninterrupted one would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_lts.errors import LedgerError
from edge_lts.records import Outcome

if TYPE_CHECKING:
    from edge_lts.search import Candidate, Searcher

MOST_ASKED = 64  # of strategies that never wait; a batch ends with boards that wait for the last one
MAX_REPEATED_BATCHES = 1000


class Batches:
    """`recall` hands out what is known already of a candidate's architecture: then it is not measured again."""

    def __init__(self, searcher: Searcher, recall: Callable[[Candidate], Outcome | None]) -> None:
        self._searcher = searcher
        self._recall = recall
        self._waiting: deque[Candidate] = deque()
        self._open: dict[int, Candidate] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether everything that the searcher will ever propose has been told."""
        return self._is_over and not self._open

    def reasons(self) -> tuple[str, ...]:
        return tuple(self._searcher.stop()) or ("nothing new to propose",)

    def next(self) -> Candidate | None:
        """The next candidate to measure; None while the searcher waits for what is open, and when it `is_over`."""
        self._fill()
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, candidate: Candidate) -> None:
        """It was handed out and will not be measured now."""
        self._waiting.appendleft(candidate)

    def done(self, outcome: Outcome) -> None:
        """Close a candidate of the open batch with what the searcher is to hear."""
        self._outcomes[outcome.candidate_id] = outcome
        if len(self._outcomes) < len(self._open):
            return
        for candidate_id in self._open:
            self._searcher.tell(candidate_id, self._outcomes[candidate_id])
        self._open.clear()
        self._outcomes.clear()

    def replay(self, outcome: Outcome, where: object) -> None:
        """`done` for a record of an earlier life. Raises LedgerError when the searcher would not have proposed it."""
        self._fill()
        asked = self._open.get(outcome.candidate_id)
        if asked is None or asked.architecture != outcome.architecture or outcome.candidate_id in self._outcomes:
            proposed = "nothing of that number" if asked is None else asked.architecture.arch_id
            raise LedgerError(
                f"{where} does not belong to this spec.json: candidate {outcome.candidate_id} is "
                f"{outcome.architecture.arch_id} there, the search proposes {proposed}; resume with the edge-lts that "
                "began the run, or begin a new one"
            )
        self._waiting.remove(asked)
        self.done(outcome)

    def _fill(self) -> None:
        for _ in range(MAX_REPEATED_BATCHES):
            if self._open or self._is_over:
                return
            asked = self._searcher.ask(MOST_ASKED)
            self._is_over = not asked
            self._open = {candidate.candidate_id: candidate for candidate in asked}
            known = [(candidate, self._recall(candidate)) for candidate in asked]
            self._waiting.extend(candidate for candidate, outcome in known if outcome is None)
            for _, outcome in known:
                if outcome is not None:
                    self.done(outcome)
        self._is_over = True

"""The honest baseline: members of the space at random, none twice, whatever is told."""

from edge_lts.arch import Architecture
from edge_lts.search.base import BaseSearcher


class RandomSearcher(BaseSearcher):
    """Proposes what `SearchSpace.sample` draws; a small space is searched to its last member."""

    def _propose(self) -> Architecture | None:
        return self._fresh()

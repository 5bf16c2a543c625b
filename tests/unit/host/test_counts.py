"""Which of many things are shown where there is room for few."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_lts_host.counts import evenly


@given(st.integers(0, 500), st.integers(1, 60))
def test_at_most_so_many_places_both_ends_included_and_no_gap_twice_another(n_there: int, n: int) -> None:
    places = evenly(n_there, n)
    assert len(places) == min(n_there, n)
    assert places == sorted(set(places))
    if n_there and n > 1:
        assert (places[0], places[-1]) == (0, n_there - 1)
        gaps = [after - before for before, after in pairwise(places)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_room_for_one_shows_the_first() -> None:
    assert evenly(7, 1) == [0]

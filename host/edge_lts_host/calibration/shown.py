"""Where a job of trainings is: on a terminal one line that changes, with a bar, below the lines that stay.

A device says how far a training is at each point of its curve (`Recipe.curve_points` of them), so the line moves in
such steps. What a device sends is looked at before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, TypeGuard

from edge_lts_host.progress import bar, draw_line, is_live

Training = tuple[str, int]  # arch_id and seed


class Shown:
    """A context manager; `say` writes whole lines, which is all that there is without a terminal."""

    def __init__(self, trainings: Collection[Training], recipe: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._trainings, self._recipe, self._say = frozenset(trainings), recipe, say
        self._is_live = is_live()
        self._n_done = 0
        self._shares: dict[Training, float] = {}  # of the trainings under way

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._draw("")

    def say(self, text: str) -> None:
        self._draw("")
        self._say(text)
        self._draw(self.line())

    def plan(self, recipe: Mapping[str, Any]) -> None:
        """What each training is to have, once a device has found out."""
        self._recipe = recipe

    def point(self, event: Mapping[str, Any]) -> None:
        """A training has come so far."""
        training = event.get("arch_id"), event.get("seed")
        name = "tokens" if self._recipe.get("seconds") is None else "seconds"
        done, whole = event.get(name), self._recipe.get(name)
        if training in self._trainings and _is_positive(done) and _is_positive(whole):
            self._shares[str(training[0]), int(str(training[1]))] = min(1.0, done / whole)
            self._draw(self.line())

    def done(self, training: Training) -> None:
        """A training is over, also one that was before."""
        self._shares.pop(training, None)
        self._n_done += 1

    def line(self) -> str:
        n = len(self._trainings)
        share = (self._n_done + sum(self._shares.values())) / n
        each = "".join(f", {arch_id} {one:.0%}" for (arch_id, _), one in self._shares.items())
        return f"{bar(share)} {share:4.0%}: {self._n_done} of {n} trained{each}"

    def _draw(self, text: str) -> None:
        if self._is_live:
            draw_line(text)


def _is_positive(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and value > 0

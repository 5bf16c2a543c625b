"""What to do when a link breaks: wait, a little longer each time and never as long as the next board, and try again.

A broken link says nothing about the run, so whatever only reads (`watch`, `pull`, `logs`) goes on where it was. A host
that refuses us, or whose key is wrong, is not asked again: no waiting mends that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edge_lts_host.errors import AuthenticationError, ConnectionLostError, HostKeyError, TransportError

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
N_IN_VAIN = 5

Value = TypeVar("Value")


def is_worth_another_try(error: TransportError) -> bool:
    return not isinstance(error, (AuthenticationError, HostKeyError))


@dataclass(slots=True)
class Pauses:
    """Seconds to wait before connecting again: doubled by each loss, at most LONGEST_PAUSE_S, then shortened by up to
    half at random, so that boards that were lost together do not come back together. `uniform` draws from [0, 1]."""

    first_s: float = FIRST_PAUSE_S
    uniform: Callable[[], float] = random.random
    _next_s: float = 0.0

    def reset(self) -> None:
        """The link works again, or at least something came through."""
        self._next_s = 0.0

    def after_loss(self) -> float:
        self._next_s = min(LONGEST_PAUSE_S, 2 * (self._next_s or self.first_s))
        return self._next_s * (0.5 + 0.5 * self.uniform())


def insist(
    work: Callable[[], Value],
    *,
    n_bytes_here: Callable[[], int],
    say: Callable[[str], None],
    sleep: Callable[[float], None],
    pauses: Pauses | None = None,
    is_given_up: Callable[[], bool] = lambda: False,
) -> Value:
    """`work`, again after each broken link, as long as bytes arrive: `n_bytes_here` counts them.

    Raises the last TransportError when N_IN_VAIN tries in a row brought nothing, when there never was a connection, and
    when `is_given_up` (the user pressed Ctrl-C).
    """
    pauses = pauses or Pauses()
    n_in_vain = 0
    n_bytes = begun_with = n_bytes_here()
    was_connected = False
    while True:
        try:
            return work()
        except TransportError as exc:
            n_now = n_bytes_here()
            was_connected = was_connected or n_now > begun_with or isinstance(exc, ConnectionLostError)
            if n_now > n_bytes:
                n_in_vain = 0
                pauses.reset()
            else:
                n_in_vain += 1
            n_bytes = n_now
            is_hopeless = not was_connected or n_in_vain >= N_IN_VAIN
            if is_hopeless or not is_worth_another_try(exc) or is_given_up():
                raise
            pause_s = pauses.after_loss()
            say(f"{exc.where}: {exc.problem}; {n_now - begun_with} bytes came so far; again in {pause_s:.0f} s")
            sleep(pause_s)

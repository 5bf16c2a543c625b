"""What a person sees while a board is served: a line per stage on stderr, or on a terminal one line that changes.

No thread of its own, so nothing here can block or outlive the work. Times are of the stages of a deploy, not of
measurements.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from edge_lts_host.errors import printable

_REDRAW_S = 0.1
_BAR_WIDTH = 24
_write_guard = threading.Lock()


def is_live(n_hosts: int = 1) -> bool:
    """Whether a single changing line is wanted: a terminal, one board, and nobody said --no-progress or -q."""
    from edge_lts_host.report import render

    return n_hosts == 1 and render.shows_progress()


class Stages:
    """Names what is being done to one board and how long each stage took, in `times_s`."""

    def __init__(
        self, name: str, say: Callable[[str], None], *, live: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._say, self._live, self._clock = name, say, live, clock
        self._drawn_at = float("-inf")
        self.times_s: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage; says its title when it begins (terminal) and title and time when it has ended well."""
        start = self._clock()
        self._draw(f"{title} …", force=True)
        try:
            yield
        finally:
            self.times_s[title] = self.times_s.get(title, 0.0) + self._clock() - start
            self._erase()
        self._say(f"{self._name}: {title} ({self.times_s[title]:.1f} s)")

    def moved(self, title: str) -> Callable[[int, int], None]:
        """A callback for transfers that shows the share of bytes there."""
        from edge_lts_host.report import render

        def show(done: int, total: int) -> None:
            self._draw(f"{title}: {done * 100 // max(1, total)} % of {render.size(total)}")

        return show

    def note(self, text: str) -> None:
        self._erase()
        self._say(f"{self._name}: {text}")

    def _draw(self, text: str, *, force: bool = False) -> None:
        if self._live and (force or self._clock() - self._drawn_at >= _REDRAW_S):
            self._drawn_at = self._clock()
            draw_line(f"{self._name}: {text}")

    def _erase(self) -> None:
        if self._live:
            draw_line("")


def bar(share: float) -> str:
    """`share`, from 0 to 1, as a bar of characters."""
    n_full = round(min(1.0, share) * _BAR_WIDTH)
    return f"[{'#' * n_full}{'.' * (_BAR_WIDTH - n_full)}]"


def draw_line(text: str) -> None:
    """Replace the terminal's current line on stderr; "" leaves it empty."""
    import shutil

    columns = shutil.get_terminal_size().columns
    with _write_guard:
        sys.stderr.write("\r\x1b[K" + printable(text)[: max(1, columns - 1)])
        sys.stderr.flush()

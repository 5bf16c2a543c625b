"""How pictures look: legible in print and for colour-blind readers, because nothing is said by colour alone.

Colours are those of Okabe and Ito 2008 without yellow, which paper swallows; each comes with a marker, a line and a
hatch of its own. Text from a board is drawn as text: matplotlib's formula language is off. matplotlib is imported by
the functions, no window is opened, and nothing of its global state is changed for good.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.store import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
HATCHES = ("", "///", "...", "xx", "\\\\\\")
GREY = "#8a8a8a"
LAST = ("measured", "knee", "disturbed process")  # of a legend's labels
PNG_DPI = 160
# More ticks to a decade the less an axis spans: (span at least, ticks).
_SUBS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (200.0, (1.0,)),
    (15.0, (1.0, 2.0, 5.0)),
    (4.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (0.0, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)),
)
PANEL_INCHES = (4.4, 3.9)
# Any: matplotlib types the keys as literals.
_SETTINGS: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "edge-lts",
    "text.parse_math": False,
}


def require_matplotlib() -> None:
    """Raises UsageError that says how to install it."""
    try:
        import matplotlib.figure  # noqa: F401  # only whether it is there
    except ImportError as exc:
        raise UsageError(f"--plots needs matplotlib: pip install 'edge-lts[plots]' ({exc})") from exc


@contextmanager
def settings() -> Iterator[None]:
    """Everything is drawn inside of this."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a board may be called anything
        yield


def new_figure(n_columns: int = 1, n_rows: int = 1, size: tuple[float, float] = PANEL_INCHES) -> tuple[Figure, Any]:
    """A figure and its panels, (rows, columns); `size` of one panel in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * n_columns, size[1] * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg, the same bytes for the same data. Raises StoreError."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata)
        path = folder / f"{name}.{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, buffer.getvalue())
        except OSError as exc:
            raise StoreError(f"cannot write {path}: {exc.strerror or exc}") from exc
        paths.append(path)
    return paths


def ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as people write numbers: 0.5, 1, 2, 5; more of them where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    span = high / low if low > 0 else 10.0
    subs = next(subs for least, subs in _SUBS if span > least)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, panels: Iterable[Axes], note: str = "", n_columns: int = 4) -> None:
    """One legend below all panels, each label once, what is no run last; `note` is a small line above it."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    names = sorted(found, key=lambda name: name in LAST)
    if names:
        figure.legend(
            [found[name] for name in names],
            names,
            loc="outside lower center",
            ncols=min(n_columns, len(names)),
            title=note or None,
            title_fontsize=7,
        )

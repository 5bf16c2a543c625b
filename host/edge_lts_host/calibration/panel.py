"""Tables of trained models: the published panels' columns, one row for each training, read as given.

What a table says of a model is believed: where a known backbone's formula counts otherwise, that is one warning.
n_head, n_kv_head and d_inner hold a value per layer, separated by `;`, or one for all. Rows of one model (the same name
and shape), trained again with another seed, become one with the mean of their labels. The label is the first of these
that a table has, unless one is asked for: bits_per_byte, valid_loss (nats per token), valid_ppl.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.arch import MAX_LAYERS, Architecture, LayerSpec
from edge_lts.errors import ArchitectureError
from edge_lts.proxies.shape import FIELDS, Shape
from edge_lts.style import FAMILIES
from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MAX_FILE_BYTES = 64 << 20
# Label -> (unit of quality, quality of a label): quality is negative log-perplexity.
LABELS: dict[str, tuple[str, Callable[[float], float]]] = {
    "bits_per_byte": ("nats/byte", lambda bits: -bits * math.log(2)),
    "valid_loss": ("nats/token", lambda nats: -nats),
    "valid_ppl": ("nats/token", lambda perplexity: -math.log(perplexity)),
}
_IDENTITY = ("backbone", "n_layer", "d_model", "d_embed", "div_val", "vocab_size", "n_head", "n_kv_head", "d_inner")
_NEEDED = ("d_model", "n_head", "d_inner")
UNKNOWN = "gpt2"  # whose blocks a row of unknown backbone is taken to have where layers count: their heads and widths
_MAX = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One architecture of a table, with its mean quality. `key` tells the row, label and all, from any other's.

    n_trainings and sd are of repeats (sd None for a single one). `architecture` is None where the row describes none.
    """

    name: str
    key: str
    shape: Shape
    architecture: Architecture | None
    quality: float
    n_trainings: int
    sd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A table as models, in its order, with what must be said about it."""

    name: str
    sha256: str
    label: str
    unit: str
    backbone: str | None
    models: tuple[Model, ...]
    warnings: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """Of all models, as arrays (n,)."""
        import numpy as np

        return Shape(
            **{field: np.array([getattr(one.shape, field) for one in self.models], dtype=float) for field in FIELDS}
        )

    @property
    def quality(self) -> Array:
        """Negative log-perplexity (n,), larger is better."""
        import numpy as np

        return np.array([one.quality for one in self.models], dtype=float)

    @property
    def known_noise(self) -> float:
        """Standard deviation of a model's label as repeats have shown it, pooled; 0 where nothing was repeated.

        Of the mean of a model's trainings, the usual number of them taken.
        """
        repeated = [(one.n_trainings - 1, one.sd) for one in self.models if one.sd is not None]
        if not repeated:
            return 0.0
        freedom = sum(n for n, _ in repeated)
        pooled = math.sqrt(sum(n * sd**2 for n, sd in repeated) / freedom)
        return pooled / math.sqrt(sum(one.n_trainings for one in self.models) / len(self.models))

    def only(self, keys: Sequence[str]) -> Panel:
        """The models with these keys."""
        wanted = set(keys)
        return self._with([one for one in self.models if one.key in wanted])

    def without(self, keys: Sequence[str]) -> Panel:
        """All others."""
        unwanted = set(keys)
        return self._with([one for one in self.models if one.key not in unwanted])

    def _with(self, models: Sequence[Model]) -> Panel:
        return Panel(
            name=self.name,
            sha256=self.sha256,
            label=self.label,
            unit=self.unit,
            backbone=self.backbone,
            models=tuple(models),
            warnings=self.warnings,
        )


def read_panel(path: str | Path, *, backbone: str | None = None, label: str | None = None) -> Panel:
    """The table in a CSV file. `backbone` is that of rows that name none. Raises UsageError with file and line."""
    path = Path(path)
    if backbone is not None and backbone not in FAMILIES:
        raise UsageError(f"unknown backbone {backbone!r:.40}; known: {', '.join(sorted(FAMILIES))}")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"{path}: it cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: it is larger than {MAX_FILE_BYTES >> 20} MiB")
    rows, chosen = _rows(path, raw, label)
    unit, of_label = LABELS[chosen]
    models, unlabelled = _models(path, rows, chosen, of_label, backbone)
    warnings = _count_warnings(path, models)
    if unlabelled:
        warnings.append(f"{path}: {unlabelled} rows have no {chosen} and are left out")
    backbones = {one.architecture.backbone for one, is_known in models if one.architecture and is_known}
    return Panel(
        name=path.stem,
        sha256=hashlib.sha256(raw).hexdigest(),
        label=chosen,
        unit=unit,
        backbone=backbones.pop() if len(backbones) == 1 and all(is_known for _, is_known in models) else None,
        models=tuple(one for one, _ in models),
        warnings=tuple(warnings),
    )


def _rows(path: Path, raw: bytes, label: str | None) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Rows with their lines, and the label's column."""
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        columns = reader.fieldnames or []
        missing = [column for column in _NEEDED if column not in columns]
        if missing:
            raise UsageError(f"{path}: there is no column {missing[0]!r}; a table has {', '.join(_NEEDED)} and a label")
        known = [column for column in LABELS if column in columns]
        if label is not None and label not in known:
            raise UsageError(f"{path}: there is no label {label!r:.40}; it has {', '.join(known) or 'none'}")
        if not known:
            raise UsageError(f"{path}: there is no label; a table needs one of {', '.join(LABELS)}")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(f"{path}:{reader.line_num}: the row has another number of cells than the heading")
            rows.append((reader.line_num, row))
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: it is not UTF-8 (byte {exc.start})") from exc
    except csv.Error as exc:
        raise UsageError(f"{path}: it is no CSV: {exc!s:.200}") from exc
    return rows, known[0] if label is None else label


def _models(
    path: Path,
    rows: Sequence[tuple[int, Mapping[str, str]]],
    label: str,
    of_label: Callable[[float], float],
    backbone: str | None,
) -> tuple[list[tuple[Model, bool]], int]:
    """Models, each with whether its backbone is known; and how many rows have no label."""
    together: dict[tuple[str, ...], list[tuple[int, Mapping[str, str]]]] = {}
    unlabelled = 0
    for line, row in rows:
        if not row[label].strip():
            unlabelled += 1
            continue
        identity = tuple(row.get(column, "").strip() for column in ("name", *_IDENTITY))
        together.setdefault(identity, []).append((line, row))
    models = []
    for identity, repeats in together.items():
        line, row = repeats[0]
        found = [of_label(_number(path, at, label, one[label])) for at, one in repeats]
        mean = math.fsum(found) / len(found)
        sd = math.sqrt(math.fsum((one - mean) ** 2 for one in found) / (len(found) - 1)) if len(found) > 1 else None
        named = row.get("backbone", "").strip() or backbone
        if named is not None and named not in FAMILIES:
            raise UsageError(f"{path}:{line}: unknown backbone {named!r:.40}; known: {', '.join(sorted(FAMILIES))}")
        architecture = _architecture(path, line, row, named or UNKNOWN)
        text = "|".join((*identity, *sorted(one[label].strip() for _, one in repeats)))
        model = Model(
            name=row.get("name", "").strip()[:80] or f"line {line}",
            key=hashlib.sha256(text.encode()).hexdigest()[:16],
            shape=_shape(path, line, row, architecture if named else None),
            architecture=architecture,
            quality=mean,
            n_trainings=len(found),
            sd=sd,
        )
        models.append((model, named is not None))
    return models, unlabelled


def _architecture(path: Path, line: int, row: Mapping[str, str], backbone: str) -> Architecture | None:
    """What the row describes, as far as it can exist."""
    heads, inner = _layers(path, line, row, "n_head"), _layers(path, line, row, "d_inner")
    shared = _layers(path, line, row, "n_kv_head") if row.get("n_kv_head", "").strip() else [0]
    n_layer = round(_number(path, line, "n_layer", row.get("n_layer") or str(max(len(heads), len(inner)))))
    if n_layer > MAX_LAYERS:
        raise UsageError(f"{path}:{line}: n_layer: {n_layer} layers are more than the {MAX_LAYERS} that are supported")
    lists = {"n_head": heads, "d_inner": inner, "n_kv_head": shared}
    for name, values in lists.items():
        if len(values) not in (1, n_layer):
            raise UsageError(f"{path}:{line}: {name} has {len(values)} values for {n_layer} layers")
        lists[name] = values if len(values) == n_layer else values * n_layer
    extra = {"d_embed": "d_embed", "div_val": "embedding_factor", "vocab_size": "vocab_size"}
    fields: dict[str, Any] = {
        key: round(_number(path, line, column, row[column])) for column, key in extra.items() if row.get(column)
    }
    try:
        return Architecture(
            backbone=backbone,
            d_model=round(_number(path, line, "d_model", row["d_model"])),
            layers=tuple(
                LayerSpec(n_head=n_head, d_inner=d_inner, n_kv_head=n_kv_head)
                for n_head, d_inner, n_kv_head in zip(
                    lists["n_head"], lists["d_inner"], lists["n_kv_head"], strict=True
                )
            ),
            **fields,
        )
    except ArchitectureError:
        return None


def _shape(path: Path, line: int, row: Mapping[str, str], architecture: Architecture | None) -> Shape:
    """The row's own counts; what it lacks by the formula, where the backbone is known; else NaN, but for the size."""
    formula = None if architecture is None else Shape.of(architecture)
    counts = {}
    for field in ("decoder_params", "attention_params", "total_params"):
        if row.get(field, "").strip():
            counts[field] = _number(path, line, field, row[field])
        elif formula is not None:
            counts[field] = getattr(formula, field)
        elif field == "decoder_params":
            raise UsageError(f"{path}:{line}: there is no decoder_params; --backbone says how to count them")
        else:
            counts[field] = math.nan
    heads = _layers(path, line, row, "n_head")
    d_model = _number(path, line, "d_model", row["d_model"])
    return Shape(
        n_layer=_number(path, line, "n_layer", row.get("n_layer") or str(len(_layers(path, line, row, "d_inner")))),
        d_model=d_model,
        d_embed=_number(path, line, "d_embed", row["d_embed"]) if row.get("d_embed", "").strip() else d_model,
        log_heads=math.fsum(math.log(one) for one in heads) / len(heads),
        **counts,
    )


def _count_warnings(path: Path, models: Sequence[tuple[Model, bool]]) -> list[str]:
    """One, where the table counts decoder parameters otherwise than the formula of its backbone."""
    other = [
        (one, one.architecture)
        for one, is_known in models
        if is_known and one.architecture and one.shape.decoder_params != one.architecture.decoder_params
    ]
    if not other:
        return []
    model, architecture = other[0]
    return [
        f"{path}: decoder_params of {len(other)} of {len(models)} models are not what the formula of "
        f"{architecture.backbone} gives ({model.name}: {model.shape.decoder_params:.0f}, by formula "
        f"{architecture.decoder_params}); the table's are used"
    ]


def _layers(path: Path, line: int, row: Mapping[str, str], column: str) -> list[int]:
    return [round(_number(path, line, column, part)) for part in row[column].split(";")]


def _number(path: Path, line: int, column: str, text: str) -> float:
    """Positive and finite: every count and every label is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < _MAX:
        raise UsageError(f"{path}:{line}: {column}: {text!r:.40} is no positive number")
    return value


def describe(panel: Panel) -> dict[str, Any]:
    """What a result says of the panel it speaks of."""
    keys = ("name", "sha256", "label", "unit", "backbone")
    return {key: getattr(panel, key) for key in keys}

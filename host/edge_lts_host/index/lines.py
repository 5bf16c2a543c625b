"""A line of a ledger to the numbers that are indexed of it.

Most of a record is samples and conditions, of which the index needs a few numbers: the usual line, as the agent writes
it, is cut around them, and only the rest is parsed. Whatever looks otherwise is read whole and checked like any record.
What is cut out is not checked here; whoever reads the record itself will.

Why the cuts are safe: a quotation mark inside of a string is escaped, so no string can hold `,"conditions":{` and the
like; what is left must be JSON with the anchors at its top, where they were put; and the architecture is taken for what
it seems to be only where its hash is the record's arch_id.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge_lts.errors import LedgerError
from edge_lts.objectives import QUALITY
from edge_lts.records import Evaluation, check_schema, outcome_from_json
from edge_lts.speed import ANCHORS, BOARD_FACTOR, anchors_of, at_pool_speed
from edge_lts_host.index.columns import FLAGS, MEASURED, PURPOSES

_LARGEST = sys.float_info.max
_NAN = float("nan")
_FLAG_BITS = {name: 1 << index for index, name in enumerate(FLAGS)}
_PURPOSE_NUMBERS = {name: index for index, name in enumerate(PURPOSES)}
_FACTOR = f'"{BOARD_FACTOR}":'.encode()
_ARCH, _OBJECTIVES = b',"architecture":', b',"objectives":{'
_HEAD_END, _TAIL, _ANCHORS = b',"conditions":{', b',"spent_s":', b'"anchor_s":{'
# An architecture as the agent writes it, to be put into the order of canonical JSON.
_USUAL = re.compile(
    rb'\{"backbone":("[a-z0-9-]+"),"d_model":(\d+),"d_embed":(\d+),"embedding_factor":(\d+),"vocab_size":(\d+),'
    rb'"max_seq_len":(\d+),"tie_embeddings":(true|false),"layers":\[([^\]]*)\]\}'
)
_USUAL_LAYER = re.compile(rb'"n_head":(\d+),"d_inner":(\d+)')


class Line(NamedTuple):
    """`row` in the order of columns.FIELDS; None where the candidate failed, with the `failure`'s kind."""

    row: tuple[Any, ...] | None
    architecture: str  # canonical JSON
    measured_at: str
    board: str
    failure: str | None = None


def read_line(line: bytes, offset: int) -> Line:
    """Raises ValueError where it is no JSON, an EdgeLtsError where it is no record."""
    found = _ends_of(line)
    if found is None:
        return read_whole(line, offset)
    record, anchors, canonical = found
    return _line(record, anchors, canonical, offset)


def read_whole(line: bytes, offset: int) -> Line:
    """The same without a short cut."""
    data = json.loads(line)
    outcome = outcome_from_json(data)
    canonical = outcome.architecture.canonical_json()
    if isinstance(outcome, Evaluation):
        outcome = at_pool_speed(outcome)
        return _line(outcome.to_json(), anchors_of(outcome), canonical, offset)
    return Line(None, canonical, outcome.measured_at, outcome.board, outcome.kind)


def _ends_of(line: bytes) -> tuple[dict[str, Any], dict[str, Any], str] | None:
    """Of a usual evaluation what stands before its conditions and behind its samples, its anchors, and its architecture
    as canonical JSON. None for anything else."""
    begin = line.find(_ARCH)
    values = line.find(_OBJECTIVES, begin)
    end, tail = line.find(_HEAD_END, values), line.rfind(_TAIL)
    if not 0 < begin < values < end < tail or _FACTOR in line:
        return None
    at = line.find(_ANCHORS, end, tail)
    if line.find(_ANCHORS, at + 1, tail) >= 0 <= at:
        return None
    canonical = _canonical(line[begin + len(_ARCH) : values])
    anchors = line[at + len(_ANCHORS) - 1 : line.find(b"}", at) + 1] if at >= 0 else b"{}"
    try:
        found = json.loads(line[:begin] + line[values:end] + b',"anchors":' + anchors + line[tail:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("kind") != "evaluation" or "anchors" not in found:
        return None
    if hashlib.sha256(canonical).hexdigest()[:12] != found.get("arch_id"):
        return None
    return found, found["anchors"], canonical.decode("ascii")


def _canonical(raw: bytes) -> bytes:
    """A usual architecture with its keys in order; anything else gives nothing. Whether it is right, its hash says."""
    match = _USUAL.fullmatch(raw)
    if match is None:
        return b""
    backbone, d_model, d_embed, factor, vocabulary, length, is_tied, layers = match.groups()
    try:
        ordered = b"},{".join([_ordered_layer(layer) for layer in layers[1:-1].split(b"},{")])
    except ValueError:
        return b""
    return (
        b'{"backbone":%b,"d_embed":%b,"d_model":%b,"embedding_factor":%b,"layers":[{%b}],"max_seq_len":%b,'
        b'"tie_embeddings":%b,"vocab_size":%b}'
        % (backbone, d_embed, d_model, factor, ordered, length, is_tied, vocabulary)
    )


@functools.lru_cache(maxsize=1 << 16)
def _ordered_layer(layer: bytes) -> bytes:
    """Raises ValueError for an unusual one."""
    match = _USUAL_LAYER.fullmatch(layer)
    if match is None:
        raise ValueError(layer)
    return b'"d_inner":%b,"n_head":%b' % (match[2], match[1])


def _line(record: Mapping[str, Any], anchors: Mapping[str, Any], canonical: str, offset: int) -> Line:
    check_schema("a ledger record", record, LedgerError)
    row = row_of(str(record["arch_id"]), record, anchors, offset)
    return Line(row, canonical, str(record.get("measured_at", "")), str(record.get("board", "")))


def row_of(arch_id: str, record: Mapping[str, Any], anchors: Mapping[str, Any], offset: int) -> tuple[Any, ...]:
    """The numbers of an evaluation's `purpose`, `flags`, `spent_s` and `objectives`. Raises LedgerError."""
    purpose = _PURPOSE_NUMBERS.get(record.get("purpose", ""))
    flags, objectives = record.get("flags"), record.get("objectives")
    if purpose is None or not isinstance(flags, list) or not isinstance(objectives, Mapping):
        raise LedgerError("an evaluation lacks a known purpose, flags or objectives")
    bits = 0
    for flag in flags:
        bits |= _FLAG_BITS.get(str(flag), 0)
    values: list[Any] = [
        int(arch_id, 16),
        offset,
        purpose,
        bits,
        _number(record.get("spent_s")),
        _number(objectives.get("decoder_params")),
        _lower_bound(objectives.get(QUALITY)),
    ]
    for name in MEASURED:
        values += _value(objectives.get(name))
    for name in ANCHORS:
        seconds = anchors.get(name)
        values.append(_number(seconds) if seconds is not None and _number(seconds) > 0 else _NAN)
    return tuple(values)


def _lower_bound(value: Any) -> float:
    """Of an estimate, or that bound alone as exports have it."""
    if value is None:
        return _NAN
    return _number(value.get("low") if isinstance(value, dict) else value)


def _value(value: Any) -> tuple[float, float, float, int]:
    """Central value, `ci95` and number of samples; an exact value has no interval, and 0 samples."""
    if value is None:
        return (_NAN, _NAN, _NAN, 0)
    if not isinstance(value, dict):
        return (_number(value), _NAN, _NAN, 0)
    n, interval = value.get("n"), value.get("ci95")
    if not isinstance(n, int) or not 0 < n < 1 << 32:
        raise LedgerError(f"n of a measured value must be a positive integer, not {n!r:.40}")
    if interval is None:
        return (_number(value.get("median")), _NAN, _NAN, n)
    if not isinstance(interval, list) or len(interval) != 2:
        raise LedgerError(f"ci95 must be [low, high] or null, not {interval!r:.80}")
    return (_number(value.get("median")), _number(interval[0]), _number(interval[1]), n)


def _number(value: Any) -> float:
    if value.__class__ not in (float, int) or not -_LARGEST <= value <= _LARGEST:
        raise LedgerError(f"a number of a record must be finite, not {value!r:.40}")
    return float(value)

"""What a frontier says of its space: whether the space was too small, and where the proxy was never checked.

Both look at shapes alone, whatever was measured. A frontier that leans on a bound of the space would go on beyond it.
And an exact search goes wherever the proxy overlooks something, so members are held against the range in which it was
shown to rank perplexity (`edge_lts.space_rules.VALIDATED`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import SpaceError
from edge_lts.space_rules import GENE_KEYS, VALIDATED, Genes

CALIBRATED = ("decoder_params", "n_layer", "d_inner_over_d_model")  # rules about what a calibrated proxy looks at


def health(
    frontier: Sequence[Architecture], genes: Genes | None, *, is_calibrated: bool = False
) -> list[dict[str, Any]]:
    """Notes on a frontier: {"kind": "bound", "gene", ...} for each side of a gene at which members stand, and
    {"kind": "unvalidated", "rule", ...} for each side of a range that members leave.

    All have `side` (low or high), `value` (the bound) and `members` (arch_ids in the frontier's order). Without `genes`
    only the ranges are looked at. `is_calibrated`: the run was ranked by a calibrated proxy, whose own labels say where
    it was checked in whatever it looks at.
    """
    ranges = {rule: bounds for rule, bounds in VALIDATED.items() if not (is_calibrated and rule in CALIBRATED)}
    return ([] if genes is None else _bounds(frontier, genes)) + _unvalidated(frontier, ranges)


def genes_of(space: Mapping[str, Any]) -> Genes | None:
    """The genes of the space in a run's spec; None where it has none that can be read."""
    try:
        return Genes.from_json(space.get("genes"))
    except SpaceError:
        return None


def _bounds(frontier: Sequence[Architecture], genes: Genes) -> list[dict[str, Any]]:
    """Where not only the frontier's ends stand at a bound: the largest member is always as large as the space allows,
    the smallest as small. Nothing where members lie beyond it: that side was widened while the run went on."""
    at = [{(gene, side) for gene, _, side in genes.bounds_of(arch)} for arch in frontier]
    sizes = [arch.decoder_params for arch in frontier]
    is_inside = [min(sizes) < size < max(sizes) for size in sizes]
    notes = []
    for gene in GENE_KEYS:
        values = getattr(genes, gene)
        for side in ("low", "high") if values else ():
            bound = values[0] if side == "low" else values[-1]
            if side == "low" and bound == 1:
                continue  # no space goes below
            members = [(gene, side) in bounds for bounds in at]
            was_widened = any(_is_beyond(arch, gene, side, bound) for arch in frontier)
            if not was_widened and any(inside and member for inside, member in zip(is_inside, members, strict=True)):
                notes.append(_note("bound", "gene", gene, side, bound, frontier, members))
    return notes


def _unvalidated(
    frontier: Sequence[Architecture], ranges: Mapping[str, tuple[int | None, int | None]]
) -> list[dict[str, Any]]:
    notes = []
    for rule, bounds in ranges.items():
        for side, bound in zip(("low", "high"), bounds, strict=True):
            members = [bound is not None and _is_beyond(arch, rule, side, bound) for arch in frontier]
            if bound is not None and any(members):
                notes.append(_note("unvalidated", "rule", rule, side, bound, frontier, members))
    return notes


def _is_beyond(arch: Architecture, name: str, side: str, bound: int) -> bool:
    """Whether a gene or another number of `arch`, in any of its layers, lies beyond an inclusive bound."""
    numbers: list[float]
    if name == "d_head":
        numbers = [arch.head_width(layer) for layer in arch.layers]
    elif name == "d_inner_over_d_model":
        numbers = [layer.d_inner / arch.d_model for layer in arch.layers]
    elif name in ("d_inner", "n_head", "n_kv_head"):
        numbers = [getattr(layer, name) for layer in arch.layers]
    else:
        numbers = [getattr(arch, name)]
    return min(numbers) < bound if side == "low" else max(numbers) > bound


def _note(
    kind: str,
    key: str,
    name: str,
    side: str,
    value: int,
    frontier: Sequence[Architecture],
    members: Sequence[bool],
) -> dict[str, Any]:
    ids = [arch.arch_id for arch, is_member in zip(frontier, members, strict=True) if is_member]
    return {"kind": kind, key: name, "side": side, "value": value, "members": ids}

"""A space's genes and rules, applied: the tables of what can be built, or the name of the rule that leaves nothing.

Everything is decided by formula. Rules on a layer's shape come first, then those on parameters, each in the order in
which an error would name it.
"""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

from edge_lts.errors import ArchitectureError, SpaceError
from edge_lts.footprint import BYTES_PER_NUMBER
from edge_lts.space_rules import GENE_KEYS, Bound
from edge_lts.space_table import WidthTable
from edge_lts.style import FAMILIES, STYLE_KEYS

if TYPE_CHECKING:
    from edge_lts.space import SearchSpace

MAX_SHAPES = 100_000
MAX_TABLES = 4096
SHARED_KEYS = ("d_head", *STYLE_KEYS)  # what all layers of an architecture have in common, besides widths


def vocab_sizes(space: "SearchSpace") -> tuple[int, ...]:
    return space.genes.vocab_size or (space.fixed.vocab_size,)


def given(space: "SearchSpace", key: str) -> tuple[Any, ...]:
    """The values of one of SHARED_KEYS: the gene's, the fixed one, or the backbone's own (of d_head: None)."""
    genes: tuple[Any, ...] = getattr(space.genes, key)
    fixed = getattr(space.fixed, key)
    if fixed is None and key != "d_head":
        fixed = getattr(FAMILIES[space.backbone], key)
    return genes or (fixed,)


def d_embeds(space: "SearchSpace", d_model: int) -> tuple[int, ...]:
    return space.genes.d_embed or (space.fixed.d_embed or d_model,)


def fields_outside(space: "SearchSpace", d_embed: int, vocab_size: int, style: tuple[Any, ...]) -> dict[str, Any]:
    """What an architecture has besides width and layers."""
    fixed = space.fixed
    return {
        "backbone": space.backbone,
        "vocab_size": vocab_size,
        "d_embed": d_embed,
        "embedding_factor": fixed.embedding_factor,
        "max_seq_len": fixed.max_seq_len,
        "tie_embeddings": fixed.tie_embeddings,
        **dict(zip(SHARED_KEYS, style, strict=True)),
    }


def _empty(space: "SearchSpace", rule: str, why: str) -> SpaceError:
    return SpaceError(f"rule {rule} leaves no member of space {space.name}: {why}")


def apply_shape_rules(space: "SearchSpace") -> list[WidthTable]:
    """A table for each style and embedding at each width at which a layer can be built. Raises SpaceError naming the
    rule that leaves none."""
    genes, rules = space.genes, space.rules
    for limit, names in ((MAX_SHAPES, GENE_KEYS[1:]), (MAX_TABLES, ("d_model", "d_embed", "vocab_size", *SHARED_KEYS))):
        counts = {name: len(getattr(genes, name)) for name in names if getattr(genes, name)}
        if math.prod(counts.values()) > limit:
            raise SpaceError(f"genes: more than {limit:,} combinations of {', '.join(counts)}; take larger steps")
    heads = _heads(space)
    ratio = rules.d_inner_over_d_model
    inners = {d: tuple(inner for inner in genes.d_inner if ratio.allows(inner, d)) for d, _ in heads}
    inners = {d: allowed for d, allowed in inners.items() if allowed}
    if not inners:
        widths = ", ".join(map(str, dict.fromkeys(d for d, _ in heads)))
        why = f"d_inner / d_model is never {ratio} at widths {widths}; change d_inner or the rule"
        raise _empty(space, "d_inner_over_d_model", f"{why:.300}")
    tables = []
    try:
        for d in inners:
            for style in itertools.product(*(given(space, key) for key in SHARED_KEYS)):
                pairs = heads.get((d, style[0]), ())
                if style[SHARED_KEYS.index("position")] == "rotary":
                    pairs = tuple(pair for pair in pairs if (style[0] or d // pair[0]) % 2 == 0)
                if not pairs:
                    continue
                first, *others = (
                    fields_outside(space, d_embed, vocab_size, style)
                    for d_embed, vocab_size in itertools.product(d_embeds(space, d), vocab_sizes(space))
                )
                table = WidthTable.build(d, inners[d], pairs, genes.n_layer, first, rules.homogeneous)
                tables += [table, *(table.within(fields) for fields in others)]
    except ArchitectureError as error:
        where = next((f"genes.{gene}" for gene in ("d_embed", "vocab_size") if getattr(genes, gene)), "fixed")
        raise SpaceError(f"{where}: {error}") from error
    if not tables:
        raise _empty(
            space, "even_d_head", "rotary positions need heads of even width; change d_model, n_head or d_head"
        )
    return tables


def _heads(space: "SearchSpace") -> dict[tuple[int, int | None], tuple[tuple[int, int], ...]]:
    """(n_head, n_kv_head) that can be built at each d_model and d_head. Raises SpaceError naming the rule that leaves
    none."""
    genes, rules = space.genes, space.rules
    heads = {
        (d, width): tuple(head for head in genes.n_head if width is not None or d % head == 0)
        for d in genes.d_model
        for width in given(space, "d_head")
    }
    heads = {key: allowed for key, allowed in heads.items() if allowed}
    if not heads:
        raise _empty(space, "n_head_divides_d_model", "no n_head divides any d_model; add one that does")
    heads = {
        (d, width): tuple(head for head in allowed if rules.d_head.allows(width or d // head))
        for (d, width), allowed in heads.items()
    }
    heads = {key: allowed for key, allowed in heads.items() if allowed}
    if not heads:
        raise _empty(space, "d_head", f"d_model / n_head is never {rules.d_head}; change n_head, d_model or the rule")
    pairs = {
        key: tuple((n, shared) for n in allowed for shared in genes.n_kv_head or (n,) if n % shared == 0)
        for key, allowed in heads.items()
    }
    pairs = {key: allowed for key, allowed in pairs.items() if allowed}
    if not pairs:
        raise _empty(space, "n_kv_head_divides_n_head", "no n_kv_head divides any n_head; add one that does")
    return pairs


def apply_parameter_rules(space: "SearchSpace", tables: list[WidthTable]) -> list[WidthTable]:
    """The tables with their bounds on parameters and only the depths that have members. Raises SpaceError likewise."""
    for rule, label, noun, factor in (
        ("decoder_params", "decoder_params", "decoder parameters", 1),
        ("total_params", "total_params", "parameters", 1),
        ("weight_bytes", "weight_bytes (memory)", "bytes of weights", BYTES_PER_NUMBER),
    ):
        bound: Bound = getattr(space.rules, rule)
        if bound.is_open:
            continue
        narrowed, reached = [], []
        for table in tables:
            outside = 0 if rule == "decoder_params" else table.outside
            low = -(-int(bound.at_least or 0) // factor) - outside
            high = table.high if bound.at_most is None else int(bound.at_most) // factor - outside
            extent = table.extent()
            reached += [factor * (max(extent[0], table.low) + outside), factor * (min(extent[1], table.high) + outside)]
            table = dataclasses.replace(table, low=max(table.low, low), high=min(table.high, high))
            depths = tuple(depth for depth in table.depths if table.can_complete(depth, table.base))
            if depths:
                narrowed.append(dataclasses.replace(table, depths=depths))
        if not narrowed:
            why = f"members have {min(reached):,} to {max(reached):,} {noun}, but it asks for {bound}"
            raise _empty(space, label, f"{why}; widen it or the genes")
        tables = narrowed
    return tables

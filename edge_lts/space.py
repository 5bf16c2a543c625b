"""Search spaces as data: which architectures may be built, how to draw one, change one, join two, count and list all.

A space is the JSON form of a file in `spaces/` (described at the top of `spaces/lts-gpt2.toml`). It is checked when it
is made: a space without a member cannot exist, and the error names the rule that emptied it. Everything is decided by
formula; nothing is ever built or measured. Members are always written with their layers in canonical order.
Drawing follows Javaheripi et al. 2022 (LiteTransformerSearch, arXiv 2203.02094, `evolution.py`), with finite patience.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts.errors import SpaceError
from edge_lts.footprint import BYTES_PER_NUMBER, float32_bytes
from edge_lts.space_build import (
    SHARED_KEYS,
    apply_parameter_rules,
    apply_shape_rules,
    d_embeds,
    fields_outside,
    given,
    vocab_sizes,
)
from edge_lts.space_rules import GENE_KEYS, Bound, Fixed, Genes, Rules, Side, check_keys, gene_of, integer
from edge_lts.space_table import WidthTable
from edge_lts.style import STYLE_KEYS

SAMPLE_PATIENCE = 64
CHANGE_PATIENCE = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")
_KEYS = ("name", "description", "backbone", "rank", "genes", "fixed", "rules")

_Key = tuple[int, int, int, tuple[Any, ...]]  # d_model, d_embed, vocab_size, style of a WidthTable
_Gene = TypeVar("_Gene")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """A named set of architectures of one backbone.

    rank: the order in which a default is looked for among the built-in spaces, highest first; None is never a default.
    Two spaces are equal if their files say the same.
    """

    name: str
    backbone: str
    genes: Genes
    fixed: Fixed = field(default_factory=Fixed)
    rules: Rules = field(default_factory=Rules)
    description: str = ""
    rank: int | None = None
    _tables: dict[_Key, WidthTable] = field(init=False, repr=False, compare=False)
    _pairs: tuple[tuple[WidthTable, int], ...] = field(init=False, repr=False, compare=False)
    _widths: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tables = apply_parameter_rules(self, apply_shape_rules(self))
        keyed = {(table.d_model, table.d_embed, table.vocab_size, table.style): table for table in tables}
        object.__setattr__(self, "_tables", keyed)
        object.__setattr__(self, "_pairs", tuple((table, depth) for table in tables for depth in table.depths))
        object.__setattr__(self, "_widths", tuple(dict.fromkeys(table.d_model for table in tables)))

    @property
    def tables(self) -> tuple[WidthTable, ...]:
        """What can be built at each (d_model, style, d_embed, vocab_size) that has members, in ascending order of
        these; styles in the order of the file."""
        return tuple(self._tables.values())

    def table_of(self, arch: Architecture) -> WidthTable:
        """The table of a member, or of what differs from one in its layers alone. Raises KeyError for others."""
        has_width = any(width is not None for width in given(self, "d_head"))
        style = (gene_of(arch, "d_head") if has_width else arch.d_head, *(getattr(arch, key) for key in STYLE_KEYS))
        return self._tables[arch.d_model, arch.d_embed, arch.vocab_size, style]

    # -- membership ----------------------------------------------------------------------------------------------------

    def contains(self, arch: Architecture) -> bool:
        """Whether `arch` is a member; the order of its layers does not matter."""
        return self.violation(arch) is None

    def violation(self, arch: Architecture) -> str | None:
        """Name of the first gene, fixed value or rule that `arch` breaks; None for a member."""
        genes, fixed, rules, d = self.genes, self.fixed, self.rules, arch.d_model
        inners, heads = {layer.d_inner for layer in arch.layers}, {layer.n_head for layer in arch.layers}
        shared = {layer.n_kv_head for layer in arch.layers if genes.n_kv_head or layer.n_kv_head != layer.n_head}
        widths = {arch.head_width(layer) for layer in arch.layers}
        d_heads = given(self, "d_head")
        has_widths = arch.d_head is None if d_heads == (None,) else len(widths) == 1 and widths <= set(d_heads)
        count = arch.parameter_count
        checks = (
            ("backbone", arch.backbone == self.backbone),
            ("vocab_size", arch.vocab_size in vocab_sizes(self)),
            ("d_embed", arch.d_embed in d_embeds(self, d)),
            ("embedding_factor", arch.embedding_factor == fixed.embedding_factor),
            ("cutoffs", arch.cutoffs is None),
            ("max_seq_len", arch.max_seq_len == fixed.max_seq_len),
            ("tie_embeddings", arch.tie_embeddings == fixed.tie_embeddings),
            ("precision", arch.precision in (genes.precision or (None,))),
            *((key, getattr(arch, key) in given(self, key)) for key in STYLE_KEYS),
            ("n_layer", arch.n_layer in genes.n_layer),
            ("d_model", d in genes.d_model),
            ("d_inner", inners <= set(genes.d_inner)),
            ("n_head", heads <= set(genes.n_head)),
            ("n_kv_head", shared <= set(genes.n_kv_head)),
            ("homogeneous", not rules.homogeneous or len(set(arch.layers)) == 1),
            ("d_head", has_widths and all(rules.d_head.allows(width) for width in widths)),
            ("d_inner_over_d_model", all(rules.d_inner_over_d_model.allows(inner, d) for inner in inners)),
            ("decoder_params", rules.decoder_params.allows(count.decoder)),
            ("total_params", rules.total_params.allows(count.total)),
            ("weight_bytes", rules.weight_bytes.allows(BYTES_PER_NUMBER * count.total)),
        )
        return next((name for name, holds in checks if not holds), None)

    def bounds_of(self, arch: Architecture) -> tuple[tuple[str, int, Side], ...]:
        """(gene, value, side) wherever a member stands at the edge of the space; see `Genes.bounds_of`."""
        return self.genes.bounds_of(arch)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A random member: depth, width and embedding uniform over what is feasible together, layers over what the
        width allows.

        A draw that breaks a bound on parameters is drawn again, all of it, `SAMPLE_PATIENCE` times; after that each
        layer is drawn among those that still lead to a member. Raises SpaceError naming the rule if even that finds
        none, which can only happen where costs share no unit (see `space_table`).
        """
        for _ in range(SAMPLE_PATIENCE):
            table, depth = self._pairs[int(rng.integers(len(self._pairs)))]
            picks = table.draw(depth, rng)
            if table.is_within(picks):
                return self.build(table, picks, self._precision(rng))
        for _ in range(SAMPLE_PATIENCE):
            table, depth = self._pairs[int(rng.integers(len(self._pairs)))]
            within = table.draw_within(depth, rng)
            if within is not None and table.is_within(within):
                return self.build(table, within, self._precision(rng))
        rule, n_tries = self._parameter_rule(), 2 * SAMPLE_PATIENCE
        raise SpaceError(f"rule {rule}: no member of space {self.name} found in {n_tries} draws; widen it")

    def mutate(self, parent: Architecture, rng: np.random.Generator, p: float = 0.3) -> Architecture | None:
        """A member in which each gene of `parent` was drawn again with probability `p`; it may equal the parent.

        Genes are n_layer, d_model, each layer's d_inner and n_head, and whatever else the space gives values for.
        A smaller depth drops layers at random, a larger one adds random ones; a value that the new width does not allow
        is drawn again. None if no try of `CHANGE_PATIENCE` keeps the rules.
        """
        for _ in range(CHANGE_PATIENCE):
            d_model = _redraw(parent.d_model, self._widths, rng, p)
            table = self._table(d_model, lambda gene, allowed: _redraw(gene_of(parent, gene), allowed, rng, p))
            if table is None:
                continue
            depth = parent.n_layer
            if depth not in table.depths or rng.random() < p:
                depth = table.depths[int(rng.integers(len(table.depths)))]
            layers: list[LayerSpec | None] = list(_keep(parent.layers, depth, rng))
            layers += [None] * (depth - len(layers))
            if self.rules.homogeneous:
                layers = layers[:1]
            picks = []
            for layer in layers:
                inner = _redraw(None if layer is None else layer.d_inner, table.d_inner, rng, p)
                head = _redraw(None if layer is None else layer.n_head, table.n_head, rng, p)
                shared = None
                if self.genes.n_kv_head:
                    shared = _redraw(None if layer is None else layer.n_kv_head, table.shared_with(head), rng, p)
                picks.append(table.index(inner, head, shared))
            picks = picks * depth if self.rules.homogeneous else sorted(picks)
            if table.is_within(picks):
                names = self.genes.precision
                return self.build(table, picks, _redraw(parent.precision, names, rng, p) if names else None)
        return None

    def crossover(self, one: Architecture, other: Architecture, rng: np.random.Generator) -> Architecture | None:
        """A member whose genes come from either parent with probability 1/2 each; it may equal a parent.

        Layers are paired in canonical order after the longer parent has lost random ones; where only one parent has a
        layer, it gives it. A value that the width does not allow becomes the nearest allowed one. None if no try of
        `CHANGE_PATIENCE` keeps the rules.
        """
        for _ in range(CHANGE_PATIENCE):
            d_model = (one, other)[int(rng.integers(2))].d_model
            depth = (one, other)[int(rng.integers(2))].n_layer
            table = self._table(d_model, lambda gene, _: gene_of((one, other)[int(rng.integers(2))], gene))
            if table is None or depth not in table.depths:
                continue
            first, second = sorted(_keep(one.layers, depth, rng)), sorted(_keep(other.layers, depth, rng))
            if len(first) < len(second):
                first, second = second, first
            if len(first) < depth:
                continue
            sides = rng.integers(2, size=(depth, 3 if self.genes.n_kv_head else 2)).tolist()
            picks = []
            for i in range(1 if self.rules.homogeneous else depth):
                pair = (first[i], second[i] if i < len(second) else first[i])
                inner = _nearest(pair[sides[i][0]].d_inner, table.d_inner)
                head = _nearest(pair[sides[i][1]].n_head, table.n_head)
                shared = None
                if self.genes.n_kv_head:
                    shared = _nearest(pair[sides[i][2]].n_kv_head, table.shared_with(head))
                picks.append(table.index(inner, head, shared))
            picks = picks * depth if self.rules.homogeneous else sorted(picks)
            if table.is_within(picks):
                giver = (one, other)[int(rng.integers(2))] if self.genes.precision else one
                return self.build(table, picks, giver.precision)
        return None

    # -- all members ---------------------------------------------------------------------------------------------------

    def size(self) -> int | float:
        """The number of members: an int is exact, a float an upper estimate that leaves parameter bounds aside.

        A set of layers counts once, whatever their order. Exact for all built-in spaces (the paper's takes 0.1 s).
        """
        counts: dict[tuple[object, ...], int | None] = {}
        total: int | None = 0
        for table in self._tables.values():
            # of any embedding: the layers are the same
            alike = (table.d_model, table.style, table.low, table.high, table.depths)
            if alike not in counts:
                counts[alike] = table.count()
            count = counts[alike]
            total = None if total is None or count is None else total + count
        n_precisions = len(self.genes.precision) or 1
        if total is not None:
            return n_precisions * total
        return float(min(n_precisions * sum(table.count_unbounded() for table in self._tables.values()), 10**308))

    def enumerate(self) -> Iterator[Architecture]:
        """Every member once, by `tables`, n_layer, layers, precision. Only if `size` is small."""
        for table, depth in self._pairs:
            for picks in table.walk(depth):
                for precision in self.genes.precision or (None,):
                    yield self.build(table, picks, precision)

    # -- narrowing, widening and JSON ----------------------------------------------------------------------------------

    def restricted(
        self,
        *,
        max_weight_bytes: int | None = None,
        min_decoder_params: int | None = None,
        max_decoder_params: int | None = None,
        precision: str = "float32",
    ) -> "SearchSpace":
        """The members that also keep these bounds. Raises SpaceError naming the rule if none is left.

        max_weight_bytes counts weights of `precision` (where that is a gene: of the smallest) and is called `memory` in
        that error; cache and activations come on top, see `footprint`.
        """
        rules = self.rules
        if max_weight_bytes is not None:
            max_weight_bytes = max(
                float32_bytes(max_weight_bytes, name) for name in self.genes.precision or (precision,)
            )
        weights = _tighter(rules.weight_bytes, None, max_weight_bytes)
        decoder = _tighter(rules.decoder_params, min_decoder_params, max_decoder_params)
        return dataclasses.replace(self, rules=dataclasses.replace(rules, weight_bytes=weights, decoder_params=decoder))

    def widened(self, gene: str, side: Side) -> "SearchSpace | None":
        """The space with further values of `gene` beyond that bound (`Genes.widened`); the rules stay.

        None where no value can be added, or the rules allow none of those. Raises SpaceError for what is no gene.
        """
        genes = self.genes.widened(gene, side)
        if genes is None:
            return None
        try:
            space = dataclasses.replace(self, genes=genes)
        except SpaceError:  # too many combinations, or an embedding that cannot be built
            return None
        added = set(getattr(genes, gene)) - set(getattr(self.genes, gene))
        return space if any(added.intersection(_values(table, gene)) for table in space.tables) else None

    def to_json(self) -> dict[str, Any]:
        genes, fixed = self.genes.to_json(), self.fixed.to_json()
        return {
            "name": self.name,
            "description": self.description,
            "backbone": self.backbone,
            **({} if self.rank is None else {"rank": self.rank}),
            "genes": genes,
            "fixed": {key: value for key, value in fixed.items() if key not in genes},
            "rules": self.rules.to_json(),
        }

    @classmethod
    def from_json(cls, data: object) -> "SearchSpace":
        """Raises SpaceError naming the key that is wrong, or the rule that leaves no member, and the remedy."""
        items: Mapping[str, Any] = check_keys("the space", data, _KEYS, required=("name", "backbone", "genes"))
        name, backbone, description = items["name"], items["backbone"], items.get("description", "")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SpaceError(f"name must be up to 60 of a-z, 0-9, '.', '_' and '-', not {name!r:.80}")
        if not isinstance(backbone, str) or backbone not in BACKBONES:
            raise SpaceError(f"unknown backbone {backbone!r:.80}; known: {', '.join(BACKBONES)}")
        if not isinstance(description, str):
            raise SpaceError(f"description must be text, not {description!r:.80}")
        genes, fixed = Genes.from_json(items["genes"]), Fixed.from_json(items.get("fixed", {}))
        for key in (*GENE_KEYS, *STYLE_KEYS):
            if key in items.get("fixed", {}) and key in items["genes"]:
                raise SpaceError(f"genes.{key}: {key} is in [fixed] too; keep one of the two")
        return cls(
            name=name,
            backbone=backbone,
            genes=genes,
            fixed=fixed,
            rules=Rules.from_json(items.get("rules", {})),
            description=description,
            rank=integer("rank", items["rank"], maximum=1000) if "rank" in items else None,
        )

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _table(self, d_model: int, choose: Callable[[str, tuple[Any, ...]], Any]) -> WidthTable | None:
        """The table of a width, and of the embedding and style whose genes are `choose(gene, values)`; None without
        members."""
        genes, fixed = self.genes, self.fixed
        d_embed = choose("d_embed", genes.d_embed) if genes.d_embed else fixed.d_embed or d_model
        vocab_size = choose("vocab_size", genes.vocab_size) if genes.vocab_size else fixed.vocab_size
        style = [choose(key, given(self, key)) if getattr(genes, key) else given(self, key)[0] for key in SHARED_KEYS]
        return self._tables.get((d_model, d_embed, vocab_size, tuple(style)))

    def _precision(self, rng: np.random.Generator) -> str | None:
        names = self.genes.precision
        return names[int(rng.integers(len(names)))] if names else None

    def build(self, table: WidthTable, picks: list[int], precision: str | None = None) -> Architecture:
        """The member with these shapes of `table`, in canonical order; `precision` where it is a gene."""
        picks = sorted(picks)
        layers = tuple(table.shapes[pick] for pick in picks)
        return Architecture(
            d_model=table.d_model,
            layers=layers,
            precision=precision,
            **fields_outside(self, table.d_embed, table.vocab_size, table.style),
        )

    def _parameter_rule(self) -> str:
        rules = (name for name in ("decoder_params", "total_params") if not getattr(self.rules, name).is_open)
        return next(rules, "weight_bytes")


def _values(table: WidthTable, gene: str) -> tuple[int, ...]:
    values = table.style[0] if gene == "d_head" else getattr(table, "depths" if gene == "n_layer" else gene)
    return values if isinstance(values, tuple) else (values,)


def _tighter(bound: Bound, minimum: int | None, maximum: int | None) -> Bound:
    lows = [value for value in (bound.at_least, minimum) if value is not None]
    highs = [value for value in (bound.at_most, maximum) if value is not None]
    return Bound(at_least=max(lows, default=None), at_most=min(highs, default=None))


def _keep(layers: tuple[LayerSpec, ...], depth: int, rng: np.random.Generator) -> tuple[LayerSpec, ...]:
    """At most `depth` of the layers, which ones at random; in their order."""
    if len(layers) <= depth:
        return layers
    return tuple(layers[i] for i in sorted(rng.permutation(len(layers))[:depth].tolist()))


def _redraw(value: _Gene | None, allowed: tuple[_Gene, ...], rng: np.random.Generator, p: float) -> _Gene:
    if value is None or value not in allowed or rng.random() < p:
        return allowed[int(rng.integers(len(allowed)))]
    return value


def _nearest(value: int, allowed: tuple[int, ...]) -> int:
    return min(allowed, key=lambda candidate: (abs(candidate - value), candidate))

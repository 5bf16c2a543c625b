"""Search spaces as data: which architectures may be built, how to draw one, change one, join two, count and list all.

A space is the JSON form of a file in `spaces/` (described at the top of `spaces/lts-gpt2.toml`). It is checked when it
is made: a space without a member cannot exist, and the error names the rule that emptied it. Everything is decided by
formula; nothing is ever built or measured. Members are always written with their layers in canonical order.
Drawing follows Javaheripi et al. 2022 (LiteTransformerSearch, arXiv 2203.02094, `evolution.py`), with finite patience.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts.errors import ArchitectureError, SpaceError
from edge_lts.footprint import BYTES_PER_NUMBER, float32_bytes
from edge_lts.space_rules import GENE_KEYS, Bound, Fixed, Genes, Rules, Side, check_keys, integer
from edge_lts.space_table import WidthTable

SAMPLE_PATIENCE = 64
CHANGE_PATIENCE = 64
MAX_SHAPES = 100_000
MAX_TABLES = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")
_KEYS = ("name", "description", "backbone", "rank", "genes", "fixed", "rules")

_Key = tuple[int, int, int]  # d_model, d_embed, vocab_size
_Gene = TypeVar("_Gene", int, str)


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
        tables = _apply_parameter_rules(self, _apply_shape_rules(self))
        keyed = {(table.d_model, table.d_embed, table.vocab_size): table for table in tables}
        object.__setattr__(self, "_tables", keyed)
        object.__setattr__(self, "_pairs", tuple((table, depth) for table in tables for depth in table.depths))
        object.__setattr__(self, "_widths", tuple(dict.fromkeys(table.d_model for table in tables)))

    @property
    def tables(self) -> tuple[WidthTable, ...]:
        """What can be built at each (d_model, d_embed, vocab_size) that has members, in ascending order of these."""
        return tuple(self._tables.values())

    def table_of(self, arch: Architecture) -> WidthTable:
        """The table of a member, or of what differs from one in its layers alone. Raises KeyError for others."""
        return self._tables[arch.d_model, arch.d_embed, arch.vocab_size]

    # -- membership ----------------------------------------------------------------------------------------------------

    def contains(self, arch: Architecture) -> bool:
        """Whether `arch` is a member; the order of its layers does not matter."""
        return self.violation(arch) is None

    def violation(self, arch: Architecture) -> str | None:
        """Name of the first gene, fixed value or rule that `arch` breaks; None for a member."""
        genes, fixed, rules, d = self.genes, self.fixed, self.rules, arch.d_model
        inners, heads = {layer.d_inner for layer in arch.layers}, {layer.n_head for layer in arch.layers}
        count = arch.parameter_count
        checks = (
            ("backbone", arch.backbone == self.backbone),
            ("vocab_size", arch.vocab_size in _vocab_sizes(self)),
            ("d_embed", arch.d_embed in _d_embeds(self, d)),
            ("embedding_factor", arch.embedding_factor == fixed.embedding_factor),
            ("cutoffs", arch.cutoffs is None),
            ("max_seq_len", arch.max_seq_len == fixed.max_seq_len),
            ("tie_embeddings", arch.tie_embeddings == fixed.tie_embeddings),
            ("precision", arch.precision in (genes.precision or (None,))),
            ("n_layer", arch.n_layer in genes.n_layer),
            ("d_model", d in genes.d_model),
            ("d_inner", inners <= set(genes.d_inner)),
            ("n_head", heads <= set(genes.n_head)),
            ("homogeneous", not rules.homogeneous or len(set(arch.layers)) == 1),
            ("d_head", all(rules.d_head.allows(d // head) for head in heads)),
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

        Genes are n_layer, d_model, each layer's d_inner and n_head, and d_embed, vocab_size and precision where the
        space says so.
        A smaller depth drops layers at random, a larger one adds random ones; a value that the new width does not allow
        is drawn again. None if no try of `CHANGE_PATIENCE` keeps the rules.
        """
        for _ in range(CHANGE_PATIENCE):
            d_model = _redraw(parent.d_model, self._widths, rng, p)
            table = self._table(d_model, lambda gene, allowed: _redraw(getattr(parent, gene), allowed, rng, p))
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
                inner, head = (None, None) if layer is None else (layer.d_inner, layer.n_head)
                inner = _redraw(inner, table.d_inner, rng, p)
                head = _redraw(head, table.n_head, rng, p)
                picks.append(table.index(inner, head))
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
            table = self._table(d_model, lambda gene, _: getattr((one, other)[int(rng.integers(2))], gene))
            if table is None or depth not in table.depths:
                continue
            first, second = sorted(_keep(one.layers, depth, rng)), sorted(_keep(other.layers, depth, rng))
            if len(first) < len(second):
                first, second = second, first
            if len(first) < depth:
                continue
            sides = rng.integers(2, size=(depth, 2)).tolist()
            picks = []
            for i in range(1 if self.rules.homogeneous else depth):
                pair = (first[i], second[i] if i < len(second) else first[i])
                inner, head = pair[sides[i][0]].d_inner, pair[sides[i][1]].n_head
                picks.append(table.index(_nearest(inner, table.d_inner), _nearest(head, table.n_head)))
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
            alike = (table.d_model, table.low, table.high, table.depths)  # of any embedding: the layers are the same
            if alike not in counts:
                counts[alike] = table.count()
            count = counts[alike]
            total = None if total is None or count is None else total + count
        n_precisions = len(self.genes.precision) or 1
        if total is not None:
            return n_precisions * total
        return float(min(n_precisions * sum(table.count_unbounded() for table in self._tables.values()), 10**308))

    def enumerate(self) -> Iterator[Architecture]:
        """Every member once, by d_model, d_embed, vocab_size, n_layer, layers, precision. Only if `size` is small."""
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
        for key in GENE_KEYS:
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

    def _table(self, d_model: int, choose: Callable[[str, tuple[int, ...]], int]) -> WidthTable | None:
        """The table of a width and of the embedding whose genes are `choose(gene, values)`; None without members."""
        genes, fixed = self.genes, self.fixed
        d_embed = choose("d_embed", genes.d_embed) if genes.d_embed else fixed.d_embed or d_model
        vocab_size = choose("vocab_size", genes.vocab_size) if genes.vocab_size else fixed.vocab_size
        return self._tables.get((d_model, d_embed, vocab_size))

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
            **_fields_outside(self, table.d_embed, table.vocab_size),
        )

    def _parameter_rule(self) -> str:
        rules = (name for name in ("decoder_params", "total_params") if not getattr(self.rules, name).is_open)
        return next(rules, "weight_bytes")


def _vocab_sizes(space: SearchSpace) -> tuple[int, ...]:
    return space.genes.vocab_size or (space.fixed.vocab_size,)


def _d_embeds(space: SearchSpace, d_model: int) -> tuple[int, ...]:
    return space.genes.d_embed or (space.fixed.d_embed or d_model,)


def _values(table: WidthTable, gene: str) -> tuple[int, ...]:
    values = getattr(table, "depths" if gene == "n_layer" else gene)
    return values if isinstance(values, tuple) else (values,)


def _fields_outside(space: SearchSpace, d_embed: int, vocab_size: int) -> dict[str, Any]:
    """What an architecture has besides width and layers."""
    fixed = space.fixed
    return {
        "backbone": space.backbone,
        "vocab_size": vocab_size,
        "d_embed": d_embed,
        "embedding_factor": fixed.embedding_factor,
        "max_seq_len": fixed.max_seq_len,
        "tie_embeddings": fixed.tie_embeddings,
    }


def _empty(space: SearchSpace, rule: str, why: str) -> SpaceError:
    return SpaceError(f"rule {rule} leaves no member of space {space.name}: {why}")


def _apply_shape_rules(space: SearchSpace) -> list[WidthTable]:
    """A table for each embedding at each width at which a layer can be built. Raises SpaceError naming the rule that
    leaves none."""
    genes, rules = space.genes, space.rules
    for limit, names in ((MAX_SHAPES, GENE_KEYS[1:]), (MAX_TABLES, ("d_model", "d_embed", "vocab_size"))):
        counts = {name: len(getattr(genes, name)) for name in names if getattr(genes, name)}
        if math.prod(counts.values()) > limit:
            raise SpaceError(f"genes: more than {limit:,} combinations of {', '.join(counts)}; take larger steps")
    heads = {d: tuple(head for head in genes.n_head if d % head == 0) for d in genes.d_model}
    heads = {d: allowed for d, allowed in heads.items() if allowed}
    if not heads:
        raise _empty(space, "n_head_divides_d_model", "no n_head divides any d_model; add one that does")
    heads = {d: tuple(head for head in allowed if rules.d_head.allows(d // head)) for d, allowed in heads.items()}
    heads = {d: allowed for d, allowed in heads.items() if allowed}
    if not heads:
        raise _empty(space, "d_head", f"d_model / n_head is never {rules.d_head}; change n_head, d_model or the rule")
    ratio = rules.d_inner_over_d_model
    inners = {d: tuple(inner for inner in genes.d_inner if ratio.allows(inner, d)) for d in heads}
    inners = {d: allowed for d, allowed in inners.items() if allowed}
    if not inners:
        why = f"d_inner / d_model is never {ratio} at widths {', '.join(map(str, heads))}; change d_inner or the rule"
        raise _empty(space, "d_inner_over_d_model", f"{why:.300}")
    tables = []
    try:
        for d in inners:
            first, *others = (
                _fields_outside(space, d_embed, vocab_size)
                for d_embed, vocab_size in itertools.product(_d_embeds(space, d), _vocab_sizes(space))
            )
            table = WidthTable.build(d, inners[d], heads[d], genes.n_layer, first, rules.homogeneous)
            tables += [table, *(table.within(fields) for fields in others)]
    except ArchitectureError as error:
        where = next((f"genes.{gene}" for gene in ("d_embed", "vocab_size") if getattr(genes, gene)), "fixed")
        raise SpaceError(f"{where}: {error}") from error
    return tables


def _apply_parameter_rules(space: SearchSpace, tables: list[WidthTable]) -> list[WidthTable]:
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

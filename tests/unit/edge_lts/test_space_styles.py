"""Spaces over shared keys and values, head widths and styles: tables, members, drawing, bounds, bad files; `edge`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import ArchitectureError, SpaceError
from edge_lts.space import SearchSpace
from edge_lts.style import STYLE_KEYS
from tests.unit.edge_lts.test_space import builtin

GENES = {"n_layer": [1, 2], "d_model": [32, 64], "d_inner": [64, 128], "n_head": [2, 4]}


def space(backbone: str = "gpt2", fixed: dict[str, Any] | None = None, rules: Any = None, **genes: Any) -> SearchSpace:
    data = {"name": "t", "backbone": backbone, "genes": {**GENES, **genes}, "rules": rules or {}}
    return SearchSpace.from_json({**data, "fixed": {"vocab_size": 100, "max_seq_len": 16, **(fixed or {})}})


SHARED = space(n_kv_head=[1, 2])
WIDE = space(n_kv_head=[1, 2, 4], d_head=[16, 24])
STYLED = space("llama", d_head=[16, 24], activation=["silu", "relu2"], norm=["rmsnorm", "layernorm"], is_gated=[True])
ALL = {"shared": SHARED, "wide": WIDE, "styled": STYLED}
every_space = pytest.mark.parametrize("one", ALL.values(), ids=ALL.keys())


def by_brute_force(one: SearchSpace) -> set[Architecture]:
    """All members, by trying everything that the genes name."""
    genes, found = one.genes, set()
    shared = genes.n_kv_head or (0,)
    shapes = [
        LayerSpec(d_inner=inner, n_head=head, n_kv_head=kv)
        for inner, head, kv in itertools.product(genes.d_inner, genes.n_head, shared)
        if not kv or head % kv == 0
    ]
    lists = [getattr(genes, key) or (getattr(one.fixed, key),) for key in ("d_head", *STYLE_KEYS)]
    for d, depth, values in itertools.product(genes.d_model, genes.n_layer, itertools.product(*lists)):
        for layers in itertools.combinations_with_replacement(sorted(shapes), depth):
            try:
                arch = Architecture(
                    backbone=one.backbone,
                    d_model=d,
                    layers=layers,
                    vocab_size=100,
                    max_seq_len=16,
                    **dict(zip(("d_head", *STYLE_KEYS), values, strict=True)),
                )
            except ArchitectureError:
                continue
            if one.contains(arch):
                found.add(arch)
    return found


@every_space
def test_members_are_all_there_is_and_each_once(one: SearchSpace) -> None:
    members = list(one.enumerate())
    assert len(members) == len(set(members)) == len({arch.arch_id for arch in members}) == one.size()
    assert set(members) == by_brute_force(one)
    for arch in members:
        table = one.table_of(arch)
        assert one.build(table, [table.index_of(layer) for layer in arch.layers]) == arch == arch.canonical()
        assert Architecture.from_json(arch.to_json()) == arch


@every_space
def test_costs_of_layers_add_up_and_widths_are_those_of_the_layers(one: SearchSpace) -> None:
    for arch in one.enumerate():
        table = one.table_of(arch)
        picks = [table.index_of(layer) for layer in arch.layers]
        assert table.base + sum(table.costs[pick] for pick in picks) == arch.decoder_params
        assert table.outside == arch.total_params - arch.decoder_params
        for name, values in table.widths.items():
            assert sum(values[pick] for pick in picks) == arch.width_sums[name]


def test_widths_are_named_only_where_they_differ() -> None:
    assert all(not table.widths for table in space().tables)
    assert {name for table in SHARED.tables for name in table.widths} == {"kv_width"}
    assert {name for table in WIDE.tables for name in table.widths} == {"q_width", "kv_width"}
    with pytest.raises(ValueError, match="depend on the heads too"):
        WIDE.tables[0].decoder_params(np.array([1]), np.array([64]))


def test_the_frame_of_a_table_tells_its_head_width() -> None:
    for table in WIDE.tables:
        assert WIDE.build(table, [table.frame]).d_head == table.style[0]


@every_space
def test_drawing_changing_and_joining_give_diverse_members(one: SearchSpace) -> None:
    rng = np.random.default_rng(5)
    members = [one.sample(rng) for _ in range(400)]
    children = []
    for first, second in itertools.pairwise(members):
        children += [one.mutate(first, rng, 0.5), one.crossover(first, second, rng)]
    for group in (members, [child for child in children if child is not None]):
        assert all(one.violation(arch) is None for arch in group)
        assert {one.table_of(arch).style for arch in group} == {table.style for table in one.tables}
        pairs = {(layer.n_head, layer.n_kv_head) for arch in group for layer in arch.layers}
        assert pairs == {pair for table in one.tables for pair in table.heads}
    assert children.count(None) < 100


@every_space
def test_json_round_trip(one: SearchSpace) -> None:
    assert SearchSpace.from_json(one.to_json()) == one


def test_a_stranger_is_named_by_what_makes_it_one() -> None:
    member = next(iter(SHARED.enumerate()))
    whole = tuple(LayerSpec(d_inner=layer.d_inner, n_head=4) for layer in member.layers)
    for change, name in (
        ({"layers": whole}, "n_kv_head"),
        ({"d_head": 24}, "d_head"),
        ({"activation": "relu"}, "activation"),
        ({"is_gated": True}, "is_gated"),
        ({"norm": "rmsnorm"}, "norm"),
        ({"position": "none"}, "position"),
        ({"qkv_conv": 3}, "qkv_conv"),
    ):
        assert SHARED.violation(member.replace(**change)) == name
    plain = space()
    assert plain.violation(member) == "n_kv_head"
    assert space(fixed={"d_head": 24}).violation(next(iter(plain.enumerate()))) == "d_head"


def test_bounds_and_widening_know_the_new_genes() -> None:
    arch = WIDE.sample(np.random.default_rng(0)).replace(
        d_model=64, layers=(LayerSpec(d_inner=64, n_head=4, n_kv_head=1),), d_head=24
    )
    found = {(gene, side) for gene, _, side in WIDE.bounds_of(arch)}
    assert {("n_kv_head", "low"), ("d_head", "high")} <= found
    wider = WIDE.widened("d_head", "high")
    assert wider is not None
    assert wider.genes.d_head == (16, 24, 32)
    assert WIDE.widened("n_kv_head", "high") is None  # no head count is divisible by 8
    more = space(n_head=[8, 16], n_kv_head=[2, 4], d_model=[64]).widened("n_kv_head", "high")
    assert more is not None
    assert more.genes.n_kv_head == (2, 4, 8)


def test_rotary_positions_leave_out_heads_of_odd_width() -> None:
    one = space("llama", d_model=[20, 24], n_head=[4, 8])
    assert {(table.d_model, table.heads) for table in one.tables} == {(24, ((4, 4),))}  # 20 / 4 and 24 / 8 are odd
    both = space(d_model=[20], n_head=[2, 4], position=["learned", "rotary"])
    assert {(table.style[4], table.heads) for table in both.tables} == {
        ("learned", ((2, 2), (4, 4))),
        ("rotary", ((2, 2),)),
    }
    assert set(both.enumerate()) == by_brute_force(both)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space(n_kv_head=[3]), "n_kv_head_divides_n_head"),
        (lambda: space("llama", d_head=[7]), "even_d_head"),
        (lambda: space(rules={"d_head": {"at_least": 65}}, d_head=[64]), "rule d_head"),
        (lambda: space(activation=["swish"]), "genes.activation: activation must be one of"),
        (lambda: space(activation=[]), "genes.activation must be a list"),
        (lambda: space(activation="relu"), "genes.activation must be a list"),
        (lambda: space(activation=["relu", "relu1"]), "genes.activation lists a value twice"),
        (lambda: space(activation=[None]), "genes.activation has an empty value"),
        (lambda: space(is_gated=[0]), "genes.is_gated: is_gated must be true or false"),
        (lambda: space(qkv_conv=[0, 4]), "genes.qkv_conv: qkv_conv must be 0 or 3"),
        (lambda: space(fixed={"norm": "none"}), "fixed.norm: norm must be"),
        (lambda: space(fixed={"norm": "rmsnorm"}, norm=["layernorm"]), "genes.norm: norm is in [fixed] too"),
        (lambda: space(fixed={"d_head": 16}, d_head=[16]), "genes.d_head: d_head is in [fixed] too"),
        (lambda: space("transformer-xl", norm=["rmsnorm"]), "norm: backbone transformer-xl has layernorm"),
        (lambda: space("transformer-xl", n_kv_head=[1]), "backbone transformer-xl has no n_kv_head"),
        (lambda: space("primer", d_head=[24]), "d_head: heads of backbone primer"),
        (lambda: space(d_head={"min": 1, "max": 4000}, d_inner={"min": 64, "max": 128}), "take larger steps"),
    ],
)
def test_bad_files_name_the_key(make: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edge_has_llamas_blocks_and_guard_rails() -> None:
    edge = builtin("edge")
    assert (edge.backbone, edge.rank) == ("llama", None)
    assert {table.d_model for table in edge.tables} == set(edge.genes.d_model)  # no width is there in vain
    rng = np.random.default_rng(1)
    pairs = set()
    for arch in (edge.sample(rng) for _ in range(200)):
        assert (arch.norm, arch.position, arch.is_gated, arch.activation) == ("rmsnorm", "rotary", True, "silu")
        for layer in arch.layers:
            assert 32 <= arch.head_width(layer) <= 128
            assert 1.2 < layer.d_inner / arch.d_model <= 6
            pairs.add((layer.n_head, layer.n_kv_head))
    assert pairs == {(4, 2), (4, 4), (8, 2), (8, 4)}

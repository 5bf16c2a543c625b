"""Search spaces: the built-in files, checking, drawing, changing, counting and narrowing."""

import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpaceError
from edge_lts.space import SearchSpace
from edge_lts.space_rules import Side

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPACES = Path(__file__).parents[3] / "spaces"
NAMES = tuple(sorted(path.stem for path in SPACES.glob("*.toml")))


@functools.cache
def builtin(name: str) -> SearchSpace:
    return SearchSpace.from_json(tomllib.loads((SPACES / f"{name}.toml").read_text(encoding="utf-8")))


def minimal(**changes: Any) -> dict[str, Any]:
    genes = {"n_layer": [1, 2, 3], "d_model": [32, 64], "d_inner": [64, 96, 128], "n_head": [1, 2]}
    return {"name": "t", "backbone": "gpt2", "genes": genes, "fixed": {"vocab_size": 100, "max_seq_len": 16}} | changes


def with_genes(**genes: Any) -> dict[str, Any]:
    return minimal(genes={**minimal()["genes"], **genes})


def with_embedding_genes(**changes: Any) -> dict[str, Any]:
    """Small in layers; vocab_size and d_embed are genes."""
    genes = {"n_layer": [1, 2], "d_model": [32, 64], "d_inner": [64, 128], "n_head": [1, 2]}
    embedding = {"d_embed": [16, 32, 64], "vocab_size": [100, 400]}
    return minimal(genes={**genes, **embedding}, fixed={"max_seq_len": 16}) | changes


def by_brute_force(space: SearchSpace) -> set[Architecture]:
    """All members, by trying everything."""
    genes, fixed = space.genes, space.fixed
    shapes = [LayerSpec(d_inner=inner, n_head=head) for inner in genes.d_inner for head in genes.n_head]
    found = set()
    vocab_sizes, d_embeds = genes.vocab_size or (fixed.vocab_size,), genes.d_embed or (fixed.d_embed or 0,)
    for d, n, d_embed, vocab_size in itertools.product(genes.d_model, genes.n_layer, d_embeds, vocab_sizes):
        for layers in itertools.combinations_with_replacement(sorted(shapes), n):
            if all(d % layer.n_head == 0 for layer in layers):
                arch = Architecture(
                    backbone="gpt2",
                    d_model=d,
                    d_embed=d_embed,
                    layers=layers,
                    vocab_size=vocab_size,
                    max_seq_len=fixed.max_seq_len,
                )
                if space.contains(arch):
                    found.add(arch)
    return found


# -- the built-in files ------------------------------------------------------------------------------------------------


def test_the_promised_spaces_are_there() -> None:
    assert {"demo", "everyday", "lts-gpt2", "small", "tiny"} <= set(NAMES)


def test_lts_gpt2_is_the_papers_space() -> None:
    space = builtin("lts-gpt2")
    assert space.genes.n_layer == tuple(range(2, 16))
    assert space.genes.d_model == tuple(range(128, 961, 64))
    assert space.genes.d_inner == tuple(range(128, 4033, 64))
    assert space.genes.n_head == (2, 4, 8)
    assert space.fixed.vocab_size == 50257
    assert space.rules.to_json() == {
        "d_inner_over_d_model": {"above": 1.7},
        "decoder_params": {"at_least": 6_000_000, "at_most": 100_000_000},
    }
    assert space.rank is None


@pytest.mark.parametrize("name", ["everyday", "small", "demo"])
def test_our_own_spaces_have_guard_rails(name: str) -> None:
    space = builtin(name)
    assert space.genes.n_layer[0] >= 4
    rng = np.random.default_rng(1)
    for arch in (space.sample(rng) for _ in range(200)):
        for layer in arch.layers:
            assert 32 <= arch.d_model // layer.n_head <= 128
            assert 1.7 < layer.d_inner / arch.d_model <= 8
    assert {table.d_model for table, _ in space._pairs} == set(space.genes.d_model)  # no width is there in vain


def test_ranks_order_the_defaults_by_size() -> None:
    ranked = sorted((builtin(name) for name in NAMES if builtin(name).rank), key=lambda space: space.rank or 0)
    assert [space.name for space in ranked] == ["tiny", "demo", "small", "everyday"]
    sizes = [space.size() for space in ranked]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", NAMES)
def test_members_are_valid_canonical_and_diverse(name: str) -> None:
    space, rng = builtin(name), np.random.default_rng(2)
    members = [space.sample(rng) for _ in range(300)]
    for arch in members:
        assert space.violation(arch) is None
        assert arch == arch.canonical()
    assert {arch.d_model for arch in members} == {table.d_model for table, _ in space._pairs}
    assert {arch.n_layer for arch in members} == {depth for _, depth in space._pairs}
    for one, other in itertools.pairwise(members):
        for child in (space.mutate(one, rng, 0.3), space.crossover(one, other, rng)):
            assert child is not None
            assert space.violation(child) is None
            assert child == child.canonical()


@pytest.mark.parametrize("name", NAMES)
def test_costs_of_layers_add_up_to_the_formula(name: str) -> None:
    """What `space_table` takes for granted of a backbone."""
    space, rng = builtin(name), np.random.default_rng(4)
    for table, depth in space._pairs:
        picks = table.draw(depth, rng)
        arch = space.build(table, picks)
        assert table.base + sum(table.costs[pick] for pick in picks) == arch.decoder_params
        assert table.outside == arch.total_params - arch.decoder_params


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    space = builtin(name)
    assert space.name == name
    assert SearchSpace.from_json(space.to_json()) == space
    smaller = space.restricted(max_weight_bytes=4 * space.sample(np.random.default_rng(0)).total_params)
    assert SearchSpace.from_json(smaller.to_json()) == smaller


def test_sampling_the_papers_space_is_fast() -> None:
    """At least 2,000 a second (33,000 on an idle 2020s core); the best of three, because the machine is shared."""
    space, rng = builtin("lts-gpt2"), np.random.default_rng(3)
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(300):
            space.sample(rng)
        durations.append(time.perf_counter() - start)
    assert 300 / min(durations) > 2000


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD_FILES: tuple[tuple[Any, str], ...] = (
    ([], "the space must be a table"),
    (minimal(gene={}), "unknown key 'gene'"),
    ({"name": "t", "backbone": "gpt2"}, "genes is missing"),
    (minimal(name="No Spaces"), "name must be"),
    (minimal(backbone="gpt5"), "unknown backbone 'gpt5'"),
    (minimal(backbone=["gpt2"]), "unknown backbone"),
    (minimal(description=3), "description must be text"),
    (minimal(rank=0), "rank must lie between"),
    (minimal(genes={"n_layer": [1]}), "genes: d_model is missing"),
    (with_genes(d_kv=[1]), "genes: unknown key 'd_kv'"),
    (with_genes(max_seq_len=[100, 200]), "max_seq_len cannot be a gene; move it to [fixed]"),
    (with_genes(vocab_size=[100, 200]), "genes.vocab_size: vocab_size is in [fixed] too; keep one of the two"),
    (with_embedding_genes(fixed={"d_embed": 32}), "genes.d_embed: d_embed is in [fixed] too; keep one of the two"),
    (with_genes(d_embed=[]), "genes.d_embed is empty"),
    (
        minimal(genes={**minimal()["genes"], "d_embed": [16, 64]}, fixed={"embedding_factor": 32}),
        "genes.d_embed: d_embed 16 is too small",
    ),
    (
        minimal(genes={**minimal()["genes"], "vocab_size": [100, 20_000]}, fixed={"embedding_factor": 64}),
        "genes.vocab_size: d_embed 32 is too small",
    ),
    (with_genes(d_inner=[]), "genes.d_inner is empty"),
    (with_genes(d_inner=64), "genes.d_inner must be a list"),
    (with_genes(d_inner=[64, 64]), "genes.d_inner lists 64 twice"),
    (with_genes(d_inner=[64, 96.5]), "genes.d_inner[1] must be an integer"),
    (with_genes(d_inner=[True]), "genes.d_inner[0] must be an integer"),
    (with_genes(d_inner=["64"]), "genes.d_inner[0] must be an integer"),
    (with_genes(d_inner=[0]), "genes.d_inner[0] must lie between 1 and"),
    (with_genes(n_layer=[513]), "genes.n_layer[0] must lie between 1 and 512"),
    (with_genes(d_inner={"min": 64}), "genes.d_inner: max is missing"),
    (with_genes(d_inner={"min": 64, "max": 128, "stride": 2}), "genes.d_inner: unknown key 'stride'"),
    (with_genes(d_inner={"min": 128, "max": 64}), "genes.d_inner: min 128 exceeds max 64; exchange"),
    (with_genes(d_inner={"min": 64, "max": 130, "step": 32}), "write max = 128"),
    (with_genes(d_inner={"min": 64, "max": 128, "step": 0}), "genes.d_inner.step must lie between"),
    (with_genes(d_inner={"min": 1, "max": 1_000_000}), "genes.d_inner has more than 4096 values"),
    (with_genes(d_inner={"min": 1, "max": 4000}, d_model={"min": 1, "max": 4000}), "take larger steps"),
    (
        with_genes(d_embed={"min": 1, "max": 100}, d_model={"min": 32, "max": 3232, "step": 32}),
        "more than 4,096 combinations of d_model, d_embed; take larger steps",
    ),
    (
        with_genes(d_embed={"min": 1, "max": 2000}, d_inner={"min": 1, "max": 100}),
        "more than 100,000 combinations of d_model, d_inner, n_head, d_embed; take larger steps",
    ),
    (minimal(fixed={"vocab": 5}), "fixed: unknown key 'vocab'"),
    (minimal(fixed={"vocab_size": "5"}), "fixed.vocab_size must be an integer"),
    (minimal(fixed={"tie_embeddings": 1}), "fixed.tie_embeddings must be true or false"),
    (minimal(fixed={"embedding_factor": 64, "d_embed": 32}), "fixed: d_embed 32 is too small"),
    (minimal(rules={"d_heads": {}}), "rules: unknown key 'd_heads'"),
    (minimal(rules={"d_head": 32}), "rules.d_head must be a table"),
    (minimal(rules={"d_head": {}}), "rules.d_head has no bound"),
    (minimal(rules={"d_head": {"above": 3}}), "rules.d_head: unknown key 'above'"),
    (minimal(rules={"decoder_params": {"at_least": 1.5}}), "rules.decoder_params.at_least must be an integer"),
    (minimal(rules={"decoder_params": {"at_least": 9, "at_most": 8}}), "rules.decoder_params excludes everything"),
    (minimal(rules={"d_inner_over_d_model": {"above": 1, "at_least": 1}}), "gives both at_least and above"),
    (minimal(rules={"d_inner_over_d_model": {"above": float("nan")}}), "must be a number"),
    (minimal(rules={"d_inner_over_d_model": {"above": 2, "at_most": 2}}), "excludes everything"),
    (minimal(rules={"homogeneous": "yes"}), "rules.homogeneous must be true or false"),
)


@pytest.mark.parametrize(("data", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_bad_files_name_the_key(data: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        SearchSpace.from_json(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


IMPOSSIBLE = (
    (with_genes(n_head=[7]), "n_head_divides_d_model"),
    (minimal(rules={"d_head": {"at_least": 65}}), "d_head"),
    (minimal(rules={"d_inner_over_d_model": {"above": 4}}), "d_inner_over_d_model"),
    # Heads of 64 only exist at width 64, where d_inner is at most twice as wide: the second rule empties the space.
    (minimal(rules={"d_head": {"at_least": 64}, "d_inner_over_d_model": {"above": 2}}), "d_inner_over_d_model"),
    (minimal(rules={"decoder_params": {"at_least": 6_000_000}}), "decoder_params"),
    (minimal(rules={"decoder_params": {"at_most": 100}}), "decoder_params"),
    # Between the members: no sum of layers hits this gap, though the extremes lie on both sides of it.
    (minimal(rules={"decoder_params": {"at_least": 8_610, "at_most": 8_620}}), "decoder_params"),
    (minimal(rules={"total_params": {"at_most": 100}}), "total_params"),
    (minimal(rules={"decoder_params": {"at_least": 90_000}, "total_params": {"at_most": 50_000}}), "total_params"),
    (minimal(rules={"weight_bytes": {"at_most": 100}}), "weight_bytes (memory)"),
    (with_embedding_genes(rules={"total_params": {"at_most": 100}}), "total_params"),
)


@pytest.mark.parametrize(("data", "rule"), IMPOSSIBLE)
def test_impossible_spaces_name_the_rule(data: dict[str, Any], rule: str) -> None:
    with pytest.raises(
        SpaceError, match=f"^rule {rule.replace('(', '.').replace(')', '.')} leaves no member of space t: "
    ):
        SearchSpace.from_json(data)


def test_whole_floats_count_as_integers() -> None:
    rules = {"decoder_params": {"at_least": 3e4}}
    assert SearchSpace.from_json(minimal(rules=rules)).rules.decoder_params.at_least == 30_000


def test_a_ratio_is_a_decimal_and_above_is_strict() -> None:
    """1088 / 640 is 1.7 exactly, which is not above 1.7; binary fractions must not decide that."""
    genes = {"n_layer": [1], "d_model": [640], "d_inner": [1088, 1152], "n_head": [8]}
    above = SearchSpace.from_json(minimal(genes=genes, rules={"d_inner_over_d_model": {"above": 1.7}}))
    at_least = SearchSpace.from_json(minimal(genes=genes, rules={"d_inner_over_d_model": {"at_least": 1.7}}))
    assert (above.size(), at_least.size()) == (1, 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.integers(1, 300),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["min", "max", "step", "at_least", "at_most", "above", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
TABLES = {
    "genes": ["n_layer", "d_model", "d_inner", "n_head", "d_embed", "vocab_size", "x"],
    "fixed": ["vocab_size", "d_embed", "embedding_factor", "max_seq_len", "tie_embeddings"],
    "rules": ["d_inner_over_d_model", "d_head", "decoder_params", "total_params", "weight_bytes", "homogeneous"],
}


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_from_json_raises_nothing_but_space_errors(draw: st.DataObject) -> None:
    data = minimal()
    for table in draw.draw(st.lists(st.sampled_from(["genes", "fixed", "rules", "name", "rank"]), max_size=2)):
        if table in TABLES:
            key = draw.draw(st.sampled_from(TABLES[table]))
            data[table] = {**data.get(table, {}), key: draw.draw(VALUES)}
        else:
            data[table] = draw.draw(VALUES)
    try:
        space = SearchSpace.from_json(data)
    except SpaceError as error:
        message = str(error)
    else:
        message = ""
        assert SearchSpace.from_json(space.to_json()) == space
        assert space.contains(space.sample(np.random.default_rng(0)))
    assert "\n" not in message
    assert len(message) < 600


# -- membership --------------------------------------------------------------------------------------------------------


def test_violation_names_what_is_broken() -> None:
    rules = {
        "d_inner_over_d_model": {"above": 1},
        "d_head": {"at_least": 32},
        "decoder_params": {"at_most": 60_000},
        "total_params": {"at_most": 66_000},
    }
    space = SearchSpace.from_json(minimal(rules=rules))
    good = Architecture(
        backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=128, n_head=2),), vocab_size=100, max_seq_len=16
    )
    assert space.violation(good) is None
    layer = good.layers[0]
    cases = {
        "vocab_size": good.replace(vocab_size=101),
        "d_embed": good.replace(d_embed=32),
        "embedding_factor": good.replace(embedding_factor=2),
        "max_seq_len": good.replace(max_seq_len=17),
        "tie_embeddings": good.replace(tie_embeddings=False),
        "n_layer": good.replace(layers=(layer,) * 4),
        "d_model": good.replace(d_model=128, d_embed=128),
        "d_inner": good.replace(layers=(LayerSpec(d_inner=160, n_head=2),)),
        "n_head": good.replace(layers=(LayerSpec(d_inner=128, n_head=4),)),
        "d_inner_over_d_model": good.replace(layers=(LayerSpec(d_inner=64, n_head=2),)),
        "d_head": good.replace(d_model=32, d_embed=32, layers=(LayerSpec(d_inner=128, n_head=2),)),
        "decoder_params": good.replace(layers=(layer,) * 2),
    }
    assert {name: space.violation(arch) for name, arch in cases.items()} == {name: name for name in cases}
    assert (
        SearchSpace.from_json(minimal(rules={"homogeneous": True})).violation(
            good.replace(layers=(layer, LayerSpec(d_inner=96, n_head=2)))
        )
        == "homogeneous"
    )


# -- counting and listing ----------------------------------------------------------------------------------------------

RULE_SETS: tuple[dict[str, Any], ...] = (
    {},
    {"d_inner_over_d_model": {"above": 1.7}},
    {"decoder_params": {"at_least": 30_000, "at_most": 60_000}},
    {"decoder_params": {"at_most": 40_000}, "total_params": {"at_least": 20_000}},
    {"weight_bytes": {"at_most": 150_000}},
    {"homogeneous": True},
    {"homogeneous": True, "decoder_params": {"at_least": 30_000}},
)


@pytest.mark.parametrize("make", [minimal, with_embedding_genes])
@pytest.mark.parametrize("rules", RULE_SETS, ids=str)
def test_size_and_listing_equal_brute_force(rules: dict[str, Any], make: Callable[..., dict[str, Any]]) -> None:
    space = SearchSpace.from_json(make(rules=rules))
    listed = list(space.enumerate())
    assert len(listed) == len(set(listed))
    assert set(listed) == by_brute_force(space)
    assert space.size() == len(listed)
    assert isinstance(space.size(), int)


def test_size_of_the_built_in_spaces() -> None:
    assert builtin("tiny").size() == 102 == len(list(builtin("tiny").enumerate()))
    for name in NAMES:
        assert isinstance(builtin(name).size(), int)
    assert 1e22 < builtin("lts-gpt2").size() < 1e23


def test_size_is_an_estimate_where_sums_share_no_unit() -> None:
    genes = {
        "n_layer": {"min": 1, "max": 200},
        "d_model": [512],
        "d_inner": {"min": 1025, "max": 5000},
        "n_head": [8],
    }
    space = SearchSpace.from_json(minimal(genes=genes, rules={"decoder_params": {"at_least": 10_000_000}}))
    assert isinstance(space.size(), float)
    assert space.contains(space.sample(np.random.default_rng(0)))


# -- drawing and changing ----------------------------------------------------------------------------------------------


def test_narrow_bounds_are_still_sampled() -> None:
    """One member in about 1e17: drawing and rejecting would not find it in a lifetime."""
    smallest = 2 * (4 * 128**2 + 9 * 128 + 257 * 256) + 2 * 128
    space = builtin("lts-gpt2")
    data = {
        **space.to_json(),
        "rules": {"decoder_params": {"at_most": smallest}, "d_inner_over_d_model": {"above": 1.7}},
    }
    cut = SearchSpace.from_json(data)
    arch = cut.sample(np.random.default_rng(0))
    assert arch.decoder_params <= smallest
    assert cut.size() == 6  # two layers of d_inner 256 at width 128, each with 2, 4 or 8 heads


def test_draws_depend_on_the_generator_alone() -> None:
    space = builtin("everyday")

    def draws() -> list[str]:
        rng = np.random.Generator(np.random.PCG64(7))
        members = [space.sample(rng) for _ in range(5)]
        children = [space.mutate(members[0], rng, 0.3), space.crossover(members[1], members[2], rng)]
        return [arch.arch_id for arch in (*members, *children) if arch is not None]

    first = draws()
    np.random.seed(0)  # the global state, which must not matter
    assert draws() == first


def test_mutation_keeps_or_changes_genes_by_p() -> None:
    space, rng = builtin("small"), np.random.default_rng(0)
    parent = space.sample(rng)
    assert space.mutate(parent, rng, 1e-12) == parent
    children = [child for child in (space.mutate(parent, rng, 0.3) for _ in range(200)) if child is not None]
    assert len({child.d_model for child in children}) > 3
    assert len({child.n_layer for child in children}) > 3
    assert 90 < sum(child.d_model == parent.d_model for child in children) < 190


def test_a_child_of_two_parents_has_their_genes() -> None:
    space, rng = builtin("lts-gpt2"), np.random.default_rng(0)
    for _ in range(100):
        one, other = space.sample(rng), space.sample(rng)
        child = space.crossover(one, other, rng)
        if child is not None:
            assert child.d_model in (one.d_model, other.d_model)
            assert child.n_layer in (one.n_layer, other.n_layer)
            if one.d_model == other.d_model:
                inherited = {layer.d_inner for layer in (*one.layers, *other.layers)}
                assert {layer.d_inner for layer in child.layers} <= inherited


def test_changes_that_cannot_succeed_give_none() -> None:
    space = SearchSpace.from_json(minimal())
    stranger = Architecture(backbone="gpt2", d_model=48, layers=(LayerSpec(d_inner=64, n_head=2),))
    rng = np.random.default_rng(0)
    assert space.crossover(stranger, stranger, rng) is None
    child = space.mutate(stranger, rng, 0.3)  # the width is drawn again
    assert child is not None
    assert space.contains(child)


def test_homogeneous_spaces_stay_homogeneous() -> None:
    space = SearchSpace.from_json({**builtin("demo").to_json(), "rules": {"homogeneous": True}})
    rng = np.random.default_rng(0)
    one, other = space.sample(rng), space.sample(rng)
    makers: tuple[Callable[[], Architecture | None], ...] = (
        lambda: space.sample(rng),
        lambda: space.mutate(one, rng, 0.5),
        lambda: space.crossover(one, other, rng),
    )
    for make in makers:
        for arch in (make() for _ in range(30)):
            assert arch is not None
            assert space.contains(arch)


# -- vocabulary and embedding as genes ---------------------------------------------------------------------------------


def test_there_is_a_table_for_every_width_and_embedding() -> None:
    space = SearchSpace.from_json(with_embedding_genes())
    keys = [(table.d_model, table.d_embed, table.vocab_size) for table in space.tables]
    assert keys == list(itertools.product([32, 64], [16, 32, 64], [100, 400]))
    rng = np.random.default_rng(0)
    for table in space.tables:
        arch = space.build(table, table.draw(2, rng))
        assert (arch.d_model, arch.d_embed, arch.vocab_size) == (table.d_model, table.d_embed, table.vocab_size)
        assert space.table_of(arch) is table
        assert table.outside == arch.total_params - arch.decoder_params
    with pytest.raises(KeyError):
        space.table_of(arch.replace(vocab_size=200))


def test_each_may_be_a_gene_without_the_other() -> None:
    genes = {"n_layer": [1], "d_model": [32, 64], "d_inner": [128], "n_head": [2]}
    only = SearchSpace.from_json(minimal(genes={**genes, "vocab_size": [100, 200]}, fixed={"max_seq_len": 16}))
    keys = [(table.d_model, table.d_embed, table.vocab_size) for table in only.tables]
    assert keys == [(32, 32, 100), (32, 32, 200), (64, 64, 100), (64, 64, 200)]
    other = SearchSpace.from_json(minimal(genes={**genes, "d_embed": [16]}))
    assert [(table.d_model, table.d_embed, table.vocab_size) for table in other.tables] == [
        (32, 16, 100),
        (64, 16, 100),
    ]


def test_json_says_of_a_gene_only_that_it_is_one() -> None:
    space = SearchSpace.from_json(with_embedding_genes())
    data = space.to_json()
    assert data["genes"]["vocab_size"] == [100, 400]
    assert data["genes"]["d_embed"] == [16, 32, 64]
    assert data["fixed"] == {"embedding_factor": 1, "max_seq_len": 16, "tie_embeddings": True}
    assert SearchSpace.from_json(data) == space
    without = SearchSpace.from_json(minimal()).to_json()
    assert list(without["genes"]) == ["n_layer", "d_model", "d_inner", "n_head"]
    assert without["fixed"]["vocab_size"] == 100


def test_bounds_on_totals_hold_for_every_embedding_by_itself() -> None:
    space = SearchSpace.from_json(with_embedding_genes(rules={"total_params": {"at_most": 30_000}}))
    kept = {(table.d_model, table.d_embed, table.vocab_size) for table in space.tables}
    assert (32, 16, 400) in kept
    assert (32, 64, 400) not in kept
    cut = SearchSpace.from_json(with_embedding_genes()).restricted(max_weight_bytes=120_000)
    assert {(table.d_model, table.d_embed, table.vocab_size) for table in cut.tables} == kept


def test_drawing_changing_and_crossing_reach_every_embedding_and_keep_the_rules() -> None:
    space = SearchSpace.from_json(with_embedding_genes(rules={"weight_bytes": {"at_most": 160_000}}))
    tables = {(table.d_model, table.d_embed, table.vocab_size) for table in space.tables}
    assert 0 < len(tables) < 12  # the rule refuses some
    rng = np.random.default_rng(0)
    members = [space.sample(rng) for _ in range(300)]
    for made in (members, [space.mutate(members[0], rng, 0.9) for _ in range(300)]):
        assert all(arch is not None and space.contains(arch) for arch in made)
        assert {(arch.d_model, arch.d_embed, arch.vocab_size) for arch in made if arch is not None} == tables
    assert space.mutate(members[0], rng, 1e-12) == members[0]
    mutants = [space.mutate(members[0], rng, 0.3) for _ in range(300)]
    kept = sum(mutant is not None and mutant.vocab_size == members[0].vocab_size for mutant in mutants)
    assert 210 < kept < 290  # 0.7, and half of the rest, more or less what the rule refuses
    one = members[0]
    other = next(arch for arch in members if arch.vocab_size != one.vocab_size and arch.d_embed != one.d_embed)
    children = set()
    for _ in range(200):
        child = space.crossover(one, other, rng)
        assert child is not None
        assert space.contains(child)
        children.add((child.d_embed, child.vocab_size))
    expected = set(itertools.product((one.d_embed, other.d_embed), (one.vocab_size, other.vocab_size)))
    assert children <= expected
    assert len(children) > 2  # mixed, not only as in a parent


def test_violation_names_the_embedding_genes() -> None:
    space = SearchSpace.from_json(with_embedding_genes())
    arch = space.sample(np.random.default_rng(0))
    assert space.violation(arch.replace(vocab_size=200)) == "vocab_size"
    assert space.violation(arch.replace(d_embed=48)) == "d_embed"


# What these drew before d_embed and vocab_size could be genes. A ledger of then must still replay.
DRAWN_BEFORE = {
    "everyday": ("a58f2a2bc4e3", "b292f5854c13", "7856c97ac1d0"),
    "lts-gpt2": ("a415dfadb140", "472ab419c9ed", "f29d0c031d85"),
    "lts-transformer-xl": ("d520a8cc975a", "d3ea7fb57eec", "234ebb14fa25"),
    "tiny": ("8a8653d6522c", "8a8653d6522c", "da58418edac4"),
}


@pytest.mark.parametrize("name", sorted(DRAWN_BEFORE))
def test_spaces_without_these_genes_are_drawn_from_as_before(name: str) -> None:
    space, rng = builtin(name), np.random.Generator(np.random.PCG64(11))
    one, other = space.sample(rng), space.sample(rng)
    drawn = [one, *(space.mutate(one, rng) for _ in range(5)), *(space.crossover(one, other, rng) for _ in range(5))]
    ids = [arch.arch_id if arch is not None else "-" for arch in (*drawn, space.sample(rng))]
    assert (ids[0], ids[5], ids[-1]) == DRAWN_BEFORE[name]


# -- bounds and widening -----------------------------------------------------------------------------------------------


def test_bounds_name_the_genes_that_stand_at_an_end() -> None:
    space = SearchSpace.from_json(with_embedding_genes())
    layers = (LayerSpec(d_inner=64, n_head=2), LayerSpec(d_inner=128, n_head=2))
    arch = Architecture(backbone="gpt2", d_model=64, layers=layers, d_embed=32, vocab_size=100, max_seq_len=16)
    assert space.contains(arch)
    assert space.bounds_of(arch) == (
        ("n_layer", 2, "high"),
        ("d_model", 64, "high"),
        ("d_inner", 64, "low"),
        ("d_inner", 128, "high"),
        ("n_head", 2, "high"),
        ("vocab_size", 100, "low"),
    )


def test_a_gene_with_one_value_has_no_bounds_and_cannot_be_widened() -> None:
    space = SearchSpace.from_json(with_genes(n_layer=[2], n_head=[2]))
    arch = space.sample(np.random.default_rng(0))
    assert {gene for gene, _, _ in space.bounds_of(arch)} <= {"d_model", "d_inner"}
    assert space.widened("n_layer", "high") is None
    assert space.widened("n_head", "high") is None


WIDENED = (
    ("lts-gpt2", "d_model", "high", (1024, 1088, 1152)),
    ("lts-gpt2", "d_model", "low", (64,)),
    ("lts-gpt2", "n_layer", "high", (16, 17, 18)),
    ("lts-gpt2", "n_layer", "low", (1,)),
    ("lts-gpt2", "d_inner", "high", tuple(range(4096, 4993, 64))),
    ("lts-gpt2", "n_head", "high", (16,)),
    ("lts-gpt2", "n_head", "low", (1,)),
    ("everyday", "n_head", "high", (16,)),
    ("tiny", "n_layer", "high", (4,)),
    ("tiny", "d_model", "high", (80,)),
)


@pytest.mark.parametrize(("name", "gene", "side", "added"), WIDENED)
def test_widened_adds_a_quarter_of_the_extent(name: str, gene: str, side: Side, added: tuple[int, ...]) -> None:
    space = builtin(name)
    wider = space.widened(gene, side)
    assert wider is not None
    assert sorted({*getattr(space.genes, gene), *added}) == list(getattr(wider.genes, gene))
    assert {**wider.to_json(), "genes": None} == {**space.to_json(), "genes": None}
    assert SearchSpace.from_json(wider.to_json()) == wider
    assert space.widened(gene, side) == wider
    rng = np.random.default_rng(0)
    assert all(wider.contains(space.sample(rng)) for _ in range(50))


def test_widened_is_none_where_there_is_nothing_beyond() -> None:
    assert builtin("tiny").widened("n_layer", "low") is None
    assert builtin("tiny").widened("n_head", "low") is None
    deepest = SearchSpace.from_json(with_genes(n_layer=[510, 512], d_model=[32], d_inner=[64], n_head=[2]))
    assert deepest.widened("n_layer", "high") is None
    assert SearchSpace.from_json(with_embedding_genes()).widened("vocab_size", "low") is None  # 100 - 300
    # The rules forbid all that could be added: heads of 32 at least, and few parameters.
    ruled = SearchSpace.from_json(minimal(rules={"d_head": {"at_least": 32}, "decoder_params": {"at_most": 60_000}}))
    assert ruled.widened("n_head", "high") is None
    assert ruled.widened("n_layer", "high") is not None
    full = SearchSpace.from_json(minimal(rules={"decoder_params": {"at_most": 10_000}}))
    assert full.widened("n_layer", "high") is None
    # More words than the first cutoff make a second cluster, whose rows would be d_embed / 17 = 0 wide.
    adaptive = with_embedding_genes(fixed={"embedding_factor": 17, "max_seq_len": 16})
    adaptive["genes"]["vocab_size"] = [100, 19_000]
    assert SearchSpace.from_json(adaptive).widened("vocab_size", "high") is None


def test_widened_adds_embeddings_too() -> None:
    space = SearchSpace.from_json(with_embedding_genes())
    wider = space.widened("d_embed", "high")
    assert wider is not None
    assert wider.genes.d_embed == (16, 32, 64, 96)
    larger = space.widened("vocab_size", "high")
    assert larger is not None
    assert larger.genes.vocab_size == (100, 400, 700)
    with pytest.raises(SpaceError, match="'max_seq_len' is no gene; known: n_layer, "):
        space.widened("max_seq_len", "high")


# -- narrowing ---------------------------------------------------------------------------------------------------------


def test_restricted_drops_what_does_not_fit() -> None:
    space = builtin("everyday")
    cut = space.restricted(max_weight_bytes=60_000_000)
    rng = np.random.default_rng(0)
    assert all(4 * cut.sample(rng).total_params <= 60_000_000 for _ in range(200))
    assert cut.restricted(max_weight_bytes=10**12) == cut  # a wider bound changes nothing
    assert 0 < cut.size() < space.size()


def test_restricted_to_nothing_names_memory() -> None:
    with pytest.raises(
        SpaceError, match=r"rule weight_bytes \(memory\) leaves no member of space everyday: members have"
    ):
        builtin("everyday").restricted(max_weight_bytes=1_000_000)
    with pytest.raises(SpaceError, match="rule decoder_params leaves no member"):
        builtin("everyday").restricted(max_decoder_params=1_000)

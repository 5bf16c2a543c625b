"""Architectures: identity, JSON, and counts equal to the tables that the authors of LTS published."""

import csv
import hashlib
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import ArchitectureError
from tests.support import require

# name, d_model, d_embed, embedding_factor, n_head, d_inner, decoder_params; both tables say vocab_size 50264.
PUBLISHED = (
    # random_GPT2_wt103.csv
    ("config_11_j5", 64, 128, 1, "2;8", "1680;868", 362_740),
    ("config_18_j6", 64, 512, 1, "8;8", "1779;1520", 459_619),
    ("config_9_j1", 64, 256, 1, "8;2;4;2;8;2;2;2", "1999;1169;1320;1863;624;2023;1349;784", 1_571_707),
    ("config_2_j4", 256, 256, 1, "2;2", "1776;1879", 2_404_423),
    (
        "config_5_j7",
        *(128, 128, 2, "8;4;2;4;4;2;2;4;4;4;4;4"),
        *("1174;1069;1871;576;933;1654;1468;1119;867;746;841;802", 4_172_352),
    ),
    ("config_15_j2", 256, 512, 4, "4;2;2;8;8;4", "1450;2016;1329;2038;796;1530", 6_285_767),
    (
        "config_4_j9",
        *(512, 512, 2, "2;4;2;4;2;8;8;4;8;2;4;8;4;2;8;4"),
        *("1930;1522;1729;904;1097;1312;1253;1985;1004;1358;1582;1381;1838;1751;1708;2016", 41_831_218),
    ),
    # pareto_GPT2_lm1b_corei7.csv
    ("M1", 384, 384, 4, "2;2", "3840;2432", 6_010_496),
    ("M3", 512, 512, 4, "2;2", "1408;2624", 6_240_192),
    ("M9", 576, 576, 4, "2;2;2;2", "3072;2752;3456;3136", 19_645_952),
    ("M29", 960, 960, 4, "2;2;2;4;2;2;2;4", "3328;2432;2624;2752;1664;2240;2304;2816", 68_289_600),
    (
        "M38",
        *(960, 960, 4, "4;2;2;4;2;4;2;2;4;4;4"),
        *("2176;4032;3264;3840;2688;1984;1728;2944;1920;2368;3840", 99_783_424),
    ),
)


def small(**changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=256, n_head=4), LayerSpec(d_inner=128, n_head=2))
    return Architecture(backbone="gpt2", d_model=64, layers=layers).replace(**changes)


def from_columns(d_model: int, d_embed: int, factor: int, n_head: str, d_inner: str, vocab_size: int) -> Architecture:
    columns = zip(d_inner.split(";"), n_head.split(";"), strict=True)
    return Architecture(
        backbone="gpt2",
        d_model=d_model,
        d_embed=d_embed,
        embedding_factor=factor,
        vocab_size=vocab_size,
        max_seq_len=192,
        layers=tuple(LayerSpec(d_inner=int(inner), n_head=int(head)) for inner, head in columns),
    )


def published_table(name: str) -> list[dict[str, str]]:
    """Rows of a published table; skips with a reason where the tables are not at hand (they are not ours to ship)."""
    checkout = Path(__file__).parents[3]
    folder = Path(os.environ.get("EDGE_LTS_LTS_TABLES", checkout.parent / "shared/data/lts_tables"))
    path = folder / name
    require("lts_tables", path.is_file(), f"{path} is not there; set EDGE_LTS_LTS_TABLES")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_decoder_params_equal_published_literals(row: tuple[str, int, int, int, str, str, int]) -> None:
    _, d_model, d_embed, factor, n_head, d_inner, decoder_params = row
    assert from_columns(d_model, d_embed, factor, n_head, d_inner, 50264).decoder_params == decoder_params


@pytest.mark.parametrize(
    ("name", "n_rows", "n_adaptive"), [("random_GPT2_wt103.csv", 200, 127), ("pareto_GPT2_lm1b_corei7.csv", 38, 38)]
)
def test_counts_equal_every_published_row(name: str, n_rows: int, n_adaptive: int) -> None:
    rows = published_table(name)
    assert len(rows) == n_rows
    adaptive = 0
    for row in rows:
        numbers = [int(row[key]) for key in ("d_model", "d_embed", "div_val")]
        arch = from_columns(*numbers, row["n_head"], row["d_inner"], int(row["vocab_size"]))
        assert arch.n_layer == int(row["n_layer"])
        assert arch.decoder_params == int(row["decoder_params"]), row["name"]
        if arch.embedding_factor > 1:
            adaptive += 1
            # The other table was made with other cut-offs, which its columns do not say.
            if name.startswith("random"):
                assert arch.total_params == int(row["total_params"]), row["name"]
    assert adaptive == n_adaptive


def test_decoder_formula_by_hand() -> None:
    # per layer 4 d^2 + 9 d + 2 d f + f, and 2 d once
    expected = sum(4 * 64 * 64 + 9 * 64 + 2 * 64 * f + f for f in (256, 128)) + 2 * 64
    assert small().decoder_params == expected
    assert small().total_params == expected + 50257 * 64 + 1024 * 64
    assert small(tie_embeddings=False).total_params == small().total_params + 50257 * 64
    assert small(d_embed=32).total_params == expected + 50257 * 32 + 2 * 32 * 64 + 1024 * 64


def test_opt_counts_two_rows_of_positions_that_no_text_uses_and_no_final_norm() -> None:
    opt = small(backbone="opt")
    assert opt.decoder_params == small().decoder_params - 2 * 64
    assert opt.parameter_count.position == (1024 + 2) * 64
    layers = (LayerSpec(d_inner=4096, n_head=16),) * 24
    published = small(
        backbone="opt", d_model=1024, d_embed=512, layers=layers, vocab_size=50272, max_seq_len=2048
    )  # facebook/opt-350m
    assert published.total_params == 331_196_416
    assert published.decoder_params == 302_309_376


def test_id_is_the_same_for_ever() -> None:
    """A golden value: changing it orphans every ledger."""
    text = (
        '{"backbone":"gpt2","d_embed":64,"d_model":64,"embedding_factor":1,'
        '"layers":[{"d_inner":256,"n_head":4},{"d_inner":128,"n_head":2}],'
        '"max_seq_len":1024,"tie_embeddings":true,"vocab_size":50257}'
    )
    assert small().canonical_json() == text
    assert small().arch_id == hashlib.sha256(text.encode()).hexdigest()[:12] == "7e3e7f212634"


def test_id_ignores_key_order_and_spelled_out_defaults() -> None:
    short = {
        "backbone": "gpt2",
        "d_model": 64,
        "layers": [{"n_head": 4, "d_inner": 256}, {"d_inner": 128, "n_head": 2}],
    }
    full = small().to_json()
    ids = {Architecture.from_json(data).arch_id for data in (short, full, dict(reversed(full.items())))}
    ids.add(Architecture.from_json({**full, "cutoffs": [19997, 39997, 199997]}).arch_id)
    ids.add(Architecture.from_json({**full, "cutoffs": None}).arch_id)
    assert ids == {small().arch_id}


def test_id_depends_on_every_key() -> None:
    changed = [
        small(),
        small(d_model=128),
        small(d_embed=32),
        small(embedding_factor=2),
        small(embedding_factor=2, cutoffs=(1000,)),
        small(vocab_size=50264),
        small(max_seq_len=512),
        small(tie_embeddings=False),
        small(layers=small().layers[:1]),
        small(layers=tuple(reversed(small().layers))),
    ]
    assert len({arch.arch_id for arch in changed}) == len(changed)


def test_canonical_order_is_d_inner_then_n_head() -> None:
    shapes = [(128, 4), (256, 2), (128, 2)]
    for order in itertools.permutations(shapes):
        arch = small(layers=tuple(LayerSpec(d_inner=inner, n_head=head) for inner, head in order))
        assert [(layer.d_inner, layer.n_head) for layer in arch.canonical().layers] == sorted(shapes)
        assert arch.canonical().decoder_params == arch.decoder_params


def architectures() -> st.SearchStrategy[Architecture]:
    layers = st.lists(st.builds(LayerSpec, d_inner=st.integers(1, 5000), n_head=st.sampled_from([1, 2, 4, 8])))
    return st.builds(
        Architecture,
        backbone=st.just("gpt2"),
        d_model=st.integers(1, 200).map(lambda n: 8 * n),
        layers=layers.filter(bool).map(tuple),
        d_embed=st.integers(64, 1024),
        embedding_factor=st.sampled_from([1, 2, 4]),
        vocab_size=st.integers(1, 300_000),
        max_seq_len=st.integers(1, 4096),
        tie_embeddings=st.booleans(),
        cutoffs=st.none() | st.lists(st.integers(1, 300_000), max_size=3, unique=True).map(sorted).map(tuple),
    )


@settings(deadline=None, max_examples=60)
@given(architectures())
def test_json_round_trip(arch: Architecture) -> None:
    again = Architecture.from_json(arch.to_json())
    assert again == arch
    assert again.arch_id == arch.arch_id
    assert arch.total_params >= arch.decoder_params > 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["gpt2", 64, 2]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(VALUES | st.dictionaries(st.sampled_from([*small().to_json(), "cutoffs", "x"]), VALUES), st.data())
def test_from_json_raises_nothing_but_architecture_errors(data: object, draw: st.DataObject) -> None:
    if isinstance(data, dict) and draw.draw(st.booleans()):
        data = {**small().to_json(), **data}
    try:
        arch = Architecture.from_json(data)
    except ArchitectureError as error:
        message = str(error)
    else:
        message = ""
        assert Architecture.from_json(arch.to_json()) == arch
    assert "\n" not in message
    assert len(message) < 400

"""The Transformer-XL module: counts as published, a reference from the paper's equations, and the memory."""

import csv
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpecError
from edge_lts.records import Protocol
from edge_lts.space import SearchSpace
from tests.support import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

torch = pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.model.transformer_xl import SegmentMemory, TransformerXl, shift, sinusoids  # noqa: E402
from edge_lts.profile.weights import fill_tensors, fill_weights  # noqa: E402

# name, d_model, vocab_size, n_head, d_inner, decoder_params, total_params. Trained on LM1B, whose cut-offs are others.
LM1B_CUTOFFS = (59997, 99997, 639997)
PUBLISHED = (
    # random_TransXL_lm1b.csv
    ("config_7_j7", 64, 793470, "8;2;4;8;2", "990;1090;1405;915;615", 751575, 8349401),
    ("config_2_j5", 64, 793470, "8;2;8;8;4;8;4;4", "1016;1795;1529;1868;711;1584;727;655", 1442589, 9040415),
    ("config_5_j5", 128, 793470, "4;4;4;8;4;2", "662;2021;1786;1994;1215;1607", 2883141, 17307080),
    ("config_11_j9", 256, 793470, "2;8;2;8;2;2;4", "816;517;1833;1378;1253;954;941", 6252300, 34393745),
    ("config_14_j4", 512, 793470, "2;8;4;4;4;2", "1171;1419;1177;1368;1833;1439", 16502999, 72340576),
    ("config_11_j6", 512, 793470, "4;4;8;8;8;2;2;2", "1986;1801;1916;1195;1771;1907;1939;1447", 24825482, 80663059),
    # pareto_TransXL_lm1b_titanxp.csv
    ("M1", 384, 267735, "2;2", "1152;2432", 4236032, 35796169),
    ("M9", 960, 267735, "4;8", "3968;3648", 23859776, 103810033),
    ("M17", 960, 267735, "2;2;8", "4032;4032;3840", 36711744, 116662001),
    ("M25", 960, 267735, "2;2;4;4;4", "3968;4032;3328;4032;2752", 57866752, 137817009),
    ("M33", 960, 267735, "4;2;2;4;2;8", "3840;3008;3840;3904;4032;3392", 69981056, 149931313),
    (
        "M40",
        *(896, 267735, "8;8;8;2;8;2;2;2;8;2", "3840;3072;3840;2560;3648;3328;3840;3008;2880;3328"),
        *(99989312, 174476873),
    ),
)


def architecture(d_model: int, vocab_size: int, n_head: str, d_inner: str, **changes: object) -> Architecture:
    columns = zip(d_inner.split(";"), n_head.split(";"), strict=True)
    layers = tuple(LayerSpec(d_inner=int(inner), n_head=int(head)) for inner, head in columns)
    return Architecture(
        backbone="transformer-xl", d_model=d_model, embedding_factor=4, vocab_size=vocab_size, layers=layers
    ).replace(**changes)


def check_counts(row: tuple[str, int, int, str, str, int, int]) -> None:
    """Decoder and total as published; there the head shares no projection, unlike on WikiText-103 and here."""
    _, d_model, vocab_size, n_head, d_inner, decoder_params, total_params = row
    arch = architecture(d_model, vocab_size, n_head, d_inner, cutoffs=LM1B_CUTOFFS)
    assert arch.decoder_params == decoder_params
    assert arch.total_params + sum(width * d_model for _, width in arch.clusters[1:]) == total_params
    assert arch.parameter_count.position == 0


@pytest.mark.parametrize("row", PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_counts_equal_published_literals(row: tuple[str, int, int, str, str, int, int]) -> None:
    check_counts(row)


@pytest.mark.parametrize(("name", "n_rows"), [("random_TransXL_lm1b", 183), ("pareto_TransXL_lm1b_titanxp", 40)])
def test_counts_equal_every_published_row(name: str, n_rows: int) -> None:
    beside = Path(__file__).parents[2].parent / "shared/data/lts_tables"
    path = Path(os.environ.get("EDGE_LTS_LTS_TABLES", beside)) / f"{name}.csv"
    require("lts_tables", path.is_file(), f"{path} is not there; set EDGE_LTS_LTS_TABLES")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == n_rows
    for row in rows:
        assert len(row["d_inner"].split(";")) == int(row["n_layer"])
        integers = {key: int(row[key]) for key in ("d_model", "vocab_size", "decoder_params", "total_params")}
        check_counts(
            (
                row["name"],
                *(integers["d_model"], integers["vocab_size"], row["n_head"], row["d_inner"]),
                *(integers["decoder_params"], integers["total_params"]),
            )
        )


def test_the_shipped_space_is_the_papers() -> None:
    text = (Path(__file__).parents[2] / "spaces/lts-transformer-xl.toml").read_text(encoding="utf-8")
    space = SearchSpace.from_json(tomllib.loads(text))
    assert space.genes.n_layer == tuple(range(2, 17))
    assert space.genes.d_model == tuple(range(128, 1024, 64))
    assert space.genes.d_inner == tuple(range(128, 4096, 64))
    assert space.genes.n_head == (2, 4, 8)
    published = [architecture(*row[1:5]) for row in PUBLISHED if row[0].startswith("M")]
    assert [space.violation(arch) for arch in published] == [None] * 6
    smallest = published[0]
    assert smallest.d_embed == smallest.d_model
    assert [width for _, width in smallest.clusters] == [384, 96, 24, 6]
    assert space.violation(architecture(384, 267735, "2;2", "640;2432")) == "d_inner_over_d_model"  # 1.67
    assert space.violation(architecture(384, 267735, "2;2", "704;704")) == "decoder_params"
    assert space.violation(smallest.replace(embedding_factor=1)) == "embedding_factor"


def n_params(*modules) -> int:
    found = {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}
    return sum(found.values())


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Architecture,
        backbone=st.just("transformer-xl"),
        d_model=st.integers(1, 40).map(lambda n: 8 * n),
        layers=st.lists(
            st.builds(LayerSpec, d_inner=st.integers(1, 700), n_head=st.sampled_from([1, 2, 4, 8])),
            min_size=1,
            max_size=6,
        ).map(tuple),
        d_embed=st.integers(64, 200),
        embedding_factor=st.sampled_from([1, 2, 4]),
        vocab_size=st.integers(1, 3000),
        cutoffs=st.sampled_from([None, (100, 900, 2000)]),
        tie_embeddings=st.booleans(),
    )
)
def test_closed_formula_counts_the_built_model_place_by_place(arch: Architecture) -> None:
    model = build_model(arch)
    assert isinstance(model, TransformerXl)
    count = arch.parameter_count
    embedding = n_params(model.token_embedding, model.embedding_projection)
    assert n_params(model.decoder) == count.decoder
    assert embedding == count.embedding
    assert n_params(model.token_embedding, model.embedding_projection, model.head, model.head_projection) == (
        count.embedding + count.head
    )
    assert n_params(model) == count.total == arch.total_params


# -- the reference -----------------------------------------------------------------------------------------------------


def tiny(**changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=20, n_head=2), LayerSpec(d_inner=7, n_head=4), LayerSpec(d_inner=30, n_head=1))
    return Architecture(
        backbone="transformer-xl", d_model=16, layers=layers, vocab_size=41, max_seq_len=48, embedding_factor=2
    ).replace(**{"cutoffs": (5, 12), **changes})


def filled(arch: Architecture):
    """A model in float64 whose every parameter matters for the result."""
    model = TransformerXl(arch).eval().double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return model


def some_tokens(arch: Architecture, n: int, *, batch: int = 1):
    return torch.randint(arch.vocab_size, (batch, n), generator=torch.Generator().manual_seed(3))


def memory_for(model, **sizes: int) -> SegmentMemory:
    """A memory in float64, whatever was in its storage before: not a number, so that reading it shows."""
    torch.set_default_dtype(torch.float64)
    try:
        memory = model.new_cache(**sizes)
    finally:
        torch.set_default_dtype(torch.float32)
    for tensor in memory.tensors():
        tensor.fill_(math.nan)
    return memory


def layer_norm(x: list[float], norm) -> list[float]:
    mean = sum(x) / len(x)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + 1e-5)
    gain, offset = norm.weight.tolist(), norm.bias.tolist()
    return [gain[i] * (x[i] - mean) / deviation + offset[i] for i in range(len(x))]


def matrix(linear):
    return linear.weight.detach().numpy()


def reference_layer(block, n_head: int, memory: list, states: list) -> list:
    """One layer on a segment: Dai et al. 2019, section 3.3, equation by equation, key by key.

    memory: the layer's *input* states of earlier tokens, projected to keys and values here, as the paper does.
    """
    d = len(states[0])
    width = d // n_head
    w_q, w_k, w_v = np.split(matrix(block.attention.qkv), 3)
    w_r, w_o = matrix(block.attention.position), matrix(block.attention.out)
    u, v = (p.detach().numpy() for p in (block.attention.content_bias_NH, block.attention.position_bias_NH))
    everything = memory + states
    result = []
    for i, state in enumerate(states, start=len(memory)):
        joined = []
        for n in range(n_head):
            rows = slice(n * width, (n + 1) * width)
            q = w_q[rows] @ state
            scores, values = [], []
            for j in range(i + 1):  # nothing later than token i
                distance = i - j
                r = [math.sin(distance / 10000 ** (2 * m / d)) for m in range(d // 2)]
                r += [math.cos(distance / 10000 ** (2 * m / d)) for m in range(d // 2)]
                k, w_kr_r = w_k[rows] @ everything[j], w_r[rows] @ np.array(r)
                scores.append((q @ k + q @ w_kr_r + u[n] @ k + v[n] @ w_kr_r) / math.sqrt(width))  # terms (a) to (d)
                values.append(w_v[rows] @ everything[j])
            powers = [math.exp(score) for score in scores]
            joined += list(sum(p / sum(powers) * value for p, value in zip(powers, values, strict=True)))
        o = layer_norm([s + a for s, a in zip(state, w_o @ np.array(joined), strict=True)], block.attention_norm)
        ff = block.feed_forward
        inner = [max(0.0, value) for value in matrix(ff.up) @ np.array(o) + ff.up.bias.detach().numpy()]
        out = matrix(ff.down) @ np.array(inner) + ff.down.bias.detach().numpy()
        result.append(np.array(layer_norm([a + b for a, b in zip(o, out, strict=True)], block.feed_forward_norm)))
    return result


def reference(model, segments: list, mem_len: int) -> np.ndarray:
    """Segment after segment with the paper's memory of hidden states. Adaptive ends: see test_adaptive.py."""
    memories: list[list] = [[] for _ in model.decoder.blocks]
    results = []
    for tokens in segments:
        if model.arch.embedding_factor == 1:
            rows = model.token_embedding.weight.detach().numpy()[tokens.numpy()]
            narrow = model.embedding_projection
            states = list(math.sqrt(model.arch.d_model) * (rows if narrow is None else rows @ matrix(narrow).T))
        else:
            states = list(model.token_embedding(tokens[None])[0].detach().numpy())
        for index, block in enumerate(model.decoder.blocks):
            new = reference_layer(block, model.arch.layers[index].n_head, memories[index], states)
            memories[index] = (memories[index] + states)[-mem_len:] if mem_len else []
            states = new
        x = torch.from_numpy(np.array(states))
        results.append(model.head(x if model.head_projection is None else model.head_projection(x)).detach().numpy())
    return np.concatenate(results)


SHAPES = [
    {},
    {"tie_embeddings": False},
    {"embedding_factor": 1, "cutoffs": None},
    {"embedding_factor": 1, "cutoffs": None, "d_embed": 10, "tie_embeddings": False},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_a_segment_without_memory_equals_the_reference(changes: dict[str, object]) -> None:
    model = filled(tiny(**changes))
    tokens = some_tokens(model.arch, 11, batch=2)
    with torch.inference_mode():
        got = model(tokens, logits="all").numpy()
        for b in range(2):
            np.testing.assert_allclose(got[b], reference(model, [tokens[b]], 0), rtol=1e-9, atol=1e-9)
    assert np.abs(got).max() > 0.1


@pytest.mark.parametrize(
    ("mem_len", "capacity", "pieces"),
    [
        (12, 13, [1] * 12),  # the memory never fills
        (12, 13, [7, 5]),
        (12, 24, [12]),
        (4, 5, [1] * 12),  # it rolls at every token
        (4, 11, [1] * 12),  # it rolls now and then
        (4, 8, [4, 4, 4]),  # the paper's way of training
        (6, 7, [3, 3, 3, 3]),
        (5, 9, [2, 4, 1, 3, 2]),
        (3, 4, [1, 5, 1, 5]),  # segments longer than the room: joined outside the buffers
        (6, 8, [1, 1, 8, 2]),
        (0, 1, [3, 1, 2]),  # no memory at all
    ],
)
def test_segments_with_memory_equal_the_paper_that_recomputes_keys_and_values(
    mem_len: int, capacity: int, pieces: list[int]
) -> None:
    model = filled(tiny())
    segments = list(some_tokens(model.arch, sum(pieces))[0].split(pieces))
    memory = memory_for(model, mem_len=mem_len, capacity=capacity)
    got = []
    with torch.inference_mode():
        for n_seen, segment in zip(np.cumsum(pieces), segments, strict=True):
            got.append(model(segment[None], memory, "all")[0])
            assert memory.length == min(n_seen, mem_len)
        expected = reference(model, segments, mem_len)
    np.testing.assert_allclose(torch.cat(got).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pieces", [[1] * 20, [20], [7, 13], [1, 5, 1, 6, 7], [19, 1]])
@pytest.mark.parametrize("changes", SHAPES)
def test_any_split_gives_the_full_segment_while_the_memory_holds_everything(
    changes: dict[str, object], pieces: list[int]
) -> None:
    model = filled(tiny(**changes))
    tokens = some_tokens(model.arch, 20, batch=3)
    memory = memory_for(model, batch=3, capacity=20)
    with torch.inference_mode():
        expected = model(tokens, logits="all")
        got = [model(part, memory, "all") for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=1e-9, atol=1e-9)


def test_beyond_the_memory_the_split_into_segments_matters() -> None:
    """As in the paper: a token alone sees mem_len tokens, inside a segment also the earlier ones of that segment."""
    model = filled(tiny())
    tokens = some_tokens(model.arch, 12)
    with torch.inference_mode():
        memory = memory_for(model, mem_len=4, capacity=16)
        whole = model(tokens, memory)
        memory = memory_for(model, mem_len=4, capacity=16)
        one_by_one = [model(token, memory) for token in tokens.split(1, dim=1)][-1]
    assert (whole - one_by_one).abs().max() > 1e-3


def test_last_is_the_last_row_of_all_and_adaptive_results_are_normalised() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 9, batch=2)
    with torch.inference_mode():
        last, every = model(tokens), model(tokens, logits="all")
    assert last.shape == (2, 1, 41)
    torch.testing.assert_close(last, every[:, -1:])
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(2, 9, dtype=torch.float64))


def test_a_later_token_changes_no_earlier_result() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 12)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % model.arch.vocab_size
    with torch.inference_mode():
        one, other = model(tokens, logits="all"), model(changed, logits="all")
    torch.testing.assert_close(one[:, :8], other[:, :8], rtol=0, atol=1e-12)
    assert not torch.allclose(one[:, 8:], other[:, 8:], atol=1e-3)


def test_only_the_distance_matters_not_the_position() -> None:
    """The same tokens behind a forgotten past give the same result; nothing limits the length of a text."""
    model = filled(tiny(layers=(LayerSpec(d_inner=20, n_head=2),)))
    tokens, past = some_tokens(model.arch, 6), some_tokens(model.arch, 90)
    with torch.inference_mode():
        memory = memory_for(model, mem_len=5, capacity=9)
        for token in torch.cat([past, tokens], dim=1).split(1, dim=1):
            behind_past = model(token, memory)
        torch.testing.assert_close(behind_past, model(tokens))  # one layer: it sees its five predecessors, no further


def test_shift_against_its_definition() -> None:
    for T, S in ((2, 2), (2, 7), (5, 5), (4, 9)):
        by_column = torch.arange(T * S, dtype=torch.float64).view(1, 1, T, S)
        shifted = shift(by_column)
        assert shifted.shape == (1, 1, T, S)
        assert shifted.data_ptr() == by_column[0, 0, 0, T - 1 :].data_ptr()  # a view
        for t in range(T):
            for s in range(S - T + t + 1):  # key s is (S - T + t) - s away; that distance stands in this column:
                assert shifted[0, 0, t, s] == by_column[0, 0, t, S - 1 - (S - T + t - s)]


def test_sinusoids_of_an_odd_width() -> None:
    assert sinusoids(torch.arange(3.0), 5).shape == (3, 5)


# -- the memory as the profiler uses it --------------------------------------------------------------------------------


def test_setting_the_memory_back_repeats_a_token() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 10)
    memory = memory_for(model, capacity=10)
    with torch.inference_mode():
        model(tokens[:, :9], memory)
        first = model(tokens[:, 9:], memory)
        for _ in range(3):
            memory.set_length(9)
            assert torch.equal(model(tokens[:, 9:], memory), first)
        memory.set_length(0)
        torch.testing.assert_close(model(tokens, memory), first)


def test_a_memory_remembers_no_more_than_mem_len() -> None:
    model = filled(tiny())
    memory = memory_for(model, mem_len=6, capacity=7)
    memory.set_length(192)
    assert memory.length == 6
    memory.set_length(4)
    assert memory.length == 4
    with pytest.raises(ValueError, match="cannot hold -1"):
        memory.set_length(-1)
    with pytest.raises(ValueError, match="memory of 6 tokens needs a capacity of 7, not 6"):
        model.new_cache(mem_len=6, capacity=6)


def test_the_memory_says_what_it_takes() -> None:
    arch = tiny()
    memory = TransformerXl(arch).new_cache(batch=3, capacity=10)
    numbers = (2 * 3 + 1) * 10 * arch.d_model * arch.n_layer  # keys and values per sequence, position keys once
    assert memory.n_bytes == 4 * numbers
    assert (memory.length, memory.mem_len, memory.capacity) == (0, 9, 10)
    assert TransformerXl(arch).new_cache().capacity == arch.max_seq_len


def test_a_memory_filled_by_hand_gives_finite_results_in_float32() -> None:
    arch = tiny(d_model=64, layers=(LayerSpec(d_inner=200, n_head=4),) * 3, vocab_size=5000, cutoffs=(1000, 2000))
    model = TransformerXl(arch).eval()
    assert fill_weights(model) == 4 * arch.total_params
    memory = model.new_cache(capacity=193)
    assert fill_tensors(memory.tensors()) == memory.n_bytes
    memory.set_length(192)
    with torch.inference_mode():
        log_p = model(some_tokens(arch, 1), memory)
        assert log_p.shape == (1, 1, 5000)
        assert torch.isfinite(log_p).all()
        memory.set_length(0)
        prompt = model(some_tokens(arch, 192), memory, "all")
    assert torch.isfinite(prompt).all()
    assert prompt.std() > 1e-3


def test_norms_are_filled_near_one() -> None:
    model = TransformerXl(tiny(d_model=512, layers=(LayerSpec(d_inner=1100, n_head=4),)))
    fill_weights(model)
    for name, parameter in model.named_parameters():
        assert abs(parameter.detach().mean().item() - name.endswith("norm.weight")) < 0.02, name


def test_protocol_carries_mem_len_and_none_means_the_context() -> None:
    assert Protocol().memory_tokens == 192
    assert Protocol(context_tokens=64).memory_tokens == 64
    assert Protocol(mem_len=512).memory_tokens == 512
    assert Protocol(mem_len=192).comparison_key == Protocol().comparison_key
    assert Protocol(mem_len=64).comparison_key != Protocol().comparison_key
    assert Protocol.from_json(Protocol(mem_len=64).to_json()) == Protocol(mem_len=64)
    assert Protocol.from_json({}).mem_len is None
    for bad in (0, -1, True, 1.5, "64"):
        with pytest.raises(SpecError, match="mem_len must be an integer of at least 1"):
            Protocol(mem_len=bad)  # type: ignore[arg-type]  # what a hand-written file may hold

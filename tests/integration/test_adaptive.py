"""Adaptive embedding and softmax: a slow reference written from the papers, sharing, and counts by the formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import embedding_and_head

torch = pytest.importorskip("torch")

from edge_lts.model.adaptive import AdaptiveEmbedding, AdaptiveHead  # noqa: E402  (after the check that torch is there)

SHAPES = [
    {"cutoffs": (5, 12, 30)},
    {"cutoffs": (5, 12, 30), "tie_embeddings": False},
    {"cutoffs": (1, 2), "embedding_factor": 2, "d_embed": 10},
    {"cutoffs": (40,), "embedding_factor": 3, "d_embed": 48, "tie_embeddings": False},
    {"cutoffs": ()},  # one cluster: still a projection and biases
]


def tiny(**changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=40, n_head=2),)
    return Architecture(
        backbone="transformer-xl", d_model=24, d_embed=32, embedding_factor=2, vocab_size=41, layers=layers
    ).replace(**changes)


def built(arch: Architecture):
    """Embedding and head in float64 with values large enough to matter."""
    embedding = AdaptiveEmbedding(arch)
    head = AdaptiveHead(arch, embedding)
    generator = torch.Generator().manual_seed(5)
    for parameter in torch.nn.ModuleList([embedding, head]).double().parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    return embedding, head


def array(tensor):
    return tensor.detach().numpy()


def cluster_of(arch: Architecture, token: int) -> tuple[int, int]:
    """Cluster and place inside it, by counting."""
    for cluster, (tokens, _) in enumerate(arch.clusters):
        if token < tokens:
            return cluster, token
        token -= tokens
    raise AssertionError("not in the vocabulary")


def reference_embedding(arch: Architecture, embedding, token: int) -> list[float]:
    """Baevski and Auli 2019, section 3: the token's row in its cluster, projected; times sqrt(d)."""
    cluster, place = cluster_of(arch, token)
    row, projection = array(embedding.tables[cluster].weight)[place], array(embedding.projections[cluster].weight)
    width = arch.d_embed // arch.embedding_factor**cluster
    assert row.shape == (width,)
    return [math.sqrt(arch.d_model) * sum(projection[d, w] * row[w] for w in range(width)) for d in range(arch.d_model)]


def reference_log_p(arch: Architecture, head, hidden: list[float], token: int) -> float:
    """Grave et al. 2017, section 4: probability of the cluster times probability inside it, without logarithms."""

    def scores(cluster: int) -> list[float]:
        projection = array(head.projections[cluster].weight)
        width = arch.d_embed // arch.embedding_factor**cluster
        narrow = [sum(projection[d, w] * hidden[d] for d in range(arch.d_model)) for w in range(width)]
        rows = [(head.tables[cluster], place) for place in range(arch.clusters[cluster][0])]
        if cluster == 0 and len(arch.clusters) > 1:
            rows += [(head.clusters, tail) for tail in range(len(arch.clusters) - 1)]
        return [
            math.exp(sum(array(m.weight)[i, w] * narrow[w] for w in range(width)) + array(m.bias)[i]) for m, i in rows
        ]

    cluster, place = cluster_of(arch, token)
    first = scores(0)
    if cluster == 0:
        return math.log(first[place] / sum(first))
    inside = scores(cluster)
    return math.log(first[arch.clusters[0][0] + cluster - 1] / sum(first) * inside[place] / sum(inside))


@pytest.mark.parametrize("changes", SHAPES)
def test_embedding_equals_the_reference_token_by_token_and_all_at_once(changes: dict[str, object]) -> None:
    arch = tiny(**changes)
    embedding, _ = built(arch)
    tokens = torch.randperm(arch.vocab_size, generator=torch.Generator().manual_seed(1))
    expected = np.array([reference_embedding(arch, embedding, int(token)) for token in tokens])
    with torch.inference_mode():
        np.testing.assert_allclose(array(embedding(tokens[None]))[0], expected, rtol=1e-12, atol=1e-12)
        one_by_one = torch.cat([embedding(token.view(1, 1)) for token in tokens], dim=1)
        two_rows = embedding(tokens[:40].view(2, 20))
    np.testing.assert_allclose(array(one_by_one)[0], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(array(two_rows).reshape(40, -1), expected[:40], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", SHAPES)
def test_head_equals_the_reference_and_its_probabilities_sum_to_one(changes: dict[str, object]) -> None:
    arch = tiny(**changes)
    _, head = built(arch)
    hidden = torch.randn(2, 3, arch.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        got = head(hidden)
        last = head(hidden[:, -1:])
    assert got.shape == (2, 3, arch.vocab_size)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(last, got[:, -1:])
    for b, t in ((0, 0), (1, 2)):
        expected = [reference_log_p(arch, head, hidden[b, t].tolist(), token) for token in range(arch.vocab_size)]
        np.testing.assert_allclose(array(got)[b, t], expected, rtol=1e-9, atol=1e-9)


def test_the_head_can_be_trained() -> None:
    """Writing the parts into one tensor in place must not hide any parameter from the gradient."""
    arch = tiny(cutoffs=(5, 12, 30))
    embedding, head = built(arch)
    torch.nn.functional.nll_loss(head(embedding(torch.arange(41)[None]))[0], torch.arange(41)).backward()
    modules = torch.nn.ModuleList([embedding, head])
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in modules.parameters())


def test_tied_shares_tables_and_later_projections_only() -> None:
    embedding, head = built(tiny(cutoffs=(5, 12, 30)))
    assert all(a.weight is b.weight for a, b in zip(embedding.tables, head.tables, strict=True))
    assert all(a is b for a, b in zip(embedding.projections[1:], head.projections[1:], strict=True))
    assert embedding.projections[0].weight is not head.projections[0].weight
    embedding, head = built(tiny(cutoffs=(5, 12, 30), tie_embeddings=False))
    assert not {id(p) for p in embedding.parameters()} & {id(p) for p in head.parameters()}


def test_tokens_of_one_cluster_leave_the_others_alone() -> None:
    arch = tiny(cutoffs=(5, 12, 30))
    embedding, _ = built(arch)
    with torch.inference_mode():
        before = embedding(torch.tensor([[0, 4, 40]]))
        embedding.tables[1].weight.fill_(math.nan)
        torch.testing.assert_close(embedding(torch.tensor([[0, 4, 40]])), before)
        assert embedding(torch.tensor([[0, 5]]))[0, 1].isnan().all()


def n_params(*modules) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Architecture,
        backbone=st.sampled_from(["gpt2", "transformer-xl"]),
        d_model=st.integers(1, 40),
        d_embed=st.integers(64, 200),
        embedding_factor=st.integers(2, 4),
        vocab_size=st.integers(1, 500),
        cutoffs=st.none() | st.sets(st.integers(1, 600), max_size=3).map(lambda values: tuple(sorted(values))),
        tie_embeddings=st.booleans(),
        layers=st.just((LayerSpec(d_inner=8, n_head=1),)),
    )
)
def test_closed_formula_counts_what_is_built(arch: Architecture) -> None:
    embedding = AdaptiveEmbedding(arch)
    head = AdaptiveHead(arch, embedding)
    count_embedding, count_head = embedding_and_head(arch)
    assert n_params(embedding) == count_embedding
    assert n_params(embedding, head) == count_embedding + count_head


def test_the_papers_vocabulary_is_cut_as_published() -> None:
    arch = tiny(vocab_size=267735, d_embed=64, d_model=64, embedding_factor=4)
    embedding = AdaptiveEmbedding(arch)
    assert [tuple(table.weight.shape) for table in embedding.tables] == [
        (19997, 64),
        (20000, 16),
        (160000, 4),
        (67738, 1),
    ]

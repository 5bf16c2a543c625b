"""Adaptive embedding and adaptive softmax: rare tokens get narrower rows (Baevski and Auli 2019, arXiv 1809.10853).

The vocabulary, most frequent tokens first, is cut into clusters (`Architecture.clusters`); cluster i has rows of width
d_embed / k^i and a projection to d_model. The head factorises (Grave et al. 2017, arXiv 1609.04309): one softmax over
the first cluster's tokens and one entry per later cluster, and one softmax inside each later cluster,

    log p(token) = log p_0(token)                              for a token of cluster 0
    log p(token) = log p_0(cluster i) + log p_i(token)         for a token of cluster i > 0

Tied as in the code of Transformer-XL and LiteTransformerSearch: embedding and head share the tables and the projections
of the clusters after the first; the first projection, all biases and the clusters' own rows belong to the head. As
there, embeddings are multiplied by sqrt(d_model).

The head always computes the full distribution, log-probabilities of all tokens that sum to 1: choosing or sampling the
next token needs it. The authors' code, asked without labels, stops after the first softmax, a fraction of the head.

Shapes: B batch, T tokens, n = B T, D d_model, W width of a cluster's rows, C tokens of a cluster, V vocabulary.
"""

import math
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_lts.arch import Architecture
from edge_lts.model.layers import Embedding, Linear


def _first_ids(arch: Architecture) -> list[int]:
    """The smallest token id of each cluster, and the size of the vocabulary behind them."""
    return [0, *accumulate(tokens for tokens, _ in arch.clusters)]


class AdaptiveEmbedding(nn.Module):
    """Token ids to vectors of width d_model: row of the cluster, projection, scale."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.d_model = arch.d_model
        self.first_ids = _first_ids(arch)
        self.tables = nn.ModuleList(Embedding(tokens, width) for tokens, width in arch.clusters)
        self.projections = nn.ModuleList(Linear(width, arch.d_model, bias=False) for _, width in arch.clusters)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D). A cluster costs nothing where none of its tokens occurs."""
        ids_n = tokens_BT.reshape(-1)
        if len(ids_n) == 1:  # decoding: no search for the tokens of each cluster
            cluster = bisect_right(self.first_ids, int(ids_n)) - 1
            x_nD = self._embed(ids_n, cluster)
        else:
            x_nD = self.tables[0].get_parameter("weight").new_empty(len(ids_n), self.d_model)
            for cluster, (low, high) in enumerate(zip(self.first_ids, self.first_ids[1:], strict=False)):
                places = ((ids_n >= low) & (ids_n < high)).nonzero().squeeze(1)
                if len(places):
                    x_nD[places] = self._embed(ids_n[places], cluster)
        return x_nD.view(*tokens_BT.shape, self.d_model)

    def _embed(self, ids_n: Tensor, cluster: int) -> Tensor:
        rows_nW = self.tables[cluster](ids_n - self.first_ids[cluster])
        x_nD: Tensor = self.projections[cluster](rows_nW) * math.sqrt(self.d_model)
        return x_nD


class AdaptiveHead(nn.Module):
    """Vectors of width d_model to normalised log-probabilities over the whole vocabulary.

    A projection is kept as the embedding keeps it, (D, W), so that the two can share it; the head uses its transpose.
    """

    def __init__(self, arch: Architecture, embedding: AdaptiveEmbedding) -> None:
        super().__init__()
        clusters = arch.clusters
        self.first_ids = _first_ids(arch)
        self.tables = nn.ModuleList(Linear(width, tokens) for tokens, width in clusters)
        self.projections = nn.ModuleList([Linear(clusters[0][1], arch.d_model, bias=False)])
        if arch.tie_embeddings:
            for table, rows in zip(self.tables, embedding.tables, strict=True):
                table.weight = rows.weight
            self.projections.extend(embedding.projections[1:])
        else:
            self.projections.extend(Linear(width, arch.d_model, bias=False) for _, width in clusters[1:])
        self.clusters = Linear(clusters[0][1], len(clusters) - 1) if len(clusters) > 1 else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, V). While a cluster is computed its part is held twice, beside those before it."""
        n_first, vocab_size = self.first_ids[1], self.first_ids[-1]
        x_BTW = x_BTD @ self.projections[0].get_parameter("weight")
        if self.clusters is None:
            return functional.log_softmax(self.tables[0](x_BTW), dim=-1)
        first_BTC = functional.log_softmax(torch.cat([self.tables[0](x_BTW), self.clusters(x_BTW)], dim=-1), dim=-1)
        log_p_BTV = x_BTD.new_empty(*x_BTD.shape[:-1], vocab_size)
        log_p_BTV[..., :n_first] = first_BTC[..., :n_first]
        cluster_log_p = first_BTC[..., n_first:].clone()  # so that the large tensor can go
        del first_BTC
        for i in range(1, len(self.tables)):
            part = slice(self.first_ids[i], self.first_ids[i + 1])
            x_BTW = x_BTD @ self.projections[i].get_parameter("weight")
            log_p_BTV[..., part] = functional.log_softmax(self.tables[i](x_BTW), dim=-1)
            log_p_BTV[..., part] += cluster_log_p[..., i - 1 : i]
        return log_p_BTV


class Ends(NamedTuple):
    """What stands before and behind a decoder; the projections only where d_embed is not d_model."""

    token_embedding: AdaptiveEmbedding | Embedding
    head: AdaptiveHead | Linear
    embedding_projection: Linear | None
    head_projection: Linear | None


def build_ends(arch: Architecture) -> Ends:
    """Adaptive embedding and head for `embedding_factor` above 1 (log-probabilities), plain ones otherwise (logits)."""
    if arch.embedding_factor > 1:
        adaptive = AdaptiveEmbedding(arch)
        return Ends(adaptive, AdaptiveHead(arch, adaptive), None, None)
    embedding = Embedding(arch.vocab_size, arch.d_embed)
    head = Linear(arch.d_embed, arch.vocab_size, bias=False)
    if arch.tie_embeddings:
        head.weight = embedding.weight
    if arch.d_embed == arch.d_model:
        return Ends(embedding, head, None, None)
    into = Linear(arch.d_embed, arch.d_model, bias=False)
    return Ends(embedding, head, into, Linear(arch.d_model, arch.d_embed, bias=False))

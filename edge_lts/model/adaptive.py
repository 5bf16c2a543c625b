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
from edge_lts.model.layers import FLOATS, Parts, transposed


def _first_ids(arch: Architecture) -> list[int]:
    """The smallest token id of each cluster, and the size of the vocabulary behind them."""
    return [0, *accumulate(tokens for tokens, _ in arch.clusters)]


class AdaptiveEmbedding(nn.Module):
    """Token ids to vectors of width d_model: row of the cluster, projection, scale."""

    def __init__(self, arch: Architecture, parts: Parts = FLOATS) -> None:
        super().__init__()
        self.d_model = arch.d_model
        self.first_ids = _first_ids(arch)
        self.tables = nn.ModuleList(parts.table(tokens, width) for tokens, width in arch.clusters)
        self.projections = nn.ModuleList(parts.projection(width, arch.d_model) for _, width in arch.clusters)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D). A cluster costs nothing where none of its tokens occurs."""
        ids_n = tokens_BT.reshape(-1)
        x_nD: Tensor | None = None
        if len(ids_n) == 1:  # decoding: no search for the tokens of each cluster
            cluster = bisect_right(self.first_ids, int(ids_n)) - 1
            x_nD = self._embed(ids_n, cluster)
        else:
            for cluster, (low, high) in enumerate(zip(self.first_ids, self.first_ids[1:], strict=False)):
                places = ((ids_n >= low) & (ids_n < high)).nonzero().squeeze(1)
                if len(places):
                    part_nD = self._embed(ids_n[places], cluster)
                    if x_nD is None:
                        x_nD = part_nD.new_empty(len(ids_n), self.d_model)
                    x_nD[places] = part_nD
        assert x_nD is not None
        return x_nD.view(*tokens_BT.shape, self.d_model)

    def _embed(self, ids_n: Tensor, cluster: int) -> Tensor:
        rows_nW = self.tables[cluster](ids_n - self.first_ids[cluster])
        x_nD: Tensor = self.projections[cluster](rows_nW) * math.sqrt(self.d_model)
        return x_nD


class AdaptiveHead(nn.Module):
    """Vectors of width d_model to normalised log-probabilities over the whole vocabulary.

    A projection is kept as the embedding keeps it, (D, W), so that the two can share it; the head uses its transpose.
    """

    def __init__(self, arch: Architecture, embedding: AdaptiveEmbedding, parts: Parts = FLOATS) -> None:
        super().__init__()
        clusters, d_model = arch.clusters, arch.d_model
        self.first_ids = _first_ids(arch)
        self.projections = nn.ModuleList([parts.projection(clusters[0][1], d_model)])
        if arch.tie_embeddings:
            self.tables = nn.ModuleList(parts.tied(rows, bias=True) for rows in embedding.tables)
            self.projections.extend(embedding.projections[1:])
        else:
            self.tables = nn.ModuleList(parts.head(width, tokens, bias=True) for tokens, width in clusters)
            self.projections.extend(parts.projection(width, d_model) for _, width in clusters[1:])
        self.clusters = parts.linear(clusters[0][1], len(clusters) - 1) if len(clusters) > 1 else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, V). While a cluster is computed its part is held twice, beside those before it."""
        n_first, vocab_size = self.first_ids[1], self.first_ids[-1]
        x_BTW = transposed(self.projections[0], x_BTD)
        if self.clusters is None:
            return functional.log_softmax(self.tables[0](x_BTW), dim=-1)
        first_BTC = functional.log_softmax(torch.cat([self.tables[0](x_BTW), self.clusters(x_BTW)], dim=-1), dim=-1)
        log_p_BTV = x_BTD.new_empty(*x_BTD.shape[:-1], vocab_size)
        log_p_BTV[..., :n_first] = first_BTC[..., :n_first]
        cluster_log_p = first_BTC[..., n_first:].clone()  # so that the large tensor can go
        del first_BTC
        for i in range(1, len(self.tables)):
            part = slice(self.first_ids[i], self.first_ids[i + 1])
            x_BTW = transposed(self.projections[i], x_BTD)
            log_p_BTV[..., part] = functional.log_softmax(self.tables[i](x_BTW), dim=-1)
            log_p_BTV[..., part] += cluster_log_p[..., i - 1 : i]
        return log_p_BTV


class Ends(NamedTuple):
    """What stands before and behind a decoder; the projections only where d_embed is not d_model."""

    token_embedding: nn.Module
    head: nn.Module
    embedding_projection: nn.Module | None
    head_projection: nn.Module | None


def build_ends(arch: Architecture, parts: Parts) -> Ends:
    """Adaptive embedding and head for `embedding_factor` above 1 (log-probabilities), plain ones otherwise (logits)."""
    if arch.embedding_factor > 1:
        adaptive = AdaptiveEmbedding(arch, parts)
        return Ends(adaptive, AdaptiveHead(arch, adaptive, parts), None, None)
    d_model, d_embed = arch.d_model, arch.d_embed
    embedding = parts.table(arch.vocab_size, d_embed)
    if arch.tie_embeddings:
        head = parts.tied(embedding, bias=False)
    else:
        head = parts.head(d_embed, arch.vocab_size, bias=False)
    if d_embed == d_model:
        return Ends(embedding, head, None, None)
    into = parts.linear(d_embed, d_model, bias=False)
    return Ends(embedding, head, into, parts.linear(d_model, d_embed, bias=False))

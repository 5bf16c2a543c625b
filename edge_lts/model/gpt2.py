"""GPT-2's decoder with layers that may differ: each block is built from its own LayerSpec and knows nothing else.

Pre-norm, learned positions, biases everywhere in the decoder, GELU in its tanh form (Radford et al. 2019; equal to
Hugging Face's GPT2LMHeadModel, which a test holds it to). Beyond GPT-2: a token embedding narrower or wider than the
model, with a bias-free projection on the way in and another on the way out, and an untied head; and, where
`embedding_factor` is above 1, adaptive embedding and softmax as in LiteTransformerSearch, the result of which is
log-probabilities instead of logits. Dropout is left out: this model is only evaluated here.

Shapes: B batch, T new tokens, S tokens seen (cache and new), D d_model, E d_embed, N heads, H head width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_lts.arch import Architecture, LayerSpec, position_rows
from edge_lts.model.adaptive import build_ends
from edge_lts.model.layers import FLOATS, Logits, Parts


class LayerCache:
    """Keys and values of one layer in buffers of fixed size, appended to in place."""

    def __init__(self, keys_BNSH: Tensor, values_BNSH: Tensor) -> None:
        self.keys_BNSH = keys_BNSH
        self.values_BNSH = values_BNSH
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys_BNSH.shape[2]

    def append(self, keys_BNTH: Tensor, values_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the old ones; returns views of all that is there, (B, N, S, H) each."""
        start, end = self.length, self.length + keys_BNTH.shape[2]
        self.keys_BNSH[:, :, start:end] = keys_BNTH
        self.values_BNSH[:, :, start:end] = values_BNTH
        self.length = end
        return self.keys_BNSH[:, :, :end], self.values_BNSH[:, :, :end]


class KVCache:
    """The caches of all layers. `capacity` tokens are allocated at once, for `batch` sequences of equal length."""

    def __init__(
        self, arch: Architecture, *, batch: int = 1, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        tokens = arch.max_seq_len if capacity is None else capacity
        shapes = [(batch, layer.n_head, tokens, arch.d_model // layer.n_head) for layer in arch.layers]
        self.layers = tuple(
            LayerCache(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)) for shape in shapes
        )

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    @property
    def n_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tensors(self) -> Iterable[Tensor]:
        for layer in self.layers:
            yield layer.keys_BNSH
            yield layer.values_BNSH

    def set_length(self, length: int) -> None:
        """Go back to `length` tokens, or declare that many filled by hand."""
        if not 0 <= length <= self.capacity:
            raise ValueError(f"a cache of {self.capacity} tokens cannot hold {length}")
        for layer in self.layers:
            layer.length = length


class Attention(nn.Module):
    """Causal self-attention with `n_head` heads of width d_model / n_head."""

    def __init__(self, d_model: int, n_head: int, parts: Parts) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = parts.linear(d_model, 3 * d_model)
        self.out = parts.linear(d_model, d_model)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        B, T, D = x_BTD.shape
        heads_BNTH = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.qkv(x_BTD).split(D, dim=-1))
        q_BNTH, k_BNSH, v_BNSH = heads_BNTH
        past = 0
        if cache is not None:
            past = cache.length
            k_BNSH, v_BNSH = cache.append(k_BNSH, v_BNSH)
        # torch's is_causal aligns the mask with the first key, which is right only without a past. One new token sees
        # everything and needs no mask; several tokens after a past need one of their own.
        mask_TS = None
        if past and T > 1:
            mask_TS = torch.ones(T, past + T, dtype=torch.bool, device=x_BTD.device).tril(diagonal=past)
        y_BNTH = functional.scaled_dot_product_attention(
            q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_TS, is_causal=not past and T > 1
        )
        y_BTD: Tensor = self.out(y_BNTH.transpose(1, 2).reshape(B, T, D))
        return y_BTD


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_inner: int, parts: Parts) -> None:
        super().__init__()
        self.up = parts.linear(d_model, d_inner)
        self.down = parts.linear(d_inner, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(functional.gelu(self.up(x_BTD), approximate="tanh"))
        return y_BTD


class Block(nn.Module):
    """One pre-norm decoder layer, from its spec alone."""

    def __init__(self, d_model: int, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, spec.n_head, parts)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, spec.d_inner, parts)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cache)
        y_BTD: Tensor = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + y_BTD


class Decoder(nn.Module):
    """Blocks and the final norm: exactly what the proxy `decoder_params` counts."""

    def __init__(self, d_model: int, layers: Iterable[LayerSpec], parts: Parts) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d_model, spec, parts) for spec in layers)
        self.norm = nn.LayerNorm(d_model)


class Gpt2(nn.Module):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`.

    `decoder` and `first_position`, the row of the first token in the table of positions, are what `opt.py` has of its
    own.
    """

    decoder: Any

    def __init__(
        self,
        arch: Architecture,
        parts: Parts = FLOATS,
        decoder: Callable[[int, Iterable[LayerSpec], Parts], nn.Module] = Decoder,
        first_position: int = 0,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.first_position = first_position
        ends = build_ends(arch, parts)
        self.token_embedding, self.head = ends.token_embedding, ends.head
        self.embedding_projection, self.head_projection = ends.embedding_projection, ends.head_projection
        self.position_embedding = parts.table(position_rows(arch), arch.d_model)
        self.decoder = decoder(arch.d_model, arch.layers, parts)

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and cache."""
        dtype: torch.dtype = next(self.decoder.parameters()).dtype
        return dtype

    def new_cache(self, *, batch: int = 1, capacity: int | None = None) -> KVCache:
        return KVCache(self.arch, batch=batch, capacity=capacity, dtype=self.dtype)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None, logits: Logits = "last") -> Tensor:
        """Logits or log-probabilities (B, T, V), or (B, 1, V) of the last token only.

        With a cache, `tokens_BT` continue what it holds and are appended to it. Raises ValueError where they do not fit
        the cache or the learned positions.
        """
        T = tokens_BT.shape[1]
        past = 0 if cache is None else cache.length
        limit = self.arch.max_seq_len if cache is None else min(self.arch.max_seq_len, cache.capacity)
        if past + T > limit:
            raise ValueError(f"{past} + {T} tokens do not fit the {limit} positions there are")
        x_BTE = self.token_embedding(tokens_BT)
        x_BTD = x_BTE if self.embedding_projection is None else self.embedding_projection(x_BTE)
        first = self.first_position + past
        x_BTD = x_BTD + self.position_embedding.rows(first, first + T)
        layer_caches = (None,) * len(self.decoder.blocks) if cache is None else cache.layers
        for block, layer_cache in zip(self.decoder.blocks, layer_caches, strict=True):
            x_BTD = block(x_BTD, layer_cache)
        if logits == "last":
            x_BTD = x_BTD[:, -1:]
        x_BTD = self.decoder.norm(x_BTD)
        x_BTE = x_BTD if self.head_projection is None else self.head_projection(x_BTD)
        logits_BTV: Tensor = self.head(x_BTE)
        return logits_BTV

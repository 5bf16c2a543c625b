"""Transformer-XL's decoder with layers that may differ: each block is built from its own LayerSpec, nothing else.

Dai et al. 2019, arXiv 1901.02860, section 3.3, as LiteTransformerSearch builds it: relative positions with u and v per
layer, a memory of earlier segments, norms behind each residual sum, ReLU, no bias in attention, no final norm,
embeddings times sqrt(d_model). d_head is d_model / n_head. Dropout is left out: this model is only evaluated here.

The memory. The paper keeps the hidden states of the last `mem_len` tokens and projects them to keys and values again
for every segment. The states are frozen and no position enters them, so their keys and values never change: these are
kept instead, with the projected position vectors, which depend on the distance alone. A test holds this equal to the
paper's way. It costs 3 d_model numbers per layer and token instead of 1, and a decoded token then costs the projections
of one token instead of mem_len + 1: how anybody would generate text. The position vectors are projected once per memory
(without one, or for a segment longer than its room, in every forward); a prefill into a memory is timed without that.

A segment of T tokens sees the memory and itself, mem_len + T keys at most; a token decoded alone sees mem_len + 1. Once
the text is longer than the memory its split into segments therefore changes the result, in the paper as here.

Shapes: B batch, T new tokens, S keys (memory and new), D d_model, E d_embed, F d_inner, N heads, H head width,
V vocabulary.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.model.adaptive import AdaptiveEmbedding, build_ends
from edge_lts.model.gpt2 import Decoder, MakeBlock
from edge_lts.model.layers import FLOATS, FeedForward, Logits, Parts, norm_of


def sinusoids(distances_S: Tensor, d_model: int) -> Tensor:
    """The vectors R of the distances, (S, D): sines, then cosines (an odd width drops the last cosine)."""
    exponents = torch.arange(0, d_model, 2, dtype=distances_S.dtype) / d_model
    angles = distances_S[:, None] / 10000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :d_model]


class LayerMemory:
    """Keys and values of one layer's memory in buffers of fixed size, and the layer's position keys.

    What is written ends at `end`; the last `mem_len` of it is remembered. The last row of the position keys belongs to
    distance 0, the one before to distance 1, and so on; the first forward computes them.
    """

    def __init__(self, keys_BNSH: Tensor, values_BNSH: Tensor, positions_NSH: Tensor, mem_len: int) -> None:
        self.keys_BNSH = keys_BNSH
        self.values_BNSH = values_BNSH
        self.positions_NSH = positions_NSH
        self.has_positions = False
        self.mem_len = mem_len
        self.end = 0

    @property
    def length(self) -> int:
        return min(self.end, self.mem_len)

    def extend(self, keys_BNTH: Tensor, values_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Remember the new tokens; returns the memory before them and themselves, (B, N, S, H) each.

        In place while there is room, as there is for a token after `set_length`. Otherwise the memory moves to the
        front first; a segment that does not fit even then is joined to it outside the buffers.
        """
        n_new, kept, capacity = keys_BNTH.shape[2], self.length, self.keys_BNSH.shape[2]
        if self.end + n_new > capacity:
            remembered = slice(self.end - kept, self.end)
            if kept + n_new > capacity:
                keys_BNSH = torch.cat([self.keys_BNSH[:, :, remembered], keys_BNTH], dim=2)
                values_BNSH = torch.cat([self.values_BNSH[:, :, remembered], values_BNTH], dim=2)
                self.end = min(self.mem_len, kept + n_new)
                last = slice(kept + n_new - self.end, None)
                self.keys_BNSH[:, :, : self.end] = keys_BNSH[:, :, last]
                self.values_BNSH[:, :, : self.end] = values_BNSH[:, :, last]
                return keys_BNSH, values_BNSH
            self.keys_BNSH[:, :, :kept] = self.keys_BNSH[:, :, remembered].clone()  # the two may overlap
            self.values_BNSH[:, :, :kept] = self.values_BNSH[:, :, remembered].clone()
            self.end = kept
        new, seen = slice(self.end, self.end + n_new), slice(self.end - kept, self.end + n_new)
        self.keys_BNSH[:, :, new] = keys_BNTH
        self.values_BNSH[:, :, new] = values_BNTH
        self.end += n_new
        return self.keys_BNSH[:, :, seen], self.values_BNSH[:, :, seen]


class SegmentMemory:
    """The memories of all layers, for `batch` sequences of equal length. It rolls on and is never full.

    `mem_len` tokens are remembered, in buffers of `capacity` tokens, at least mem_len + 1. More room saves moving the
    memory: with twice mem_len it moves once in mem_len tokens.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        mem_len: int,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        capacity = mem_len + 1 if capacity is None else capacity
        if not 0 <= mem_len < capacity:
            raise ValueError(f"a memory of {mem_len} tokens needs a capacity of {mem_len + 1}, not {capacity}")
        self.mem_len = mem_len
        self.capacity = capacity
        widths = [(layer.n_head, arch.d_model // layer.n_head) for layer in arch.layers]
        self.layers = tuple(
            LayerMemory(
                torch.empty(batch, n_head, capacity, d_head, dtype=dtype),
                torch.empty(batch, n_head, capacity, d_head, dtype=dtype),
                torch.empty(n_head, capacity, d_head, dtype=dtype),
                mem_len,
            )
            for n_head, d_head in widths
        )

    @property
    def length(self) -> int:
        """Tokens remembered."""
        return self.layers[0].length

    @property
    def n_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tensors(self) -> Iterable[Tensor]:
        for layer in self.layers:
            yield layer.keys_BNSH
            yield layer.values_BNSH
            yield layer.positions_NSH

    def set_length(self, length: int) -> None:
        """Go back to `length` tokens, or declare that many filled by hand; no more than `mem_len` are remembered."""
        if length < 0:
            raise ValueError(f"a memory cannot hold {length} tokens")
        for layer in self.layers:
            layer.end = min(length, self.mem_len)


class RelativeAttention(nn.Module):
    """Causal attention whose scores are (q + u) k + (q + v) W R[distance], over sqrt(d_head)."""

    def __init__(self, arch: Architecture, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        d_model, n_head = arch.d_model, spec.n_head
        self.d_model = d_model
        self.n_head = n_head
        d_head = d_model // n_head
        self.qkv = parts.linear(d_model, 3 * d_model, bias=False)
        self.position = parts.linear(d_model, d_model, bias=False)
        self.out = parts.linear(d_model, d_model, bias=False)
        self.content_bias_NH = nn.Parameter(torch.empty(n_head, d_head))  # u
        self.position_bias_NH = nn.Parameter(torch.empty(n_head, d_head))  # v

    def forward(self, x_BTD: Tensor, memory: LayerMemory | None, future_TS: Tensor | None) -> Tensor:
        """`future_TS` is true where key s comes after token t; None for a single token."""
        B, T, D = x_BTD.shape
        q_BNTH, k_BNSH, v_BNSH = (
            part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.qkv(x_BTD).split(D, dim=-1)
        )
        if memory is not None:
            k_BNSH, v_BNSH = memory.extend(k_BNSH, v_BNSH)
        scale = 1.0 / math.sqrt(D // self.n_head)
        positions_NSH = self._position_keys(k_BNSH.shape[2], memory)
        q_position_BNTH = (q_BNTH + self.position_bias_NH[:, None]) * scale
        bias_BNTS = q_position_BNTH @ positions_NSH.transpose(-2, -1)
        if future_TS is not None:
            bias_BNTS = shift(bias_BNTS).masked_fill(future_TS, -math.inf)
        y_BNTH = functional.scaled_dot_product_attention(
            q_BNTH + self.content_bias_NH[:, None], k_BNSH, v_BNSH, attn_mask=bias_BNTS
        )
        y_BTD: Tensor = self.out(y_BNTH.transpose(1, 2).reshape(B, T, D))
        return y_BTD

    def _position_keys(self, n_keys: int, memory: LayerMemory | None) -> Tensor:
        """W R for the distances n_keys - 1, ..., 0: (N, S, H)."""
        if memory is None or n_keys > memory.positions_NSH.shape[1]:
            return self._project_positions(n_keys)
        if not memory.has_positions:
            memory.positions_NSH.copy_(self._project_positions(memory.positions_NSH.shape[1]))
            memory.has_positions = True
        return memory.positions_NSH[:, -n_keys:]

    def _project_positions(self, n_keys: int) -> Tensor:
        dtype = self.content_bias_NH.dtype
        distances_S = torch.arange(
            n_keys - 1, -1, -1, dtype=torch.promote_types(dtype, torch.float32)
        )  # no 257 in bf16
        r_SD = sinusoids(distances_S, self.d_model).to(dtype)
        keys_SD: Tensor = self.position(r_SD)
        return keys_SD.view(n_keys, self.n_head, -1).transpose(0, 1)


def shift(bias_BNTS: Tensor) -> Tensor:
    """Move row t of T left by T - 1 - t: its columns, in the last token's distances until then, get token t's own.

    A view (the paper's appendix B without its padding and copy). What slides in on the right belongs to the next row;
    it lies in the token's future and must be masked. Needs T > 1.
    """
    T, S = bias_BNTS.shape[-2:]
    return bias_BNTS.flatten(-2)[..., T - 1 :].unfold(-1, S, S - 1)


class Block(nn.Module):
    """One post-norm decoder layer, from its spec alone; `opt.py` has it with another attention."""

    def __init__(
        self, arch: Architecture, spec: LayerSpec, parts: Parts, attention: MakeBlock = RelativeAttention
    ) -> None:
        super().__init__()
        self.attention = attention(arch, spec, parts)
        self.attention_norm = norm_of(arch)
        self.feed_forward = FeedForward(arch, spec, parts)
        self.feed_forward_norm = norm_of(arch)

    def forward(self, x_BTD: Tensor, *past: Any) -> Tensor:
        """`past` is what the attention takes beside its input."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, *past))
        y_BTD: Tensor = self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))
        return y_BTD


class TransformerXl(nn.Module):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`.

    With `embedding_factor` 1 embedding and head are plain, as in `gpt2.py`, and the result is logits; above 1 they are
    adaptive, and the result is log-probabilities.
    """

    def __init__(self, arch: Architecture, parts: Parts = FLOATS) -> None:
        super().__init__()
        self.arch = arch
        ends = build_ends(arch, parts)
        self.token_embedding, self.head = ends.token_embedding, ends.head
        self.embedding_projection, self.head_projection = ends.embedding_projection, ends.head_projection
        self.decoder = Decoder(arch, parts, Block)

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and cache."""
        return next(self.decoder.parameters()).dtype

    def new_cache(self, *, batch: int = 1, capacity: int | None = None, mem_len: int | None = None) -> SegmentMemory:
        """A memory with room for `capacity` tokens (default: max_seq_len) that by default remembers all but one."""
        capacity = self.arch.max_seq_len if capacity is None else capacity
        mem_len = capacity - 1 if mem_len is None else mem_len
        return SegmentMemory(self.arch, mem_len=mem_len, batch=batch, capacity=capacity, dtype=self.dtype)

    def forward(self, tokens_BT: Tensor, cache: SegmentMemory | None = None, logits: Logits = "last") -> Tensor:
        """Logits or log-probabilities (B, T, V), or (B, 1, V) of the last token only.

        With a memory, `tokens_BT` are the segment that follows it, and are remembered. No length is too long.
        """
        T = tokens_BT.shape[1]
        past = 0 if cache is None else cache.length
        x_BTD = self._embed(tokens_BT)
        future_TS = None
        if T > 1:
            future_TS = torch.ones(T, past + T, dtype=torch.bool, device=x_BTD.device).triu(past + 1)
        memories = (None,) * len(self.decoder.blocks) if cache is None else cache.layers
        for block, memory in zip(self.decoder.blocks, memories, strict=True):
            x_BTD = block(x_BTD, memory, future_TS)
        if logits == "last" and T > 1:  # as a tensor of its own shape: seeing the strides, bfloat16 would copy the head
            x_BTD = x_BTD[:, -1:].flatten().view(len(x_BTD), 1, -1)
        x_BTE = x_BTD if self.head_projection is None else self.head_projection(x_BTD)
        result_BTV: Tensor = self.head(x_BTE)
        return result_BTV

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        x_BTE: Tensor = self.token_embedding(tokens_BT)
        if isinstance(self.token_embedding, AdaptiveEmbedding):
            return x_BTE
        x_BTD = x_BTE if self.embedding_projection is None else self.embedding_projection(x_BTE)
        return x_BTD * math.sqrt(self.arch.d_model)

"""Causal self-attention and its cache: heads that share keys and values, rotary positions, convolutions behind q, k, v.

Which of these an architecture has is decided when its blocks are made. Sources: Ainslie et al. 2023 (arXiv 2305.13245)
for shared keys and values, query head i with key head i // (n_head / n_kv_head); Su et al. 2021 (arXiv 2104.09864) for
rotary positions, halves rotated against each other as in Llama's code; So et al. 2021 (arXiv 2109.08668) for the
convolutions, one kernel of 3 for each channel, and for q that is made of k, as google-research/primer has it.

Shapes: B batch, T new tokens, S tokens seen (cache and new), D d_model, N query heads, K key heads, H head width,
C channels of q, k and v together.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.model.layers import Parts

TAIL = 2  # tokens that a convolution looks back
ROTARY_BASE = 10_000.0

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, (T, H) each


def with_zeros(rows_BTC: Tensor) -> Tensor:
    """The rows behind those of as many empty tokens as a convolution looks back."""
    return functional.pad(rows_BTC, (0, 0, TAIL, 0))


class LayerCache:
    """Keys and values of one layer in buffers of fixed size, appended to in place.

    `tail_B2C` is what convolutions need besides: the rows of the last two tokens as they came from the projections.
    """

    def __init__(self, keys_BNSH: Tensor, values_BNSH: Tensor, tail_B2C: Tensor | None = None) -> None:
        self.keys_BNSH = keys_BNSH
        self.values_BNSH = values_BNSH
        self.tail_B2C = tail_B2C
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

    def behind_tail(self, rows_BTC: Tensor) -> Tensor:
        """The last two rows (zeros before a text) and the new ones, (B, 2 + T, C). To be called before `append`."""
        assert self.tail_B2C is not None
        rows_BTC = torch.cat([self.tail_B2C, rows_BTC], dim=1) if self.length else with_zeros(rows_BTC)
        self.tail_B2C.copy_(rows_BTC[:, -TAIL:])
        return rows_BTC


class KVCache:
    """The caches of all layers. `capacity` tokens are allocated at once, for `batch` sequences of equal length."""

    def __init__(
        self, arch: Architecture, *, batch: int = 1, capacity: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        tokens = arch.max_seq_len if capacity is None else capacity
        self.layers = tuple(_layer_cache(arch, layer, batch, tokens, dtype) for layer in arch.layers)

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
            if layer.tail_B2C is not None:
                yield layer.tail_B2C

    def set_length(self, length: int) -> None:
        """Go back to `length` tokens, or declare that many filled by hand.

        What convolutions look back on stays the last two tokens seen, but for `length` 0: behind an earlier token the
        next one takes as long as it should, and comes out as after those two.
        """
        if not 0 <= length <= self.capacity:
            raise ValueError(f"a cache of {self.capacity} tokens cannot hold {length}")
        for layer in self.layers:
            layer.length = length


def _layer_cache(
    arch: Architecture, layer: LayerSpec, batch: int, tokens: int, dtype: torch.dtype | None
) -> LayerCache:
    shape = (batch, layer.n_kv_head, tokens, arch.head_width(layer))
    keys, values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    tail = torch.empty(batch, TAIL, sum(channels_of(arch, layer)), dtype=dtype) if arch.qkv_conv else None
    return LayerCache(keys, values, tail)


def channels_of(arch: Architecture, spec: LayerSpec) -> list[int]:
    """Widths of q, k and v as they come from the projection; of k and v alone where q is made of k."""
    width = arch.head_width(spec)
    shared = [width * spec.n_kv_head] * 2
    return shared if arch.family.shares_qk else [width * spec.n_head, *shared]


def rotations(widths: Iterable[int], start: int, n: int, dtype: torch.dtype) -> dict[int, Rotation]:
    """Of the positions from `start` on, for heads of each width. Worked out in float32, which knows 257."""
    positions_T1 = torch.arange(start, start + n, dtype=torch.float32)[:, None]
    found = {}
    for width in widths:
        angles_TH = positions_T1 * ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        cosines_TH, sines_TH = angles_TH.cos(), angles_TH.sin()
        found[width] = (
            torch.cat([cosines_TH, cosines_TH], dim=-1).to(dtype),
            torch.cat([-sines_TH, sines_TH], dim=-1).to(dtype),
        )
    return found


def rotate(x_BNTH: Tensor, rotation: Rotation) -> Tensor:
    cosines_TH, sines_TH = rotation
    return torch.addcmul(x_BNTH * cosines_TH, x_BNTH.roll(x_BNTH.shape[-1] // 2, dims=-1), sines_TH)


class CausalConv(nn.Module):
    """y_t = w_0 x_t + w_1 x_(t-1) + w_2 x_(t-2), for each channel by itself. Uninitialised."""

    centre = 1.0 / 3  # what weights lie around: a mean of three tokens; Primer begins with 1/2, 1/6, 1/6

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(TAIL + 1, n_channels))

    def forward(self, rows_BTC: Tensor) -> Tensor:
        """(B, 2 + T, C) to (B, T, C)."""
        w_0C, w_1C, w_2C = self.weight
        y_BTC = torch.addcmul(rows_BTC[:, 2:] * w_0C, rows_BTC[:, 1:-1], w_1C)
        return torch.addcmul(y_BTC, rows_BTC[:, :-2], w_2C)


class Attention(nn.Module):
    """What `arch` says of attention, with the heads of `spec`."""

    def __init__(self, arch: Architecture, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        bias = arch.family.has_biases
        self.n_group = spec.n_head // spec.n_kv_head
        self.d_head = arch.head_width(spec)
        self.channels = channels_of(arch, spec)
        self.qkv = parts.linear(arch.d_model, sum(self.channels), bias=bias)
        self.query: nn.Module | None = None
        if arch.family.shares_qk:
            self.query = parts.linear(self.channels[0], self.d_head * spec.n_head, bias=False)
        self.conv = CausalConv(sum(self.channels)) if arch.qkv_conv else None
        self.out = parts.linear(self.d_head * spec.n_head, arch.d_model, bias=bias)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, rotations: Mapping[int, Rotation] | None = None
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        rows_BTC = self.qkv(x_BTD)
        if self.conv is not None:
            rows_BTC = self.conv(with_zeros(rows_BTC) if cache is None else cache.behind_tail(rows_BTC))
        parts = rows_BTC.split(self.channels, dim=-1)
        if self.query is not None:
            parts = (self.query(parts[0]), *parts)
        q_BNTH, k_BKSH, v_BKSH = (part.view(B, T, -1, self.d_head).transpose(1, 2) for part in parts)
        if rotations is not None:
            rotation = rotations[self.d_head]
            q_BNTH, k_BKSH = rotate(q_BNTH, rotation), rotate(k_BKSH, rotation)
        past = 0
        if cache is not None:
            past = cache.length
            k_BKSH, v_BKSH = cache.append(k_BKSH, v_BKSH)
        y_BNTH = self._attend(q_BNTH, k_BKSH, v_BKSH, past)
        y_BTD: Tensor = self.out(y_BNTH.transpose(1, 2).reshape(B, T, -1))
        return y_BTD

    def _attend(self, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, past: int) -> Tensor:
        T = q_BNTH.shape[2]
        if self.n_group > 1 and T == 1:
            # The queries of a group as if they were tokens: each sees all keys, and no key is repeated.
            q_BKGH = q_BNTH.reshape(len(q_BNTH), -1, self.n_group, self.d_head)
            y_BKGH = functional.scaled_dot_product_attention(q_BKGH, k_BKSH, v_BKSH)
            return y_BKGH.reshape(q_BNTH.shape)
        # torch's is_causal aligns the mask with the first key, which is right only without a past. One new token sees
        # everything and needs no mask; several tokens after a past need one of their own.
        mask_TS = None
        if past and T > 1:
            mask_TS = torch.ones(T, past + T, dtype=torch.bool, device=q_BNTH.device).tril(diagonal=past)
        return functional.scaled_dot_product_attention(
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attn_mask=mask_TS,
            is_causal=not past and T > 1,
            enable_gqa=self.n_group > 1,
        )

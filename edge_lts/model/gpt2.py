"""GPT-2's decoder with layers that may differ, and those of its relatives: llama, transformer++, primer-ez, primer.

Pre-norm, learned positions, biases everywhere in the decoder, GELU in its tanh form (Radford et al. 2019; equal to
Hugging Face's GPT2LMHeadModel, which a test holds it to), unless the architecture says otherwise: `edge_lts.style` has
what each backbone says, `attention.py` and `layers.py` what can be said. As `llama` it equals Hugging Face's
LlamaForCausalLM, as the others references in the tests. Beyond GPT-2: a token embedding narrower or wider than the
model, with a bias-free projection on the way in and another on the way out, and an untied head; and, where
`embedding_factor` is above 1, adaptive embedding and softmax as in LiteTransformerSearch, the result of which is
log-probabilities instead of logits. Dropout is left out.

Each block is built from its own LayerSpec and from what the architecture says of all layers. In train mode a forward
without a cache is differentiable; caches are for inference.

Shapes: B batch, T new tokens, D d_model, E d_embed, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import position_rows
from edge_lts.model.adaptive import build_ends
from edge_lts.model.attention import Attention, KVCache, rotations
from edge_lts.model.layers import FLOATS, FeedForward, Logits, Parts, norm_of

MakeBlock = Callable[[Architecture, LayerSpec, Parts], nn.Module]


class Block(nn.Module):
    """One pre-norm decoder layer, from its spec and from what `arch` says of all layers."""

    def __init__(self, arch: Architecture, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        self.attention_norm = norm_of(arch)
        self.attention = Attention(arch, spec, parts)
        self.feed_forward_norm = norm_of(arch)
        self.feed_forward = FeedForward(arch, spec, parts)

    def forward(self, x_BTD: Tensor, *past: Any) -> Tensor:
        """`past` is what the attention takes beside its input."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), *past)
        y_BTD: Tensor = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + y_BTD


class PrimerBlock(Block):
    """The norm of the FFN stands behind it, before the residual sum (So et al. 2021, appendix A; medium_primer.gin)."""

    def forward(self, x_BTD: Tensor, *past: Any) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), *past)
        y_BTD: Tensor = self.feed_forward_norm(self.feed_forward(x_BTD))
        return x_BTD + y_BTD


class Decoder(nn.Module):
    """Blocks and the final norm, if there is one: exactly what the proxy `decoder_params` counts."""

    def __init__(self, arch: Architecture, parts: Parts, block: MakeBlock) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(arch, spec, parts) for spec in arch.layers)
        self.norm = norm_of(arch) if arch.family.has_final_norm else nn.Identity()


class Gpt2(nn.Module):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`.

    `block` makes a layer; `first_position` is the row of the first token in the table of positions, if there is one.
    """

    def __init__(
        self, arch: Architecture, parts: Parts = FLOATS, block: MakeBlock = Block, first_position: int = 0
    ) -> None:
        super().__init__()
        self.arch = arch
        self.first_position = first_position
        ends = build_ends(arch, parts)
        self.token_embedding, self.head = ends.token_embedding, ends.head
        self.embedding_projection, self.head_projection = ends.embedding_projection, ends.head_projection
        self.position_embedding: Any = None
        if arch.position == "learned":
            self.position_embedding = parts.table(position_rows(arch), arch.d_model)
        self.rotated = sorted({arch.head_width(layer) for layer in arch.layers}) if arch.position == "rotary" else []
        self.decoder = Decoder(arch, parts, block)

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and cache."""
        return next(self.decoder.parameters()).dtype

    def new_cache(self, *, batch: int = 1, capacity: int | None = None) -> KVCache:
        return KVCache(self.arch, batch=batch, capacity=capacity, dtype=self.dtype)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None, logits: Logits = "last") -> Tensor:
        """Logits or log-probabilities (B, T, V), or (B, 1, V) of the last token only.

        With a cache, `tokens_BT` continue what it holds and are appended to it. Raises ValueError where they do not fit
        the cache or `max_seq_len`.
        """
        T = tokens_BT.shape[1]
        past = 0 if cache is None else cache.length
        limit = self.arch.max_seq_len if cache is None else min(self.arch.max_seq_len, cache.capacity)
        if past + T > limit:
            raise ValueError(f"{past} + {T} tokens do not fit the {limit} positions there are")
        x_BTE = self.token_embedding(tokens_BT)
        x_BTD = x_BTE if self.embedding_projection is None else self.embedding_projection(x_BTE)
        if self.position_embedding is not None:
            first = self.first_position + past
            x_BTD = x_BTD + self.position_embedding.rows(first, first + T)
        turned = rotations(self.rotated, past, T, x_BTD.dtype) if self.rotated else None
        layer_caches = (None,) * len(self.decoder.blocks) if cache is None else cache.layers
        for block, layer_cache in zip(self.decoder.blocks, layer_caches, strict=True):
            x_BTD = block(x_BTD, layer_cache, turned)
        if logits == "last":
            x_BTD = x_BTD[:, -1:]
        x_BTD = self.decoder.norm(x_BTD)
        x_BTE = x_BTD if self.head_projection is None else self.head_projection(x_BTD)
        logits_BTV: Tensor = self.head(x_BTE)
        return logits_BTV

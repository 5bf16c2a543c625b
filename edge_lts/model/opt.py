"""OPT's decoder with layers that may differ, as OPT-350M has it: post-norm, ReLU, no norm behind the last layer.

Zhang et al. 2022, arXiv 2205.01068; equal to Hugging Face's OPTForCausalLM with `do_layer_norm_before` false, which a
test holds it to. Attention, cache and the two ends are those of `gpt2.py`: learned positions (the table begins with two
rows that are never read), biases in attention and FFN, a projection into and out of the decoder where d_embed is not
d_model. The larger OPTs normalise first and are not built here.

Shapes: B batch, T tokens, D d_model.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from edge_lts.arch import OPT_FIRST_POSITION, Architecture, LayerSpec
from edge_lts.model.gpt2 import Attention, Gpt2, LayerCache
from edge_lts.model.layers import FLOATS, Parts
from edge_lts.model.transformer_xl import FeedForward


class Block(nn.Module):
    """One post-norm decoder layer, from its spec alone."""

    def __init__(self, d_model: int, spec: LayerSpec, parts: Parts) -> None:
        super().__init__()
        self.attention = Attention(d_model, spec.n_head, parts)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, spec.d_inner, parts)
        self.feed_forward_norm = nn.LayerNorm(d_model)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, cache))
        y_BTD: Tensor = self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))
        return y_BTD


class Decoder(nn.Module):
    """The blocks: exactly what the proxy `decoder_params` counts."""

    def __init__(self, d_model: int, layers: Iterable[LayerSpec], parts: Parts) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d_model, spec, parts) for spec in layers)
        self.norm = nn.Identity()


class Opt(Gpt2):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`."""

    def __init__(self, arch: Architecture, parts: Parts = FLOATS) -> None:
        super().__init__(arch, parts, Decoder, OPT_FIRST_POSITION)

"""OPT's decoder with layers that may differ, as OPT-350M has it: post-norm, ReLU, no norm behind the last layer.

Zhang et al. 2022, arXiv 2205.01068; equal to Hugging Face's OPTForCausalLM with `do_layer_norm_before` false, which a
test holds it to. Attention, cache and the two ends are those of `gpt2.py`: learned positions (the table begins with two
rows that are never read), biases in attention and FFN, a projection into and out of the decoder where d_embed is not
d_model. Around it stands the post-norm block of `transformer_xl.py`. The larger OPTs normalise first and are not built
here.
"""

from collections.abc import Iterable

from torch import nn

from edge_lts.arch import OPT_FIRST_POSITION, Architecture, LayerSpec
from edge_lts.model.gpt2 import Attention, Gpt2
from edge_lts.model.layers import FLOATS, Parts
from edge_lts.model.transformer_xl import Block


class Decoder(nn.Module):
    """The blocks: exactly what the proxy `decoder_params` counts."""

    def __init__(self, d_model: int, layers: Iterable[LayerSpec], parts: Parts) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d_model, spec, parts, Attention) for spec in layers)
        self.norm = nn.Identity()


class Opt(Gpt2):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`."""

    def __init__(self, arch: Architecture, parts: Parts = FLOATS) -> None:
        super().__init__(arch, parts, Decoder, OPT_FIRST_POSITION)

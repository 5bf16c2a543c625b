"""OPT's decoder with layers that may differ, as OPT-350M has it: post-norm, ReLU, no norm behind the last layer.

Zhang et al. 2022, arXiv 2205.01068; equal to Hugging Face's OPTForCausalLM with `do_layer_norm_before` false, which a
test holds it to. Attention, cache and the two ends are those of `gpt2.py`: learned positions (the table begins with two
rows that are never read), biases in attention and FFN, a projection into and out of the decoder where d_embed is not
d_model. Around it stands the post-norm block of `transformer_xl.py`. The larger OPTs normalise first and are not built
here.
"""

from functools import partial

from edge_lts.arch import Architecture
from edge_lts.counting import OPT_FIRST_POSITION
from edge_lts.model.attention import Attention
from edge_lts.model.gpt2 import Gpt2
from edge_lts.model.layers import FLOATS, Parts
from edge_lts.model.transformer_xl import Block


class Opt(Gpt2):
    """The whole language model. Constructed uninitialised; see `edge_lts.model.build_model`."""

    def __init__(self, arch: Architecture, parts: Parts = FLOATS) -> None:
        super().__init__(arch, parts, partial(Block, attention=Attention), OPT_FIRST_POSITION)

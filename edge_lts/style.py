"""What the blocks of a backbone are made of, unless an architecture says otherwise. Free of torch.

    gpt2            LayerNorm before attention and FFN, learned positions, GELU in its tanh form, biases (Radford et al.
                    2019)
    llama           RMSNorm, rotary positions, an FFN gated by SiLU, no biases (Touvron et al. 2023, arXiv 2302.13971)
    transformer++   gpt2 with RMSNorm and an FFN gated by SiLU (So et al. 2021, arXiv 2109.08668, section 4)
    primer-ez       gpt2 with squared ReLU and a causal depthwise convolution of width 3 behind q, k and v (as there)
    primer          primer-ez, of whose released code it takes what is beyond -EZ: q is made of k, the FFN is normed
                    behind and not before it (google-research/primer: medium_primer.gin)
    opt             OPT-350M: norms behind the residual sums, ReLU (Zhang et al. 2022, arXiv 2205.01068)
    transformer-xl  relative positions and a segment memory (Dai et al. 2019, arXiv 1901.02860)

Positions and biases of the Primer family are gpt2's, where the released code has T5's: so that members of the family
differ in what the paper is about. A gated FFN has three matrices of d_model x d_inner instead of two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_lts.errors import ArchitectureError

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rotary", "none")  # and "relative": transformer-xl alone
CONVOLUTIONS = (0, 3)  # width over time; 0 is none
ACTIVATIONS = ("gelu", "relu", "silu", "relu2", "relu3", "relu4")  # and relu1 to relu4 with any fraction between
MAX_POWER = 4.0

# Of an architecture, not of a layer; None stands for what the backbone has.
STYLE_KEYS = ("activation", "is_gated", "norm", "position", "qkv_conv")

_POWER = re.compile(r"relu([0-9](?:\.[0-9]{1,4})?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A backbone. The first five are its defaults of STYLE_KEYS; `is_fixed` backbones take nothing else, no `n_kv_head`
    and no `d_head`. The others are not for an architecture to choose."""

    activation: str = "gelu"
    is_gated: bool = False
    norm: str = "layernorm"
    position: str = "learned"
    qkv_conv: int = 0
    has_biases: bool = True  # in attention (but of a Transformer-XL) and FFN
    has_final_norm: bool = True
    shares_qk: bool = False
    is_fixed: bool = False
    norm_epsilon: float = 1e-5


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(),
    "llama": Family(activation="silu", is_gated=True, norm="rmsnorm", position="rotary", has_biases=False),
    "opt": Family(activation="relu", has_final_norm=False, is_fixed=True),
    "primer": Family(activation="relu2", qkv_conv=3, shares_qk=True, norm_epsilon=1e-6),
    "primer-ez": Family(activation="relu2", qkv_conv=3),
    "transformer++": Family(activation="silu", is_gated=True, norm="rmsnorm"),
    "transformer-xl": Family(activation="relu", position="relative", has_final_norm=False, is_fixed=True),
}


def relu_power(activation: str) -> float | None:
    """p of max(x, 0)^p; None for what is no power of ReLU."""
    match = _POWER.fullmatch(activation)
    return None if match is None else float(match[1] or 1)


def checked(key: str, value: Any, family: Family) -> Any:
    """The one spelling of a value of STYLE_KEYS, the family's for None. Raises ArchitectureError naming the key."""
    default = getattr(family, key)
    if value is None or (type(value) is type(default) and value == default):
        return default
    if isinstance(value, str) and key == "activation":
        power = relu_power(value)
        if power is not None and 1 <= power <= MAX_POWER:
            return "relu" if power == 1 else f"relu{power:g}"
    if (
        not isinstance(value, (str, bool, int))
        or value not in _VALUES[key]
        or isinstance(value, bool) != (key == "is_gated")
    ):
        raise ArchitectureError(f"{key} must be {_CHOICES[key]}, not {value!r:.80}")
    return value


_VALUES: Mapping[str, tuple[Any, ...]] = {
    "activation": ("gelu", "silu"),
    "is_gated": (False, True),
    "norm": NORMS,
    "position": POSITIONS,
    "qkv_conv": CONVOLUTIONS,
}
_CHOICES = {
    "activation": f"one of {', '.join(ACTIVATIONS)} (or another power from 1 to {MAX_POWER:g}, such as relu1.5)",
    "is_gated": "true or false",
    "norm": " or ".join(NORMS),
    "position": ", ".join(POSITIONS) + " (relative: of transformer-xl alone)",
    "qkv_conv": " or ".join(map(str, CONVOLUTIONS)),
}

"""The precisions that a model may be built in. Free of torch; `edge_lts.model` builds them.

float32, bfloat16           weights, activations and cache all in it
int8-qnnpack, int8-onednn   weights in 8 bits with a scale per row, each product's input quantised when it arrives
                            (dynamic int8) by that engine of torch; norms, biases, activations and cache in float32
"""

from collections.abc import Collection

PRECISIONS = ("float32", "bfloat16", "int8-qnnpack", "int8-onednn")

# Bytes of a weight, and of a number in the cache or between layers.
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8-qnnpack": 1, "int8-onednn": 1}
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "int8-qnnpack": 4, "int8-onednn": 4}

# What /proc/cpuinfo calls arithmetic on bfloat16: x86 (AVX-512, AMX, AVX-NE-CONVERT) and ARM (FEAT_BF16).
_BFLOAT16_FEATURES = frozenset(("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"))


def is_emulated_precision(precision: str, cpu_features: Collection[str]) -> bool:
    """Whether this CPU has no arithmetic for `precision` and converts to float32 and back around every product.

    Products of 8-bit integers are instructions of every 64-bit ARM and x86 CPU, if slower ones than those with dotprod,
    i8mm or VNNI.
    """
    return precision == "bfloat16" and not _BFLOAT16_FEATURES.intersection(cpu_features)

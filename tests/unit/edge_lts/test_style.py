"""Styles of block as data: identity, what a backbone has and takes, counts and bytes by hand."""

from __future__ import annotations

from typing import Any

import pytest

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts.counting import attention_params
from edge_lts.errors import ArchitectureError
from edge_lts.footprint import cache_bytes, place_bytes, read_bytes, weight_bytes, working_set_bytes
from edge_lts.records import Protocol
from edge_lts.style import FAMILIES, STYLE_KEYS

LAYERS = (LayerSpec(d_inner=256, n_head=4), LayerSpec(d_inner=128, n_head=2))
SHARED = (LayerSpec(d_inner=256, n_head=4, n_kv_head=2), LayerSpec(d_inner=128, n_head=2, n_kv_head=1))


def arch(backbone: str = "gpt2", **changes: Any) -> Architecture:
    return Architecture(backbone=backbone, d_model=64, layers=LAYERS).replace(**changes)


# --- identity ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_a_backbone_has_is_not_written_and_may_be_spelled_out(backbone: str) -> None:
    plain = arch(backbone)
    data = plain.to_json()
    assert not {"d_head", *STYLE_KEYS} & set(data)
    assert all("n_kv_head" not in layer for layer in data["layers"])
    family = FAMILIES[backbone]
    assert [getattr(plain, key) for key in STYLE_KEYS] == [getattr(family, key) for key in STYLE_KEYS]
    spelled = {
        **data,
        **{key: getattr(family, key) for key in STYLE_KEYS},
        "d_head": None,
        "layers": [{**layer, "n_kv_head": layer["n_head"]} for layer in data["layers"]],
    }
    assert Architecture.from_json(spelled) == plain
    assert Architecture.from_json(spelled).arch_id == plain.arch_id


def test_a_head_width_that_follows_from_d_model_is_no_width_of_its_own() -> None:
    alike = arch(layers=LAYERS[:1] * 2)
    assert alike.replace(d_head=16) == alike
    assert alike.replace(d_head=16).arch_id == alike.arch_id
    both = arch(d_head=16)  # fills d_model in the first layer, and not in the second
    assert both.d_head == 16
    assert [both.head_width(layer) for layer in both.layers] == [16, 16]
    assert [arch().head_width(layer) for layer in LAYERS] == [16, 32]


def test_ids_depend_on_every_key() -> None:
    changed = [
        arch(),
        arch(layers=SHARED),
        arch(d_head=8),
        arch(activation="relu"),
        arch(activation="relu2"),
        arch(is_gated=True),
        arch(norm="rmsnorm"),
        arch(position="rotary"),
        arch(position="none"),
        arch(qkv_conv=3),
        arch("llama"),
        arch("llama", is_gated=False),
        arch("primer"),
        arch("primer-ez"),
        arch("transformer++"),
    ]
    assert len({one.arch_id for one in changed}) == len(changed)
    for one in changed:
        assert Architecture.from_json(one.to_json()) == one


def test_powers_of_relu_have_one_spelling() -> None:
    assert arch(activation="relu1").activation == arch(activation="relu1.0").activation == "relu"
    assert arch(activation="relu2.00").arch_id == arch(activation="relu2").arch_id
    assert arch(activation="relu2.5").activation == "relu2.5"


def test_another_backbone_brings_its_own_style_and_keeps_what_was_chosen() -> None:
    assert arch().replace(backbone="opt").activation == "relu"
    kept = arch(activation="relu2", layers=SHARED).replace(backbone="llama")
    assert (kept.activation, kept.norm, kept.position, kept.is_gated) == ("relu2", "rmsnorm", "rotary", True)
    assert kept.layers == SHARED


def test_layers_are_ordered_by_d_inner_n_head_n_kv_head() -> None:
    shapes = [(128, 2, 1), (128, 4, 1), (128, 4, 4), (256, 2, 2)]
    layers = tuple(LayerSpec(d_inner=f, n_head=h, n_kv_head=k) for f, h, k in reversed(shapes))
    found = arch(layers=layers).canonical().layers
    assert [(layer.d_inner, layer.n_head, layer.n_kv_head) for layer in found] == shapes


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        ("gpt2", {"activation": "swish"}, "activation must be one of gelu, relu, silu"),
        ("gpt2", {"activation": "relu5"}, "activation must be"),
        ("gpt2", {"activation": "relu0.5"}, "activation must be"),
        ("gpt2", {"activation": ["relu"]}, "activation must be"),
        ("gpt2", {"is_gated": 1}, "is_gated must be true or false"),
        ("gpt2", {"norm": "batchnorm"}, "norm must be layernorm or rmsnorm"),
        ("gpt2", {"norm": {}}, "norm must be"),
        ("gpt2", {"position": "relative"}, "relative: of transformer-xl alone"),
        ("gpt2", {"qkv_conv": 5}, "qkv_conv must be 0 or 3"),
        ("gpt2", {"qkv_conv": True}, "qkv_conv must be 0 or 3"),
        ("gpt2", {"d_head": 0}, "d_head must lie between"),
        ("gpt2", {"d_head": 1.5}, "d_head must be an integer"),
        ("llama", {"d_head": 7}, "layers[0]: rotary positions need heads of even width, not 7"),
        ("transformer-xl", {"position": "rotary"}, "position: backbone transformer-xl has relative and nothing else"),
        ("transformer-xl", {"layers": SHARED}, "layers[0]: backbone transformer-xl has no n_kv_head"),
        ("opt", {"activation": "gelu"}, "activation: backbone opt has relu and nothing else"),
        ("opt", {"d_head": 8}, "d_head: heads of backbone opt are d_model / n_head wide"),
        ("primer", {"layers": SHARED}, "layers[0]: backbone primer has no n_kv_head"),
        ("primer", {"d_head": 8}, "d_head: heads of backbone primer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(backbone: str, changes: dict[str, Any], message: str) -> None:
    data = {**arch(backbone).to_json(), **changes}
    if "layers" in changes:
        data["layers"] = [layer.to_json() for layer in changes["layers"]]
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_json(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_must_divide_queries() -> None:
    with pytest.raises(ArchitectureError, match="n_head 4 is not divisible by n_kv_head 3"):
        LayerSpec(d_inner=64, n_head=4, n_kv_head=3)
    with pytest.raises(ArchitectureError, match="n_kv_head must"):
        LayerSpec.from_json({"d_inner": 64, "n_head": 4, "n_kv_head": "2"})


# --- counts by hand, per layer and once ---


def test_llama_by_hand() -> None:
    d = 64
    expected = sum(4 * d * d + 2 * d + 3 * d * f for f in (256, 128)) + d
    assert arch("llama").decoder_params == expected
    # half the keys and values: d^2 less in each layer
    assert arch("llama", layers=SHARED).decoder_params == expected - 2 * d * d
    assert arch("llama").parameter_count.position == 0
    wide = arch("llama", layers=SHARED, d_head=24)
    attention = sum(2 * d * 24 * (layer.n_head + layer.n_kv_head) for layer in SHARED)
    assert attention_params(wide) == attention
    assert wide.decoder_params == attention + sum(2 * d + 3 * d * f for f in (256, 128)) + d


def test_a_published_llama_by_hand() -> None:
    """SmolLM2-135M: 30 layers of 576, 9 heads with 3 of keys and values, gated FFN of 1,536, tied vocabulary 49,152."""
    layers = (LayerSpec(d_inner=1536, n_head=9, n_kv_head=3),) * 30
    found = Architecture(backbone="llama", d_model=576, layers=layers, vocab_size=49152, max_seq_len=8192)
    assert found.total_params == 134_515_008


def test_transformer_plus_plus_and_the_primers_by_hand() -> None:
    d, gpt2 = 64, arch().decoder_params
    # a third matrix and a second bias in the FFN; norms without biases
    gated = sum(d * f + f for f in (256, 128))
    assert arch("transformer++").decoder_params == gpt2 + gated - 5 * d
    assert arch("primer-ez").decoder_params == gpt2 + 2 * 3 * 3 * d
    # q is made of k by a matrix without bias, and has no convolution of its own
    assert arch("primer").decoder_params == gpt2 + 2 * (3 * 2 * d - d)
    assert attention_params(arch("primer-ez")) == 2 * (4 * d * d + 4 * d + 9 * d)
    assert attention_params(arch()) == 2 * (4 * d * d + 4 * d)
    assert attention_params(arch("transformer-xl")) == 2 * (5 * d * d + 2 * d)


# --- bytes by hand ---


def test_the_cache_shrinks_with_the_heads_and_grows_by_a_convolutions_tail() -> None:
    assert cache_bytes(arch(), 100) == 4 * 2 * 2 * 64 * 100
    assert cache_bytes(arch(layers=SHARED), 100) == cache_bytes(arch(), 100) // 2
    assert cache_bytes(arch(d_head=8), 100) == 4 * 2 * (4 + 2) * 8 * 100
    assert cache_bytes(arch("primer-ez"), 100) == cache_bytes(arch(), 100) + 4 * 2 * 2 * 3 * 64
    assert cache_bytes(arch("primer"), 100) == cache_bytes(arch(), 100) + 4 * 2 * 2 * 2 * 64
    assert cache_bytes(arch("primer-ez"), 0) == 4 * 2 * 2 * 3 * 64


@pytest.mark.parametrize("precision", ["int8-qnnpack", "int8-onednn"])
def test_in_int8_norms_biases_and_convolutions_stay_float32(precision: str) -> None:
    d = 64
    for one, vectors in (
        (arch("llama"), 5 * d),
        (arch("transformer++"), 5 * d + 2 * (4 * d + d) + 2 * (256 + 128)),
        (arch("primer-ez"), 2 * (4 * d + 4 * d + 9 * d + d) + 256 + 128 + 2 * d),
    ):
        assert place_bytes(one, precision)["decoder"] == one.decoder_params + 3 * vectors
        assert read_bytes(one, precision) == weight_bytes(one, precision) - place_bytes(one, precision)["position"]


def test_the_working_set_has_what_styles_hold_besides() -> None:
    tokens, d, protocol = 192, 64, Protocol()
    small = (LayerSpec(d_inner=64, n_head=4),)
    stream, scores = 2 * tokens * d, 4 * tokens * tokens

    def attention(numbers: int) -> int:
        return 4 * (stream + tokens * numbers + scores)

    assert working_set_bytes(arch(layers=small, vocab_size=99), protocol) == attention(4 * d)
    assert working_set_bytes(arch(layers=small, vocab_size=99, position="rotary"), protocol) == attention(6 * d)
    assert working_set_bytes(arch(layers=small, vocab_size=99, qkv_conv=3), protocol) == attention(7 * d)
    shared = (LayerSpec(d_inner=64, n_head=4, n_kv_head=1),)
    assert working_set_bytes(arch(layers=shared, vocab_size=99), protocol) == attention(2 * d + d // 2)
    wide = (LayerSpec(d_inner=4096, n_head=4),)
    assert working_set_bytes(arch("llama", layers=wide), protocol) == 4 * (stream + 4 * tokens * 4096)

"""Predicted bytes, checked against sums done by hand."""

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_bytes, predicted_bytes, weight_bytes, working_set_bytes
from edge_lts.records import Protocol

LAYERS = (LayerSpec(d_inner=128, n_head=2), LayerSpec(d_inner=1024, n_head=4))
ARCH = Architecture(backbone="gpt2", d_model=64, layers=LAYERS, vocab_size=1000, max_seq_len=256)


def test_weights_are_four_bytes_per_parameter() -> None:
    assert weight_bytes(ARCH) == 4 * ARCH.total_params


def test_cache_holds_a_key_and_a_value_per_layer_and_token() -> None:
    assert cache_bytes(ARCH, 193) == 4 * 2 * 2 * 64 * 193
    assert cache_bytes(ARCH, 0) == 0


def test_working_set_is_the_stream_and_the_largest_of_attention_ffn_and_logits() -> None:
    tokens = 192
    stream, attention = 2 * tokens * 64, 4 * tokens * 64 + 4 * tokens * tokens
    ffn, all_logits = 2 * tokens * 1024, tokens * 1000
    assert max(attention, ffn, all_logits) == ffn
    assert working_set_bytes(ARCH, Protocol()) == 4 * (stream + ffn)
    assert working_set_bytes(ARCH.replace(layers=LAYERS[:1]), Protocol()) < 4 * (stream + attention)
    wide = ARCH.replace(vocab_size=50257)
    assert working_set_bytes(wide, Protocol()) == 4 * (stream + ffn)  # logits of the last token only
    assert working_set_bytes(wide, Protocol.named("lts")) == 4 * (stream + tokens * 50257)


def test_prediction_is_the_sum() -> None:
    for protocol, deepest in ((Protocol(), 193), (Protocol(context_tokens=20, prompt_tokens=64), 65)):
        parts = weight_bytes(ARCH) + cache_bytes(ARCH, deepest) + working_set_bytes(ARCH, protocol)
        assert predicted_bytes(ARCH, protocol) == parts

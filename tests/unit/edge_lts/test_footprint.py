"""Predicted bytes, checked against sums done by hand."""

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_bytes, cache_tokens, predicted_bytes, weight_bytes, working_set_bytes
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
    for protocol, deepest in ((Protocol(), 193), (Protocol(context_tokens=20, prompt_tokens=64), 64)):
        parts = weight_bytes(ARCH) + cache_bytes(ARCH, deepest) + working_set_bytes(ARCH, protocol)
        assert predicted_bytes(ARCH, protocol) == parts


def test_a_segment_memory_holds_mem_len_and_position_keys_besides() -> None:
    arch = ARCH.replace(backbone="transformer-xl")
    assert cache_tokens(arch, Protocol()) == cache_tokens(ARCH, Protocol()) == 193
    assert cache_tokens(arch, Protocol(mem_len=64)) == 65
    assert cache_tokens(ARCH, Protocol(mem_len=64)) == 193  # other backbones have no such memory
    assert cache_bytes(arch, 65) == 4 * 3 * 2 * 64 * 65
    tokens, few = 192, LAYERS[:1]
    stream, attention = 2 * tokens * 64, 4 * tokens * 64 + 2 * 2 * tokens * tokens
    assert working_set_bytes(arch.replace(layers=few), Protocol()) == 4 * (stream + attention)


def test_an_adaptive_softmax_holds_a_cluster_twice_beside_those_before_it() -> None:
    arch = ARCH.replace(vocab_size=50257, embedding_factor=4)  # clusters of 19,997, 20,000 and 10,260 tokens
    stream = 2 * 192 * 64
    assert working_set_bytes(arch, Protocol.named("lts")) == 4 * (stream + 192 * (39997 + 2 * 10260))
    arch = arch.replace(vocab_size=267735)  # the third has 160,000
    assert working_set_bytes(arch, Protocol.named("lts")) == 4 * (stream + 192 * (39997 + 2 * 160000))
    assert working_set_bytes(arch.replace(cutoffs=(1000,)), Protocol.named("lts")) > 4 * (stream + 192 * 500000)
    assert weight_bytes(arch) == 4 * arch.total_params

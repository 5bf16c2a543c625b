"""The styles of block: equality with Hugging Face's Llama and with the papers' equations; counts, caches, training."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_bytes, weight_bytes
from edge_lts.precision import PRECISIONS
from edge_lts.records import Protocol
from edge_lts.style import STYLE_KEYS
from tests.support import is_required, require

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.evaluator import evaluate  # noqa: E402  (after the check that torch is there)
from edge_lts.model import build_model  # noqa: E402
from edge_lts.profile.anchor import Anchor  # noqa: E402
from edge_lts.profile.framework import narrow  # noqa: E402
from edge_lts.profile.weights import fill_weights  # noqa: E402
from tests.models import filled  # noqa: E402

pytestmark = pytest.mark.torch

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
LAYERS = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=128, n_head=4), LayerSpec(d_inner=200, n_head=8))
SHARED = (
    LayerSpec(d_inner=96, n_head=2, n_kv_head=1),
    LayerSpec(d_inner=128, n_head=8, n_kv_head=2),
    LayerSpec(d_inner=200, n_head=4),
)
OLD = ("gpt2", "opt", "transformer-xl")
NEW = ("llama", "transformer++", "primer-ez", "primer")


def tiny(backbone: str, **changes: Any) -> Architecture:
    arch = Architecture(backbone=backbone, d_model=64, layers=LAYERS, vocab_size=211, max_seq_len=48)
    return arch.replace(**changes)


STYLES = {
    **{name: tiny(name) for name in NEW},
    "llama-shared": tiny("llama", layers=SHARED),
    "llama-shared-wide": tiny("llama", layers=SHARED, d_head=24),
    "llama-untied-narrow": tiny("llama", tie_embeddings=False, d_embed=40),
    "llama-adaptive": tiny("llama", embedding_factor=4, cutoffs=(50, 120)),
    "gpt2-relu": tiny("gpt2", activation="relu"),
    "gpt2-relu2": tiny("gpt2", activation="relu2"),
    "gpt2-relu1.5": tiny("gpt2", activation="relu1.5"),
    "gpt2-relu4": tiny("gpt2", activation="relu4"),
    "gpt2-no-positions": tiny("gpt2", position="none"),
    "gpt2-narrow-heads": tiny("gpt2", d_head=7),
    "gpt2-everything": tiny(
        "gpt2",
        layers=SHARED,
        d_head=12,
        position="rotary",
        norm="rmsnorm",
        activation="relu2",
        is_gated=True,
        qkv_conv=3,
    ),
    "primer-ez-shared": tiny("primer-ez", layers=SHARED),
    "primer-rotary": tiny("primer", position="rotary"),
}
every_style = pytest.mark.parametrize("arch", STYLES.values(), ids=STYLES.keys())


def some_tokens(n: int, batch: int = 2) -> Any:
    return torch.randint(211, (batch, n), generator=torch.Generator().manual_seed(3))


# --- the papers' equations, in float64 and without anything of edge_lts.model ---


def reference_norm(arch: Architecture, weights: dict[str, Any], name: str, x: Any) -> Any:
    gain = weights[f"{name}.weight"]
    if arch.norm == "rmsnorm":
        return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    mean = x.mean(-1, keepdim=True)
    # Primer's own: the mean of x (x - mean) stands for the variance.
    variance = (x * (x - mean)).mean(-1, keepdim=True) if arch.backbone == "primer" else x.var(-1, False, keepdim=True)
    epsilon = 1e-6 if arch.backbone == "primer" else 1e-5
    return gain * (x - mean) / torch.sqrt(variance + epsilon) + weights[f"{name}.bias"]


def reference_activation(name: str, x: Any) -> Any:
    if name == "silu":
        return x / (1 + torch.exp(-x))
    if name == "gelu":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return torch.where(x > 0, x, torch.zeros_like(x)) ** float(name.removeprefix("relu") or 1)


def linear(weights: dict[str, Any], name: str, x: Any) -> Any:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def turned(head_TH: Any) -> Any:
    """Number i and number i + H/2 of each row as a complex number, times e^(i t / 10000^(2i/H)) (Su et al. 2021)."""
    T, H = head_TH.shape
    angles = torch.arange(T, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, H, 2, dtype=torch.float64) / H)
    numbers = torch.complex(head_TH[:, : H // 2], head_TH[:, H // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([numbers.real, numbers.imag], dim=-1)


def reference_attention(arch: Architecture, spec: LayerSpec, weights: dict[str, Any], name: str, x: Any) -> Any:
    T, H = x.shape[0], arch.head_width(spec)
    rows = linear(weights, f"{name}.qkv", x)
    if arch.qkv_conv:
        taps, before = weights[f"{name}.conv.weight"], rows
        rows = torch.stack([sum(taps[i] * before[t - i] for i in range(3) if t >= i) for t in range(T)])
    k_width = H * spec.n_kv_head
    k, v = rows[:, -2 * k_width : -k_width], rows[:, -k_width:]
    q = k @ weights[f"{name}.query.weight"].T if arch.backbone == "primer" else rows[:, : -2 * k_width]
    heads = []
    for head in range(spec.n_head):
        of, own = slice(head * H, (head + 1) * H), head // (spec.n_head // spec.n_kv_head)
        q_TH, k_SH, v_SH = q[:, of], k[:, own * H : (own + 1) * H], v[:, own * H : (own + 1) * H]
        if arch.position == "rotary":
            q_TH, k_SH = turned(q_TH), turned(k_SH)
        rows_out = []
        for t in range(T):
            scores = torch.exp(k_SH[: t + 1] @ q_TH[t] / math.sqrt(H))
            rows_out.append(scores @ v_SH[: t + 1] / scores.sum())
        heads.append(torch.stack(rows_out))
    return linear(weights, f"{name}.out", torch.cat(heads, dim=-1))


def reference(arch: Architecture, model: Any, tokens_T: Any) -> Any:
    """Logits (T, V) of one text, from the weights of `model`; plain tied embedding."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    x = weights["token_embedding.weight"][tokens_T]
    if arch.position == "learned":
        x = x + weights["position_embedding.weight"][: len(tokens_T)]
    for index, spec in enumerate(arch.layers):
        block = f"decoder.blocks.{index}"
        inside = reference_norm(arch, weights, f"{block}.attention_norm", x)
        x = x + reference_attention(arch, spec, weights, f"{block}.attention", inside)

        def feed_forward(inside: Any, block: str = block) -> Any:
            up = linear(weights, f"{block}.feed_forward.up", inside)
            half = up.shape[-1] // 2
            y = reference_activation(str(arch.activation), up[:, :half] if arch.is_gated else up)
            return linear(weights, f"{block}.feed_forward.down", y * up[:, half:] if arch.is_gated else y)

        norm = f"{block}.feed_forward_norm"
        if arch.backbone == "primer":
            x = x + reference_norm(arch, weights, norm, feed_forward(x))
        else:
            x = x + feed_forward(reference_norm(arch, weights, norm, x))
    return reference_norm(arch, weights, "decoder.norm", x) @ weights["token_embedding.weight"].T


@pytest.mark.parametrize("name", [name for name, arch in STYLES.items() if arch.d_embed == 64 and not arch.cutoffs])
def test_equals_the_papers_equations(name: str) -> None:
    arch = STYLES[name]
    model = filled(arch, std=0.3)  # attention that is far from even, and activations far from straight lines
    tokens = some_tokens(11, batch=1)
    with torch.inference_mode():
        found = model(tokens, logits="all")[0]
        expected = reference(arch, model, tokens[0])
    assert expected.std() > 0.3
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


# --- Hugging Face ---


def hugging_face(arch: Architecture, model: Any) -> Any:
    """LlamaForCausalLM with the weights of `model`."""
    require("torch", importlib.util.find_spec("transformers"), "the extra `export` is not installed")
    import transformers

    (spec,) = set(arch.layers)
    config = transformers.LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.d_model,
        intermediate_size=spec.d_inner,
        num_hidden_layers=arch.n_layer,
        num_attention_heads=spec.n_head,
        num_key_value_heads=spec.n_kv_head,
        head_dim=arch.head_width(spec),
        max_position_embeddings=arch.max_seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=arch.tie_embeddings,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    state = {
        "model.embed_tokens.weight": model.token_embedding.weight,
        "model.norm.weight": model.decoder.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for index, block in enumerate(model.decoder.blocks):
        q, k, v = block.attention.qkv.weight.split(block.attention.channels)
        gate, up = block.feed_forward.up.weight.chunk(2)
        state |= {
            f"model.layers.{index}.{name}.weight": weight
            for name, weight in {
                "self_attn.q_proj": q,
                "self_attn.k_proj": k,
                "self_attn.v_proj": v,
                "self_attn.o_proj": block.attention.out.weight,
                "mlp.gate_proj": gate,
                "mlp.up_proj": up,
                "mlp.down_proj": block.feed_forward.down.weight,
                "input_layernorm": block.attention_norm.weight,
                "post_attention_layernorm": block.feed_forward_norm.weight,
            }.items()
        }
    theirs.load_state_dict({name: weight.detach() for name, weight in state.items()})  # strict
    return theirs


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(("n_kv_head", "d_head"), [(4, None), (2, None), (1, None), (2, 24)])
def test_llama_equals_hugging_face_with_and_without_the_cache(
    n_kv_head: int, d_head: int | None, is_tied: bool
) -> None:
    layers = (LayerSpec(d_inner=150, n_head=4, n_kv_head=n_kv_head),) * 3
    arch = tiny("llama", layers=layers, d_head=d_head, tie_embeddings=is_tied)
    model = filled(arch)
    theirs = hugging_face(arch, model)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == arch.total_params
    tokens = some_tokens(24)
    with torch.inference_mode():
        expected = theirs(tokens, use_cache=False).logits
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(model(tokens, logits="all"), expected, **CLOSE)
        cache = model.new_cache(batch=2, capacity=24)
        prompt = theirs(tokens[:, :17], use_cache=True)
        torch.testing.assert_close(model(tokens[:, :17], cache, "all"), prompt.logits, **CLOSE)
        past = prompt.past_key_values
        for position in range(17, 24):
            step = theirs(tokens[:, position : position + 1], past_key_values=past, use_cache=True)
            past = step.past_key_values
            torch.testing.assert_close(model(tokens[:, position : position + 1], cache), step.logits, **CLOSE)


# --- caches ---


@every_style
@pytest.mark.parametrize("pieces", [[1] * 20, [20], [2, 1, 17], [1, 5, 1, 6, 7], [19, 1]], ids=str)
def test_any_way_of_feeding_the_cache_gives_the_full_forward(arch: Architecture, pieces: list[int]) -> None:
    model = filled(arch)
    tokens = some_tokens(20)
    with torch.inference_mode():
        expected = model(tokens, logits="all")
        cache = model.new_cache(batch=2, capacity=20)
        for _ in range(2):  # what an earlier text left in the buffers changes nothing
            got, start = [], 0
            for n in pieces:
                got.append(model(tokens[:, start : start + n], cache, "all"))
                start += n
            torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=1e-4, atol=5e-5)
            cache.set_length(0)


@every_style
def test_a_later_token_changes_no_earlier_logits(arch: Architecture) -> None:
    model = filled(arch)
    tokens = some_tokens(12, batch=1)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 211
    with torch.inference_mode():
        one, other = model(tokens, logits="all"), model(changed, logits="all")
    torch.testing.assert_close(one[:, :8], other[:, :8], rtol=0, atol=1e-5)
    assert not torch.allclose(one[:, 8:], other[:, 8:], atol=1e-3)


@every_style
def test_the_formula_counts_the_bytes_of_the_cache(arch: Architecture) -> None:
    assert build_model(arch).new_cache(capacity=10).n_bytes == cache_bytes(arch, 10)
    assert build_model(arch, "bfloat16").new_cache(capacity=7).n_bytes == cache_bytes(arch, 7, "bfloat16")


def test_a_decode_cache_holds_two_rows_for_each_projection_of_primer() -> None:
    ez, full = (build_model(tiny(name)).new_cache(capacity=10).layers[0] for name in ("primer-ez", "primer"))
    assert ez.tail_B2C.shape == (1, 2, 3 * 64)
    assert full.tail_B2C.shape == (1, 2, 2 * 64)  # q is made of k


def test_a_decoder_without_positions_has_none() -> None:
    """A decoder without positions knows the order of tokens through its causal mask alone: one layer's last logits do
    not change when earlier tokens trade places."""
    for position, is_same in (("none", True), ("rotary", False), ("learned", False)):
        model = filled(tiny("gpt2", position=position, layers=LAYERS[:1]), std=0.5)
        tokens = some_tokens(9, batch=1)
        traded = tokens.clone()
        traded[0, [2, 5]] = tokens[0, [5, 2]]
        with torch.inference_mode():
            assert torch.allclose(model(tokens), model(traded), rtol=1e-4, atol=1e-3) == is_same, position


def test_tokens_beyond_max_seq_len_are_refused_without_a_table_too() -> None:
    model = filled(tiny("llama"))
    assert model.position_embedding is None
    with pytest.raises(ValueError, match="49 tokens do not fit the 48"):
        model(some_tokens(49))


# --- counts ---


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    backbone = draw(st.sampled_from(["gpt2", *NEW]))
    is_primer = backbone == "primer"
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        n_head = draw(st.sampled_from([1, 2, 4, 8]))
        shared = n_head if is_primer else draw(st.sampled_from([n for n in (1, 2, 4, 8) if n_head % n == 0]))
        layers.append(LayerSpec(d_inner=draw(st.integers(1, 300)), n_head=n_head, n_kv_head=shared))
    return Architecture(
        backbone=backbone,
        d_model=16 * draw(st.integers(1, 12)),
        layers=tuple(layers),
        d_head=None if is_primer else draw(st.none() | st.sampled_from([2, 6, 16, 40])),
        activation=draw(st.none() | st.sampled_from(["gelu", "relu", "silu", "relu2", "relu2.5", "relu4"])),
        is_gated=draw(st.none() | st.booleans()),
        norm=draw(st.none() | st.sampled_from(["layernorm", "rmsnorm"])),
        position=draw(st.none() | st.sampled_from(["learned", "rotary", "none"])),
        qkv_conv=draw(st.none() | st.sampled_from([0, 3])),
        vocab_size=draw(st.integers(1, 300)),
        max_seq_len=draw(st.integers(1, 64)),
        tie_embeddings=draw(st.booleans()),
    )


def n_params(*modules: Any) -> int:
    found = {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}
    return sum(found.values())


@settings(max_examples=80, deadline=None)
@given(architectures())
def test_closed_formula_counts_the_built_model_place_by_place(arch: Architecture) -> None:
    model, count = build_model(arch), arch.parameter_count
    assert n_params(model.decoder) == count.decoder
    assert n_params(model.position_embedding) == count.position
    assert n_params(model) == count.total
    assert fill_weights(model) == weight_bytes(arch)
    assert Architecture.from_json(arch.to_json()) == arch
    assert model.new_cache(capacity=3).n_bytes == cache_bytes(arch, 3)


# --- precisions ---

ENGINES = torch.backends.quantized.supported_engines
HERE = [name for name in PRECISIONS if not name.startswith("int8") or name.partition("-")[2] in ENGINES]


@pytest.mark.parametrize("name", ["llama-shared", "transformer++", "primer-ez", "primer", "gpt2-everything"])
@pytest.mark.parametrize("precision", HERE)
def test_every_precision_is_built_counted_and_decodes_as_it_prefills(precision: str, name: str) -> None:
    arch = STYLES[name]
    model = build_model(arch, precision)
    assert fill_weights(model) == weight_bytes(arch, precision)
    tokens = some_tokens(20, batch=1)
    with torch.inference_mode():
        expected = model(tokens, None, "last").float()
        cache = model.new_cache(capacity=20)
        assert all(tensor.dtype == model.dtype for tensor in cache.tensors())
        model(tokens[:, :12], cache)
        for at in range(12, 20):
            found = model(tokens[:, at : at + 1], cache).float()
    bound = {"float32": 1e-4, "bfloat16": 0.05}.get(precision, 0.08)  # int8: each input has its own scale
    assert torch.isfinite(expected).all()
    assert float((found - expected).norm() / expected.norm()) < bound


# --- training ---


@pytest.mark.parametrize("arch", [*STYLES.values(), *map(tiny, OLD)], ids=[*STYLES, *OLD])
def test_every_parameter_gets_a_gradient_in_train_mode(arch: Architecture) -> None:
    model = filled(arch, std=0.2).train()
    tokens = torch.arange(211).repeat(2)[: 10 * 40].reshape(10, 40)  # every token occurs
    scores = model(tokens[:, :-1], None, "all")
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_gradient_is_that_of_the_loss() -> None:
    """Against a difference quotient, through everything that can be in a block."""
    model = filled(STYLES["gpt2-everything"]).double().train()
    tokens = some_tokens(9)
    with torch.no_grad():
        direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}

    def loss() -> Any:
        scores = model(tokens[:, :-1], None, "all")
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())

    loss().backward()
    slope = sum((parameter.grad * direction[name]).sum() for name, parameter in model.named_parameters())
    step, values = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(direction[name], alpha=sign * step)
            values.append(float(loss()))
    assert float(slope) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


# --- profiling ---

SHORT = Protocol(prompt_tokens=8, context_tokens=8, warmup=1, prefill_samples=2, decode_samples=2, threads=1)


@every_style
def test_the_width_8_decoder_has_the_same_style(arch: Architecture) -> None:
    small = narrow(arch, SHORT)
    assert small.d_model == 8
    assert [getattr(small, key) for key in STYLE_KEYS] == [getattr(arch, key) for key in STYLE_KEYS]
    for layer, original in zip(small.layers, arch.layers, strict=True):
        assert (layer.n_kv_head < layer.n_head) == (original.n_kv_head < original.n_head)
    build_model(small)


def test_anchors_are_in_the_backbones_own_style_whatever_the_candidates_is() -> None:
    plain, other = (Anchor(arch, SHORT) for arch in (tiny("gpt2"), STYLES["gpt2-everything"]))
    assert len(plain._kept) == 1
    assert len(other._kept) == 2  # one in the candidate's style besides, run once
    other.sample()
    assert set(other.medians_s()) == {"prefill_latency_s", "decode_latency_s", "stream_s"}


@pytest.mark.parametrize("name", ["llama-shared-wide", "primer"])
def test_a_candidate_is_evaluated(name: str) -> None:
    found = evaluate(STYLES[name], SHORT)
    assert found.objectives["decoder_params"] == STYLES[name].decoder_params
    memory = found.conditions["memory"]
    assert memory["cache_bytes"] == cache_bytes(STYLES[name], 9)
    assert memory["weights_bytes"] == weight_bytes(STYLES[name])


def test_a_prompt_longer_than_max_seq_len_is_unsupported_without_a_table_too() -> None:
    from edge_lts.errors import EvaluationError

    with pytest.raises(EvaluationError, match="max_seq_len is 48") as caught:
        evaluate(tiny("llama"), Protocol(prompt_tokens=49, context_tokens=8))
    assert caught.value.kind == "unsupported"

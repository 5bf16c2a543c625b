"""The OPT module: OPT-350M's published count, equality with Hugging Face, and the cache."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import place_bytes
from edge_lts_host.baselines import resolve
from tests.support import is_required, require

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.profile.weights import fill_weights  # noqa: E402
from tests.models import filled  # noqa: E402

pytestmark = pytest.mark.torch

PUBLISHED_350M = 331_196_416  # parameters of facebook/opt-350m, its tied head counted once
LAYERS = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=128, n_head=4), LayerSpec(d_inner=200, n_head=8))


def tiny(**changes: object) -> Architecture:
    return Architecture(backbone="opt", d_model=64, layers=LAYERS, vocab_size=211, max_seq_len=48).replace(**changes)


def opt_350m() -> Architecture:
    (found,) = resolve(["opt-350m"], {"backbone": "gpt2"})
    return found.architecture


def some_tokens(n: int, batch: int = 2) -> Any:
    return torch.randint(211, (batch, n), generator=torch.Generator().manual_seed(3))


def config_of(arch: Architecture) -> Any:
    """transformers' configuration of the same shape; skips where the extra is not there."""
    require("torch", importlib.util.find_spec("transformers"), "the extra `export` is not installed")
    import transformers

    (spec,) = set(arch.layers)
    return transformers.OPTConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.d_model,
        num_hidden_layers=arch.n_layer,
        ffn_dim=spec.d_inner,
        num_attention_heads=spec.n_head,
        max_position_embeddings=arch.max_seq_len,
        word_embed_proj_dim=arch.d_embed,
        do_layer_norm_before=False,
        activation_function="relu",
        dropout=0.0,
        tie_word_embeddings=arch.tie_embeddings,
    )


def test_opt_350m_has_the_published_number_of_parameters() -> None:
    arch = opt_350m()
    assert arch.total_params == PUBLISHED_350M
    assert (arch.n_layer, arch.d_model, arch.d_embed, arch.vocab_size, arch.max_seq_len) == (24, 1024, 512, 50272, 2048)
    assert set(arch.layers) == {LayerSpec(d_inner=4096, n_head=16)}
    model = build_model(arch)  # nothing is written, so this takes no memory
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_350M


def test_opt_350m_is_the_shape_that_transformers_makes_of_its_published_configuration() -> None:
    config = config_of(opt_350m())
    import transformers

    with torch.device("meta"):
        theirs = transformers.OPTModel(config)  # without the tied head
    assert sum(parameter.numel() for parameter in theirs.parameters()) == PUBLISHED_350M


@pytest.mark.parametrize(
    "changes",
    [{}, {"d_embed": 24}, {"d_embed": 100, "tie_embeddings": False}, {"embedding_factor": 4, "cutoffs": (50, 120)}],
)
def test_closed_formula_counts_the_built_model_place_by_place(changes: dict[str, Any]) -> None:
    arch = tiny(**changes)
    model, count = build_model(arch), arch.parameter_count

    def n_params(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert n_params(model.decoder) == count.decoder
    assert n_params(model.position_embedding) == count.position == (48 + 2) * 64
    assert n_params(model) == count.total
    assert fill_weights(model) == sum(place_bytes(arch).values())


@pytest.mark.parametrize(("d_embed", "tie_embeddings"), [(64, True), (32, True), (32, False)])
def test_equals_hugging_face_with_and_without_the_cache(d_embed: int, tie_embeddings: bool) -> None:
    arch = tiny(layers=(LayerSpec(d_inner=150, n_head=4),) * 3, d_embed=d_embed, tie_embeddings=tie_embeddings)
    model, config = filled(arch), config_of(arch)
    import transformers

    theirs = transformers.OPTForCausalLM(config).eval()
    state = {"decoder.embed_tokens.weight": model.token_embedding.weight, "lm_head.weight": model.head.weight}
    state["decoder.embed_positions.weight"] = model.position_embedding.weight
    if d_embed != arch.d_model:
        state["decoder.project_in.weight"] = model.embedding_projection.weight
        state["decoder.project_out.weight"] = model.head_projection.weight
    names = {
        "self_attn.out_proj": "attention.out",
        "self_attn_layer_norm": "attention_norm",
        "fc1": "feed_forward.up",
        "fc2": "feed_forward.down",
        "final_layer_norm": "feed_forward_norm",
    }
    for index, block in enumerate(model.decoder.blocks):
        for kind in ("weight", "bias"):
            layer = f"decoder.layers.{index}."
            for name, part in zip("qkv", getattr(block.attention.qkv, kind).chunk(3), strict=True):
                state[f"{layer}self_attn.{name}_proj.{kind}"] = part
            for name, ours in names.items():
                state[f"{layer}{name}.{kind}"] = getattr(block.get_submodule(ours), kind)
    prefixed = {f"{'' if name.startswith('lm_head') else 'model.'}{name}": one.detach() for name, one in state.items()}
    theirs.load_state_dict(prefixed)  # strict: nothing is missing or left over
    tokens = some_tokens(24)
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.inference_mode():
        expected = theirs(tokens, use_cache=False).logits
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(model(tokens, logits="all"), expected, **close)
        cache = model.new_cache(batch=2, capacity=24)
        prompt = theirs(tokens[:, :17], use_cache=True)
        torch.testing.assert_close(model(tokens[:, :17], cache, "all"), prompt.logits, **close)
        past = prompt.past_key_values
        for position in range(17, 24):
            step = theirs(tokens[:, position : position + 1], past_key_values=past, use_cache=True)
            past = step.past_key_values
            torch.testing.assert_close(model(tokens[:, position : position + 1], cache), step.logits, **close)


@pytest.mark.parametrize("pieces", [[1] * 20, [7, 13], [1, 5, 1, 6, 7]])
def test_any_way_of_feeding_the_cache_gives_the_full_forward(pieces: list[int]) -> None:
    model = filled(tiny(d_embed=24))
    tokens = some_tokens(20)
    with torch.inference_mode():
        expected = model(tokens, logits="all")
        cache, got, start = model.new_cache(batch=2, capacity=20), [], 0
        for n in pieces:
            got.append(model(tokens[:, start : start + n], cache, "all"))
            start += n
    torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_the_last_position_is_the_last_row_of_the_table() -> None:
    model = filled(tiny())
    tokens = some_tokens(48, batch=1)
    with torch.inference_mode():
        before = model(tokens)
        model.position_embedding.weight[:2] += 5.0  # never read
        assert torch.equal(model(tokens), before)
        model.position_embedding.weight[-1] += 5.0
        assert not torch.allclose(model(tokens), before, atol=1e-3)
    with pytest.raises(ValueError, match="49 tokens do not fit the 48"):
        model(some_tokens(49))

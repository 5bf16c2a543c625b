"""The GPT-2 module: counts by place, equality with Hugging Face, and the cache."""

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture, LayerSpec
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.profile.weights import fill_weights  # noqa: E402
from tests.models import filled  # noqa: E402

pytestmark = pytest.mark.torch


def tiny(**changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=128, n_head=4), LayerSpec(d_inner=200, n_head=8))
    return Architecture(backbone="gpt2", d_model=64, layers=layers, vocab_size=211, max_seq_len=48).replace(**changes)


def some_tokens(arch: Architecture, n: int, *, batch: int = 1, seed: int = 3):
    return torch.randint(arch.vocab_size, (batch, n), generator=torch.Generator().manual_seed(seed))


def architectures() -> st.SearchStrategy[Architecture]:
    layer = st.builds(LayerSpec, d_inner=st.integers(1, 700), n_head=st.sampled_from([1, 2, 4, 8]))
    return st.builds(
        Architecture,
        backbone=st.just("gpt2"),
        d_model=st.integers(1, 40).map(lambda n: 8 * n),
        layers=st.lists(layer, min_size=1, max_size=6).map(tuple),
        d_embed=st.integers(64, 200),
        embedding_factor=st.sampled_from([1, 2, 4]),
        cutoffs=st.sampled_from([None, (100, 900, 2000)]),
        vocab_size=st.integers(1, 3000),
        max_seq_len=st.integers(1, 512),
        tie_embeddings=st.booleans(),
    )


def n_params(*modules) -> int:
    """Distinct parameters of the modules that are there."""
    found = {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}
    return sum(found.values())


@settings(max_examples=60, deadline=None)
@given(architectures())
def test_closed_formula_counts_the_built_model_place_by_place(arch: Architecture) -> None:
    model = build_model(arch)
    count = arch.parameter_count
    assert n_params(model.decoder) == count.decoder
    assert n_params(model.position_embedding) == count.position
    embedding = (model.token_embedding, model.embedding_projection)
    assert n_params(*embedding) == count.embedding
    assert n_params(*embedding, model.head, model.head_projection) == count.embedding + count.head
    assert n_params(model) == count.total == arch.total_params


def test_building_the_largest_of_the_papers_space_writes_no_weights() -> None:
    import time

    layers = (LayerSpec(d_inner=4032, n_head=8),) * 15
    arch = Architecture(backbone="gpt2", d_model=960, layers=layers)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        model = build_model(arch)
        fastest = min(fastest, time.perf_counter() - started)
        del model
    assert fastest < 0.2  # initialising these 220 M parameters takes seconds


def hugging_face(arch: Architecture, model):
    """GPT2LMHeadModel with the weights of `model`; its Conv1D stores the transpose of a Linear."""
    transformers = pytest.importorskip("transformers")
    (spec,) = set(arch.layers)
    config = transformers.GPT2Config(
        vocab_size=arch.vocab_size,
        n_positions=arch.max_seq_len,
        n_embd=arch.d_model,
        n_layer=arch.n_layer,
        n_head=spec.n_head,
        n_inner=spec.d_inner,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=arch.tie_embeddings,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.decoder.norm.weight,
        "transformer.ln_f.bias": model.decoder.norm.bias,
        "lm_head.weight": model.head.weight,
    }
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }
    for index, block in enumerate(model.decoder.blocks):
        for name, ours in names.items():
            module = block.get_submodule(ours)
            weight = module.weight if name.startswith("ln") else module.weight.T
            state[f"transformer.h.{index}.{name}.weight"] = weight
            state[f"transformer.h.{index}.{name}.bias"] = module.bias
    missing, unexpected = theirs.load_state_dict({key: value.detach() for key, value in state.items()}, strict=False)
    assert not unexpected
    assert all(key.endswith((".attn.bias", ".attn.masked_bias")) for key in missing)  # their causal masks
    return theirs


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_equals_hugging_face_with_and_without_the_cache(tie_embeddings: bool) -> None:
    arch = tiny(layers=(LayerSpec(d_inner=150, n_head=4),) * 3, tie_embeddings=tie_embeddings)
    model = filled(arch)
    theirs = hugging_face(arch, model)
    tokens = some_tokens(arch, 24, batch=2)
    with torch.inference_mode():
        expected = theirs(tokens, use_cache=False).logits
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(model(tokens, logits="all"), expected, rtol=1e-4, atol=1e-5)
        cache = model.new_cache(batch=2, capacity=24)
        prompt = theirs(tokens[:, :17], use_cache=True)
        torch.testing.assert_close(model(tokens[:, :17], cache, "all"), prompt.logits, rtol=1e-4, atol=1e-5)
        past = prompt.past_key_values
        for position in range(17, 24):
            step = theirs(tokens[:, position : position + 1], past_key_values=past, use_cache=True)
            past = step.past_key_values
            ours = model(tokens[:, position : position + 1], cache)
            torch.testing.assert_close(ours, step.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"d_embed": 24}, {"d_embed": 100, "tie_embeddings": False}, {"embedding_factor": 4, "cutoffs": (50, 120)}],
)
@pytest.mark.parametrize("pieces", [[1] * 20, [20], [7, 13], [1, 5, 1, 6, 7], [19, 1]])
def test_any_way_of_feeding_the_cache_gives_the_full_forward(changes: dict[str, object], pieces: list[int]) -> None:
    arch = tiny(**changes)
    model = filled(arch)
    tokens = some_tokens(arch, 20, batch=2)
    with torch.inference_mode():
        expected = model(tokens, logits="all")
        cache = model.new_cache(batch=2, capacity=20)
        got, start = [], 0
        for n in pieces:
            got.append(model(tokens[:, start : start + n], cache, "all"))
            start += n
    torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_last_logits_are_the_last_row_of_all() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 9)
    with torch.inference_mode():
        last = model(tokens)
        torch.testing.assert_close(last, model(tokens, logits="all")[:, -1:], rtol=1e-5, atol=1e-6)
    assert last.shape == (1, 1, model.arch.vocab_size)


def test_a_later_token_changes_no_earlier_logits() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 12)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % model.arch.vocab_size
    with torch.inference_mode():
        one, other = model(tokens, logits="all"), model(changed, logits="all")
    torch.testing.assert_close(one[:, :8], other[:, :8], rtol=0, atol=1e-6)
    assert not torch.allclose(one[:, 8:], other[:, 8:], atol=1e-3)


def test_setting_the_cache_back_repeats_a_token() -> None:
    model = filled(tiny())
    tokens = some_tokens(model.arch, 10)
    cache = model.new_cache(capacity=10)
    with torch.inference_mode():
        model(tokens[:, :9], cache)
        first = model(tokens[:, 9:], cache)
        cache.set_length(9)
        again = model(tokens[:, 9:], cache)
    assert torch.equal(first, again)


def test_tokens_that_do_not_fit_are_refused() -> None:
    model = filled(tiny())
    cache = model.new_cache(capacity=8)
    with pytest.raises(ValueError, match="49 tokens do not fit the 48"):
        model(some_tokens(model.arch, 49))
    with pytest.raises(ValueError, match="9 tokens do not fit the 8"):
        model(some_tokens(model.arch, 9), cache)
    with pytest.raises(ValueError, match="cannot hold 9"):
        cache.set_length(9)


def test_the_cache_says_what_it_takes() -> None:
    arch = tiny()
    cache = build_model(arch).new_cache(batch=3, capacity=10)
    assert cache.n_bytes == 2 * 4 * 3 * 10 * arch.d_model * arch.n_layer
    assert (cache.length, cache.capacity) == (0, 10)


def test_adaptive_embedding_gives_normalised_log_probabilities_over_the_same_decoder() -> None:
    plain = filled(tiny())
    adaptive = filled(tiny(embedding_factor=4, cutoffs=(50, 120)))
    adaptive.decoder.load_state_dict(plain.decoder.state_dict())
    tokens = some_tokens(plain.arch, 9, batch=2)
    with torch.inference_mode():
        got = adaptive(tokens, logits="all")
        x = adaptive.token_embedding(tokens) + adaptive.position_embedding.weight[:9]
        for block in plain.decoder.blocks:
            x = block(x, None)
        torch.testing.assert_close(got, adaptive.head(plain.decoder.norm(x)))
        torch.testing.assert_close(got.exp().sum(-1), torch.ones(2, 9))


def test_filled_weights_are_varied_normal_and_give_finite_logits() -> None:
    arch = Architecture(backbone="gpt2", d_model=960, layers=(LayerSpec(d_inner=4032, n_head=8),) * 3, vocab_size=5000)
    model = build_model(arch)
    assert fill_weights(model) == 4 * arch.total_params
    smallest_normal = torch.finfo(torch.float32).tiny
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        is_gain = name.endswith("norm.weight")
        assert abs(flat.mean().item() - is_gain) < 0.004, name
        assert 0.015 < flat.std().item() < 0.025, name
        assert not ((flat != 0) & (flat.abs() < smallest_normal)).any(), name
        whole = flat[: flat.numel() // 1024 * 1024].view(-1, 1024)[:, :16]
        assert torch.unique(whole, dim=0).shape[0] == whole.shape[0], f"two pages of {name} are alike"
    with torch.inference_mode():
        logits = model(some_tokens(arch, 64), logits="all")
    assert torch.isfinite(logits).all()
    assert logits.std() > 1e-3

"""Exported models say what edge-lts's own model says, train, generate, and run in onnxruntime."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts_host.errors import HostError
from edge_lts_host.export import export, write_torch
from tests.support import require

torch = pytest.importorskip("torch")

from tests.models import filled  # noqa: E402  (after the check that torch is there)

pytestmark = pytest.mark.torch

LAYERS = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=128, n_head=4), LayerSpec(d_inner=200, n_head=8))
CLOSE = {"rtol": 1e-4, "atol": 2e-4}


def shape(backbone: str = "gpt2", **changes: object) -> Architecture:
    arch = Architecture(backbone=backbone, d_model=64, layers=LAYERS, vocab_size=211, max_seq_len=24)
    return arch.replace(**changes)


VARIANTS = {
    f"{backbone}{name}": shape(backbone, **changes)
    for backbone in ("gpt2", "opt", "transformer-xl")
    for name, changes in {
        "": {},
        "-untied-narrow": {"tie_embeddings": False, "d_embed": 40},
        "-adaptive": {"embedding_factor": 4, "cutoffs": (50, 100)},
        "-adaptive-untied": {"embedding_factor": 2, "cutoffs": (50, 100), "tie_embeddings": False, "d_embed": 48},
    }.items()
}
SHARED = (LayerSpec(d_inner=96, n_head=2, n_kv_head=1), LayerSpec(d_inner=200, n_head=8, n_kv_head=2))
VARIANTS |= {
    "llama": shape("llama"),
    "llama-shared": shape("llama", layers=SHARED, d_head=24, tie_embeddings=False),
    "transformer++": shape("transformer++"),
    "primer-ez": shape("primer-ez"),
    "primer": shape("primer"),
    "gpt2-relu2": shape("gpt2", activation="relu2"),
    "gpt2-no-positions": shape("gpt2", position="none", activation="relu1.5"),
    "gpt2-everything": shape(
        "gpt2",
        layers=SHARED,
        d_head=12,
        position="rotary",
        norm="rmsnorm",
        activation="relu3",
        is_gated=True,
        qkv_conv=3,
        embedding_factor=4,
        cutoffs=(50, 100),
    ),
}
every_variant = pytest.mark.parametrize("arch", VARIANTS.values(), ids=VARIANTS.keys())
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def load(folder: Path) -> ModuleType:
    """model.py of an exported folder as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"exported_{abs(hash(folder))}", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def pair(arch: Architecture, folder: Path) -> tuple[Any, Any]:
    """(edge-lts's model, the exported one with its weights)."""
    ours = filled(arch)
    write_torch(arch, folder)
    module = load(folder)
    torch.save(ours.state_dict(), folder / "weights.pt")
    theirs = module.LanguageModel(module.Config.load(folder / "config.json")).eval()
    module.load_weights(theirs, folder / "weights.pt")
    return ours, theirs


def some_tokens(n: int, batch: int = 1, seed: int = 3) -> Any:
    return torch.randint(211, (batch, n), generator=torch.Generator().manual_seed(seed))


@every_variant
def test_torch_gives_the_results_of_edge_lts(arch: Architecture, tmp_path: Path) -> None:
    ours, theirs = pair(arch, tmp_path)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == arch.total_params
    tokens = some_tokens(20, batch=3)
    with torch.no_grad():
        expected = ours(tokens, logits="all")
        torch.testing.assert_close(theirs(tokens), expected, **CLOSE)
        torch.testing.assert_close(theirs(tokens, n_last=2), expected[:, -2:], **CLOSE)
        cache, at = theirs.new_cache(), 0
        for n_new in (5, 1, 1, 6, 7):
            torch.testing.assert_close(theirs(tokens[:, at : at + n_new], cache), expected[:, at : at + n_new], **CLOSE)
            at += n_new
        assert cache.get_seq_length() == at


@every_variant
def test_padding_on_the_left_changes_nothing(arch: Architecture, tmp_path: Path) -> None:
    _, theirs = pair(arch, tmp_path)
    tokens = some_tokens(9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    padding = (torch.arange(13) >= 4)[None].long()
    with torch.no_grad():
        expected = theirs(tokens)
        torch.testing.assert_close(theirs(padded, padding_BS=padding)[:, 4:], expected, **CLOSE)
        cache = theirs.new_cache()
        theirs(padded[:, :8], cache, padding[:, :8])
        for at in range(8, 13):
            scores = theirs(padded[:, at : at + 1], cache, padding[:, : at + 1])
            torch.testing.assert_close(scores[:, 0], expected[:, at - 4], **CLOSE)


def test_the_memory_of_a_transformer_xl_rolls_as_that_of_edge_lts(tmp_path: Path) -> None:
    ours, theirs = pair(shape("transformer-xl", max_seq_len=8), tmp_path)
    tokens = some_tokens(30, batch=2)
    cache, memory = theirs.new_cache(), ours.new_cache(batch=2)
    with torch.no_grad():
        at = 0
        for n_new in (5, 1, 4, 1, 1, 12, 1, 5):  # within the memory, over its end, and longer than it
            part = tokens[:, at : at + n_new]
            torch.testing.assert_close(theirs(part, cache), ours(part, memory, logits="all"), **CLOSE)
            at += n_new
        assert cache.layers[0][0].shape[2] == 7


def test_gpt2_says_that_it_has_no_more_positions(tmp_path: Path) -> None:
    _, theirs = pair(shape(), tmp_path)
    cache = theirs.new_cache()
    theirs(some_tokens(20), cache)
    with pytest.raises(ValueError, match=r"20 \+ 5 tokens do not fit the 24 positions"):
        theirs(some_tokens(5), cache)


@every_variant
def test_every_parameter_learns(arch: Architecture, tmp_path: Path) -> None:
    write_torch(arch, tmp_path)
    module = load(tmp_path)
    torch.manual_seed(0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dropout": 0.05}))
    model = module.LanguageModel(module.Config.load(tmp_path / "config.json"))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = torch.arange(211).repeat(2)[: 16 * 24].reshape(16, 24)  # every token occurs, and what follows it is certain
    losses = []
    for _ in range(12):
        scores = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 4.5 < losses[0] < 9.0  # nothing is known at first: ln 211 is 5.35, rare tokens of an adaptive head cost more
    # A norm behind the FFN drowns small embeddings at first, as Primer has it: slower, and downwards all the same.
    assert losses[-1] < (0.98 if arch.backbone == "primer" else 0.9) * losses[0]
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])]


def test_the_recurrence_trains_over_segments(tmp_path: Path) -> None:
    _, model = pair(shape("transformer-xl", max_seq_len=12), tmp_path)
    model.train()
    cache = model.new_cache()
    for at in range(0, 40, 10):
        model(some_tokens(40)[:, at : at + 10], cache).mean().backward()
        cache.detach()
    assert cache.n_seen == 40


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    ours, theirs = pair(shape(), tmp_path)
    module = sys.modules[type(theirs).__module__]
    state = ours.state_dict()
    for name, change, named in (
        ("less", {"decoder.norm.weight": None}, "decoder.norm.weight"),
        ("more", {"decoder.extra": torch.zeros(1)}, "decoder.extra"),
        ("other", {"decoder.norm.bias": torch.zeros(3)}, "decoder.norm.bias"),
        ("untied", {"head.weight": torch.zeros(211, 64)}, "head.weight"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save(changed, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=named):
            module.load_weights(theirs, tmp_path / f"{name}.pt")


@every_backbone
def test_the_example_runs(backbone: str, tmp_path: Path) -> None:
    write_torch(shape(backbone), tmp_path)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{shape(backbone).total_params:,} parameters" in done.stdout
    assert "loss 5." in done.stdout


# --- Hugging Face ---


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code that transformers copies goes away with the tests."""
    require("torch", has("transformers", "safetensors"), "the extra `export` is not installed")
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


HUGGED = ["gpt2", "opt-untied-narrow", "transformer-xl", "transformer-xl-adaptive", "llama-shared", "primer"]


@pytest.fixture(scope="module", params=HUGGED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, modules_cache: None) -> Path:
    """DIR of an export of weights that edge-lts's own model has."""
    folder = tmp_path_factory.mktemp(request.param)
    arch = VARIANTS[request.param]
    torch.save(filled(arch).state_dict(), folder / "own.pt")
    (written,) = export(arch, folder, ("hf",), checkpoint=folder / "own.pt")
    assert written.checked["n_positions"] == 36
    return folder


def arch_of(folder: Path) -> Architecture:
    return Architecture.from_json(json.loads((folder / "config.json").read_text())["edge_lts"]["architecture"])


def pretrained(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def test_hugging_face_gives_the_results_of_edge_lts(folder: Path) -> None:
    from safetensors.torch import load_file

    model, arch = pretrained(folder / "hf"), arch_of(folder / "hf")
    ours = filled(arch)
    tokens = some_tokens(20, batch=2)
    with torch.no_grad():
        output = model(tokens, labels=tokens)
        torch.testing.assert_close(output.logits, ours(tokens, logits="all"), **CLOSE)
        torch.testing.assert_close(model(tokens, logits_to_keep=1).logits, output.logits[:, -1:], **CLOSE)
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.loss, loss, **CLOSE)
    # What is tied is stored once, and there is no second parameter that could grow apart from it.
    assert (
        sum(tensor.numel() for tensor in load_file(folder / "hf" / "model.safetensors").values()) == arch.total_params
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == arch.total_params


def test_it_generates_with_a_cache_what_it_generates_without(folder: Path) -> None:
    model, prompt = pretrained(folder / "hf"), some_tokens(5, batch=2)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = prompt
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, model.model(expected, n_last=1)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(prompt, **settings), expected)
    assert torch.equal(model.generate(prompt, use_cache=False, **settings), expected)
    calls: list[int] = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    model.generate(prompt, **settings)
    assert calls == [5] + [1] * 11
    model.generate(prompt, num_beams=3, **settings)
    # A shorter prompt beside a longer one, padded on its left, continues as it does alone.
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), prompt[:1, :3]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    together = model.generate(torch.cat([padded, prompt[1:]]), attention_mask=mask, **settings)
    assert torch.equal(together[:1, 5:], model.generate(prompt[:1, :3], **settings)[:, 3:])
    assert torch.equal(together[1:], expected[1:])


def test_a_transformer_xl_generates_beyond_its_memory(tmp_path: Path, modules_cache: None) -> None:
    arch = shape("transformer-xl", max_seq_len=8)
    torch.save(filled(arch).state_dict(), tmp_path / "own.pt")
    export(arch, tmp_path, ("hf",), checkpoint=tmp_path / "own.pt")
    prompt = some_tokens(5)
    ours, memory, new = filled(arch), filled(arch).new_cache(), prompt
    expected = prompt
    with torch.no_grad():
        for _ in range(20):
            new = ours(new, memory)[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, new], dim=1)
    found = pretrained(tmp_path / "hf").generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own
def test_trainer_trains_it_and_what_it_saves_loads_and_exports(folder: Path, tmp_path: Path) -> None:
    require("torch", has("accelerate"), "accelerate, which Trainer needs, is not installed")
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(pretrained(folder / "hf").config, trust_remote_code=True)
    assert 0.015 < model.model.decoder.blocks[0].feed_forward.up.weight.std() < 0.025
    texts = [{"input_ids": [(7 * i + j) % 211 for j in range(20)]} for i in range(32)]
    data = [{"input_ids": torch.tensor(text["input_ids"]), "labels": torch.tensor(text["input_ids"])} for text in texts]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.98 * before
    trainer.save_model(tmp_path / "trained")
    assert {"model.py", "modeling_edge_lts.py", "configuration_edge_lts.py"} <= {
        path.name for path in (tmp_path / "trained").iterdir()
    }
    tokens = some_tokens(11)
    with torch.no_grad():
        expected = trainer.model.eval()(tokens).logits
        torch.testing.assert_close(pretrained(tmp_path / "trained")(tokens).logits, expected, **CLOSE)
    arch = arch_of(folder / "hf")
    (written,) = export(arch, tmp_path / "again", ("torch",), checkpoint=tmp_path / "trained")
    module = load(written.folder)
    plain = module.LanguageModel(module.Config.load(written.folder / "config.json")).eval()
    module.load_weights(plain, written.folder / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens), expected, **CLOSE)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    require("torch", has("transformers", "safetensors"), "the extra `export` is not installed")
    torch.save(filled(shape("gpt2", max_seq_len=16)).state_dict(), tmp_path / "own.pt")
    with pytest.raises(HostError, match=r"hf: .*1 weights do not fit this architecture, the first 'position_embedding"):
        export(shape("gpt2"), tmp_path / "x", ("hf",), checkpoint=tmp_path / "own.pt")
    assert list((tmp_path / "x").iterdir()) == []


# --- ONNX ---


@pytest.mark.parametrize("name", ["gpt2-adaptive", "opt-untied-narrow", "transformer-xl", "llama"])
def test_onnx_gives_the_results_of_edge_lts(name: str, tmp_path: Path) -> None:
    require("torch", has("onnx", "onnxscript", "onnxruntime"), "the extra `export` is not installed")
    import onnxruntime

    arch, ours = VARIANTS[name], filled(VARIANTS[name])
    torch.save(ours.state_dict(), tmp_path / "own.pt")
    (written,) = export(arch, tmp_path, ("onnx",), checkpoint=tmp_path / "own.pt")
    assert written.checked["n_positions"] == 20
    prefill, decode = (onnxruntime.InferenceSession(written.folder / f"{part}.onnx") for part in ("prefill", "decode"))
    names = [given.name for given in decode.get_inputs()[1:]]
    assert names[:3] == ["past_keys_0", "past_values_0", "past_keys_1"]
    tokens = some_tokens(24, batch=2)
    with torch.no_grad():
        expected = ours(tokens, logits="all")
    scores, *past = prefill.run(None, {"tokens": tokens[:, :18].numpy()})
    assert past[4].shape == (2, 8, 18, 8)  # the third layer's keys
    for at in range(18, 24):
        torch.testing.assert_close(torch.from_numpy(scores)[:, 0], expected[:, at - 1], **CLOSE)
        inputs = dict(zip(names, past, strict=True))
        scores, *past = decode.run(None, {"tokens": tokens[:, at : at + 1].numpy(), **inputs})
    torch.testing.assert_close(torch.from_numpy(scores)[:, 0], expected[:, 23], **CLOSE)
    done = subprocess.run(
        [sys.executable, written.folder / "example.py", "5", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        tokens = torch.tensor([[5, 6]])
        for _ in range(8):
            tokens = torch.cat([tokens, ours(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert done.stdout == f"generated {tokens[0].tolist()}\n"


@pytest.mark.parametrize("name", ["primer", "gpt2-everything"])
def test_onnx_carries_what_convolutions_look_back_on(name: str, tmp_path: Path) -> None:
    require("torch", has("onnx", "onnxscript", "onnxruntime"), "the extra `export` is not installed")
    import onnxruntime

    arch, ours = VARIANTS[name], filled(VARIANTS[name])
    torch.save(ours.state_dict(), tmp_path / "own.pt")
    (written,) = export(arch, tmp_path, ("onnx",), checkpoint=tmp_path / "own.pt")
    prefill, decode = (onnxruntime.InferenceSession(written.folder / f"{part}.onnx") for part in ("prefill", "decode"))
    names = [given.name for given in decode.get_inputs()[1:]]
    assert names[:5] == ["past_tail_qk_0", "past_tail_v_0", "past_keys_0", "past_values_0", "past_tail_qk_1"]
    tokens = some_tokens(20, batch=2)
    with torch.no_grad():
        expected = ours(tokens, logits="all")
    for n_prompt in (1, 2, 9):
        scores, *past = prefill.run(None, {"tokens": tokens[:, :n_prompt].numpy()})
        assert past[0].shape[2] == 2
        assert past[2].shape[2] == n_prompt
        for at in range(n_prompt, n_prompt + 5):
            torch.testing.assert_close(torch.from_numpy(scores)[:, 0], expected[:, at - 1], **CLOSE)
            inputs = dict(zip(names, past, strict=True))
            scores, *past = decode.run(None, {"tokens": tokens[:, at : at + 1].numpy(), **inputs})
    done = subprocess.run(
        [sys.executable, written.folder / "example.py", "5", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

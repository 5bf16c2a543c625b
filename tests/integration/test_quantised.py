"""bfloat16 and int8 models: close to the float32 model of the same weights, built without ever holding it."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EvaluationError
from edge_lts.footprint import weight_bytes
from edge_lts.precision import PRECISIONS
from edge_lts.profile.memory import read_status
from edge_lts.records import Protocol
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model, quantised  # noqa: E402  (after the check that torch is there)
from edge_lts.profile.anchor import Anchor  # noqa: E402
from edge_lts.profile.weights import fill_weights  # noqa: E402

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
ENGINES = torch.backends.quantized.supported_engines
HERE = [name for name in PRECISIONS if not name.startswith("int8") or name.partition("-")[2] in ENGINES]
OTHERS = HERE[1:]
BOUNDS = {"bfloat16": 0.03, "int8-qnnpack": 0.08, "int8-onednn": 0.08}  # of logits, relative
SHAPES = [
    {},
    {"tie_embeddings": False, "d_embed": 48},
    {"embedding_factor": 2, "cutoffs": (100, 200)},
    {"embedding_factor": 4, "cutoffs": (60, 150), "tie_embeddings": False},
]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    engine, dtype = torch.backends.quantized.engine, torch.get_default_dtype()
    with torch.inference_mode():
        yield
    assert (torch.backends.quantized.engine, torch.get_default_dtype()) == (engine, dtype)


def arch(backbone: str = "gpt2", **changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=200, n_head=4))
    small = Architecture(backbone=backbone, d_model=64, layers=layers, vocab_size=331, max_seq_len=48)
    return small.replace(**changes)


def reference(of: Architecture):
    """In float32, with values that all matter."""
    model = build_model(of.replace(precision=None))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.normal_(float("norm" in name and name.endswith("weight")), 0.06, generator=generator)
    return model


def same_weights(model, source):
    """`model` with the weights of `source`, quantised as building quantises them."""
    parameters = dict(source.named_parameters(remove_duplicate=False))
    done = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, quantised.Int8Linear):
            module.load(parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
        elif isinstance(module, quantised.Int8Table) and id(module) not in done:
            done.add(id(module))
            rows = iter(parameters[f"{name.removesuffix('.table')}.weight"].split(module.piece))
            module.load(lambda tensor, rows=rows: tensor.copy_(next(rows)))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in parameters:
            parameter.copy_(parameters[name])
    return model


def pair(of: Architecture, precision: str):
    source = reference(of)
    return source, same_weights(build_model(of, precision), source)


def tokens(of: Architecture, n: int, seed: int = 3):
    return torch.randint(of.vocab_size, (1, n), generator=torch.Generator().manual_seed(seed))


def error(found, right) -> float:
    found, right = found.float(), right.float()
    centred = right - right.mean(-1, keepdim=True)
    return float((found - found.mean(-1, keepdim=True) - centred).norm() / centred.norm())


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("backbone", ["gpt2", "transformer-xl"])
@pytest.mark.parametrize("precision", OTHERS)
def test_results_are_those_of_float32_to_within_the_precision(precision: str, backbone: str, changes: dict) -> None:
    of = arch(backbone, **changes)
    source, model = pair(of, precision)
    text = tokens(of, 40)
    right, found = source(text, None, "all"), model(text, None, "all")
    assert error(found, right) < BOUNDS[precision]
    chosen = found.argmax(-1, keepdim=True)
    is_same = chosen[..., 0] == right.argmax(-1)
    regret = (right.max(-1, keepdim=True).values - right.gather(-1, chosen))[..., 0]
    assert is_same.float().mean() >= 0.8
    assert (regret <= 3 * BOUNDS[precision] * right.std(-1)).all()


@pytest.mark.parametrize("backbone", ["gpt2", "opt", "transformer-xl"])
@pytest.mark.parametrize("precision", HERE)
def test_decoding_with_the_cache_is_prefilling(precision: str, backbone: str) -> None:
    of = arch(backbone)
    _, model = pair(of, precision)
    text = tokens(of, 20)
    cache = model.new_cache(capacity=21)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert all(tensor.dtype == kind for tensor in cache.tensors())
    assert model(text, cache, "last").dtype == kind
    cache.set_length(0)
    model(text[:, :12], cache, "last")
    for i in range(12, 20):
        last = model(text[:, i : i + 1], cache, "last")
    bound = {"float32": 1e-5, "bfloat16": 0.02}.get(precision, 0.05)  # int8: each input has its own scale
    assert error(last, model(text, None, "last")) < bound


@pytest.mark.parametrize("backbone", ["gpt2", "opt", "transformer-xl"])
@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("precision", HERE)
def test_the_formula_counts_the_bytes_of_the_built_model(precision: str, changes: dict, backbone: str) -> None:
    of = arch(backbone, **changes)
    model = build_model(of, precision)
    assert fill_weights(model) == weight_bytes(of, precision) == weight_bytes(of.replace(precision=precision))
    assert torch.isfinite(model(tokens(of, 9))).all()


@pytest.mark.parametrize("precision", [name for name in HERE if name.startswith("int8")])
def test_a_tied_table_is_one_table_and_no_float_matrix_is_left(precision: str) -> None:
    model = build_model(arch(), precision)
    assert model.head.table is model.token_embedding
    assert max(parameter.dim() for parameter in model.parameters()) == 1
    table = model.token_embedding
    ids = torch.tensor([[5, 330]])
    assert torch.equal(table(ids)[0, 1], table.rows(330, 331)[0])
    x = torch.randn(7, 64)
    right = x @ table.rows(0, 331).t()
    assert torch.allclose(model.head(x), right, atol=1e-4)
    assert error(model.head(x[:1]), right[:1]) < 0.01
    assert torch.allclose(model.head.transposed(right), right @ table.rows(0, 331), rtol=1e-3, atol=1e-3)


def test_the_genes_precision_goes_before_the_runs() -> None:
    model = build_model(arch(precision="bfloat16"), "float32")
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_engine_that_is_not_there_fails_or_miscomputes_is_refused_with_what_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EvaluationError, match=r"int8-marble: is not in this torch; use int8-.*float32") as caught:
        quantised.Int8Parts("marble", lambda tensor: tensor)
    assert caught.value.kind == "unsupported"
    monkeypatch.setattr(quantised, "_error_of", lambda engine: 0.7)
    with pytest.raises(EvaluationError, match="wrong results"):
        build_model(arch(), OTHERS[-1])

    def fail(engine: str) -> float:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantised, "_error_of", fail)
    with pytest.raises(EvaluationError, match=r"no kernel.*use .*float32") as caught:
        build_model(arch(), OTHERS[-1])
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize("precision", HERE)
def test_the_anchors_are_float32_whatever_the_candidate_is(precision: str) -> None:
    anchor = Anchor(arch(), Protocol(precision=precision, prompt_tokens=8, context_tokens=8))
    anchor.sample()
    assert set(anchor.medians_s()) == {"prefill_latency_s", "decode_latency_s", "stream_s"}


BUILD = """
import os, sys, torch
sys.path.insert(0, {root!r})
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import weight_bytes
from edge_lts.model import build_model
from edge_lts.profile.anchor import Anchor
from edge_lts.profile.memory import MemoryMeter
from edge_lts.profile.weights import fill_weights
from edge_lts.records import Protocol
torch.set_num_threads(1)
layers = tuple(LayerSpec(d_inner=2048, n_head=8) for _ in range(6))
arch = Architecture(backbone={backbone!r}, d_model=512, layers=layers)
with torch.inference_mode():
    anchor = Anchor(arch, Protocol(precision={precision!r}, threads=1, prompt_tokens=16, context_tokens=16))
    meter = MemoryMeter()
    model = build_model(arch, {precision!r})
    fill_weights(model)
    meter.end_loading()
    model(torch.zeros(1, 4, dtype=torch.int64))
    meter.end_running()
memory = meter.to_json()
print(weight_bytes(arch, {precision!r}), memory["loading_peak_bytes"], memory["running_peak_bytes"])
"""


@pytest.mark.skipif(read_status() is None, reason="needs /proc/self/status")
@pytest.mark.parametrize("backbone", ["gpt2", "transformer-xl"])
@pytest.mark.parametrize("precision", OTHERS)
def test_building_never_holds_a_float32_copy(precision: str, backbone: str) -> None:
    script = BUILD.format(root=str(ROOT), backbone=backbone, precision=precision)
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    size, loading, running = (int(part) for part in found.stdout.split())
    largest_layer = 4 * 512 * 2048
    assert size < loading < size + (largest_layer if precision != "bfloat16" else 0) + 8e6
    assert size < running < size + 8e6

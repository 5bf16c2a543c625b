"""Proxies that need the model: against their definitions worked out another way, and through the agent."""

from __future__ import annotations

import importlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts.errors import SpecError
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts import trainer  # noqa: E402  (after the check that torch is there)
from edge_lts.model import build_model  # noqa: E402
from edge_lts.profile.latency import zipf_tokens  # noqa: E402
from edge_lts.proxies.model_based import SCORES, jacob_cov, scores  # noqa: E402
from edge_lts.train.initial import initialise  # noqa: E402
from edge_lts_host.calibration.scores import NAMES  # noqa: E402
from edge_lts_host.cli import main  # noqa: E402

pytestmark = pytest.mark.torch

LAYERS = (LayerSpec(d_inner=48, n_head=2), LayerSpec(d_inner=64, n_head=4))


def tiny(backbone: str = "gpt2", **changes: Any) -> Architecture:
    return Architecture(backbone=backbone, d_model=32, layers=LAYERS, vocab_size=64, max_seq_len=24).replace(**changes)


def test_the_host_names_those_that_the_board_has() -> None:
    assert tuple(SCORES) == NAMES


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_finite_scores_that_the_seed_decides(backbone: str) -> None:
    one, again, other = (scores(tiny(backbone), list(SCORES), seed=seed)["scores"] for seed in (1, 1, 2))
    assert one == again
    assert all(value is not None and math.isfinite(value) for value in one.values())
    assert all(one[name] != other[name] for name in SCORES)


def test_snip_and_grad_norm_are_what_finite_differences_say() -> None:
    """The derivative along one weight, from the loss at two values of it, stands in the sum that autograd makes."""
    arch = tiny(d_model=8, layers=(LayerSpec(d_inner=12, n_head=2),))
    windows = zipf_tokens(16 * 25, 64, 0).view(16, 25)
    model = build_model(arch)
    initialise(model, arch, 0)
    model.double()  # not before: numbers are drawn in the type that they are drawn for

    def loss() -> float:
        with torch.no_grad():
            flat = model(windows[:, :-1], None, "all").log_softmax(-1)
            return -float(flat.gather(-1, windows[:, 1:, None]).mean())

    snip = norms = 0.0
    for weight in [weight for weight in model.decoder.parameters() if weight.ndim > 1]:
        flat, slopes = weight.data.view(-1), torch.zeros(weight.numel(), dtype=torch.double)
        for index in range(weight.numel()):
            before = flat[index].item()
            flat[index] = before + 1e-5
            above = loss()
            flat[index] = before - 1e-5
            slopes[index] = (above - loss()) / 2e-5
            flat[index] = before
        snip += float((slopes * flat).abs().sum())
        norms += float(slopes.norm())
    found = scores(arch, ["snip", "grad_norm"])["scores"]
    assert found["snip"] == pytest.approx(snip, rel=1e-3)
    assert found["grad_norm"] == pytest.approx(norms, rel=1e-3)


def test_synflow_does_not_see_signs_and_grows_with_the_model() -> None:
    arch = tiny()
    found = []
    for flip in (1.0, -1.0):
        model = build_model(arch)
        initialise(model, arch, 0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(flip)
        found.append(SCORES["synflow"](model, zipf_tokens(25, 64, 0).view(1, 25)))
    assert found[0] == found[1] > 0
    deeper = scores(tiny(layers=LAYERS * 2), ["synflow"])["scores"]["synflow"]
    assert deeper > scores(tiny(), ["synflow"])["scores"]["synflow"]


def test_jacob_cov_is_lowest_where_a_model_tells_nothing_apart() -> None:
    arch = tiny()
    different = zipf_tokens(16 * 25, 64, 0).view(16, 25)
    found = []
    for windows in (different, different[:1].repeat(16, 1)):
        model = build_model(arch)
        initialise(model, arch, 0)
        found.append(jacob_cov(model, windows))
    assert found[0] > found[1]
    assert found[1] < -15 * 0.9 / 1e-5  # 15 of 16 eigenvalues are 0


def test_the_agent_scores_what_it_is_asked_and_says_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    request = {"architectures": [tiny().to_json(), tiny("llama").to_json()], "proxies": ["snip"], "seed": 3}
    assert trainer.score(events.append, io.BytesIO(json.dumps(request).encode()), root=tmp_path) == 0  # type: ignore[arg-type]
    assert [event["arch_id"] for event in events] == [tiny().arch_id, tiny("llama").arch_id]
    assert events[0]["scores"] == scores(tiny(), ["snip"], seed=3)["scores"]
    assert events[0]["seconds"]["snip"] > 0

    def broken(*unused: Any) -> float:
        raise RuntimeError("no memory left")

    monkeypatch.setitem(SCORES, "snip", broken)
    events.clear()
    trainer.score(events.append, io.BytesIO(json.dumps(request).encode()), root=tmp_path)  # type: ignore[arg-type]
    assert [event["error"] for event in events] == ["RuntimeError: no memory left"] * 2


@pytest.mark.parametrize(
    "request_",
    [
        b"{",
        b"[]",
        b'{"architectures": [], "proxies": []}',
        b'{"architectures": [3], "proxies": ["snip"]}',
        json.dumps({"architectures": [tiny().to_json()], "proxies": ["magic"]}).encode(),
        json.dumps({"architectures": [tiny().to_json()], "proxies": ["snip"], "seed": -1}).encode(),
        json.dumps({"architectures": [tiny().to_json()], "proxies": ["snip"], "more": 1}).encode(),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, request_: bytes) -> None:
    with pytest.raises((SpecError, ValueError)):
        trainer.score(lambda event: None, io.BytesIO(request_), root=tmp_path)


def test_validate_ranks_a_table_by_what_its_models_score_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: a table's rows become models, an agent of this machine builds and scores them, ranks are told."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "share/runs"))
    archs = [tiny(layers=LAYERS * n, d_model=width, max_seq_len=1024) for n in (1, 2, 3) for width in (32, 48)]
    expected = [scores(arch, ["synflow"])["scores"]["synflow"] for arch in archs]
    order = sorted(range(6), key=lambda index: expected[index])
    quality = {index: rank for rank, index in enumerate(order)}
    lines = ["name,d_model,d_embed,n_head,d_inner,n_layer,vocab_size,valid_loss"]
    for index, arch in enumerate(archs):
        heads, widths = (";".join(str(getattr(one, key)) for one in arch.layers) for key in ("n_head", "d_inner"))
        shape = f"{arch.d_model},{arch.d_embed},{heads},{widths},{arch.n_layer},{arch.vocab_size}"
        lines.append(f"m{index},{shape},{9 - quality[index]}")
    (tmp_path / "panel.csv").write_text("\n".join(lines) + "\n")
    words = ["validate", "--panel", str(tmp_path / "panel.csv"), "-o", "json"]
    words += ["--proxy", "synflow", "--proxy", "jacob_cov"]
    assert main(words) == 2
    assert "--backbone says" in capsys.readouterr().err
    assert main([*words, "--backbone", "gpt2"]) == 0
    by_synflow, by_covariance = json.loads(capsys.readouterr().out)["validations"]
    assert (by_synflow["n_rows"], by_synflow["proxy"]["kind"]) == (6, "model")
    assert by_synflow["spearman"]["value"] == pytest.approx(1.0)
    assert -1.0 <= by_covariance["spearman"]["value"] < 1.0
    assert len(list((tmp_path / "share/agents").iterdir())) == 1

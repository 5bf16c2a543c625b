"""`edge-lts export` without torch: which architecture is meant, what is written, what is refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts_host import store
from edge_lts_host.cli import main
from edge_lts_host.errors import HostError, UsageError
from edge_lts_host.export import export, formats, source, write_torch
from tests.support import require
from tests.unit.host.sample_runs import architecture, write_run

ROOT = Path(__file__).resolve().parents[3]
RUN = "20261122-101530-rpi5-ab12"


def shape(**changes: object) -> Architecture:
    layers = (LayerSpec(d_inner=96, n_head=2), LayerSpec(d_inner=200, n_head=8))
    return Architecture(backbone="gpt2", d_model=64, layers=layers, vocab_size=211, max_seq_len=48).replace(**changes)


VARIANTS = [
    shape(backbone=backbone, embedding_factor=factor, cutoffs=(50, 100), d_embed=width, tie_embeddings=is_tied)
    for backbone in ("gpt2", "opt", "transformer-xl")
    for factor, width in ((1, 64), (1, 40), (4, 64))
    for is_tied in (True, False)
]

SHARED = (LayerSpec(d_inner=96, n_head=4, n_kv_head=2), LayerSpec(d_inner=200, n_head=8, n_kv_head=2))
VARIANTS += [shape(backbone=backbone) for backbone in ("llama", "transformer++", "primer-ez", "primer")]
VARIANTS += [
    shape(backbone="llama", layers=SHARED, d_head=16),
    shape(activation="relu2", position="none", norm="rmsnorm"),
    shape(activation="relu1.5", position="rotary", qkv_conv=3, layers=SHARED, is_gated=True, d_head=20),
]


def test_the_torch_folder_needs_nothing_of_edge_lts(tmp_path: Path) -> None:
    for index, arch in enumerate(VARIANTS):
        folder = tmp_path / str(index)
        write_torch(arch, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "example.py", "model.py"]
        for path in folder.glob("*.py"):
            tree = ast.parse(path.read_text())
            imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            tops = {name.partition(".")[0] for name in imported}
            assert tops - {"torch", "model", "safetensors"} <= sys.stdlib_module_names
        config = json.loads((folder / "config.json").read_text())
        assert Architecture.from_json(config["edge_lts"]["architecture"]) == arch
        assert config["clusters"] == [list(cluster) for cluster in arch.clusters]
        for layer, spec in zip(config["layers"], arch.layers, strict=True):
            more = {} if source.is_plain(arch) else {"n_kv_head": spec.n_kv_head, "d_head": arch.head_width(spec)}
            assert layer == {**spec.to_json(), **more}


def test_everything_written_is_clean_python(tmp_path: Path) -> None:
    for index, arch in enumerate(VARIANTS):
        for name in ("torch", "hf", "onnx"):
            formats._FORMATS[name].write(arch, tmp_path / f"{index}" / name, None)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if "@gpt" in text or "_note@" in text or "@window@" in text]
    ruff = Path(sys.executable).parent / "ruff"
    require("torch", ruff.exists(), "ruff, of the dev extra, is not installed")
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    # What holds for this project alone is left out: it prints, and transformers wants relative imports.
    for words in (["check", "--ignore", "TID,T20,RUF012"], ["format", "--check"]):
        done = subprocess.run([ruff, *words, *config, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_only_the_wanted_parts_are_in_the_model() -> None:
    plain, adaptive = source.model_source(shape()), source.model_source(shape(embedding_factor=4, cutoffs=(50, 100)))
    assert "AdaptiveHead" not in plain
    assert "AdaptiveHead" in adaptive
    assert "RelativeAttention" not in plain
    assert "RelativeAttention" in source.model_source(shape(backbone="transformer-xl"))
    for words in (("class RMSNorm", "def rotate", "chunk(2"), ("class CausalConv", "behind_tail")):
        assert not [word for word in words if word in plain]
    llama, primer = (source.model_source(shape(backbone=backbone)) for backbone in ("llama", "primer"))
    assert "class RMSNorm" in llama
    assert "CausalConv" not in llama
    assert "class CausalConv" in primer
    assert "RMSNorm" not in primer


def exported(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, object]:
    assert main(["export", *words, "-o", "json"]) == status
    answer: dict[str, object] = json.loads(capsys.readouterr().out or "{}")
    return answer


def test_a_member_is_found_by_how_its_id_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(store.runs_root(), RUN)
    arch = architecture(4, 128, 512)
    answer = exported(capsys, arch.arch_id[:5], "--to", str(tmp_path / "x"), "--format", "torch")
    assert answer["arch_id"] == arch.arch_id
    assert answer["decoder_params"] == arch.decoder_params
    config = json.loads((tmp_path / "x" / "torch" / "config.json").read_text())
    assert config["d_model"] == 128
    assert config["edge_lts"]["run_id"] == RUN
    assert config["edge_lts"]["objectives"]["decode_latency_s"]["n"] == 30  # three processes


def test_what_is_no_member_or_not_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(store.runs_root(), RUN)
    dominated = architecture(4, 192, 704, 8192)
    to = ["--to", str(tmp_path / "x"), "--format", "torch"]
    assert main(["export", dominated.arch_id, *to]) == 0
    assert "is no member of the frontier" in capsys.readouterr().err
    assert main(["export", "0123456789ab", "--to", str(tmp_path / "y")]) == 2
    assert "measured no architecture 0123456789ab" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()
    from edge_lts_host.export.find import find_member

    with pytest.raises(UsageError, match="may be any of 4"):
        find_member(store.resolve(RUN), "")


def test_a_file_goes_before_an_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc").write_text(json.dumps(shape().to_json()))
    assert exported(capsys, "abc", "--to", "x", "--format", "torch")["arch_id"] == shape().arch_id


def test_a_place_that_is_taken_is_refused_and_force_keeps_what_is_not_ours(tmp_path: Path) -> None:
    export(shape(), tmp_path, ("torch",))
    (tmp_path / "torch" / "notes.txt").write_text("mine")
    (tmp_path / "torch" / "model.py").write_text("changed")
    with pytest.raises(UsageError, match="is not empty"):
        export(shape(), tmp_path, ("torch",))
    export(shape(), tmp_path, ("torch",), is_forced=True)
    assert (tmp_path / "torch" / "notes.txt").read_text() == "mine"
    assert "class LanguageModel" in (tmp_path / "torch" / "model.py").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


def test_a_format_whose_libraries_are_missing_is_skipped_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_but_torch(modules: tuple[str, ...]) -> list[str]:
        return [module for module in modules if module != "torch"]

    monkeypatch.setattr(formats, "lacking", nothing_but_torch)
    (tmp_path / "arch.json").write_text(json.dumps(shape().to_json()))
    answer = exported(capsys, str(tmp_path / "arch.json"), "--to", str(tmp_path / "x"))
    assert isinstance(answer["formats"], list)
    assert [entry["state"] for entry in answer["formats"]] == ["written", "skipped", "skipped"]
    assert "needs safetensors, transformers: pip install" in answer["formats"][1]["skipped"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["torch"]
    # Somebody who asked for that very format gets an exit code.
    assert main(["export", str(tmp_path / "arch.json"), "--to", str(tmp_path / "y"), "--format", "onnx"]) == 5
    assert "onnxruntime" in capsys.readouterr().err


def test_a_check_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "lacking", lambda modules: [])
    monkeypatch.setattr(source, "template", lambda name, values=None: "raise SystemExit('torch \\x1b[31mdiffers')")
    with pytest.raises(HostError, match=r"hf: torch \\x1b\[31mdiffers"):
        export(shape(), tmp_path, ("torch", "hf"), checkpoint=None)
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for path in (tmp_path / "none.pt", tmp_path / "shards"):
        with pytest.raises(UsageError, match="--checkpoint: there is no"):
            export(shape(), tmp_path / "x", ("torch",), checkpoint=path)
    assert not (tmp_path / "x").exists()

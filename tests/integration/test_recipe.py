"""The training script that `pick --recipe` writes: it trains, goes on where it was, and its weights load."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts_host.recipes import write_recipe
from tests.support import require

FEW = ("--steps", "12", "--batch-windows", "4", "--sequence-length", "16", "--save-every", "6", "--micro-batch", "3")


def train(folder: Path, *words: str) -> list[str]:
    argv = [sys.executable, "train.py", *FEW, *words]
    done = subprocess.run(argv, cwd=folder, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def value(lines: list[str], word: str) -> list[float]:
    return [float(words[words.index(word) + 1]) for line in lines if word in (words := line.split())]


@pytest.mark.parametrize(
    "changes",
    [{"backbone": "gpt2"}, {"backbone": "transformer-xl", "embedding_factor": 4, "cutoffs": (64, 128)}],
    ids=["gpt2", "transformer-xl adaptive"],
)
def test_it_trains_and_goes_on_as_if_nothing_had_happened(tmp_path: Path, changes: dict[str, object]) -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    layers = (LayerSpec(d_inner=64, n_head=2), LayerSpec(d_inner=96, n_head=4))
    base = Architecture(backbone="gpt2", d_model=32, layers=layers, vocab_size=256, max_seq_len=64)
    folder = tmp_path / "recipe"
    write_recipe(base.replace(**changes), folder, 1e6)
    (tmp_path / "text").write_bytes(b"the frontier of decoders that a board allows; " * 200)
    words = ("--text", str(tmp_path / "text"), "--learning-rate", "0.005")
    whole = train(folder, *words, "--out", "whole")
    losses = value(whole, "loss")
    assert losses[-1] < losses[0] - 0.2
    halfway = train(folder, *words, "--out", "half", "--save-every", "4")
    assert value(halfway, "validation")[-1] == value(whole, "validation")[-1]
    stopped = "import train,sys; save=train.save\n"
    stopped += "def once(path, state):\n    save(path, state); sys.exit(0)\ntrain.save = once; train.main()"
    subprocess.run([sys.executable, "-c", stopped, *FEW, *words, "--out", "cut"], cwd=folder, check=True)
    resumed = train(folder, *words, "--out", "cut", "--resume")
    assert value(resumed, "validation")[-1] == pytest.approx(value(whole, "validation")[-1], abs=1e-4)
    check = "import torch; from model import Config, LanguageModel, load_weights\n"
    check += "model = LanguageModel(Config.load('config.json')); load_weights(model, 'whole/model.pt'); print('loaded')"
    done = subprocess.run([sys.executable, "-c", check], cwd=folder, capture_output=True, check=False, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_token_files_hold_ids_without_a_sign(tmp_path: Path) -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    layers = (LayerSpec(d_inner=32, n_head=2),)
    arch = Architecture(backbone="gpt2", d_model=16, layers=layers, vocab_size=65536, max_seq_len=64)
    write_recipe(arch, tmp_path / "recipe", 1e6)
    (tmp_path / "tokens.bin").write_bytes(b"\xfe\xff\x01\x80" * 2000)  # 65,534 and 32,769, over and over
    lines = train(tmp_path / "recipe", "--data", str(tmp_path / "tokens.bin"), "--learning-rate", "0.05")
    losses = value(lines, "loss")
    assert losses[-1] < losses[0] - 1


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    require("torch", importlib.util.find_spec("torch"), "torch is not installed")
    layers = (LayerSpec(d_inner=32, n_head=2),)
    arch = Architecture(backbone="gpt2", d_model=16, layers=layers, vocab_size=128, max_seq_len=64)
    write_recipe(arch, tmp_path / "recipe")
    (tmp_path / "text").write_bytes(b"abc" * 20)
    for words, message in (
        (("--text", str(tmp_path / "text")), "bytes need a vocabulary of 256"),
        (("--data", str(tmp_path / "text")), "too few"),
        ((), "say what to train on"),
    ):
        argv = [sys.executable, "train.py", *words]
        done = subprocess.run(argv, cwd=tmp_path / "recipe", capture_output=True, check=False, text=True)
        assert done.returncode == 2
        assert message in done.stderr

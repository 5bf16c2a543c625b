"""An architecture to the source files of an exported model. Writes text; nothing here imports or runs torch.

The pieces lie in `templates/`. `model.py` is put together from those that this architecture needs and is the same file
in each format; its parameter names are those of `edge_lts.model`, and a test holds its results equal to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_lts import __version__
from edge_lts.arch import OPT_FIRST_POSITION, Architecture
from edge_lts_host.errors import UsageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TEMPLATES = Path(__file__).resolve().parent / "templates"
_FIELD = re.compile(r"@([a-z_]+)@")
_PIECES = {
    "gpt2": ("attention.py", "gpt2.py", "learned.py"),
    "opt": ("attention.py", "opt.py", "learned.py"),
    "transformer-xl": ("transformer_xl.py",),
}
_ACTIVATIONS = {
    "gpt2": 'functional.gelu(self.up(x_BTD), approximate="tanh")',
    "opt": "functional.relu(self.up(x_BTD))",
    "transformer-xl": "functional.relu(self.up(x_BTD))",
}
_NOTES = {
    "gpt2": (
        "Pre-norm, learned positions, GELU in its tanh form: Hugging Face's GPT2LMHeadModel where all layers are alike "
        "(Radford\net al. 2019). No text is longer than max_seq_len."
    ),
    "opt": (
        "Post-norm, learned positions behind two rows that are never read, ReLU, no norm behind the last layer: "
        "Hugging Face's\nOPTForCausalLM with do_layer_norm_before false where all layers are alike (OPT-350M; Zhang et "
        "al. 2022, arXiv\n2205.01068). No text is longer than max_seq_len."
    ),
    "transformer-xl": (
        "Post-norm, ReLU, relative positions with u and v per layer (Dai et al. 2019, arXiv 1901.02860). The cache is "
        "the\npaper's memory, as keys and values instead of hidden states: the last max_seq_len - 1 tokens. Training "
        "without a cache\ntakes each text by itself; for the paper's recurrence pass one cache along, with "
        "`cache.detach()` between segments."
    ),
}


def template(name: str, values: Mapping[str, object] | None = None) -> str:
    """The file `name` of templates/, with each @word@ replaced. Raises KeyError for a word that has no value."""
    text = (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
    return text if values is None else _FIELD.sub(lambda match: str(values[match[1]]), text)


def model_source(arch: Architecture) -> str:
    """model.py. Raises UsageError for a backbone that cannot be exported."""
    if arch.backbone not in _PIECES:
        raise UsageError(f"backbone {arch.backbone!r} cannot be exported; these can: {', '.join(_PIECES)}")
    is_adaptive = arch.embedding_factor > 1
    values = {
        "backbone": arch.backbone,
        "n_layer": arch.n_layer,
        "arch_id": arch.arch_id,
        "version": __version__,
        "decoder_params": f"{arch.decoder_params:,}",
        "total_params": f"{arch.total_params:,}",
        "notes": _NOTES[arch.backbone],
        "activation": _ACTIVATIONS[arch.backbone],
        "first_position": f" + {OPT_FIRST_POSITION}" if arch.backbone == "opt" else "",
        "result": "log-probabilities" if is_adaptive else "logits",
    }
    ends = "adaptive.py" if is_adaptive else "plain.py"
    pieces = ("head.py", ends, *_PIECES[arch.backbone], "tail.py")
    return "".join(template(piece, values) for piece in pieces)


def config(arch: Architecture, evidence: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json: the fields of model.py's Config and, under `edge_lts`, where they come from."""
    origin: dict[str, Any] = {
        "version": __version__,
        "arch_id": arch.arch_id,
        "decoder_params": arch.decoder_params,
        "total_params": arch.total_params,
        "architecture": arch.to_json(),
    }
    return {
        "backbone": arch.backbone,
        "d_model": arch.d_model,
        "d_embed": arch.d_embed,
        "vocab_size": arch.vocab_size,
        "max_seq_len": arch.max_seq_len,
        "tie_embeddings": arch.tie_embeddings,
        "clusters": [list(cluster) for cluster in arch.clusters],
        "layers": [layer.to_json() for layer in arch.layers],
        "dropout": 0.0,
        "edge_lts": {**origin, **(evidence or {})},
    }


def write_torch(architecture: Architecture, folder: Path, evidence: Mapping[str, Any] | None = None) -> None:
    """model.py, config.json and example.py in `folder`, which is made: all that torch needs to train the model.

    `evidence` is what was measured, kept in config.json. Needs no torch. Raises UsageError for a backbone that cannot
    be exported, and OSError.
    """
    files = {"model.py": model_source(architecture), "example.py": template("example.py")}
    _write(folder, {**files, CONFIG: _dump(config(architecture, evidence))})


def write_hf(architecture: Architecture, folder: Path, evidence: Mapping[str, Any] | None = None) -> None:
    """The sources and config.json of a Hugging Face folder; its weights are written by a child (see `formats`)."""
    shape = config(architecture, evidence)
    if architecture.backbone == "transformer-xl":  # what makes transformers' own cache forget as the memory does
        shape["sliding_window"] = architecture.max_seq_len
        shape["layer_types"] = ["sliding_attention"] * architecture.n_layer
    data = {
        "architectures": ["EdgeLtsForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_edge_lts.EdgeLtsConfig",
            "AutoModelForCausalLM": "modeling_edge_lts.EdgeLtsForCausalLM",
        },
        "model_type": "edge-lts",
        "dtype": "float32",
        **shape,
    }
    origin = {"backbone": architecture.backbone, "arch_id": architecture.arch_id, "version": __version__}
    files = {
        "model.py": model_source(architecture),
        "configuration_edge_lts.py": template("configuration_edge_lts.py", origin),
        "modeling_edge_lts.py": template("modeling_edge_lts.py"),
    }
    _write(folder, {**files, CONFIG: _dump(data)})


def write_onnx(architecture: Architecture, folder: Path, evidence: Mapping[str, Any] | None = None) -> None:
    """model.py, config.json, export_onnx.py that makes the graphs of them, and example.py that runs these."""
    window = architecture.max_seq_len - 1
    note, rolling = f"(at most {window}: there are no more positions)", ""
    if architecture.backbone == "transformer-xl":
        note = f"(at most {window}: the memory; drop the oldest of longer ones)"
        rolling = "    past = [tensor[:, :, -window:] for tensor in past]\n"
    files = {
        "model.py": model_source(architecture),
        "export_onnx.py": template("export_onnx.py", {"window_note": note}),
        "example.py": template("example_onnx.py", {"window": window, "rolling": rolling}),
        CONFIG: _dump(config(architecture, evidence)),
    }
    _write(folder, files)


def _dump(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")

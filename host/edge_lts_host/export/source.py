"""An architecture to the source files of an exported model. Writes text; nothing here imports or runs torch.

The pieces lie in `templates/`. `model.py` is put together from those that this architecture needs and is the same file
in each format; its parameter names are those of `edge_lts.model`, and a test holds its results equal to that.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_lts import __version__
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.counting import OPT_FIRST_POSITION
from edge_lts.style import STYLE_KEYS, relu_power
from edge_lts_host.errors import UsageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TEMPLATES = Path(__file__).resolve().parent / "templates"
_FIELD = re.compile(r"@([a-z_]+)@")
_CHOICE = re.compile(r"^#if (not )?([a-z_]+)\n(.*?)^#end\n", re.MULTILINE | re.DOTALL)
_LEARNED = ("attention.py", "gpt2.py", "learned.py")
_PIECES = {
    **dict.fromkeys(("gpt2", "llama", "primer", "primer-ez", "transformer++"), _LEARNED),
    "opt": ("attention.py", "opt.py", "learned.py"),
    "transformer-xl": ("transformer_xl.py",),
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

_SOURCES = {
    "llama": "Hugging Face's LlamaForCausalLM where all layers are alike (Touvron et al. 2023, arXiv 2302.13971).",
    "transformer++": "So et al. 2021, arXiv 2109.08668.",
    "primer-ez": "So et al. 2021, arXiv 2109.08668.",
    "primer": "So et al. 2021, arXiv 2109.08668, as google-research/primer has it.",
}


def template(name: str, values: Mapping[str, object] | None = None) -> str:
    """The file `name` of templates/, with each @word@ replaced and of each `#if word` ... `#end` (or `#if not word`)
    what holds. Raises KeyError for a word that has no value."""
    text = (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
    if values is None:
        return text
    text = _CHOICE.sub(lambda match: match[3] if bool(values[match[2]]) != bool(match[1]) else "", text)
    return _FIELD.sub(lambda match: str(values[match[1]]), text)


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
        "notes": _notes(arch),
        "first_position": f" + {OPT_FIRST_POSITION}" if arch.backbone == "opt" else "",
        "result": "log-probabilities" if is_adaptive else "logits",
        **_style_values(arch),
    }
    ends = "adaptive.py" if is_adaptive else "plain.py"
    pieces = ("head.py", ends, *_PIECES[arch.backbone], "tail.py")
    return "".join(template(piece, values) for piece in pieces)


def is_plain(arch: Architecture) -> bool:
    """Whether attention is GPT-2's, position and heads alike."""
    is_shared = any(layer.n_kv_head != layer.n_head for layer in arch.layers)
    has_more = arch.position in ("rotary", "none") or arch.qkv_conv or arch.d_head is not None or is_shared
    return arch.family.has_biases and not has_more


def _style_values(arch: Architecture) -> dict[str, object]:
    """What templates ask of the architecture's style."""
    family, power = arch.family, relu_power(arch.activation or "")
    has_conv, is_rotary = bool(arch.qkv_conv), arch.position == "rotary"
    before = "gates_BTF" if arch.is_gated else "self.up(x_BTD)"
    activation = f"functional.relu({before})"
    if power is None:
        activation = (
            f"functional.silu({before})"
            if arch.activation == "silu"
            else f'functional.gelu({before}, approximate="tanh")'
        )
    elif power != 1:
        activation += ".square()" if power == 2 else f".pow({power:g})"
    is_default = family.norm_epsilon == 1e-5
    return {
        "plain": is_plain(arch),
        "conv": has_conv,
        "rotary": is_rotary,
        "learned": arch.position == "learned",
        "has_positions": arch.position in ("learned", "rotary"),
        "grouped": any(layer.n_kv_head != layer.n_head for layer in arch.layers),
        "shares_qk": family.shares_qk,
        "is_primer": arch.backbone == "primer",
        "is_gated": arch.is_gated,
        "is_rmsnorm": arch.norm == "rmsnorm",
        "activation": activation,
        "bias": "" if family.has_biases else ", bias=False",
        "n_up": "2 * " if arch.is_gated else "",
        "norm": "RMSNorm" if arch.norm == "rmsnorm" else "nn.LayerNorm",
        "eps": "" if is_default else f", eps={family.norm_epsilon:g}",
        "q_channels": "" if family.shares_qk else "q_width, ",
        "slot": "2 * index + 1" if has_conv else "index",
        "more": ", turned" * is_rotary + ", padding_BS" * has_conv,
        "layer_keys": "n_head and d_inner" if is_plain(arch) else "n_head, n_kv_head, d_head and d_inner",
        "attention_note": " with n_head heads of width d_model / n_head" if is_plain(arch) else "",
        "block_note": (
            "One layer: attention behind its norm, the FFN before its own."
            if arch.backbone == "primer"
            else "One pre-norm layer."
        ),
    }


def _notes(arch: Architecture) -> str:
    """What the blocks are, and whose."""
    if arch.backbone in _NOTES and arch == arch.replace(**dict.fromkeys(STYLE_KEYS), d_head=None) and is_plain(arch):
        return _NOTES[arch.backbone]
    if arch.position == "relative":
        return _NOTES[arch.backbone]
    words = [
        {"learned": "learned", "rotary": "rotary", "none": "no"}[arch.position or ""] + " positions",
        "RMSNorm" if arch.norm == "rmsnorm" else "LayerNorm",
        f"{arch.activation}{', which gates the FFN' if arch.is_gated else ''}",
    ]
    if arch.qkv_conv:
        words.append("convolutions of width 3 behind the projections")
    if arch.family.shares_qk:
        words.append("q made of k")
    text = f"A decoder of the backbone {arch.backbone}: {', '.join(words)}. {_SOURCES.get(arch.backbone, '')}"
    return textwrap.fill(f"{text} No text is longer than max_seq_len.".replace("  ", " "), 119)


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
        "layers": [_layer(arch, layer) for layer in arch.layers],
        "dropout": 0.0,
        "edge_lts": {**origin, **(evidence or {})},
    }


def _layer(arch: Architecture, layer: LayerSpec) -> dict[str, int]:
    data = layer.to_json()
    return data if is_plain(arch) else {**data, "n_kv_head": layer.n_kv_head, "d_head": arch.head_width(layer)}


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
    elif architecture.qkv_conv:  # the same for what convolutions look back on: a cache of its own before each layer's
        shape["sliding_window"] = architecture.qkv_conv
        shape["layer_types"] = ["sliding_attention", "full_attention"] * architecture.n_layer
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
    has_conv = bool(architecture.qkv_conv)
    files = {
        "model.py": model_source(architecture),
        "configuration_edge_lts.py": template("configuration_edge_lts.py", {**origin, "conv": has_conv}),
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
        "export_onnx.py": template("export_onnx.py", {"window_note": note, "conv": bool(architecture.qkv_conv)}),
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

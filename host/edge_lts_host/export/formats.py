"""The three formats: sources written here, what needs torch done and checked by a child process running them.

This process never imports torch. A format is made in a hidden folder beside its place and moved there once its check
has passed; what was in that place before is not touched without `is_forced`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture
from edge_lts_host.errors import CommandError, HostError, PreflightError, UsageError, last_line
from edge_lts_host.export import source

REMEDY = 'pip install "edge-lts[local,export]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What became of one format. `checked` is what the child compared; `skipped` says why there is nothing."""

    name: str
    folder: Path
    checked: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.name,
            "folder": str(self.folder),
            "state": "skipped" if self.skipped else "written",
            "skipped": self.skipped or None,
            "checked": self.checked,
        }


def lacking(modules: Sequence[str]) -> list[str]:
    """Those that are not installed; none is imported."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    write: Callable[[Architecture, Path, Mapping[str, Any] | None], None]
    modules: tuple[str, ...]
    finish: Callable[[Path, Path | None], dict[str, Any]]


def _finish_torch(folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    if checkpoint is None:
        return {}
    if missing := lacking(("torch", "safetensors")):
        raise PreflightError(f"reading {checkpoint} needs {' and '.join(missing)}", REMEDY)
    return _run("torch", "write_weights.py", [str(folder), str(checkpoint)])


def _finish_hf(folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    return _run("hf", "check_hf.py", [str(folder), *([] if checkpoint is None else [str(checkpoint)])])


def _finish_onnx(folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    weights = [] if checkpoint is None else ["--weights", str(checkpoint)]
    return _run("onnx", None, [str(folder / "export_onnx.py"), *weights])


_FORMATS = {
    "torch": _Format(write=source.write_torch, modules=(), finish=_finish_torch),
    "hf": _Format(write=source.write_hf, modules=("torch", "safetensors", "transformers"), finish=_finish_hf),
    "onnx": _Format(
        write=source.write_onnx, modules=("torch", "onnx", "onnxscript", "onnxruntime"), finish=_finish_onnx
    ),
}
FORMATS = tuple(_FORMATS)


def export(
    architecture: Architecture,
    folder: Path,
    formats: Sequence[str] = FORMATS,
    *,
    checkpoint: Path | None = None,
    evidence: Mapping[str, Any] | None = None,
    is_forced: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> list[Exported]:
    """Write `folder`/torch, /hf and /onnx, or those of `formats`; one that lacks its libraries is skipped.

    `checkpoint` is a file of weights, or a folder with one, as Trainer leaves it. `report` hears what is being done.
    Raises UsageError for a place that is taken and for weights that do not fit, HostError where a check fails.
    """
    weights = None if checkpoint is None else _weights_file(checkpoint)
    source.model_source(architecture)  # an architecture that cannot be exported leaves no folder
    for name in formats:
        place = folder / name
        if not is_forced and place.exists() and any(place.iterdir()):
            raise UsageError(
                f"{place} is not empty; choose another --to, or --force to replace what export wrote there"
            )
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name in formats:
        kind = _FORMATS[name]
        if missing := lacking(kind.modules):
            done.append(Exported(name=name, folder=folder / name, skipped=f"needs {', '.join(missing)}: {REMEDY}"))
            continue
        report(f"writing {folder / name}")
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as made:
            kind.write(architecture, Path(made), evidence)
            checked = kind.finish(Path(made), weights)
            _move(Path(made), folder / name)
        done.append(Exported(name=name, folder=folder / name, checked=checked))
    return done


def _weights_file(path: Path) -> Path:
    """The file itself, absolute, or the one in a folder. Raises UsageError."""
    found = path / source.WEIGHTS if path.is_dir() else path
    if not found.is_file():
        raise UsageError(f"--checkpoint: there is no {found}" + (" (shards are not read)" if path.is_dir() else ""))
    return found.absolute()


def _move(made: Path, place: Path) -> None:
    place.mkdir(exist_ok=True)
    for path in sorted(made.iterdir()):
        os.replace(path, place / path.name)


def _run(name: str, script: str | None, words: list[str]) -> dict[str, Any]:
    """A child on the generated files: `script` of templates/, or the first of `words`. Its last line is the answer.

    It loads nothing from a network, and what it caches goes away with it. Raises HostError with what it said last.
    """
    with tempfile.TemporaryDirectory(prefix="edge-lts-export-") as scratch:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        argv = [sys.executable, *(["-"] if script else []), *words]
        text = source.template(script) if script else ""
        done = subprocess.run(argv, input=text.encode(), env=environment, cwd=scratch, capture_output=True, check=False)
    if done.returncode:
        error = CommandError(argv, done.returncode, done.stderr)
        raise HostError(f"{name}: {last_line(error.stderr_tail)}") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as exc:
        raise HostError(f"the check of {name} ended without an answer") from exc
    return answer

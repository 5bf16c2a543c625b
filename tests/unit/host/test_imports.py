"""Who may import what (style guide §2), read from the sources and checked in fresh interpreters."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts_host import closure
from edge_lts_host.closure import is_in
from edge_lts_host.commands import VERBS

ROOT = Path(__file__).resolve().parents[3]
BOARD = ROOT / "edge_lts"
HOST = ROOT / "host" / "edge_lts_host"
HEAVY = ("torch", "paramiko", "serial", "numpy", "moocore", "tabulate")

# Rooms of the board that may import torch, and that the host must therefore never import.
TORCH_ROOMS = (
    "edge_lts.model",
    "edge_lts.profile",
    "edge_lts.train",
    "edge_lts.evaluator",
    "edge_lts.proxies.model_based",
)
# The only files that know verbs and arguments; waiting.py is shared by the verbs that wait, api.py calls them.
COMMAND_LINE = ("cli.py", "__main__.py", "commands/", "waiting.py", "api.py")
# What each third-party library may be imported by; `host/edge_lts_host/` is left out.
HOST_LIBRARIES = {
    "numpy": (
        "calibration/",
        "corpus.py",
        "spaces.py",
        "index/",
        "meters/alignment.py",
        "pool/parts.py",
        "report/along.py",
        "report/knees.py",
        "report/pairs.py",
        "report/ranks.py",
        "report/shapes.py",
        "report/transfer.py",
    ),
    "tabulate": ("report/markup.py",),
    "tokenizers": ("corpus.py",),
    "platformdirs": ("store.py", "wheelhouse.py"),
    "tomli": ("toml_files.py",),
    "paramiko": ("transport/ssh",),
    # paramiko's own dependency: to silence its warnings about old ciphers, and for what one meter encrypts
    "cryptography": ("transport/ssh", "meters/tc66c.py"),
    "serial": ("transport/serial", "meters/port.py"),
    "moocore": ("report/", "index/boards.py"),
    "matplotlib": ("report/plots/",),
    "dask": ("pool/crew.py",),
    "distributed": ("pool/crew.py",),
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported with the file) for every import of a file; TYPE_CHECKING blocks do not count."""
    for module, is_module_level in closure.imports(path.read_bytes()):
        assert not module.startswith("."), f"{path}: relative import"
        yield module, is_module_level


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BOARD_FILES = sorted(BOARD.rglob("*.py"))
HOST_FILES = sorted(HOST.rglob("*.py"))


@pytest.mark.parametrize("path", BOARD_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_board_imports_the_standard_library_numpy_and_torch_only(path: Path) -> None:
    for module, is_module_level in imports(path):
        top = module.partition(".")[0]
        assert top in sys.stdlib_module_names or top in ("edge_lts", "numpy", "torch"), f"imports {module}"
        if top == "torch" and is_module_level:
            assert is_in(module_of(path, BOARD), TORCH_ROOMS), "imports torch outside the torch rooms"
        if is_module_level and is_in(module, TORCH_ROOMS):
            assert is_in(module_of(path, BOARD), TORCH_ROOMS), f"imports the torch room {module} at module level"


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: str(path.relative_to(HOST)))
def test_the_host_imports_each_library_in_its_own_room_and_no_torch_room(path: Path) -> None:
    name = str(path.relative_to(HOST))
    for module, _ in imports(path):
        top = module.partition(".")[0]
        assert not is_in(module, TORCH_ROOMS), f"imports the torch room {module}"
        if top in sys.stdlib_module_names or top in ("edge_lts", "edge_lts_host", "__future__"):
            continue
        assert top in HOST_LIBRARIES, f"imports {module}, which is no dependency of the host"
        assert name.startswith(HOST_LIBRARIES[top]), f"imports {module}; only {HOST_LIBRARIES[top]} may"


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: str(path.relative_to(HOST)))
def test_layers_of_the_host_point_one_way(path: Path) -> None:
    name = str(path.relative_to(HOST))
    for module, _ in imports(path):
        if name.startswith("report/"):
            assert not is_in(module, ("edge_lts_host.transport", "edge_lts_host.session")), f"a report imports {module}"
        if name.startswith("transport/"):
            known = ("edge_lts_host.transport", "edge_lts_host.errors", "edge_lts.errors")
            assert not module.startswith("edge_lts") or is_in(module, known), f"a transport imports {module}"
        if not name.startswith(COMMAND_LINE):
            assert not is_in(module, ("edge_lts_host.cli", "edge_lts_host.commands")), f"imports {module}"


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: str(path.relative_to(HOST)))
def test_only_cli_and_render_print(path: Path) -> None:
    name = str(path.relative_to(HOST))
    if name in ("cli.py", "report/render.py") or name.startswith("onboard/"):
        return
    tree = ast.parse(path.read_bytes())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after `code`."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}"}
    code = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    modules = json.loads(result.stdout.splitlines()[-1])
    return {module for module in modules if module.partition(".")[0] in HEAVY}


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_by("import edge_lts_host.cli, edge_lts_host.__main__") == set()
    assert loaded_by("from edge_lts_host.cli import build_parser; build_parser()") == set()
    names = ", ".join(f"edge_lts_host.commands.{verb}" for verb in VERBS)
    assert loaded_by(f"import {names}") == set()


def test_the_values_that_both_sides_share_load_nothing_heavy() -> None:
    names = ", ".join(f"edge_lts.{name}" for name in ("arch", "records", "objectives", "ledger", "runfolder"))
    assert loaded_by(f"import {names}") == set()


def test_the_agent_starts_without_torch() -> None:
    assert not any(module.startswith("torch") for module in loaded_by("import edge_lts.__main__, edge_lts.agent"))


def test_targets_and_devices_need_nothing_heavy_for_json() -> None:
    code = "from edge_lts_host.cli import main; main(['targets', '-o', 'json']); main(['devices', '-o', 'json'])"
    assert loaded_by(code) == set()

"""Nothing that a board sends is executed or unpickled: the workstation has no means to do so (docs/security.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[3] / "host" / "edge_lts_host"
FILES = sorted(path.relative_to(HOST).as_posix() for path in HOST.rglob("*.py"))
# Run on the board, by its own Python: the finder that imports the agent from its archive.
ON_BOARD = {"onboard/agent_main.py"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "allow_pickle"}


def names(tree: ast.AST) -> set[str]:
    """Modules that are imported, functions that are called by a plain name or as an attribute of `os` or `builtins`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                found.add(node.func.id)
            elif isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("os", "builtins"):
                found.add(node.func.attr)
            found |= {str(keyword.arg) for keyword in node.keywords if ast.unparse(keyword.value) == "True"}
    return found


@pytest.mark.parametrize("file", FILES)
def test_the_workstation_can_neither_execute_nor_unpickle_what_it_reads(file: str) -> None:
    used = names(ast.parse((HOST / file).read_bytes()))
    assert "shell" not in used
    if file not in ON_BOARD:
        assert not used & (FORBIDDEN_MODULES | FORBIDDEN_CALLS)


def test_the_check_sees_what_it_looks_for() -> None:
    text = "import pickle\nfrom yaml import load\neval('1')\nos.system('x')\nsubprocess.run('x', shell=True)"
    assert names(ast.parse(text)) >= {"pickle", "yaml", "eval", "system", "shell"}

"""The payload: same sources, same bytes; small; and it runs with nothing else on its path."""

from __future__ import annotations

import ast
import io
import json
import lzma
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from edge_lts_host.errors import HostError
from edge_lts_host.onboard import source
from edge_lts_host.payload import MAX_PAYLOAD_BYTES, SOURCES, build_payload, source_dir, strip_talk

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(target: Path) -> Path:
    for path in (ROOT / "edge_lts").rglob("*.py"):
        copy = target / path.relative_to(ROOT / "edge_lts")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target


def test_it_is_made_of_the_sources_that_this_interpreter_imports() -> None:
    assert source_dir() == ROOT / "edge_lts"
    with zipfile.ZipFile(io.BytesIO(build_payload().data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["__main__.py", SOURCES]
        sources = json.loads(lzma.decompress(archive.read(SOURCES)))
        names = list(sources)
        assert names == sorted(names)
        assert {"edge_lts/__init__.py", "edge_lts/__main__.py", "edge_lts/search/base.py"} <= set(names)
        assert all(name.startswith("edge_lts/") and name.endswith(".py") for name in names)
        assert all(strip_talk((ROOT / name).read_bytes()).decode() == text for name, text in sources.items())
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}


def program(source: bytes) -> tuple[str, list[tuple[str, int]]]:
    """What a source does, without its docstrings, and the line on which each part of it stands."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not is_docstring(item)]
    parts = [(type(node).__name__, node.lineno) for node in ast.walk(tree) if hasattr(node, "lineno")]
    return ast.dump(tree), parts


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_sources_lose_their_comments_and_docstrings_and_nothing_else() -> None:
    for path in source_dir().rglob("*.py"):
        source = path.read_bytes()
        stripped = strip_talk(source)
        assert program(stripped) == program(source), path
    tricky = b'#!/bin/sh\ndef f():  # why\n    """One\n    two."""  # three\n    return "# no" \'"""\'\n'
    assert strip_talk(tricky) == b'\ndef f():\n    ""\n\n    return "# no" \'"""\'\n'


def test_dates_modes_caches_and_other_files_change_nothing(tmp_path: Path) -> None:
    first = build_payload()
    copy = copy_sources(tmp_path / "edge_lts")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "arch.cpython-311.py").write_text("")
    (copy / "py.typed").write_text("")
    (copy / "notes.txt").write_text("")
    for path in copy.rglob("*.py"):
        os.utime(path, (time.time() - 1e6, 1e9))
        path.chmod(0o600)
    second = build_payload(copy)
    assert second == first
    assert first.name == f"{first.sha256[:12]}.pyz"
    (copy / "arch.py").write_text((copy / "arch.py").read_text() + "\n")
    assert build_payload(copy).sha256 != first.sha256


def test_the_hash_seed_does_not_matter() -> None:
    code = "from edge_lts_host.payload import build_payload; print(build_payload().sha256)"
    hashes = set()
    for seed in ("0", "1"):
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}", "PYTHONHASHSEED": seed}
        result = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        hashes.add(result.stdout)
    assert hashes == {build_payload().sha256 + "\n"}


def test_it_stays_below_its_limit(tmp_path: Path) -> None:
    assert MAX_PAYLOAD_BYTES == 128 * 1024
    assert len(build_payload().data) <= MAX_PAYLOAD_BYTES
    copy = copy_sources(tmp_path / "edge_lts")
    (copy / "noise.py").write_text(f'NOISE = "{os.urandom(MAX_PAYLOAD_BYTES).hex()}"\n')
    with pytest.raises(HostError, match="more than 131072"):
        build_payload(copy)


def test_it_runs_alone(tmp_path: Path) -> None:
    agent = tmp_path / build_payload().name
    agent.write_bytes(build_payload().data)
    command = [sys.executable, "-I", str(agent), "status", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    hello = json.loads(result.stdout.splitlines()[0])
    assert (hello["protocol"], hello["event"], hello["verb"]) == (1, "hello", "status")


def test_it_refuses_to_run_when_its_bytes_are_not_those_of_its_name(tmp_path: Path) -> None:
    payload = build_payload()
    agent = tmp_path / payload.name
    with zipfile.ZipFile(io.BytesIO(payload.data)) as archive:
        sources = json.loads(lzma.decompress(archive.read(SOURCES)))
    sources["edge_lts/__main__.py"] = "def main(argv): print('pwned')"
    with zipfile.ZipFile(agent, "w") as archive:  # a sound zip, so that nothing but the name says that it is another
        archive.writestr("__main__.py", source("agent_main"))
        archive.writestr(SOURCES, lzma.compress(json.dumps(sources).encode()))
    command = [sys.executable, "-I", str(agent), "status", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 1
    assert result.stdout == ""
    assert f"{agent} is damaged: its SHA-256 begins with " in result.stderr


def test_a_traceback_from_it_shows_file_and_line(tmp_path: Path) -> None:
    text = """
import traceback
def main(argv):
    try:
        raise KeyError(argv)
    except KeyError:
        traceback.print_exc()
"""
    sources = {"edge_lts/__init__.py": "", "edge_lts/__main__.py": text}
    agent = tmp_path / "agent.pyz"
    with zipfile.ZipFile(agent, "w") as archive:
        archive.writestr("__main__.py", source("agent_main"))
        archive.writestr(SOURCES, lzma.compress(json.dumps(sources).encode()))
    result = subprocess.run([sys.executable, "-I", str(agent), "x"], capture_output=True, text=True, check=False)
    assert f'File "{agent}/edge_lts/__main__.py", line 5, in main\n    raise KeyError(argv)' in result.stderr


def test_a_python_without_lzma_is_told_so(tmp_path: Path) -> None:
    agent = tmp_path / build_payload().name
    agent.write_bytes(build_payload().data)
    command = [
        sys.executable,
        "-I",
        "-c",
        f"import sys, runpy; sys.modules['lzma'] = None; runpy.run_path({str(agent)!r}, run_name='__main__')",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "was built without lzma" in result.stderr
    assert "Traceback" not in result.stderr

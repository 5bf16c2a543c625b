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
from typing import Any

import pytest

from edge_lts.baselines import Baseline
from edge_lts.placement import REFERENCE
from edge_lts.records import RunSpec
from edge_lts_host import closure
from edge_lts_host.errors import HostError
from edge_lts_host.onboard import source
from edge_lts_host.payload import (
    ENTRIES,
    MAX_FULL_BYTES,
    MAX_PAYLOAD_BYTES,
    SOURCES,
    Payload,
    build_payload,
    make_payload,
    payload_for,
    source_dir,
    strip_talk,
)

ROOT = Path(__file__).resolve().parents[2]


def sources_of(payload: Payload) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(payload.data)) as archive:
        found: dict[str, str] = json.loads(lzma.decompress(archive.read(SOURCES)))
    return found


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
    second = make_payload(copy)
    assert second == first
    assert first.name == f"{first.sha256[:12]}.pyz"
    (copy / "arch.py").write_text((copy / "arch.py").read_text() + "\n")
    assert make_payload(copy).sha256 != first.sha256


def test_the_hash_seed_does_not_matter() -> None:
    code = "from edge_lts_host.payload import build_payload; print(build_payload().sha256)"
    hashes = set()
    for seed in ("0", "1"):
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}", "PYTHONHASHSEED": seed}
        result = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        hashes.add(result.stdout)
    assert hashes == {build_payload().sha256 + "\n"}


def test_they_stay_below_their_limits(tmp_path: Path) -> None:
    assert (MAX_PAYLOAD_BYTES, MAX_FULL_BYTES) == (128 * 1024, 192 * 1024)
    assert len(build_payload().data) <= MAX_PAYLOAD_BYTES
    assert len(build_payload("train").data) <= MAX_FULL_BYTES
    copy = copy_sources(tmp_path / "edge_lts")
    (copy / "noise.py").write_text(f'NOISE = "{os.urandom(MAX_PAYLOAD_BYTES).hex()}"\n')
    assert make_payload(copy) == build_payload()  # nothing imports it
    with (copy / "trainer.py").open("a") as file:
        file.write("\n\ndef noise():\n    import edge_lts.noise\n")
    assert make_payload(copy) == build_payload()
    with pytest.raises(HostError, match=r"the full payload has \d+ bytes, more than 196608"):
        make_payload(copy, is_full=True)
    with (copy / "arch.py").open("a") as file:
        file.write("\nimport edge_lts.noise\n")
    with pytest.raises(HostError, match=r"the base payload has \d+ bytes, more than 131072"):
        make_payload(copy)


# Two of one set of sources --------------------------------------------------------------------------------------------


def test_what_only_trainings_need_is_in_the_full_one_alone() -> None:
    base, full = sources_of(build_payload()), sources_of(build_payload("train"))
    assert base.items() < full.items()
    only = {name for name in full if name not in base}
    assert {"edge_lts/trainer.py", "edge_lts/train/loop.py", "edge_lts/proxies/model_based.py"} <= only
    rooms = ("train/", "trainer.py", "program/", "model/program.py", "evolution/")
    found = [name for name in base if name.removeprefix("edge_lts/").startswith(rooms)]
    assert not found, "something else imports them, with its file or by a function: see ENTRIES"
    needed = ("search/guided.py", "worker.py", "evaluator.py", "on_boot.py", "proxies/calibrated.py")
    assert {f"edge_lts/{name}" for name in needed} <= set(base)


@pytest.mark.parametrize("asked", [(), ("train",)])
def test_nothing_that_is_imported_is_missing_but_the_entries_of_the_full_one(asked: tuple[str, ...]) -> None:
    """Read off the payload itself. What the base one lacks is only ever imported by a function."""
    sources = sources_of(build_payload(*asked))
    names = {name[: -len(".py")].removesuffix("/__init__").replace("/", ".") for name in sources}
    everything = set(closure.modules(source_dir()))
    missing = set()
    for name, text in sources.items():
        for module, is_with_the_file in closure.imports(text.encode()):
            if module in everything - names:
                assert not is_with_the_file, f"{name} imports {module}"
                missing.add(module)
    entries = {room for rooms in ENTRIES.values() for room in rooms}
    assert {module for module in missing if not closure.is_in(module, entries)} == set()
    assert bool(missing) is not bool(asked)


def test_no_import_is_hidden_from_the_closure() -> None:
    for path in source_dir().rglob("*.py"):
        assert not {"importlib", "runpy"} & {module for module, _ in closure.imports(path.read_bytes())}, path
        assert "__import__" not in path.read_text(), path


def test_a_room_that_comes_later_is_in_the_full_one_when_a_function_enters_it(tmp_path: Path) -> None:
    copy = copy_sources(tmp_path / "edge_lts")
    assert sources_of(make_payload(copy, is_full=True)) == sources_of(build_payload("train"))
    for name in ("program/__init__.py", "program/blocks.py", "program/words.py", "program/unused.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("")
    (copy / "program/blocks.py").write_text("def block():\n    if True:\n        from edge_lts.program import words\n")
    with (copy / "model/gpt2.py").open("a") as file:
        file.write("\n\ndef block():\n    from edge_lts.program.blocks import block\n")
    base, full = sources_of(make_payload(copy)), sources_of(make_payload(copy, is_full=True))
    assert not [name for name in base if name.startswith("edge_lts/program")]
    found = {name for name in full if name.startswith("edge_lts/program")}
    assert found == {f"edge_lts/program/{name}.py" for name in ("__init__", "blocks", "words")}
    with (copy / "model/gpt2.py").open("a") as file:
        file.write("\nfrom edge_lts.program import words\n")
    base = sources_of(make_payload(copy))
    assert {name for name in base if "program" in name} == {f"edge_lts/program/{n}.py" for n in ("__init__", "words")}


def spec(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {"run_id": "r", "space": {"backbone": "gpt2"}, "budget_s": 60.0, "target": "local"}
    return RunSpec(**{**values, **changes})


def test_a_run_gets_the_one_that_it_needs_and_the_same_one_when_it_goes_on() -> None:
    base, full = build_payload(), build_payload("train")
    assert base != full
    assert build_payload("search", "measure", "gpt2", "guided") is base
    assert build_payload("score") is full
    for strategy in ("guided", "evolution", "random"):
        assert payload_for(spec(strategy=strategy)) is base
    assert payload_for(spec(space={})) is base
    assert payload_for(spec(baselines=(Baseline(family="gpt2", architecture=REFERENCE),))) is base
    assert payload_for(spec(strategy="evolve")) is full
    assert payload_for(spec(space={"backbone": "program"})) is full


def test_the_base_one_says_what_it_lacks(tmp_path: Path) -> None:
    agent = tmp_path / build_payload().name
    agent.write_bytes(build_payload().data)
    command = [sys.executable, "-I", str(agent), "train", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    error = json.loads(result.stdout.splitlines()[-1])
    assert result.returncode == 1
    wanted = f"edge_lts.trainer is not in {agent}, which is the smaller one of two agents"
    assert (error["event"], error["message"]) == ("error", wanted)


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

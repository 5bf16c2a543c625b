"""The wheel: holds both packages and the data, and makes the same payload as the checkout (style guide §3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from edge_lts_host.payload import build_payload
from edge_lts_host.spaces import list_spaces
from edge_lts_host.targets import load_targets
from tests.support import require

ROOT = Path(__file__).resolve().parents[2]


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, made by the build backend directly: no network, no isolated environment."""
    require("wheel", _has("hatchling"), "hatchling is not installed: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / result.stdout.splitlines()[-1]


def test_the_wheel_holds_two_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"edge_lts", "edge_lts_host"}
    for name in (
        "edge_lts/py.typed",
        "edge_lts_host/py.typed",
        "edge_lts_host/builtin_targets/rpi5.toml",
        "edge_lts_host/builtin_spaces/lts-gpt2.toml",
        "edge_lts_host/data/wheels.lock.json",
        *(f"edge_lts_host/report/html/{name}" for name in ("page.css", "chart.js", "page.js")),
    ):
        assert name in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "edge_lts").rglob("*.py")}
    assert sources <= set(names)


def test_an_installed_wheel_finds_its_data_and_makes_the_checkouts_payload(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import json, edge_lts_host\n"
        "from edge_lts_host import payload as p, spaces as s, targets as t\n"
        "targets = t.load_targets()\n"
        "print(json.dumps([edge_lts_host.__file__, p.build_payload().sha256, sorted(targets),"
        " sorted({x.origin for x in targets.values()}), sorted(s.list_spaces())]))"
    )
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environ["PYTHONPATH"] = _tomli_folder(tmp_path)
    result = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    file, sha256, targets, origins, spaces = json.loads(result.stdout)
    assert Path(file).is_relative_to(site)
    assert sha256 == build_payload().sha256
    assert targets == sorted(load_targets())
    assert origins == ["built-in"]
    assert spaces == sorted(list_spaces())


def _tomli_folder(tmp_path: Path) -> str:
    """On Python 3.10 the bare environment lacks tomli: lend it this interpreter's. Empty where it is not needed."""
    if sys.version_info >= (3, 11):
        return ""
    import tomli

    folder = tmp_path / "tomli"
    folder.mkdir()
    (folder / "tomli").symlink_to(Path(tomli.__file__).parent)
    return str(folder)

"""The real pip against a directory as its only index: the trap that markers set, and that we do not fall into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_lts_host import wheelhouse
from tests.unit.host.test_wheelhouse import as_wheel, make_wheel


def test_markers_for_this_machine_do_not_change_what_the_board_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip evaluates markers against this workstation (pip issue 11664) and would go back to an old torch."""
    index = tmp_path / "index"
    index.mkdir()
    tags = "cp313-cp313-manylinux_2_28_aarch64"
    make_wheel(index, "torch", "2.1.0", tags)
    trap = f'nvidia-cublas==1; platform_machine=="{os.uname().machine}"'
    wanted = make_wheel(index, "torch", "2.9.1", tags, requires=(trap,))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    naive = [option for option in wheelhouse.download_options("3.13", "aarch64") if option != "--no-deps"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *naive, "-d", str(tmp_path / "naive"), "torch"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0 or (tmp_path / "naive" / f"torch-2.1.0-{tags}.whl").exists(), "the trap is gone"
    wheel = as_wheel(wanted)
    found = wheelhouse.obtain([wheel], "3.13", "aarch64", cache=tmp_path / "cache")
    assert found == {wheel: tmp_path / "cache" / wanted.name}
    assert found[wheel].read_bytes() == wanted.read_bytes()

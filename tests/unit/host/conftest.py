"""Every test of the host lives in its own home: no file of whoever runs the tests is read or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_lts_host.cli import main

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, with runs in `home/share/runs`."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("EDGE_LTS_RUNS", str(home / "share" / "runs"))
    return home


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: stdout where it ends well, else stderr."""

    def run(*words: str, status: int = 0) -> str:
        assert main(words) == status
        captured = capsys.readouterr()
        return captured.out if status == 0 else captured.err

    return run

"""The example of docs/api.md, from a real search to a data frame, as somebody would run it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import require

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.torch
def test_the_example_of_the_api_runs_from_a_search_to_a_data_frame(tmp_path: Path) -> None:
    require("torch", importlib.util.find_spec("torch"), "pip install torch")
    require("pandas", importlib.util.find_spec("pandas"), "pip install pandas")
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}",
        "HOME": str(tmp_path),
        "EDGE_LTS_RUNS": str(tmp_path / "share" / "runs"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    argv = [sys.executable, str(ROOT / "docs" / "examples" / "decide.py"), "30s"]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" done")
    assert any(line.startswith("best: ") for line in lines)
    assert "arch_id" in done.stdout
    assert "count" in done.stdout
    assert (tmp_path / "decided" / "torch" / "model.py").is_file()

"""What several kinds of test share: a missing prerequisite skips or, in CI, fails; a board as a tree of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def is_required(name: str) -> bool:
    """Whether `name` stands in the comma-separated EDGE_LTS_REQUIRE, as it does in `.ci/run`."""
    return name in {part.strip() for part in os.environ.get("EDGE_LTS_REQUIRE", "").split(",")}


def require(name: str, ok: object, reason: str) -> None:
    """Skip the running test with `reason` unless `ok`; fail instead when `name` is required.

    `name` is what EDGE_LTS_REQUIRE calls the prerequisite: `torch`, `sshd`, `arm64`, `chromium`,
    `matplotlib` or `pandas`.
    """
    if ok:
        return
    if is_required(name):
        pytest.fail(f"{name} is required (EDGE_LTS_REQUIRE) but missing: {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")


def board(root: Path, files: dict[str, str]) -> Path:
    """The kernel's files of a pretended board, by their paths below `root`; returns `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root

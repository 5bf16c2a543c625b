"""What several kinds of test share: turning a missing prerequisite into a skip or, in CI, into a failure."""

from __future__ import annotations

import os

import pytest


def is_required(name: str) -> bool:
    """Whether `name` stands in the comma-separated EDGE_LTS_REQUIRE, as it does in `.ci/run`."""
    return name in {part.strip() for part in os.environ.get("EDGE_LTS_REQUIRE", "").split(",")}


def require(name: str, ok: object, reason: str) -> None:
    """Skip the running test with `reason` unless `ok`; fail instead when `name` is required.

    `name` is what EDGE_LTS_REQUIRE calls the prerequisite: `torch`, `sshd` or `arm64`.
    """
    if ok:
        return
    if is_required(name):
        pytest.fail(f"{name} is required (EDGE_LTS_REQUIRE) but missing: {reason}", pytrace=False)
    pytest.skip(f"needs {name}: {reason}")

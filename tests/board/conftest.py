"""Fixtures that hand out emulated arm64 boards, or skip with the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.board.emulated import BoardError, EmulatedBoard, build_root, missing_prerequisite
from tests.support import require


class MakeBoard(Protocol):
    def __call__(self, *, cpu: str = ..., disk_bytes: int | None = ...) -> EmulatedBoard: ...


@pytest.fixture(scope="session")
def arm64_root() -> Path:
    """The file system that boards are copies of; the first run ever builds it."""
    missing = missing_prerequisite()
    require("arm64", missing is None, str(missing))
    try:
        return build_root()
    except BoardError as error:
        require("arm64", False, str(error))
        raise


@pytest.fixture(scope="session")
def board(arm64_root: Path) -> Iterator[EmulatedBoard]:
    """One board for all tests that leave it as they found it: what a first test deploys, the next ones find there."""
    with EmulatedBoard(arm64_root) as board:
        yield board


@pytest.fixture
def make_board(arm64_root: Path) -> Iterator[MakeBoard]:
    """Makes boards with a nature of their own, gone at the end of the test."""
    with ExitStack() as boards:

        def make(*, cpu: str = "cortex-a72", disk_bytes: int | None = None) -> EmulatedBoard:
            return boards.enter_context(EmulatedBoard(arm64_root, cpu=cpu, disk_bytes=disk_bytes))

        yield make


@pytest.fixture
def fresh_board(make_board: MakeBoard) -> EmulatedBoard:
    """A board that nobody has used, for tests that cut its cable, kill its processes or pull its plug."""
    return make_board()

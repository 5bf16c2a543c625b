"""A workstation for tests with emulated boards: the command line as a process of its own, with a home of its own.

It runs from a copy of the sources, so that it can be killed, and so that it always pushes the same agent while somebody
edits the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tests.board.emulated import REPOSITORY, SSH_PORT

ROOT = ".local/share/edge-lts"
SMALL = ["--space", "tiny", "--prompt-tokens", "4", "--context-tokens", "4", "--candidate-timeout", "10m"]


class Board(Protocol):
    """What a workstation needs to know of a board, of either kind."""

    user: str
    address: str
    port: int
    identity_file: Path
    known_hosts: Path


B = TypeVar("B", bound=Board)


@dataclass(kw_only=True)
class Workstation(Generic[B]):
    """The command line with a home of its own, without any package index."""

    home: Path
    board: B
    import_s: float = 60.0
    deployed: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        port = "" if self.board.port == SSH_PORT else f":{self.board.port}"
        return f"{self.board.user}@{self.board.address}{port}"

    @property
    def patience_s(self) -> float:
        return 120.0 + 10.0 * self.import_s

    def argv(self, *words: str, connects: bool = True) -> list[str]:
        connection = ["--identity", str(self.board.identity_file), "--known-hosts", str(self.board.known_hosts)]
        return [sys.executable, "-m", "edge_lts_host", *words, *(connection if connects else [])]

    @property
    def environment(self) -> dict[str, str]:
        source = self.home / "source"
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PYTHONPATH": f"{source}{os.pathsep}{source / 'host'}",
            "EDGE_LTS_RUNS": str(self.home / "runs"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def __call__(self, *words: str, status: int = 0, connects: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words, connects=connects),
            env=self.environment,
            cwd=self.home,  # not the checkout, which -m would put in front of the copy
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
        assert done.returncode == status, f"{words[0]} ended with {done.returncode}: {done.stderr[-3000:]}"
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same without waiting for its end; the caller reads stdout and stderr by `communicate`."""
        return subprocess.Popen(
            self.argv(*words),
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *words: str, connects: bool = True) -> Any:
        return json.loads(self(*words, "-o", "json", connects=connects).stdout)

    def status(self, run_id: str) -> dict[str, Any]:
        (run,) = self.json("status", run_id)["runs"]
        return dict(run)

    def here(self, run_id: str) -> Path:
        return self.home / "runs" / run_id

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < end, f"not within {self.patience_s:.0f} s: {what}"
            time.sleep(0.5)


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a ledger; none while there is no ledger."""
    try:
        data = (run / "ledger.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def copy_sources(home: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("edge_lts", "host", "targets", "spaces"):
        shutil.copytree(REPOSITORY / name, home / "source" / name, ignore=ignore)

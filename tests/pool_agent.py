"""The Python of a pretended board: runs the agent as it is, but `worker` sleeps where it would measure, without torch.

python -m tests.pool_agent PYTHON DURATION_S -I AGENT [--site DIR] VERB ...
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

from edge_lts import worker
from edge_lts.__main__ import Emitter, error_event
from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, Interrupted
from edge_lts.records import Outcome, Protocol, Purpose, RunSpec
from tests.fake_agent import evaluation


class Sleeper:
    """Measures by sleeping; may be cancelled."""

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._cancelled = threading.Event()

    def make(self, spec: RunSpec, memory_limit_bytes: int | None, log: IO[bytes]) -> Sleeper:
        return self

    def start(self) -> dict[str, Any]:
        return {"torch": "9.9", "import_s": 0.0}

    def measure(
        self,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose = "search",
        protocol: Protocol | None = None,
    ) -> Outcome:
        if self._cancelled.wait(self._duration_s):
            raise Interrupted("cancelled")
        return evaluation(architecture, candidate_id=candidate_id, process=os.getpid(), purpose=purpose)

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self._cancelled.set()


def main(python: str, duration_s: str, *argv: str) -> int:
    if "worker" not in argv:
        os.execv(python, [python, *argv])
    emit = Emitter()
    emit({"protocol": 1, "event": "hello", "verb": "worker"})
    worker.make_measurer = lambda command: Sleeper(float(duration_s)).make  # type: ignore[assignment]
    try:
        return worker.serve(emit, sys.stdin.fileno(), [], root=Path(argv[-1]))
    except EdgeLtsError as exc:
        emit(error_event(exc))
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Programs that a board's own Python runs: stdlib only, one file each, read as text and sent, never imported here.

`probe` and `install` run from standard input before there is an agent; each prints one line, MARKER and a JSON object,
so that what a login shell may print around it does no harm. `agent_main` is the agent's `__main__.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_lts_host.agent_protocol import clean
from edge_lts_host.errors import AgentProtocolError, last_line

MARKER = "edge-lts-answer "


def source(name: str) -> bytes:
    """The text of `probe`, `install` or `agent_main`."""
    return (Path(__file__).resolve().parent / f"{name}.py").read_bytes()


def read_answer(where: str, stdout: bytes) -> dict[str, Any]:
    """The JSON object that the program printed, its strings safe to show. Raises AgentProtocolError without one."""
    for line in stdout.decode("utf-8", "replace").splitlines():
        _, found, text = line.partition(MARKER)
        if found:
            try:
                answer = clean(json.loads(text))
            except (ValueError, RecursionError):
                continue
            if isinstance(answer, dict):
                return answer
    raise AgentProtocolError(
        f"{where}: the board's Python gave no answer to the probe: {last_line(stdout) or 'nothing'}"
    )

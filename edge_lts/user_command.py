"""Objectives that a command of the user's prints: a measurer that runs them after each measurement. Free of torch.

The command is a line for /bin/sh. It runs here, on the board, with the rights of whoever runs the agent, one at a time
and after the candidate's own process has ended. It gets the architecture's canonical JSON on stdin, EDGE_LTS_ARCH_ID
and EDGE_LTS_RUN (the run's folder) in its environment, and an empty folder of its own as working directory, which is
removed afterwards. The last line that it prints, empty ones aside, is one finite number; everything else is a failure
of the candidate: another exit status than 0, no number, NaN, or no end within the candidate's timeout.

It has a session of its own, and at its end everything in its process group is killed: what it left running in the
background would disturb the next measurement. A process that leaves the group on purpose escapes that.
"""

import contextlib
import math
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.arch import Architecture
from edge_lts.errors import EvaluationError, Interrupted
from edge_lts.measurer import ending
from edge_lts.objectives import CommandObjective
from edge_lts.records import Evaluation, Failure, Measurement, Outcome, Protocol, Purpose

if TYPE_CHECKING:
    from edge_lts.agent import MeasurerLike

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_POLL_S = 0.02
_TAIL_BYTES = 64 << 10
_MAX_LAST_READS = 32
_SHOWN_CHARS = 200


class CommandMeasurer:
    """A measurer that asks `commands` for their numbers once `inner` has measured a candidate."""

    def __init__(
        self, inner: "MeasurerLike", commands: Sequence[CommandObjective], *, run_dir: Path, timeout_s: float
    ) -> None:
        self._inner = inner
        self._commands = tuple(commands)
        self._run_dir = run_dir
        self._timeout_s = timeout_s
        self._pid: int | None = None  # of the shell that runs now; its process group has the same number
        self._is_cancelled = False

    def start(self) -> dict[str, Any]:
        return self._inner.start()

    def measure(
        self,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose = "search",
        protocol: Protocol | None = None,
    ) -> Outcome:
        """What `inner` measured with a value for each command, or the failure of the first of them that fails.

        Nothing is asked on one thread, where only latencies count. Raises what `inner` raises, and Interrupted after
        `cancel`.
        """
        outcome = self._inner.measure(candidate_id, architecture, purpose, protocol=protocol)
        if not isinstance(outcome, Evaluation) or purpose == "one_thread":
            return outcome
        objectives, seconds = dict(outcome.objectives), {}
        for command in self._commands:
            if self._is_cancelled:
                raise Interrupted("the measurement was cancelled")
            begun_s = time.perf_counter()
            try:
                objectives[command.name] = Measurement(median=self._value(command, architecture), n=1)
            except EvaluationError as exc:
                message = f"the command for {command.name} {exc}"
                return Failure(
                    candidate_id=candidate_id,
                    architecture=architecture,
                    kind=exc.kind,
                    message=message,
                    purpose=purpose,
                )
            seconds[command.name] = time.perf_counter() - begun_s
        return replace(outcome, objectives=objectives, conditions={**outcome.conditions, "command_s": seconds})

    def cancel(self) -> None:
        """End the measurement or the command in flight; `measure` raises Interrupted. For signal handlers."""
        self._is_cancelled = True
        self._inner.cancel()
        self._kill()

    def close(self) -> None:
        self._inner.close()

    def _value(self, command: CommandObjective, architecture: Architecture) -> float:
        """Raises EvaluationError, whose message goes on after "the command for NAME"; Interrupted after `cancel`."""
        try:
            with (
                tempfile.TemporaryDirectory(prefix="edge-lts-", ignore_cleanup_errors=True) as folder,
                tempfile.TemporaryFile() as stdin,  # not a pipe, which a command that reads nothing could fill
            ):
                stdin.write(architecture.canonical_json().encode() + b"\n")
                stdin.seek(0)
                shell = subprocess.Popen(
                    ["/bin/sh", "-c", command.command],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=folder,
                    env={**os.environ, "EDGE_LTS_ARCH_ID": architecture.arch_id, "EDGE_LTS_RUN": str(self._run_dir)},
                    start_new_session=True,
                    bufsize=0,
                )
                with shell:
                    output, errors = self._watch(shell)
        except OSError as exc:
            raise EvaluationError("crash", f"cannot be run: {exc.strerror or exc}") from exc
        if self._is_cancelled:
            raise Interrupted("the command was cancelled")
        if shell.returncode != 0:
            said = _last_line(errors)[:_SHOWN_CHARS] or "it said nothing"
            raise EvaluationError("crash", f"{ending(shell.returncode)}: {said}")
        return _number(_last_line(output))

    def _watch(self, shell: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
        """The ends of stdout and stderr once the shell has ended and the rest of its group is killed.

        The pipes cannot tell the end: something left in the background may hold them open. Raises EvaluationError of
        kind timeout.
        """
        assert shell.stdout is not None
        assert shell.stderr is not None
        tails = {shell.stdout.fileno(): b"", shell.stderr.fileno(): b""}
        open_fds = list(tails)
        deadline = time.monotonic() + self._timeout_s

        def read(timeout_s: float) -> bool:
            ready = select.select(open_fds, [], [], timeout_s)[0] if open_fds else []
            for fd in ready:
                chunk = os.read(fd, _TAIL_BYTES)
                tails[fd] = (tails[fd] + chunk)[-_TAIL_BYTES:]
                if not chunk:
                    open_fds.remove(fd)
            return bool(ready)

        self._pid = shell.pid
        try:
            if self._is_cancelled:  # the signal came before there was a group to kill
                self._kill()
            while shell.poll() is None:
                if time.monotonic() >= deadline:
                    raise EvaluationError("timeout", f"was not finished after {self._timeout_s:g} s")
                if not read(_POLL_S) and not open_fds:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        shell.wait(_POLL_S)
        finally:
            self._kill()
            self._pid = None
            shell.wait()
        for _ in range(_MAX_LAST_READS):  # what the pipes still hold; whoever left the group may fill them forever
            if not read(0.0):
                break
        return tails[shell.stdout.fileno()], tails[shell.stderr.fileno()]

    def _kill(self) -> None:
        pid = self._pid
        if pid is not None:
            with contextlib.suppress(OSError):  # nobody is left in the group
                os.killpg(pid, signal.SIGKILL)


def _number(line: str) -> float:
    """The one finite number of a line. Raises EvaluationError."""
    if not _NUMBER.fullmatch(line):
        said = f"printed {line[:_SHOWN_CHARS]!r}" if line else "printed nothing"
        raise EvaluationError("crash", f"{said}; its last line must be one number")
    value = float(line)
    if not math.isfinite(value):
        raise EvaluationError("nonfinite", f"printed {line[:_SHOWN_CHARS]}, which is not finite")
    return value


def _last_line(output: bytes) -> str:
    """The last line that is not empty, without the space around it."""
    lines = output.decode("utf-8", "backslashreplace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

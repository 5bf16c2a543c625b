"""The agent's end of the fork server: asks for one candidate after the other and survives each of them. Free of torch.

`measure` returns an Outcome whatever the candidate does: runs out of memory, crashes, hangs. Only two things raise: a
server that cannot be started at all (EvaluationError), which is the board's problem and not a candidate's, and `cancel`
(Interrupted). A server that died is started again for the next candidate.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Any, Literal, cast

from edge_lts.arch import Architecture
from edge_lts.device import cpu_count
from edge_lts.errors import EvaluationError, FailureKind, Interrupted
from edge_lts.footprint import predicted_bytes
from edge_lts.records import ASIDE, Evaluation, Failure, Outcome, Protocol, Purpose, outcome_from_json

__all__ = ["Interrupted", "LineReader", "Measurer", "Request", "ending"]

Isolation = Literal["fork", "process"]

START_TIMEOUT_S = 600.0  # import of torch from an SD card, under emulation
_SERVER_GRACE_S = 15.0  # beyond the candidate's own deadline, which the server keeps
_TERM_GRACE_S = 2.0
ENERGY_S = 60.0  # what a candidate is given on top for its energy; the usual meters take 11 to 25 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One measurement to make: a line on the server's stdin. `protocol.threads` is resolved, never 0."""

    candidate_id: int
    architecture: Architecture
    protocol: Protocol
    purpose: Purpose
    timeout_s: float
    memory_limit_bytes: int | None
    is_emulated: bool
    isolation: Isolation
    memory_headroom: float = 0.0
    meter: str = "none"
    system_root: str = "/"

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate_id": self.candidate_id,
            "architecture": self.architecture.to_json(),
            "protocol": self.protocol.to_json(),
            "purpose": self.purpose,
            "timeout_s": self.timeout_s,
            "memory_limit_bytes": self.memory_limit_bytes,
            "memory_headroom": self.memory_headroom,
            "is_emulated": self.is_emulated,
            "isolation": self.isolation,
            "meter": self.meter,
            "system_root": self.system_root,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Request":
        return cls(
            **{
                **data,
                "architecture": Architecture.from_json(data["architecture"]),
                "protocol": Protocol.from_json(data["protocol"]),
            }
        )


class _ServerEnded(Exception):
    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class LineReader:
    """Lines from a file descriptor that is also watched with select, so nothing may hide in a buffered file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._is_ended = False

    def fill(self) -> bool:
        """Read what is there, blocking if nothing is; False at the end."""
        if not self._is_ended:
            chunk = os.read(self._fd, 1 << 16)
            self._buffer += chunk
            self._is_ended = not chunk
        return not self._is_ended

    def read_line(self, deadline: float | None) -> bytes | None:
        """The next line, or None at the end. Raises TimeoutError at `deadline` (time.monotonic)."""
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                    raise TimeoutError
            if not self.fill():
                return None


class Measurer(AbstractContextManager["Measurer"]):
    """A fork server and what it takes to keep it usable.

    `command` is the argv that runs this agent; `serve` is appended. `log` must be a real file: it becomes the server's
    stderr. `memory_limit_bytes` is what one candidate may add: predicted beyond it, a candidate is not even built;
    `memory_headroom` is the share of the memory available at that moment that it must leave. `meter` takes the energy
    of a token too (edge_lts.energy): of every candidate if `is_energy_searched`, else of those that are confirmed, in
    `energy_processes` processes of each.
    The kernel's files are read below `system_root`.
    Start it from a thread that outlives it: on Linux the server is killed when the thread that started it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        protocol: Protocol,
        *,
        candidate_timeout_s: float,
        memory_limit_bytes: int | None,
        log: IO[bytes],
        is_emulated: bool = False,
        is_fork_safe: bool = sys.platform == "linux",
        memory_headroom: float = 0.0,
        meter: str = "none",
        is_energy_searched: bool = False,
        energy_processes: int = 1,
        system_root: str = "/",
    ) -> None:
        self.protocol = replace(protocol, threads=protocol.threads or cpu_count())
        self._command = (*command, "serve")
        self._candidate_timeout_s = candidate_timeout_s
        self._memory_limit_bytes = memory_limit_bytes
        self._log = log
        self._is_emulated = is_emulated
        self._memory_headroom = memory_headroom
        self._meter, self._is_energy_searched, self._energy_processes = meter, is_energy_searched, energy_processes
        self._n_energies: Counter[str] = Counter()
        self._system_root = system_root
        self._isolation: Isolation = "fork" if is_fork_safe else "process"
        self._server: subprocess.Popen[bytes] | None = None
        self._server_threads = self.protocol.threads
        self._events: LineReader | None = None
        self._child_pid: int | None = None
        self._is_cancelled = False
        self._ready: dict[str, Any] = {}

    def __enter__(self) -> "Measurer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        """The process that measures now."""
        return self._child_pid

    def start(self) -> dict[str, Any]:
        """Start the server unless it runs; returns {"torch": version, "import_s": seconds, ...}.

        Raises EvaluationError when the server ends or stays silent, Interrupted after `cancel`.
        """
        if self._server is not None and self._server.poll() is None:
            return self._ready
        self._end_server()
        server = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment(),
            start_new_session=True,
            bufsize=0,
        )
        assert server.stdout is not None
        self._server, self._events = server, LineReader(server.stdout.fileno())
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while (event := self._next_event(deadline)) is not None:
                if event.get("event") == "ready":
                    self._ready = {key: value for key, value in event.items() if key != "event"}
                    return self._ready
        except TimeoutError:
            self._end_server()
            raise EvaluationError("crash", f"the measuring process was not ready in {START_TIMEOUT_S:g} s") from None
        status = self._end_server()
        self._raise_if_cancelled()
        raise EvaluationError("crash", f"the measuring process {ending(status)} at its start; the log says why")

    def measure(
        self,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose = "search",
        protocol: Protocol | None = None,
    ) -> Outcome:
        """Measure one candidate. `spent_s` and `measured_at` are left to the caller. `protocol`, with its threads
        resolved, goes for this one instead of the run's; for other threads another server is started."""
        self._raise_if_cancelled()
        rules = self.protocol if protocol is None else protocol
        meter = self._meter_for(architecture.arch_id, purpose)
        timeout_s = self._candidate_timeout_s + (0.0 if meter == "none" else ENERGY_S)

        def failure(kind: FailureKind, message: str) -> Failure:
            return Failure(
                candidate_id=candidate_id, architecture=architecture, kind=kind, message=message, purpose=purpose
            )

        limit = self._memory_limit_bytes
        predicted = predicted_bytes(architecture, rules)
        if limit is not None and predicted > limit:
            return failure("oom", f"needs {predicted} bytes by formula, {limit} are allowed; not built")
        request = Request(
            candidate_id=candidate_id,
            architecture=architecture,
            protocol=rules,
            purpose=purpose,
            timeout_s=timeout_s,
            memory_limit_bytes=limit,
            memory_headroom=self._memory_headroom,
            is_emulated=self._is_emulated,
            isolation=self._isolation,
            meter=meter,
            system_root=self._system_root,
        )
        if rules.threads != self._server_threads:
            # torch's libraries read their thread count when they load; the Arm Compute Library never asks again.
            self._end_server()
            self._server_threads = rules.threads
        line = json.dumps(request.to_json()).encode() + b"\n"
        try:
            event, total_s = self._exchange(line, timeout_s)
        except TimeoutError:
            self._end_server()
            return failure("timeout", f"not finished after {timeout_s:g} s; the server was replaced")
        except _ServerEnded as ended:
            kind: FailureKind = "oom" if ended.status == -signal.SIGKILL else "crash"
            return failure(kind, f"the measuring process {ending(ended.status)}")
        finally:
            self._child_pid = None
        if self._isolation == "process":
            self._end_server()
        if event["event"] == "failure":
            return failure(cast(FailureKind, event["kind"]), str(event["message"]))
        outcome = outcome_from_json(event["outcome"])
        if not isinstance(outcome, Evaluation):
            return outcome
        extra = {
            "total_s": total_s,
            "overhead_s": total_s - outcome.conditions.get("forward_s", 0.0),
            "isolation": self._isolation,
        }
        return replace(outcome, conditions={**outcome.conditions, **extra})

    def _meter_for(self, arch_id: str, purpose: Purpose) -> str:
        if self._is_energy_searched and purpose != "one_thread":
            return self._meter
        if purpose in ("search", *ASIDE) or self._n_energies[arch_id] >= self._energy_processes:
            return "none"
        self._n_energies[arch_id] += 1
        return self._meter

    def cancel(self) -> None:
        """End the measurement in flight: its `measure` raises Interrupted, as does any later. For signal handlers."""
        self._is_cancelled = True
        server = self._server
        if server is not None:
            with suppress(OSError):  # Popen.send_signal takes a lock that the interrupted code may hold
                os.kill(server.pid, signal.SIGTERM)

    def close(self) -> None:
        """End the server and any child; safe to call twice."""
        self._end_server()

    @property
    def _own_grace_s(self) -> float:
        return _SERVER_GRACE_S if self._isolation == "fork" else 0.0

    def _raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise Interrupted("the measurement was cancelled")

    def _exchange(self, line: bytes, timeout_s: float) -> tuple[dict[str, Any], float]:
        """The event that answers the request, and the seconds it took from a server that was ready.

        A server that ends before it began the candidate is replaced once. Raises TimeoutError and _ServerEnded.
        """
        for attempt in (1, 2):
            self.start()
            assert self._server is not None
            assert self._server.stdin is not None
            started = time.perf_counter()
            event = None
            with suppress(BrokenPipeError):
                self._server.stdin.write(line)
                event = self._await_outcome(time.monotonic() + timeout_s + self._own_grace_s)
            if event is not None:
                return event, time.perf_counter() - started
            was_begun = self._child_pid is not None
            status = self._end_server()
            self._raise_if_cancelled()
            if was_begun or attempt == 2:
                raise _ServerEnded(status)
        raise AssertionError("unreachable")

    def _await_outcome(self, deadline: float) -> dict[str, Any] | None:
        """The event that closes the request; None if the server ended instead."""
        while (event := self._next_event(deadline)) is not None:
            if event.get("event") == "child":
                self._child_pid = int(event["pid"])
            elif event.get("event") in ("outcome", "failure"):
                return event
        return None

    def _next_event(self, deadline: float) -> dict[str, Any] | None:
        """Raises TimeoutError at `deadline`, or soon after `cancel` if the server does not obey."""
        assert self._events is not None
        while True:
            slice_end = min(deadline, time.monotonic() + _TERM_GRACE_S)
            try:
                line = self._events.read_line(slice_end)
            except TimeoutError:
                if self._is_cancelled:
                    return None
                if slice_end >= deadline:
                    raise
                continue
            if line is None:
                return None
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    return event

    def _environment(self) -> dict[str, str]:
        """Thread counts are read when the libraries load, so they must stand before the process does."""
        threads = str(self._server_threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return {**os.environ, **dict.fromkeys(names, threads), "MALLOC_ARENA_MAX": "2", "CUDA_VISIBLE_DEVICES": ""}

    def _end_server(self) -> int | None:
        """Close stdin, which ends server and child; kill what does not obey. Returns the exit status."""
        server, child_pid = self._server, self._child_pid
        self._server = self._events = self._child_pid = None
        if server is None:
            return None
        assert server.stdin is not None
        assert server.stdout is not None
        with suppress(OSError):
            server.stdin.close()
        try:
            server.wait(_TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            if child_pid is not None and child_pid != server.pid and sys.platform != "linux":
                with suppress(OSError):  # on Linux the kernel does this
                    os.killpg(child_pid, signal.SIGKILL)
        server.stdout.close()
        return server.returncode


def ending(status: int | None) -> str:
    """How a process ended, in words that go on after its name."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"

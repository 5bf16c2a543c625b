"""The fork server: imports torch once, then gives every candidate a child of its own.

It reads one JSON request a line from stdin and writes JSON events a line to stdout (`edge_lts.measurer` is the other
end):

    {"event": "ready", "torch": ..., "import_s": ...}
    {"event": "child", "pid": ...}                       for each request, then exactly one of
    {"event": "outcome", "outcome": {...}}               a ledger record
    {"event": "failure", "kind": "oom", "message": ...}

The server itself never executes an operator: after one parallel operator in the parent, a forked child hangs in its
first (the thread pool's threads are not inherited, its state is). It ends, and its child with it, when stdin closes, on
SIGTERM, and, on Linux, when its parent dies. A child that hangs is killed at its deadline, one that exhausts the
board's memory when `edge_lts.profile.watchdog` says so: a failure of kind oom. Where forking is not safe
(macOS, or `isolation` = "process") the server measures in its own process and ends: one fresh process per candidate.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from edge_lts.errors import EdgeLtsError, EvaluationError
from edge_lts.measurer import LineReader, Request
from edge_lts.profile.watchdog import INTERVAL_S, Watchdog
from edge_lts.records import Evaluation

Evaluate = Callable[[Request], Evaluation]

_PR_SET_PDEATHSIG = 1
_EXIT_GRACE_S = 5.0  # between a child's last byte and its end; freeing a large model takes a moment


def serve(
    stdin: IO[bytes],
    stdout: IO[bytes],
    *,
    evaluate: Evaluate | None = None,
    watch: Callable[[int], Watchdog] = Watchdog,
) -> int:
    """Serve requests until stdin ends; returns the exit status. `evaluate` replaces the evaluator in tests, `watch` the
    watchdog of a process."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which decides what ends
    events_fd = os.dup(stdout.fileno())
    os.dup2(2, stdout.fileno())  # whatever a library prints goes to the log, not between the events
    server = _Server(stdin.fileno(), events_fd, watch)
    signal.signal(signal.SIGTERM, server.on_sigterm)

    started = time.perf_counter()
    torch_version = None
    if evaluate is None:
        torch_version, evaluate = _load_evaluator()
    gc.collect()
    gc.freeze()  # children share these pages; a collection in a child would copy them all
    import_s = time.perf_counter() - started
    server.send({"event": "ready", "torch": torch_version, "import_s": import_s, "pid": os.getpid()})
    return server.run(evaluate)


def _load_evaluator() -> tuple[str, Evaluate]:
    """torch's version and the real evaluator. Imports torch, which this module must not do for its importers."""
    import torch

    from edge_lts.evaluator import evaluate

    torch.set_num_interop_threads(1)

    def evaluate_request(request: Request) -> Evaluation:
        return evaluate(
            request.architecture,
            request.protocol,
            candidate_id=request.candidate_id,
            purpose=request.purpose,
            memory_limit_bytes=request.memory_limit_bytes,
            memory_headroom=request.memory_headroom,
            is_emulated=request.is_emulated,
            meter=request.meter,
            system_root=Path(request.system_root),
        )

    return str(torch.__version__), evaluate_request


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that made it ends. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Server:
    def __init__(self, requests_fd: int, events_fd: int, watch: Callable[[int], Watchdog]) -> None:
        self._watch = watch
        self._requests_fd = requests_fd
        self._events_fd = events_fd
        self._requests = LineReader(requests_fd)
        self._child: int | None = None

    def send(self, event: dict[str, Any]) -> None:
        _write_all(self._events_fd, json.dumps(event).encode() + b"\n")

    def on_sigterm(self, *_: object) -> NoReturn:
        self._kill_child()
        os._exit(128 + signal.SIGTERM)

    def run(self, evaluate: Evaluate) -> int:
        try:
            while (line := self._requests.read_line(None)) is not None:
                request = Request.from_json(json.loads(line))
                if request.isolation == "process":
                    threading.Thread(target=self._end_with_stdin, daemon=True).start()
                    self.send({"event": "child", "pid": os.getpid()})
                    self.send(json.loads(_attempt(evaluate, request)))
                    return 0
                self._serve_in_child(evaluate, request)
        except BrokenPipeError:  # the other end is gone
            pass
        finally:
            self._kill_child()
        return 0

    def _end_with_stdin(self) -> None:
        while self._requests.fill():
            pass
        os._exit(1)

    def _serve_in_child(self, evaluate: Evaluate, request: Request) -> None:
        read_fd, write_fd = os.pipe()
        server_pid = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads; these never ran an operator
            pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            self._become_child(evaluate, request, write_fd, server_pid)
        self._child = pid
        os.close(write_fd)
        try:
            self.send({"event": "child", "pid": pid})
            self.send(self._await_result(read_fd, request.timeout_s))
        finally:
            os.close(read_fd)

    def _become_child(self, evaluate: Evaluate, request: Request, result_fd: int, server_pid: int) -> NoReturn:
        try:
            die_with_parent()
            if os.getppid() != server_pid:
                os._exit(1)
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.close(self._events_fd)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, self._requests_fd)
            os.close(null)
            _volunteer_for_the_oom_killer()
            _write_all(result_fd, _attempt(evaluate, request))
            os._exit(0)
        except BaseException:  # noqa: BLE001  nothing may escape into the server's code
            traceback.print_exc()
            os._exit(1)
        finally:
            os._exit(1)

    def _await_result(self, read_fd: int, timeout_s: float) -> dict[str, Any]:
        """The child's event, or what its end says. Raises BrokenPipeError when stdin ends meanwhile."""
        assert self._child is not None
        watchdog = self._watch(self._child)
        deadline = time.monotonic() + timeout_s
        chunks: list[bytes] = []
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self._kill_child()
                return _failure("timeout", f"not finished after {timeout_s:g} s")
            ready = select.select([read_fd, self._requests_fd], [], [], min(left, INTERVAL_S))[0]
            if not ready and (verdict := watchdog.verdict()) is not None:
                self._kill_child()
                return _failure("oom", f"killed by edge-lts: {verdict}")
            if self._requests_fd in ready and not self._requests.fill():
                raise BrokenPipeError
            if read_fd in ready:
                chunk = os.read(read_fd, 1 << 16)
                if not chunk:
                    break
                chunks.append(chunk)
        status = self._reap()
        if chunks and status == 0:
            result: dict[str, Any] = json.loads(b"".join(chunks))
            return result
        return _failure_of_status(status)

    def _reap(self) -> int:
        """Wait for the child, which has closed its pipe; exit status, or minus the signal that ended it."""
        assert self._child is not None
        deadline = time.monotonic() + _EXIT_GRACE_S
        pause_s = 0.0005
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                self._child = None
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                self._kill_child()
                return -signal.SIGABRT
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.01)

    def _kill_child(self) -> None:
        pid, self._child = self._child, None
        if pid is None:
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:  # it has not made its own group yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _attempt(evaluate: Evaluate, request: Request) -> bytes:
    """The event that `evaluate` earns, as JSON. Anything it raises becomes a failure."""
    try:
        event: dict[str, Any] = {"event": "outcome", "outcome": evaluate(request).to_json()}
    except EvaluationError as error:
        event = _failure(error.kind, str(error))
    except MemoryError:
        event = _failure("oom", "out of memory")
    except EdgeLtsError as error:
        event = _failure("unsupported", str(error))
    except Exception as error:  # noqa: BLE001  a candidate's failure is data, whatever it is
        traceback.print_exc()
        event = _failure("crash", f"{type(error).__name__}: {error}"[:500])
    return json.dumps(event).encode()


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"event": "failure", "kind": kind, "message": message}


def _failure_of_status(status: int) -> dict[str, Any]:
    """SIGKILL that we did not send is the kernel's, and the kernel kills the child for its memory."""
    if status == -signal.SIGKILL:
        return _failure("oom", "killed by SIGKILL, as the kernel does when memory runs out")
    if status < 0:
        with contextlib.suppress(ValueError):
            return _failure("crash", f"killed by {signal.Signals(-status).name}")
        return _failure("crash", f"killed by signal {-status}")
    return _failure("crash", f"ended with exit status {status} and no result")


def _volunteer_for_the_oom_killer() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

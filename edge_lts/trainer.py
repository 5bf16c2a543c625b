"""The agent's verbs `train` and `score`: what needs torch runs in processes that this one starts, or in itself at last.

`train` shares the trainings of a job's folder among processes of one core each and passes on what they say; it ends
when all are done. A worker whose parent is gone ends too: what it did since its last checkpoint is lost, nothing else.
docs/protocol.md has the messages. `score` evaluates proxies that need the model (`edge_lts.proxies.model_based`).
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from edge_lts.agent import Emit
from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, EvaluationError, SpecError
from edge_lts.job import Lock
from edge_lts.runfolder import BOARD_LOCK, read_json
from edge_lts.training import RESULT, Job, Trained
from edge_lts.verbs import MAX_REQUEST_BYTES, default_root

MAX_SCORED = 10_000


class TrainingError(EdgeLtsError):
    """A process that trained ended without having done its part."""


def train(emit: Emit, folder: Path, command: Sequence[str], *, root: Path | None) -> int:
    """Do what is left of the job in `folder`; results that are there already are told again, first."""
    job = Job.read(folder)
    root = default_root() if root is None else root
    root.mkdir(parents=True, exist_ok=True)
    known = _results(folder)
    for result in known:
        emit({"event": "trained", **result})
    with Lock(root / BOARD_LOCK, run_id=f"training-{job.job_id}", what=f"this board ({root})"):
        n_left = len(job.models) - len(known)
        if n_left > 0:
            _share(emit, [*command, "train", str(folder), "--worker"], min(job.processes, n_left))
    n_known = len(_results(folder))
    emit({"event": "trainings", "job_id": job.job_id, "n_done": n_known, "n": len(job.models)})
    return 0


def worker(emit: Emit, folder: Path, stdin_fd: int) -> int:
    """One of those processes, until nothing is left or its stdin ends."""
    threading.Thread(target=_end_with, args=(stdin_fd,), daemon=True).start()
    from edge_lts.train.work import work

    work(folder, emit)
    return 0


def _end_with(stdin_fd: int) -> None:
    # Not sys.stdin: an interpreter that shuts down while a thread waits in its buffer aborts.
    while os.read(stdin_fd, 4096):
        pass
    os._exit(130)


def _share(emit: Emit, argv: Sequence[str], n_processes: int) -> None:
    """Run `argv` n times at once and pass their events on. Raises TrainingError with what the first to fail said."""
    lines: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
    children = [subprocess.Popen(list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(n_processes)]

    def listen(index: int, pipe: IO[bytes]) -> None:
        for line in pipe:
            lines.put((index, line))
        lines.put((index, b""))

    said: dict[int, Mapping[str, Any]] = {}
    try:
        for index, child in enumerate(children):
            assert child.stdout is not None
            threading.Thread(target=listen, args=(index, child.stdout), daemon=True).start()
        n_open = len(children)
        while n_open:
            index, line = lines.get()
            n_open -= not line
            event = _event(line)
            if event.get("event") == "error":
                said.setdefault(index, event)
            elif event.get("event") not in (None, "hello"):
                emit(event)
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
    for index, code in enumerate(codes):
        if code:
            message = said.get(index, {}).get("message") or f"a training process ended with status {code}"
            hint = " (out of memory, perhaps)" if code == -9 else ""
            raise TrainingError(f"{message}{hint}; what was done is kept: ask again to go on")


def _event(line: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _results(folder: Path) -> list[dict[str, Any]]:
    """Of all trainings that are over, as they were written. Raises SpecError for one that cannot be read."""
    found = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        try:
            data = read_json(path)
            Trained.from_json(data)
        except (OSError, ValueError) as exc:
            raise SpecError(f"{path}: {exc}; remove it to train that model again") from exc
        found.append(data)
    return found


def score(emit: Emit, stdin: IO[bytes], *, root: Path | None) -> int:
    """Proxies of the architectures that a request on `stdin` lists, one event each; those that fail say why."""
    try:
        request = json.loads(stdin.read(MAX_REQUEST_BYTES))
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"the request is not JSON: {exc}") from exc
    if not isinstance(request, dict) or set(request) - {"architectures", "proxies", "seed"}:
        raise SpecError("a request is an object with architectures, proxies and seed")
    listed, names, seed = request.get("architectures"), request.get("proxies"), request.get("seed", 0)
    if not isinstance(listed, list) or not isinstance(names, list) or not 1 <= len(listed) <= MAX_SCORED:
        raise SpecError(f"architectures and proxies are lists, the first of 1 to {MAX_SCORED}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 31:
        raise SpecError(f"seed must be an integer from 0 to 2^31 - 1, not {seed!r:.40}")
    archs = [Architecture.from_json(one) for one in listed]
    root = default_root() if root is None else root
    root.mkdir(parents=True, exist_ok=True)
    with Lock(root / BOARD_LOCK, run_id="score", what=f"this board ({root})"):
        from edge_lts.proxies.model_based import check_names, scores

        check_names(names)
        for index, arch in enumerate(archs):
            event: dict[str, Any] = {"event": "score", "index": index, "arch_id": arch.arch_id, "error": None}
            try:
                event |= scores(arch, names, seed=seed)
            except (EvaluationError, MemoryError, RuntimeError) as exc:
                event |= {"scores": {}, "seconds": {}, "error": f"{type(exc).__name__}: {exc!s:.200}"}
            emit(event)
    return 0


def run(arguments: Any, emit: Emit) -> int:
    """From the agent's command line."""
    from edge_lts.verbs import own_command

    if arguments.verb == "score":
        return score(emit, sys.stdin.buffer, root=arguments.root)
    if arguments.worker:
        return worker(emit, arguments.job_dir, sys.stdin.fileno())
    return train(emit, arguments.job_dir, own_command(arguments.site), root=arguments.root)

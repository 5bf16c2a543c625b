"""What the agent's verbs do, except for moving and removing files (edge_lts.transfer).

Each takes `emit`, which sends one protocol event, and returns the exit code. None imports torch: what needs it is
started as another process.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import edge_lts
from edge_lts import device
from edge_lts.__main__ import error_event
from edge_lts.agent import Emit, MeasurerLike, Supervisor
from edge_lts.arch import Architecture
from edge_lts.errors import EdgeLtsError, SpecError
from edge_lts.frontier import latencies
from edge_lts.job import Identity, Lock, detach, is_locked, read_holder
from edge_lts.on_boot import Boot, remove
from edge_lts.records import Evaluation, Protocol, RunSpec
from edge_lts.runfolder import BOARD_LOCK, LOCK, LOG, RunFolder, now_utc
from edge_lts.stats import MIN_PROCESSES_PI95
from edge_lts.status import describe, is_alive

PROOF_TIMEOUT_S = 900.0  # importing torch takes 100 s on an emulated board
STDERR_TAIL_BYTES = 2000
MAX_REQUEST_BYTES = 4 << 20
ENERGY_OFTEN_FROM_S = 3600.0  # of budget; energy takes 20 s, so a shorter run takes each member's only once
_POLL_S = 0.05

# Runs in a process of its own, because a torch built for another processor ends it with SIGILL. argv: the site folder.
_PROOF = """
import json, sys, time
if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
begun = time.monotonic()
import torch
import_s = time.monotonic() - begun
with torch.inference_mode():
    x = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    rows = torch.softmax(x @ x.T, dim=-1).sum(dim=-1)
    is_right = bool(torch.allclose(rows, torch.ones(64), atol=1e-4))
print(json.dumps({"version": torch.__version__, "import_s": round(import_s, 3), "is_right": is_right,
                  "is_cuda_build": torch.version.cuda is not None}))
"""


def own_command(site: Path | None) -> list[str]:
    """The argv that runs this very agent again, from the zipapp or from a checkout, with nothing else on its path."""
    package = Path(edge_lts.__file__).absolute().parent
    prefix = [sys.executable, *(["-I"] if sys.flags.isolated else [])]
    if package.parent.is_file():
        prefix += [str(package.parent)]
    else:
        code = (
            f"import sys; sys.path.insert(0, {str(package.parent)!r}); "
            "from edge_lts.__main__ import main; sys.exit(main(sys.argv[1:]))"
        )
        prefix += ["-c", code]
    return prefix + ([] if site is None else ["--site", str(site)])


def probe(emit: Emit, *, site: Path | None, root: Path | None, with_torch: bool) -> int:
    data = device.probe().to_json()
    free = device.disk_free_bytes(Path.home() if root is None else root)
    emit({"event": "device", **data, "disk_free_bytes": free})
    if with_torch:
        emit(prove_torch(site))
    return 0


def doctor(emit: Emit, *, site: Path | None, root: Path | None) -> int:
    from edge_lts.checkup import checkup
    from edge_lts.tuning import left_behind

    root = default_root() if root is None else root
    findings = checkup(run_root=root, site=site, prove=lambda: prove_torch(site), left_tuned=lambda: left_behind(root))
    emit({"event": "findings", "findings": [finding.to_json() for finding in findings]})
    return 0


def prove_torch(site: Path | None, *, timeout_s: float = PROOF_TIMEOUT_S, proof: str = _PROOF) -> dict[str, Any]:
    """Import torch and multiply in a child process. `signal` is its number (4 is SIGILL) if one ended the child."""
    isolated = ["-I"] if sys.flags.isolated else []
    result: dict[str, Any] = {"event": "torch", "ok": False, "version": None, "import_s": None, "is_cuda_build": None}
    result.update(exit_status=None, signal=None, message="")
    try:
        done = subprocess.run(
            [sys.executable, *isolated, "-c", proof, "" if site is None else str(site)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {**result, "message": f"torch was not proven within {timeout_s:g} s"}
    except OSError as exc:
        return {**result, "message": f"cannot start {sys.executable}: {exc.strerror or exc}"}
    result["message"] = done.stderr[-STDERR_TAIL_BYTES:].decode("utf-8", "replace")
    if done.returncode < 0:
        return {**result, "signal": -done.returncode}
    result["exit_status"] = done.returncode
    try:
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return result
    is_right = found.pop("is_right", False) is True
    return {**result, **found, "ok": done.returncode == 0 and is_right}


def make_measurer(command: Sequence[str]) -> Callable[[RunSpec, int | None, IO[bytes]], MeasurerLike]:
    def make(spec: RunSpec, memory_limit_bytes: int | None, log: IO[bytes]) -> MeasurerLike:
        from edge_lts.measurer import Measurer

        return Measurer(
            command,
            spec.protocol,
            candidate_timeout_s=spec.candidate_timeout_s,
            memory_limit_bytes=memory_limit_bytes,
            log=log,
            is_emulated=spec.is_emulated,
            memory_headroom=spec.memory_headroom,
            meter=spec.meter,
            is_energy_searched="energy_j_per_token" in spec.objectives,
            energy_processes=MIN_PROCESSES_PI95 if spec.budget_s >= ENERGY_OFTEN_FROM_S else 1,
        )

    return make


def search(emit: Emit, run_dir: Path, command: Sequence[str], *, root: Path | None, is_detached: bool) -> int:
    folder = RunFolder(run_dir)
    folder.read_spec()  # what is wrong with it is said here, before a process is made
    folder.check_disk()
    if not is_detached:
        return Supervisor(folder, root=root, emit=emit, make_measurer=make_measurer(command)).run()

    def body(announce: Callable[[Mapping[str, Any]], None]) -> int:
        def emit_first(event: Mapping[str, Any]) -> None:
            if event["event"] == "started" or event.get("state") == "done":
                announce(event)

        try:
            return Supervisor(folder, root=root, emit=emit_first, make_measurer=make_measurer(command)).run()
        except EdgeLtsError as exc:
            announce(error_event(exc))
            sys.stderr.write(f"{now_utc()} {type(exc).__name__}: {exc}\n")
            return exc.exit_code
        except Exception as exc:
            announce(error_event(exc))
            raise

    message = detach(folder / LOG, body)
    emit(message)
    return int(message.get("exit_code", 0)) if message.get("event") == "error" else 0


def on_boot(emit: Emit, run_dir: Path, command: Sequence[str], *, root: Path | None, is_removing: bool) -> int:
    """Make (or remove) the entry that resumes a run at boot; `how` is systemd or cron. Raises OnBootError."""
    folder = RunFolder(run_dir)
    if is_removing:
        how = None
        remove(folder)
    else:
        folder.read_spec()
        where = [] if root is None else ["--root", str(root)]
        how = Boot().add(folder, [*command, "search", str(folder.path), *where])
    emit({"event": "on_boot", "run_id": folder.run_id, "how": how})
    return 0


def measure(emit: Emit, stdin: IO[bytes], command: Sequence[str], *, root: Path | None) -> int:
    """Measure one architecture in a fresh process. A candidate that fails is an outcome, not an error."""
    raw = stdin.read(MAX_REQUEST_BYTES)
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"the request is not JSON: {exc}") from exc
    known = {"architecture", "protocol", "candidate_timeout_s", "memory_headroom", "is_emulated", "meter"}
    if not isinstance(request, dict) or set(request) - known or "architecture" not in request:
        raise SpecError(f"a request is an object with {', '.join(sorted(known))}; only the architecture is required")
    architecture = Architecture.from_json(request["architecture"])
    spec = RunSpec(  # borrows the checks of a run's settings
        run_id="single",
        space={},
        budget_s=1.0,
        target="single",
        protocol=Protocol.from_json(request.get("protocol", {})),
        candidate_timeout_s=request.get("candidate_timeout_s", 600.0),
        memory_headroom=request.get("memory_headroom", 0.2),
        is_emulated=request.get("is_emulated") is True,
        meter=request.get("meter", "none"),
    )
    root = default_root() if root is None else root
    root.mkdir(parents=True, exist_ok=True)
    available = device.memory_available_bytes()
    limit = None if available is None else int(available * (1 - spec.memory_headroom))
    from edge_lts import placement
    from edge_lts.surroundings import restored_governors

    with Lock(root / BOARD_LOCK, run_id="measure", what=f"this board ({root})"):
        begun_s = time.monotonic()
        restored_governors(root)
        placed = placement.place(spec.protocol.threads)
        placement.apply(placed)
        rules = dataclasses.replace(spec.protocol, threads=placed.threads)
        measurer = make_measurer(command)(dataclasses.replace(spec, protocol=rules), limit, sys.stderr.buffer)
        try:
            emit({"event": "ready", **measurer.start()})
            outcome = measurer.measure(0, architecture, "single")
            if isinstance(outcome, Evaluation) and rules.threads > 1 and not spec.is_emulated:
                alone = measurer.measure(0, architecture, "one_thread", protocol=dataclasses.replace(rules, threads=1))
                found = latencies(alone) if isinstance(alone, Evaluation) else {}
                outcome.conditions["one_thread"] = {name: value.to_json() for name, value in found.items()}
        finally:
            measurer.close()
    spent_s = round(time.monotonic() - begun_s, 3)
    outcome = dataclasses.replace(outcome, purpose="single", spent_s=spent_s, measured_at=now_utc())
    emit({"event": "outcome", **outcome.to_json()})
    return 0


def default_root() -> Path:
    """Where edge-lts lives on a board (design §6)."""
    return Path.home() / ".local/share/edge-lts"


def stop(emit: Emit, run_dir: Path, *, timeout_s: float) -> int:
    """SIGTERM to the run's supervisor and wait until its lock is free. Raises StillRunningError if not in time."""
    folder = RunFolder(run_dir)
    if not folder.path.is_dir():
        raise SpecError(f"{folder.path} does not exist")
    remove(folder)
    was_alive = is_alive(folder)
    identity = Identity.from_json(read_holder(folder / LOCK)) if was_alive else None
    if identity is not None and identity.terminate():
        deadline = time.monotonic() + timeout_s
        while is_locked(folder / LOCK):
            if time.monotonic() >= deadline:
                raise StillRunningError(
                    f"run {folder.run_id} (pid {identity.pid}) has not ended within {timeout_s:g} s"
                )
            time.sleep(_POLL_S)
    emit({"event": "stopped", "was_alive": was_alive, **describe(folder), "signal": int(signal.SIGTERM)})
    return 0


class StillRunningError(EdgeLtsError):
    """A run did not end in time; it has been asked to and may still do so."""

    exit_code = 124

"""Make a board ready: probe it in one round trip, push only what is missing, install offline, prove torch, remember it.

Order of things, each a stage with its time: probe, fetch wheels (on this workstation), push, install, prove, remember.
Everything on the board lies in one directory of its own, mode 0700; no root is needed. An environment has its final
name only when it is whole and on disk, an agent only when its hash is right, so an interrupted deploy is repeated and
continued, never repaired.

Refuses boards that cannot do it (board_facts.py), each for its own reason. Knows nothing of searches.
"""

from __future__ import annotations

import datetime
import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts import __version__
from edge_lts_host import board_facts, onboard, wheelhouse
from edge_lts_host.agent_protocol import AgentReader
from edge_lts_host.board_facts import BoardFacts
from edge_lts_host.environment import DEFAULT_ROOT, Environment, Options, choose_environment, choose_target
from edge_lts_host.errors import (
    AgentProtocolError,
    CommandError,
    PreflightError,
    TransferError,
    TransportTimeoutError,
    last_line,
)
from edge_lts_host.hosts import HostEntry
from edge_lts_host.progress import Stages
from edge_lts_host.targets import Target
from edge_lts_host.wheelhouse import Wheel

if TYPE_CHECKING:
    from edge_lts_host.payload import Payload
    from edge_lts_host.transport.base import Transport

# Takes the first Python of 3.10 or newer; without one, the first at all tells how old it is.
PROBE_SCRIPT = """
root=$1; shift; first=
for p in "$@"; do
  command -v "$p" >/dev/null 2>&1 || continue
  [ -n "$first" ] || first=$p
  "$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null 2>/dev/null || continue
  exec "$p" -I - "$root"
done
[ -n "$first" ] || exit 127
exec "$first" -I - "$root"
"""
_PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10")
# The probe has looked at owners already; between the two anything may have happened.
MAKE_ROOT_SCRIPT = '''set -e; umask 077
for folder in "$1" "$1/agents" "$1/env" "$1/runs"; do
  mkdir -p -- "$folder"
  [ -O "$folder" ] || { echo "$folder belongs to somebody else" >&2; exit 77; }
  chmod 700 -- "$folder"
done
: >"$1/.edge-lts-root"'''
_PROBE_S = 120.0
_INSTALL_S = 3600.0
_PROVE_S = 900.0
_PUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a deploy did (or, dry, would do): `steps` in words, empty when there was nothing to do."""

    entry: HostEntry
    target: Target
    environment: Environment
    steps: tuple[str, ...]
    n_bytes_sent: int = 0
    times_s: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.entry.name,
            "destination": self.entry.destination,
            "target": self.target.name,
            "torch": self.environment.torch,
            "python": self.entry.python,
            "root": self.entry.root,
            "agent": posixpath.basename(self.entry.agent or ""),
            "steps": list(self.steps),
            "n_bytes_sent": self.n_bytes_sent,
            "times_s": {title: round(seconds, 3) for title, seconds in self.times_s.items()},
        }


def probe(transport: Transport, root: str = DEFAULT_ROOT, python: str | None = None) -> BoardFacts:
    """Ask the board what it is: one command. Raises PreflightError when it has no Python."""
    pythons = (python,) if python is not None else _PYTHONS
    argv = ["sh", "-c", PROBE_SCRIPT, "sh", root, *pythons]
    result = transport.run(argv, stdin=onboard.source("probe"), timeout_s=_PROBE_S)
    if result.exit_status == 127:
        raise board_facts.explain_no_python(transport.name, python)
    if result.exit_status != 0:
        raise CommandError(argv[:1], result.exit_status, result.stderr, f"{transport.name}: probing")
    return BoardFacts.from_json(transport.name, onboard.read_answer(transport.name, result.stdout))


class Deployment:
    """One board. `run` does it all; what it did is in the Outcome."""

    def __init__(
        self,
        transport: Transport,
        entry: HostEntry,
        payload: Payload,
        options: Options,
        stages: Stages,
        *,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
    ) -> None:
        self._transport = transport
        self._entry = entry
        self._payload = payload
        self._options = options
        self._stages = stages
        self._now = now
        self._n_bytes_sent = 0
        self._steps: list[str] = []

    def run(self) -> Outcome:
        options = self._options
        with self._stages.stage("probe"):
            facts = probe(self._transport, options.root, options.python)
        board_facts.check_userland(facts)
        target = choose_target(facts, options)
        board_facts.check_memory(facts, target.min_memory_bytes)
        environment = choose_environment(facts, target, options)
        needed = board_facts.RUN_BYTES if environment.is_there else board_facts.INSTALL_BYTES
        board_facts.check_root(facts, needed)
        has_agent = facts.agents.get(self._payload.name) == self._payload.sha256
        is_proved = self._is_proved(facts, environment)
        self._say_what_it_is(facts, target)
        entry = self._describe(facts, target, environment, is_proved=is_proved)
        if options.is_dry_run:
            return self._outcome(entry, target, environment, self._plan(environment, has_agent, is_proved))
        if not (environment.is_there and has_agent) or facts.root.get("mode") != 0o700:
            self._transport.check(["sh", "-c", MAKE_ROOT_SCRIPT, "sh", facts.root_path], timeout_s=_PROBE_S)
        if not environment.is_there:
            self._install(facts, environment)
        if not has_agent:
            with self._stages.stage("push agent"):
                path = posixpath.join(facts.root_path, "agents", self._payload.name)
                self._put(self._payload.data, path, "push agent")
            self._steps.append(f"pushed the agent {self._payload.name}")
        if not is_proved:
            with self._stages.stage("prove torch"):
                device, import_s = self._prove(entry, environment)
            extra = {**entry.extra, "proved": environment.proof_key, "proved_on": _board_key(facts)}
            extra["torch_import_s"] = import_s
            entry = replace(entry, device=device or entry.device, extra=extra)
            self._steps.append(f"proved torch {environment.torch}")
        if self._steps or not _is_same(entry, self._entry):
            from edge_lts_host.hosts import remember

            entry = replace(entry, deployed_at=self._now().strftime("%Y-%m-%dT%H:%M:%SZ"))
            remember(entry)
        return self._outcome(entry, target, environment, tuple(self._steps))

    # What to do -----------------------------------------------------------------------------------------------------

    def _is_proved(self, facts: BoardFacts, environment: Environment) -> bool:
        extra = self._entry.extra
        is_same = self._entry.python == facts.executable and self._entry.site == environment.site
        return (
            environment.is_there
            and is_same
            and extra.get("proved") == environment.proof_key
            and extra.get("proved_on") == _board_key(facts)
        )

    def _plan(self, environment: Environment, has_agent: bool, is_proved: bool) -> tuple[str, ...]:
        steps = []
        if not environment.is_there and environment.wheels is not None:
            size = environment.wheels.download_bytes / 1e6
            steps.append(f"push {size:.0f} MB of wheels and install torch {environment.torch}")
        elif not environment.is_there:
            steps.append(f"let the board fetch and install torch {environment.torch}")
        if not has_agent:
            steps.append(f"push the agent {self._payload.name}")
        if not is_proved:
            steps.append(f"prove torch {environment.torch}")
        return tuple(steps)

    def _say_what_it_is(self, facts: BoardFacts, target: Target) -> None:
        memory = "" if facts.memory_total_bytes is None else f", {facts.memory_total_bytes / 1e9:.1f} GB"
        what = facts.board_model or facts.cpu_model or facts.wheel_machine
        note = " (emulated: timings will not be performance)" if facts.is_emulated else ""
        python = f"Python {facts.python}, {facts.wheel_machine}, {facts.libc}{memory}"
        self._stages.note(f"{what}: target {target.name}{note}; {python}")

    def _describe(self, facts: BoardFacts, target: Target, environment: Environment, *, is_proved: bool) -> HostEntry:
        known = self._entry
        return replace(
            known,
            target=target.name,
            root=facts.root_path,
            python=facts.executable,
            site=environment.site,
            agent=posixpath.join(facts.root_path, "agents", self._payload.name),
            device=known.device if is_proved else {**facts.device_json(), "torch": environment.torch},
            extra={**known.extra, "edge_lts": __version__},
        )

    def _outcome(self, entry: HostEntry, target: Target, environment: Environment, steps: tuple[str, ...]) -> Outcome:
        return Outcome(
            entry=entry,
            target=target,
            environment=environment,
            steps=steps,
            n_bytes_sent=self._n_bytes_sent,
            times_s=dict(self._stages.times_s),
        )

    # Doing it -------------------------------------------------------------------------------------------------------

    def _put(self, source: Path | bytes, path: str, title: str | None = None) -> None:
        progress = None if title is None else self._stages.moved(title)
        try:
            result = self._transport.put(source, path, progress=progress, timeout_s=_PUT_S)
        except CommandError as exc:
            raise self._explained(exc, path) from exc
        self._n_bytes_sent += result.n_sent

    def _explained(self, exc: CommandError, path: str) -> Exception:
        """Tell a full disk by its free space: what the shell says about it depends on its language."""
        free = _free_bytes(self._transport, posixpath.dirname(path))
        if free is not None and free < (1 << 20):
            return disk_full(self._transport.name, posixpath.basename(path), free)
        return exc

    def _install(self, facts: BoardFacts, environment: Environment) -> None:
        order: dict[str, Any] = {
            "lock_id": environment.lock_id,
            "files": {},
            "install": [],
            "installer": None,
            "online": None,
        }
        wheels = environment.wheels
        if wheels is not None:
            paths = self._obtain(wheels.all_wheels, facts)
            self._push_wheels(paths, facts)
            order["files"] = {wheel.file: wheel.sha256 for wheel in wheels.all_wheels}
            order["install"] = [wheel.file for wheel in wheels.wheels]
            order["installer"] = wheels.installer.file
            order["manifest"] = wheelhouse.manifest(wheels)
        else:
            order["online"] = {"requirements": list(environment.requirements), "index": self._options.torch_index}
            order["manifest"] = {
                "schema_version": 1,
                "lock_id": environment.lock_id,
                "requirements": environment.requirements,
            }
            if facts.installed.get("pip") is None:
                installer = wheelhouse.any_installer()
                self._push_wheels(self._obtain((installer,), facts), facts)
                order["files"] = {installer.file: installer.sha256}
                order["installer"] = installer.file
        with self._stages.stage(f"install torch {environment.torch}"):
            self._install_on_board(facts, order)
        self._steps.append(f"installed torch {environment.torch}")

    def _obtain(self, wheels: tuple[Wheel, ...], facts: BoardFacts) -> dict[Wheel, Path]:
        with self._stages.stage("get wheels"):
            return wheelhouse.obtain(
                wheels,
                facts.python_tag,
                facts.wheel_machine,
                wheelhouse=self._options.wheelhouse,
                say=self._stages.note,
            )

    def _push_wheels(self, paths: Mapping[Wheel, Path], facts: BoardFacts) -> None:
        size = sum(wheel.size_bytes for wheel in paths)
        with self._stages.stage(f"push {size / 1e6:.0f} MB of wheels"):
            for wheel, path in paths.items():
                self._put(path, posixpath.join(facts.root_path, "env", "wheels.part", wheel.file), f"push {wheel.name}")

    def _install_on_board(self, facts: BoardFacts, order: Mapping[str, Any]) -> None:
        program = f"ORDER = {json.dumps(order)!r}\n".encode() + onboard.source("install")
        argv = [facts.executable, "-I", "-", facts.root_path]
        result = self._transport.run(argv, stdin=program, timeout_s=_INSTALL_S)
        where = self._transport.name
        if result.exit_status != 0:
            raise CommandError(argv, result.exit_status, result.stderr, f"{where}: installing")
        answer = onboard.read_answer(where, result.stdout)
        if answer.get("ok") is True:
            return
        message = last_line(str(answer.get("message", "")))
        kind = answer.get("kind")
        if kind == "disk":
            raise disk_full(where, "torch", _free_bytes(self._transport, facts.root_path))
        if kind == "hash":
            raise TransferError(where, message, "deploy again: what arrived whole is kept")
        hint = "is the board online?" if order["online"] is not None else "deploy again; if it stays, report it"
        raise PreflightError(f"{where}: pip could not install torch on the board: {message}", hint)

    def _prove(self, entry: HostEntry, environment: Environment) -> tuple[dict[str, Any] | None, Any]:
        """Import torch and compute with it, in a child on the board; the device, and the seconds of the import.

        Raises PreflightError when torch does not work.
        """
        from edge_lts_host.session import Place, Session

        session = Session(self._transport, Place.of(entry))
        argv = session.argv(["probe", "--torch", "--root", session.place.root])
        where = self._transport.name
        try:
            result = self._transport.run(argv, timeout_s=_PROVE_S)
        except TransportTimeoutError as exc:
            raise PreflightError(
                f"{where}: importing torch took longer than {_PROVE_S:.0f} s",
                "the board may be out of memory and swapping",
            ) from exc
        if result.exit_status in (132, 137):
            raise self._refusal({"exit_status": result.exit_status}, environment)
        reader = AgentReader([result.stdout], where)
        found = {event["event"]: event for event in reader}
        torch = found.get("torch")
        if torch is None:
            said = last_line(result.stderr) or reader.noise or f"status {result.exit_status}"
            raise AgentProtocolError(f"{where}: the agent could not say whether torch works: {said}")
        if torch.get("ok") is not True:
            raise self._refusal(torch, environment)
        if torch.get("is_cuda_build"):
            self._stages.note(f"torch {environment.torch} is a CUDA build; it works here, on the CPU")
        device = found.get("device")
        known = {key: value for key, value in (device or {}).items() if key not in ("event", "disk_free_bytes")}
        return known or None, torch.get("import_s")

    def _refusal(self, torch: Mapping[str, Any], environment: Environment) -> PreflightError:
        problem = board_facts.torch_problem(torch, environment.torch, is_ours=environment.wheels is not None)
        return PreflightError(f"{self._transport.name}: {problem.missing}", problem.remedy)


def disk_full(where: str, what: str, free_bytes: int | None) -> PreflightError:
    left = "" if free_bytes is None else f" ({free_bytes / 1e6:.0f} MB left)"
    return PreflightError(
        f"{where}: the board's disk is full{left}: {what} did not fit",
        f"free {board_facts.INSTALL_BYTES / 1e6:.0f} MB there and deploy again; what arrived is kept",
    )


def _free_bytes(transport: Transport, path: str) -> int | None:
    """Free bytes of the board's file system at `path`; None when that cannot be found out."""
    result = transport.run(["df", "-P", "-k", path], timeout_s=_PROBE_S)
    lines = result.stdout.decode("ascii", "replace").splitlines()
    words = lines[-1].split() if result.exit_status == 0 and len(lines) > 1 else []
    return int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None


def _board_key(facts: BoardFacts) -> str:
    """Changes when the disk was put into another board or the system replaced."""
    return f"{facts.board_model or facts.cpu_model or ''}|{facts.kernel}|{facts.python}"


def _is_same(one: HostEntry, other: HostEntry) -> bool:
    return replace(one, deployed_at=None) == replace(other, deployed_at=None)

"""One run on one device: start, status, pull, stop, resume. The same over SSH and on this machine.

The run is detached and the ledger is on the board: a link that breaks is a TransportError that says so, never a failed
run. Every call is one command of the agent (agent_protocol.py reads its answer); nothing is kept open between calls.
What a board sends reaches disk only through store.RunFolder, which refuses anything that contradicts bytes already
here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import posixpath
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.reservation import OWNER_VARIABLE
from edge_lts.runfolder import LEDGER
from edge_lts_host import locks
from edge_lts_host.agent_protocol import AgentReader
from edge_lts_host.errors import (
    AgentProtocolError,
    CommandError,
    HostError,
    PreflightError,
    StoreError,
    TransportError,
    last_line,
)
from edge_lts_host.hosts import LOCAL_HOST, HostEntry, how_to_deploy
from edge_lts_host.transport.serial_port import is_serial

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts.records import Protocol, RunSpec
    from edge_lts_host.payload import Payload
    from edge_lts_host.store import RunFolder
    from edge_lts_host.transport.base import Transport
    from edge_lts_host.transport.ssh_config import SshOptions

GOES_ON = "a run that was started there goes on on the board"
FINAL_STATES = ("done", "stopped", "failed", "interrupted", "unknown")
# An emulated board needs seconds to start Python and numpy.
QUICK_S = 120.0
START_S = 600.0
PROOF_S = 1200.0  # importing torch takes 100 s on an emulated board
PUT_S = 600.0
PULL_S = 3600.0
_PIECE_BYTES = 8 << 20
_NOT_STARTED = (1, 2, 126, 127)
_LOCKING_VERBS = ("search", "on-boot", "measure", "worker", "clean", "train", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an agent lives on a device: everything absolute; `site` None where torch belongs to `python` itself."""

    name: str
    root: str
    python: str
    site: str | None
    agent: str

    @classmethod
    def of(cls, entry: HostEntry, payload: Payload | None = None) -> Place:
        """Of a deployed host, with the agent of `payload` in place of the one deployed. Raises PreflightError."""
        if entry.root is None or entry.python is None or entry.agent is None:
            raise PreflightError(f"{entry.name} has not been deployed to", how_to_deploy(entry))
        agent = entry.agent if payload is None else posixpath.join(entry.root, "agents", payload.name)
        return cls(name=entry.name, root=entry.root, python=entry.python, site=entry.site, agent=agent)

    def run_dir(self, run_id: str) -> str:
        return posixpath.join(self.root, "runs", run_id)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("root", "python", "site", "agent")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a device says of itself: its runs; the records (owner, age_s, ...) of the run that holds its lock and of the
    person it is reserved for, None for nobody, or for an agent deployed before there was such a thing."""

    runs: list[dict[str, Any]]
    run_holder: dict[str, Any] | None
    reserved: dict[str, Any] | None


def local_place(payload: Payload) -> Place:
    """This machine. Raises PreflightError when its Python has no torch; does not import it."""
    from edge_lts_host.store import local_root

    if importlib.util.find_spec("torch") is None:
        raise PreflightError(f"{sys.executable} has no torch", "pip install 'edge-lts[local]'")
    root = local_root()
    return Place(
        name="local", root=str(root), python=sys.executable, site=None, agent=str(root / "agents" / payload.name)
    )


def open_transport(entry: HostEntry, options: SshOptions | None = None) -> Transport:
    """A link to `entry`: a process on this machine, its serial console, or SSH. Raises ConnectError."""
    if entry.is_local:
        from edge_lts_host.transport.local import LocalTransport

        return LocalTransport()
    if is_serial(entry.destination):
        from edge_lts_host.transport.serial_console import SerialTransport
        from edge_lts_host.transport.ssh_config import SshOptions

        options = options or SshOptions()
        return SerialTransport(
            entry.destination,
            prompt=options.prompt,
            is_interactive=options.is_interactive,
            login_s=options.connect_timeout_s,
        )
    from edge_lts_host.transport.ssh import SshTransport

    return SshTransport(entry.destination, options)


class Session:
    """Talks to the agent of one place. The caller owns the transport."""

    def __init__(self, transport: Transport, place: Place) -> None:
        self.transport = transport
        self.place = place

    def start(
        self, spec: RunSpec, payload: Payload, *, on_prepared: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Make the run folder on the device and start the search, detached; returns the event `started`.

        `on_prepared` is called when everything is in place but nothing runs yet. Raises LockedError when another run
        has the board.
        """
        self.push_agent(payload)
        data = json.dumps(spec.to_json(), indent=1).encode("ascii") + b"\n"
        self.transport.put(data, posixpath.join(self.place.run_dir(spec.run_id), "spec.json"), timeout_s=PUT_S)
        on_prepared()
        return self.launch(spec.run_id)

    def push_agent(self, payload: Payload) -> None:
        """Make sure that the agent is there, whole: one round trip when it is."""
        if posixpath.basename(self.place.agent) == payload.name:
            self.transport.put(payload.data, self.place.agent, timeout_s=PUT_S)

    def launch(self, run_id: str) -> dict[str, Any]:
        """Start or resume the search of a run folder that is on the device; `started`, or `finished` if it is over."""
        argv = ["search", self.place.run_dir(run_id), "--root", self.place.root, "--detach"]
        return self._last(argv, "started", "finished", timeout_s=START_S)

    def discard(self, run_id: str) -> None:
        """Remove the folder of a run that never began."""
        self.transport.run(["rm", "-r", "-f", "--", self.place.run_dir(run_id)], timeout_s=QUICK_S)

    def status(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the device says of each run, by id; one round trip for all."""
        events = self.call(["status", *(self.place.run_dir(run_id) for run_id in run_ids)], timeout_s=QUICK_S)
        return {str(event.get("run_id")): event for event in events if event["event"] == "status"}

    def survey(self) -> Survey:
        """Who has the device, and its runs that are not over or were the last; one round trip."""
        events = self.call(["status", self.place.root], timeout_s=QUICK_S)
        claims = next((event for event in events if event["event"] == "board"), {})
        runs = [event for event in events if event["event"] == "status" and event.get("path") != self.place.root]
        return Survey(runs=runs, run_holder=_record(claims.get("run")), reserved=_record(claims.get("reserved")))

    def stop(self, run_id: str, *, timeout_s: float) -> dict[str, Any]:
        """Ask the supervisor to end and wait for it; returns the event `stopped`."""
        argv = ["stop", self.place.run_dir(run_id), "--timeout", f"{timeout_s:g}"]
        return self._last(argv, "stopped", timeout_s=timeout_s + QUICK_S)

    def clean(self, *, keep_runs: bool, is_dry_run: bool) -> dict[str, Any]:
        """Sizes of what edge-lts has on the device, and its removal unless `is_dry_run`; the event `cleaned`."""
        flags = [*(["--keep-runs"] if keep_runs else []), *(["--dry-run"] if is_dry_run else [])]
        return self._last(["clean", self.place.root, *flags], "cleaned", timeout_s=START_S)

    def doctor(self) -> list[dict[str, Any]]:
        """What would spoil a run there: `code`, `severity` and `data` of each finding, worst first."""
        event = self._last(["doctor", "--root", self.place.root], "findings", timeout_s=PROOF_S)
        findings = event.get("findings")
        return [each for each in findings if isinstance(each, dict)] if isinstance(findings, list) else []

    def measure(
        self,
        architecture: Architecture,
        protocol: Protocol,
        *,
        timeout_s: float,
        memory_headroom: float = 0.2,
        is_emulated: bool = False,
        meter: str = "none",
    ) -> dict[str, Any]:
        """Measure one architecture in a fresh process; returns its ledger record."""
        request = {
            "architecture": architecture.to_json(),
            "protocol": protocol.to_json(),
            "candidate_timeout_s": timeout_s,
            "memory_headroom": memory_headroom,
            "is_emulated": is_emulated,
            "meter": meter,
        }
        argv = ["measure", "--root", self.place.root]
        event = self._last(argv, "outcome", timeout_s=timeout_s + START_S, stdin=json.dumps(request).encode("ascii"))
        return {key: value for key, value in event.items() if key != "event"}

    def pull(self, folder: RunFolder) -> dict[str, int]:
        """Copy what is new of a run into `folder`; returns the bytes that came, by file. Nothing to do on this machine.

        Goes on where the last pull ended, also while the run goes on, and keeps what arrived before a link broke.
        Raises StoreError when the device's files are not the continuation of those here.
        """
        remote = self.place.run_dir(folder.run_id)
        if self.place.name == "local" and Path(remote) == folder.path:
            return {}
        moved, is_whole = self._pull_once(folder, remote)
        if not is_whole:
            more, _ = self._pull_once(folder, remote)
            moved.update(more)
        return moved

    def _pull_once(self, folder: RunFolder, remote: str) -> tuple[dict[str, int], bool]:
        """One command; False when a log was forgotten here, to be pulled from its beginning."""
        offsets = folder.offsets()
        argv = self.argv(["pull", remote, "--offsets", json.dumps(offsets)])
        moved: dict[str, int] = {}
        is_whole = True
        with self._explained(), self.transport.stream(argv, timeout_s=PULL_S, idle_timeout_s=QUICK_S) as stream:
            reader = AgentReader(stream, self.transport.name)
            for event in reader:
                if event["event"] != "file":
                    continue
                name, offset, size = self._announced(event)
                asked = offsets.get(name, 0)
                if offset != asked or not self._continues(folder, name, offset, event):
                    if name == LEDGER or offset > asked:
                        raise self._other_run(folder, name)
                    # Logs are not forced to the board's disk: a power cut may take back what was pulled already.
                    (folder / name).unlink(missing_ok=True)
                    if offset:
                        is_whole = False
                        for _ in reader.read(size):
                            pass
                        continue
                moved[name] = size
                if name not in offsets:
                    folder.append_pulled(name, 0, b"".join(reader.read(size)))
                    continue
                for piece in _pieces(reader.read(size)):
                    offset = folder.append_pulled(name, offset, piece)
            self._check_end(argv, reader, stream.exit_status, stream.stderr)
        return moved, is_whole

    def _announced(self, event: Mapping[str, Any]) -> tuple[str, int, int]:
        from edge_lts_host.store import check_pulled

        name, offset, size = event.get("name"), event.get("offset"), event.get("size")
        if (
            not isinstance(name, str)
            or not isinstance(offset, int)
            or not isinstance(size, int)
            or min(offset, size) < 0
        ):
            raise AgentProtocolError(f"{self.transport.name}: the agent sent a file without name, offset and size")
        check_pulled(name, offset + size)
        return name, offset, size

    def _continues(self, folder: RunFolder, name: str, offset: int, event: Mapping[str, Any]) -> bool:
        """Whether the bytes before `offset` are the same there and here, as far as the agent hashed them."""
        n_bytes, expected = event.get("n_prefix_bytes"), event.get("sha256_prefix")
        if not offset or not isinstance(n_bytes, int) or not 0 < n_bytes <= offset:
            return True
        return sha256_before(folder / name, offset, n_bytes) == expected

    def _other_run(self, folder: RunFolder, name: str) -> StoreError:
        return StoreError(
            f"{folder / name}: the file on {self.transport.name} is no longer the one that was pulled before; move "
            f"{folder.path} away and pull again to have the board's"
        )

    # Commands of the agent --------------------------------------------------------------------------------------------

    def argv(self, words: Sequence[str]) -> list[str]:
        """The command line of one verb; those that take the board's lock are told who asks."""
        site = [] if self.place.site is None else ["--site", self.place.site]
        who = ["env", f"{OWNER_VARIABLE}={locks.owner()}"] if words[0] in _LOCKING_VERBS else []
        return [*who, self.place.python, "-I", self.place.agent, *site, *words]

    def call(self, words: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> list[dict[str, Any]]:
        """Run one verb to its end and return its events. Raises the agent's own error, or what went wrong around it."""
        argv = self.argv(words)
        with self._explained():
            result = self.transport.run(argv, stdin=stdin, timeout_s=timeout_s)
        reader = AgentReader([result.stdout], self.transport.name)
        events = list(reader)
        self._check_end(argv, reader, result.exit_status, result.stderr)
        return events

    def converse(self, words: Sequence[str], stdin: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Events of a verb that goes on reading its stdin (see Transport.stream); it ends when `stdin` does."""
        argv = self.argv(words)
        with self.transport.stream(argv, stdin=stdin) as stream:
            reader = AgentReader(stream, self.transport.name)
            yield from reader
            self._check_end(argv, reader, stream.exit_status, stream.stderr)

    def _last(self, words: Sequence[str], *kinds: str, timeout_s: float, stdin: bytes = b"") -> dict[str, Any]:
        found = [each for each in self.call(words, timeout_s=timeout_s, stdin=stdin) if each["event"] in kinds]
        if not found:
            raise AgentProtocolError(f"{self.transport.name}: the agent ended {words[0]} without saying {kinds[0]}")
        return found[-1]

    def _check_end(self, argv: Sequence[str], reader: AgentReader, status: int | None, stderr: bytes) -> None:
        if reader.has_hello and status == 0:
            return
        if not reader.has_hello and status in _NOT_STARTED:
            said = last_line(stderr) or reader.noise or f"status {status}"
            remedy = "" if self.place.name == "local" else "; deploy to it again"
            raise PreflightError(
                f"{self.transport.name}: the agent did not start: {said}", f"is it still there?{remedy}"
            )
        if not reader.has_hello and status == 0:
            raise AgentProtocolError(f"{self.transport.name}: the agent said nothing")
        raise CommandError(argv, -1 if status is None else status, stderr, self.transport.name)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to a broken link's message that it says nothing about the run."""
        try:
            yield
        except TransportError as exc:
            if self.place.name != "local":
                exc.remedy = f"{exc.remedy}; {GOES_ON}" if exc.remedy else GOES_ON
            raise


def _record(data: object) -> dict[str, Any] | None:
    return data if isinstance(data, dict) else None


def sha256_before(path: Path, offset: int, n_bytes: int) -> str:
    """SHA-256 of the `n_bytes` bytes before `offset` in a file here."""
    try:
        with path.open("rb") as file:
            file.seek(offset - n_bytes)
            return hashlib.sha256(file.read(n_bytes)).hexdigest()
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror or exc}") from exc


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of some megabytes: one durable write each. What came before an error is handed out, too:
    on a slow link a piece takes minutes."""
    held = bytearray()
    try:
        for chunk in chunks:
            held += chunk
            if len(held) >= _PIECE_BYTES:
                yield bytes(held)
                held.clear()
    except HostError:
        if held:
            yield bytes(held)
        raise
    if held:
        yield bytes(held)


def place_of_run(folder: RunFolder, environ_hosts: Mapping[str, HostEntry]) -> tuple[HostEntry, Place]:
    """Where a run of this workstation runs, from its host.json; the connection from what deploy remembers now.

    Raises StoreError when the folder came here by another way than `run`.
    """
    meta = folder.host_meta()
    if not meta:
        raise StoreError(
            f"{folder.path} does not say where it runs (no host.json); only report and compare work with it"
        )
    if meta.get("host") is None:
        entry = LOCAL_HOST
    else:
        known = environ_hosts.get(str(meta["host"]))
        entry = HostEntry(name=str(meta["host"]), destination=str(meta["destination"]), target=meta.get("target"))
        if known is not None and known.destination == entry.destination:
            entry = known
    try:
        place = Place(
            name="local" if entry.is_local else entry.name,
            root=str(meta["root"]),
            python=str(meta["python"]),
            site=None if meta.get("site") is None else str(meta["site"]),
            agent=str(meta["agent"]),
        )
    except KeyError as exc:
        raise StoreError(f"{folder.path}/host.json lacks {exc}; it was written by another edge-lts") from exc
    return entry, place

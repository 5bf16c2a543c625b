"""A shelf of boards for tests and benchmarks: many OpenSSH servers on loopback ports, each with a run of its own.

All are this machine; what is simulated is that there are many. Each has its own port, host key, data directory and run,
and counts the commands that it was asked to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_lts.records import RunSpec
from edge_lts_host.hosts import HostEntry, remember
from edge_lts_host.payload import build_payload
from edge_lts_host.session import Place
from edge_lts_host.store import RunFolder
from tests.integration.sshd import Sshd, make_key

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one command line, and the most that it took of this machine."""

    status: int
    stdout: str
    stderr: str
    took_s: float
    cpu_s: float
    peak_threads: int
    peak_memory_bytes: int


class Shelf:
    """`n` boards called board000, board001, ...; a context manager."""

    def __init__(self, folder: Path, n: int) -> None:
        self.inventory = folder / "lab.toml"
        self._folder = folder
        self.environ = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}",
            "XDG_STATE_HOME": str(folder / "state"),
            "EDGE_LTS_RUNS": str(folder / "workstation" / "runs"),
        }
        self.environ.pop("SSH_AUTH_SOCK", None)
        self._key = make_key(folder / "key")
        self._known_hosts = folder / "known_hosts"
        payload = build_payload()
        agent = folder / payload.name
        agent.write_bytes(payload.data)
        self.servers: dict[str, Sshd] = {}
        lines = []
        try:
            for number in range(n):
                name = f"board{number:03}"
                # A home of its own: what somebody made this machine's shells start with is no board's.
                server = Sshd(folder / name, "LogLevel VERBOSE\n", ("ed25519",), home=folder / name)
                server.authorized_keys.write_bytes(self._key.with_suffix(".pub").read_bytes())
                self.servers[name] = server
                lines.append(f'[devices.{name}]\nhost = "{server.destination}"\n')
                self._make_run(name, agent)
        except BaseException:
            self.stop()
            raise
        half = [f'"{name}"' for name in list(self.servers)[: n // 2]]
        self.inventory.write_text("".join(lines) + f"[groups]\nhalf = [{', '.join(half)}]\n")
        self._known_hosts.write_text("".join(server.known_hosts_line() for server in self.servers.values()))

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        for server in self.servers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.stop()

    def n_commands(self) -> dict[str, int]:
        """How many commands each board was asked to start so far."""
        return {name: server.log().count("Starting session: command") for name, server in self.servers.items()}

    def command(self, *words: str, poll_s: float = 0.02) -> Outcome:
        """Run one command line of edge-lts to its end, watching what it takes."""
        argv = [sys.executable, "-m", "edge_lts_host", *words]
        argv += ["--identity", str(self._key), "--known-hosts", str(self._known_hosts)]
        out, err = self._folder / "stdout", self._folder / "stderr"
        peak_threads = peak_bytes = 0
        with out.open("wb") as stdout, err.open("wb") as stderr:
            begun = time.perf_counter()
            process = subprocess.Popen(
                argv, env=self.environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self._folder
            )
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                n_threads, n_bytes = _takes(process.pid)
                peak_threads, peak_bytes = max(peak_threads, n_threads), max(peak_bytes, n_bytes)
                time.sleep(poll_s)
            took_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        return Outcome(
            status=process.returncode,
            stdout=out.read_text(),
            stderr=err.read_text(),
            took_s=took_s,
            cpu_s=ended[2].ru_utime + ended[2].ru_stime,
            peak_threads=peak_threads,
            peak_memory_bytes=peak_bytes,
        )

    def _make_run(self, name: str, agent: Path) -> None:
        server = self.servers[name]
        root = server.folder / "root"
        entry = HostEntry(
            name=name,
            destination=server.destination,
            target="arm64",
            root=str(root),
            python=sys.executable,
            agent=str(agent),
            deployed_at="2026-11-22T00:00:00Z",
        )
        remember(entry, self.environ)
        run_id = f"run-of-{name}"
        run = root / "runs" / run_id
        run.mkdir(parents=True)
        status = {"schema_version": 1, "run_id": run_id, "state": "stopped", "spent_s": 60.0, "budget_s": 3600.0}
        status |= {"n_measured": 7, "n_failed": 0, "n_frontier": 3}
        (run / "status.json").write_text(json.dumps(status))
        folder = RunFolder(Path(self.environ["EDGE_LTS_RUNS"]) / run_id)
        folder.create()
        folder.write_spec(RunSpec(run_id=run_id, space={"name": "tiny"}, budget_s=3600.0, target="arm64").to_json())
        folder.write_host_meta(
            {"host": name, "destination": entry.destination, "target": "arm64", **Place.of(entry).to_json()}
        )


def _takes(pid: int) -> tuple[int, int]:
    """(threads, most resident bytes ever) of a process; zeros when it is gone."""
    found = {"Threads": 0, "VmHWM": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0])
    return found["Threads"], found["VmHWM"] * 1024

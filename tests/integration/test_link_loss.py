"""Bad links between the workstation and a real sshd: what is noticed, what is tried again, and what is never lost.

The times of a real link are shortened: a heartbeat of 15 s, and so a dead peer noticed in 45 s, becomes one of half a
second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_lts.job import Lock
from edge_lts.records import RunSpec
from edge_lts_host import follow
from edge_lts_host.cli import main
from edge_lts_host.errors import ConnectError, ConnectionLostError, TransportError
from edge_lts_host.hosts import HostEntry
from edge_lts_host.payload import build_payload
from edge_lts_host.session import Place, Session
from edge_lts_host.store import RunFolder, runs_root
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from edge_lts_host.transport.ssh_link import paramiko
from tests.integration.sshd import Sshd, kill_tree, processes_with
from tests.proxy import Proxy

pytestmark = [pytest.mark.sshd, pytest.mark.usefixtures("leaks_nothing")]

HEARTBEAT_S = 0.5
RUN_ID = "run-over-a-bad-link"
LINE = json.dumps({"kind": "evaluation", "padding": "x" * 500}).encode() + b"\n"
Options = Callable[..., SshOptions]


class BadLink:
    """A run on a "board" behind a proxy, and how a workstation gets there."""

    def __init__(self, tmp_path: Path, sshd: Sshd, options: Options, proxy: Proxy) -> None:
        self.proxy = proxy
        self.sshd = sshd
        self.known_hosts = tmp_path / "behind_the_proxy"
        self.known_hosts.write_text(sshd.known_hosts_line(port=proxy.port))
        self.options = options(known_hosts_file=self.known_hosts, heartbeat_s=HEARTBEAT_S)
        root = tmp_path / "board"
        self.remote = root / "runs" / RUN_ID
        self.remote.mkdir(parents=True)
        payload = build_payload()
        agent = root / "agents" / payload.name
        agent.parent.mkdir()
        agent.write_bytes(payload.data)
        self.entry = HostEntry(
            name="board",
            destination=f"{sshd.user}@127.0.0.1:{proxy.port}",
            target="arm64",
            root=str(root),
            python=sys.executable,
            agent=str(agent),
            deployed_at="2026-11-22T00:00:00Z",
        )
        self.place = Place.of(self.entry)
        self.folder = RunFolder(runs_root() / RUN_ID)
        self.folder.create()
        spec = RunSpec(run_id=RUN_ID, space={"name": "tiny"}, budget_s=2.0, target="arm64")
        self.folder.write_spec(spec.to_json())
        self.folder.write_host_meta(
            {"host": "board", "destination": self.entry.destination, "target": "arm64", **self.place.to_json()}
        )

    def has_measured(self, n_lines: int, state: str = "done") -> bytes:
        """Let the board's run have a ledger of so many lines; the ledger."""
        ledger = LINE * n_lines
        (self.remote / "ledger.jsonl").write_bytes(ledger)
        status = {"schema_version": 1, "run_id": RUN_ID, "state": state, "spent_s": 1.0, "budget_s": 2.0}
        status |= {"n_measured": n_lines, "n_failed": 0, "n_frontier": 1}
        (self.remote / "status.json").write_text(json.dumps(status))
        return ledger

    def pulled(self) -> bytes:
        path = self.folder / "ledger.jsonl"
        return path.read_bytes() if path.exists() else b""

    def connect(self, **changes: Any) -> SshTransport:
        return SshTransport(self.entry.destination, replace(self.options, **changes))

    def command(self, *argv: str) -> int:
        return main([*argv, "--identity", str(self.sshd.client_key), "--known-hosts", str(self.known_hosts)])


@pytest.fixture
def link(
    tmp_path: Path, sshd: Sshd, ssh_options: Options, leaks_nothing: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BadLink]:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Proxy(sshd.port) as proxy:
        yield BadLink(tmp_path, sshd, ssh_options, proxy)
    for pid in processes_with(sshd.token):  # what runs behind a dead link ends by itself later
        kill_tree(pid)


# Noticing


def test_a_dead_peer_is_noticed_within_three_heartbeats_of_its_last_byte(link: BadLink) -> None:
    with link.connect() as transport, transport.stream(["sh", "-c", "echo up; exec sleep 600"]) as stream:
        assert next(stream.lines()) == b"up"
        link.proxy.stall()
        stalled = time.monotonic()
        with pytest.raises(ConnectionLostError, match="no longer answers"):
            next(stream)
        assert time.monotonic() - stalled <= 3 * HEARTBEAT_S + 0.5


def test_the_usual_heartbeat_notices_in_45_seconds() -> None:
    assert 3 * SshOptions().heartbeat_s == 45


def test_a_stall_shorter_than_that_is_survived(link: BadLink) -> None:
    with link.connect(heartbeat_s=2.0) as transport:
        link.proxy.stall()
        timer = threading.Timer(2.5, link.proxy.go_on)
        timer.start()
        assert transport.run(["echo", "still", "here"], timeout_s=30).stdout == b"still here\n"
        timer.join()


@pytest.mark.parametrize("is_upload", [False, True])
def test_a_slow_link_that_is_full_is_no_dead_peer(link: BadLink, tmp_path: Path, is_upload: bool) -> None:
    """The answer to a heartbeat waits behind a transfer of many heartbeats' length."""
    data = os.urandom(2_000_000)
    path = tmp_path / "file"
    with link.connect(heartbeat_s=0.3) as transport:
        link.proxy.rate_bytes_per_s = 500_000
        begun = time.monotonic()
        if is_upload:
            transport.put(data, str(path), timeout_s=60)
        else:
            path.write_bytes(data)
            assert transport.get(str(path), timeout_s=60) == data
        assert time.monotonic() - begun > 9 * 0.3
    assert path.read_bytes() == data


def test_a_link_that_breaks_while_logging_in_is_tried_again(link: BadLink, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    log_in = paramiko.Transport.auth_none

    def break_first(transport: paramiko.Transport, user: str) -> list[str]:
        if link.proxy.n_connections == 1:
            link.proxy.reset()
        return log_in(transport, user)

    monkeypatch.setattr(paramiko.Transport, "auth_none", break_first)
    with SshTransport(link.entry.destination, link.options, sleep=naps.append) as transport:
        assert transport.run(["echo", "in"], timeout_s=30).stdout == b"in\n"
    assert len(naps) == 1
    assert link.proxy.n_connections == 2


# Going on where it was


def follower(link: BadLink, said: list[str], **changes: Any) -> follow.Follower:
    job = follow.Job(folder=link.folder, entry=link.entry, place=link.place)
    return follow.Follower(job, link.options, said.append, poll_s=0.05, uniform=lambda: 0.0, **changes)


def test_watching_goes_on_after_resets_and_never_calls_the_run_failed(link: BadLink) -> None:
    link.has_measured(10, "stopped")
    said: list[str] = []
    seen: list[str] = []
    watching = follower(link, said)
    resets = 2

    def break_first(entry: HostEntry, options: SshOptions) -> SshTransport:
        nonlocal resets
        link.proxy.reset_after(6_000 if resets else 1e9)  # in the middle of the first answers
        resets -= bool(resets)
        return SshTransport(entry.destination, options)

    watching.open = break_first
    ledger = link.has_measured(3000)
    for status in watching.states(timeout_s=60):
        seen.append(status["state"])
    assert seen == ["done"]
    assert link.pulled() == ledger
    assert len([line for line in said if "the run goes on on the board" in line]) == 2
    assert not [line for line in said if "failed" in line.partition(":")[0]]


def test_a_stalled_watch_reconnects_and_goes_on(link: BadLink) -> None:
    said: list[tuple[float, str]] = []

    def say(text: str) -> None:
        said.append((time.monotonic(), text))
        link.has_measured(5)  # the run ended meanwhile
        link.proxy.go_on()

    watching = follower(link, [])
    watching.say = say
    states: list[str] = []
    stalled_at = 0.0
    with Lock(link.remote / "lock", run_id=RUN_ID, what="the run"):
        link.has_measured(3, "running")
        for status in watching.states(timeout_s=60):
            states.append(status["state"])
            if len(states) == 1:
                link.proxy.stall()
                stalled_at = time.monotonic()
    assert states == ["running", "done"]
    assert link.pulled() == LINE * 5
    assert len(said) == 1
    assert "no longer answers" in said[0][1]
    assert said[0][0] - stalled_at < 3 * HEARTBEAT_S + 1


def test_pull_goes_on_at_the_byte_where_each_reset_cut_it(link: BadLink, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = link.has_measured(4000)  # 2 MB
    link.proxy.reset_after(700_000)
    assert link.command("pull", RUN_ID) == 0, capsys.readouterr().err
    assert link.pulled() == ledger
    assert link.proxy.n_connections >= 3
    # All that the cuts cost is what was on its way: each byte crossed the link once, give or take one buffer a cut.
    assert link.proxy.n_bytes < 2 * len(ledger)
    assert "bytes came so far; again in" in capsys.readouterr().err


def test_pull_gives_up_on_a_link_that_brings_nothing_and_keeps_what_came(
    link: BadLink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = link.has_measured(4000)
    naps: list[float] = []

    def nap(self: object, seconds: float) -> None:
        naps.append(seconds)
        link.proxy.reset_after(4500)  # from now on a login may fit, and no ledger

    monkeypatch.setattr("edge_lts_host.fleet.Links.sleep", nap)
    monkeypatch.setattr("edge_lts_host.transport.ssh.time.sleep", lambda seconds: None)
    link.proxy.reset_after(700_000)
    assert link.command("pull", RUN_ID) == 4
    came = link.pulled()
    assert 0 < len(came) < len(ledger)
    assert ledger.startswith(came)
    assert len(naps) == 5
    assert all(later > earlier / 2 for earlier, later in pairwise(naps))
    assert "goes on on the board" in capsys.readouterr().err
    link.proxy.reset_after(1e9)
    assert link.command("pull", RUN_ID) == 0
    assert link.pulled() == ledger


def test_a_slow_and_distant_link_works_and_loses_nothing(link: BadLink) -> None:
    """300 ms each way and 32 kB/s: how long it takes is the link's business."""
    ledger = link.has_measured(100)
    link.proxy.delay_s, link.proxy.rate_bytes_per_s = 0.15, 32_000
    with link.connect(heartbeat_s=5.0) as transport:
        session = Session(transport, link.place)
        assert session.status([RUN_ID])[RUN_ID]["state"] == "done"
        session.pull(link.folder)
    assert link.pulled() == ledger


def test_a_link_that_never_was_is_reported_at_once(link: BadLink, capsys: pytest.CaptureFixture[str]) -> None:
    link.has_measured(1)
    link.proxy.stop()
    assert link.command("pull", RUN_ID, "--connect-timeout", "2s") == 4
    assert "is closed" in capsys.readouterr().err
    with pytest.raises(ConnectError) as caught:
        link.connect()
    assert isinstance(caught.value, TransportError)

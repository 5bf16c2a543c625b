"""A slow, distant and lossy link, made by netem inside a whole board, under the real times of the SSH transport.

netem shapes what the board sends: 300 ms later, one packet in twenty lost, 256 kbit/s. The other direction is the
emulator's own network. tests/integration/test_link_loss.py has what needs no kernel module: both directions, resets.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_lts_host import follow
from edge_lts_host.errors import ConnectionLostError, TransportError
from edge_lts_host.fleet import Links
from edge_lts_host.hosts import HostEntry
from edge_lts_host.payload import Payload, build_payload
from edge_lts_host.reconnect import insist
from edge_lts_host.session import Place, Session
from edge_lts_host.store import RunFolder
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.board.emulated import REPOSITORY
from tests.board.whole import WholeBoard, required_parts
from tests.proxy import Proxy

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800), pytest.mark.long]

ROOT = "/home/pi/.local/share/edge-lts"
RUN_ID = "run-over-a-bad-link"
RATE_BYTES_PER_S = 256_000 / 8
BAD = "delay 300ms loss 5% rate 256kbit limit 1000"
CUT = "loss 100%"
# A run that costs no torch: it holds its lock as a supervisor does, and writes a record twice a second until told.
RUN = """
import json, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from edge_lts.job import Lock
from edge_lts.status import StatusFile
run = pathlib.Path(sys.argv[2])
begun = time.monotonic()
with Lock(run / "lock", run_id=run.name, what="this run"):
    status = StatusFile(run / "status.json", run_id=run.name, budget_s=600.0, spent_s=lambda: time.monotonic() - begun)
    status.start_heartbeat()
    number = 0
    while not (run / "end").exists():
        number += 1
        with (run / "ledger.jsonl").open("ab") as ledger:
            ledger.write(json.dumps({"kind": "evaluation", "number": number, "padding": "x" * 200}).encode() + b"\\n")
        status.update(state="running", n_measured=number)
        time.sleep(0.5)
    status.stop_heartbeat()
    status.update(state="done")
"""


class Link:
    """The board, and how to spoil and mend what it sends."""

    def __init__(self, board: WholeBoard) -> None:
        self.board = board
        self.interface = board.ssh("ls /sys/class/net | grep -v lo").stdout.split()[0]
        board.ssh("sudo modprobe sch_netem")
        self.payload: Payload = build_payload()
        self.entry = HostEntry(
            name="board",
            destination=board.destination,
            target="emulated-arm64",
            root=ROOT,
            python="/usr/bin/python3",
            agent=f"{ROOT}/agents/{self.payload.name}",
            deployed_at="2026-11-22T00:00:00Z",
        )
        self.place = Place.of(self.entry)

    def shape(self, netem: str) -> None:
        self.board.ssh(f"sudo tc qdisc replace dev {self.interface} root netem {netem}")

    def cut_for(self, seconds: float) -> None:
        """Nothing leaves the board from two seconds on, for so long; it mends itself, as nobody can log in."""
        change = f"tc qdisc replace dev {self.interface} root netem"
        script = f"sleep 2; {change} {CUT}; sleep {seconds:g}; {change} {BAD}"
        self.board.ssh(f"sudo setsid sh -c '{script}' </dev/null >/dev/null 2>&1 &")

    def mend(self) -> None:
        self.board.ssh(f"sudo tc qdisc del dev {self.interface} root", check=False)

    def options(self, port: int | None = None) -> SshOptions:
        """As on the command line: the times are those of real life."""
        known_hosts = self.board.known_hosts
        if port is not None:
            line = known_hosts.read_text(encoding="ascii").replace(f":{self.board.port} ", f":{port} ")
            known_hosts = self.board.directory / "known_hosts_of_the_proxy"
            known_hosts.write_text(line, encoding="ascii")
        return SshOptions(
            identity_files=(self.board.identity_file,),
            known_hosts_file=known_hosts,
            strict_host_key_checking="yes",
        )

    def connect(self) -> SshTransport:
        return SshTransport(self.entry.destination, self.options())


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with WholeBoard(required_parts(), memory_bytes=1 << 30) as board:
        link = Link(board)
        with link.connect() as transport:
            Session(transport, link.place).push_agent(link.payload)
        yield link


@pytest.fixture
def bad_link(link: Link) -> Iterator[Link]:
    link.shape(BAD)
    yield link
    link.mend()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / RUN_ID)
    folder.create()
    return folder


def make_ledger(link: Link, n_lines: int) -> bytes:
    """A run that is over, with a ledger of so many records of 500 bytes."""
    link.board.ssh(f"rm -rf {ROOT}/runs && mkdir -p {ROOT}/runs/{RUN_ID}")
    line = json.dumps({"kind": "evaluation", "padding": "x" * 465}).encode() + b"\n"
    status = {"schema_version": 1, "run_id": RUN_ID, "state": "done", "spent_s": 1.0, "budget_s": 2.0}
    status |= {"n_measured": n_lines, "n_failed": 0, "n_frontier": 1}
    with link.connect() as transport:
        run = f"{ROOT}/runs/{RUN_ID}"
        transport.put(line * n_lines, f"{run}/ledger.jsonl", timeout_s=600)
        transport.put(json.dumps(status).encode(), f"{run}/status.json", timeout_s=600)
    return line * n_lines


def timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def test_the_agent_goes_over_and_a_ledger_comes_back_whole(bad_link: Link, folder: RunFolder) -> None:
    data = os.urandom(400_000)
    with bad_link.connect() as transport:
        # Two round trips and what the board needs for it: the link is what it is said to be.
        assert timed(lambda: transport.check(["true"], timeout_s=60)) > 0.3
        assert transport.put(data, "incoming", timeout_s=600).n_sent == len(data)
        assert transport.put(data, "incoming", timeout_s=600).is_skipped
    ledger = make_ledger(bad_link, 800)
    with bad_link.connect() as transport:
        session = Session(transport, bad_link.place)
        assert session.status([RUN_ID])[RUN_ID]["n_measured"] == 800
        took_s = timed(lambda: session.pull(folder))
    assert (folder / "ledger.jsonl").read_bytes() == ledger
    assert took_s > 0.9 * len(ledger) / RATE_BYTES_PER_S


def test_a_pull_that_is_reset_goes_on_where_it_was(bad_link: Link, folder: RunFolder) -> None:
    ledger = make_ledger(bad_link, 600)
    said: list[str] = []
    with Proxy(bad_link.board.port) as proxy, Links() as links:
        options = bad_link.options(proxy.port)
        destination = f"{bad_link.board.user}@127.0.0.1:{proxy.port}"

        def pull() -> None:
            with links.add(SshTransport(destination, options)) as transport:
                Session(transport, bad_link.place).pull(folder)

        proxy.reset_after(130_000)
        insist(
            pull,
            n_bytes_here=lambda: sum(folder.offsets().values()),
            say=said.append,
            sleep=lambda seconds: time.sleep(min(1, seconds)),
        )
        assert (folder / "ledger.jsonl").read_bytes() == ledger
        assert len(said) >= 2
        assert proxy.n_bytes < 2 * len(ledger)


def test_a_dead_board_is_noticed_in_45_seconds_and_watched_on_when_it_is_back(
    bad_link: Link, folder: RunFolder, tmp_path: Path
) -> None:
    board = bad_link.board
    run = f"{ROOT}/runs/{RUN_ID}"
    script = tmp_path / "pretended_run.py"
    script.write_text(RUN)
    board.ssh(f"rm -rf {ROOT}/runs && mkdir -p {run}")
    sources = tmp_path / "sources"
    shutil.copytree(REPOSITORY / "edge_lts", sources / "edge_lts", ignore=shutil.ignore_patterns("__pycache__"))
    board.copy_to_board(script, sources)
    board.ssh(f"setsid python3 {script.name} sources {run} </dev/null >log 2>&1 &")
    board.ssh(f"timeout 60 sh -c 'until [ -s {run}/status.json ]; do sleep 0.2; done' || {{ cat log >&2; exit 1; }}")
    lost: list[tuple[float, str]] = []
    opened: list[SshTransport] = []

    def connect(entry: HostEntry, options: SshOptions) -> SshTransport:
        opened.append(SshTransport(entry.destination, options))
        return opened[-1]

    watching = follow.Follower(
        follow.Job(folder=folder, entry=bad_link.entry, place=bad_link.place),
        bad_link.options(),
        lambda text: lost.append((time.monotonic(), text)),
        open=connect,
    )
    states: list[str] = []
    n_before = 0
    cut_at = float("inf")
    ender: threading.Timer | None = None
    for status in watching.states(timeout_s=900):
        states.append(status["state"])
        if len(states) == 5:
            bad_link.cut_for(70)
            cut_at = time.monotonic() + 2
            n_before = status["n_measured"]
        elif len(states) > 5 and time.monotonic() > cut_at + 70 and ender is None:
            ender = threading.Timer(0, lambda: board.ssh(f"touch {run}/end"))
            ender.start()
    assert ender is not None
    ender.join()
    assert set(states) == {"running", "done"}
    assert states[-1] == "done"
    noticed_at, first = lost[0]
    assert 45 <= noticed_at - opened[0].heard_s < 50
    assert "no longer answers" in first
    assert "the run goes on on the board" in first
    there = board.ssh(f"cat {run}/ledger.jsonl", timeout_s=300).stdout.encode()
    assert (folder / "ledger.jsonl").read_bytes() == there
    numbers = [json.loads(record)["number"] for record in there.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > n_before + 60  # it did go on meanwhile


def test_a_call_over_a_cut_link_ends_and_the_next_connection_works(bad_link: Link) -> None:
    with bad_link.connect() as transport:
        bad_link.cut_for(55)
        time.sleep(4)
        with pytest.raises(ConnectionLostError):
            transport.run(["sleep", "600"], timeout_s=600)
    deadline = time.monotonic() + 120
    while True:
        try:
            with bad_link.connect() as again:
                assert again.run(["echo", "back"], timeout_s=60).stdout == b"back\n"
            return
        except TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)

"""What a hostile board or network would try, against the command line and real servers (docs/security.md)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import store
from edge_lts_host.cli import main
from edge_lts_host.errors import ConnectError
from edge_lts_host.hosts import HostEntry, remember
from edge_lts_host.payload import Payload
from edge_lts_host.store import RunFolder
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.fake_agent import device_info
from tests.integration.sshd import Sshd, make_key
from tests.integration.test_ssh_password import _asked, doorman
from tests.unit.host.sample_runs import write_run

__all__ = ["doorman"]

pytestmark = pytest.mark.sshd

RUN_ID = "20261122-101530-rpi5-ab12"
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x00|`<script>"
# An agent that says whatever may hurt; %s is EVIL. Verbs as the real one has them.
AGENT = """
import json, sys
EVIL = %r
words = [word for word in sys.argv[1:] if not word.startswith("-")]
verb = words[0]
def say(**event):
    sys.stdout.write(json.dumps(event) + "\\n")
sys.stdout.write("motd " + EVIL.replace("\\r", "") + "\\n")
say(event="hello", protocol=1, verb=verb, agent=EVIL)
status = dict(event="status", run_id=%r, state="running", message=EVIL, spent_s=1e300, budget_s=5, n_measured=-3,
    n_failed=EVIL, n_frontier=[EVIL], reasons=[EVIL], is_alive=EVIL, updated_at=EVIL, path="/etc/passwd", sizes=EVIL)
if verb in ("status", "stop"):
    say(**status)
    say(**{**status, "event": "stopped", "state": EVIL, "was_alive": True})
    say(event="board", root=EVIL, run=EVIL, lock=EVIL, holder=EVIL, owner=EVIL)
elif verb == "doctor":
    say(event="findings", findings=[{"code": EVIL, "severity": EVIL, "data": {EVIL: EVIL}}, EVIL])
elif verb == "clean":
    say(event="cleaned", root=EVIL, sizes={EVIL: 5}, removed=[EVIL], is_dry_run=False)
elif verb == "pull":
    log = ("log " + EVIL + "\\n").encode()
    say(event="file", name="log.txt", offset=0, size=len(log))
    sys.stdout.flush(); sys.stdout.buffer.write(log); sys.stdout.flush()
    event = json.dumps({"event": EVIL, "time": EVIL, "spent_s": EVIL, EVIL: EVIL}).encode() + b"\\n"
    say(event="file", name="events.jsonl", offset=0, size=len(event))
    sys.stdout.flush(); sys.stdout.buffer.write(event); sys.stdout.flush()
    say(event="file", name="../" * 9 + "tmp/" + EVIL, offset=0, size=3)
elif verb == "search":
    say(event="error", type="SpecError", message=EVIL, exit_code=7)
sys.stderr.write(EVIL)
sys.exit(0)
"""


def is_safe(text: str) -> bool:
    """No character may move the cursor or mean something to a terminal; `watch` may begin its own line anew."""
    return all(character in "\n\t" or character.isprintable() for character in text.replace("\r\x1b[K", ""))


@pytest.fixture
def hostile(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run on a board, reached through the real sshd, whose agent is AGENT."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "EDGE_LTS_RUNS"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))
    program = (AGENT % (EVIL, RUN_ID)).encode()
    payload = Payload(data=program, sha256=hashlib.sha256(program).hexdigest())
    monkeypatch.setattr("edge_lts_host.payload.build_payload", lambda *asked: payload)
    agent = tmp_path / "root" / "agents" / payload.name
    agent.parent.mkdir(parents=True)
    agent.write_bytes(program)
    place = {"root": str(tmp_path / "root"), "python": sys.executable, "site": None, "agent": str(agent)}
    device = {"model": EVIL, "torch": EVIL, "kernel": EVIL}
    entry = HostEntry(name="pi", destination=sshd.destination, target="rpi5", device=device, deployed_at=EVIL, **place)
    remember(entry)
    folder = RunFolder(write_run(store.runs_root(), RUN_ID, state="running"))
    run_dir = {"host": "pi", "destination": sshd.destination, "target": "rpi5", "run_dir": "/x/runs/" + RUN_ID}
    folder.write_host_meta({**run_dir, **place})
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "status -o json",
        "pull",
        "logs",
        "stop",
        "resume",
        "doctor --host pi",
        "devices list",
        "devices list --locks",
        "clean --host pi --yes",
        "run --host pi --space demo --budget 1m",
    ],
)
def test_what_a_hostile_board_says_reaches_no_terminal_and_no_other_file(
    hostile: RunFolder,
    sshd: Sshd,
    ssh_options: Callable[..., SshOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: str,
) -> None:
    verb, *more = words.split()
    run = [RUN_ID] if verb in ("status", "pull", "logs", "stop", "resume") else []
    known_hosts = tmp_path / "trusted"
    known_hosts.write_text(sshd.known_hosts_line())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    argv = [verb, *more, *run, "--identity", str(sshd.client_key), "--known-hosts", str(known_hosts)]
    status = main(argv)
    out, err = capsys.readouterr()
    assert is_safe(out), repr(out)
    assert is_safe(err), repr(err)
    assert "Traceback" not in err
    assert "internal error" not in err, err
    assert status in (0, 1, 2, 3, 5, 7)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    ours = {hostile.path, tmp_path / "home" / "xdg_state_home" / "edge-lts"}
    assert all(path.parent in ours or tmp_path / "root" in path.parents for path in new), new
    assert {path.name for path in new if path.parent == hostile.path} <= {"log.txt", "events.jsonl"}


@pytest.mark.parametrize("strictness", [None, "accept-new", "no"])
@pytest.mark.parametrize("said", ["ask", "no"])
def test_a_jump_host_with_another_key_is_never_passed(
    sshd: Sshd, ssh_options: Callable[..., SshOptions], tmp_path: Path, strictness: Any, said: str
) -> None:
    """Also where ssh_config or the command line says `no`, with which OpenSSH itself would go on."""
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    known_hosts = tmp_path / "jump_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n")
    before = known_hosts.read_bytes()
    config = tmp_path / "jump_config"
    config.write_text(
        f"Host *\n  GlobalKnownHostsFile /dev/null\n  IdentityFile {sshd.client_key}\n  Port {sshd.port}\n"
        f"  User {sshd.user}\n  StrictHostKeyChecking {said}\n"
        "Host hop\n  HostName 127.0.0.1\nHost behind\n  HostName 127.0.0.1\n  HostKeyAlias behind\n  ProxyJump hop\n"
    )
    options = ssh_options(config_file=config, known_hosts_file=known_hosts, strict_host_key_checking=strictness)
    with pytest.raises(ConnectError, match=r"jump host failed: .*[Hh]ost key"):
        SshTransport("behind", options, sleep=lambda s: None)
    assert known_hosts.read_bytes() == before


def test_a_password_is_in_no_argv_and_in_no_log(
    doorman: Callable[[str], SshOptions], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options, asked = _asked(doorman("password"), "hunter2", "secret")
    with SshTransport("pi@127.0.0.1", options):
        argvs = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_readable(path)]
        assert len(asked) == 2
        assert not any(b"hunter2" in argv for argv in argvs)
    assert "hunter2" not in caplog.text
    assert "'secret'" not in caplog.text


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_what_is_remembered_of_hosts_is_private_and_holds_no_secret(hostile: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "home" / "xdg_state_home" / "edge-lts" / "hosts.json"
    assert path.stat().st_mode & 0o777 == 0o600
    entry = json.loads(path.read_text())["hosts"]["pi"]
    assert set(entry) == {
        "name", "destination", "target", "root", "python", "site", "agent", "device", "deployed_at", "tags", "extra",
    }  # fmt: skip


def listening() -> set[str]:
    """Local addresses of this process's listening TCP sockets, as /proc writes them: 0100007F is 127.0.0.1."""
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    own = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {words[1] for words in lines if words[3] == "0A" and words[9] in own}


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_the_queue_of_a_pool_takes_tasks_from_nobody_else() -> None:
    """dask unpickles what a scheduler or worker is sent: they may listen in this process only."""
    pytest.importorskip("distributed")
    from edge_lts_host.pool.crew import Crew

    before = listening()
    crew = Crew([], timeout_s=5.0)
    crew._infos = {"board": device_info()}
    crew._begin()
    try:
        addresses = [crew._cluster.scheduler_address, *(worker.address for worker in crew._workers.values())]
        assert len(addresses) == 2
        assert all(address.startswith("inproc://") for address in addresses)
        pages = listening() - before
        assert pages, "the pages of scheduler and worker, which take no tasks"
        assert {page.partition(":")[0] for page in pages} == {"0100007F"}
    finally:
        crew.close()

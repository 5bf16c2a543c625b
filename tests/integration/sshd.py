"""A real OpenSSH server for tests: 127.0.0.1, a free port, its own keys, nothing outside its folder but /run/sshd.

Also what the leak checks need: every process started through the server carries a token in its environment.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import require

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
TOKEN_NAME = "EDGE_LTS_TEST_TOKEN"


def require_sshd() -> None:
    """Skip, or fail under EDGE_LTS_REQUIRE=sshd, unless a server can be started here."""
    require("sshd", SSHD and shutil.which("ssh-keygen"), "sshd or ssh-keygen is not installed (apt: openssh-server)")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new key pair, PATH and PATH.pub."""
    size = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "test", "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


class Sshd:
    """A running server. `extra` is put in front of its sshd_config, so that it wins."""

    def __init__(
        self,
        folder: Path,
        extra: str = "",
        host_key_kinds: tuple[str, ...] = ("ed25519", "rsa"),
        *,
        home: Path | None = None,
    ) -> None:
        self.folder = folder
        self.token = secrets.token_hex(12)
        self.user = getpass.getuser()
        folder.mkdir(parents=True, exist_ok=True)
        self.client_key = make_key(folder / "client_key")
        self.authorized_keys = folder / "authorized_keys"
        self.authorized_keys.write_bytes((folder / "client_key.pub").read_bytes())
        self.host_keys = {kind: make_key(folder / f"host_{kind}", kind) for kind in host_key_kinds}
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # privilege separation; made by the unit file elsewhere
        self._extra = extra
        self._home = "" if home is None else f" HOME={home}"
        for _ in range(5):  # somebody else may take the port first
            self.port = free_port()
            if self._start():
                return
        raise RuntimeError(f"sshd does not start: {self.log()}")

    @property
    def destination(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    def known_hosts_line(self, kind: str = "ed25519", port: int | None = None) -> str:
        """What stands in known_hosts about this server."""
        words = self.host_keys[kind].with_suffix(".pub").read_text().split()
        return f"[127.0.0.1]:{port or self.port} {words[0]} {words[1]}\n"

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def connections(self) -> set[int]:
        """Process ids of the servers of single connections."""
        return set(_children(self._process.pid))

    def stop(self) -> None:
        for pid in self.connections():
            kill_tree(pid)
        self._process.terminate()
        self._process.wait(10)

    def _start(self) -> bool:
        config = self.folder / "sshd_config"
        lines = [
            self._extra,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            *(f"HostKey {path}" for path in self.host_keys.values()),
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"SetEnv {TOKEN_NAME}={self.token}{self._home}",
        ]
        config.write_text("\n".join(lines) + "\n")
        assert SSHD is not None
        with (self.folder / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        for _ in range(500):
            if self._process.poll() is not None:
                return False
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.01)
        self.stop()
        return False


def processes_with(token: str) -> set[int]:
    """Living processes whose environment holds `token`, zombies left out."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if token.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def kill_tree(pid: int) -> None:
    """SIGKILL `pid` and all that descends from it."""
    pids = [pid]
    for parent in pids:
        pids += _children(parent)
    for victim in pids:
        try:
            os.kill(victim, 9)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Poll `condition`; whether it came true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


@contextmanager
def no_leaks(*tokens: str) -> Iterator[None]:
    """Fail when the block leaves threads, children, descriptors or, by `tokens`, processes on the far side behind."""
    threads, children, n_files = set(threading.enumerate()), _children(os.getpid()), _n_open_files()
    yield
    wait_until(lambda: not set(threading.enumerate()) - threads, 5)
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not left, f"threads left behind: {left}"
    wait_until(lambda: not set(_children(os.getpid())) - set(children), 5)
    assert not set(_children(os.getpid())) - set(children), "child processes left behind"
    wait_until(lambda: _n_open_files() <= n_files, 2)
    assert _n_open_files() <= n_files, f"file descriptors left behind: {_n_open_files() - n_files}"
    for token in tokens:
        wait_until(lambda token=token: not processes_with(token), 5)  # type: ignore[misc]
        assert not processes_with(token), "processes left behind on the far side"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:
            continue
    return found


def _n_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))

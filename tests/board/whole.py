"""A whole arm64 board without hardware: Debian's own kernel booted by qemu-system-aarch64, with systemd and a console.

What `tests.board.emulated` cannot have, because its boards share this machine's kernel: swap of its own (also on
zram), a boot that takes time, memory that really runs out, a serial console. `scripts/arm64_board.sh` builds what is
booted. Pulling the plug is SIGKILL for the emulator: what the board had not written to its disk is lost.

It reaches nothing (qemu's `restrict=on`); this machine reaches its SSH server at a loopback port.

Deploying to such a board takes ten minutes, so `deployed_board` hands out copies of one that was deployed to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from edge_lts_host import wheelhouse
from tests.board.emulated import REPOSITORY, SEARCH_PATH, USER, BoardError, ssh_options
from tests.support import require

BOOT_TIMEOUT_S = 240
DEPLOY_TIMEOUT_S = 3600
PYTHON = "3.11"  # Debian 12's
TARGET = "emulated-arm64"  # this kernel does not know that it is emulated
MEMORY_BYTES = 3 << 30
COMMANDS = ("qemu-system-aarch64", "debootstrap", "cpio", "mkfs.ext4", "ssh")


def missing_prerequisite() -> str | None:
    """Why there can be no whole board here, or None."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        return "a whole board needs Linux"
    if os.getuid() != 0:
        return "building a whole board needs root"
    missing = [command for command in COMMANDS if shutil.which(command, path=SEARCH_PATH) is None]
    return f"not installed: {', '.join(missing)} (scripts/system_packages.sh)" if missing else None


def build_board() -> Path:
    """The folder with kernel, initrd and disk; minutes when it is built, an instant afterwards."""
    script = REPOSITORY / "scripts" / "arm64_board.sh"
    environ = {**os.environ, "PATH": SEARCH_PATH}
    done = subprocess.run([script], capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise BoardError(f"{script.name} failed: {done.stderr.strip()[-2000:]}")
    return Path(done.stdout.strip())


def required_parts() -> Path:
    """`build_board` for a test: skips it, or fails it in CI, where there can be no whole board."""
    missing = missing_prerequisite()
    require("arm64", missing is None, str(missing))
    try:
        return build_board()
    except BoardError as error:
        require("arm64", False, str(error))
        raise


class WholeBoard:
    """A booted board; a context manager. Its disk is a copy, kept until the end: `reboot` finds what was written."""

    def __init__(
        self, parts: Path, *, memory_bytes: int = MEMORY_BYTES, cpu: str = "cortex-a72", disk: Path | None = None
    ) -> None:
        """`disk` is copied instead of the fresh one: that of a board which was deployed to before."""
        self._parts, self._memory_bytes, self.cpu = parts, memory_bytes, cpu
        self._original = disk or parts / "disk.img"
        self.user, self.address, self.port = USER, "127.0.0.1", 0
        boards = parts.parent / "boards"
        boards.mkdir(exist_ok=True)
        _sweep(boards)
        self.directory = Path(tempfile.mkdtemp(prefix=f"whole-{os.getpid()}-", dir=boards))
        self.disk = self.directory / "disk.img"
        self.identity_file = self.directory / "identity"
        self.known_hosts = self.directory / "known_hosts"
        self.console = ""  # the pseudo-terminal that its serial console is, while it is on
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WholeBoard:
        try:
            subprocess.run(["cp", "--sparse=always", self._original, self.disk], check=True)
            shutil.copy(self._parts / "identity", self.identity_file)
            self.identity_file.chmod(0o600)
            self.power_on()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.power_off()
        shutil.rmtree(self.directory, ignore_errors=True)

    def power_on(self, *, wait: bool = True) -> None:
        """Boot; returns when SSH answers, after 20 to 60 s, unless `wait` is false."""
        if self._qemu is not None:
            raise BoardError("the board is already on")
        self.port = self.port or _free_port()
        host_key = (self._parts / "known_host_key.pub").read_text(encoding="ascii")
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {host_key}", encoding="ascii")
        log = self.directory / "qemu.log"
        with log.open("wb") as output:
            self._qemu = subprocess.Popen(
                [
                    "qemu-system-aarch64", "-M", "virt", "-cpu", self.cpu, "-smp", "2",
                    "-m", str(self._memory_bytes >> 20), "-display", "none", "-monitor", "none",
                    "-kernel", self._parts / "vmlinuz", "-initrd", self._parts / "initrd.img",
                    "-append", "console=ttyAMA0 quiet psi=1",
                    "-drive", f"file={self.disk},if=none,format=raw,id=disk",
                    "-device", "virtio-blk-device,drive=disk",
                    "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:{self.address}:{self.port}-:22",
                    "-device", "virtio-net-device,netdev=net", "-serial", "pty",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while not (found := re.search(r"redirected to (/dev/pts/\d+)", log.read_text(errors="replace"))):
            if self._qemu.poll() is not None or time.monotonic() > deadline:
                raise BoardError(f"qemu did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.console = found[1]
        if wait:
            self.wait_for_ssh()

    def wait_for_ssh(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            done = self.ssh("true", timeout_s=30, check=False)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise BoardError(f"no SSH after {timeout_s:g} s: {done.stderr.strip()[-500:]}")
            time.sleep(1)

    def power_off(self) -> None:
        """Pull the plug."""
        qemu, self._qemu = self._qemu, None
        if qemu is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(qemu.pid, signal.SIGKILL)
            qemu.wait(timeout=30)

    def shut_down(self, timeout_s: float = 120) -> None:
        """Power off in order: everything is on the disk."""
        if self._qemu is not None:
            self.ssh("sudo systemctl poweroff", check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._qemu.wait(timeout=timeout_s)
        self.power_off()

    def reboot(self) -> None:
        """Pull the plug and boot."""
        self.power_off()
        self.power_on()

    @property
    def destination(self) -> str:
        """What `--host` takes."""
        return f"{self.user}@{self.address}:{self.port}"

    def copy_to_board(self, *paths: Path) -> None:
        """Files and folders to the home directory there."""
        options = ["-P" if word == "-p" else word for word in self.ssh_options]
        target = f"{self.user}@{self.address}:"
        subprocess.run(["scp", "-q", "-r", *options, *map(str, paths), target], check=True, timeout=300)

    @property
    def ssh_options(self) -> list[str]:
        """Options by which OpenSSH's own client logs in without asking and without the caller's configuration."""
        return ssh_options(self.port, self.identity_file, self.known_hosts, ConnectTimeout=10)

    def ssh(self, command: str, *, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the board as `pi`; `sudo` asks for no password."""
        argv = ["ssh", *self.ssh_options, f"{self.user}@{self.address}", command]
        try:
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            if check:
                raise
            return subprocess.CompletedProcess(argv, 255, "", str(error))


# A board that was deployed to -----------------------------------------------------------------------------------------


def deployed_board(*, memory_bytes: int = MEMORY_BYTES, cpu: str = "cortex-a72") -> WholeBoard:
    """A board, still off, with torch on its disk; made by the first call ever, in ten minutes of deploying.

    The agent there is the one of that day: deploy again (20 s after `remember_deployed`), or let `run` push it.
    """
    parts = required_parts()
    return WholeBoard(parts, memory_bytes=memory_bytes, cpu=cpu, disk=_deployed_disk(parts))


def remember_deployed(board: WholeBoard, state_home: Path) -> None:
    """Let a workstation with this XDG_STATE_HOME know the board as if it had deployed to it: nothing is proved again.

    The board must be on, for its port is part of its name.
    """
    hosts = json.loads(_deployed_disk(build_board()).with_suffix(".json").read_text(encoding="utf-8"))
    (entry,) = hosts["hosts"].values()
    entry.update(name=board.destination, destination=board.destination)
    path = state_home / "edge-lts" / "hosts.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**hosts, "hosts": {board.destination: entry}}), encoding="utf-8")


def _deployed_disk(parts: Path) -> Path:
    """The disk; beside it, as .json, what the workstation that deployed to it remembers."""
    disk = parts / f"deployed-{wheelhouse.load_lock()[PYTHON, 'aarch64'].lock_id}.img"
    with (parts / "deployed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            _deploy_once(parts, disk)
    return disk


def _deploy_once(parts: Path, disk: Path) -> None:
    with WholeBoard(parts) as board, tempfile.TemporaryDirectory() as scratch:
        environ = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'host'}",
            "XDG_STATE_HOME": scratch,
        }
        argv = [sys.executable, "-m", "edge_lts_host", "deploy", "--host", board.destination]
        argv += ["--identity", str(board.identity_file), "--known-hosts", str(board.known_hosts)]
        argv += ["--target", TARGET]
        done = subprocess.run(
            argv, env=environ, cwd=scratch, capture_output=True, text=True, check=False, timeout=DEPLOY_TIMEOUT_S
        )
        if done.returncode:
            raise BoardError(f"deploying to a whole board: {done.stderr[-2000:]}")
        board.shut_down()
        shutil.copy(Path(scratch) / "edge-lts" / "hosts.json", disk.with_suffix(".json"))
        part = disk.with_suffix(".part")
        subprocess.run(["cp", "--sparse=always", board.disk, part], check=True)
        part.rename(disk)  # only a whole one ever has this name


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _sweep(boards: Path) -> None:
    """Remove what boards of killed test runs left behind."""
    for folder in boards.glob("whole-*"):
        pid = folder.name.split("-")[1]
        if not pid.isdigit() or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)

"""An arm64 board without hardware: Debian's arm64 userland run by qemu-user-static, with its own address and sshd.

A board is a copy-on-write view of the root that `scripts/arm64_root.sh` builds, in network, process and host name
spaces of its own, reached through a veth cable that a test can cut. Everything is named `eltsN`, and N is held by a
file lock, so boards can stand side by side and what a killed test run left behind is swept away by the next one.

What is *not* like a board: `/proc/cpuinfo`, `/proc/meminfo` and the memory figures of a process are those of this
machine and its emulator, another process's `/proc/PID/cmdline` begins with the emulator, and timings mean nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = Path("/run/edge-lts-boards")
MAX_BOARDS = 64  # each takes four addresses of a link-local /24, which no router forwards
SUBNET = "169.254.213"
USER, USER_ID = "pi", 1000
SSH_PORT = 22
BOOT_TIMEOUT_S = 90
COMMANDS = ("ip", "unshare", "nsenter", "chroot", "mount", "ssh", "ssh-keygen", "debootstrap", "qemu-aarch64-static")
SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
BOARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

# Runs as process 1 of the board, before sshd takes its place: /proc must be mounted from inside the process name space.
INIT = """
hostname "$2" &&
mount -t proc proc "$1/proc" &&
mount --bind "$3" "$1/proc/sys/kernel/random/boot_id" &&
exec chroot "$1" /usr/sbin/sshd -D -e
"""


class BoardError(Exception):
    """The emulated board could not be made, or is in no state to do what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardProcess:
    """A process inside a board: `pid` as this machine numbers it, `board_pid` as the board does."""

    pid: int
    board_pid: int
    argv: tuple[str, ...]

    @property
    def command(self) -> str:
        return " ".join(self.argv)


def has_command(name: str) -> bool:
    """Whether `name` is installed, also where only root's PATH would find it."""
    return shutil.which(name, path=SEARCH_PATH) is not None


def missing_prerequisite() -> str | None:
    """Why no board can be made on this machine, or None; `scripts/system_packages.sh` provides the packages."""
    if os.uname().sysname != "Linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root (chroot, mounts, network name spaces)"
    missing = [command for command in COMMANDS if not has_command(command)]
    if missing:
        return f"missing {', '.join(missing)}; run scripts/system_packages.sh"
    attempt = _run("unshare", "--net", "--pid", "--uts", "--fork", "true", check=False)
    if attempt.returncode:
        return f"this machine allows no network name spaces: {attempt.stderr.strip()}"
    return None


def build_root() -> Path:
    """The root that boards are copies of; built in about 3 minutes unless it is in the cache."""
    script = REPOSITORY / "scripts" / "arm64_root.sh"
    done = subprocess.run([script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BoardError(f"{script.name} failed: {done.stderr.strip()[-2000:]}")
    return Path(done.stdout.strip())


def ssh_options(port: int, identity_file: Path, known_hosts: Path, **more: object) -> list[str]:
    """Options by which OpenSSH's own client logs in without asking and without the caller's configuration."""
    settings = {
        "Port": port,
        "IdentityFile": identity_file,
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": known_hosts,
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        **more,
    }
    return ["-F", "none", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]


class EmulatedBoard:
    """A running board; a context manager, because it consists of mounts, name spaces and processes.

    `disk_bytes` puts the home directory on a file system of that size. `cpu` is what qemu calls the model; `max` is not
    to be used (torch's int8 kernels die there, and only there).
    """

    def __init__(self, root: Path, *, cpu: str = "cortex-a72", disk_bytes: int | None = None) -> None:
        self._lower, self.cpu, self._disk_bytes = root, cpu, disk_bytes
        self.user, self.port = USER, SSH_PORT
        self._number, self._lock = _claim(root.parent / "boards")
        self.name = f"elts{self._number}"
        self.address = f"{SUBNET}.{4 * self._number + 2}"
        self.directory = root.parent / "boards" / self.name
        self.root = self.directory / "root"
        self.home = self.root / "home" / USER
        self.identity_file = self.directory / "identity"
        self.known_hosts = self.directory / "known_hosts"
        self._log = self.directory / "sshd.log"
        self._init: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedBoard:
        try:
            self._make_file_system()
            self._make_keys()
            self._make_link()
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
        """End every process of the board and remove all it was made of. May be called twice."""
        if self._lock.closed:
            return
        self.power_off()
        _remove(self.name, self.directory)
        self._lock.close()

    # Power and cable ------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Boot: a new boot id and sshd; returns when it answers (about 4 s). The disk is as it was left."""
        if self._init is not None:
            raise BoardError(f"{self.name} is already on")
        boot_id = self.directory / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
        enter = ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--pid", "--uts", "--fork", "--kill-child=KILL"]
        with self._log.open("ab") as log:
            self._init = subprocess.Popen(
                [*enter, "sh", "-c", INIT, "init", self.root, self.name, boot_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": SEARCH_PATH, "QEMU_CPU": self.cpu},
                start_new_session=True,  # Ctrl-C in a test run is for pytest, which then closes the board in order
            )
        self._wait_for_banner()

    def power_off(self) -> None:
        """Pull the plug: every process dies at once by SIGKILL. What they wrote stays on the disk."""
        _kill_all(lambda: _namespace_pids(self.name))
        if self._init is not None:
            self._init.wait(timeout=10)
            self._init = None
        _unmount_below(self.root / "proc")

    def reboot(self) -> None:
        self.power_off()
        self.power_on()

    def cut_link(self) -> None:
        """Pull the network cable: nothing is refused, connections only stall. `run` goes on working."""
        _run("ip", "-n", self.name, "link", "set", "eth0", "down")

    def restore_link(self) -> None:
        _run("ip", "-n", self.name, "link", "set", "eth0", "up")

    # Looking in from this machine -----------------------------------------------------------------------------------

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout_s: float = 120, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the board as root, past network and SSH; `check` raises CalledProcessError."""
        return subprocess.run(
            ["nsenter", f"--target={self._init_pid()}", "--net", "--pid", "--uts", "--root", "--wd", "--", *argv],
            env={"PATH": BOARD_PATH, "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": self.cpu},
            input=stdin,
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout_s,
        )

    @property
    def ssh_options(self) -> list[str]:
        """Options by which OpenSSH's own client logs in without asking and without the caller's configuration."""
        return ssh_options(self.port, self.identity_file, self.known_hosts)

    def ssh(self, command: str, *, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the board as `pi`, the way a person would: ssh pi@BOARD COMMAND."""
        argv = ["ssh", *self.ssh_options, f"{self.user}@{self.address}", command]
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check, timeout=timeout_s
        )

    def processes(self) -> list[BoardProcess]:
        """What runs inside the board, oldest first, known by its root directory; sshd is among it."""
        return list(_processes_below(self.root))

    def kill_processes(self, pattern: str) -> list[BoardProcess]:
        """SIGKILL every process of the board whose command line the regular expression matches; returns them, dead."""
        victims = [process for process in self.processes() if re.search(pattern, process.command)]
        pids = {process.pid for process in victims}
        _kill_all(lambda: [process.pid for process in self.processes() if process.pid in pids])
        return victims

    def fill_disk(self, *, keep_bytes: int = 0) -> None:
        """Leave only `keep_bytes` free in the home directory of a board made with `disk_bytes`."""
        if self._disk_bytes is None:
            raise BoardError("fill_disk needs a board made with disk_bytes; this machine's own disk is not filled")
        disk = os.statvfs(self.home)
        size = disk.f_bavail * disk.f_frsize - keep_bytes
        if size > 0:
            with (self.home / ".filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, size)

    def free_disk(self) -> None:
        """Undo `fill_disk`."""
        (self.home / ".filler").unlink(missing_ok=True)

    def log(self) -> str:
        """What sshd has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    # Building -------------------------------------------------------------------------------------------------------

    def _make_file_system(self) -> None:
        upper, work = self.directory / "upper", self.directory / "work"
        for directory in (self.root, upper, work):
            directory.mkdir(parents=True)
        layers = f"lowerdir={self._lower},upperdir={upper},workdir={work}"
        if _run("mount", "-t", "overlay", self.name, "-o", layers, self.root, check=False).returncode:
            _run("cp", "-a", "--reflink=auto", f"{self._lower}/.", self.root)
        dev = self.root / "dev"
        _mount("tmpfs", dev, "mode=755,size=64k")
        for name, (major, minor) in DEVICES.items():
            os.mknod(dev / name, stat.S_IFCHR, os.makedev(major, minor))
            (dev / name).chmod(0o666)
        for name, target in DEVICE_LINKS.items():
            (dev / name).symlink_to(target)
        for name in ("pts", "shm"):
            (dev / name).mkdir()
        _mount("devpts", dev / "pts", "newinstance,ptmxmode=0666,mode=620,gid=5")
        _mount("tmpfs", dev / "shm", "mode=1777")
        _mount("sysfs", self.root / "sys", "ro")
        if self._disk_bytes is not None:
            _mount("tmpfs", self.home, f"size={self._disk_bytes},mode=755,uid={USER_ID},gid={USER_ID}")

    def _make_keys(self) -> None:
        """Keys of this board alone: one to log in with, and one that the board is known by."""
        etc_ssh, dot_ssh = self.root / "etc" / "ssh", self.home / ".ssh"
        host_key = etc_ssh / "ssh_host_ed25519_key"
        for key in (self.identity_file, host_key):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key)
        dot_ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.identity_file.with_suffix(".pub"), dot_ssh / "authorized_keys")
        for path in (dot_ssh, dot_ssh / "authorized_keys"):
            os.chown(path, USER_ID, USER_ID)
        public_key = host_key.with_suffix(".pub").read_text(encoding="ascii")
        self.known_hosts.write_text(f"{self.address} {public_key}", encoding="ascii")
        # sshd clears the environment of a session, so the CPU model has to come from here.
        settings = f"HostKey /etc/ssh/{host_key.name}\nPasswordAuthentication no\nSetEnv QEMU_CPU={self.cpu}\n"
        (etc_ssh / "sshd_config.d" / "board.conf").write_text(settings, encoding="ascii")
        (self.root / "etc" / "hostname").write_text(f"{self.name}\n", encoding="ascii")
        (self.root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n", encoding="ascii")

    def _make_link(self) -> None:
        here = f"{SUBNET}.{4 * self._number + 1}"
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "address", "add", f"{here}/30", "dev", self.name)
        _run("ip", "link", "set", self.name, "up")
        _run("ip", "-n", self.name, "address", "add", f"{self.address}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", self.name, "link", "set", device, "up")

    def _wait_for_banner(self) -> None:
        assert self._init is not None
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._init.poll() is not None:
                raise BoardError(f"{self.name} went off while booting: {self.log()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=10) as link:
                if link.recv(4) == b"SSH-":
                    return
            time.sleep(0.1)
        raise BoardError(f"{self.name} did not answer on port {self.port} in {BOOT_TIMEOUT_S} s: {self.log()[-2000:]}")

    def _init_pid(self) -> int:
        """The board's process 1: the only child of the `unshare` that made its process name space."""
        if self._init is None:
            raise BoardError(f"{self.name} is off")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text(encoding="ascii").split()
        if not children:
            raise BoardError(f"{self.name} has lost its process 1: {self.log()[-2000:]}")
        return int(children[0])


def _run(*argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH}
    )
    if check and done.returncode:
        raise BoardError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
    return done


def _mount(kind: str, where: Path, options: str) -> None:
    _run("mount", "-t", kind, "-o", options, kind, where)


# Boards of other and earlier test runs --------------------------------------------------------------------------------


def _claim(boards: Path) -> tuple[int, TextIO]:
    """A board number that nobody uses, and the lock that says so; sweeps away what killed test runs left behind.

    The lock is a file in /run that names the directory of the board, for name spaces and mounts belong to the machine.
    """
    LOCKS.mkdir(parents=True, exist_ok=True)
    claimed: tuple[int, TextIO] | None = None
    for number in range(MAX_BOARDS):
        path = LOCKS / f"elts{number}"
        if claimed is not None and not path.exists():
            continue
        lock = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        lock.seek(0)
        left_behind = lock.read()
        if left_behind:
            _remove(path.name, Path(left_behind))
            lock.truncate(0)
        if claimed is None:
            _remove(path.name, boards / path.name)
            lock.write(str(boards / path.name))
            lock.flush()
            claimed = number, lock
        else:
            lock.close()
    if claimed is None:
        raise BoardError(f"all {MAX_BOARDS} emulated boards are in use")
    return claimed


def _remove(name: str, directory: Path) -> None:
    """Processes, mounts, network and files of one board, whatever is there of them."""
    _kill_all(lambda: _namespace_pids(name))
    _unmount_below(directory)
    _run("ip", "netns", "delete", name, check=False)
    _run("ip", "link", "delete", name, check=False)  # usually gone with its other end
    if directory.exists():
        shutil.rmtree(directory)


def _namespace_pids(name: str) -> list[int]:
    return [int(pid) for pid in _run("ip", "netns", "pids", name, check=False).stdout.split()]


def _processes_below(root: Path) -> Iterator[BoardProcess]:
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        entry = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):  # it may end while we look
            if (entry / "root").readlink() != root:
                continue
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            numbers = re.search(r"^NSpid:\s+(.*)$", (entry / "status").read_text(encoding="ascii"), re.MULTILINE)
            board_pid = int(numbers[1].split()[-1]) if numbers else pid
            yield BoardProcess(pid=pid, board_pid=board_pid, argv=tuple(_without_emulator(argv)))


def _without_emulator(argv: list[str]) -> list[str]:
    """binfmt_misc puts the emulator and the program's path before the program's own argv."""
    return argv[2:] if argv[0].rpartition("/")[2].startswith(("qemu-aarch64", "aarch64-binfmt")) else argv


def _kill_all(pids: Callable[[], Iterable[int]], timeout_s: float = 10) -> None:
    """SIGKILL what `pids` lists until it lists nothing, so that nothing forked in between escapes."""
    deadline = time.monotonic() + timeout_s
    while remaining := list(pids()):
        if time.monotonic() > deadline:
            raise BoardError(f"processes {remaining} do not die")
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _mounts_below(directory: Path) -> list[str]:
    """Mount points at or below `directory`, in the order they were made."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def _unmount_below(directory: Path) -> None:
    for point in reversed(_mounts_below(directory)):
        if _run("umount", point, check=False).returncode:
            _run("umount", "--lazy", point)  # somebody on this machine still looks into it

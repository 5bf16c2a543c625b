"""A run as a process: who it is, what it holds, and how it leaves the terminal behind.

A pid says little: it is used again after a reboot. A supervisor is identified by (pid, start time in clock ticks, boot
id), and it is alive if and only if these match a process and the flock on its `lock` file is held. The kernel drops a
flock with its process, so `kill -9` and power cuts leave nothing to clean up. Lock descriptors are close-on-exec: no
child that is executed (the measuring server) can keep a board locked.

Source: ansible's async_wrapper for the double fork that acknowledges through a pipe; open(2), flock(2), pidfd_open(2).
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_lts.errors import EdgeLtsError, LockedError
from edge_lts.runfolder import BOARD_LOCK, now_utc

LOCK_PATIENCE_S = 1.0  # `status` tries a lock for an instant; a start must not fail because of it
_POLL_S = 0.05
_MAX_HOLDER_BYTES = 4096


def boot_id() -> str | None:
    """The kernel's name for this boot; None where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def start_time_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after boot (field 22 of proc(5) stat); None without such a process."""
    try:
        # Not /proc/PID/stat: qemu's user-mode emulation makes that up for the process itself, with its ancestor's time.
        stat = Path(f"/proc/{pid}/task/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 1 :].split()  # the name before it may hold anything
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process of one boot. Where the kernel has no /proc, the pid alone has to do."""

    pid: int
    start_time_ticks: int | None
    boot_id: str | None

    @classmethod
    def current(cls) -> "Identity":
        return cls(pid=os.getpid(), start_time_ticks=start_time_ticks(os.getpid()), boot_id=boot_id())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Identity | None":
        """None unless the data names a process."""
        pid, ticks, boot = (data.get(key) for key in ("pid", "start_time_ticks", "boot_id"))
        if isinstance(pid, bool) or not isinstance(pid, int) or not 1 < pid < 1 << 31:
            return None
        is_usable = isinstance(ticks, int) and isinstance(boot, str)
        return cls(pid=pid, start_time_ticks=ticks if is_usable else None, boot_id=boot if is_usable else None)

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_time_ticks": self.start_time_ticks, "boot_id": self.boot_id}

    def matches_a_process(self) -> bool:
        if self.start_time_ticks is not None:
            return self.boot_id == boot_id() and self.start_time_ticks == start_time_ticks(self.pid)
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as exc:
            return exc.errno == errno.EPERM
        return True

    def terminate(self) -> bool:
        """Send SIGTERM to this very process; False if it is no longer there."""
        try:
            pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        except OSError as exc:
            if exc.errno == errno.ESRCH:
                return False
            pidfd = -1  # an old kernel or emulator; the check below leaves a gap of microseconds
        try:
            if not self.matches_a_process():
                return False
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            else:
                os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        except PermissionError as exc:
            raise LockedError(f"process {self.pid} belongs to another user; stop it as that user") from exc
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        return True


class Lock:
    """An exclusive flock on a file whose content names the holder, for messages only."""

    def __init__(self, path: Path, *, run_id: str, what: str, patience_s: float = LOCK_PATIENCE_S) -> None:
        """Raises LockedError naming who holds `path` (`what` it protects) and for how long."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise LockedError(f"cannot open the lock {path}: {exc.strerror or exc}") from exc
        from edge_lts.reservation import check, owner  # which needs this module

        deadline = time.monotonic() + patience_s
        while not _try_lock(self._fd, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                os.close(self._fd)
                raise LockedError(f"{what} is in use{_describe(read_holder(path))}; wait for it or stop it")
            time.sleep(_POLL_S)
        if path.name == BOARD_LOCK:
            try:
                check(path.parent)
            except LockedError:
                os.close(self._fd)
                raise
        begun = {"since": now_utc(), "since_s": time.monotonic()}
        holder = {"run_id": run_id, "owner": owner(), **Identity.current().to_json(), **begun}
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(holder).encode("ascii") + b"\n", 0)
        except OSError:
            pass  # a full disk: the lock holds all the same, only the name is missing

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _try_lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock at `path` now; a missing file is free."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def read_holder(path: Path) -> dict[str, Any]:
    """What the last holder wrote into the lock; empty if that is not readable."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_HOLDER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _describe(holder: Mapping[str, Any]) -> str:
    if not holder:
        return " by another process"
    of = f" of {holder['owner']!s:.100}" if holder.get("owner") else ""
    text = f" by run {holder.get('run_id')!s:.100}{of} (pid {holder.get('pid')!s:.10}"
    since = holder.get("since_s")
    if isinstance(since, (int, float)) and holder.get("boot_id") == boot_id():
        text += f", for {max(0, round(time.monotonic() - since))} s"
    return text + ")"


def detach(log: Path, body: Callable[[Callable[[Mapping[str, Any]], None]], int]) -> dict[str, Any]:
    """Run `body` in a process of its own session and return the first message that it announces.

    `body` gets `announce(message)`; only its first call reaches this caller, who returns then. The new process has
    /dev/null as stdin and stdout, `log` as stderr, `/` as working directory, ignores SIGHUP and holds no other
    descriptor of ours, so that an SSH channel can close. Raises EdgeLtsError when the process ends without a word.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.close(receiver)
            os.setsid()
            status = _run_detached(log, sender, body) if os.fork() == 0 else 0
        finally:
            os._exit(status)
    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as pipe:
        line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EdgeLtsError(f"the run ended before it began; see {log}")
    message: dict[str, Any] = json.loads(line)
    return message


def _run_detached(log: Path, sender: int, body: Callable[[Callable[[Mapping[str, Any]], None]], int]) -> int:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    logfile = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, fd in ((null, 0), (null, 1), (logfile, 2)):
        os.dup2(source, fd)
    _close_all_but({0, 1, 2, sender})
    is_open = True

    def announce(message: Mapping[str, Any]) -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            with contextlib.suppress(BrokenPipeError):  # whoever started us is gone; that is no reason to stop
                os.write(sender, json.dumps(message).encode("ascii") + b"\n")
            os.close(sender)

    code = body(announce)
    sys.stderr.flush()
    return code


def _close_all_but(keep: set[int]) -> None:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.isdigit() and int(name) not in keep:
                try:
                    os.close(int(name))
                except OSError:
                    continue  # the descriptor that listed the folder
        return

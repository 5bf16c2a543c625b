"""The fastest governor while a run goes on, and the old one back afterwards, whatever ends the run (`--tune`).

Changing and restoring is one process, the guardian: a shell, under `sudo -n` where the files cannot be written
otherwise, so that the right to restore cannot expire meanwhile. It reads its stdin, whose other end only the run holds:
when the run ends in any way, SIGKILL included, the kernel closes that pipe and the guardian restores. It is in a
session of its own and ignores what ends terminals. If it is killed too, `restore_leftovers` does its work at the next
start: `tuned.json` in the device root was on disk before anything changed. After a reboot there is nothing to restore.

Only a policy that still has the governor that was set is restored: what somebody chose meanwhile stays. Nothing ever
asks for a password. Sources: Documentation/admin-guide/pm/cpufreq.rst; pyperf issue 158 for tuning that stayed.
"""

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_lts.device import SYSTEM, children, read_text
from edge_lts.job import Identity, boot_id, start_time_ticks
from edge_lts.runfolder import TUNED as STATE
from edge_lts.runfolder import read_json, to_bytes, write_atomic

GOVERNOR = "performance"
PREFIXES: tuple[tuple[str, ...], ...] = ((), ("sudo", "-n"))
ANSWER_TIMEOUT_S = 20.0  # sudo looks up names, which takes its time without a network
_POLL_S = 0.02

# argv: the governor to set, then pairs of a file and its old governor. Says "ready", waits for a line, sets, says "ok".
_GUARDIAN = r"""
trap '' HUP INT TERM
set_to=$1; shift
restore() {
    while [ $# -gt 1 ]; do
        read -r now <"$1" && [ "$now" = "$set_to" ] && echo "$2" >"$1"
        shift 2
    done
}
change() {
    while [ $# -gt 1 ]; do
        echo "$set_to" >"$1" || return 1
        read -r now <"$1" && [ "$now" = "$set_to" ] || return 1
        shift 2
    done
    echo ok
}
echo ready
read -r go && change "$@" && while read -r go; do :; done
restore "$@"
"""


class Tuned(AbstractContextManager["Tuned"]):
    """All policies at the fastest governor while the context lasts. Where that is not allowed the run goes on all the
    same; `result` says so: {"tuned", "reason": None or a code, "before": {policy: governor}}.

    Codes: no-cpufreq, no-performance-governor, no-state-file, not-permitted; after the end also not-restored.
    Enter it with the board's lock held and after `restore_leftovers`.
    """

    def __init__(
        self, root_dir: Path, system_root: Path = SYSTEM, prefixes: Sequence[Sequence[str]] = PREFIXES
    ) -> None:
        self._root_dir = root_dir
        self._system_root = system_root
        self._prefixes = prefixes
        self._guardian: subprocess.Popen[bytes] | None = None
        self.result: dict[str, Any] = {"tuned": False, "reason": None, "before": {}}

    def __enter__(self) -> "Tuned":
        reason = self._tune()
        self.result.update(tuned=reason is None, reason=reason)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        _end(guardian)
        if not _restore(self._root_dir, self._system_root, self._prefixes):
            self.result["reason"] = "not-restored"

    def _tune(self) -> str | None:
        before, can = {}, False
        for policy in _policies(self._system_root):
            governor = read_text(policy / "scaling_governor")
            available = read_text(policy / "scaling_available_governors")
            if governor is not None:
                before[policy.name] = governor
                can |= available is None or GOVERNOR in available.split()
        if not can:
            return "no-performance-governor" if before else "no-cpufreq"
        self.result["before"] = before
        changes = {name: old for name, old in before.items() if old != GOVERNOR}
        if not changes:
            return None
        for prefix in self._prefixes:
            guardian = _start(prefix, self._system_root, changes)
            if guardian is None:
                continue
            state = {
                "owner": Identity.current().to_json(),
                "guardian": _identity(guardian.pid).to_json(),
                "governor": GOVERNOR,
                "before": changes,
            }
            try:
                write_atomic(self._root_dir / STATE, to_bytes(state), is_durable=True)
            except OSError:
                _end(guardian)
                return "no-state-file"
            if _say(guardian, b"go\n") == b"ok\n":
                self._guardian = guardian
                return None
            _end(guardian)  # which has put back what it had changed
        _restore(self._root_dir, self._system_root, self._prefixes)
        return "not-permitted"


def restore_leftovers(
    root_dir: Path, system_root: Path = SYSTEM, prefixes: Sequence[Sequence[str]] = PREFIXES
) -> dict[str, str]:
    """Put back what a run left that no longer lives; {policy: governor} of what it had found, mostly nothing.

    Call it with the board's lock held. A guardian that is at it is given time to finish.
    """
    try:
        state = read_json(root_dir / STATE)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        state = {}
    owner, guardian = (_recorded(state.get(name)) for name in ("owner", "guardian"))
    if owner is not None and owner.boot_id == boot_id():
        if owner.matches_a_process():
            return {}
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while guardian is not None and guardian.matches_a_process() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        _restore(root_dir, system_root, prefixes)
        return _governors(state)
    with contextlib.suppress(OSError):  # another boot's, or not readable: the kernel's own choice stands
        (root_dir / STATE).unlink()
    return {}


def _policies(system_root: Path) -> list[Path]:
    return children(system_root / "sys/devices/system/cpu/cpufreq", "policy")


def _identity(pid: int) -> Identity:
    return Identity(pid=pid, start_time_ticks=start_time_ticks(pid), boot_id=boot_id())


def _recorded(data: object) -> Identity | None:
    return Identity.from_json(data) if isinstance(data, Mapping) else None


def left_behind(root_dir: Path) -> dict[str, Any] | None:
    """{"governors": {policy: governor}} that a run which crashed has left to put back; None for nothing."""
    try:
        state = read_json(root_dir / STATE)
    except (OSError, ValueError):
        return None
    owner = Identity.from_json(state.get("owner") or {})
    if owner is None or owner.boot_id != boot_id() or owner.matches_a_process():
        return None
    return {"governors": _governors(state)}


def _governors(state: Mapping[str, Any]) -> dict[str, str]:
    """What to put back, by policy; nothing that could be another file's name."""
    before = state.get("before")
    items = before.items() if isinstance(before, Mapping) else ()
    return {
        name: old for name, old in items if name[6:].isdigit() and name.startswith("policy") and isinstance(old, str)
    }


def _command(prefix: Sequence[str], system_root: Path, before: Mapping[str, str]) -> list[str]:
    folder = system_root / "sys/devices/system/cpu/cpufreq"
    pairs = [text for name, old in before.items() for text in (str(folder / name / "scaling_governor"), old)]
    return [*prefix, "sh", "-c", _GUARDIAN, "edge-lts-guardian", GOVERNOR, *pairs]


def _start(prefix: Sequence[str], system_root: Path, changes: Mapping[str, str]) -> "subprocess.Popen[bytes] | None":
    """A guardian that has changed nothing yet; None where there is no right to have one."""
    try:
        guardian = subprocess.Popen(
            _command(prefix, system_root, changes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError:
        return None
    if _say(guardian, b"") == b"ready\n":
        return guardian
    _end(guardian)
    return None


def _say(guardian: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """The line that it answers; less where it ends or stays silent."""
    assert guardian.stdin is not None
    assert guardian.stdout is not None
    answer = b""
    with contextlib.suppress(OSError):
        guardian.stdin.write(line)
        while not answer.endswith(b"\n") and select.select([guardian.stdout], [], [], ANSWER_TIMEOUT_S)[0]:
            byte = os.read(guardian.stdout.fileno(), 1)
            if not byte:
                break
            answer += byte
    return answer


def _end(guardian: "subprocess.Popen[bytes]") -> None:
    """Let it restore, and wait for that. It may be root's, so there is no killing it."""
    assert guardian.stdin is not None
    assert guardian.stdout is not None
    with contextlib.suppress(OSError):
        guardian.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guardian.wait(ANSWER_TIMEOUT_S)
    guardian.stdout.close()


def _restore(root_dir: Path, system_root: Path, prefixes: Sequence[Sequence[str]]) -> bool:
    """Put back what `tuned.json` says, as far as nobody has done so, and forget it; False where that is not allowed."""
    path = root_dir / STATE
    try:
        before = _governors(read_json(path))
    except (OSError, ValueError):
        return True
    folder = system_root / "sys/devices/system/cpu/cpufreq"
    for prefix in (None, *prefixes):
        if prefix is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    _command(prefix, system_root, before),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=ANSWER_TIMEOUT_S,
                    check=False,
                )
        if all(read_text(folder / name / "scaling_governor") != GOVERNOR for name in before):
            with contextlib.suppress(OSError):
                path.unlink()
            return True
    return False

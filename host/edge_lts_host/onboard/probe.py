"""What is this board, and what of edge-lts is already there? Run as `python3 - ROOT`; changes nothing.

Must run, and give its answer, on Pythons far too old for edge-lts: syntax and library of 3.6. It describes the
*Python*, not the kernel: a 32-bit userland under a 64-bit kernel has no torch whatever `uname -m` says.
"""

# This file keeps to Python 3.6, so that an old Python can still say that it is one.
# ruff: noqa: UP006, UP035, UP045

import hashlib
import importlib.util
import json
import os
import platform
import struct
import sys
import sysconfig
from typing import Any, Dict, List, Optional

MARKER = "edge-lts-answer "


def text_of(path: str, limit: int = 1 << 16) -> Optional[str]:
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace").strip("\0\n ") or None
    except OSError:
        return None


def meminfo() -> Dict[str, int]:
    sizes = {}
    for line in (text_of("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            sizes[name] = int(words[0]) * 1024
    return sizes


def libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def existing_ancestor(path: str) -> str:
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def free_bytes(path: str) -> Optional[int]:
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def is_foreign(path: str, uid: int) -> bool:
    """Whether something at `path` belongs to another user, a link and what it leads to alike."""
    try:
        return os.lstat(path).st_uid != uid or os.stat(path).st_uid != uid
    except OSError:
        return os.path.lexists(path)


def exchangeable_in(path: str, uid: int) -> Optional[str]:
    """The folder at or above `path` in which another user could put something else in its place.

    Root may, and the group may: many systems give every user a group of his own, and let it write.
    """
    path = os.path.realpath(path)
    while True:
        info = os.stat(path)
        is_open = info.st_mode & 0o002 and not info.st_mode & 0o1000  # in a sticky folder, only an owner can rename
        if info.st_uid not in (0, uid) or is_open:
            return path
        if os.path.dirname(path) == path:
            return None
        path = os.path.dirname(path)


def root_state(root: str) -> Dict[str, Any]:
    ancestor = existing_ancestor(root)
    state: Dict[str, Any] = {
        "path": root,
        "exists": os.path.isdir(root),
        "is_blocked": os.path.exists(root) and not os.path.isdir(root),
        "ancestor": ancestor,
        "is_writable": os.access(ancestor, os.W_OK | os.X_OK),
        "free_bytes": free_bytes(ancestor),
        "owner": None,
        "mode": None,
    }
    if state["exists"]:
        info = os.stat(root)
        state["owner"], state["mode"] = info.st_uid, info.st_mode & 0o7777
    if hasattr(os, "geteuid"):
        uid = os.geteuid()
        state["foreign"] = [name for name in ("agents", "env", "runs") if is_foreign(os.path.join(root, name), uid)]
        state["exchangeable_in"] = exchangeable_in(os.path.dirname(root) if state["exists"] else ancestor, uid)
    return state


def names_in(path: str) -> List[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def environments(root: str) -> Dict[str, Any]:
    """Whole environments by lock id: what their manifest says. One still being made ends in .part and is not one."""
    found = {}
    for name in names_in(os.path.join(root, "env")):
        if name.endswith(".part"):
            continue
        try:
            manifest = json.loads(text_of(os.path.join(root, "env", name, "edge-lts-env.json")) or "null")
        except ValueError:
            manifest = None
        if isinstance(manifest, dict):
            found[name] = manifest
    return found


def agents(root: str) -> Dict[str, str]:
    found = {}
    for name in names_in(os.path.join(root, "agents")):
        path = os.path.join(root, "agents", name)
        if name.endswith(".pyz") and os.path.isfile(path) and os.path.getsize(path) < (1 << 24):
            with open(path, "rb") as file:
                found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def installed(name: str) -> Optional[str]:
    """The version of a package that this Python already has, without importing it."""
    try:
        import importlib.metadata as metadata
    except ImportError:
        return None
    try:
        version = metadata.version(name)
    except Exception:  # noqa: BLE001  whatever is wrong with a foreign installation, it is not usable
        return None
    return str(version)


def main() -> None:
    root = os.path.abspath(os.path.expanduser(sys.argv[1]))
    memory = meminfo()
    is_posix = hasattr(os, "geteuid")
    cpu_model = None
    cpuinfo = text_of("/proc/cpuinfo") or ""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            cpu_model = value.strip()
            break
    answer = {
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "executable": sys.executable,
        "python_bits": struct.calcsize("P") * 8,
        "platform": sysconfig.get_platform(),
        "soabi": sysconfig.get_config_var("SOABI") or "",
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": libc(),
        # Only x86 processors have a vendor_id: an ARM Python that sees one is run by a user-mode emulator.
        "is_emulated": platform.machine() == "aarch64" and "vendor_id" in cpuinfo and "CPU part" not in cpuinfo,
        "board_model": text_of("/proc/device-tree/model") or text_of("/sys/firmware/devicetree/base/model"),
        "cpu_model": cpu_model,
        "n_cores": os.cpu_count() or 1,
        "memory_total_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "boot_id": text_of("/proc/sys/kernel/random/boot_id"),
        "uid": os.geteuid() if is_posix else None,
        "root": root_state(root),
        "environments": environments(root),
        "agents": agents(root),
        "staged": names_in(os.path.join(root, "env", "wheels.part")),
        "runs": names_in(os.path.join(root, "runs")),
        "has_lzma": importlib.util.find_spec("_lzma") is not None,
        "installed": {name: installed(name) for name in ("torch", "numpy", "pip")},
    }
    sys.stdout.write("\n" + MARKER + json.dumps(answer) + "\n")


main()

"""Turn wheels in ROOT/env/wheels.part into ROOT/env/LOCK, whole or not at all.

Run as `python3 -I - ROOT`; the sender puts a line before this text that binds ORDER to JSON: what to install.

The network is never touched unless `online` says so. pip runs from its own wheel, so the board needs neither pip nor
ensurepip; `--target` keeps away from what PEP 668 protects. Everything happens in ROOT, because /tmp may be memory; a
power cut leaves a directory named *.part, which the next call removes. Wheels are removed at the end.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MARKER = "edge-lts-answer "


class InstallError(Exception):
    """What went wrong, as `kind` (hash, disk, pip) and words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind, self.message = kind, message


def wheels_of(root: Path) -> Path:
    return root / "env" / "wheels.part"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check(wheels: Path, order: dict[str, Any]) -> None:
    for file, sha256 in order["files"].items():
        path = wheels / file
        if not path.is_file() or sha256_of(path) != sha256:
            path.unlink(missing_ok=True)
            raise InstallError("hash", f"{file} is not on the board or is damaged")


def pip_argv(root: Path, order: dict[str, Any], part: Path) -> list[str]:
    pip = ["-m", "pip"] if order["installer"] is None else [f"{wheels_of(root) / order['installer']}/pip"]
    common = ["--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    argv = [sys.executable, "-I", *pip, "install", *common, "--no-warn-script-location", "--target", str(part)]
    if order["online"] is None:
        return [*argv, "--no-index", "--no-deps", *(str(wheels_of(root) / file) for file in order["install"])]
    return [*argv, "--only-binary", ":all:", "--no-deps", *order["online"]["requirements"]]


def run_pip(root: Path, order: dict[str, Any], part: Path) -> None:
    temporary = root / "env" / "tmp.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    keep = {
        key: value for key, value in os.environ.items() if not key.startswith("PIP_") or order["online"] is not None
    }
    environment = {**keep, "TMPDIR": str(temporary)}
    if order["online"] is None:
        environment["PIP_CONFIG_FILE"] = os.devnull  # Raspberry Pi OS adds an index of its own in /etc/pip.conf
    elif order["online"]["index"]:
        environment["PIP_INDEX_URL"] = order["online"]["index"]  # may hold a password: everybody can read an argv
    try:
        done = subprocess.run(
            pip_argv(root, order, part), stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if done.returncode:
        text = (done.stderr or done.stdout).decode("utf-8", "replace")
        kind = "disk" if "No space left" in text or "Disk quota" in text else "pip"
        errors = [line for line in text.splitlines() if line.startswith("ERROR")] or text.strip().splitlines()[-1:]
        raise InstallError(kind, re.sub(r"//[^/@\s]*@", "//****@", " ".join(errors))[-600:])


def sync(folder: Path) -> None:
    os.sync()
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def install(root: Path, order: dict[str, Any]) -> bool:
    """Returns False when the environment was already there (another deploy was faster)."""
    envs = root / "env"
    final, part = envs / order["lock_id"], envs / (order["lock_id"] + ".part")
    if (final / "edge-lts-env.json").is_file():
        return False
    check(wheels_of(root), order)
    for left in (part, final):
        if left.exists():
            shutil.rmtree(left)
    try:
        run_pip(root, order, part)
        (part / "edge-lts-env.json").write_text(json.dumps(order["manifest"]), encoding="utf-8")
        sync(part)
        part.rename(final)
    except (InstallError, OSError):
        shutil.rmtree(part, ignore_errors=True)  # a full disk is not left full
        raise
    sync(envs)
    return True


def answer(**fields: Any) -> None:
    sys.stdout.write("\n" + MARKER + json.dumps(fields) + "\n")


def main() -> None:
    root, order = Path(sys.argv[1]), json.loads(ORDER)  # type: ignore[name-defined]  # noqa: F821  the sender writes it above
    (root / "env").mkdir(mode=0o700, exist_ok=True)
    with (root / "env" / "deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            is_new = install(root, order)
            shutil.rmtree(wheels_of(root), ignore_errors=True)
        except InstallError as error:
            answer(ok=False, kind=error.kind, message=error.message)
        except OSError as error:
            kind = "disk" if error.errno in (28, 122) else "os"  # ENOSPC, EDQUOT
            answer(ok=False, kind=kind, message=str(error))
        else:
            size = sum(path.lstat().st_size for path in (root / "env" / order["lock_id"]).rglob("*"))
            answer(ok=True, is_new=is_new, size_bytes=size)


main()

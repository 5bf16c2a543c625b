"""The wheels that a board needs, as files on this workstation: locked by hash, fetched once, checked at each use.

A board runs torch, numpy and typing_extensions, nothing else; a pip wheel goes along as the installer.
`data/wheels.lock.json` (made by scripts/lock_wheels.py) names the files by Python version. They come from the cache,
from `--wheelhouse DIR`, from `python -m pip download`, or from pip run by uv. Always with `--no-deps`: pip evaluates
environment markers against *this* machine, and asked for torch with its dependencies for aarch64 on an x86-64
workstation it silently goes back to torch 2.1.0 (pip issue 11664).

Refuses wheels whose hash is not the locked one. From a directory that the user names it accepts other versions inside
TORCH_RANGE, and that is the only way to torch for machines without a locked list: x86-64's torch on PyPI is a CUDA
build of several gigabytes. Wheel names: PEP 427, PEP 600.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_lts_host.errors import HostError, PreflightError, last_line

LOCK_FILE = Path(__file__).resolve().parent / "data" / "wheels.lock.json"
TORCH_RANGE = ((2, 9, 1), (3,))
TORCH_RANGE_TEXT = ">=2.9.1,<3"
DEVICE_PACKAGES = ("torch", "numpy", "typing_extensions")
INSTALLER = "pip"
_DOWNLOAD_TIMEOUT_S = 3600
_LEGACY_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")


class WheelhouseError(HostError):
    """The wheels for a board could not be had on this workstation, or are not the ones that were locked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One wheel file by content."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSet:
    """What one Python on one machine gets: `wheels` are installed, `installer` installs them and is not."""

    python: str
    machine: str
    wheels: tuple[Wheel, ...]
    installer: Wheel

    @property
    def lock_id(self) -> str:
        """Names the environment on the board: the same wheels give the same id, others another."""
        lines = sorted(f"{wheel.file} {wheel.sha256}" for wheel in self.wheels)
        return hashlib.sha256("\n".join([self.python, *lines]).encode()).hexdigest()[:12]

    @property
    def all_wheels(self) -> tuple[Wheel, ...]:
        return (*self.wheels, self.installer)

    @property
    def download_bytes(self) -> int:
        return sum(wheel.size_bytes for wheel in self.all_wheels)

    def version(self, name: str) -> str:
        return next(wheel.version for wheel in self.wheels if wheel.name == name)


def load_lock(path: Path = LOCK_FILE) -> dict[tuple[str, str], WheelSet]:
    """The locked sets by (Python "3.11", machine "aarch64")."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema_version"] != 1:
            raise WheelhouseError(
                f"{path}: schema_version {data['schema_version']!r:.40} is not one this edge-lts reads"
            )
        sets = [
            WheelSet(
                python=entry["python"],
                machine=entry["machine"],
                wheels=tuple(Wheel(**wheel) for wheel in entry["wheels"]),
                installer=Wheel(**entry["installer"]),
            )
            for entry in data["sets"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise WheelhouseError(f"{path}: the list of locked wheels is damaged ({exc}); reinstall edge-lts") from exc
    return {(each.python, each.machine): each for each in sets}


def locked_set(python: str, machine: str) -> WheelSet | None:
    return load_lock().get((python, machine))


def cache_dir() -> Path:
    """Where fetched wheels stay; `$EDGE_LTS_WHEELS` or the platform's cache directory."""
    named = os.environ.get("EDGE_LTS_WHEELS")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edge-lts", appauthor=False)) / "wheels"


def is_torch_accepted(version: str) -> bool:
    """Whether edge-lts runs with this torch: TORCH_RANGE, whatever the build."""
    numbers = version_key(version)
    return TORCH_RANGE[0] <= numbers < TORCH_RANGE[1]


def version_key(version: str) -> tuple[int, ...]:
    """The release numbers of a version, without local part or pre-release: enough to order the releases of torch."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def is_cuda_build(version: str) -> bool:
    return "+cu" in version


def download_options(python: str, machine: str) -> list[str]:
    """pip's options for taking just the wheels that a board takes. Every tag is named, for pip expands none."""
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    return [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
        *(word for platform in platforms for word in ("--platform", f"{platform}_{machine}")),
    ]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_whole(path: Path, wheel: Wheel) -> bool:
    try:
        return path.stat().st_size == wheel.size_bytes and sha256_of(path) == wheel.sha256
    except OSError:
        return False


Say = Callable[[str], None]


def obtain(
    wheels: Iterable[Wheel],
    python: str,
    machine: str,
    *,
    wheelhouse: Path | None = None,
    cache: Path | None = None,
    say: Say = lambda text: None,
) -> dict[Wheel, Path]:
    """The path of each wheel, its hash checked: from `wheelhouse`, the cache or the network. Raises WheelhouseError."""
    cache = cache_dir() if cache is None else cache
    found: dict[Wheel, Path] = {}
    missing: list[Wheel] = []
    for wheel in wheels:
        places = [cache / wheel.file] if wheelhouse is None else [wheelhouse / wheel.file, cache / wheel.file]
        path = next((place for place in places if _is_whole(place, wheel)), None)
        if path is None:
            missing.append(wheel)
        else:
            found[wheel] = path
    if missing and wheelhouse is not None:
        names = ", ".join(wheel.file for wheel in missing)
        raise WheelhouseError(f"{wheelhouse} lacks {names} (or its SHA-256 is not the locked one)")
    if missing:
        size = sum(wheel.size_bytes for wheel in missing)
        say(f"fetching {', '.join(wheel.requirement for wheel in missing)} ({size / 1e6:.0f} MB, once)")
        found.update(_download(missing, python, machine, cache))
    return found


def _download(wheels: Sequence[Wheel], python: str, machine: str, cache: Path) -> dict[Wheel, Path]:
    remedy = "or get the files on another machine and pass --wheelhouse DIR, or let the board fetch them with --online"
    command = pip_command()
    if command is None:
        raise WheelhouseError(
            f"neither pip nor uv is here to fetch {wheels[0].requirement}; "
            f"install one (python -m ensurepip, or pipx install uv), {remedy}"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as directory:
            requirements = Path(directory) / "requirements.txt"
            lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in wheels]
            requirements.write_text("".join(lines), encoding="utf-8")
            argv = [*command, "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            argv += [*download_options(python, machine), "--require-hashes", "-r", str(requirements), "-d", directory]
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DOWNLOAD_TIMEOUT_S
            )
            if done.returncode:
                said = last_line(b"\n".join(line for line in done.stderr.splitlines() if line.startswith(b"ERROR")))
                said = said or last_line(done.stderr) or f"it ended with status {done.returncode}"
                raise WheelhouseError(
                    f"pip could not fetch {wheels[0].requirement} for aarch64: {said}; try again, {remedy}"
                )
            found = {}
            for wheel in wheels:
                path = Path(directory) / wheel.file
                if not _is_whole(path, wheel):
                    raise WheelhouseError(f"pip delivered another {wheel.file} than was locked; {remedy[3:]}")
                path.replace(cache / wheel.file)
                found[wheel] = cache / wheel.file
            return found
    except subprocess.TimeoutExpired as exc:
        raise WheelhouseError(f"pip did not end within {exc.timeout:.0f} s; try again, {remedy}") from exc
    except OSError as exc:
        raise WheelhouseError(f"cannot keep wheels in {cache}: {exc.strerror or exc}; set EDGE_LTS_WHEELS") from exc


def pip_command() -> list[str] | None:
    """How to run pip here: as a module, else by uv (which has no `download` of its own), else not at all."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    )
    return [uv, "tool", "run", "--quiet", "pip"] if uv else None


# A directory that the user names --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _WheelName:
    name: str
    version: str
    pythons: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def parse(cls, file: str) -> _WheelName | None:
        parts = file.removesuffix(".whl").split("-")
        if not file.endswith(".whl") or len(parts) not in (5, 6):
            return None
        return cls(
            name=re.sub(r"[-_.]+", "_", parts[0]).lower(),
            version=parts[1],
            pythons=tuple(parts[-3].split(".")),
            platforms=tuple(parts[-1].split(".")),
        )

    def fits(self, python: str, machine: str, glibc: tuple[int, int]) -> bool:
        wanted = {f"cp{python.replace('.', '')}", "py3"}
        return bool(wanted & set(self.pythons)) and any(_platform_fits(tag, machine, glibc) for tag in self.platforms)


def _platform_fits(tag: str, machine: str, glibc: tuple[int, int]) -> bool:
    if tag in ("any", f"linux_{machine}"):
        return True
    match = _MANYLINUX.fullmatch(tag)
    if match:
        return match[3] == machine and (int(match[1]), int(match[2])) <= glibc
    return any(tag == f"{old}_{machine}" and needs <= glibc for old, needs in _LEGACY_MANYLINUX.items())


def set_from_directory(directory: Path, python: str, machine: str, glibc: tuple[int, int]) -> WheelSet:
    """The newest fitting wheels of a directory: the locked ones if all are there, else any torch in TORCH_RANGE."""
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".whl")
    except OSError as exc:
        raise WheelhouseError(f"--wheelhouse {directory}: {exc.strerror or exc}") from exc
    locked = locked_set(python, machine)
    if locked is not None and all(_is_whole(directory / wheel.file, wheel) for wheel in locked.wheels):
        return locked
    best: dict[str, tuple[tuple[int, ...], Path, _WheelName]] = {}
    for path in files:
        parsed = _WheelName.parse(path.name)
        if parsed is None or not parsed.fits(python, machine, glibc):
            continue
        if parsed.name == "torch" and not is_torch_accepted(parsed.version):
            continue
        candidate = (version_key(parsed.version), path, parsed)
        if parsed.name not in best or candidate[:2] > best[parsed.name][:2]:
            best[parsed.name] = candidate
    wheels = {name: _read_wheel(path, parsed) for name, (_, path, parsed) in best.items() if name in _WANTED}
    installer = wheels.pop(INSTALLER, None) or any_installer()
    missing = [name for name in DEVICE_PACKAGES if name not in wheels]
    if missing:
        libc = ".".join(map(str, glibc))
        names = ", ".join(f"torch{TORCH_RANGE_TEXT}" if name == "torch" else name for name in missing)
        raise WheelhouseError(
            f"--wheelhouse {directory} has no wheel of {names} for Python {python}, {machine}, glibc {libc}"
        )
    return WheelSet(
        python=python, machine=machine, wheels=tuple(wheels[name] for name in DEVICE_PACKAGES), installer=installer
    )


_WANTED = (*DEVICE_PACKAGES, INSTALLER)


def any_installer() -> Wheel:
    """The locked pip; it is pure Python and serves every board."""
    return next(iter(load_lock().values())).installer


def _read_wheel(path: Path, parsed: _WheelName) -> Wheel:
    return Wheel(
        name=parsed.name,
        version=parsed.version,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
    )


def choose_set(
    python: str, machine: str, glibc: tuple[int, int], *, wheelhouse: Path | None = None, torch_pin: str | None = None
) -> WheelSet:
    """Which wheels this board gets. `torch_pin` is the target's; a lock with another torch is an error, not a surprise.

    Raises PreflightError where there is no list for such a board, WheelhouseError where the directory lacks a wheel.
    """
    if wheelhouse is not None:
        return set_from_directory(wheelhouse, python, machine, glibc)
    found = locked_set(python, machine)
    if found is None and machine != "aarch64":
        raise PreflightError(
            f"there is no list of wheels for {machine} (on PyPI, torch for it is a CUDA build of several gigabytes)",
            "name a Python there that has torch and numpy (--python PATH), a directory of wheels (--wheelhouse DIR), "
            "or let the host fetch a CPU build itself (--online, with --torch-index)",
        )
    if found is None:
        known = ", ".join(key for key, each in load_lock() if each == machine)
        raise PreflightError(
            f"there are no locked wheels for Python {python} on {machine} (known: {known})",
            "name another Python on the board with --python PATH, or pass --wheelhouse DIR",
        )
    if torch_pin is not None and version_key(found.version("torch")) != version_key(torch_pin):
        raise PreflightError(
            f"the target asks for torch {torch_pin}, the locked list has {found.version('torch')}",
            "pass --wheelhouse DIR with that version, or use --online",
        )
    return found


def manifest(wheels: WheelSet) -> dict[str, Any]:
    """What the environment on the board says about itself."""
    return {
        "schema_version": 1,
        "lock_id": wheels.lock_id,
        "python": wheels.python,
        "machine": wheels.machine,
        "wheels": [{"name": each.name, "version": each.version, "sha256": each.sha256} for each in wheels.wheels],
    }

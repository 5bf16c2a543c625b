"""What a board says about itself before anything is pushed, and why to refuse it, with the remedy (exit code 5).

The facts describe the board's *Python*: a 32-bit userland under a 64-bit kernel counts as 32-bit. Nothing is measured
here and nothing on the board is changed. Limits: torch's aarch64 wheels need glibc 2.28; facts/boards.md §6 for the
rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_lts_host.errors import AgentProtocolError, PreflightError, last_line

OLDEST_PYTHON = (3, 10)
OLDEST_GLIBC = (2, 28)
INSTALL_BYTES = 1_500_000_000  # torch unpacked, the wheels beside it, and room for runs
RUN_BYTES = 50_000_000
MACHINES = ("aarch64", "x86_64")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFacts:
    """The answer of onboard/probe.py, checked for its types."""

    python: str
    executable: str
    python_bits: int
    platform: str
    soabi: str
    system: str
    machine: str
    kernel: str
    libc: str
    is_emulated: bool
    board_model: str | None
    cpu_model: str | None
    n_cores: int
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    boot_id: str | None
    uid: int | None
    root: dict[str, Any] = field(default_factory=dict)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)
    staged: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    installed: dict[str, str | None] = field(default_factory=dict)
    has_lzma: bool = True

    @classmethod
    def from_json(cls, where: str, data: Mapping[str, Any]) -> BoardFacts:
        """Raises AgentProtocolError when an answer is not what the probe prints."""
        kinds: dict[str, tuple[type, ...]] = {
            **dict.fromkeys(
                ("python", "executable", "platform", "soabi", "system", "machine", "kernel", "libc"), (str,)
            ),
            **dict.fromkeys(("python_bits", "n_cores"), (int,)),
            **dict.fromkeys(("board_model", "cpu_model", "boot_id"), (str, type(None))),
            **dict.fromkeys(("memory_total_bytes", "memory_available_bytes", "uid"), (int, type(None))),
            **dict.fromkeys(("root", "environments", "agents", "installed"), (dict,)),
            **dict.fromkeys(("staged", "runs"), (list,)),
            **dict.fromkeys(("is_emulated", "has_lzma"), (bool,)),
        }
        for name, allowed in kinds.items():
            if name not in data or not isinstance(data[name], allowed):
                raise AgentProtocolError(f"{where}: the probe's answer has no usable {name}")
        values: dict[str, Any] = {name: data[name] for name in kinds}
        values |= {name: tuple(data[name]) for name in ("staged", "runs")}
        if not isinstance(values["root"].get("path"), str) or not values["root"]["path"].startswith("/"):
            raise AgentProtocolError(f"{where}: the probe's answer names no absolute path")
        if not _VERSION.fullmatch(values["python"]):
            raise AgentProtocolError(f"{where}: the probe's answer names no version of Python")
        return cls(**values)

    @property
    def root_path(self) -> str:
        return str(self.root["path"])

    @property
    def python_tag(self) -> str:
        """As in the names of wheels: "3.11"."""
        return ".".join(self.python.split(".")[:2])

    @property
    def glibc(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"glibc ([0-9]{1,3})\.([0-9]{1,3})\b.*", self.libc)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def wheel_machine(self) -> str:
        """The machine that this Python's extension modules are for."""
        return self.platform.rpartition("-")[2]

    def device_json(self) -> dict[str, Any]:
        """As far as known without an agent, what device.json would say; for choosing the target."""
        return {
            "schema_version": 1,
            "model": self.board_model,
            "machine": self.machine,
            "kernel": self.kernel,
            "cpu_model": self.cpu_model,
            "cpu_features": [],
            "n_cores": self.n_cores,
            "memory_total_bytes": self.memory_total_bytes,
            "memory_available_bytes": self.memory_available_bytes,
            "page_size_bytes": None,
            "governor": None,
            "python": self.python,
            "python_bits": self.python_bits,
            "platform": self.platform,
            "libc": self.libc,
            "torch": self.installed.get("torch"),
            "numpy": self.installed.get("numpy"),
            "boot_id": self.boot_id,
            "is_emulated": self.is_emulated,
            "extra": {},
        }


def check_userland(facts: BoardFacts) -> None:
    """Refuse what can never run the agent: system, bits, Python, libc, lzma. Raises PreflightError."""
    if facts.system != "Linux":
        raise PreflightError(
            f"this host runs {facts.system}, a board has to run Linux",
            "to search on this machine itself: --target local",
        )
    if facts.python_bits != 64:
        raise PreflightError(
            f"the board's userland is 32-bit, whatever its kernel says ({facts.executable}); "
            "torch exists for 64-bit ARM only",
            "install a 64-bit system, for example Raspberry Pi OS (64-bit)",
        )
    if facts.wheel_machine not in MACHINES:
        raise PreflightError(
            f"the board's Python is built for {facts.platform}, for which there is no torch",
            f"edge-lts runs on Linux on {' and '.join(MACHINES)}",
        )
    if tuple(int(part) for part in facts.python.split(".")[:2]) < OLDEST_PYTHON:
        raise PreflightError(
            f"{facts.executable} is Python {facts.python}, older than 3.10",
            "install a newer one and name it: --python /usr/bin/python3.11",
        )
    if facts.glibc is None:
        libc = "musl" if "musl" in facts.soabi or "musl" in facts.libc else facts.libc or "an unknown C library"
        raise PreflightError(
            f"the board's C library is {libc}, and torch's wheels need glibc", "use a system with glibc, such as Debian"
        )
    if facts.glibc < OLDEST_GLIBC:
        raise PreflightError(
            f"the board has glibc {facts.glibc[0]}.{facts.glibc[1]}, torch's wheels need 2.28",
            "upgrade its system (Debian 11 or newer)",
        )
    if not facts.has_lzma:
        raise PreflightError(
            f"{facts.executable} was built without lzma, in which the agent is packed",
            "use the system's: --python /usr/bin/python3; or build that one again with liblzma-dev installed",
        )


def check_memory(facts: BoardFacts, min_memory_bytes: int) -> None:
    total = facts.memory_total_bytes
    if total is not None and total < min_memory_bytes:
        raise PreflightError(
            f"the board has {total / 1e6:.0f} MB of memory; torch and a search need {min_memory_bytes / 1e6:.0f} MB",
            "use a board with at least 1 GB",
        )


def check_root(facts: BoardFacts, needed_bytes: int) -> None:
    """Whether we may write to the data directory, and whether there is room. Raises PreflightError."""
    root, path = facts.root, facts.root_path
    if root.get("is_blocked"):
        raise PreflightError(f"{path} on the board is not a directory", "remove it, or choose another with --root DIR")
    owner = root.get("owner")
    if owner is not None and owner != facts.uid:
        raise PreflightError(
            f"{path} on the board belongs to another user (uid {owner}, we are {facts.uid})",
            "log in as its owner, or choose another directory with --root DIR",
        )
    foreign = root.get("foreign")
    if isinstance(foreign, list) and foreign:
        raise PreflightError(
            f"{path}/{foreign[0]} on the board belongs to another user, who could change what is run there",
            "remove it, or choose another directory with --root DIR",
        )
    if root.get("exchangeable_in"):
        raise PreflightError(
            f"other users of the board could put something else in the place of {path}: they may write to "
            f"{root['exchangeable_in']}",
            "choose a directory in your home with --root DIR",
        )
    if not root.get("is_writable"):
        raise PreflightError(
            f"we may not write to {root.get('ancestor')} on the board", "choose another with --root DIR"
        )
    free = root.get("free_bytes")
    if isinstance(free, int) and free < needed_bytes:
        raise PreflightError(
            f"the board has {free / 1e6:.0f} MB of free disk at {path}; {needed_bytes / 1e6:.0f} MB are needed",
            f"free {(needed_bytes - free) / 1e6:.0f} MB there, or choose another disk with --root DIR",
        )


def explain_no_python(where: str, python: str | None) -> PreflightError:
    if python is not None:
        return PreflightError(
            f"{where}: there is no {python} on the board", "name an interpreter that is there with --python"
        )
    return PreflightError(f"{where}: there is no Python 3 on the board", "install it there: sudo apt install python3")


def torch_problem(torch: Mapping[str, Any], version: str, *, is_ours: bool) -> PreflightError:
    """Why the proof of torch failed, from the agent's event `torch` (or the like of it)."""
    signal, status = torch.get("signal"), torch.get("exit_status")
    own = "deploy without --wheelhouse, --online and --python to get the version that is known to work"
    if signal == 4 or status in (-4, 132):
        return PreflightError(
            f"torch {version} dies of an illegal instruction (SIGILL) on this CPU: it is built for a newer one",
            "torch 2.9.1 runs on ARMv8.0 (Raspberry Pi 3 and 4); " + own,
        )
    if signal == 9 or status in (-9, 137):
        return PreflightError(
            f"torch {version} was killed while it was imported: too little memory", "close other programs there"
        )
    detail = last_line(str(torch.get("message") or "")) or f"exit status {status}"
    if torch.get("is_cuda_build") or "+cu" in version or "libcu" in detail:
        return PreflightError(
            f"torch {version} on the board is a CUDA build and does not run without CUDA's libraries ({detail})",
            "use a CPU build: "
            + (own if is_ours else "--torch-index with an index of CPU builds, or --wheelhouse DIR"),
        )
    return PreflightError(f"torch {version} cannot be used on the board: {detail}", own)

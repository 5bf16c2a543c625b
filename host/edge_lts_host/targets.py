"""Targets: classes of boards, described in TOML, each extending another (docs/targets.md).

A target says what a class of boards implies (instruction set, torch pin, wheel tags, threads, headroom) and how to
recognise a member. It holds no secrets and no code. Looked up by file name, first match wins: `--target-file`,
`$XDG_CONFIG_HOME/edge-lts/targets/`, built-in. Everything wrong with a file is a TargetError naming file and key.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.errors import TargetError, UsageError
from edge_lts_host.toml_files import BadToml, builtin_dir, config_dir, read_toml

if TYPE_CHECKING:
    from edge_lts.records import DeviceInfo

LOCAL = "local"
ARCHITECTURES = ("aarch64", "x86_64", "any")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){1,3}(\+[a-z0-9.]+)?", re.ASCII)
_PYTHON = re.compile(r"3\.[0-9]{1,2}", re.ASCII)
_TAG = re.compile(r"[a-z0-9_]+", re.ASCII)
_NO_SECRETS = "a target holds no secrets: put the login into ~/.ssh/config and name it with ssh_alias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How a device is recognised: all that is set must hold. `model` is a regular expression on the device's model."""

    machine: str | None = None
    model: str | None = None
    is_emulated: bool | None = None

    def accepts(self, device: DeviceInfo) -> bool:
        if self.machine is not None and device.machine != self.machine:
            return False
        if self.is_emulated is not None and bool(device.is_emulated) != self.is_emulated:
            return False
        return self.model is None or re.search(self.model, device.model or "") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A class of boards with everything inherited filled in. `chain` is this target, what it extends, and so on.

    `threads` 0 means all cores the agent may use. `torch` None means whatever the device's Python has (only `local`).
    `matches` are the rules of the whole chain; a target without a rule of its own (`is_automatic` false) is only chosen
    by name.
    """

    name: str
    chain: tuple[str, ...]
    origin: str
    description: str = ""
    arch: str = "any"
    threads: int = 0
    torch: str | None = None
    platform_tags: tuple[str, ...] = ()
    python_versions: tuple[str, ...] = ()
    memory_headroom: float = 0.2
    min_memory_bytes: int = 700_000_000
    is_emulated: bool = False
    ssh_alias: str | None = None
    matches: tuple[Match, ...] = ()
    is_automatic: bool = False

    @property
    def extends(self) -> str | None:
        return self.chain[1] if len(self.chain) > 1 else None

    @property
    def is_local(self) -> bool:
        """This machine: no SSH, same agent, same run folder."""
        return LOCAL in self.chain

    def is_a(self, name: str) -> bool:
        """Whether this target is `name` or extends it."""
        return name in self.chain

    def accepts(self, device: DeviceInfo) -> bool:
        return all(match.accepts(device) for match in self.matches)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "extends": self.extends,
            "description": self.description,
            "arch": self.arch,
            "threads": self.threads,
            "torch": self.torch,
            "platform_tags": list(self.platform_tags),
            "python_versions": list(self.python_versions),
            "memory_headroom": self.memory_headroom,
            "min_memory_bytes": self.min_memory_bytes,
            "is_emulated": self.is_emulated,
            "ssh_alias": self.ssh_alias,
            "origin": self.origin,
        }


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 500:
        raise ValueError("must be one line of text")
    return value


def _pattern(regex: re.Pattern[str], what: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not regex.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return check


def _strings(regex: re.Pattern[str], what: str) -> Callable[[object], tuple[str, ...]]:
    check = _pattern(regex, what)

    def check_all(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"must be a list, each {what}")
        if len(set(map(str, value))) != len(value):
            raise ValueError("names an entry twice")
        return tuple(check(entry) for entry in value)

    return check_all


def _integer(minimum: int, maximum: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError(f"must be an integer from {minimum} to {maximum}")
        return value

    return check


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError("must be a number from 0 to below 1")
    return float(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _one_of(*known: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return str(value)

    return check


def _regex(value: object) -> str:
    text = _text(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's doubts about [[a] are not the user's
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"is no regular expression: {exc}") from exc
    return text


# Dotted key in the file -> (field, check). `extends` and the keys of [match] are handled apart.
_FIELDS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "description": ("description", _text),
    "arch": ("arch", _one_of(*ARCHITECTURES)),
    "threads": ("threads", _integer(0, 1024)),
    "torch": ("torch", _pattern(_VERSION, "a version such as 2.9.1")),
    "is_emulated": ("is_emulated", _boolean),
    "ssh_alias": ("ssh_alias", _pattern(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"), "a Host of ~/.ssh/config")),
    "wheels.platform_tags": ("platform_tags", _strings(_TAG, "a tag such as manylinux_2_28_aarch64")),
    "wheels.python_versions": ("python_versions", _strings(_PYTHON, "a version such as 3.11")),
    "memory.headroom": ("memory_headroom", _fraction),
    "memory.min_bytes": ("min_memory_bytes", _integer(0, 1 << 50)),
}
_MATCH: dict[str, Callable[[object], Any]] = {
    "match.machine": _one_of("aarch64", "x86_64"),
    "match.model": _regex,
    "match.is_emulated": _boolean,
}
_TABLES = ("wheels", "memory", "match")
# A fact about one class, not about those that extend it.
_NOT_INHERITED = ("description", "ssh_alias")


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    extends: str | None
    fields: dict[str, Any]
    match: Match | None


def _flatten(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key in _TABLES:
            if not isinstance(value, Mapping):
                raise TargetError(path, key, f"must be a table: [{key}]")
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[key] = value
    return flat


def _parse(path: Path) -> _File:
    try:
        data = read_toml(path)
    except BadToml as exc:
        raise TargetError(path, None, str(exc)) from exc
    fields: dict[str, Any] = {}
    match: dict[str, Any] = {}
    extends = None
    for key, value in _flatten(path, data).items():
        try:
            if key == "extends":
                extends = _pattern(_NAME, "the name of a target")(value)
            elif key in _FIELDS:
                field, check = _FIELDS[key]
                fields[field] = check(value)
            elif key in _MATCH:
                match[key.partition(".")[2]] = _MATCH[key](value)
            elif "password" in key.lower() or "passphrase" in key.lower():
                raise TargetError(path, key[:80], _NO_SECRETS)
            else:
                known = ", ".join(("extends", *_FIELDS, *_MATCH))
                raise TargetError(path, key[:80], f"is unknown; known keys: {known}")
        except ValueError as exc:
            raise TargetError(path, key, f"{exc}, not {value!r:.60}") from exc
    return _File(path, extends, fields, Match(**match) if match else None)


def _toml_files(folder: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".toml"}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise TargetError(folder, None, f"cannot be read: {exc.strerror or exc}") from exc


def _find(target_files: Sequence[Path], environ: Mapping[str, str]) -> dict[str, tuple[Path, str]]:
    found: dict[str, tuple[Path, str]] = {}
    for path in target_files:
        if path.stem in found:
            raise TargetError(path, None, f"{found[path.stem][0]} describes the target {path.stem!r} already")
        found[path.stem] = (path, str(path))
    for path in _toml_files(config_dir(environ) / "targets").values():
        found.setdefault(path.stem, (path, str(path)))
    for path in _toml_files(builtin_dir("targets")).values():
        found.setdefault(path.stem, (path, "built-in"))
    return found


def load_targets(target_files: Sequence[str | Path] = (), environ: Mapping[str, str] = os.environ) -> dict[str, Target]:
    """All targets by name, inherited values filled in. Raises TargetError for any file that is wrong, used or not."""
    found = _find([Path(path) for path in target_files], environ)
    files: dict[str, _File] = {}
    for name, (path, _) in found.items():
        if not _NAME.fullmatch(name):
            raise TargetError(path, None, "its file name is no target name: lower case, digits, '-', '_' and '.'")
        files[name] = _parse(path)
    return {name: _resolve(name, files, found[name][1]) for name in sorted(files)}


def _resolve(name: str, files: Mapping[str, _File], origin: str) -> Target:
    chain = [name]
    while (parent := files[chain[-1]].extends) is not None:
        path = files[chain[-1]].path
        if parent in chain:
            circle = " -> ".join([*chain, parent])
            raise TargetError(path, "extends", f"goes in a circle ({circle}); give the file another name")
        if parent not in files:
            raise TargetError(
                path, "extends", f"names the unknown target {parent!r}; known: {', '.join(sorted(files))}"
            )
        chain.append(parent)
    merged: dict[str, Any] = {}
    for link in reversed(chain):
        inherited = {key: value for key, value in merged.items() if key not in _NOT_INHERITED}
        merged = {**inherited, **files[link].fields}
    # `matches` from the root down: the cheap and general rule first.
    matches = tuple(match for link in reversed(chain) if (match := files[link].match) is not None)
    return Target(
        name=name,
        chain=tuple(chain),
        origin=origin,
        matches=matches,
        is_automatic=files[name].match is not None,
        **merged,
    )


def get_target(targets: Mapping[str, Target], name: str) -> Target:
    """The target called `name`. Raises UsageError that lists what there is."""
    if name not in targets:
        raise UsageError(
            f"--target: no target is called {name!r:.80}; known: {', '.join(targets)} (see edge-lts targets)"
        )
    return targets[name]


def most_specific(targets: Mapping[str, Target], device: DeviceInfo) -> Target | None:
    """The target that recognises `device` with the longest chain; None when none does. Ties go to the first by name."""
    matching = [target for target in targets.values() if target.is_automatic and target.accepts(device)]
    return min(matching, key=lambda target: (-len(target.chain), target.name), default=None)

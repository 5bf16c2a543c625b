"""A user's inventory: a TOML file that lists boards and groups of them. Read and checked, never rewritten.

A device with a `console` and no `host` is reached over its serial console (docs/serial.md). No passwords: keys, or an
answer on the terminal.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_lts_host import meters
from edge_lts_host.errors import TargetError, UsageError
from edge_lts_host.hosts import HostEntry, parse_destination
from edge_lts_host.targets import LOCAL
from edge_lts_host.toml_files import BadToml, read_toml
from edge_lts_host.transport.serial_port import DEFAULT_BAUD_HZ, SerialDestination

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """A user's list of boards. `groups` maps a group to patterns of device names."""

    devices: dict[str, HostEntry]
    groups: dict[str, tuple[str, ...]]
    parallel: int | None = None


def load_inventory(path: Path) -> Inventory:
    """Read and check an inventory. Raises TargetError naming file and key."""
    try:
        data = read_toml(path)
    except BadToml as exc:
        raise TargetError(path, None, str(exc)) from exc
    _only(path, "", data, ("defaults", "devices", "groups"))
    defaults = _table(path, "defaults", data.get("defaults", {}))
    _only(path, "defaults.", defaults, ("parallel", "target"))
    parallel = defaults.get("parallel")
    if parallel is not None and (
        isinstance(parallel, bool) or not isinstance(parallel, int) or not 1 <= parallel <= 256
    ):
        raise TargetError(path, "defaults.parallel", f"must be an integer from 1 to 256, not {parallel!r:.40}")
    target = _word(path, "defaults.target", defaults.get("target"))
    devices: dict[str, HostEntry] = {}
    seen: dict[str, str] = {}
    for name, table in _table(path, "devices", data.get("devices", {})).items():
        entry = _device(path, name, _table(path, f"devices.{name}", table), target)
        if entry.destination in seen:
            raise TargetError(
                path, f"devices.{name}.host", f"is {entry.destination!r}, as in devices.{seen[entry.destination]}"
            )
        seen[entry.destination] = name
        devices[name] = entry
    groups: dict[str, tuple[str, ...]] = {}
    for name, members in _table(path, "groups", data.get("groups", {})).items():
        key = f"groups.{name}"
        if name in devices:
            raise TargetError(path, key, "is a device's name, too")
        groups[name] = _words(path, key, members)
        for member in groups[name]:
            if not fnmatch.filter(devices, member):
                raise TargetError(path, key, f"{member!r} matches no device; devices: {', '.join(devices) or 'none'}")
    return Inventory(devices=devices, groups=groups, parallel=parallel)


def _device(path: Path, name: str, table: Mapping[str, Any], target: str | None) -> HostEntry:
    key = f"devices.{name:.80}"
    if not _NAME.fullmatch(name) or name == LOCAL:
        raise TargetError(path, key, "is no device name: letters, digits, '.', '-' and '_', and not 'local'")
    if any("password" in inner.lower() for inner in table):
        raise TargetError(
            path, key, "an inventory holds no passwords: use keys (ssh-copy-id) or answer on the terminal"
        )
    _only(path, f"{key}.", table, ("host", "target", "tags", "power", "console"))
    console = _console(path, f"{key}.console", table.get("console"))
    host = table.get("host", console or name)
    if not isinstance(host, str):
        raise TargetError(path, f"{key}.host", f"must be [USER@]HOST[:PORT], not {host!r:.60}")
    if host != console:
        try:
            parse_destination(host)
        except UsageError as exc:
            raise TargetError(path, f"{key}.host", str(exc).partition(": ")[2]) from exc
    return HostEntry(
        name=name,
        destination=host,
        target=_word(path, f"{key}.target", table.get("target")) or target,
        tags=_words(path, f"{key}.tags", table.get("tags", [])),
        extra=_power(path, f"{key}.power", table.get("power")),
    )


def _power(path: Path, key: str, value: object) -> dict[str, Any]:
    """[devices.NAME.power] with `kind` and `port`, as --meter writes them; {} where there is none."""
    if value is None:
        return {}
    table = _table(path, key, value)
    _only(path, f"{key}.", table, ("kind", "port"))
    text = ":".join(str(table[name]) for name in ("kind", "port") if table.get(name))
    try:
        meters.parse(text)
    except UsageError as exc:
        raise TargetError(path, key, str(exc).partition(": ")[2]) from exc
    return {"meter": text}


def _console(path: Path, key: str, value: object) -> str | None:
    """[devices.NAME.console] with `port`, `baud` and `user` as a destination: the board's link if it has no `host`."""
    if value is None:
        return None
    table = _table(path, key, value)
    _only(path, f"{key}.", table, ("port", "baud", "user"))
    port, baud, user = table.get("port"), table.get("baud", DEFAULT_BAUD_HZ), table.get("user")
    if not isinstance(port, str):
        raise TargetError(path, f"{key}.port", f"must be /dev/..., rfc2217://... or socket://..., not {port!r:.60}")
    if isinstance(baud, bool) or not isinstance(baud, int):
        raise TargetError(path, f"{key}.baud", f"must be an integer, not {baud!r:.40}")
    if not isinstance(user, (str, type(None))):
        raise TargetError(path, f"{key}.user", f"must be a name, not {user!r:.60}")
    try:
        return str(SerialDestination.of(port, user, baud))
    except UsageError as exc:
        raise TargetError(path, key, str(exc)) from exc


def _only(path: Path, prefix: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in data:
        if key not in known:
            raise TargetError(path, f"{prefix}{key:.80}", f"is unknown; known keys: {', '.join(known)}")


def _table(path: Path, key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TargetError(path, key, f"must be a table: [{key}]")
    return value


def _word(path: Path, key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise TargetError(path, key, f"must be a name, not {value!r:.60}")
    return value


def _words(path: Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word and word.isprintable() for word in value):
        raise TargetError(path, key, f"must be a list of words, not {value!r:.60}")
    if len(set(value)) != len(value):
        raise TargetError(path, key, "names an entry twice")
    return tuple(value)

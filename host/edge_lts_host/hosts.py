"""Which boards there are: those `deploy` remembers, and those a user's inventory names. Selecting among them.

`$XDG_STATE_HOME/edge-lts/hosts.json` is ours: written atomically, mode 0600, under a lock, because several deploys may
end at once. The inventory TOML is the user's (inventory.py). Neither holds a password.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.targets import LOCAL, Target, get_target, load_targets
from edge_lts_host.toml_files import state_dir
from edge_lts_host.transport.serial_port import DEFAULT_BAUD_HZ, SerialDestination, is_serial

HOSTS_SCHEMA_VERSION = 1
# [USER@]HOST[:PORT], HOST a name, an ssh-config alias, an IPv4 address or an IPv6 address in brackets.
_DESTINATION = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.$+-]*)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """One board as the workstation knows it. What only a deploy finds out is None before the first one.

    `destination` is [USER@]HOST[:PORT] as the user gave it, or serial:[USER@]PORT[,BAUD]. On the board: `root` is the
    data directory, `python` the interpreter, `site` the environment's folder, `agent` the payload's path, all absolute.
    """

    name: str
    destination: str
    target: str | None = None
    root: str | None = None
    python: str | None = None
    site: str | None = None
    agent: str | None = None
    device: dict[str, Any] | None = None
    deployed_at: str | None = None
    tags: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_deployed(self) -> bool:
        return self.deployed_at is not None

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL and not self.destination

    def to_json(self) -> dict[str, Any]:
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**data, "tags": list(self.tags)}

    @classmethod
    def from_json(cls, data: object) -> HostEntry:
        """Raises ValueError saying what is wrong."""
        if not isinstance(data, Mapping):
            raise ValueError("a host must be an object")
        known = {item.name for item in fields(cls)}
        unknown = sorted(str(key) for key in data if key not in known)
        if unknown:
            raise ValueError(f"a host has the unknown key {unknown[0]!r:.80}")
        values = dict(data)
        for key in ("name", "destination"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"{key} of a host must be text")
        for key in ("target", "root", "python", "site", "agent", "deployed_at"):
            if not isinstance(values.get(key), (str, type(None))):
                raise ValueError(f"{key} of a host must be text or null")
        if not isinstance(values.get("device"), (dict, type(None))) or not isinstance(values.get("extra", {}), dict):
            raise ValueError("device and extra of a host must be objects")
        tags = values.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError("tags of a host must be a list of words")
        if values["destination"]:
            check_destination(values["destination"])
        values["tags"] = tuple(tags)
        return cls(**values)


LOCAL_HOST = HostEntry(name=LOCAL, destination="", target=LOCAL)


def parse_destination(text: str, name: str = "--host") -> tuple[str | None, str, int | None]:
    """(user, host, port) of [USER@]HOST[:PORT]; an IPv6 address stands in brackets. Raises UsageError."""
    match = _DESTINATION.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 1 <= port <= 65535):
        raise UsageError(f"{name}: {text!r:.120} is no [USER@]HOST[:PORT]; an IPv6 address stands in [brackets]")
    return match["user"], match["host"].strip("[]"), port


def check_destination(text: str) -> None:
    """Raises UsageError unless `text` is a board's place: [USER@]HOST[:PORT] or serial:[USER@]PORT[,BAUD]."""
    if is_serial(text):
        SerialDestination.parse(text)
    else:
        parse_destination(text)


def hosts_file(environ: Mapping[str, str] = os.environ) -> Path:
    return state_dir(environ) / "hosts.json"


def load_hosts(environ: Mapping[str, str] = os.environ) -> dict[str, HostEntry]:
    """The remembered hosts by name. Raises StoreError when the file is damaged."""
    path = hosts_file(environ)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        data = json.loads(raw)
        if not isinstance(data, dict) or not isinstance(data.get("hosts"), dict):
            raise ValueError("it holds no hosts")
        version = data.get("schema_version")
        if isinstance(version, int) and version > HOSTS_SCHEMA_VERSION:
            raise ValueError(f"it has schema_version {version}, which a newer edge-lts wrote: upgrade edge-lts")
        hosts = {str(name): HostEntry.from_json(entry) for name, entry in data["hosts"].items()}
        odd = [name for name, entry in hosts.items() if entry.name != name]
        if odd:
            raise ValueError(f"the host {odd[0]!r:.80} is filed under another name")
    except (ValueError, RecursionError) as exc:
        raise StoreError(f"{path} is damaged: {exc!s:.200}; move it away and deploy again") from exc
    return hosts


def remember(entry: HostEntry, environ: Mapping[str, str] = os.environ) -> None:
    """Add or replace one host. Safe against other threads and processes doing the same."""
    with _changing(environ) as hosts:
        hosts[entry.name] = entry


def forget(name: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remove one host; no error when it is not there."""
    with _changing(environ) as hosts:
        hosts.pop(name, None)


@contextmanager
def _changing(environ: Mapping[str, str]) -> Iterator[dict[str, HostEntry]]:
    from edge_lts_host.store import write_atomic

    path = hosts_file(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_name("hosts.json.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hosts = load_hosts(environ)
            yield hosts
            data = {
                "schema_version": HOSTS_SCHEMA_VERSION,
                "hosts": {name: hosts[name].to_json() for name in sorted(hosts)},
            }
            write_atomic(path, json.dumps(data, indent=1).encode() + b"\n", mode=0o600)
    except OSError as exc:
        raise StoreError(f"cannot write {path}: {exc.strerror or exc}") from exc


def find_host(text: str, hosts: Mapping[str, HostEntry]) -> HostEntry | None:
    """The host that `text` means: its name, its destination, or the bare host name if only one has it."""
    if text in hosts:
        return hosts[text]
    exact = [entry for entry in hosts.values() if entry.destination == text]
    if exact:
        return exact[0]
    if is_serial(text):
        return _find_console(SerialDestination.parse(text), hosts)
    user, host, port = parse_destination(text)
    alike = []
    for entry in hosts.values():
        if not entry.destination or is_serial(entry.destination):
            continue
        known_user, known_host, known_port = parse_destination(entry.destination)
        if known_host == host and user in (None, known_user) and port in (None, known_port):
            alike.append(entry)
    if len(alike) > 1:
        raise UsageError(f"--host: {text!r} may be {' or '.join(entry.destination for entry in alike)}; say which")
    return alike[0] if alike else None


def _find_console(wanted: SerialDestination, hosts: Mapping[str, HostEntry]) -> HostEntry | None:
    """The board at the end of that port, if no other user or speed is asked for."""
    for entry in hosts.values():
        if not is_serial(entry.destination):
            continue
        known = SerialDestination.parse(entry.destination)
        if wanted.port == known.port and wanted.user in (None, known.user) and wanted.baud_hz == known.baud_hz:
            return entry
    return None


def select_hosts(
    args: argparse.Namespace,
    *,
    must_be_deployed: bool = True,
    default: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[HostEntry]:
    """The boards that --target, --host, --inventory and --limit choose, in the order given, or `[LOCAL_HOST]`.

    --host and --inventory name boards; without them all remembered ones are meant. --target then keeps those whose
    target is it or extends it, --limit those whose name, destination, tag or group matches. With nothing given:
    `default` is `local` (this machine), `all` (every remembered host) or None (a UsageError). `must_be_deployed` false
    (deploy) admits new boards, and then --target does not filter: it says what they are to become, and its `ssh_alias`
    is the board when none is named. Never returns an empty list: raises UsageError instead.
    """
    given: Sequence[str] = getattr(args, "host", None) or ()
    inventory_path = getattr(args, "inventory", None)
    limit = getattr(args, "limit", None)
    wanted = getattr(args, "target", None)
    targets = load_targets(getattr(args, "target_file", None) or (), environ)
    target = get_target(targets, wanted) if wanted else None
    if (target is not None and target.is_local) or (
        target is None and default == LOCAL and not (given or inventory_path)
    ):
        if given or inventory_path:
            raise UsageError("--target local is this machine: leave out --host and --inventory")
        return [replace(LOCAL_HOST, target=target.name if target else LOCAL)]
    if not (given or inventory_path or target or limit) and default is None:
        raise UsageError(
            "say where: --target NAME (edge-lts targets lists them), --host [USER@]HOST[:PORT] or --inventory FILE"
        )
    if not (must_be_deployed or given or inventory_path) and target is not None and target.ssh_alias:
        given = [target.ssh_alias]
    hosts, groups = _named_hosts(given, inventory_path, must_be_deployed, environ)
    if limit:
        kept = [entry for entry in hosts if _matches(limit, entry, groups)]
        if not kept:
            raise UsageError(
                f"--limit: {limit!r:.80} matches none of {', '.join(entry.name for entry in hosts) or 'no hosts'}"
            )
        hosts = kept
    if must_be_deployed:
        _check_deployed(hosts)
        if target is not None:
            hosts = _of_target(hosts, target, targets, is_strict=bool(given))
    if not hosts:
        raise UsageError("no board has been deployed to yet: edge-lts deploy --host [USER@]HOST")
    return hosts


def _named_hosts(
    given: Sequence[str], inventory_path: str | None, must_be_deployed: bool, environ: Mapping[str, str]
) -> tuple[list[HostEntry], dict[str, tuple[str, ...]]]:
    from edge_lts_host.inventory import Inventory, load_inventory

    remembered = load_hosts(environ)
    inventory = load_inventory(Path(inventory_path)) if inventory_path else Inventory(devices={}, groups={})
    listed = {name: _merge(entry, remembered) for name, entry in inventory.devices.items()}
    if not given:
        if inventory_path or must_be_deployed:
            return list((listed if inventory_path else remembered).values()), inventory.groups
        raise UsageError("say which board: --host [USER@]HOST[:PORT] or --inventory FILE")
    known = {**remembered, **listed}
    hosts: list[HostEntry] = []
    for text in given:
        entry = find_host(text, known) or HostEntry(name=text, destination=text)
        if entry.name not in [other.name for other in hosts]:
            hosts.append(entry)
    return hosts, inventory.groups


def _merge(entry: HostEntry, remembered: Mapping[str, HostEntry]) -> HostEntry:
    """An inventory's device with what deploy found out about it, whichever name it was deployed under."""
    same = [other for other in remembered.values() if other.destination == entry.destination]
    if not same:
        return entry
    return replace(same[0], name=entry.name, tags=entry.tags, extra={**same[0].extra, **entry.extra})


def _matches(limit: str, entry: HostEntry, groups: Mapping[str, tuple[str, ...]]) -> bool:
    words = {entry.name, entry.destination, *entry.tags}
    if is_serial(entry.destination):
        words.add(SerialDestination.parse(entry.destination).port)
    elif entry.destination:
        words.add(parse_destination(entry.destination)[1])
    words.update(
        group for group, members in groups.items() if any(fnmatch.fnmatchcase(entry.name, member) for member in members)
    )
    return any(fnmatch.fnmatchcase(word, pattern) for pattern in limit.split(",") for word in words)


def _check_deployed(hosts: Sequence[HostEntry]) -> None:
    new = [entry for entry in hosts if not entry.is_deployed]
    if new:
        raise UsageError(f"{new[0].name} has not been deployed to from here; first: {how_to_deploy(new[0])}")


def how_to_deploy(entry: HostEntry) -> str:
    """The command that makes that board ready."""
    if not is_serial(entry.destination):
        return f"edge-lts deploy --host {entry.destination}"
    console = SerialDestination.parse(entry.destination)
    user = f" --user {console.user}" if console.user else ""
    baud = f" --baud {console.baud_hz}" if console.baud_hz != DEFAULT_BAUD_HZ else ""
    return f"edge-lts deploy --serial {console.port}{user}{baud}"


def _of_target(
    hosts: Sequence[HostEntry], target: Target, targets: Mapping[str, Target], *, is_strict: bool
) -> list[HostEntry]:
    others = [entry for entry in hosts if not _is_member(entry, target, targets)]
    if is_strict and others:
        raise UsageError(f"--target: {others[0].name} was deployed as {others[0].target}, which is no {target.name}")
    kept = [entry for entry in hosts if entry not in others]
    if not kept:
        known = ", ".join(f"{entry.name} ({entry.target})" for entry in hosts) or "none"
        raise UsageError(
            f"--target: no deployed board is a {target.name}; deployed: {known}; "
            "add one: edge-lts deploy --host [USER@]HOST"
        )
    return kept


def list_hosts(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> list[HostEntry]:
    """What --target, --inventory and --limit leave of the known boards, deployed or not; empty when there are none."""
    hosts, groups = _named_hosts((), args.inventory, True, environ)
    targets = load_targets(args.target_file or (), environ)
    if args.target:
        target = get_target(targets, args.target)
        hosts = [entry for entry in hosts if _is_member(entry, target, targets)]
    return [entry for entry in hosts if not args.limit or _matches(args.limit, entry, groups)]


def _is_member(entry: HostEntry, target: Target, targets: Mapping[str, Target]) -> bool:
    if entry.target is None:
        return False
    known = targets.get(entry.target)  # None: deployed with a --target-file that is not given now
    return entry.target == target.name if known is None else known.is_a(target.name)

"""Where to connect and how: `[USER@]HOST[:PORT]`, the user's options, and what ssh_config says about the host.

ssh_config is resolved by OpenSSH itself (`ssh -G HOST`), so `Include` and `Match` mean what they mean to ssh. Without
an ssh program paramiko's parser stands in; it knows neither `Include` nor jumps. Nothing here opens a connection.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_lts_host.errors import UsageError, last_line, printable

Strictness = Literal["ask", "accept-new", "yes", "no"]
# Asked with a text and whether the answer must not be shown; returns the answer.
Prompt = Callable[[str, bool], str]

_SSH_G_TIMEOUT_S = 20.0
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?\Z")
_USER = re.compile(r"[^\s:/'\"`$;&|<>()\\\x00-\x1f\x7f-]" + r"[^\s:/'\"`$;&|<>()\\\x00-\x1f\x7f]*\Z")
# OpenSSH prints true and false where its manual says yes and no.
_STRICTNESS: dict[str, Strictness] = {
    "ask": "ask",
    "accept-new": "accept-new",
    "yes": "yes",
    "true": "yes",
    "no": "no",
    "off": "no",
    "false": "no",
}
_terminal = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class SshDestination:
    """What the user typed: `host` may be an alias of ssh_config; None leaves user and port to it."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> SshDestination:
        """Read `[USER@]HOST[:PORT]`, an IPv6 address in brackets. Raises UsageError."""
        shown = printable(text)
        hint = "write [USER@]HOST[:PORT], an IPv6 address in brackets: pi@[fe80::1]:22"
        user, has_user, rest = text.rpartition("@")
        if has_user and not _USER.match(user):
            raise UsageError(f"{shown!r}: no valid user name before @; {hint}")
        if rest.startswith("["):
            host, has_bracket, tail = rest[1:].partition("]")
            if not has_bracket or not _IPV6.match(host) or (tail and not tail.startswith(":")):
                raise UsageError(f"{shown!r}: not an IPv6 address in brackets; {hint}")
            port_text = tail[1:] if tail else None
        else:
            host, has_port, tail = rest.partition(":")
            if ":" in tail or not _HOST.match(host):
                raise UsageError(f"{shown!r} is not a host; {hint}")
            port_text = tail if has_port else None
        return cls(host=host, user=user if has_user else None, port=_port(shown, port_text))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def _port(shown: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise UsageError(f"{shown!r}: {text!r} is not a port (1 to 65535)")
    return int(text)


def ask_on_terminal(text: str, is_secret: bool) -> str:
    """Ask the user; several hosts take turns. Prompts go to the terminal or stderr, never to stdout."""
    with _terminal:
        if is_secret:
            return getpass.getpass(text)
        sys.stderr.write(text)
        sys.stderr.flush()
        return sys.stdin.readline().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """What the command line says about SSH; None leaves it to ssh_config. `is_interactive`: somebody can answer
    `prompt`."""

    config_file: Path | None = None
    identity_files: tuple[Path, ...] = ()
    known_hosts_file: Path | None = None
    strict_host_key_checking: Strictness | None = None
    connect_timeout_s: float | None = None
    port: int | None = None
    is_interactive: bool = False
    prompt: Prompt = ask_on_terminal
    # Tests shorten these.
    banner_timeout_s: float = 15.0
    auth_timeout_s: float = 15.0
    heartbeat_s: float = 15.0
    n_attempts: int = 3

    def __post_init__(self) -> None:
        for path in self.identity_files:
            if not path.expanduser().is_file():
                raise UsageError(f"identity file {path} does not exist")
        if self.config_file is not None and not self.config_file.expanduser().is_file():
            raise UsageError(f"ssh config file {self.config_file} does not exist")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshHost:
    """One host with everything decided: where, as whom, with which keys and whose word on its identity."""

    alias: str
    host_name: str
    port: int
    user: str
    identity_files: tuple[Path, ...] = ()
    has_identities_only: bool = False
    agent_socket: str | None = None
    proxy_command: str | None = None
    known_hosts_files: tuple[Path, ...] = ()
    global_known_hosts_files: tuple[Path, ...] = ()
    host_key_alias: str | None = None
    hashes_known_hosts: bool = False
    strict_host_key_checking: Strictness = "ask"
    connect_timeout_s: float = 10.0

    @property
    def name(self) -> str:
        """USER@ALIAS, with the port when it is not 22: what messages call the device."""
        host = f"[{self.alias}]" if ":" in self.alias else self.alias
        return f"{self.user}@{host}" + (f":{self.port}" if self.port != 22 else "")


@dataclass(slots=True)
class _Settings:
    """Keywords of ssh_config in lower case, each with all its values."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def first(self, key: str) -> str | None:
        found = self.values.get(key)
        return found[0] if found and found[0].lower() != "none" else None

    def number(self, key: str, default: float) -> float:
        value = self.first(key)
        try:
            return float(value or default) or default
        except ValueError as exc:
            raise UsageError(f"ssh_config: {key} is {printable(str(value))!r}, not a number") from exc

    def every(self, key: str) -> list[str]:
        return [value for value in self.values.get(key, []) if value.lower() != "none"]


def resolve(destination: SshDestination, options: SshOptions) -> SshHost:
    """Everything about `destination` that ssh_config and the command line say. Raises UsageError on a broken
    ssh_config."""
    ssh = shutil.which("ssh")
    port = destination.port or options.port
    settings = _ask_ssh(ssh, destination, port, options) if ssh else _ask_paramiko(destination, options)
    host_name = settings.first("hostname") or destination.host
    user = destination.user or settings.first("user") or getpass.getuser()
    port = port or int(settings.number("port", 22))
    tokens = {"%": "%", "d": str(Path.home()), "h": host_name, "n": destination.host, "p": str(port), "r": user}
    tokens |= {"u": getpass.getuser(), "k": settings.first("hostkeyalias") or destination.host, "i": str(os.getuid())}

    def paths(values: list[str]) -> tuple[Path, ...]:
        return tuple(Path(_expand(value, tokens)).expanduser() for value in values)

    known_hosts = paths(" ".join(settings.every("userknownhostsfile")).split())
    if "userknownhostsfile" in settings.values and not known_hosts:
        known_hosts = (Path("/dev/null"),)  # none: new keys are forgotten
    if options.known_hosts_file is not None:
        known_hosts = (options.known_hosts_file.expanduser(),)
    named = tuple(path.expanduser() for path in options.identity_files)
    timeout_s = options.connect_timeout_s or settings.number("connecttimeout", 10)
    strictness = _STRICTNESS.get((settings.first("stricthostkeychecking") or "ask").lower(), "ask")
    return SshHost(
        alias=destination.host,
        host_name=host_name,
        port=port,
        user=user,
        identity_files=named + paths(settings.every("identityfile")),
        has_identities_only=(settings.first("identitiesonly") or "no").lower() in ("yes", "true"),
        agent_socket=_agent_socket(settings, tokens),
        proxy_command=_proxy_command(settings, tokens, ssh, options),
        known_hosts_files=known_hosts or (Path.home() / ".ssh" / "known_hosts",),
        global_known_hosts_files=paths(" ".join(settings.every("globalknownhostsfile")).split()),
        host_key_alias=settings.first("hostkeyalias"),
        hashes_known_hosts=(settings.first("hashknownhosts") or "no").lower() in ("yes", "true"),
        strict_host_key_checking=options.strict_host_key_checking or strictness,
        connect_timeout_s=timeout_s,
    )


def _ask_ssh(ssh: str, destination: SshDestination, port: int | None, options: SshOptions) -> _Settings:
    argv = [ssh, "-G"]
    if options.config_file is not None:
        argv += ["-F", str(options.config_file.expanduser())]
    if port is not None:
        argv += ["-p", str(port)]
    if destination.user is not None:
        argv += ["-l", destination.user]
    argv += ["--", destination.host]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SSH_G_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise UsageError(f"`ssh -G {destination.host}` did not end; does ssh_config hold a `Match exec`?") from exc
    if done.returncode != 0:
        raise UsageError(f"ssh_config cannot be used for {destination.host}: {last_line(done.stderr)}")
    settings = _Settings()
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        settings.values.setdefault(key.lower(), []).append(value.strip())
    return settings


def _ask_paramiko(destination: SshDestination, options: SshOptions) -> _Settings:
    import paramiko

    settings = _Settings()
    path = (options.config_file or Path("~/.ssh/config")).expanduser()
    if not path.is_file():
        return settings
    try:
        found: Mapping[str, object] = paramiko.SSHConfig.from_path(str(path)).lookup(destination.host)
    except (paramiko.SSHException, OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: {printable(str(exc))}") from exc
    for key, value in found.items():
        settings.values[key.lower()] = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return settings


def _agent_socket(settings: _Settings, tokens: Mapping[str, str]) -> str | None:
    """The agent's socket: IdentityAgent, else SSH_AUTH_SOCK; None without an agent."""
    wanted = (settings.values.get("identityagent") or ["SSH_AUTH_SOCK"])[0]
    if wanted.lower() == "none":
        return None
    if wanted == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK")
    if wanted.startswith("$"):
        return os.environ.get(wanted.strip("${}"))
    return os.path.expanduser(_expand(wanted, tokens))


def _proxy_command(settings: _Settings, tokens: Mapping[str, str], ssh: str | None, options: SshOptions) -> str | None:
    """A shell command that carries the connection. Jumps go through OpenSSH, which checks the jump host's key
    itself."""
    jump = settings.first("proxyjump")
    if not jump:
        command = settings.first("proxycommand")
        return _expand(command, tokens) if command else None
    if ssh is None:
        raise UsageError(f"ProxyJump {jump} needs the ssh program; install OpenSSH's client")
    *before, last = jump.split(",")
    hop = SshDestination.parse(last.removeprefix("ssh://"))
    argv = [ssh, "-W", f"[{tokens['h']}]:{tokens['p']}"]
    if options.config_file is not None:
        argv += ["-F", str(options.config_file.expanduser())]
    if before:
        argv += ["-J", ",".join(before)]
    if not options.is_interactive:
        argv += ["-o", "BatchMode=yes"]
    if options.known_hosts_file is not None:
        argv += ["-o", f"UserKnownHostsFile={options.known_hosts_file.expanduser()}"]
    strictness = options.strict_host_key_checking
    if strictness is None:
        strictness = _STRICTNESS.get(
            (_ask_ssh(ssh, hop, hop.port, options).first("stricthostkeychecking") or "").lower()
        )
    if strictness is not None:
        # With `no` OpenSSH would go on behind a changed key; ours is fatal whatever the options say.
        argv += ["-o", f"StrictHostKeyChecking={'accept-new' if strictness == 'no' else strictness}"]
    if hop.user is not None:
        argv += ["-l", hop.user]
    if hop.port is not None:
        argv += ["-p", str(hop.port)]
    return shlex.join([*argv, "--", hop.host])


def _expand(value: str, tokens: Mapping[str, str]) -> str:
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), value)

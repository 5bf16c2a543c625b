"""Is this server the one we know? known_hosts as OpenSSH reads and writes it (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

paramiko's reader forgets line numbers, patterns and markers, and its writer rewrites other people's lines; here the
file is only read and, for a new key, extended by one line. A changed key is fatal whatever the options say.
Certificates of hosts (`@cert-authority`) are not understood; the message says so when that is the reason.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_lts_host.errors import HostKeyError
from edge_lts_host.transport.ssh_config import SshHost, SshOptions

# What a server may call itself with a key of this type.
_RSA_ALGORITHMS = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A public key of a server: its type (`ssh-ed25519`) and its bytes as they stand, in base64, in known_hosts."""

    key_type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` writes it: SHA256: and base64 without padding."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode("ascii").rstrip("=")

    @property
    def short_type(self) -> str:
        """As OpenSSH says it to people: ED25519, ECDSA, RSA."""
        return self.key_type.removeprefix("ssh-").removeprefix("sk-").split("-")[0].upper()

    def line(self, names: str) -> str:
        return f"{names} {self.key_type} {base64.b64encode(self.blob).decode('ascii')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLine:
    """One usable line of a known_hosts file; `marker` is "", "@revoked" or "@cert-authority"."""

    path: Path
    number: int
    marker: str
    names: str
    key: HostKey

    def is_about(self, name: str) -> bool:
        """Whether the line speaks of `name`: hashed, plain, wildcards, negation."""
        if self.names.startswith("|1|"):
            return _is_hash_of(name, self.names)
        patterns = self.names.lower().split(",")
        if any(p.startswith("!") and _matches(name, p[1:]) for p in patterns):
            return False
        return any(_matches(name, p) for p in patterns if not p.startswith("!"))


def read_known_hosts(paths: Iterable[Path]) -> list[KnownLine]:
    """Every line that can be used, in order; what cannot be read or parsed is passed over, as OpenSSH does."""
    lines = []
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        except OSError:
            continue
        for number, raw in enumerate(text.splitlines(), 1):
            words = raw.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#"):
                continue
            try:
                blob = base64.b64decode(words[2], validate=True)
            except (binascii.Error, ValueError):
                continue
            key = HostKey(key_type=words[1], blob=blob)
            lines.append(KnownLine(path=path, number=number, marker=marker, names=words[0], key=key))
    return lines


def known_name(host: SshHost) -> str:
    """The name under which the host stands in known_hosts: the alias of its key, HOST, or [HOST]:PORT."""
    if host.host_key_alias:
        return host.host_key_alias.lower()
    name = host.host_name.lower()
    return name if host.port == 22 else f"[{name}]:{host.port}"


def preferred_algorithms(host: SshHost, supported: Iterable[str]) -> tuple[str, ...]:
    """`supported` host key algorithms, those we hold a key for first: a server shows the first it has.

    Without it a host known by its ED25519 key would show an RSA key and look like a stranger.
    """
    name = known_name(host)
    lines = read_known_hosts((*host.known_hosts_files, *host.global_known_hosts_files))
    known: set[str] = set()
    for line in lines:
        if line.marker == "" and (line.is_about(name) or line.is_about(host.host_name.lower())):
            known.update(_RSA_ALGORITHMS if line.key.key_type == "ssh-rsa" else (line.key.key_type,))
    return tuple(sorted(supported, key=lambda algorithm: algorithm not in known))


def check_host_key(host: SshHost, key: HostKey, options: SshOptions, supported: Iterable[str]) -> None:
    """Return if `key` is to be trusted as the key of `host`; a new one is asked about or remembered as the options say.

    Raises HostKeyError for a key that is unknown, changed, revoked or refused. `supported` are the algorithms we can
    speak: a host that is known by a key of one of them and shows another instead has changed.
    """
    name = known_name(host)
    lines = read_known_hosts((*host.known_hosts_files, *host.global_known_hosts_files))
    about = [line for line in lines if line.is_about(name)]
    for line in about:
        if line.marker == "@revoked" and line.key == key:
            raise HostKeyError(
                host.name, f"its key is marked as revoked ({line.path}, line {line.number})", "do not connect"
            )
    plain = [line for line in about if line.marker == ""]
    if any(line.key == key for line in plain):
        return
    speakable = {"ssh-rsa" if algorithm in _RSA_ALGORITHMS else algorithm for algorithm in supported}
    changed = [line for line in plain if line.key.key_type in speakable | {key.key_type}]
    if changed:
        # The line of the same type is the one to show, if there is one.
        line = min(changed, key=lambda found: found.key.key_type != key.key_type)
        raise HostKeyError(
            host.name,
            f"THE HOST KEY HAS CHANGED: {line.path}, line {line.number} holds {line.key.fingerprint} "
            f"({line.key.short_type}), the server shows {key.fingerprint} ({key.short_type}); "
            "somebody may be listening in, or the board was reinstalled",
            f"if it was: ssh-keygen -f {shlex.quote(str(line.path))} -R '{name}'",
        )
    if any(line.marker == "" and line.key == key and line.is_about(host.host_name.lower()) for line in lines):
        return  # known without its port; OpenSSH looks there too
    has_authority = any(line.marker == "@cert-authority" for line in about)
    _meet_new_key(host, key, name, options, has_authority)


def _meet_new_key(host: SshHost, key: HostKey, name: str, options: SshOptions, has_authority: bool) -> None:
    unknown = f"its {key.short_type} host key is unknown: {key.fingerprint}"
    if has_authority:
        unknown += " (certificates of hosts, @cert-authority, are not understood)"
    strictness = host.strict_host_key_checking
    if strictness == "yes":
        raise HostKeyError(host.name, unknown, f"add it yourself: {_keyscan(host, key, name)}")
    if strictness == "ask":
        if not options.is_interactive:
            raise HostKeyError(
                host.name,
                unknown,
                "compare it with the board's "
                f"(`ssh-keygen -lf /etc/ssh/ssh_host_{key.short_type.lower()}_key.pub` there), then: "
                f"{_keyscan(host, key, name)} -- or trust what is found first: --strict-host-key-checking accept-new",
            )
        answer = options.prompt(
            f"The authenticity of host '{name}' can't be established.\n"
            f"{key.short_type} key fingerprint is {key.fingerprint}.\n"
            "Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
            False,
        ).strip()
        if answer.lower() != "yes" and answer != key.fingerprint:
            raise HostKeyError(host.name, f"its host key {key.fingerprint} was not accepted")
    remember(host, key, name)


def remember(host: SshHost, key: HostKey, name: str) -> None:
    """Append one line to the first known_hosts file (0600, its directory 0700 when new); other lines stay byte for
    byte."""
    path = host.known_hosts_files[0]
    line = key.line(_hashed(name) if host.hashes_known_hosts else name) + "\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ends_clean = not path.is_file() or not path.stat().st_size or path.read_bytes().endswith(b"\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write: runs against several new boards append at the same time.
            os.write(descriptor, ("" if ends_clean else "\n").encode() + line.encode())
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise HostKeyError(host.name, f"its new key cannot be written to {path}: {exc.strerror}") from exc


def _keyscan(host: SshHost, key: HostKey, name: str) -> str:
    port = "" if host.port == 22 else f" -p {host.port}"
    rename = "" if not host.host_key_alias else f" | sed 's/^[^ ]*/{name}/'"
    file = shlex.quote(str(host.known_hosts_files[0]))
    return f"ssh-keyscan -t {key.short_type.lower()}{port} {host.host_name}{rename} >> {file}"


def _matches(name: str, pattern: str) -> bool:
    # In known_hosts only * and ? are special; a bracket is the beginning of [HOST]:PORT.
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _is_hash_of(name: str, hashed: str) -> bool:
    try:
        _, _, salt, wanted = hashed.split("|")
        digest = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
        return hmac.compare_digest(digest, base64.b64decode(wanted))
    except (ValueError, binascii.Error):
        return False


def _hashed(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode('ascii')}|{base64.b64encode(digest).decode('ascii')}"

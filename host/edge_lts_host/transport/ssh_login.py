"""From a resolved host to a connection that is logged in: TCP or proxy, handshake, host key, then every way to log in.

Order of logging in: the agent's keys (those named by an IdentityFile first), identity files (a passphrase is asked on a
terminal only), then keyboard-interactive or password, on a terminal only. With IdentitiesOnly the agent offers nothing
but named keys: servers disconnect after six refused keys.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import random
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edge_lts_host.errors import (
    AuthenticationError,
    ConnectError,
    HostKeyError,
    TransportError,
    TransportTimeoutError,
    printable,
)
from edge_lts_host.transport.host_keys import HostKey, check_host_key, preferred_algorithms
from edge_lts_host.transport.ssh_config import SshHost, SshOptions
from edge_lts_host.transport.ssh_link import HeardSocket, ProxySocket, Watchdog, mapped_errors, paramiko

# How long somebody may take to type a one-time code; the server's LoginGraceTime is shorter.
_TYPING_S = 180.0
_N_PASSPHRASE_TRIES = 3


class Link(NamedTuple):
    """A connection, logged in, and the socket under it."""

    paramiko: paramiko.Transport
    sock: HeardSocket

    def close(self) -> None:
        """End both, and wait for paramiko's thread; never raises."""
        _close(self.paramiko, self.sock)


class _TransientError(Exception):
    """A failure to connect that may be over in a second; `args[0]` is what to raise if it is not."""


def connect(host: SshHost, options: SshOptions, *, sleep: Callable[[float], None] = time.sleep) -> Link:
    """Connect to `host` and log in; transient failures are tried again, refusals of any kind are not.

    Raises ConnectError, AuthenticationError, HostKeyError or TransportTimeoutError.
    """
    for attempt in range(1, options.n_attempts + 1):
        try:
            return _connect_once(host, options)
        except _TransientError as exc:
            error: TransportError = exc.args[0]
            if attempt == options.n_attempts:
                raise error from error.__cause__
        # Random, so that twenty boards behind one jump host do not knock at the same instant.
        sleep(random.uniform(0.1, 2.0))
    raise AssertionError("n_attempts is at least 1")


def _connect_once(host: SshHost, options: SshOptions) -> Link:
    sock = _open_socket(host)
    proxy = sock if isinstance(sock, ProxySocket) else None
    link: paramiko.Transport | None = None
    try:
        with mapped_errors(host.name, "connecting", connecting=True):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link = paramiko.Transport(sock)
        supported = _shake_hands(link, host, options, proxy)
        with mapped_errors(host.name, "reading the host key", connecting=True):
            shown = link.get_remote_server_key()
            key = HostKey(key_type=shown.get_name(), blob=shown.asbytes())
        check_host_key(host, key, options, supported)
        try:
            _log_in(link, host, options)
        except AuthenticationError:
            raise
        except (ConnectError, TransportTimeoutError) as exc:  # the link broke; nobody refused us
            raise _transient(exc, exc.__cause__) from exc.__cause__
    except BaseException:
        _close(link, sock)
        sock.close()  # paramiko leaves it open when it was never started
        raise
    return Link(link, sock)


def _close(link: paramiko.Transport | None, sock: HeardSocket) -> None:
    if link is not None:
        link.close()
        if link.is_alive():
            link.join(5)
    if isinstance(sock, ProxySocket):
        sock.end()


def _open_socket(host: SshHost) -> HeardSocket:
    if host.proxy_command is not None:
        with mapped_errors(host.name, "starting the proxy", connecting=True):
            return ProxySocket(host.proxy_command)
    try:
        sock = socket.create_connection((host.host_name, host.port), timeout=host.connect_timeout_s)
    except (socket.gaierror, UnicodeError) as exc:
        remedy = "check the name"
        if "." not in host.host_name and ":" not in host.host_name:
            remedy = f"is it {host.host_name}.local?"
        raise ConnectError(host.name, f"no host is called {host.host_name}", remedy) from exc
    except TimeoutError as exc:
        problem = f"port {host.port} of {host.host_name} did not answer within {host.connect_timeout_s:g} s"
        raise _transient(TransportTimeoutError(host.name, problem, "is it on, and on this network?"), exc) from exc
    except ConnectionRefusedError as exc:
        problem = f"port {host.port} of {host.host_name} is closed"
        raise _transient(ConnectError(host.name, problem, "is its SSH server running?"), exc) from exc
    except OSError as exc:
        problem = f"cannot reach {host.host_name}: {exc.strerror or exc}"
        raise _transient(ConnectError(host.name, problem, "is it on, and on this network?"), exc) from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return HeardSocket.of(sock)


def _transient(error: TransportError, cause: BaseException | None) -> _TransientError:
    error.__cause__ = cause
    return _TransientError(error)


def _shake_hands(
    link: paramiko.Transport, host: SshHost, options: SshOptions, proxy: ProxySocket | None
) -> tuple[str, ...]:
    """Agree on keys; returns the host key algorithms that we can speak."""
    link.banner_timeout = options.banner_timeout_s
    link.handshake_timeout = options.banner_timeout_s
    link.auth_timeout = options.auth_timeout_s
    security = link.get_security_options()
    supported = tuple(security.key_types)
    security.key_types = preferred_algorithms(host, supported)
    try:
        # Banner and key exchange have their own limits; this is for a server that stops in between.
        with Watchdog(link, 2 * options.banner_timeout_s + 1, host.name, "the SSH handshake"):
            started = time.monotonic()
            with mapped_errors(host.name, "the SSH handshake", connecting=True):
                link.start_client()
    except TransportError as exc:
        error: TransportError = exc
        if proxy is not None and (said := proxy.complaint()):
            error = ConnectError(host.name, f"the proxy or jump host failed: {said}", f"try it: {host.proxy_command}")
        elif time.monotonic() - started >= options.banner_timeout_s:
            problem = f"port {host.port} of {host.host_name} took the connection and said nothing"
            problem += f" for {options.banner_timeout_s:g} s"
            error = TransportTimeoutError(host.name, problem, "is it an SSH server, and is the board still alive?")
        if isinstance(exc.__cause__, paramiko.ssh_exception.IncompatiblePeer) or type(exc) is HostKeyError:
            raise error from exc
        raise _transient(error, exc) from exc
    return supported


def _log_in(link: paramiko.Transport, host: SshHost, options: SshOptions) -> None:
    tried: list[str] = []
    try:
        allowed = _allowed_methods(link, host)
        if allowed is None:
            return
        if "publickey" in allowed:
            left = _offer_keys(link, host, options, tried)
            if left is None:
                return
            allowed = left or allowed
        if options.is_interactive and {"keyboard-interactive", "password"} & set(allowed):
            _ask_password(link, host, options, allowed)
            return
    except AuthenticationError as exc:
        if link.is_active() or not tried:
            raise
        problem = f"the server disconnected after refusing {', '.join(tried)}"
        raise AuthenticationError(
            host.name, problem, "name one key: IdentityFile and IdentitiesOnly yes in ssh_config"
        ) from exc
    what = f"the server accepts none of: {', '.join(tried)}" if tried else "there is no key to offer"
    if not {"publickey", "keyboard-interactive", "password"} & set(allowed):
        what = f"the server wants {', '.join(allowed) or 'nothing we know'}"
    raise AuthenticationError(host.name, what, f"ssh-copy-id {_copy_id_target(host)}, ssh-add KEY, or --identity KEY")


def _allowed_methods(link: paramiko.Transport, host: SshHost) -> Sequence[str] | None:
    """What the server offers; None when it lets us in without anything."""
    with _logging_in(link, host):
        try:
            link.auth_none(host.user)
        except paramiko.BadAuthenticationType as exc:
            return tuple(exc.allowed_types)
    return None


@contextlib.contextmanager
def _logging_in(link: paramiko.Transport, host: SshHost) -> Iterator[None]:
    """paramiko says "authentication" for a peer that went silent or away, too: tell these apart by what is so, not by
    text."""
    started = time.monotonic()
    limit_s = link.auth_timeout
    with Watchdog(link, limit_s + 5, host.name, "logging in"), mapped_errors(host.name, "logging in", connecting=True):
        try:
            yield
        except paramiko.AuthenticationException as exc:
            if time.monotonic() - started >= limit_s:
                raise TransportTimeoutError(host.name, f"no answer to our login within {limit_s:g} s") from exc
            raise


def _offer_keys(link: paramiko.Transport, host: SshHost, options: SshOptions, tried: list[str]) -> Sequence[str] | None:
    """Offer every key; None when let in, else the methods still wanted (empty: no key was taken)."""
    with contextlib.closing(_keys(host, options)) as keys:
        for name, load in keys:
            try:
                key = load()
            except paramiko.SSHException:
                tried.append(f"{name} (cannot be read)")
                continue
            if key is None:
                tried.append(f"{name} (its passphrase is needed: ssh-add it, or run on a terminal)")
                continue
            tried.append(name)
            wanted = _offer_key(link, host, key)
            if wanted is not None:
                return wanted or None
    return []


def _offer_key(link: paramiko.Transport, host: SshHost, key: paramiko.PKey) -> Sequence[str] | None:
    """The methods still wanted after `key` was taken (empty: let in); None when it was not taken."""
    with _logging_in(link, host):
        try:
            return tuple(link.auth_publickey(host.user, key))
        except paramiko.SSHException:
            # Refused; or the agent would not sign; or we and the server share no algorithm for a key of this kind.
            if not link.is_active():
                raise
    return None


_Key = tuple[str, Callable[[], "paramiko.PKey | None"]]


def _keys(host: SshHost, options: SshOptions) -> Generator[_Key, None, None]:
    named = {path: _public_blob(path) for path in host.identity_files if path.is_file() or _public_path(path).is_file()}
    offered: set[bytes] = set()
    with _agent_keys(host.agent_socket) as agent_keys:
        blobs = {blob for blob in named.values() if blob}
        ranked = sorted(agent_keys, key=lambda key: key.asbytes() not in blobs)
        for key in ranked:
            if key.asbytes() in blobs or not host.has_identities_only:
                offered.add(key.asbytes())
                yield f"agent key {printable(key.comment or key.get_name())}", lambda key=key: key  # type: ignore[misc]
    for path, blob in named.items():
        if path.is_file() and (blob is None or blob not in offered):
            yield str(path), lambda path=path: _load_key(path, options)  # type: ignore[misc]


@contextlib.contextmanager
def _agent_keys(path: str | None) -> Iterator[Sequence[paramiko.AgentKey]]:
    """The keys of the agent at `path`; none when nobody answers there. The agent signs only while the block lasts."""
    agent = paramiko.agent.AgentSSH()
    sock: socket.socket | None = None
    try:
        if path:
            with contextlib.suppress(OSError, paramiko.SSHException):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                # Long enough for a touch or a confirmation; an agent that hangs must not hang us.
                sock.settimeout(30)
                sock.connect(path)
                # paramiko.Agent reads SSH_AUTH_SOCK only; IdentityAgent needs this one step below it.
                agent._connect(sock)  # type: ignore[attr-defined]  # private, unchanged since 2005, untyped
        yield agent.get_keys()
    finally:
        if sock is not None:
            sock.close()


def _public_path(path: Path) -> Path:
    return path if path.suffix == ".pub" else path.with_name(path.name + ".pub")


def _public_blob(path: Path) -> bytes | None:
    """The public half of an identity, from FILE.pub; None when there is no such file."""
    try:
        words = _public_path(path).read_bytes().split()
        return base64.b64decode(words[1], validate=True)
    except (OSError, IndexError, binascii.Error):
        return None


def _load_key(path: Path, options: SshOptions) -> paramiko.PKey | None:
    """The private key in `path`, after asking for its passphrase if need be; None when it cannot be had."""
    try:
        return _try_kinds(path, None)
    except paramiko.PasswordRequiredException:
        if not options.is_interactive:
            return None
    for _ in range(_N_PASSPHRASE_TRIES):
        with contextlib.suppress(paramiko.SSHException):
            return _try_kinds(path, options.prompt(f"Passphrase for {path}: ", True))
    return None


def _try_kinds(path: Path, passphrase: str | None) -> paramiko.PKey:
    kinds: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    error: Exception | None = None
    for kind in kinds:
        try:
            return kind.from_private_key_file(str(path), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, OSError) as exc:
            error = exc
    raise paramiko.SSHException(f"{path} holds no private key that can be read") from error


def _ask_password(link: paramiko.Transport, host: SshHost, options: SshOptions, allowed: Sequence[str]) -> None:
    """Keyboard-interactive or password, up to three times. Raises AuthenticationError."""
    hint = f"(`ssh-copy-id {_copy_id_target(host)}` spares you this)"

    def answer(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        head = "\n".join(printable(text) for text in (title, instructions) if text.strip())
        if head and prompts:
            head += "\n"
        return [
            options.prompt(f"{head}{host.name} {hint} {printable(text)}", not is_shown) for text, is_shown in prompts
        ]

    link.auth_timeout = _TYPING_S
    for _ in range(3):
        with _logging_in(link, host):
            try:
                if "keyboard-interactive" in allowed:
                    wanted = link.auth_interactive(host.user, answer)
                else:
                    password = options.prompt(f"Password for {host.name} {hint}: ", True)
                    wanted = link.auth_password(host.user, password, fallback=False)
            except paramiko.BadAuthenticationType as exc:
                allowed = tuple(exc.allowed_types)
                continue
            except paramiko.AuthenticationException:
                if not link.is_active():
                    raise
                continue
        if not wanted:
            return
        allowed = wanted
    raise AuthenticationError(
        host.name, "the server did not accept the password", f"ssh-copy-id {_copy_id_target(host)}"
    )


def _copy_id_target(host: SshHost) -> str:
    port = "" if host.port == 22 else f"-p {host.port} "
    return f"{port}{host.user}@{host.alias}"

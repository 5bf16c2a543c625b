"""Destinations, ssh_config, known_hosts and the mapping of errors, without a server."""

from __future__ import annotations

import errno
import inspect
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts_host import errors
from edge_lts_host.errors import HostKeyError, TransportError, UsageError
from edge_lts_host.transport.host_keys import (
    HostKey,
    check_host_key,
    known_name,
    preferred_algorithms,
    read_known_hosts,
)
from edge_lts_host.transport.ssh_config import SshDestination, SshHost, SshOptions, resolve
from edge_lts_host.transport.ssh_link import mapped_errors, paramiko

ssh_exception = paramiko.ssh_exception
UnknownKeyType = paramiko.pkey.UnknownKeyType

# Destinations


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("raspberrypi", None, "raspberrypi", None),
        ("pi@raspberrypi", "pi", "raspberrypi", None),
        ("pi@raspberrypi.local:2222", "pi", "raspberrypi.local", 2222),
        ("192.168.1.7:22", None, "192.168.1.7", 22),
        ("[::1]", None, "::1", None),
        ("pi@[fe80::1%eth0]:22", "pi", "fe80::1%eth0", 22),
        ("j.doe+x@board_7", "j.doe+x", "board_7", None),
        ("me@corp@board", "me@corp", "board", None),
    ],
)
def test_destinations_are_read_and_written(text: str, user: str | None, host: str, port: int | None) -> None:
    destination = SshDestination.parse(text)
    assert destination == SshDestination(user=user, host=host, port=port)
    assert str(destination) == text


# fmt: off
BAD_DESTINATIONS = [
    "", "@host", "pi@", "pi@:22", "host:", "host:0", "host:65536", "host:22x", "host:٢٢", "::1", "fe80::1:22", "[::1",
    "[::1]22", "[host]", "[]:22", "-oProxyCommand=x", "pi@-x", "-l@host", "a b", "host\n", "ho/st", "ssh://host",
    "pi;id@host", "$(id)", "a@b@-c",
]
# fmt: on


@pytest.mark.parametrize("text", BAD_DESTINATIONS)
def test_bad_destinations_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        SshDestination.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_destination_or_a_usage_error(text: str) -> None:
    try:
        destination = SshDestination.parse(text)
    except UsageError:
        return
    assert SshDestination.parse(str(destination)) == destination
    assert not destination.host.startswith("-")


# ssh_config


@pytest.mark.parametrize("has_ssh", [True, False])
def test_command_line_wins_over_ssh_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ssh: bool) -> None:
    if has_ssh and shutil.which("ssh") is None:
        pytest.skip("no ssh program")
    if not has_ssh:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    config = tmp_path / "config"
    config.write_text(
        "Host board\n  HostName 10.0.0.9\n  Port 2200\n  User pi\n  IdentityFile ~/.ssh/%h_key\n  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking accept-new\n  HostKeyAlias BoardKey\n  ConnectTimeout 4\n  UserKnownHostsFile /kh\n"
    )
    options = SshOptions(config_file=config)
    host = resolve(SshDestination.parse("board"), options)
    assert (host.host_name, host.port, host.user, host.name) == ("10.0.0.9", 2200, "pi", "pi@board:2200")
    assert host.identity_files == (Path("~/.ssh/10.0.0.9_key").expanduser(),)
    assert host.has_identities_only
    assert host.strict_host_key_checking == "accept-new"
    assert host.known_hosts_files == (Path("/kh"),)
    assert (known_name(host), host.connect_timeout_s, host.agent_socket) == ("boardkey", 4.0, "/tmp/agent")
    options = SshOptions(
        config_file=config, port=7, strict_host_key_checking="yes", connect_timeout_s=2, known_hosts_file=Path("/mine")
    )
    host = resolve(SshDestination.parse("root@board"), options)
    assert (host.port, host.user, host.strict_host_key_checking, host.connect_timeout_s) == (7, "root", "yes", 2)
    assert host.known_hosts_files == (Path("/mine"),)
    assert resolve(SshDestination.parse("board:8"), options).port == 8


def test_missing_identity_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nokey"):
        SshOptions(identity_files=(tmp_path / "nokey",))


# known_hosts

HOST = SshHost(alias="board", host_name="board.lan", port=22, user="pi")
KEY = HostKey(key_type="ssh-ed25519", blob=b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32))
OTHER = HostKey(key_type="ssh-ed25519", blob=KEY.blob[:-1] + b"x")
SUPPORTED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")


def _known(tmp_path: Path, text: str, **changes: Any) -> SshHost:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    settings: dict[str, Any] = {"alias": "board", "host_name": "board.lan", "port": 22, "user": "pi"}
    return SshHost(**{**settings, "known_hosts_files": (path,), **changes})


@pytest.mark.parametrize(
    ("names", "is_known"),
    [
        ("board.lan", True),
        ("other,board.lan", True),
        ("*.lan", True),
        ("BOARD.LAN", True),
        ("boar?.lan", True),
        ("*.lan,!board.lan", False),
        ("board", False),
        ("[board.lan]:2222", False),
        ("[bcd]oard.lan", False),
    ],
)
def test_patterns_of_known_hosts(tmp_path: Path, names: str, is_known: bool) -> None:
    host = _known(tmp_path, f"# comment\n\ngarbage\n{KEY.line(names)} a comment\n")
    if is_known:
        check_host_key(host, KEY, SshOptions(), SUPPORTED)
    else:
        with pytest.raises(HostKeyError, match="unknown"):
            check_host_key(host, KEY, SshOptions(), SUPPORTED)


def test_key_known_without_the_port_is_accepted_but_does_not_count_as_changed(tmp_path: Path) -> None:
    host = _known(tmp_path, KEY.line("board.lan") + "\n", port=2222)
    check_host_key(host, KEY, SshOptions(), SUPPORTED)
    with pytest.raises(HostKeyError, match="unknown"):
        check_host_key(host, OTHER, SshOptions(), SUPPORTED)


def test_authority_for_the_host_is_named_as_not_understood(tmp_path: Path) -> None:
    host = _known(tmp_path, f"@cert-authority {OTHER.line('*.lan')}\n")
    with pytest.raises(HostKeyError, match="@cert-authority"):
        check_host_key(host, KEY, SshOptions(), SUPPORTED)


def test_alias_of_the_key_appears_in_the_remedy(tmp_path: Path) -> None:
    host = _known(tmp_path, "", host_key_alias="lab", port=2222)
    with pytest.raises(
        HostKeyError, match=r"ssh-keyscan -t ed25519 -p 2222 board\.lan \| sed 's/\^\[\^ \]\*/lab/' >> "
    ):
        check_host_key(host, KEY, SshOptions(), SUPPORTED)


def test_known_kinds_of_key_are_asked_for_first(tmp_path: Path) -> None:
    rsa = HostKey(key_type="ssh-rsa", blob=b"rsa")
    host = _known(tmp_path, rsa.line("board.lan") + "\n")
    assert preferred_algorithms(host, SUPPORTED) == (
        "rsa-sha2-512",
        "rsa-sha2-256",
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
    )
    assert preferred_algorithms(_known(tmp_path, ""), SUPPORTED) == SUPPORTED


@given(st.binary(max_size=300))
def test_no_bytes_in_known_hosts_upset_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("known") / "known_hosts"
    path.write_bytes(data)
    for line in read_known_hosts([path]):
        line.is_about("board.lan")


def test_unwritable_known_hosts_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    host = _known(tmp_path, "", known_hosts_files=(tmp_path / "file" / "known_hosts",), strict_host_key_checking="no")
    with pytest.raises(HostKeyError, match="cannot be written"):
        check_host_key(host, KEY, SshOptions(), SUPPORTED)


# Errors of paramiko and sockets

_MADE: dict[type[BaseException], Callable[[], BaseException]] = {
    paramiko.BadHostKeyException: lambda: paramiko.BadHostKeyException("h", _pkey(), _pkey()),
    paramiko.BadAuthenticationType: lambda: paramiko.BadAuthenticationType("no", ["publickey"]),
    ssh_exception.PartialAuthentication: lambda: ssh_exception.PartialAuthentication(["password"]),
    paramiko.ChannelException: lambda: paramiko.ChannelException(1, "prohibited"),
    paramiko.ProxyCommandFailure: lambda: paramiko.ProxyCommandFailure("nc", "1"),
    ssh_exception.NoValidConnectionsError: lambda: ssh_exception.NoValidConnectionsError({("h", 22): OSError("no")}),
    UnknownKeyType: lambda: UnknownKeyType("x", b""),
}
_EXPECTED: dict[type[BaseException], type[TransportError]] = {
    paramiko.SSHException: errors.ConnectionLostError,
    paramiko.AuthenticationException: errors.AuthenticationError,
    paramiko.PasswordRequiredException: errors.AuthenticationError,
    paramiko.BadAuthenticationType: errors.AuthenticationError,
    ssh_exception.PartialAuthentication: errors.AuthenticationError,
    ssh_exception.UnableToAuthenticate: errors.AuthenticationError,
    paramiko.ChannelException: errors.ConnectError,
    paramiko.BadHostKeyException: errors.HostKeyError,
    ssh_exception.IncompatiblePeer: errors.ConnectError,
    paramiko.ProxyCommandFailure: errors.ConnectError,
    ssh_exception.NoValidConnectionsError: errors.ConnectError,
    ssh_exception.CouldNotCanonicalize: errors.ConnectError,
    ssh_exception.ConfigParseError: errors.ConnectError,
    ssh_exception.MessageOrderError: errors.ConnectionLostError,
    UnknownKeyType: errors.ConnectError,
    paramiko.SFTPError: errors.TransferError,
    EOFError: errors.ConnectionLostError,
    TimeoutError: errors.TransportTimeoutError,
    socket.gaierror: errors.ConnectError,
    ConnectionRefusedError: errors.ConnectError,
    ConnectionResetError: errors.ConnectionLostError,
    BrokenPipeError: errors.ConnectionLostError,
    OSError: errors.ConnectionLostError,
}


def _pkey() -> paramiko.PKey:
    return paramiko.RSAKey.generate(1024)


def test_every_exception_class_of_paramiko_has_a_place_in_the_table() -> None:
    theirs = {kind for _, kind in inspect.getmembers(ssh_exception, inspect.isclass) if issubclass(kind, Exception)}
    assert {kind for kind in theirs if kind.__module__.startswith("paramiko")} <= set(_EXPECTED)


@pytest.mark.parametrize("theirs", _EXPECTED, ids=lambda kind: kind.__name__)
def test_nothing_of_paramiko_or_the_system_crosses(theirs: type[BaseException]) -> None:
    exc = _MADE.get(theirs, lambda: theirs("said\x1b[31m\nso"))()
    with pytest.raises(TransportError) as caught, mapped_errors("pi@board", "doing it"):
        raise exc
    assert type(caught.value) is _EXPECTED[theirs]
    assert caught.value.__cause__ is exc
    assert str(caught.value).startswith("pi@board: doing it failed: ")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_own_errors_pass_unchanged() -> None:
    ours = errors.TransportTimeoutError("pi@board", "late")
    with pytest.raises(errors.TransportTimeoutError) as caught, mapped_errors("other", "doing"):
        raise ours
    assert caught.value is ours


def test_while_connecting_there_is_no_connection_to_lose() -> None:
    with pytest.raises(errors.ConnectError, match="Connection reset"), mapped_errors("x", "y", connecting=True):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen program")
    public = tmp_path / "key.pub"
    public.write_text(f"{KEY.line('').strip()}\n")
    shown = subprocess.run(["ssh-keygen", "-lf", str(public)], check=True, capture_output=True, text=True).stdout
    assert shown.split()[1] == KEY.fingerprint

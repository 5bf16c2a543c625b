"""Passwords and one-time codes. A real sshd needs PAM for them, which is not at hand; paramiko's own server asks."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_lts_host.errors import AuthenticationError
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from edge_lts_host.transport.ssh_link import paramiko

AUTH_FAILED, AUTH_SUCCESSFUL = paramiko.common.AUTH_FAILED, paramiko.common.AUTH_SUCCESSFUL


class _Doorman(paramiko.ServerInterface):
    def __init__(self, methods: str) -> None:
        self.methods = methods

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def check_auth_password(self, username: str, password: str) -> int:
        return AUTH_SUCCESSFUL if password == "secret" else AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> int | paramiko.server.InteractiveQuery:
        return paramiko.server.InteractiveQuery("Two\x1b[2J factors", "", ("Code: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return AUTH_SUCCESSFUL if responses == ["123456"] else AUTH_FAILED


@pytest.fixture
def doorman(tmp_path: Path) -> Iterator[Callable[[str], SshOptions]]:
    """Start a server that lets in by the given methods; returns options that know its port and key."""
    key = paramiko.ECDSAKey.generate()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    sessions: list[paramiko.Transport] = []

    def start(methods: str) -> SshOptions:
        def serve() -> None:
            sock, _ = listener.accept()
            session = paramiko.Transport(sock)
            sessions.append(session)
            session.add_server_key(key)
            session.start_server(server=_Doorman(methods))

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        port = listener.getsockname()[1]
        known_hosts, config = tmp_path / "known_hosts", tmp_path / "config"
        known_hosts.write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
        config.write_text("IdentityFile none\nIdentityAgent none\n")
        return SshOptions(config_file=config, known_hosts_file=known_hosts, port=port, n_attempts=1)

    yield start
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
        session.join()
    listener.close()


def _asked(options: SshOptions, *answers: str) -> tuple[SshOptions, list[tuple[str, bool]]]:
    left, asked = list(answers), []

    def prompt(text: str, is_secret: bool) -> str:
        asked.append((text, is_secret))
        return left.pop(0)

    return dataclasses.replace(options, is_interactive=True, prompt=prompt), asked


def test_password_is_asked_on_a_terminal_with_a_hint(doorman: Callable[[str], SshOptions]) -> None:
    options, asked = _asked(doorman("password"), "wrong", "secret")
    SshTransport("pi@127.0.0.1", options).close()
    assert len(asked) == 2
    assert all(is_secret and "ssh-copy-id -p" in text for text, is_secret in asked)


def test_wrong_passwords_end_the_login_and_stay_out_of_the_message(doorman: Callable[[str], SshOptions]) -> None:
    options, _ = _asked(doorman("password"), "hunter1", "hunter2", "hunter3")
    with pytest.raises(AuthenticationError, match="did not accept the password") as caught:
        SshTransport("pi@127.0.0.1", options)
    assert "hunter" not in str(caught.value)


def test_keyboard_interactive_shows_the_question_without_its_escapes(doorman: Callable[[str], SshOptions]) -> None:
    options, asked = _asked(doorman("keyboard-interactive"), "123456")
    SshTransport("pi@127.0.0.1", options).close()
    ((text, is_secret),) = asked
    assert is_secret
    assert "Code: " in text
    assert "\x1b" not in text


def test_password_is_never_asked_without_a_terminal(doorman: Callable[[str], SshOptions]) -> None:
    with pytest.raises(AuthenticationError, match="no key to offer; ssh-copy-id -p"):
        SshTransport("pi@127.0.0.1", doorman("password"))

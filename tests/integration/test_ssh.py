"""The SSH transport against real servers: how it gets in, and what it says when the link is bad."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_lts_host.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    TransportTimeoutError,
    UsageError,
)
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.sshd import Sshd, free_port, kill_tree, make_key, no_leaks, processes_with, wait_until
from tests.proxy import Proxy

pytestmark = [pytest.mark.sshd, pytest.mark.usefixtures("leaks_nothing")]

Options = Callable[..., SshOptions]


def works(destination: str, options: SshOptions) -> bool:
    with SshTransport(destination, options) as transport:
        return transport.run(["echo", "in"], timeout_s=30).stdout == b"in\n"


def no_sleep(seconds: float) -> None:
    assert 0.1 <= seconds <= 2.0


def never(seconds: float) -> None:
    pytest.fail("this is not to be tried again")


# Logging in


def test_refused_key_names_the_key_and_the_remedy(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    with pytest.raises(AuthenticationError, match="ssh-copy-id") as caught:
        SshTransport(sshd.destination, ssh_options(identity_files=(stranger,)), sleep=never)
    assert str(stranger) in str(caught.value)
    assert caught.value.exit_code == 4


def test_without_any_key_the_message_says_so(sshd: Sshd, ssh_options: Options) -> None:
    with pytest.raises(AuthenticationError, match="no key to offer"):
        SshTransport(sshd.destination, ssh_options(identity_files=()))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_key_get_in(sshd: Sshd, ssh_options: Options, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / kind, kind)
    before = sshd.authorized_keys.read_bytes()
    sshd.authorized_keys.write_bytes(before + key.with_suffix(".pub").read_bytes())
    try:
        assert works(sshd.destination, ssh_options(identity_files=(key,)))
    finally:
        sshd.authorized_keys.write_bytes(before)


def test_passphrase_is_asked_on_a_terminal_only(
    make_sshd: Callable[..., Sshd], ssh_options: Options, tmp_path: Path
) -> None:
    server = make_sshd()
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    server.authorized_keys.write_bytes(key.with_suffix(".pub").read_bytes())
    known_hosts = tmp_path / "known_hosts2"
    known_hosts.write_text(server.known_hosts_line())
    settings = {"identity_files": (key,), "known_hosts_file": known_hosts}
    with pytest.raises(AuthenticationError, match="passphrase is needed"):
        SshTransport(server.destination, ssh_options(**settings))
    answers = iter(["wrong", "open sesame"])
    asked: list[tuple[str, bool]] = []

    def prompt(text: str, is_secret: bool) -> str:
        asked.append((text, is_secret))
        return next(answers)

    assert works(server.destination, ssh_options(**settings, is_interactive=True, prompt=prompt))
    assert asked == [(f"Passphrase for {key}: ", True)] * 2


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """An ssh-agent; its socket."""
    path = f"{tmp_path}/agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    assert wait_until(lambda: os.path.exists(path))
    yield path
    process.terminate()
    process.wait()


def add_to_agent(agent: str, *keys: Path) -> None:
    env = {**os.environ, "SSH_AUTH_SOCK": agent}
    subprocess.run(["ssh-add", "-q", *map(str, keys)], check=True, env=env, stdin=subprocess.DEVNULL)


def test_agent_key_gets_in(sshd: Sshd, ssh_options: Options, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_agent(agent, sshd.client_key)
    monkeypatch.setenv("SSH_AUTH_SOCK", agent)
    assert works(sshd.destination, ssh_options(identity_files=()))


def test_identity_agent_of_ssh_config_is_used(sshd: Sshd, ssh_options: Options, agent: str, tmp_path: Path) -> None:
    add_to_agent(agent, sshd.client_key)
    config = tmp_path / "agent_config"
    config.write_text(f"GlobalKnownHostsFile /dev/null\nIdentityFile none\nIdentityAgent {agent}\n")
    assert works(sshd.destination, ssh_options(config_file=config, identity_files=()))


def test_full_agent_is_no_trap_with_identities_only(
    sshd: Sshd, ssh_options: Options, agent: str, tmp_path: Path
) -> None:
    """Servers disconnect after six keys (MaxAuthTries); the agent holds eight, ours last, named by its .pub."""
    add_to_agent(agent, *(make_key(tmp_path / f"junk{i}") for i in range(7)), sshd.client_key)
    public = tmp_path / "only.pub"
    public.write_bytes(sshd.client_key.with_suffix(".pub").read_bytes())
    config = tmp_path / "agent_config"
    config.write_text(f"GlobalKnownHostsFile /dev/null\nIdentityAgent {agent}\nIdentityFile none\n")
    with pytest.raises(AuthenticationError, match="IdentitiesOnly"):
        SshTransport(sshd.destination, ssh_options(config_file=config, identity_files=()))
    config.write_text(
        f"GlobalKnownHostsFile /dev/null\nIdentityAgent {agent}\nIdentitiesOnly yes\n"
        f"IdentityFile {public.with_suffix('')}\n"
    )
    assert works(sshd.destination, ssh_options(config_file=config, identity_files=()))


# Bad links


def test_closed_port_is_tried_three_times(ssh_options: Options) -> None:
    naps: list[float] = []
    with pytest.raises(ConnectError, match="is closed") as caught:
        SshTransport(f"127.0.0.1:{free_port()}", ssh_options(), sleep=naps.append)
    assert len(naps) == 2
    assert all(0.1 <= nap <= 2.0 for nap in naps)
    assert caught.value.exit_code == 4


def test_host_that_takes_connections_and_says_nothing_times_out(ssh_options: Options) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(TransportTimeoutError, match="said nothing"):
            SshTransport(f"127.0.0.1:{port}", ssh_options(banner_timeout_s=0.5, n_attempts=2), sleep=no_sleep)
        assert 1.0 <= time.monotonic() - started < 10


def test_server_that_is_not_ssh_is_a_connect_error(ssh_options: Options) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"220 mail ready\r\n" * 200)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ConnectError):
            SshTransport(f"127.0.0.1:{listener.getsockname()[1]}", ssh_options(n_attempts=1))
        thread.join()


def test_name_that_does_not_resolve_suggests_local_and_is_not_retried(
    ssh_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectError, match=r"raspberrypi\.local"):
        SshTransport("pi@raspberrypi", ssh_options(), sleep=never)
    with pytest.raises(ConnectError, match="check the name"):
        SshTransport("pi@board.example.org", ssh_options(), sleep=never)


def test_connection_lost_in_the_middle_is_not_a_failed_command(sshd: Sshd, ssh_options: Options) -> None:
    before = sshd.connections()
    with SshTransport(sshd.destination, ssh_options()) as transport:
        (ours,) = sshd.connections() - before
        with transport.stream(["sh", "-c", "echo up; exec sleep 600"], timeout_s=60) as stream:
            assert next(stream.lines()) == b"up"
            kill_tree(ours)
            with pytest.raises(ConnectionLostError):
                next(stream)
        with pytest.raises(ConnectionLostError):
            transport.run(["true"], timeout_s=5)


def test_put_goes_on_after_the_connection_was_lost(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    path = f"{tmp_path}/wheel"
    before = sshd.connections()
    with SshTransport(sshd.destination, ssh_options()) as transport:
        (ours,) = sshd.connections() - before

        def cut(done: int, total: int) -> None:
            if done > 12_000_000:
                kill_tree(ours)

        with pytest.raises(ConnectionLostError):
            transport.put(data, path, progress=cut, timeout_s=60)
    assert wait_until(lambda: not processes_with(sshd.token))
    with SshTransport(sshd.destination, ssh_options()) as transport:
        result = transport.put(data, path, timeout_s=60)
    assert 0 < result.n_sent < 20_000_000
    assert Path(path).read_bytes() == data


@pytest.fixture
def relay(sshd: Sshd) -> Iterator[Proxy]:
    with Proxy(sshd.port) as relay:
        yield relay


def through(relay: Proxy, sshd: Sshd, tmp_path: Path, ssh_options: Options, **changes: object) -> SshTransport:
    known_hosts = tmp_path / "relayed"
    known_hosts.write_text(sshd.known_hosts_line(port=relay.port))
    return SshTransport(f"{sshd.user}@127.0.0.1:{relay.port}", ssh_options(known_hosts_file=known_hosts, **changes))


def end_orphans(sshd: Sshd) -> None:
    """Nobody can end a command behind a dead link; sshd does not either, once it notices."""
    for pid in processes_with(sshd.token):
        kill_tree(pid)


def test_dead_peer_is_noticed_on_an_idle_stream(sshd: Sshd, ssh_options: Options, tmp_path: Path, relay: Proxy) -> None:
    with through(relay, sshd, tmp_path, ssh_options, heartbeat_s=0.5) as transport:
        with transport.stream(["sh", "-c", "echo up; exec sleep 600"]) as stream:
            assert next(stream.lines()) == b"up"
            time.sleep(2)  # several heartbeats long, all answered
            assert transport.run(["true"], timeout_s=30).exit_status == 0
            relay.stall()
            started = time.monotonic()
            with pytest.raises(ConnectionLostError, match="no longer answers"):
                next(stream)
            assert time.monotonic() - started < 3 * 0.5 + 3
        relay.stop()
    end_orphans(sshd)


def test_call_over_a_dead_link_ends_at_its_deadline(
    sshd: Sshd, ssh_options: Options, tmp_path: Path, relay: Proxy
) -> None:
    with through(relay, sshd, tmp_path, ssh_options) as transport:
        relay.stall()
        started = time.monotonic()
        with pytest.raises((TransportTimeoutError, ConnectionLostError)):
            transport.run(["cat"], stdin=bytes(50_000_000), timeout_s=1)
        assert time.monotonic() - started < 15
        relay.stop()
    end_orphans(sshd)


# What ssh_config says


def test_alias_of_ssh_config_gives_port_user_and_identity_through_include(
    sshd: Sshd, ssh_options: Options, tmp_path: Path
) -> None:
    (tmp_path / "included").write_text(
        f"Host my-board\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {sshd.client_key}\n"
        f"  UserKnownHostsFile {tmp_path}/alias_hosts\n  HostKeyAlias the-board\n  ConnectTimeout 3\n"
    )
    config = tmp_path / "main_config"
    config.write_text(f"Include {tmp_path}/included\nHost *\n  GlobalKnownHostsFile /dev/null\n")
    words = sshd.known_hosts_line().split()
    (tmp_path / "alias_hosts").write_text(f"the-board {words[1]} {words[2]}\n")
    options = ssh_options(config_file=config, identity_files=(), known_hosts_file=None)
    assert works("my-board", options)
    with SshTransport("my-board", options) as transport:
        assert transport.name == f"{sshd.user}@my-board:{sshd.port}"
        assert transport.host.connect_timeout_s == 3


def test_broken_ssh_config_is_a_usage_error_with_its_line(ssh_options: Options, tmp_path: Path) -> None:
    config = tmp_path / "broken"
    config.write_text("Host *\n  NoSuchKeyword yes\n")
    with pytest.raises(UsageError, match="broken"):
        SshTransport("board", ssh_options(config_file=config))


def test_jump_host_carries_the_connection(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    known_hosts = tmp_path / "jump_hosts"
    known_hosts.write_text(sshd.known_hosts_line())
    config = tmp_path / "jump_config"
    config.write_text(
        f"Host *\n  GlobalKnownHostsFile /dev/null\n  IdentityFile {sshd.client_key}\n"
        f"  Port {sshd.port}\n  User {sshd.user}\n"
        "Host hop\n  HostName 127.0.0.1\nHost behind\n  HostName 127.0.0.1\n  ProxyJump hop\n"
    )
    options = ssh_options(config_file=config, known_hosts_file=known_hosts)
    assert works("behind", options)
    known_hosts.write_text("")
    with pytest.raises(ConnectError, match="jump host failed: Host key verification failed"):
        SshTransport("behind", options, sleep=no_sleep)


def test_proxy_command_carries_the_connection(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    config = tmp_path / "proxy_config"
    command = f"ssh -F {config} -i {sshd.client_key} -o UserKnownHostsFile={tmp_path}/known_hosts -p {sshd.port}"
    config.write_text(f"Match host behind\n  ProxyCommand {command} -W 127.0.0.1:%p {sshd.user}@127.0.0.1\n")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(sshd.known_hosts_line() + sshd.known_hosts_line().replace("127.0.0.1", "behind"))
    assert works(f"{sshd.user}@behind:{sshd.port}", ssh_options(config_file=config))
    config.write_text("Match host behind\n  ProxyCommand echo no way through >&2; exit 1\n")
    with pytest.raises(ConnectError, match="no way through"):
        SshTransport("behind", ssh_options(config_file=config), sleep=no_sleep)


# Login shells


@pytest.mark.parametrize("shell", ["sh", "sh -x", "bash -x"])
def test_chatty_login_shell_disturbs_nothing(
    make_sshd: Callable[..., Sshd], ssh_options: Options, tmp_path: Path, shell: str
) -> None:
    (tmp_path / "banner").write_text("Authorised users only\n" * 20)
    server = make_sshd(
        f"Banner {tmp_path}/banner\n"
        "ForceCommand echo Welcome; printf 'no newline'; echo noise >&2; "
        f'{shell} -c "$SSH_ORIGINAL_COMMAND"'
    )
    known_hosts = tmp_path / "known_hosts2"
    known_hosts.write_text(server.known_hosts_line())
    options = ssh_options(identity_files=(server.client_key,), known_hosts_file=known_hosts)
    with no_leaks(server.token), SshTransport(server.destination, options) as transport:
        result = transport.run(["sh", "-c", "cat; echo oops >&2; exit 7"], stdin=b"\0bytes", timeout_s=30)
        assert (result.stdout, result.exit_status) == (b"\0bytes", 7)
        assert b"noise" not in result.stderr
        assert b"oops\n" in result.stderr
        assert transport.put(b"x" * 1000, f"{tmp_path}/file", timeout_s=30).n_sent == 1000
        assert transport.get(f"{tmp_path}/file", offset=990, timeout_s=30) == b"x" * 10


def test_account_that_may_not_run_commands_says_why(
    make_sshd: Callable[..., Sshd], ssh_options: Options, tmp_path: Path
) -> None:
    server = make_sshd("ForceCommand echo 'This account is currently not available.'; exit 1")
    known_hosts = tmp_path / "known_hosts2"
    known_hosts.write_text(server.known_hosts_line())
    options = ssh_options(identity_files=(server.client_key,), known_hosts_file=known_hosts)
    with (
        no_leaks(server.token),
        SshTransport(server.destination, options) as transport,
        pytest.raises(ConnectError, match="This account is currently not available"),
    ):
        transport.run(["true"], timeout_s=30)


def test_closed_transport_says_so(sshd: Sshd, ssh_options: Options) -> None:
    transport = SshTransport(sshd.destination, ssh_options())
    transport.close()
    transport.close()
    with pytest.raises(ConnectionLostError, match="is closed"):
        transport.run(["true"], timeout_s=5)

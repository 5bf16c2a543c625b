"""What the integration tests share: a server to log in to, and a check that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.sshd import Sshd, no_leaks, require_sshd


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One server for all tests that need nothing special of it."""
    require_sshd()
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """Start further servers: `make_sshd(extra_config)`."""
    require_sshd()
    servers: list[Sshd] = []

    def start(extra: str = "", **kwargs: Any) -> Sshd:
        servers.append(Sshd(tmp_path / f"sshd{len(servers)}", extra, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def leaks_nothing(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads, children, descriptors and far-side processes are as before the test. The user's agent is left alone."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with no_leaks(sshd.token):
        yield


@pytest.fixture
def ssh_options(sshd: Sshd, tmp_path: Path) -> Callable[..., SshOptions]:
    """Options that know the server and its key and nothing of this machine's user; keywords change them."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(sshd.known_hosts_line())
    config = tmp_path / "ssh_config"
    config.write_text("GlobalKnownHostsFile /dev/null\nIdentityFile none\n")

    def options(**changes: Any) -> SshOptions:
        settings: dict[str, Any] = {
            "config_file": config,
            "identity_files": (sshd.client_key,),
            "known_hosts_file": known_hosts,
        }
        return SshOptions(**{**settings, **changes})

    return options

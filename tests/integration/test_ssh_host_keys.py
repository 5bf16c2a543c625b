"""Whom the SSH transport trusts, against real servers: known, new, changed and revoked host keys."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_lts_host.errors import HostKeyError
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.sshd import Sshd, make_key

pytestmark = [pytest.mark.sshd, pytest.mark.usefixtures("leaks_nothing")]

Options = Callable[..., SshOptions]
FOREIGN = (
    b"# mine\r\n\n  git.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GVJl \n"
    b"nonsense"
)


def works(destination: str, options: SshOptions) -> bool:
    with SshTransport(destination, options) as transport:
        return transport.run(["echo", "in"], timeout_s=30).stdout == b"in\n"


def test_unknown_key_is_refused_without_a_terminal_and_the_given_line_mends_it(
    sshd: Sshd, ssh_options: Options, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "empty_known_hosts"
    options = ssh_options(known_hosts_file=known_hosts)
    with pytest.raises(HostKeyError) as caught:
        SshTransport(sshd.destination, options)
    message = str(caught.value)
    assert "\n" not in message
    assert "--strict-host-key-checking accept-new" in message
    assert re.search(r"SHA256:[A-Za-z0-9+/]{43};", message)
    assert not known_hosts.exists()
    line = re.search(r"ssh-keyscan .*? >> \S+", message)
    assert line is not None
    subprocess.run(line[0], shell=True, check=True, capture_output=True)
    assert works(sshd.destination, options)


def test_accept_new_appends_one_line_and_keeps_foreign_lines_byte_for_byte(
    sshd: Sshd, ssh_options: Options, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "mixed_known_hosts"
    known_hosts.write_bytes(FOREIGN)
    options = ssh_options(known_hosts_file=known_hosts, strict_host_key_checking="accept-new")
    assert works(sshd.destination, options)
    assert known_hosts.read_bytes() == FOREIGN + b"\n" + sshd.known_hosts_line().encode()
    assert works(sshd.destination, options)
    assert known_hosts.read_bytes().count(b"127.0.0.1") == 1


def test_new_known_hosts_file_is_private(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    known_hosts = tmp_path / "dot_ssh" / "known_hosts"
    assert works(sshd.destination, ssh_options(known_hosts_file=known_hosts, strict_host_key_checking="accept-new"))
    assert known_hosts.stat().st_mode & 0o777 == 0o600
    assert known_hosts.parent.stat().st_mode & 0o777 == 0o700


def test_hashed_line_is_written_when_ssh_config_wants_it_and_understood(
    sshd: Sshd, ssh_options: Options, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "hashed"
    config = tmp_path / "hash_config"
    config.write_text("HashKnownHosts yes\nGlobalKnownHostsFile /dev/null\n")
    options = ssh_options(config_file=config, known_hosts_file=known_hosts, strict_host_key_checking="accept-new")
    assert works(sshd.destination, options)
    assert known_hosts.read_bytes().startswith(b"|1|")
    assert works(sshd.destination, ssh_options(known_hosts_file=known_hosts, strict_host_key_checking="yes"))
    found = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{sshd.port}", "-f", str(known_hosts)], check=False, capture_output=True
    )
    assert b"found" in found.stdout


@pytest.mark.parametrize("strictness", ["ask", "accept-new", "yes", "no"])
@pytest.mark.parametrize("is_hashed", [False, True])
def test_changed_key_is_always_fatal(
    sshd: Sshd, ssh_options: Options, tmp_path: Path, strictness: str, is_hashed: bool
) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    known_hosts = tmp_path / "changed"
    known_hosts.write_text(f"# first\n[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n")
    if is_hashed:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known_hosts)], check=True, capture_output=True)
    before = known_hosts.read_bytes()
    options = ssh_options(
        known_hosts_file=known_hosts,
        strict_host_key_checking=strictness,
        is_interactive=True,
        prompt=lambda text, is_secret: pytest.fail("nothing may be asked"),
    )
    with pytest.raises(HostKeyError, match="CHANGED") as caught:
        SshTransport(sshd.destination, options)
    assert f"{known_hosts}, line 2 " in str(caught.value)
    assert f"ssh-keygen -f {known_hosts} -R '[127.0.0.1]:{sshd.port}'" in str(caught.value)
    assert known_hosts.read_bytes() == before


def test_key_of_another_kind_than_the_known_one_is_asked_for_first(
    sshd: Sshd, ssh_options: Options, tmp_path: Path
) -> None:
    known_hosts = tmp_path / "rsa"
    known_hosts.write_text(sshd.known_hosts_line("rsa"))
    assert works(sshd.destination, ssh_options(known_hosts_file=known_hosts))


def test_server_that_no_longer_has_the_known_kind_has_changed(
    make_sshd: Callable[..., Sshd], ssh_options: Options, tmp_path: Path
) -> None:
    server = make_sshd(host_key_kinds=("rsa",))
    known_hosts = tmp_path / "ed25519"
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {other[0]} {other[1]}\n")
    with pytest.raises(HostKeyError, match="CHANGED"):
        SshTransport(server.destination, ssh_options(known_hosts_file=known_hosts, strict_host_key_checking="no"))


def test_revoked_key_is_refused(sshd: Sshd, ssh_options: Options, tmp_path: Path) -> None:
    known_hosts = tmp_path / "revoked"
    known_hosts.write_text(sshd.known_hosts_line() + "@revoked " + sshd.known_hosts_line())
    with pytest.raises(HostKeyError, match="revoked"):
        SshTransport(sshd.destination, ssh_options(known_hosts_file=known_hosts))


@pytest.mark.parametrize("answer", ["yes", "fingerprint", "no", ""])
def test_unknown_key_is_asked_about_on_a_terminal(
    sshd: Sshd, ssh_options: Options, tmp_path: Path, answer: str
) -> None:
    public = sshd.host_keys["ed25519"].with_suffix(".pub")
    fingerprint = subprocess.run(["ssh-keygen", "-lf", str(public)], check=True, capture_output=True, text=True)
    expected = fingerprint.stdout.split()[1]
    asked: list[str] = []

    def prompt(text: str, is_secret: bool) -> str:
        assert not is_secret
        asked.append(text)
        return expected if answer == "fingerprint" else answer

    known_hosts = tmp_path / "asked"
    options = ssh_options(known_hosts_file=known_hosts, is_interactive=True, prompt=prompt)
    if answer in ("yes", "fingerprint"):
        assert works(sshd.destination, options)
        assert known_hosts.read_text() == sshd.known_hosts_line()
    else:
        with pytest.raises(HostKeyError, match="not accepted"):
            SshTransport(sshd.destination, options)
        assert not known_hosts.exists()
    assert len(asked) == 1
    assert f"ED25519 key fingerprint is {expected}." in asked[0]

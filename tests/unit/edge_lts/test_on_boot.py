"""The entry by which a run goes on after a reboot: what is written where, and that it is gone afterwards."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_lts import on_boot
from edge_lts.on_boot import ENTRY, Boot, OnBootError, quoted, remove
from edge_lts.runfolder import RunFolder

COMMAND = ["/usr/bin/python3", "-I", "/home/pi/a b/agent.pyz", "search", "/r/runs/run-1", "--root", "/r"]
USER = getpass.getuser()


@dataclass
class System:
    """A pretended board below `root`; `allowed` are the first words of commands that succeed."""

    root: Path
    allowed: set[str] = field(default_factory=set)
    crontab: str | None = None
    said: list[list[str]] = field(default_factory=list)

    def run(self, argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
        self.said.append([*argv])
        if argv[:2] == ["crontab", "-l"]:
            if self.crontab is None:
                return subprocess.CompletedProcess(argv, 1, "", f"no crontab for {USER}\n")
            return subprocess.CompletedProcess(argv, 0, self.crontab, "")
        if argv[:2] == ["crontab", "-"]:
            self.crontab = stdin
            return subprocess.CompletedProcess(argv, 0, "", "")
        if argv[0] not in self.allowed:
            return subprocess.CompletedProcess(argv, 1, "", "Interactive authentication required.")
        lingering = self.root / "var/lib/systemd/linger" / USER
        if "enable-linger" in argv:
            self.linger()
        if "disable-linger" in argv:
            lingering.unlink()
        return subprocess.CompletedProcess(argv, 0, "", "")

    def linger(self) -> None:
        lingering = self.root / "var/lib/systemd/linger" / USER
        lingering.parent.mkdir(parents=True, exist_ok=True)
        lingering.touch()
        (self.root / f"run/user/{os.getuid()}/systemd").mkdir(parents=True, exist_ok=True)

    def has_systemd(self) -> System:
        (self.root / "run/systemd/system").mkdir(parents=True)
        return self

    def has_cron(self) -> System:
        (self.root / "proc/77").mkdir(parents=True)
        (self.root / "proc/77/comm").write_text("cron\n")
        return self

    def boot(self) -> Boot:
        return Boot(root=self.root, home=self.root / "home", run=self.run)

    @property
    def unit(self) -> Path:
        return self.root / "home/.config/systemd/user/edge-lts-run-1.service"


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path / "board")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "runs" / "run-1"
    path.mkdir(parents=True)
    return RunFolder(path)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_LTS_OWNER", raising=False)


def test_where_user_services_linger_it_is_a_unit(system: System, folder: RunFolder) -> None:
    system.has_systemd().linger()
    assert system.boot().add(folder, COMMAND) == "systemd"
    text = system.unit.read_text()
    words = '"/usr/bin/python3" "-I" "/home/pi/a b/agent.pyz" "search" "/r/runs/run-1" "--root" "/r"'
    assert f"\nExecStart={words}\n" in text
    assert f"\nStandardError=append:{folder / 'log.txt'}\n" in text
    assert "\nOOMPolicy=continue\n" in text  # a candidate that runs out of memory must not end the run
    wanted = system.unit.parent / "default.target.wants" / system.unit.name
    assert wanted.resolve() == system.unit.resolve()
    assert system.said == []
    assert remove(folder, system.boot)
    assert not system.unit.exists()
    assert not wanted.is_symlink()
    assert not (folder / ENTRY).exists()
    assert system.said == []  # who lingered before lingers on
    assert not remove(folder, system.boot)


@pytest.mark.parametrize("allowed", ["loginctl", "sudo"])
def test_lingering_is_switched_on_without_a_password_and_off_with_the_last_run(
    system: System, folder: RunFolder, allowed: str
) -> None:
    system.has_systemd().allowed.add(allowed)
    other = RunFolder(folder.path.with_name("run-2"))
    other.path.mkdir()
    for one in (folder, other):
        assert system.boot().add(one, COMMAND) == "systemd"
    assert ["--no-ask-password" in argv for argv in system.said] == [True] * len(system.said)
    lingering = system.root / "var/lib/systemd/linger" / USER
    remove(folder, system.boot)
    assert lingering.exists()
    remove(other, system.boot)
    assert not lingering.exists()


def test_else_it_is_a_line_of_the_crontab_beside_what_is_there(system: System, folder: RunFolder) -> None:
    system.has_systemd().has_cron().crontab = "MAILTO=me\n5 4 * * * tidy # not edge-lts run-1 \n"
    before = system.crontab
    assert system.boot().add(folder, [*COMMAND, "100%"]) == "cron"
    words = "/usr/bin/python3 -I '/home/pi/a b/agent.pyz' search /r/runs/run-1 --root /r 100\\% --detach"
    assert system.crontab == f"{before}@reboot {words} >/dev/null 2>&1 # edge-lts run-1\n"
    once = system.crontab
    system.boot().add(folder, [*COMMAND, "100%"])
    assert system.crontab == once
    assert remove(folder, system.boot)
    assert system.crontab == before


def test_a_first_crontab_is_made(system: System, folder: RunFolder) -> None:
    system.has_cron().boot().add(folder, COMMAND)
    assert system.crontab is not None
    assert system.crontab.startswith("@reboot /usr/bin/python3 ")


def test_a_crontab_that_cannot_be_read_is_left_alone(system: System, folder: RunFolder) -> None:
    def run(argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
        assert argv == ["crontab", "-l"]
        return subprocess.CompletedProcess(argv, 1, "", "crontab: you are not allowed to use this program\n")

    system.has_cron()
    with pytest.raises(OnBootError, match="not allowed"):
        Boot(root=system.root, home=system.root / "home", run=run).add(folder, COMMAND)
    assert not (folder / ENTRY).exists()


def test_a_board_that_starts_nothing_of_this_user_is_refused_with_the_remedy(system: System, folder: RunFolder) -> None:
    system.has_systemd()
    with pytest.raises(OnBootError, match=f"sudo loginctl enable-linger {USER}") as raised:
        system.boot().add(folder, COMMAND)
    assert raised.value.exit_code == 5
    assert not (folder / ENTRY).exists()
    assert system.crontab is None


def test_lingering_without_a_user_manager_is_undone(
    system: System, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where PAM does not know systemd: services would never start."""
    monkeypatch.setattr(on_boot, "LINGER_STARTS_S", 0.0)
    monkeypatch.setattr(system, "linger", lambda: None)
    system.has_systemd().has_cron().allowed.add("loginctl")
    lingering = system.root / "var/lib/systemd/linger" / USER
    lingering.parent.mkdir(parents=True)

    def run(argv: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
        if "enable-linger" in argv:
            lingering.touch()
        return system.run(argv, stdin)

    assert Boot(root=system.root, home=system.root / "home", run=run).add(folder, COMMAND) == "cron"
    assert not lingering.exists()


def test_whoever_reserved_the_board_is_known_after_the_reboot(
    system: System, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LTS_OWNER", "ann@desk")
    system.has_systemd().linger()
    system.boot().add(folder, COMMAND)
    assert 'ExecStart="/usr/bin/env" "EDGE_LTS_OWNER=ann@desk" "/usr/bin/python3"' in system.unit.read_text()


def test_words_of_a_unit_are_taken_as_they_are() -> None:
    assert quoted('a "b" \\ $HOME 5%') == '"a \\"b\\" \\\\ $$HOME 5%%"'

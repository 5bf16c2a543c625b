import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts.job import Identity
from edge_lts.runfolder import read_json
from edge_lts.tuning import STATE, Tuned, restore_leftovers

CPUFREQ = "sys/devices/system/cpu/cpufreq"
CHECKOUT = Path(__file__).parents[3]
ALLOWED = ((),)  # the files can be written
HOLDER = """
import sys
from pathlib import Path
from edge_lts.tuning import Tuned
with Tuned(Path(sys.argv[1]), Path(sys.argv[2]), ((),)) as tuned:
    print(tuned.result["tuned"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    root = tmp_path / "system"
    for name, governor in (("policy0", "ondemand"), ("policy4", "schedutil"), ("policy6", "performance")):
        folder = root / CPUFREQ / name
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(governor + "\n")
        (folder / "scaling_available_governors").write_text("ondemand schedutil powersave performance\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def governors(system: Path) -> list[str]:
    return [
        (system / CPUFREQ / name / "scaling_governor").read_text().strip() for name in ("policy0", "policy4", "policy6")
    ]


def choose(system: Path, name: str, governor: str) -> None:
    (system / CPUFREQ / name / "scaling_governor").write_text(governor + "\n")


UNTUNED, TUNED = ["ondemand", "schedutil", "performance"], ["performance"] * 3


def test_the_governor_is_set_for_a_while_and_put_back(root: Path, system: Path) -> None:
    with Tuned(root, system, ALLOWED) as tuned:
        assert governors(system) == TUNED
        before = dict(zip(("policy0", "policy4", "policy6"), UNTUNED, strict=True))
        assert tuned.result == {"tuned": True, "reason": None, "before": before}
        state = read_json(root / STATE)
        assert state["before"] == {"policy0": "ondemand", "policy4": "schedutil"}
        assert Identity.from_json(state["owner"]) == Identity.current()
    assert governors(system) == UNTUNED
    assert not (root / STATE).exists()
    assert tuned.result["reason"] is None


def test_an_exception_puts_it_back_too(root: Path, system: Path) -> None:
    with pytest.raises(KeyError), Tuned(root, system, ALLOWED):
        raise KeyError
    assert governors(system) == UNTUNED


def test_the_state_is_on_disk_before_anything_changes(
    root: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fail(path: Path, data: bytes, *, is_durable: bool) -> None:
        seen.append((governors(system), is_durable, json.loads(data)["before"]))
        raise OSError

    monkeypatch.setattr("edge_lts.tuning.write_atomic", fail)
    with Tuned(root, system, ALLOWED) as tuned:
        assert tuned.result["reason"] == "no-state-file"
        assert governors(system) == UNTUNED
    assert seen == [(UNTUNED, True, {"policy0": "ondemand", "policy4": "schedutil"})]


def test_what_somebody_chose_meanwhile_stays(root: Path, system: Path) -> None:
    with Tuned(root, system, ALLOWED):
        choose(system, "policy0", "powersave")
    assert governors(system) == ["powersave", "schedutil", "performance"]
    assert not (root / STATE).exists()


def sudo(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    program = folder / "sudo"
    program.write_text(f'#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\necho "$1" >>{folder}/calls\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_sudo_is_asked_once_and_never_for_a_password(
    root: Path, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sudo(tmp_path / "bin", 'exec "$@"', monkeypatch)
    with Tuned(root, system, (("false",), ("sudo", "-n"))) as tuned:
        assert tuned.result["tuned"]
        assert governors(system) == TUNED
    assert governors(system) == UNTUNED
    assert (tmp_path / "bin/calls").read_text() == "sh\n"  # the right to restore was not asked for again


@pytest.mark.parametrize("prefixes", [(("sudo", "-n"),), (("no-such-program",),)])
def test_a_refusal_is_said_and_changes_nothing(
    root: Path, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefixes: tuple[tuple[str, ...], ...]
) -> None:
    sudo(tmp_path / "bin", "exit 1", monkeypatch)
    with Tuned(root, system, prefixes) as tuned:
        assert (tuned.result["tuned"], tuned.result["reason"]) == (False, "not-permitted")
        assert governors(system) == UNTUNED
    assert governors(system) == UNTUNED
    assert not (root / STATE).exists()


def test_half_a_change_is_undone(root: Path, system: Path) -> None:
    stuck = system / CPUFREQ / "policy9"
    stuck.mkdir()
    (stuck / "scaling_governor").symlink_to("/proc/sys/kernel/ostype")  # can be read; not written, not even by root
    with Tuned(root, system, ALLOWED) as tuned:
        assert tuned.result["reason"] == "not-permitted"
        assert governors(system) == UNTUNED
    assert not (root / STATE).exists()


@pytest.mark.parametrize(("available", "reason"), [("powersave", "no-performance-governor"), (None, "no-cpufreq")])
def test_what_cannot_be_tuned_is_said(root: Path, tmp_path: Path, available: str | None, reason: str) -> None:
    if available is not None:
        folder = tmp_path / "system" / CPUFREQ / "policy0"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("powersave\n")
        (folder / "scaling_available_governors").write_text(available + "\n")
    with Tuned(root, tmp_path / "system", ALLOWED) as tuned:
        assert (tuned.result["tuned"], tuned.result["reason"]) == (False, reason)


def test_a_board_that_is_fast_already_needs_nothing(root: Path, system: Path) -> None:
    for name in ("policy0", "policy4"):
        choose(system, name, "performance")
    with Tuned(root, system, (("no-such-program",),)) as tuned:
        assert tuned.result["tuned"]
        assert not (root / STATE).exists()
    assert governors(system) == TUNED


@contextlib.contextmanager
def holder(root: Path, system: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own that has tuned the board."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), str(system)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"True\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def wait_for_end(pid: int) -> None:
    """Until a process that need not be a child of ours is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        select.select([pidfd], [], [], 20)
        os.close(pidfd)


def test_a_killed_run_is_tidied_up_by_its_guardian(root: Path, system: Path) -> None:
    with holder(root, system) as child:
        assert governors(system) == TUNED
        guardian = read_json(root / STATE)["guardian"]["pid"]
        child.kill()
        child.wait()
        wait_for_end(guardian)
        assert governors(system) == UNTUNED
        assert restore_leftovers(root, system, ALLOWED) == {"policy0": "ondemand", "policy4": "schedutil"}
        assert not (root / STATE).exists()
        assert governors(system) == UNTUNED


def test_the_next_start_puts_back_what_not_even_the_guardian_could(root: Path, system: Path) -> None:
    with holder(root, system) as child:
        guardian = read_json(root / STATE)["guardian"]["pid"]
        os.kill(guardian, signal.SIGKILL)
        child.kill()
        child.wait()
        wait_for_end(guardian)
        assert governors(system) == TUNED
        choose(system, "policy4", "powersave")  # what somebody chose since
        assert restore_leftovers(root, system, ALLOWED) == {"policy0": "ondemand", "policy4": "schedutil"}
        assert governors(system) == ["ondemand", "powersave", "performance"]
        assert not (root / STATE).exists()


def test_the_next_start_waits_for_a_guardian_at_work(root: Path, system: Path) -> None:
    with holder(root, system) as child:
        guardian = Identity.from_json(read_json(root / STATE)["guardian"])
        assert guardian is not None
        child.kill()
        child.wait()
        restore_leftovers(root, system, ALLOWED)
        assert not guardian.matches_a_process()  # nobody is left to undo what a new run sets now
        assert governors(system) == UNTUNED


def test_a_run_that_lives_is_left_alone(root: Path, system: Path) -> None:
    with Tuned(root, system, ALLOWED):
        assert restore_leftovers(root, system, ALLOWED) == {}
        assert governors(system) == TUNED


def leave(root: Path, **changes: object) -> None:
    owner = {**Identity.current().to_json(), "start_time_ticks": 1, **changes}
    before = {"policy0": "ondemand", "../../policy4": "x"}
    (root / STATE).write_text(json.dumps({"owner": owner, "governor": "performance", "before": before}))


def test_after_a_reboot_the_kernels_own_choice_stands(root: Path, system: Path) -> None:
    choose(system, "policy0", "performance")
    leave(root, boot_id="another")
    assert restore_leftovers(root, system, ALLOWED) == {}
    assert governors(system)[0] == "performance"
    assert not (root / STATE).exists()


def test_leftovers_that_may_not_be_restored_are_kept_for_later(root: Path, system: Path) -> None:
    choose(system, "policy0", "performance")
    leave(root)
    assert restore_leftovers(root, system, (("false",),)) == {"policy0": "ondemand"}
    assert (root / STATE).exists()
    assert restore_leftovers(root, system, ALLOWED) == {"policy0": "ondemand"}
    assert governors(system)[0] == "ondemand"
    assert not (root / STATE).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"owner": [], "before": 3}'])
def test_a_damaged_state_file_is_dropped(root: Path, system: Path, text: str) -> None:
    (root / STATE).write_text(text)
    assert restore_leftovers(root, system, ALLOWED) == {}
    assert not (root / STATE).exists()
    assert governors(system) == UNTUNED


def test_nothing_was_left(root: Path, system: Path) -> None:
    assert restore_leftovers(root, system) == {}

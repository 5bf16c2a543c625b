"""The emulated board itself: what other board tests take for granted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.board.conftest import MakeBoard
from tests.board.emulated import REPOSITORY, BoardError, EmulatedBoard

pytestmark = pytest.mark.arm64


def banner(board: EmulatedBoard, timeout_s: float) -> bytes:
    with socket.create_connection((board.address, board.port), timeout=timeout_s) as link:
        return link.recv(4)


def traces(board: EmulatedBoard) -> dict[str, bool]:
    """What of a board can still be found on this machine."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {
        "namespace": board.name in namespaces.split(),
        "link": Path("/sys/class/net", board.name).exists(),
        "mounts": str(board.directory) in Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
        "processes": bool(board.processes()),
        "files": board.directory.exists(),
    }


def start_sleep(board: EmulatedBoard, seconds: int) -> None:
    """Leave a process behind on the board that outlives its SSH session, and wait until it is what it shall be."""
    board.ssh(f"nohup sleep {seconds} >/dev/null 2>&1 &")
    deadline = time.monotonic() + 20
    while f"sleep {seconds}" not in sleeps(board):
        assert time.monotonic() < deadline, board.processes()
        time.sleep(0.05)


def sleeps(board: EmulatedBoard) -> list[str]:
    return [process.command for process in board.processes() if process.argv[0] == "sleep"]


def test_ssh_reaches_an_aarch64_userland_as_an_ordinary_user(board: EmulatedBoard) -> None:
    told = board.ssh("uname -m; id -un; echo $QEMU_CPU; hostname")
    assert told.stdout.split() == ["aarch64", "pi", "cortex-a72", board.name]


def test_offers_python_without_pip_venv_or_numpy(board: EmulatedBoard) -> None:
    program = "import importlib.util as u, sysconfig; print(sysconfig.get_platform())\n"
    program += "print(*(u.find_spec(name) is not None for name in ('pip', 'ensurepip', 'numpy')))"
    assert board.ssh(f'python3 -c "{program}"').stdout.split() == ["linux-aarch64", "False", "False", "False"]


def test_carries_none_of_this_machines_package_configuration(board: EmulatedBoard) -> None:
    for path in ("etc/pip.conf", "etc/xdg/pip", "root/.config", "home/pi/.config"):
        assert not (board.root / path).exists()


def test_home_is_visible_from_this_machine(board: EmulatedBoard) -> None:
    board.ssh("echo 192 > measured && mkfifo pipe && rm pipe")
    assert (board.home / "measured").read_text() == "192\n"


def test_cut_cable_stalls_connections_and_a_restored_one_carries_them(fresh_board: EmulatedBoard) -> None:
    fresh_board.cut_link()
    with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
        banner(fresh_board, timeout_s=1)
    assert fresh_board.run(["uname", "-m"]).stdout == "aarch64\n"
    fresh_board.restore_link()
    assert banner(fresh_board, timeout_s=20) == b"SSH-"


def test_an_open_connection_outlives_a_cut_cable(fresh_board: EmulatedBoard) -> None:
    with socket.create_connection((fresh_board.address, fresh_board.port), timeout=2) as link:
        assert link.recv(256).startswith(b"SSH-")
        fresh_board.cut_link()
        link.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(TimeoutError):
            link.recv(1)
        fresh_board.restore_link()
        link.settimeout(30)
        assert link.recv(1)


def test_boards_side_by_side_are_different_hosts(board: EmulatedBoard, fresh_board: EmulatedBoard) -> None:
    assert board.address != fresh_board.address
    assert board.known_hosts.read_text().split()[2] != fresh_board.known_hosts.read_text().split()[2]
    assert fresh_board.ssh("hostname").stdout.strip() == fresh_board.name
    (fresh_board.home / "only-here").touch()
    assert not (board.home / "only-here").exists()


def test_kills_only_what_matches_on_that_board_alone(board: EmulatedBoard, fresh_board: EmulatedBoard) -> None:
    for each in (board, fresh_board):
        start_sleep(each, 987)
        start_sleep(each, 986)
    try:
        assert [victim.argv for victim in fresh_board.kill_processes("^sleep 987")] == [("sleep", "987")]
        assert sleeps(fresh_board) == ["sleep 986"]
        assert sleeps(board) == ["sleep 987", "sleep 986"]
    finally:
        board.kill_processes("^sleep 98")


def test_processes_see_only_their_own_board(fresh_board: EmulatedBoard) -> None:
    listed = {int(pid) for pid in fresh_board.run(["ps", "-e", "-o", "pid="]).stdout.split()}
    assert {process.board_pid for process in fresh_board.processes()} <= listed
    assert os.getpid() not in listed
    assert min(listed) == 1


def test_a_reboot_ends_every_process_keeps_the_disk_and_has_a_new_boot_id(fresh_board: EmulatedBoard) -> None:
    read_boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = fresh_board.ssh(f"echo kept > kept; {read_boot_id}").stdout.strip()
    start_sleep(fresh_board, 985)
    fresh_board.reboot()
    kept, after = fresh_board.ssh(f"cat kept; {read_boot_id}").stdout.split()
    assert kept == "kept"
    assert after != before
    assert sleeps(fresh_board) == []


def test_a_small_disk_fills_up_and_empties(make_board: MakeBoard) -> None:
    board = make_board(disk_bytes=8 << 20)
    board.fill_disk()
    full = board.ssh("head -c 65536 /dev/zero > data", check=False)
    assert full.returncode
    assert "No space left on device" in full.stderr
    board.free_disk()
    board.ssh("head -c 65536 /dev/zero > data")


def test_refuses_to_fill_the_disk_of_this_machine(board: EmulatedBoard) -> None:
    with pytest.raises(BoardError, match="disk_bytes"):
        board.fill_disk()


def test_closing_leaves_nothing_behind(arm64_root: Path) -> None:
    with EmulatedBoard(arm64_root) as board:
        start_sleep(board, 984)
        assert all(traces(board).values())
    assert not any(traces(board).values())


def test_a_killed_test_run_is_swept_away_by_the_next(arm64_root: Path) -> None:
    program = f"""
import json, os, signal
from pathlib import Path
from tests.board.emulated import EmulatedBoard
board = EmulatedBoard(Path({str(arm64_root)!r})).__enter__()
print(json.dumps([board.name, str(board.directory)]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    name, directory = json.loads(died.stdout)
    assert Path(directory).exists()
    with EmulatedBoard(arm64_root) as board:
        assert board.ssh("true").returncode == 0
        if board.name != name:  # otherwise this board stands in the dead one's place
            assert not Path(directory).exists()


def test_the_root_is_built_once(arm64_root: Path) -> None:
    assert shutil.which("flock")
    script = REPOSITORY / "scripts" / "arm64_root.sh"
    again = subprocess.run([script], capture_output=True, text=True, check=True, timeout=10)
    assert (again.stdout, again.stderr) == (f"{arm64_root}\n", "")

"""A whole board whose only link is its serial console: systemd's getty, a real login, kernel messages of a real kernel.

Nothing here uses SSH. qemu's UART has no speed of its own; a cable in between gives it 115200 baud where time matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts_host.payload import build_payload
from edge_lts_host.transport.serial_console import SerialTransport
from edge_lts_host.transport.serial_login import Console
from edge_lts_host.transport.serial_port import ConsolePort, SerialDestination
from edge_lts_host.transport.serial_scan import scan
from tests.board.emulated import REPOSITORY
from tests.board.whole import WholeBoard, deployed_board
from tests.serial_line import Cable

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(3600), pytest.mark.long]

PASSWORD = "raspberry"
LOGIN_S = 240.0  # booting included
UART_BYTES_PER_S = 11520.0
SMALL = ["--space", "tiny", "--prompt-tokens", "4", "--context-tokens", "4", "--candidate-timeout", "10m"]


@pytest.fixture(scope="module")
def board() -> Iterator[WholeBoard]:
    with deployed_board() as board:
        yield board


@contextlib.contextmanager
def cable(board: WholeBoard, bytes_per_s: float = UART_BYTES_PER_S) -> Iterator[Cable]:
    """A UART's cable from the board's console to a terminal of ours."""
    line = os.open(board.console, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    try:
        with Cable(line, bytes_per_s=bytes_per_s) as carrier:
            yield carrier
    finally:
        os.close(line)


def connect(board: WholeBoard, port: str) -> SerialTransport:
    return SerialTransport(
        f"serial:{board.user}@{port}", prompt=lambda *_: PASSWORD, is_interactive=True, login_s=LOGIN_S
    )


def log_in_by_hand(board: WholeBoard, port: str) -> None:
    """Somebody logs in on the console and leaves it so, which spares every command the password."""
    who = SerialDestination(port=port, user=board.user)
    with contextlib.closing(ConsolePort(who)) as console:
        Console(console, who, prompt=lambda *_: PASSWORD, is_interactive=True, login_s=LOGIN_S).reach_shell()


def edge_lts(home: Path, *words: str, password: str = "", status: int = 0) -> str:
    """The command line on a terminal of its own, where `password` is typed when it is asked for; returns its stdout."""
    environ = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'host'}",
        "EDGE_LTS_RUNS": str(home / "runs"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
    }
    argv = [sys.executable, "-m", "edge_lts_host", *words]
    output = home / "stdout"
    pid, master = pty.fork()
    if pid == 0:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
        os.chdir(home)
        os.execvpe(argv[0], argv, environ)
    said = b""
    while True:
        readable, _, _ = select.select([master], [], [], 1800)
        assert readable, said[-2000:]
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        said += data
        if password and re.search(rb"Password of .*: $", said):
            os.write(master, password.encode() + b"\n")
            said += b"\n"
    os.close(master)
    _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == status, said.decode(errors="replace")[-3000:]
    assert PASSWORD not in said.decode(errors="replace")
    return output.read_text()


def test_a_board_that_boots_is_logged_in_to_and_runs_commands(board: WholeBoard) -> None:
    with connect(board, board.console) as transport:
        result = transport.run(["sh", "-c", "uname -m; id -un; echo e >&2; exit 3"], timeout_s=60)
        assert (result.stdout, result.stderr, result.exit_status) == (b"aarch64\npi\n", b"e\n", 3)
        assert transport.run(["no-such-command"], timeout_s=60).exit_status == 127
        assert transport.run(["pwd"], timeout_s=60).stdout == b"/home/pi\n"


def test_kernel_messages_in_between_do_no_harm(board: WholeBoard) -> None:
    data = os.urandom(40_000)
    # A kernel that talks all the time, at a level that `dmesg -n 1` does not keep off the console.
    talk = "for i in $(seq 300); do echo '<0>edge-lts test: the kernel says something' > /dev/kmsg; sleep 0.05; done"
    with connect(board, board.console) as transport:
        transport.run(["sudo", "-n", "sh", "-c", f"({talk}) >/dev/null 2>&1 </dev/null &"], timeout_s=60)
        result = transport.run(["cat"], stdin=data, timeout_s=300)
        assert result.stdout == data
        assert transport._wire.noise.count(b"edge-lts test") > 0
        transport.run(["sudo", "-n", "pkill", "-f", "kernel says"], timeout_s=60)


def test_the_kernels_console_level_is_as_it_was(board: WholeBoard) -> None:
    with connect(board, board.console) as transport:
        during = transport.run(["cat", "/proc/sys/kernel/printk"], timeout_s=60).stdout.split()[0]
        shown = transport.run(["sh", "-c", "cat /proc/cmdline"], timeout_s=60).stdout
    assert b"console=ttyAMA0" in shown
    assert during == b"1"
    log_in_by_hand(board, board.console)
    with contextlib.closing(ConsolePort(SerialDestination(port=board.console))) as console:
        console.write(b"cat /proc/sys/kernel/printk; exit\n")
        heard, end_s = b"", time.monotonic() + 30
        levels = re.compile(rb"([0-7])\s+[0-7]\s+[0-7]\s+[0-7]\s")
        while time.monotonic() < end_s and not levels.search(heard):
            heard += console.read(1.0)
    level = levels.search(heard)
    assert level is not None
    assert level[1] != b"1"


def test_the_agent_crosses_115200_baud_in_seconds(board: WholeBoard) -> None:
    payload = build_payload()
    with cable(board) as carrier, connect(board, carrier.path) as transport:
        begun = time.monotonic()
        transport.put(payload.data, "agent-test.pyz", timeout_s=120)
        took_s = time.monotonic() - begun
        said = transport.run(["sha256sum", "agent-test.pyz"], timeout_s=60).stdout
        transport.run(["rm", "agent-test.pyz"], timeout_s=60)
    assert said.split()[0].decode() == hashlib.sha256(payload.data).hexdigest()
    ideal_s = len(payload.data) * 4 / 3 / UART_BYTES_PER_S
    assert took_s < 1.1 * ideal_s + 5, f"{took_s:.1f} s for {len(payload.data)} bytes"


def test_a_plug_that_is_pulled_loses_nothing_that_was_pushed(board: WholeBoard) -> None:
    data = os.urandom(300_000)
    with connect(board, board.console) as transport:
        transport.put(data, "big.bin", timeout_s=300)
        board.power_off()
    board.power_on(wait=False)
    with connect(board, board.console) as transport:
        result = transport.put(data, "big.bin", timeout_s=300)
        assert result.is_skipped
        transport.run(["rm", "big.bin"], timeout_s=60)


def test_deploy_run_status_stop_and_pull_over_the_console(board: WholeBoard, tmp_path: Path) -> None:
    with cable(board, bytes_per_s=4 * UART_BYTES_PER_S) as carrier:
        port = ["--serial", carrier.path, "--user", board.user]
        (found,) = scan({carrier.path: ""}, listen_s=10.0)
        assert found.kind == "login", found
        deploy = ["deploy", *port, "--target", "emulated-arm64", "-o", "json"]
        (host,) = json.loads(edge_lts(tmp_path, *deploy, password=PASSWORD))["hosts"]
        assert any("pushed the agent" in step for step in host["steps"])
        assert not any("wheels" in step for step in host["steps"])
        name = host["host"]
        log_in_by_hand(board, carrier.path)
        words = ["run", "--host", name, *SMALL, "--budget", "1h", "--max-candidates", "20", "--strategy", "random"]
        (run,) = json.loads(edge_lts(tmp_path, *words, "-o", "json"))["runs"]
        run_id = run["run_id"]
        end_s = time.monotonic() + 1800
        while True:
            (status,) = json.loads(edge_lts(tmp_path, "status", run_id, "-o", "json"))["runs"]
            if status["n_measured"]:
                break
            assert status["state"] not in ("failed", "interrupted"), status
            assert time.monotonic() < end_s, status
            time.sleep(5)
        edge_lts(tmp_path, "stop", run_id)
        edge_lts(tmp_path, "pull", run_id)
        ledger = (tmp_path / "runs" / run_id / "ledger.jsonl").read_bytes().splitlines()
        assert any(json.loads(line).get("kind") == "evaluation" for line in ledger)
        (status,) = json.loads(edge_lts(tmp_path, "status", run_id, "-o", "json"))["runs"]
        assert status["state"] == "stopped"

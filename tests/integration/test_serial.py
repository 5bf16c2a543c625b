"""A serial console end to end on this machine: getty, login, a real shell, and a cable that is not good."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import serial
from serial import rfc2217

from edge_lts_host.cli import main
from edge_lts_host.errors import AuthenticationError, ConnectError, ConnectionLostError, TransferError
from edge_lts_host.hosts import load_hosts
from edge_lts_host.transport import serial_console, serial_relay
from edge_lts_host.transport.serial_console import SerialTransport
from edge_lts_host.transport.serial_login import Console
from edge_lts_host.transport.serial_port import ConsolePort, SerialDestination
from edge_lts_host.transport.serial_scan import scan
from tests.integration.sshd import no_leaks, wait_until
from tests.serial_line import PASSWORD, Cable, ShellConsole

USER = getpass.getuser()


@pytest.fixture
def make_console() -> Iterator[Callable[..., ShellConsole]]:
    consoles: list[ShellConsole] = []

    def make(**settings: object) -> ShellConsole:
        consoles.append(ShellConsole(**settings))  # type: ignore[arg-type]
        return consoles[-1]

    with no_leaks():
        yield make
        for console in consoles:
            console.close()


def connect(console: ShellConsole, *, user: str = "", password: str = PASSWORD) -> SerialTransport:
    at = f"{user}@" if user else ""
    return SerialTransport(
        f"serial:{at}{console.path}", prompt=lambda *_: password, is_interactive=bool(user), login_s=30
    )


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_who_logs_in_logs_out(make_console: Callable[..., ShellConsole], shell: str) -> None:
    console = make_console(user=USER, shell=shell)
    with connect(console, user=USER) as transport:
        assert transport.run(["echo", "there"], timeout_s=20).stdout == b"there\n"
    assert wait_until(lambda: console.n_logins == 2 and not console.is_logged_in())
    with connect(console, user=USER) as transport:
        assert transport.run(["echo", "again"], timeout_s=20).stdout == b"again\n"


def test_a_console_that_was_logged_in_stays_so(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console(shell="bash")
    for _ in range(2):
        with connect(console) as transport:
            assert transport.run(["true"], timeout_s=20).exit_status == 0
    time.sleep(0.5)
    assert console.is_logged_in()
    assert console.n_logins == 1


def test_a_wrong_password_is_no_connection(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console(user=USER)
    with pytest.raises(AuthenticationError, match="did not accept") as caught:
        connect(console, user=USER, password="open barley")
    assert "barley" not in str(caught.value)


def test_somebody_else_who_is_logged_in_is_not_us(make_console: Callable[..., ShellConsole]) -> None:
    with pytest.raises(AuthenticationError, match=f"logged in as {USER}"):
        connect(make_console(), user="nobody-else")


def test_a_port_is_ours_alone(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console()
    with connect(console), pytest.raises(ConnectError, match="another program has the port"):
        connect(console)


def test_a_line_that_somebody_left_is_not_sent(make_console: Callable[..., ShellConsole], tmp_path: Path) -> None:
    console = make_console(shell="bash")
    assert wait_until(console.is_logged_in)
    with closing(ConsolePort(SerialDestination(port=console.path))) as port:
        port.write(f"touch {tmp_path}/harm".encode())
        time.sleep(0.3)
    with connect(console) as transport:
        assert transport.run(["true"], timeout_s=20).exit_status == 0
    assert not (tmp_path / "harm").exists()


def test_files_cross_a_bad_cable_whole(make_console: Callable[..., ShellConsole], tmp_path: Path) -> None:
    console = make_console(user=USER, shell="bash")
    data = os.urandom(60_000)
    console.cable.n_per_message = 3000
    with connect(console, user=USER) as transport:
        console.cable.n_per_flip = console.cable.n_per_loss = 5000
        transport.put(data, str(tmp_path / "file"), timeout_s=120)
        assert (tmp_path / "file").read_bytes() == data
        assert transport.get(str(tmp_path / "file"), offset=10, timeout_s=120) == data[10:]
        assert console.cable.n_faults > 10
        assert transport.n_damaged > 0


def test_output_that_waits_for_a_slow_line_outlives_its_command(
    make_console: Callable[..., ShellConsole], tmp_path: Path
) -> None:
    data = os.urandom(60_000)  # more than the relay reads ahead, less than a pipe holds: `cat` ends in its first second
    (tmp_path / "file").write_bytes(data)
    with connect(make_console(bytes_per_s=16_000.0)) as transport:
        assert transport.run(["cat", str(tmp_path / "file")], timeout_s=60).stdout == data


def test_the_login_itself_crosses_a_bad_cable(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console()
    console.cable.n_per_message = 500
    console.cable.n_per_flip = 20_000
    with connect(console) as transport:
        assert transport.run(["echo", "there"], timeout_s=60).stdout == b"there\n"


def test_a_push_goes_on_after_the_board_was_lost(
    make_console: Callable[..., ShellConsole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_console, "LOST_S", 5.0)
    console = make_console(bytes_per_s=50_000.0)
    data = os.urandom(200_000)
    transport = connect(console)
    end = console.cable.n_carried["to board"] + 150_000

    def cut() -> None:
        wait_until(lambda: console.cable.n_carried["to board"] > end, 50)
        console.cable.is_cut = True

    cutting = threading.Thread(target=cut)
    cutting.start()
    with pytest.raises(ConnectionLostError, match="has not answered for 5 s"):
        transport.put(data, str(tmp_path / "file"), timeout_s=60)
    cutting.join()
    with pytest.raises(ConnectionLostError):
        transport.run(["true"], timeout_s=10)
    transport.close()
    console.cable.is_cut = False
    with connect(console) as transport:  # the relay of the lost connection is told to make room
        result = transport.put(data, str(tmp_path / "file"), timeout_s=60)
    assert (tmp_path / "file").read_bytes() == data
    assert 0 < result.n_sent < len(data)


def test_an_adapter_that_is_pulled_is_a_lost_connection(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console()
    transport = connect(console)
    threading.Timer(0.5, console.cable.unplug).start()
    with closing(transport), pytest.raises(ConnectionLostError, match="the port was lost"):
        transport.run(["sleep", "20"], timeout_s=30)


def test_a_person_gets_the_console_back_with_ctrl_c(make_console: Callable[..., ShellConsole]) -> None:
    console = make_console()
    transport = connect(console)
    transport._port.close()  # the workstation is gone without a word
    with closing(ConsolePort(SerialDestination(port=console.path))) as port:
        port.write(serial_relay.PANIC)
        time.sleep(1.0)
        port.write(b"echo a''b\n")
        heard: list[bytes] = []

        def is_answered() -> bool:
            heard.append(port.read(0.2))
            return b"ab\r\n" in b"".join(heard)

        assert wait_until(is_answered, 5), heard


def test_a_scan_tells_a_login_from_a_shell(make_console: Callable[..., ShellConsole], tmp_path: Path) -> None:
    login, shell = make_console(user=USER), make_console(shell="bash")
    assert wait_until(shell.is_logged_in)
    ports = {login.path: "FT232R USB UART", shell.path: "", str(tmp_path / "none"): ""}
    found = {each.port: each for each in scan(ports, listen_s=30.0)}
    assert (found[login.path].kind, found[login.path].answer) == ("login", "a login prompt of board")
    assert found[login.path].to_json()["description"] == "FT232R USB UART"
    assert found[shell.path].kind == "shell"
    assert (found[str(tmp_path / "none")].kind) == "closed"


# Over a network: a terminal server in front of the console


class WithoutModemLines:
    """A port as PortManager wants it; a pseudo-terminal has no modem lines to read or to set."""

    cts = dsr = ri = cd = False

    def __init__(self, port: serial.Serial) -> None:
        vars(self)["_port"] = port

    def __getattr__(self, name: str) -> object:
        return getattr(self._port, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("dtr", "rts", "break_condition"):
            setattr(self._port, name, value)


class TerminalServer:
    """A TCP port that leads to a cable's terminal, with RFC 2217's negotiation or without."""

    def __init__(self, path: str, *, has_rfc2217: bool) -> None:
        self._port = ConsolePort(SerialDestination(port=path))
        self._has_rfc2217 = has_rfc2217
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="terminal server")
        self._thread.start()

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()
        self._port.close()

    def _serve(self) -> None:
        self._listener.settimeout(10)
        client, _ = self._listener.accept()
        with client:
            client.settimeout(0.01)

            class Reply:
                def write(self, data: bytes) -> None:
                    client.sendall(data)

            manager = rfc2217.PortManager(WithoutModemLines(self._port._serial), Reply()) if self._has_rfc2217 else None
            while True:
                try:
                    data = client.recv(4096)
                    if not data:
                        return
                    self._port.write(b"".join(manager.filter(data)) if manager else data)
                except TimeoutError:
                    pass
                except ConnectionError:
                    return
                back = self._port.read(0.0)
                if back:
                    client.sendall(b"".join(manager.escape(back)) if manager else back)


@pytest.mark.parametrize("scheme", ["socket", "rfc2217"])
def test_consoles_behind_a_terminal_server(make_console: Callable[..., ShellConsole], scheme: str) -> None:
    console = make_console()
    server = TerminalServer(console.path, has_rfc2217=scheme == "rfc2217")
    data = bytes(range(256)) * 40
    with (
        closing(server),
        SerialTransport(f"serial:{scheme}://127.0.0.1:{server.port}", prompt=lambda *_: "") as transport,
    ):
        assert transport.run(["cat"], stdin=data, timeout_s=30).stdout == data


# The relay on its own


def test_output_without_end_is_stopped_at_the_limit(make_console: Callable[..., ShellConsole]) -> None:
    with connect(make_console()) as transport:
        with pytest.raises(TransferError, match="more than 100000 bytes"):
            transport.run(["yes"], timeout_s=60, max_output_bytes=100_000)
        assert transport.run(["echo", "still there"], timeout_s=20).stdout == b"still there\n"


def test_a_conversation_gets_answers_between_its_questions(make_console: Callable[..., ShellConsole]) -> None:
    with connect(make_console()) as transport:
        asked: list[bytes] = []
        answered: list[bytes] = []

        def questions() -> Iterator[bytes]:
            for number in range(3):
                asked.append(b"%d\n" % number)
                yield asked[-1]
                while len(answered) < len(asked):
                    yield b""

        with transport.stream(["cat"], stdin=questions(), timeout_s=30) as stream:
            for line in stream.lines():
                answered.append(line)
        assert answered == [b"0", b"1", b"2"]


# Deploying


def test_deploy_over_a_console_says_how_long_torch_would_take(
    make_console: Callable[..., ShellConsole], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = make_console()
    root = tmp_path / "board"
    words = ["deploy", "--serial", console.path, "--root", str(root), "--baud", "57600", "--dry-run", "-o", "json"]
    status = main(words)
    said = capsys.readouterr()
    if status == 0:
        (host,) = json.loads(said.out)["hosts"]
        assert host["destination"] == f"serial:{console.path},57600"
    assert load_hosts() == {}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--serial", "ttyUSB0"], "no serial:"),
        (["--serial", "/dev/ttyUSB0", "--host", "pi@x"], "leave out --host"),
        (["--user", "pi", "--host", "x"], "--serial PORT"),
        (["--serial", "/dev/ttyUSB0", "--baud", "12"], "no serial:"),
    ],
)
def test_deploy_refuses_consoles_that_make_no_sense(
    words: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", *words]) == 2
    assert match in capsys.readouterr().err


def test_the_cable_really_spoils(tmp_path: Path) -> None:
    """The faults that the tests above are about are there."""
    master, slave = os.openpty()
    with Cable(master) as cable, closing(ConsolePort(SerialDestination(port=cable.path))) as port:
        cable.n_per_message = 100
        os.write(slave, b"x" * 2000)
        heard = b""
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s and heard.count(b"x") < 1900:
            heard += port.read(0.1)
        assert b"usb 1-1.4" in heard
    os.close(master)
    os.close(slave)


def test_console_is_reached_twice_by_one_login(make_console: Callable[..., ShellConsole]) -> None:
    """`reach_shell` leaves a shell behind for whoever comes next: how a console is logged in by hand, once."""
    console = make_console(user=USER)
    with closing(ConsolePort(SerialDestination(port=console.path))) as port:
        who = Console(
            port,
            SerialDestination(port=console.path, user=USER),
            prompt=lambda *_: PASSWORD,
            is_interactive=True,
        )
        assert who.reach_shell()
    with SerialTransport(f"serial:{console.path}", prompt=lambda *_: "") as transport:
        assert transport.run(["true"], timeout_s=20).exit_status == 0
    assert console.n_logins == 1

"""Serial destinations, finding a shell on a console, what a scan makes of an answer, and deploys over a UART."""

from __future__ import annotations

import re
import termios
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st

from edge_lts_host.errors import AuthenticationError, ConnectError, ConnectionLostError, TargetError, UsageError
from edge_lts_host.hosts import HostEntry, check_destination, find_host, how_to_deploy
from edge_lts_host.inventory import load_inventory
from edge_lts_host.transport.fake import FakeClock
from edge_lts_host.transport.serial_login import LOADER, Console, program
from edge_lts_host.transport.serial_port import ConsolePort, SerialDestination, mapped_errors
from edge_lts_host.transport.serial_scan import describe, lasting_names

# Destinations


@pytest.mark.parametrize(
    ("text", "user", "port", "baud_hz"),
    [
        ("serial:/dev/ttyUSB0", None, "/dev/ttyUSB0", 115200),
        ("serial:pi@/dev/serial/by-id/usb-FTDI_A-port0,921600", "pi", "/dev/serial/by-id/usb-FTDI_A-port0", 921600),
        ("serial:rfc2217://lab:4001?timeout=3", None, "rfc2217://lab:4001?timeout=3", 115200),
        ("serial:root@socket://10.0.0.7:4000", "root", "socket://10.0.0.7:4000", 115200),
    ],
)  # fmt: skip
def test_destination_has_its_parts(text: str, user: str | None, port: str, baud_hz: int) -> None:
    parsed = SerialDestination.parse(text)
    assert (parsed.user, parsed.port, parsed.baud_hz) == (user, port, baud_hz)
    assert SerialDestination.parse(str(parsed)) == parsed
    assert HostEntry.from_json({"name": "x", "destination": text}).destination == text


@pytest.mark.parametrize(
    "text",
    [
        "serial:", "serial:ttyUSB0", "serial:/dev/tty USB0", "serial:/dev/ttyS0,fast", "serial:/dev/ttyS0,1",
        "serial:spy:///dev/ttyS0", "serial:a b@/dev/ttyS0", "serial:/dev/\x1b[31m", "serial:-x@/dev/ttyS0",
        "serial:/dev/ttyS0,99999999",
    ],
)  # fmt: skip
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"serial:\[USER@\]PORT\[,BAUD\]"):
        check_destination(text)


@given(text=st.text(max_size=40))
def test_any_text_is_a_destination_or_a_usage_error(text: str) -> None:
    try:
        assert SerialDestination.parse(f"serial:{text}").port.isprintable()
    except UsageError as exc:
        assert "\x1b" not in str(exc)


BOARD = HostEntry(name="bench", destination="serial:pi@/dev/ttyUSB0")


@pytest.mark.parametrize("text", ["bench", "serial:pi@/dev/ttyUSB0", "serial:/dev/ttyUSB0"])
def test_a_console_is_found_by_name_destination_and_port(text: str) -> None:
    hosts = {"bench": BOARD, "pi@other": HostEntry(name="pi@other", destination="pi@other")}
    assert find_host(text, hosts) == BOARD
    assert find_host("other", hosts) == hosts["pi@other"]


@pytest.mark.parametrize("text", ["serial:root@/dev/ttyUSB0", "serial:/dev/ttyUSB1", "serial:/dev/ttyUSB0,9600"])
def test_another_user_port_or_speed_is_another_board(text: str) -> None:
    assert find_host(text, {"bench": BOARD}) is None


def test_how_to_deploy_names_the_port() -> None:
    entry = replace(BOARD, destination="serial:pi@/dev/ttyUSB0,9600")
    assert how_to_deploy(entry) == "edge-lts deploy --serial /dev/ttyUSB0 --user pi --baud 9600"


# Inventory


def inventory(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return path


def test_a_console_is_the_link_of_a_board_without_a_host(tmp_path: Path) -> None:
    text = """
    [devices.bench.console]
    port = "/dev/ttyUSB0"
    baud = 921600
    user = "pi"
    [devices.shelf]
    host = "pi@shelf"
    [devices.shelf.console]
    port = "/dev/ttyUSB1"
    """
    devices = load_inventory(inventory(tmp_path, text)).devices
    assert devices["bench"].destination == "serial:pi@/dev/ttyUSB0,921600"
    assert devices["shelf"].destination == "pi@shelf"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('port = "ttyUSB0"', "console"),
        ("baud = 9600", r"console\.port"),
        ('port = "/dev/ttyUSB0"\nbaud = "fast"', r"console\.baud"),
        ('port = "/dev/ttyUSB0"\nbaud = true', r"console\.baud"),
        ('port = "/dev/ttyUSB0"\nuser = 1', r"console\.user"),
        ('port = "/dev/ttyUSB0"\npassword = "x"', r"console\.password"),
    ],
)
def test_a_console_that_makes_no_sense_is_named(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(TargetError, match=key):
        load_inventory(inventory(tmp_path, f"[devices.bench.console]\n{text}"))


# Errors of the backend


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (serial.SerialException(2, "no such file"), "devices scan"),
        (serial.SerialException("device reports readiness to read but returned no data"), "still plugged in"),
        (serial.SerialTimeoutException("Write timeout"), "still plugged in"),
        (serial.PortNotOpenError(), "still plugged in"),
        (PermissionError(13, "Permission denied"), "dialout"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "another program has the port"),
        (OSError(19, "No such device"), "plugged in"),
        (termios.error(5, "Input/output error"), "still plugged in"),
        (ValueError("invalid URL \x1b[31m"), "invalid URL"),
    ],
)
def test_whatever_pyserial_raises_is_a_transport_error_with_a_remedy(error: Exception, match: str) -> None:
    with pytest.raises(ConnectionLostError, match=match) as caught, mapped_errors("bench", "reading"):
        raise error
    assert "\x1b" not in str(caught.value)


def test_a_port_that_is_not_there_says_so() -> None:
    with pytest.raises(ConnectError, match="is the adapter plugged in"):
        ConsolePort(SerialDestination(port="/dev/serial/by-id/nothing-here"))


def test_a_file_is_no_port(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConnectError, match="no serial port"):
        ConsolePort(SerialDestination(port=str(path)))


# Finding a shell. A pretended console: it is given whole lines and says bytes; time passes only while one listens.

Talk = Iterator[bytes]


class Pretended:
    def __init__(self, talk: Callable[[], Iterator[object]], clock: FakeClock) -> None:
        self._clock = clock
        self.lines: list[bytes] = []
        self._out = b""
        self._talk = talk()
        self._say(next(self._talk))

    def _say(self, text: object) -> None:
        assert isinstance(text, bytes)
        self._out += text

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            line = line.rpartition(b"\x15")[2]
            self.lines.append(line)
            self._say(self._talk.send(line))  # type: ignore[attr-defined]

    def read(self, wait_s: float) -> bytes:
        data, self._out = self._out, b""
        self._clock.now += 0.01 if data else wait_s
        return data


def echo_answer(line: bytes) -> bytes:
    """What a shell with echo says to our probe."""
    found = re.fullmatch(rb" echo ([0-9a-f]+)''([0-9a-f]+)", line)
    return line + b"\r\n" + (found[1] + found[2] + b"\r\n" if found else b"") + b"\x1b[?2004hpi@board:~$ "


def shell() -> Iterator[bytes]:
    line = yield b""  # type: ignore[misc]
    while True:
        line = yield echo_answer(line)  # type: ignore[misc]


def getty(*, banner: bytes = b"", kernel: bytes = b"", password: bytes = b"secret") -> Iterator[bytes]:
    line = yield banner  # type: ignore[misc]
    while True:
        while not line:
            line = yield kernel + b"\r\nboard login: "  # type: ignore[misc]
        name = line
        typed = yield name + b"\r\nPassword: " + kernel  # type: ignore[misc]
        if (name, typed) == (b"pi", password):
            break
        line = yield b"\r\nLogin incorrect\r\nboard login: "  # type: ignore[misc]
    line = yield b"\r\nLinux board 6.1\r\nLast login: Sun Nov 22 10:00:00\r\npi@board:~$ "  # type: ignore[misc]
    while True:
        line = yield echo_answer(line)  # type: ignore[misc]


def reach(
    talk: Callable[[], Iterator[object]], *, passwords: tuple[str, ...] = (), user: str | None = "pi"
) -> tuple[bool, Pretended]:
    """What `reach_shell` said, and the pretended console."""
    clock = FakeClock()
    port = Pretended(talk, clock)
    answers = iter(passwords)
    console = Console(
        port,
        SerialDestination(port="/dev/ttyUSB0", user=user),
        prompt=lambda text, is_secret: next(answers),
        is_interactive=bool(passwords),
        clock=clock,
    )
    try:
        return console.reach_shell(), port
    except ConnectError as exc:
        assert "secret" not in str(exc)
        raise


def test_a_shell_that_is_there_is_used_without_logging_in() -> None:
    has_logged_in, port = reach(shell)
    assert not has_logged_in
    assert port.lines[0] == b"", "first of all the line that somebody left is deleted"


@pytest.mark.parametrize("kernel", [b"", b"\r\n[   12.345678] usb 1-1: new device\r\n"])
def test_logging_in(kernel: bytes) -> None:
    has_logged_in, port = reach(lambda: getty(kernel=kernel), passwords=("secret",))
    assert has_logged_in
    assert port.lines[1:3] == [b"pi", b"secret"]


def test_a_wrong_password_is_asked_for_again() -> None:
    has_logged_in, port = reach(getty, passwords=("wrong", "secret"))
    assert has_logged_in
    assert port.lines.count(b"pi") == 2


def test_three_wrong_passwords_are_enough() -> None:
    with pytest.raises(AuthenticationError, match="did not accept"):
        reach(getty, passwords=("wrong",) * 3)


def test_without_a_terminal_no_password_is_asked_for() -> None:
    with pytest.raises(AuthenticationError, match="run on a terminal"):
        reach(getty)


def test_without_a_user_the_login_prompt_is_an_error() -> None:
    with pytest.raises(AuthenticationError, match="--user"):
        reach(getty, user=None, passwords=("secret",))


def test_a_password_cannot_type_control_characters() -> None:
    has_logged_in, port = reach(getty, passwords=("sec\x03\n\x04ret",))
    assert has_logged_in
    assert b"secret" in port.lines


def test_a_name_that_somebody_left_half_way_is_got_rid_of() -> None:
    def left() -> Iterator[bytes]:
        yield b"somebody\r\nPassword: "
        yield b"\r\nLogin incorrect\r\nboard login: "
        talk = getty()
        next(talk)
        line = yield b""  # type: ignore[misc]
        while True:
            line = yield talk.send(line)  # type: ignore[attr-defined, misc]

    # What was shown before we came is not repeated: only our newline brings the prompt back.
    assert reach(left, passwords=("secret",) * 2)[0]


@pytest.mark.parametrize("said", [b"", b"%AQAAAB8AAADJAK184GBCYgIAAAD//w==\n"])
def test_a_relay_of_a_lost_connection_is_told_to_end(said: bytes) -> None:
    def relay() -> Iterator[bytes]:
        line = yield said  # type: ignore[misc]
        while b"%quit edge-lts%" not in line:
            line = yield said  # type: ignore[misc]
        line = yield b"\r\nboard$ "  # type: ignore[misc]
        while True:
            line = yield echo_answer(line)  # type: ignore[misc]

    assert not reach(relay)[0]


def test_a_board_that_is_booting_is_waited_for() -> None:
    def booting() -> Iterator[bytes]:
        for number in range(12):
            yield b"[  OK  ] Started unit %d.\r\n" % number
        talk = getty(banner=b"\r\nDebian GNU/Linux 12 board ttyAMA0\r\n\r\nboard login: ")
        line = yield next(talk)  # type: ignore[misc]
        while True:
            line = yield talk.send(line)  # type: ignore[attr-defined, misc]

    assert reach(booting, passwords=("secret",) * 3)[0]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (b"", "nothing answers there at 115200 baud"),
        (b"\xf8\x00\xfc\x80\xe0" * 20, "is another --baud right"),
        (b"U-Boot 2024.01\r\n=> ", "said last: =>"),
    ],
)
def test_what_no_shell_comes_of_is_described(said: bytes, match: str) -> None:
    def stuck() -> Iterator[bytes]:
        while True:
            yield said

    with pytest.raises(ConnectError, match=match):
        reach(stuck)


def test_a_password_that_ran_out_is_for_a_person() -> None:
    def expired() -> Iterator[bytes]:
        yield b""
        yield b"board login: "
        yield b"Password: "
        while True:
            yield b"You are required to change your password immediately.\r\nCurrent password: "

    with pytest.raises(AuthenticationError, match="wants a new password"):
        reach(expired, passwords=("secret",))


# What is sent to boards


def test_the_program_runs_on_pythons_that_are_too_old_for_edge_lts() -> None:
    import ast

    ast.parse(program(), feature_version=(3, 6))
    ast.parse(LOADER, feature_version=(3, 6))
    assert b"dataclass" not in program()


def test_the_typed_line_fits_into_a_line_editor_of_busybox() -> None:
    lines: list[bytes] = []

    class Deaf:
        def write(self, data: bytes) -> None:
            lines.append(data)

        def read(self, wait_s: float) -> bytes:
            clock.now += wait_s
            return b""

    clock = FakeClock()
    console = Console(
        Deaf(), SerialDestination(port="/dev/ttyS0"), prompt=lambda *_: "", is_interactive=False, clock=clock
    )
    with pytest.raises(ConnectError, match="needs python3"):
        console.start_relay(is_to_log_out=True, key=0xFFFFFFFF)
    assert max(len(line) for line in lines) < 1000


# Scanning


@pytest.mark.parametrize(
    ("heard", "kind", "answer"),
    [
        (b"", "silent", "nothing"),
        (b"\x15\r\n", "silent", "nothing"),
        (b"\r\nDebian GNU/Linux 12 pi5 ttyAMA0\r\n\r\npi5 login: ", "login", "a login prompt of pi5"),
        (b"\r\npi@pi5:~$ ", "shell", "a shell, logged in: pi@pi5:~$"),
        (b"\x1b[?2004h\x1b[1mroot@x\x1b[0m# ", "shell", "a shell, logged in: root@x#"),
        (b"$GPGGA,123519,4807.038,N\r\n", "text", "text: $GPGGA,123519,4807.038,N"),
        (b"\xff\x00\xf8\x1c" * 9, "noise", "no text: another baud rate, or no console"),
    ],
)
def test_what_answers_is_described(heard: bytes, kind: str, answer: str) -> None:
    assert describe(heard) == (kind, answer)


@given(heard=st.binary(max_size=200))
def test_a_scan_prints_nothing_raw(heard: bytes) -> None:
    assert describe(heard)[1].isprintable()


def test_ports_are_called_by_the_name_that_lasts(tmp_path: Path) -> None:
    device = tmp_path / "ttyUSB7"
    device.touch()
    by_id = tmp_path / "by-id"
    assert lasting_names(by_id) == {}
    by_id.mkdir()
    (by_id / "usb-FTDI-port0").symlink_to(device)
    assert lasting_names(by_id) == {str(device): str(by_id / "usb-FTDI-port0")}

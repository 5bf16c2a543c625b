"""What every transport promises, run against each of them: this machine, a board in memory, a real SSH server, and a
serial console with a real shell."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from edge_lts_host.errors import CommandError, ConnectionLostError, TransferError, TransportTimeoutError
from edge_lts_host.transport import files
from edge_lts_host.transport.base import Deadline, Transport
from edge_lts_host.transport.fake import FakeCall, FakeFile, FakeTransport, Pause
from edge_lts_host.transport.local import LocalTransport
from edge_lts_host.transport.serial_console import SerialTransport
from edge_lts_host.transport.ssh import SshTransport
from edge_lts_host.transport.ssh_config import SshOptions
from tests.integration.conftest import ssh_options, sshd
from tests.integration.sshd import TOKEN_NAME, Sshd, no_leaks, processes_with, wait_until
from tests.serial_line import ShellConsole

__all__ = ["ssh_options", "sshd"]  # fixtures, found by name

# What the tests run on the far side; the fake plays the same verbs below.
HELPER = r"""
import json, os, signal, sys, time
verb, args, out = sys.argv[1], sys.argv[2:], sys.stdout.buffer
def say(line):
    out.write(line.encode() + b"\n"); out.flush()
if verb == "exit":
    sys.exit(int(args[0]))
elif verb == "die":
    os.kill(os.getpid(), int(args[0]))
elif verb == "cat":
    while chunk := sys.stdin.buffer.read1(65536):
        out.write(chunk)
elif verb == "args":
    out.write(json.dumps(args).encode())
elif verb == "blob":
    out.write(b"\x00\xffab" * (int(args[0]) // 4))
elif verb == "complain":
    sys.stderr.write("first\nwent \x1b[31mwrong\n"); sys.exit(4)
elif verb == "ticks":
    for i in range(int(args[0])):
        say(f"tick {i}"); time.sleep(float(args[1]))
elif verb == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); say("ready"); time.sleep(600)
elif verb == "family":
    if os.fork() == 0:
        time.sleep(600)
    say("ready"); time.sleep(600)
elif verb == "orphan":
    if os.fork() == 0:
        time.sleep(float(args[0])); os._exit(0)
    say("done"); out.flush(); os._exit(0)
"""
PREFIX = [sys.executable, "-IS", "-c", HELPER]
ODD_WORDS = [
    "",
    " ",
    "a b",
    "'",
    '"',
    "$HOME",
    "`id`",
    "\\",
    "\\n",
    "new\nline",
    "*",
    "!!",
    "~",
    "-n",
    "--",
    "ünï☃",
    "\t;&|<>",
]


class TransportContract(ABC):
    """Subclassed per transport; the methods above the first test say how to look at the device behind its back."""

    transport: Transport

    @abstractmethod
    def path(self, name: str) -> str: ...

    @abstractmethod
    def write_file(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def read_file(self, path: str) -> bytes | None: ...

    @abstractmethod
    def mode_of(self, path: str) -> int: ...

    @abstractmethod
    def has_running(self) -> bool: ...

    def helper(self, verb: str, *args: object) -> list[str]:
        return [*PREFIX, verb, *map(str, args)]

    # Commands

    @pytest.mark.parametrize("status", [0, 1, 3, 255])
    def test_exit_status_is_returned_and_never_raised(self, status: int) -> None:
        result = self.transport.run(self.helper("exit", status), timeout_s=30)
        assert (result.exit_status, result.stdout) == (status, b"")

    def test_check_raises_with_argv_status_and_harmless_stderr(self) -> None:
        with pytest.raises(CommandError) as caught:
            self.transport.check(self.helper("complain"), timeout_s=30)
        assert caught.value.exit_status == 4
        assert caught.value.argv[-1] == "complain"
        assert "first\n" in caught.value.stderr_tail
        assert "\x1b" not in caught.value.stderr_tail + str(caught.value)
        assert "went \\x1b[31mwrong" in str(caught.value)
        assert self.transport.name in str(caught.value)

    def test_missing_command_is_a_result_with_status_127(self) -> None:
        assert self.transport.run(["edge-lts-no-such-command"], timeout_s=30).exit_status == 127

    def test_death_by_signal_is_128_plus_its_number(self) -> None:
        assert self.transport.run(self.helper("die", int(signal.SIGILL)), timeout_s=30).exit_status == 128 + 4

    def test_stdin_and_stdout_carry_every_byte(self) -> None:
        data = bytes(range(256)) * 3 + b"\n\r\n\x00"
        assert self.transport.run(self.helper("cat"), stdin=data, timeout_s=30).stdout == data

    def test_stdin_is_at_its_end_when_none_is_given(self) -> None:
        assert self.transport.run(self.helper("cat"), timeout_s=30).stdout == b""

    def test_five_megabytes_both_ways_at_once(self) -> None:
        data = os.urandom(5_000_000)
        assert self.transport.run(self.helper("cat"), stdin=data, timeout_s=60).stdout == data

    def test_stdin_that_nobody_reads_is_no_error(self) -> None:
        assert self.transport.run(self.helper("exit", 5), stdin=bytes(5_000_000), timeout_s=30).exit_status == 5

    def test_argv_arrives_unchanged(self) -> None:
        result = self.transport.run(self.helper("args", *ODD_WORDS), timeout_s=30)
        assert json.loads(result.stdout) == ODD_WORDS

    def test_stderr_is_kept_apart(self) -> None:
        result = self.transport.run(self.helper("complain"), timeout_s=30)
        assert result.stdout == b""
        assert result.stderr.endswith(b"first\nwent \x1b[31mwrong\n")

    @pytest.mark.parametrize("argv", [[], "ls -l", ["a\0b"]])
    def test_argv_that_cannot_be_passed_on_is_refused(self, argv: list[str]) -> None:
        with pytest.raises(ValueError, match="argv must be"):
            self.transport.run(argv, timeout_s=30)

    def test_command_line_that_no_kernel_takes_is_refused(self) -> None:
        with pytest.raises(TransferError, match="through stdin"):
            self.transport.run(self.helper("args", "x" * 200_000), timeout_s=30)

    def test_timeout_ends_the_command_and_leaves_the_link_usable(self) -> None:
        with pytest.raises(TransportTimeoutError, match="no end within 1 s"):
            self.transport.run(self.helper("ticks", 600, 1), timeout_s=1)
        assert wait_until(lambda: not self.has_running())
        assert self.transport.run(self.helper("exit", 0), timeout_s=30).exit_status == 0

    def test_output_beyond_the_limit_is_an_error_and_ends_the_command(self) -> None:
        with pytest.raises(TransferError, match="more than 1000 bytes"):
            self.transport.run(self.helper("blob", 4_000_000), timeout_s=30, max_output_bytes=1000)
        assert wait_until(lambda: not self.has_running())

    # Streams

    def test_lines_arrive_before_the_command_ends(self) -> None:
        with self.transport.stream(self.helper("ticks", 3, 0.3), timeout_s=30) as stream:
            lines = stream.lines()
            assert next(lines) == b"tick 0"
            assert stream.exit_status is None
            assert list(lines) == [b"tick 1", b"tick 2"]
            assert stream.exit_status == 0

    def test_stream_closed_early_ends_the_command(self) -> None:
        with self.transport.stream(self.helper("ticks", 600, 1)) as stream:
            assert next(stream.lines()) == b"tick 0"
            assert self.has_running()
        assert wait_until(lambda: not self.has_running())
        assert list(stream) == []

    def test_stream_with_nothing_to_say_times_out(self) -> None:
        with (
            self.transport.stream(self.helper("ticks", 2, 600), idle_timeout_s=0.5) as stream,
            pytest.raises(TransportTimeoutError, match=r"no output for 0\.5 s"),
        ):
            list(stream)
        assert wait_until(lambda: not self.has_running())

    def test_stream_has_a_deadline_however_much_it_says(self) -> None:
        with (
            self.transport.stream(self.helper("ticks", 600, 0.1), timeout_s=1) as stream,
            pytest.raises(TransportTimeoutError, match="no end within 1 s"),
        ):
            list(stream)
        assert wait_until(lambda: not self.has_running())

    # Files

    def test_put_writes_bytes_and_mode_and_makes_parents(self) -> None:
        path = self.path("new/deep er/file")
        result = self.transport.put(b"\x00payload\xff", path, mode=0o750, timeout_s=30)
        assert self.read_file(path) == b"\x00payload\xff"
        assert self.mode_of(path) == 0o750
        assert (result.n_bytes, result.n_sent, result.is_skipped) == (9, 9, False)
        assert self.read_file(f"{path}.part") is None

    def test_put_of_nothing_makes_an_empty_file(self) -> None:
        self.transport.put(b"", self.path("empty"), timeout_s=30)
        assert self.read_file(self.path("empty")) == b""

    def test_put_sends_nothing_when_the_same_bytes_are_there(self) -> None:
        path = self.path("same")
        self.transport.put(b"payload", path, timeout_s=30)
        result = self.transport.put(b"payload", path, mode=0o700, timeout_s=30)
        assert (result.n_sent, result.is_skipped) == (0, True)
        assert self.mode_of(path) == 0o700

    def test_put_replaces_other_bytes_of_the_same_length(self) -> None:
        path = self.path("other")
        self.write_file(path, b"PAYLOAD")
        assert not self.transport.put(b"payload", path, timeout_s=30).is_skipped
        assert self.read_file(path) == b"payload"

    def test_put_goes_on_where_a_partial_file_ends(self, tmp_path: Path) -> None:
        data = os.urandom(1_000_000)
        source = tmp_path / "source"
        source.write_bytes(data)
        path = self.path("big")
        self.write_file(f"{path}.part", data[:700_000])
        seen: list[tuple[int, int]] = []
        result = self.transport.put(source, path, progress=lambda done, total: seen.append((done, total)), timeout_s=60)
        assert self.read_file(path) == data
        assert result.n_sent == 300_000
        assert seen[0] == (700_000, 1_000_000)
        assert seen == sorted(seen)
        assert seen[-1] == (1_000_000, 1_000_000)

    @pytest.mark.parametrize("part", [b"something else", b"x" * 100])
    def test_put_starts_again_when_the_partial_file_is_not_ours(self, part: bytes) -> None:
        path = self.path("mixed")
        self.write_file(f"{path}.part", part)
        assert self.transport.put(b"y" * 50, path, timeout_s=30).n_sent == 50
        assert self.read_file(path) == b"y" * 50

    def test_put_that_arrives_damaged_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"a" * 1000)
        path = self.path("precious")
        self.write_file(path, b"precious")

        def change(done: int, total: int) -> None:
            source.write_bytes(b"b" * 1000)  # between being hashed and being sent

        with pytest.raises(TransferError, match="SHA-256"):
            self.transport.put(source, path, progress=change, timeout_s=30)
        assert self.read_file(path) == b"precious"
        assert self.read_file(f"{path}.part") is None

    def test_put_keeps_what_came_of_a_source_cut_short(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"a" * 1000)
        path = self.path("short")
        with pytest.raises(TransferError):
            self.transport.put(source, path, progress=lambda *_: os.truncate(source, 600), timeout_s=30)
        assert self.read_file(f"{path}.part") == b"a" * 600
        assert self.transport.put(b"a" * 1000, path, timeout_s=30).n_sent == 400

    def test_put_of_a_missing_source_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(TransferError, match="no-such-source"):
            self.transport.put(tmp_path / "no-such-source", self.path("x"), timeout_s=30)

    @pytest.mark.parametrize("name", ["a b", "it's", '"q"', "$(id)", "ünï☃", "new\nline", "*"])
    def test_odd_file_names(self, name: str) -> None:
        path = self.path(name)
        self.transport.put(b"data", path, timeout_s=30)
        assert self.read_file(path) == b"data"
        assert self.transport.get(path, timeout_s=30) == b"data"

    def test_get_from_an_offset_and_no_more_than_asked_for(self) -> None:
        path = self.path("ledger")
        self.write_file(path, bytes(range(200)))
        assert self.transport.get(path, timeout_s=30) == bytes(range(200))
        assert self.transport.get(path, offset=150, timeout_s=30) == bytes(range(150, 200))
        assert self.transport.get(path, offset=10, max_bytes=5, timeout_s=30) == bytes(range(10, 15))
        assert self.transport.get(path, offset=200, timeout_s=30) == b""
        assert self.transport.get(path, offset=1000, timeout_s=30) == b""

    def test_get_of_five_megabytes(self) -> None:
        data = os.urandom(5_000_000)
        self.write_file(self.path("big"), data)
        assert self.transport.get(self.path("big"), offset=1, timeout_s=60) == data[1:]

    def test_get_of_a_missing_file_has_a_status_of_its_own(self) -> None:
        with pytest.raises(CommandError, match="no such file") as caught:
            self.transport.get(self.path("nothing"), timeout_s=30)
        assert caught.value.exit_status == files.NO_SUCH_FILE


class RealTransportContract(TransportContract):
    """What only a real device can show; it shares our file system."""

    token: str
    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write_file(self, path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    def read_file(self, path: str) -> bytes | None:
        return Path(path).read_bytes() if Path(path).exists() else None

    def mode_of(self, path: str) -> int:
        return Path(path).stat().st_mode & 0o7777

    def has_running(self) -> bool:
        return bool(processes_with(self.token))

    @pytest.mark.parametrize("verb", ["stubborn", "family"])
    def test_closing_ends_children_and_those_that_ignore_being_asked(self, verb: str) -> None:
        with self.transport.stream(self.helper(verb)) as stream:
            assert next(stream.lines()) == b"ready"
        assert wait_until(lambda: not self.has_running())

    def test_child_that_keeps_the_output_open_does_not_keep_us(self) -> None:
        started = time.monotonic()
        result = self.transport.run(self.helper("orphan", 20), timeout_s=30)
        assert (result.stdout, result.exit_status) == (b"done\n", 0)
        assert time.monotonic() - started < 15
        for orphan in processes_with(self.token):
            os.kill(orphan, signal.SIGKILL)

    def test_builtins_of_the_shell_are_not_programs(self) -> None:
        assert self.transport.run(["exit", "3"], timeout_s=30).exit_status == 127

    def test_file_that_is_not_executable_is_126(self) -> None:
        self.write_file(self.path("plain"), b"text")
        assert self.transport.run([self.path("plain")], timeout_s=30).exit_status == 126

    def test_commands_start_in_the_home_directory(self) -> None:
        assert self.transport.run(["pwd"], timeout_s=30).stdout.decode().strip() == str(Path.home())

    def test_put_onto_a_directory_is_refused(self) -> None:
        (self.folder / "directory").mkdir()
        with pytest.raises(CommandError, match="is a directory"):
            self.transport.put(b"x", self.path("directory"), timeout_s=30)

    def test_device_that_cannot_store_more_keeps_no_partial_file(self) -> None:
        store = ["sh", "-c", files.STORE_SCRIPT, "sh", self.path("big"), "0", "100000", "0" * 64, "644"]
        # A limit on the size of files stands in for a full disk: `cat` fails the same way, with nothing to fill.
        argv = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *store]
        result = self.transport.send(argv, [bytes(100_000)], Deadline(30))
        assert result.exit_status not in (0, files.DATA_DAMAGED, files.CUT_SHORT)
        assert list(self.folder.iterdir()) == []


class TestLocal(RealTransportContract):
    @pytest.fixture(autouse=True)
    def _local(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.token = f"local-{os.getpid()}-{time.monotonic_ns()}"
        self.folder = tmp_path / "device"
        self.folder.mkdir()
        with no_leaks(), LocalTransport() as self.transport:
            # Only children see it: our own environment was fixed when this process started.
            monkeypatch.setenv(TOKEN_NAME, self.token)
            yield


@pytest.mark.sshd
class TestSsh(RealTransportContract):
    @pytest.fixture(autouse=True)
    def _ssh(self, sshd: Sshd, ssh_options: Callable[..., SshOptions], tmp_path: Path) -> Iterator[None]:
        self.token = sshd.token
        self.folder = tmp_path / "device"
        self.folder.mkdir()
        with no_leaks(sshd.token), SshTransport(sshd.destination, ssh_options()) as self.transport:
            yield


class TestSerial(RealTransportContract):
    """A shell on a pseudo-terminal. Only what a test starts carries the token, not the shell that starts it."""

    @pytest.fixture(autouse=True)
    def _serial(self, tmp_path: Path) -> Iterator[None]:
        self.token = f"serial-{os.getpid()}-{time.monotonic_ns()}"
        self.folder = tmp_path / "device"
        self.folder.mkdir()
        with (
            no_leaks(self.token),
            ShellConsole() as console,
            SerialTransport(f"serial:{console.path}", prompt=refuse_to_answer) as self.transport,
        ):
            yield

    def helper(self, verb: str, *args: object) -> list[str]:
        return ["env", f"{TOKEN_NAME}={self.token}", *super().helper(verb, *args)]


def refuse_to_answer(text: str, is_secret: bool) -> str:
    raise AssertionError(f"asked for {text}")


class TestFake(TransportContract):
    @pytest.fixture(autouse=True)
    def _fake(self) -> Iterator[None]:
        self.board = FakeTransport()
        self.board.on(PREFIX, _play)
        with no_leaks(), self.board as self.transport:
            yield

    def path(self, name: str) -> str:
        return f"/device/{name}"

    def write_file(self, path: str, data: bytes) -> None:
        self.board.files[path] = FakeFile(data)

    def read_file(self, path: str) -> bytes | None:
        found = self.board.files.get(path)
        return None if found is None else found.data

    def mode_of(self, path: str) -> int:
        return self.board.files[path].mode

    def has_running(self) -> bool:
        return self.board.n_running > 0

    def test_full_disk_is_named_and_leaves_no_partial_file(self) -> None:
        self.board.free_bytes = 10
        with pytest.raises(CommandError, match="No space left"):
            self.board.put(b"x" * 100, "/device/file", timeout_s=5)
        assert self.board.files == {}

    def test_put_resumes_after_the_link_was_cut(self) -> None:
        data = os.urandom(100_000)
        self.board.cut_after_bytes = 30_000
        with pytest.raises(ConnectionLostError):
            self.board.put(data, "/device/file", timeout_s=5)
        with pytest.raises(ConnectionLostError):
            self.board.run(["true"], timeout_s=5)
        self.board.mend()
        assert self.board.put(data, "/device/file", timeout_s=5).n_sent == 70_000

    def test_waiting_takes_no_time(self) -> None:
        started = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            self.board.run(self.helper("ticks", 2, 1e6), timeout_s=100_000)
        assert time.monotonic() - started < 5
        assert self.board.fake_clock.now == pytest.approx(100_000)


def _play(call: FakeCall) -> Generator[bytes | Pause, None, int]:
    """The verbs of HELPER on the fake."""
    verb, *args = call.argv[len(PREFIX) :]
    if verb == "cat":
        yield call.stdin
    elif verb == "args":
        yield json.dumps(args).encode()
    elif verb == "blob":
        yield b"\x00\xffab" * (int(args[0]) // 4)
    elif verb == "complain":
        call.stderr += b"first\nwent \x1b[31mwrong\n"
        yield b""
        return 4
    elif verb == "ticks":
        for i in range(int(args[0])):
            yield f"tick {i}\n".encode()
            yield Pause(float(args[1]))
    elif verb == "die":
        yield b""
        return 128 + int(args[0])
    return int(args[0]) if verb == "exit" else 0

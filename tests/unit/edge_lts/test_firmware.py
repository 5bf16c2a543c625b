"""The mailbox message byte by byte, and everything that counts as no answer."""

import struct
from pathlib import Path

import pytest

from edge_lts.firmware import gencmd, vcgencmd


class Mailbox:
    """An ioctl that answers like the firmware and remembers the message that it was given."""

    def __init__(self, reply: bytes, *, code: int = 0x80000000, status: int = 0) -> None:
        self.reply, self.code, self.status = reply, code, status
        self.requests: list[int] = []
        self.message = b""

    def __call__(self, _: int, request: int, message: bytearray) -> int:
        self.requests.append(request)
        self.message = bytes(message)
        struct.pack_into("=I", message, 4, self.code)
        struct.pack_into("=I", message, 20, self.status)
        message[24 : 24 + len(self.reply) + 1] = self.reply + b"\0"
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "vcio"
    path.touch()
    return path


def test_message_is_laid_out_as_the_firmware_expects(device: Path) -> None:
    mailbox = Mailbox(b"throttled=0x50005")
    assert gencmd("get_throttled", device=device, ioctl=mailbox) == "throttled=0x50005"
    assert struct.unpack_from("=6I", mailbox.message) == (1052, 0, 0x00030080, 1024, 0, 0)
    assert mailbox.message[24:38] == b"get_throttled\0"
    assert len(mailbox.message) == 1052
    assert not any(mailbox.message[38:])  # nothing behind the command, and a zero tag ends the list
    assert mailbox.requests == [0xC0086400 if struct.calcsize("P") == 8 else 0xC0046400]


def test_only_the_text_before_the_first_nul_is_the_answer(device: Path) -> None:
    assert gencmd("measure_temp", device=device, ioctl=Mailbox(b"temp=48.3'C\n\0rubbish")) == "temp=48.3'C"


@pytest.mark.parametrize(
    "mailbox",
    [
        Mailbox(b"throttled=0x0", code=0x80000001),
        Mailbox(b"throttled=0x0", status=1),
        Mailbox(b'error=1 error_msg="Command not registered"'),
        Mailbox(b""),
    ],
    ids=["failed", "status", "unknown command", "empty"],
)
def test_a_refusal_is_no_answer(device: Path, mailbox: Mailbox) -> None:
    assert gencmd("get_throttled", device=device, ioctl=mailbox) is None


def test_missing_device_and_foreign_device_are_no_answer(device: Path, tmp_path: Path) -> None:
    assert gencmd("get_throttled", device=tmp_path / "absent") is None
    assert gencmd("get_throttled", device=device) is None  # a plain file knows no such ioctl


def test_a_command_that_does_not_fit_is_not_sent(device: Path) -> None:
    mailbox = Mailbox(b"ok")
    assert gencmd("x" * 1024, device=device, ioctl=mailbox) is None
    assert mailbox.requests == []


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_program_gets_the_words_and_gives_its_output(tmp_path: Path) -> None:
    program = script(tmp_path / "vcgencmd", 'echo "$1($2)=1500345728"')
    assert vcgencmd("measure_clock arm", program=program) == "measure_clock(arm)=1500345728"


@pytest.mark.parametrize("text", ["echo throttled=0x0; exit 255", "echo error=1", "true"])
def test_a_program_that_fails_is_no_answer(tmp_path: Path, text: str) -> None:
    assert vcgencmd("get_throttled", program=script(tmp_path / "vcgencmd", text)) is None


def test_absent_program_is_no_answer(tmp_path: Path) -> None:
    assert vcgencmd("get_throttled", program=tmp_path / "vcgencmd") is None

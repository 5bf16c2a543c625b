"""Questions to a Raspberry Pi's firmware: through the mailbox device, or through the program `vcgencmd`.

The mailbox costs one ioctl and no process. Every answer is text; None is "no answer": no such device, no permission, a
command that this firmware doesn't know. Nothing here understands what the text says.

Source: raspberrypi/utils, vcgencmd/vcgencmd.c (property tag GET_GENCMD_RESULT).
"""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAILBOX = Path("/dev/vcio")
PROGRAM = Path("/usr/bin/vcgencmd")
PROGRAM_TIMEOUT_S = 5.0

Ioctl = Callable[[int, int, bytearray], Any]

_REQUEST = 0xC0006400 | struct.calcsize("P") << 16  # _IOWR(100, 0, char *)
_GET_GENCMD_RESULT = 0x00030080
_TEXT_BYTES = 1024
_FAILED = 0x80000001  # word 1 of a reply that the firmware could not make


def gencmd(command: str, *, device: Path = MAILBOX, ioctl: Ioctl = fcntl.ioctl) -> str | None:
    """What the firmware answers to `command`, through the mailbox."""
    text = command.encode()
    if len(text) >= _TEXT_BYTES:
        return None
    size = 28 + _TEXT_BYTES
    message = bytearray(struct.pack(f"=6I{_TEXT_BYTES}sI", size, 0, _GET_GENCMD_RESULT, _TEXT_BYTES, 0, 0, text, 0))
    try:
        file = os.open(device, os.O_RDONLY)
        try:
            ioctl(file, _REQUEST, message)
        finally:
            os.close(file)
    except OSError:
        return None
    _, code, _, _, _, status = struct.unpack_from("=6I", message)
    if code == _FAILED or status:
        return None
    return _answer(bytes(message[24 : 24 + _TEXT_BYTES]).split(b"\0", 1)[0])


def vcgencmd(command: str, *, program: Path = PROGRAM) -> str | None:
    """The same through the program, for where the mailbox is closed to us; a process for each question."""
    import subprocess  # only where it is needed: it costs the supervisor memory

    try:
        done = subprocess.run(
            [str(program), *command.split()], capture_output=True, timeout=PROGRAM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _answer(done.stdout) if done.returncode == 0 else None


def _answer(reply: bytes) -> str | None:
    text = reply.decode("ascii", "replace").strip()
    return None if not text or text.startswith("error=") else text

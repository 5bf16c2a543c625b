"""A person's lock on a board: `reserved.json` in its data directory, which every run and measurement there respects.

Made and removed by two POSIX shell scripts, so that it works whichever agent was deployed, or none. What it means is
decided on the board (edge_lts.reservation). It keeps colleagues out of each other's way; it keeps no intruder out.
"""

from __future__ import annotations

import getpass
import json
import os
import posixpath
import socket
from typing import Any

from edge_lts.reservation import OWNER_VARIABLE, RESERVED
from edge_lts_host.errors import CommandError, LockedError, UsageError, printable
from edge_lts_host.transport.base import MIB, Transport

TIMEOUT_S = 60.0
MAX_NOTE_CHARS = 200
_MAX_OWNER_CHARS = 100
_TAKEN = 73  # EX_CANTCREAT
_NOT_YOURS = 77  # EX_NOPERM

# $1 the file, $2 the beginning of its JSON object. Prints what is there when it was there already: the shell's
# noclobber is open(2)'s O_EXCL, so of two who lock at once one is refused.
_LOCK = f"""
mkdir -p -- "$(dirname -- "$1")" || exit
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null); up=
read -r up _ 2>/dev/null </proc/uptime
set -C
if (umask 022; printf '%s, "since": "%s", "since_s": %s, "boot_id": "%s"}}\n' "$2" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
    "${{up:-null}}" "$boot" >"$1") 2>/dev/null; then exit 0; fi
if [ -e "$1" ]; then head -c 4096 -- "$1"; exit {_TAKEN}; fi
echo "cannot write $1" >&2; exit 1
"""

# $1 the file, $2 how it must begin, or nothing when it may be anybody's. Prints what was there.
_UNLOCK = f"""
[ -e "$1" ] || exit 0
content=$(head -c 4096 -- "$1"); printf '%s\n' "$content"
case $content in "$2"*) rm -f -- "$1" ;; *) exit {_NOT_YOURS} ;; esac
"""


def owner() -> str:
    """USER@WORKSTATION, what boards are told about who asks; EDGE_LTS_OWNER says otherwise, for shared accounts."""
    text = os.environ.get(OWNER_VARIABLE) or f"{_user()}@{socket.gethostname()}"
    return printable(text).replace("\n", " ")[:_MAX_OWNER_CHARS]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


def lock(transport: Transport, root: str, note: str = "") -> bool:
    """Reserve the board with the data directory `root` for us; False when it was ours already.

    Raises LockedError when it is somebody else's.
    """
    if len(note) > MAX_NOTE_CHARS or not note.isprintable():
        raise UsageError(f"--note: must be one line of at most {MAX_NOTE_CHARS} characters")
    beginning = f'{_beginning()}, "note": {json.dumps(note)}'
    result = transport.run(["sh", "-c", _LOCK, "sh", _path(root), beginning], timeout_s=TIMEOUT_S, max_output_bytes=MIB)
    if result.exit_status == 0:
        return True
    if result.exit_status != _TAKEN:
        raise CommandError(["lock", _path(root)], result.exit_status, result.stderr, transport.name)
    holder = _holder(result.stdout)
    if holder.get("owner") != owner():
        raise LockedError(f"{transport.name}: locked by {describe(holder)}")
    return False


def unlock(transport: Transport, root: str, *, is_forced: bool = False) -> dict[str, Any] | None:
    """Give the board back; returns whose it was, None when nobody's. Raises LockedError for somebody else's lock."""
    beginning = "" if is_forced else f"{_beginning()},"
    result = transport.run(
        ["sh", "-c", _UNLOCK, "sh", _path(root), beginning], timeout_s=TIMEOUT_S, max_output_bytes=MIB
    )
    if result.exit_status == _NOT_YOURS:
        held = describe(_holder(result.stdout))
        raise LockedError(f"{transport.name}: locked by {held}; ask them, or take it away: devices unlock --force")
    if result.exit_status != 0:
        raise CommandError(["unlock", _path(root)], result.exit_status, result.stderr, transport.name)
    return _holder(result.stdout) if result.stdout.strip() else None


def describe(holder: dict[str, Any]) -> str:
    """Who, since when, what for: as far as the record says."""
    since = f" since {printable(str(holder['since']))[:40]}" if holder.get("since") else ""
    note = f" ({printable(str(holder['note']))[:MAX_NOTE_CHARS]})" if holder.get("note") else ""
    return f"{printable(str(holder.get('owner') or 'somebody'))[:_MAX_OWNER_CHARS]}{since}{note}"


def _beginning() -> str:
    return f'{{"owner": {json.dumps(owner())}'


def _path(root: str) -> str:
    return posixpath.join(root, RESERVED)


def _holder(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

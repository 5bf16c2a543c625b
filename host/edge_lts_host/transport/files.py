"""Files over any transport: three small POSIX shell scripts and the protocol around them.

`put` asks what is there (one round trip), sends what is missing to PATH.part, and lets the far side check the SHA-256
before it renames (a second one). A partial file whose bytes are a prefix of ours is continued, so that a 104 MB wheel
survives a bad cable. What has its final name is on the disk: a power cut takes back nothing that was pushed. There is
no SFTP: 104 MB through one `cat` take 0.8 to 1.1 s over loopback SSH, as long as paramiko's SFTP takes, and `cat` is on
every board, sees the paths that its shell sees, and serves every transport.

Statuses are those of sysexits.h. Refuses to follow `~`: a path is absolute or relative to the login directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edge_lts_host.errors import CommandError, TransferError, TransportError
from edge_lts_host.transport.base import MIB, CommandResult, Deadline, Progress, PutResult

if TYPE_CHECKING:
    from edge_lts_host.transport.base import Transport

DATA_DAMAGED = 65  # EX_DATAERR
NO_SUCH_FILE = 66  # EX_NOINPUT
CUT_SHORT = 75  # EX_TEMPFAIL
_CHUNK_BYTES = 16 * 1024  # small: over a serial console it is what progress is shown by

_TOOLS = """
hash_of() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -c 1-64
}
size_of() { wc -c <"$1" | tr -d ' '; }
durable() { sync "$1" 2>/dev/null || sync; }
"""

# $1 path, $2 size and $3 hash of what it shall be, $4 mode. Prints "same" when it is that already (its mode is set
# then), else the size of the partial file (or 0) and its hash (or -).
LOOK_SCRIPT = (
    _TOOLS
    + """
mkdir -p -- "$(dirname -- "$1")" || exit
if [ -d "$1" ]; then echo "is a directory: $1" >&2; exit 73; fi
if [ -f "$1" ] && [ "$(size_of "$1")" -eq "$2" ] && [ "$(hash_of "$1")" = "$3" ]; then
  # Not without need: a disk that became read-only does not even take the mode that is there.
  [ -n "$(find "$1" -prune -perm "$4")" ] || chmod "$4" "$1" || exit
  echo same; exit
fi
part=$1.part
if [ -f "$part" ] && [ "$(size_of "$part")" -gt 0 ] && [ "$(size_of "$part")" -le "$2" ]; then
  size_of "$part"; hash_of "$part"
else echo 0; echo -; fi
"""
)

# $1 path, $2 offset, $3 size and $4 hash of the whole, $5 mode; stdin: the bytes from the offset on. A link that breaks
# looks like the end of stdin to `cat`: what is too short is therefore kept for the next attempt, only what is wrong or
# has no room is removed.
STORE_SCRIPT = (
    _TOOLS
    + f"""
part=$1.part
if [ "$2" -eq 0 ]; then rm -f -- "$part"; fi
umask 077
cat >>"$part" || {{ status=$?; rm -f -- "$part"; exit $status; }}
if [ "$(size_of "$part")" -lt "$3" ]; then exit {CUT_SHORT}; fi
if [ "$(hash_of "$part")" != "$4" ]; then rm -f -- "$part"; exit {DATA_DAMAGED}; fi
chmod "$5" "$part" && durable "$part" && mv -f -- "$part" "$1" && durable "$(dirname -- "$1")"
"""
)

# $1 path, $2 number of the first byte, $3 how many.
READ_SCRIPT = f"""
[ -e "$1" ] || {{ echo "no such file: $1" >&2; exit {NO_SUCH_FILE}; }}
[ -f "$1" ] || {{ echo "not a regular file: $1" >&2; exit {DATA_DAMAGED}; }}
exec 3<"$1" && tail -c +"$2" <&3 | head -c "$3"
"""


def put(
    transport: Transport,
    source: Path | bytes,
    remote_path: str,
    *,
    mode: int,
    progress: Progress | None,
    deadline: Deadline,
) -> PutResult:
    """Make `remote_path` hold `source` with `mode`; parents are made. Nothing is sent when the same bytes are there.

    Raises TransferError when the bytes arrived damaged or `source` cannot be read (the partial file is gone then),
    CommandError when the board cannot store them (full disk, no permission).
    """
    with _reading(transport.name, source):
        sha256, n_bytes = _hash_prefix(source, None)
    permissions = f"{mode:o}"
    argv = _shell(LOOK_SCRIPT, remote_path, str(n_bytes), sha256, permissions)
    looked = transport.run(argv, timeout_s=deadline.left_s(), max_output_bytes=MIB)
    _check(looked, transport.name, "put", remote_path)
    words = looked.stdout.decode("ascii", "replace").split()
    if words == ["same"]:
        return PutResult(sha256=sha256, n_bytes=n_bytes, n_sent=0, is_skipped=True)
    try:
        offset, part_sha256 = int(words[0]), words[1]
    except (ValueError, IndexError) as exc:
        problem = f"cannot tell what is at {remote_path}"
        raise TransferError(transport.name, problem, "is its shell a POSIX shell?") from exc
    with _reading(transport.name, source):
        if offset and _hash_prefix(source, offset)[0] != part_sha256:
            offset = 0
        argv = _shell(STORE_SCRIPT, remote_path, str(offset), str(n_bytes), sha256, permissions)
        result = transport.send(argv, _chunks(source, offset, n_bytes, progress), deadline)
    if result.exit_status in (DATA_DAMAGED, CUT_SHORT):
        raise TransferError(transport.name, f"{remote_path} arrived damaged (its SHA-256 is wrong)", "try again")
    _check(result, transport.name, "put", remote_path)
    return PutResult(sha256=sha256, n_bytes=n_bytes, n_sent=n_bytes - offset, is_skipped=False)


def get(transport: Transport, remote_path: str, *, offset: int, max_bytes: int, timeout_s: float) -> bytes:
    """At most `max_bytes` from `offset` on. Raises CommandError with NO_SUCH_FILE when there is no such file."""
    if offset < 0 or max_bytes < 0:
        raise ValueError(f"offset and max_bytes must not be negative: {offset}, {max_bytes}")
    argv = _shell(READ_SCRIPT, remote_path, str(offset + 1), str(max_bytes))
    result = transport.run(argv, timeout_s=timeout_s, max_output_bytes=max_bytes)
    _check(result, transport.name, "get", remote_path)
    return result.stdout


def _check(result: CommandResult, where: str, verb: str, path: str) -> None:
    """CommandError unless the status is 0, about `put PATH` and not about twenty lines of shell."""
    if result.exit_status != 0:
        raise CommandError([verb, path], result.exit_status, result.stderr, where)


def _shell(script: str, path: str, *words: str) -> list[str]:
    # A leading dash would make the path an option of cat, chmod or mv; ./ keeps it a path.
    return ["sh", "-c", script, "sh", f"./{path}" if path.startswith("-") else path, *words]


@contextmanager
def _reading(where: str, source: Path | bytes) -> Iterator[None]:
    """Turn an OSError about the local file into a TransferError."""
    try:
        yield
    except TransportError:  # a timeout of ours is an OSError too
        raise
    except OSError as exc:
        name = source if isinstance(source, Path) else "the data"
        raise TransferError(where, f"cannot read {name} here: {exc.strerror or exc}") from exc


def _hash_prefix(source: Path | bytes, n_bytes: int | None) -> tuple[str, int]:
    """SHA-256 of the first `n_bytes` (None: of all), and how many bytes that were."""
    if isinstance(source, bytes):
        prefix = source if n_bytes is None else source[:n_bytes]
        return hashlib.sha256(prefix).hexdigest(), len(prefix)
    digest = hashlib.sha256()
    n_read = 0
    with source.open("rb") as file:
        while chunk := file.read(MIB if n_bytes is None else min(MIB, n_bytes - n_read)):
            digest.update(chunk)
            n_read += len(chunk)
    return digest.hexdigest(), n_read


def _chunks(source: Path | bytes, offset: int, n_bytes: int, progress: Progress | None) -> Iterator[bytes]:
    """The bytes from `offset` to `n_bytes`; a file that grows meanwhile is cut, one that shrinks fails the hash."""
    done = offset
    if progress is not None:
        progress(done, n_bytes)
    for chunk in _pieces(source, offset):
        chunk = chunk[: n_bytes - done]
        if not chunk:
            return
        yield chunk
        done += len(chunk)
        if progress is not None:
            progress(done, n_bytes)


def _pieces(source: Path | bytes, offset: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for start in range(offset, len(source), _CHUNK_BYTES):
            yield source[start : start + _CHUNK_BYTES]
        return
    file: BinaryIO
    with source.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk

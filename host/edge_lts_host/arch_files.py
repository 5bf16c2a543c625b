"""Reading an architecture that somebody wrote: a JSON file, or stdin. Errors name the file and the key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_lts.arch import Architecture
from edge_lts.errors import ArchitectureError

MAX_FILE_BYTES = 1 << 20


def load_architecture(name: str) -> Architecture:
    """The architecture in the file `name`, or on stdin for `-`. Raises ArchitectureError, one line."""
    where = "stdin" if name == "-" else name
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ArchitectureError(f"{where}: it cannot be read: {exc.strerror or exc}") from exc
    return parse_architecture(raw, where)


def parse_architecture(raw: bytes, where: str) -> Architecture:
    """`raw` as an architecture; messages begin with `where`."""
    if len(raw) > MAX_FILE_BYTES:
        raise ArchitectureError(f"{where}: it is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        return Architecture.from_json(data)
    except ArchitectureError as exc:
        raise ArchitectureError(f"{where}: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise ArchitectureError(f"{where}: it is not UTF-8 (byte {exc.start})") from exc
    except RecursionError as exc:
        raise ArchitectureError(f"{where}: it is nested too deeply") from exc
    except ValueError as exc:
        raise ArchitectureError(f"{where}: it is not JSON: {exc!s:.200}") from exc


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data: dict[str, object] = {}
    for key, value in pairs:
        if key in data:
            raise ArchitectureError(f"key {key!r:.80} stands there twice")
        data[key] = value
    return data

"""Reading a calibrated proxy (proxy.json, as `calibrate` writes it). Errors name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge_lts.errors import SpecError
from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy

MAX_FILE_BYTES = 1 << 20


def load_proxy(name: str | Path) -> CalibratedProxy:
    """The proxy in a file. Imports numpy. Raises UsageError, one line, for what is none."""
    from edge_lts.proxies.calibrated import CalibratedProxy

    try:
        with Path(name).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"{name}: it cannot be read: {exc.strerror or exc}; edge-lts calibrate writes one") from exc
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{name}: it is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        return CalibratedProxy.from_json(json.loads(raw))
    except RecursionError as exc:
        raise UsageError(f"{name}: it is nested too deeply") from exc
    except SpecError as exc:
        raise UsageError(f"{name}: {exc}") from exc
    except ValueError as exc:  # no UTF-8, or no JSON
        raise UsageError(f"{name}: it is not JSON: {exc!s:.200}") from exc

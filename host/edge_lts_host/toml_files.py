"""Reading the TOML that people write: targets, spaces, inventories. One mapping of every way a file can be bad to one
line.

Where such files lie: the user's in `$XDG_CONFIG_HOME/edge-lts/`, ours packaged beside this module, or in the checkout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20
LARGEST_INTEGER = 1 << 63  # TOML 1.0.0: 64 bits; a longer one cannot even be shown by an error message


class BadToml(ValueError):
    """The file cannot be read as TOML; the message says why, without its name."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file as nested dicts. Raises BadToml for whatever is wrong; callers add the name and their class."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise BadToml(f"it is larger than {MAX_FILE_BYTES >> 10} KiB")
        data = tomllib.loads(raw.decode("utf-8"))
        _check_size("", data, MAX_DEPTH)
        return data
    except OSError as exc:
        raise BadToml(f"it cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise BadToml(f"it is not UTF-8 (byte {exc.start})") from exc
    except RecursionError as exc:
        raise BadToml("it is nested too deeply") from exc
    except BadToml:
        raise
    except ValueError as exc:  # TOMLDecodeError, and what int() says of thousands of digits
        raise BadToml(f"it is not TOML: {exc!s:.200}") from exc


def _check_size(key: str, value: object, depth: int) -> None:
    if not depth:
        raise BadToml(f"{key:.80} is nested too deeply")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_size(name, inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_size(key, inner, depth - 1)
    elif isinstance(value, int) and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
        raise BadToml(f"{key:.80} is an integer of more than 64 bits")


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/edge-lts`, on every platform: what people copy between machines lies in one place."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    value = environ.get(variable, "")
    # The XDG specification: a relative path is invalid and to be ignored.
    base = Path(value) if value.startswith("/") else Path(environ.get("HOME") or Path.home()) / default
    return base / "edge-lts"


def builtin_dir(kind: str) -> Path:
    """Where our own `targets` or `spaces` are: packaged as `builtin_<kind>`, else in the checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / f"builtin_{kind}"
    return packaged if packaged.is_dir() else here.parent.parent / kind

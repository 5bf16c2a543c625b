"""The verbs, one module each, in the order of design §7.

A verb's module has NAME, HELP (one line), EXAMPLE (a command line that works), `add_arguments(parser)` and `run(args)
-> int`, and imports what it needs inside `run`: `edge-lts --help` imports all of these modules and must stay quick.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

VERBS = (
    "targets",
    "devices",
    "doctor",
    "deploy",
    "run",
    "status",
    "watch",
    "logs",
    "stop",
    "resume",
    "pull",
    "report",
    "compare",
    "pick",
    "export",
    "measure",
    "params",
    "clean",
    "proxies",
    "calibrate",
    "validate",
    "bench",
)


class Command(Protocol):
    """What a module of a verb provides."""

    NAME: str
    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def load(verb: str) -> Command:
    """The module of `verb`, one of VERBS."""
    return cast(Command, importlib.import_module(f"edge_lts_host.commands.{verb}"))

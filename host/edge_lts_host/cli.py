"""The command line: verbs to modules of `commands/`, errors to one line and an exit code. No logic of its own.

Exit codes: 0 ok, 1 internal or other error, 2 usage or a malformed file, 3 some boards failed, 4 a board cannot be
reached or does not let us in, 5 the board cannot do it, 7 locked by another run, 124 `--wait` timed out, 130 Ctrl-C,
141 the reader of stdout went away.

Only the module of the verb that is asked for is imported; nothing here loads numpy, torch, paramiko, pyserial or
tabulate.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from edge_lts import __version__
from edge_lts.errors import EdgeLtsError
from edge_lts_host.commands import VERBS, Command, load
from edge_lts_host.errors import UsageError, printable

DESCRIPTION = "Find the decoder shapes with the best quality for the latency and memory that your ARM board allows."
EPILOG = """\
the two to begin with:
  edge-lts deploy --host pi@raspberrypi
  edge-lts run --target arm64 --budget 3h

Without a board: edge-lts run --target local --space demo --budget 5m
`edge-lts VERB --help` says more, with an example."""
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of printing a page of usage: `main` makes one line of it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser(verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The parser with the given verbs; `main` passes only the one it needs."""
    parser = _Parser(
        prog="edge-lts",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edge-lts {__version__}")
    _add_talk(parser, is_top=True)
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    for verb in verbs:
        add_verb(subparsers, load(verb))
    return parser


def add_verb(subparsers: argparse._SubParsersAction[_Parser], command: Command) -> None:
    verb = subparsers.add_parser(
        command.NAME,
        help=command.HELP,
        description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(verb)
    _add_talk(verb, is_top=False)
    verb.set_defaults(command=command)


def _add_talk(parser: argparse.ArgumentParser, *, is_top: bool) -> None:
    """-v, -q and --no-progress, before the verb or after it."""
    count, flag = (0, False) if is_top else (argparse.SUPPRESS, argparse.SUPPRESS)
    parser.add_argument("-v", "--verbose", action="count", default=count, help="say more on stderr; repeatable")
    parser.add_argument("-q", "--quiet", action="store_true", default=flag, help="only errors on stderr")
    parser.add_argument("--no-progress", action="store_true", default=flag, help="no progress bars")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. The one place that catches EdgeLtsError."""
    words = list(sys.argv[1:] if argv is None else argv)
    is_verbose = False
    try:
        args = _parse(words)
        is_verbose = args.verbose > 0
        from edge_lts_host.report import render

        render.set_talk(verbose=args.verbose, quiet=args.quiet, progress=not args.no_progress)
        command: Command = args.command
        status = command.run(args)
        sys.stdout.flush()
        return status
    except EdgeLtsError as exc:
        if is_verbose and exc.__cause__ is not None:
            _complain(f"caused by {type(exc.__cause__).__name__}: {exc.__cause__}")
        return _fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Keep the interpreter from complaining again when it flushes stdout at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return _fail(f"{where}{exc.strerror or exc}", 1)
    except Exception as exc:  # the last resort: nobody is shown a traceback unasked
        if is_verbose:
            raise
        return _fail(f"internal error, please report it with the output of -v: {type(exc).__name__}: {exc}", 1)


def _parse(words: list[str]) -> argparse.Namespace:
    if sys.platform == "win32":
        raise UsageError("edge-lts runs on Linux and macOS; on Windows, run it inside WSL")
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise UsageError(
            f"unknown verb {verb!r:.80}; " + (f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}")
        )
    args = build_parser(VERBS if verb is None else (verb,)).parse_args(words)
    if args.verb is None:
        raise UsageError("say what to do: edge-lts VERB (see edge-lts --help)")
    return args


def _complain(message: str) -> None:
    line = printable(" ".join(message.split()))
    print(f"edge-lts: {line}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        _complain(message)
    return status


if __name__ == "__main__":
    sys.exit(main())

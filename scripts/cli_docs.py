"""Write docs/cli.md from the parsers themselves.

usage: python scripts/cli_docs.py [--check]     --check: write nothing, exit 1 if docs/cli.md is out of date

argparse's own help differs between Python versions and terminals, so the page is laid out here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
sys.path[:0] = [str(ROOT), str(ROOT / "host")]

from edge_lts_host import cli  # noqa: E402  (the checkout's, found through the line above)

INTRODUCTION = """\
# The command line

Written by `python scripts/cli_docs.py` from the program itself; do not edit.

    edge-lts [-v] [-q] [--no-progress] [--version] VERB ...

Results go to stdout, everything else to stderr. `-v` says more (`-vv` more still), `-q` only errors. No colour is used,
so `NO_COLOR` holds. `-o json` prints exactly one JSON document, `-o jsonl` one object per line.

**Times** are written `3h`, `90m`, `1h30m`, `45s`, `0.5h`, `2d`, `250ms`, or as bare seconds. **Sizes** are written
`512MiB`, `1GB` or as bare bytes: `KiB MiB GiB` are powers of 1024, `kB MB GB` powers of 1000, and `K M G` alone
powers of 1024 (`400M` is `400MiB`).

**RUN** is a run id, or the beginning of one, or its last part (`ab12`), or the path of a run folder; without one the
newest run is meant. Runs are kept in `$EDGE_LTS_RUNS`, else in the platform's user data directory.

**Which boards**: `--host` and `--inventory` name them; without either, every board that `deploy` remembers is meant.
`--target T` keeps those whose target is T or extends T, `--limit` those whose name, tag or group matches.
`--target local` is this machine. See `docs/targets.md`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it failed: a damaged file, a full disk, or an internal error |
| 2 | the command line, or a target, space, inventory or architecture file, makes no sense |
| 3 | some of several boards failed; the others are done |
| 4 | a board cannot be reached, does not let us in, or is not who it was |
| 5 | the board cannot do it (32-bit userland, too little memory or disk, a CPU that torch was not built for, ...) |
| 7 | another run holds the board |
| 124 | `--wait` took too long; the run goes on |
| 130 | Ctrl-C |
| 141 | whoever read the output went away |

| verb | |
|---|---|
"""

CONNECTION = """\
## connection

How to reach a board, for every verb that does. What is left out comes from `~/.ssh/config`, the SSH agent and the usual
keys; a password is only ever asked for on a terminal. An unknown host key is asked about on a terminal and refused
without one; a changed host key is always refused.
"""


def page() -> str:
    """The whole page."""
    parser = cli.build_parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in verbs._choices_actions}
    rows = [f"| [`{name}`](#{name}) | {_cell(helps[name] or '')} |" for name in verbs.choices]
    sections = [_section(name, choice) for name, choice in verbs.choices.items()]
    connection = _table(_connection(verbs.choices["deploy"]))
    return "\n".join([INTRODUCTION + "\n".join(rows) + "\n", *sections, "\n".join([CONNECTION, *connection, ""])])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    command = parser.get_default("command")
    lines = [f"## {name}\n", f"{parser.description}\n", f"    {command.EXAMPLE}\n"]
    connection = _connection(parser)
    hidden = ("help", "verbose", "quiet", "no_progress")
    lines += _table([action for action in parser._actions if action not in connection and action.dest not in hidden])
    lines.append("")
    if connection:
        lines.append("And the [connection flags](#connection).\n")
    return "\n".join(lines)


def _table(actions: list[argparse.Action]) -> list[str]:
    rows = [f"| {_spelling(action)} | {_cell(action.help or '')} |" for action in actions]
    return ["| argument | |", "|---|---|", *rows] if rows else []


def _connection(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for group in parser._action_groups if group.title == "connection" for action in group._group_actions]


def _spelling(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        optional = action.nargs in ("?", "*")
        text = f"{value}{' ...' if action.nargs in ('*', '+') else ''}"
        return f"`{f'[{text}]' if optional else text}`".replace("|", "\\|")
    takes = "" if action.nargs == 0 else f" {value}"
    return f"`{', '.join(action.option_strings)}{takes}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|")


def main() -> int:
    text = page()
    if sys.argv[1:] == ["--check"]:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print("docs/cli.md is out of date: python scripts/cli_docs.py", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

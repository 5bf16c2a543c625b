"""The agent's command line: `agent.pyz [--site DIR] VERB ...`, spoken by the workstation and never by people.

stdout carries the protocol alone: one JSON object per line, the first one a `hello` with the protocol's version, the
last one an `error` if the process ends with another exit code than 0. Everything else goes to stderr. See
docs/protocol.md. `--site DIR` is put in front of sys.path before numpy or torch are imported.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edge_lts.errors import EdgeLtsError

PROTOCOL_VERSION = 1


class UsageError(EdgeLtsError):
    """The command line makes no sense."""

    exit_code = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


class Emitter:
    """Writes protocol lines to stdout; a reader who went away is no error, because a search goes on without one."""

    def __init__(self) -> None:
        self.is_connected = True

    def __call__(self, event: Mapping[str, Any]) -> None:
        if not self.is_connected:
            return
        try:
            sys.stdout.buffer.write(json.dumps(event).encode("ascii") + b"\n")
            sys.stdout.buffer.flush()
        except (BrokenPipeError, ValueError):
            self.is_connected = False


def main(argv: Sequence[str]) -> int:
    """Run one verb; the result is the process's exit code."""
    emit = Emitter()
    try:
        arguments = _parser().parse_args(list(argv))
        if arguments.site is not None:
            sys.path.insert(0, str(arguments.site))
        if arguments.verb == "serve":
            return _serve()
        emit({"protocol": PROTOCOL_VERSION, "event": "hello", "verb": arguments.verb})
        return _run(arguments, emit)
    except EdgeLtsError as exc:
        emit(error_event(exc))
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as exc:  # noqa: BLE001  (the last resort: a reader of the protocol must learn that it ended)
        import traceback

        traceback.print_exc()
        emit(error_event(exc))
        return 1


def error_event(exc: Exception) -> dict[str, Any]:
    """The last line of a process that fails."""
    code = exc.exit_code if isinstance(exc, EdgeLtsError) else 1
    return {"event": "error", "type": type(exc).__name__, "message": str(exc), "exit_code": code}


def _serve() -> int:
    from edge_lts.profile.server import serve

    return serve(sys.stdin.buffer, sys.stdout.buffer)


def _run(arguments: argparse.Namespace, emit: Emitter) -> int:
    verb = arguments.verb
    if verb == "status":
        from edge_lts import status

        return status.answer(emit, arguments.paths, show_all=arguments.all)
    from edge_lts import verbs

    if verb == "probe":
        return verbs.probe(emit, site=arguments.site, root=arguments.root, with_torch=arguments.torch)
    if verb == "doctor":
        return verbs.doctor(emit, site=arguments.site, root=arguments.root)
    if verb == "search":
        command = verbs.own_command(arguments.site)
        return verbs.search(emit, arguments.run_dir, command, root=arguments.root, is_detached=arguments.detach)
    if verb == "on-boot":
        command = verbs.own_command(arguments.site)
        return verbs.on_boot(emit, arguments.run_dir, command, root=arguments.root, is_removing=arguments.remove)
    if verb == "measure":
        return verbs.measure(emit, sys.stdin.buffer, verbs.own_command(arguments.site), root=arguments.root)
    if verb == "worker":
        from edge_lts import worker

        return worker.serve(emit, sys.stdin.fileno(), verbs.own_command(arguments.site), root=arguments.root)
    if verb in ("train", "score"):
        from edge_lts import trainer

        return trainer.run(arguments, emit)
    if verb == "stop":
        return verbs.stop(emit, arguments.run_dir, timeout_s=arguments.timeout)
    from edge_lts import transfer

    if verb == "pull":
        return transfer.pull(emit, sys.stdout.buffer, arguments.run_dir, arguments.offsets)
    return transfer.clean(emit, arguments.root, keep_runs=arguments.keep_runs, is_dry_run=arguments.dry_run)


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agent", allow_abbrev=False, description="edge-lts on the board")
    parser.add_argument("--site", type=_folder, help="folder with torch and numpy, put in front of sys.path")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)

    probe = verbs.add_parser("probe", help="describe this board")
    probe.add_argument("--torch", action="store_true", help="also prove torch in a child process")
    probe.add_argument("--root", type=_folder, help="folder whose free space is reported")

    doctor = verbs.add_parser("doctor", help="say what would spoil a run on this board")
    doctor.add_argument("--root", type=_folder, help="folder of board.lock and of the runs")

    search = verbs.add_parser("search", help="run or resume the search of a run folder")
    search.add_argument("run_dir", type=_folder)
    search.add_argument("--root", type=_folder, help="folder of board.lock (default: two above the run folder)")
    search.add_argument("--detach", action="store_true", help="return as soon as the run has begun")

    on_boot = verbs.add_parser("on-boot", help="let the system resume a run when this board boots")
    on_boot.add_argument("run_dir", type=_folder)
    on_boot.add_argument("--root", type=_folder, help="folder of board.lock")
    on_boot.add_argument("--remove", action="store_true", help="no longer")

    measure = verbs.add_parser("measure", help="measure one architecture, read as JSON from stdin")
    measure.add_argument("--root", type=_folder, help="folder of board.lock")

    worker = verbs.add_parser("worker", help="measure what stdin asks for, one JSON line each, for a pool of boards")
    worker.add_argument("--root", type=_folder, help="folder of board.lock")

    train = verbs.add_parser("train", help="train the models of a job's folder")
    train.add_argument("job_dir", type=_folder)
    train.add_argument("--root", type=_folder, help="folder of board.lock")
    train.add_argument("--worker", action="store_true", help="internal: one of its processes")

    score = verbs.add_parser("score", help="proxies that need the model, of architectures read as JSON from stdin")
    score.add_argument("--root", type=_folder, help="folder of board.lock")

    status = verbs.add_parser("status", help="say how runs are doing")
    status.add_argument("paths", nargs="+", type=_folder, metavar="ROOT|RUN_DIR")
    status.add_argument("--all", action="store_true", help="of a root, finished runs too")

    stop = verbs.add_parser("stop", help="end a run cleanly")
    stop.add_argument("run_dir", type=_folder)
    stop.add_argument("--timeout", type=float, default=60.0, metavar="S")

    pull = verbs.add_parser("pull", help="send a run's files from byte offsets")
    pull.add_argument("run_dir", type=_folder)
    pull.add_argument("--offsets", default="{}", help="JSON object: bytes that the reader has, by file name")

    clean = verbs.add_parser("clean", help="remove what edge-lts left on this board")
    clean.add_argument("root", type=_folder)
    clean.add_argument("--keep-runs", action="store_true")
    clean.add_argument("--dry-run", action="store_true")

    verbs.add_parser("serve", help="internal: the measuring server")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

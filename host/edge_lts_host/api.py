"""edge-lts for programs and notebooks: what the command line does, as functions that return plain data (docs/api.md).

Questions about what was measured (`report`, `compare`, `pick`, `query`, ...) are calls of the same functions that the
verbs print. What serves boards goes through the verb itself (`call`), so that a flag means the same in both places.
Results are the JSON that `-o json` prints, in SI units and unrounded; errors are EdgeLtsErrors, never an exit. RUN is
a run id, how one begins or ends, or the path of a run folder; None is the newest run.

`call` catches what a verb prints to stdout: one such call at a time in a process.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts.arch import Architecture
from edge_lts_host import store
from edge_lts_host.errors import HostError, UsageError

if TYPE_CHECKING:
    from edge_lts_host.follow import Job
    from edge_lts_host.index.database import Index
    from edge_lts_host.session import Session

Arch = str | Path | Mapping[str, Any] | Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run on this machine, as last heard of."""

    run_id: str
    path: Path
    state: str
    target: str
    host: str | None


class CallError(HostError):
    """A verb ended with another exit code than 0 without an error of its own; `data` is what it had printed."""

    def __init__(self, verb: str, exit_code: int, data: Any) -> None:
        super().__init__(f"{verb} ended with exit code {exit_code}")
        self.exit_code = exit_code
        self.data = data


# Boards and runs ------------------------------------------------------------------------------------------------------


def call(verb: str, *words: str, **flags: Any) -> Any:
    """Any verb of the command line: `call("doctor", host="pi@pi5")`. Its JSON, or its lines where it has no `-o`.

    A flag is written with `_` for `-`: True sets it, a list repeats it, None and False leave it out. Raises what the
    verb raises, UsageError for an unknown flag, and CallError for an exit code other than 0.
    """
    from edge_lts_host.cli import build_parser
    from edge_lts_host.commands import VERBS
    from edge_lts_host.report import render

    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r:.80}; verbs: {', '.join(VERBS)}")
    parser = build_parser((verb,))
    argv = [verb, *_words(flags), *words]
    args = parser.parse_args(argv)
    is_json = hasattr(args, "output") and "output" not in flags
    if is_json:
        args = parser.parse_args([*argv, "-o", "json"])
    render.set_talk(verbose=args.verbose, quiet=args.verbose == 0, progress=False)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = args.command.run(args)
    text = printed.getvalue()
    data = json.loads(text) if is_json and text.strip() else text.splitlines()
    if status:
        raise CallError(verb, status, data)
    return data


def _words(flags: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        flag = "--" + name.strip("_").replace("_", "-")
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if one is True:
                yield flag
            elif one is not None and one is not False:
                yield f"{flag}={one}"


def runs() -> list[Run]:
    """Every run on this machine, oldest first."""
    return [_described(folder) for folder in store.list_runs()]


def _described(folder: store.RunFolder) -> Run:
    status, meta = folder.status(), folder.host_meta()
    return Run(
        run_id=folder.run_id,
        path=folder.path,
        state=str(status.get("state") or "unknown"),
        target=folder.read_spec().target,
        host=meta.get("host"),
    )


def run(*, budget: str | float, target: str | None = "local", wait: bool = True, **flags: Any) -> list[Run]:
    """Search, as `edge-lts run` with these flags, and follow it to its end unless `wait` is false; the runs.

    `run(budget="5m", space="demo")` searches on this machine. On boards (`target`, `host`) with `wait=False` the search
    goes on by itself, as it does when this program ends.
    """
    before = {folder.run_id for folder in store.list_runs()}
    call("run", budget=budget, target=target, wait=wait, detach=not wait, **flags)
    return [_described(folder) for folder in store.list_runs() if folder.run_id not in before]


def status(*run_ids: str, **flags: Any) -> list[dict[str, Any]]:
    """How runs are doing, asked on their boards; the newest one for none."""
    found: list[dict[str, Any]] = call("status", *run_ids, **flags)["runs"]
    return found


def pull(*run_ids: str, **flags: Any) -> dict[str, dict[str, int]]:
    """Copy what is new of runs from their boards: bytes by file, by run. Flags are those of the connection."""
    from edge_lts_host import follow
    from edge_lts_host.cli import build_parser
    from edge_lts_host.commands import common

    args = build_parser(("pull",)).parse_args(["pull", *_words(flags), *run_ids])
    jobs = follow.find_jobs(run_ids or [None])

    def work(job: Job, session: Session) -> dict[str, int]:
        return session.pull(job.folder)

    n_parallel = common.n_parallel(args, len(jobs))
    results = follow.each(
        jobs, work, common.ssh_options(args), n_parallel, lambda job, error: None, say=lambda text: None
    )
    for result in results:
        if result.error is not None:
            raise result.error
    return {result.item.run_id: result.value or {} for result in results}


def stop(*run_ids: str, **flags: Any) -> None:
    """End runs cleanly, each with a valid frontier."""
    call("stop", *run_ids, **flags)


def resume(*run_ids: str, wait: bool = True, **flags: Any) -> None:
    """Go on with runs that were stopped or interrupted."""
    call("resume", *run_ids, wait=wait, detach=not wait, **flags)


def measure(architecture: Arch, **flags: Any) -> dict[str, Any]:
    """Measure one architecture in a fresh process, on a board or here; its ledger record. `kind` is `failure` where it
    could not be measured."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "architecture.json"
        path.write_text(json.dumps(_architecture(architecture).to_json()))
        try:
            found: dict[str, Any] = call("measure", str(path), **flags)
        except CallError as exc:
            if not isinstance(exc.data, dict):
                raise
            found = exc.data
    return found


# Results --------------------------------------------------------------------------------------------------------------


def report(*run_ids: str) -> dict[str, Any]:
    """The measured frontiers of runs: the JSON of `edge-lts report`."""
    from edge_lts_host.report.compare import build_report

    return build_report(_folders(run_ids))


def frontier(*run_ids: str) -> list[dict[str, Any]]:
    """Every frontier member as one flat row, as `edge-lts report -o csv` has it: `pandas.DataFrame(api.frontier())`."""
    from edge_lts_host.report.rows import csv_row

    return [csv_row(run, member) for run in report(*run_ids)["runs"] for member in run["frontier"]]


def compare(*run_ids: str, across: Sequence[str] = (), levels: int = 6) -> dict[str, Any]:
    """Runs against one another: the JSON of `edge-lts compare`, sessions of transfers included."""
    from edge_lts_host import transfers
    from edge_lts_host.report.across import build_comparison
    from edge_lts_host.report.sides import across_of

    folders = _folders(run_ids)
    sessions = transfers.load_sessions([folder.run_id for folder in folders])
    return build_comparison(folders, across=across_of(",".join(across)), n_levels=levels, sessions=sessions)


def pick(
    run_id: str | None = None,
    *,
    limits: Mapping[str, float | tuple[float | None, float | None]] | None = None,
    train_tokens: float | None = None,
    law: str = "chinchilla",
    runners_up: int = 3,
    sure: bool = False,
) -> dict[str, Any]:
    """The best architecture within limits: the JSON of `edge-lts pick`. `best` is None where there is none.

    `limits` are by objective in SI units, a maximum or (minimum, maximum): `{"decode_latency_s": 0.06}`.
    """
    from edge_lts.objectives import Constraint
    from edge_lts_host.report.loss_law import LAWS
    from edge_lts_host.report.pick import build_pick

    if law not in LAWS:
        raise UsageError(f"unknown loss law {law!r:.40}; known: {', '.join(LAWS)}")
    bounds = [
        Constraint(name=name, minimum=bound[0], maximum=bound[1])
        if isinstance(bound, tuple)
        else Constraint(name=name, maximum=bound)
        for name, bound in (limits or {}).items()
    ]
    return build_pick(
        store.resolve(run_id), bounds, n_runners_up=runners_up, train_tokens=train_tokens, law=law, only_sure=sure
    )


def export(
    architecture: Arch,
    to: str | Path,
    *,
    run_id: str | None = None,
    formats: Sequence[str] = ("torch",),
    checkpoint: str | Path | None = None,
    is_forced: bool = False,
) -> list[dict[str, Any]]:
    """Write a model to train: what became of each of `formats` (torch, hf, onnx). An arch_id is looked for in a run.

    `checkpoint` holds trained weights. What an earlier export wrote there is only replaced with `is_forced`.
    """
    from edge_lts_host.export import export as write
    from edge_lts_host.export.find import find_member, is_arch_id

    evidence = None
    if isinstance(architecture, str) and is_arch_id(architecture):
        found, evidence = find_member(store.resolve(run_id), architecture)
    else:
        found = _architecture(architecture)
    weights = None if checkpoint is None else Path(checkpoint)
    done = write(found, Path(to), formats, checkpoint=weights, evidence=evidence, is_forced=is_forced)
    return [item.to_json() for item in done]


def params(architecture: Arch) -> dict[str, Any]:
    """`arch_id`, `decoder_params` and `total_params`, by the closed formula."""
    found = _architecture(architecture)
    return {"arch_id": found.arch_id, "decoder_params": found.decoder_params, "total_params": found.total_params}


# Everything that was ever measured ------------------------------------------------------------------------------------


def query(architecture: Arch, *, device: str | Sequence[str] = (), source: str | Path | None = None) -> dict[str, Any]:
    """One architecture on every board that measured it: the JSON of `edge-lts bench query`.

    `architecture` may also be how an arch_id begins. `source` is a file that `export_measurements` wrote; None asks
    the ledgers of this machine.
    """
    from edge_lts_host.index import asked

    wanted = architecture if isinstance(architecture, str) else _architecture(architecture)
    with _index(source) as index:
        return asked.query(index, wanted, _patterns(device))


def boards(*, device: str | Sequence[str] = (), source: str | Path | None = None) -> list[dict[str, Any]]:
    """What was measured on which kind of board, with the frontier of each: the JSON of `edge-lts bench boards`."""
    from edge_lts_host.index import asked

    with _index(source) as index:
        return asked.boards(index, _patterns(device))


def compare_boards(
    *, device: str | Sequence[str] = (), across: Sequence[str] = (), levels: int = 6, source: str | Path | None = None
) -> dict[str, Any]:
    """Boards against one another over all of their runs: the JSON of `edge-lts bench compare`."""
    from edge_lts_host.index import asked
    from edge_lts_host.report.sides import across_of

    with _index(source) as index:
        data, _ = asked.compare(index, _patterns(device), across=across_of(",".join(across)), n_levels=levels)
        return data


def measurements(*, device: str | Sequence[str] = (), source: str | Path | None = None) -> list[dict[str, Any]]:
    """Every process of every run as one flat row: `pandas.DataFrame(api.measurements())`."""
    from edge_lts_host.index import asked

    with _index(source) as index:
        return asked.measurements(index, _patterns(device))


def export_measurements(to: str | Path, *, device: str | Sequence[str] = ()) -> dict[str, Any]:
    """Everything that was measured in one file, as `edge-lts bench export` writes it; what went into it."""
    from edge_lts_host.index import asked

    with _index(None) as index:
        return asked.export(index, to, _patterns(device))


@contextlib.contextmanager
def _index(source: str | Path | None) -> Iterator[Index]:
    from edge_lts_host.index import asked

    with asked.opened(source) as (index, _):
        yield index


def _patterns(device: str | Sequence[str]) -> tuple[str, ...]:
    return (device,) if isinstance(device, str) else tuple(device)


def _folders(run_ids: Sequence[str]) -> list[store.RunFolder]:
    return [store.resolve(run_id) for run_id in run_ids or (None,)]


def _architecture(given: Arch) -> Architecture:
    """An architecture, its JSON as an object or as text, or the path of a file."""
    from edge_lts_host.arch_files import load_architecture, parse_architecture

    if isinstance(given, Architecture):
        return given
    if isinstance(given, Mapping):
        return Architecture.from_json(given)
    text = str(given)
    return (
        parse_architecture(text.encode(), "the architecture")
        if text.lstrip().startswith("{")
        else load_architecture(text)
    )

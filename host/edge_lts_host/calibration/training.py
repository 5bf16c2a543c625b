"""`edge-lts calibrate --corpus TEXT`: choose small architectures, train them, and fit a proxy to what they reached.

Everything is trained by the agent, here or on a board, in a job's folder below its root (`trainings/<job_id>/`). The
job's id is a hash of all that determines it, so the same command goes on where it was stopped, and asks for nothing
twice. The labels are left beside the proxy, as a table that `calibrate --labels` and `validate --panel` read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts_host.errors import AgentProtocolError, HostError, UsageError
from edge_lts_host.units import duration

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts.training import Job, Recipe, Trained
    from edge_lts_host.corpus import Corpus, Vocabulary
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.transport.ssh_config import SshOptions

DEFAULT_SPACE = "demo"
DEFAULT_BUDGET_S = 2 * 3600.0
DEFAULT_REPEATS = 4
DEFAULT_MODELS = 16
LEAST_LABELS = 6
MAX_EPOCHS = 8  # over the text; beyond, small models learn it by heart
PROCESS_BYTES = 700 << 20  # what a training process takes, torch included
TRAININGS = "trainings"
SEEDS_EACH = 1000  # apart lie the seeds of two calibrations
MAX_SEED = (1 << 31) // SEEDS_EACH
PUT_S = 3600.0

Say = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb `calibrate` has for labels that must first be trained, beside the boards to choose from."""
    group = parser.add_argument_group("labels that are trained first")
    group.add_argument("--corpus", metavar="TEXT", help="text to train on: a file, a folder, or pydoc (Python's own)")
    group.add_argument("--vocabulary", metavar="N", default="bytes", help="BPE tokens, or bytes (default: bytes)")
    group.add_argument(
        "--space", metavar="NAME|FILE", help="what to train members of (default: that of --run, else demo)"
    )
    group.add_argument("--run", metavar="RUN", help="take a quarter from that run's frontier (default: a guessed one)")
    group.add_argument(
        "--budget",
        metavar="TIME",
        type=duration("--budget"),
        default=DEFAULT_BUDGET_S,
        help="for all trainings together (default: 2h)",
    )
    group.add_argument("--tokens", metavar="N", type=int, help="train each on so many (default: as the budget allows)")
    group.add_argument(
        "--time-each",
        metavar="TIME",
        type=duration("--time-each"),
        help="train each for so long instead of on equally many tokens",
    )
    group.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=DEFAULT_REPEATS,
        help=f"models trained with a second seed, to know the noise (default: {DEFAULT_REPEATS})",
    )
    group.add_argument("--processes", metavar="N", type=int, help="models trained at a time (default: one per core)")


def run(args: argparse.Namespace, options: SshOptions | None = None) -> int:
    """Train, write the labels, fit, write the proxy. Raises UsageError, or what the board or the link says."""
    from edge_lts_host.calibration import from_table
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.report import render
    from edge_lts_host.targets import LOCAL

    entries = select_hosts(args, default=LOCAL)
    if len(entries) > 1:
        raise UsageError(
            f"{len(entries)} boards are chosen; models are trained on one: narrow it with --host or --limit"
        )
    plan = make_plan(args, entries[0], render.talk)
    results = train(plan, entries[0], options, render.talk)
    labels = Path(args.to).with_suffix(".labels.csv")
    n_labels = write_usable(labels, results, render.warn)
    render.talk(f"{labels}: {n_labels} labels; edge-lts calibrate --labels {labels} fits them again")
    result = from_table.calibrate_file(labels, to=Path(args.to), seed=args.seed, label="bits_per_byte")
    from_table.emit(result, args.output)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job and the text that it trains on; `frontier_ids` are those of its models that stand on a frontier."""

    job: Job
    corpus: Corpus
    vocabulary: Vocabulary
    frontier_ids: frozenset[str]


def make_plan(args: argparse.Namespace, entry: HostEntry, say: Say) -> Plan:
    """Everything that is decided before a board is asked. Raises UsageError."""
    import numpy as np

    from edge_lts.space import SearchSpace
    from edge_lts_host import spaces
    from edge_lts_host.calibration import design
    from edge_lts_host.corpus import DEFAULT, load_corpus, make_vocabulary

    n_models = DEFAULT_MODELS if args.models is None else args.models
    if n_models < LEAST_LABELS or args.repeats < 0:
        raise UsageError(f"--models: at least {LEAST_LABELS} are needed (and --repeats must not be negative)")
    if not 0 <= args.seed < MAX_SEED:
        raise UsageError(f"--seed: must be from 0 to {MAX_SEED - 1}, not {args.seed}")
    corpus = load_corpus(args.corpus or DEFAULT)
    vocabulary = make_vocabulary(args.vocabulary, corpus)
    cores, processes = workers(args.processes, entry)
    recipe = make_recipe(args, corpus, vocabulary, threads=max(1, cores // processes))
    n_trainings = n_models + min(args.repeats, n_models)
    space = SearchSpace.from_json(_space(args, spaces.load_space))
    pool = design.draw_pool(
        space, design.most_params(args.budget, n_trainings, processes), np.random.default_rng(args.seed)
    )
    frontier = [arch for arch in run_frontier(args.run) if space.contains(arch)] if args.run else []
    largest = max(arch.decoder_params for arch in pool)
    frontier = [arch for arch in frontier if arch.decoder_params <= largest]
    if args.run and not frontier:
        say(f"--run {args.run}: none of its frontier is in the space and small enough to be trained; a guessed one")
    if not frontier:
        frontier = design.provisional_frontier(pool)
    pool, frontier = ([design.trainable(arch, vocabulary.size, recipe) for arch in part] for part in (pool, frontier))
    chosen = design.choose(pool, frontier, n_models)
    known = {arch.arch_id for arch in frontier}
    return Plan(
        job=make_job(chosen, design.spread(chosen, args.repeats), recipe, corpus, vocabulary, args, processes),
        corpus=corpus,
        vocabulary=vocabulary,
        frontier_ids=frozenset(arch.arch_id for arch in chosen if arch.arch_id in known),
    )


def _space(args: argparse.Namespace, load: Callable[[str], tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    if args.run and args.space is None:
        from edge_lts_host.store import resolve

        return dict(resolve(args.run).read_spec().space)
    return load(args.space or DEFAULT_SPACE)[0]


def make_recipe(args: argparse.Namespace, corpus: Corpus, vocabulary: Vocabulary, *, threads: int) -> Recipe:
    """The usual recipe with what the command line says: so many tokens, or so much time."""
    from edge_lts.training import Recipe

    most = MAX_EPOCHS * len(vocabulary.encode(corpus.training))
    if args.tokens is not None and args.tokens < 1:
        raise UsageError(f"--tokens: must be positive, not {args.tokens}")
    return Recipe(tokens=args.tokens or most, seconds=args.time_each, threads=threads)


def make_job(
    chosen: Sequence[Architecture],
    again: Sequence[Architecture],
    recipe: Recipe,
    corpus: Corpus,
    vocabulary: Vocabulary,
    args: argparse.Namespace,
    processes: int,
) -> Job:
    """The largest first, so that none is left to be trained alone at the end."""
    from edge_lts.training import Job, Text

    first_seed = args.seed * SEEDS_EACH
    models = [(arch, first_seed) for arch in chosen] + [(arch, first_seed + 1) for arch in again]
    models.sort(key=lambda model: (-model[0].decoder_params, model[0].arch_id, model[1]))
    held_out = vocabulary.encode(corpus.validation)
    text = Text(vocab_size=vocabulary.size, bytes_per_token=len(corpus.validation) / len(held_out))
    draft = Job(
        job_id="0" * 12,
        models=tuple(models),
        recipe=recipe,
        text=text,
        budget_s=None if args.tokens is not None and args.time_each is None else args.budget,
        processes=processes,
    )
    data = {**draft.to_json(), "corpus": corpus.sha256, "vocabulary": vocabulary.name}
    job_id = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
    return Job.from_json({**draft.to_json(), "job_id": job_id})


def workers(wanted: int | None, entry: HostEntry) -> tuple[int, int]:
    """(cores, models trained at a time): one per core, as far as the memory known of goes."""
    from edge_lts.device import cpu_count, memory_available_bytes

    if entry.is_local:
        cores, memory = cpu_count(), memory_available_bytes()
    else:
        device = entry.device or {}
        cores, memory = device.get("n_cores") or 1, device.get("memory_total_bytes")
    if wanted is not None:
        if not 1 <= wanted <= 64:
            raise UsageError(f"--processes: must be from 1 to 64, not {wanted}")
        return max(cores, wanted), wanted
    room = cores if memory is None else max(1, int(memory // PROCESS_BYTES))
    return cores, min(cores, room)


def run_frontier(run_id: str) -> list[Architecture]:
    """The members of a run's frontier. Raises UsageError for a run without one."""
    from edge_lts.arch import Architecture
    from edge_lts_host.store import resolve

    members = resolve(run_id).frontier().get("frontier")
    if not isinstance(members, list) or not members:
        raise UsageError(f"--run: {run_id} has no frontier yet")
    return [Architecture.from_json(member.get("architecture")) for member in members if isinstance(member, dict)]


def train(plan: Plan, entry: HostEntry, options: SshOptions | None, say: Say) -> list[Trained]:
    """Have the device train what it has not trained yet; all results, in the order of the job.

    Raises LockedError while another run, or this very job, is at work there.
    """
    from edge_lts.training import JOB
    from edge_lts_host.corpus import write_ids
    from edge_lts_host.payload import build_payload
    from edge_lts_host.session import Place, Session, local_place, open_transport

    payload = build_payload("train")
    place = local_place(payload) if entry.is_local else Place.of(entry, payload)
    folder = posixpath.join(place.root, TRAININGS, plan.job.job_id)
    n_models = len({arch.arch_id for arch, _ in plan.job.models})
    say(
        f"training {n_models} models ({len(plan.job.models) - n_models} of them twice, {len(plan.frontier_ids)} from a "
        f"frontier) on {plan.corpus.name}, {plan.vocabulary.name}, {plan.job.processes} at a time, on {place.name}: "
        f"{folder}"
    )
    with tempfile.TemporaryDirectory() as scratch, open_transport(entry, options) as transport:
        write_ids(Path(scratch), plan.corpus, plan.vocabulary)
        session = Session(transport, place)
        session.push_agent(payload)
        for path in sorted(Path(scratch).iterdir()):
            transport.put(path, posixpath.join(folder, path.name), timeout_s=PUT_S)
        data = json.dumps(plan.job.to_json(), indent=1).encode("ascii") + b"\n"
        transport.put(data, posixpath.join(folder, JOB), timeout_s=PUT_S)
        return follow(plan.job, session.converse(["train", folder, "--root", place.root], ()), say)


def follow(job: Job, events: Any, say: Say) -> list[Trained]:
    """Read a device's events to their end. Raises AgentProtocolError for results that were not asked for."""
    from edge_lts.training import Trained
    from edge_lts_host.calibration.shown import Shown
    from edge_lts_host.report import render

    wanted = {(arch.arch_id, seed) for arch, seed in job.models}
    found: dict[tuple[str, int], Trained] = {}
    with Shown(wanted, job.recipe.to_json(), say) as shown:
        for event in events:
            if event["event"] == "timing":
                shown.say(f"timing {event.get('n_models')} models, to see how many tokens the budget has room for")
            elif event["event"] == "plan":
                recipe = event.get("recipe") or {}
                each = recipe.get("seconds")
                amount = f"{render.count(recipe.get('tokens'))} tokens" if each is None else render.duration(each)
                shown.plan(recipe)
                shown.say(f"each is trained on {amount}" if each is None else f"each is trained for {amount}")
            elif event["event"] == "point":
                shown.point(event)
            elif event["event"] == "trained":
                one = Trained.from_json({key: value for key, value in event.items() if key != "event"})
                key = (one.architecture.arch_id, one.seed)
                if key not in wanted:
                    raise AgentProtocolError(f"the device trained {key[0]} with seed {key[1]}, which nobody asked for")
                if key not in found:
                    found[key] = one
                    shown.done(key)
                    shown.say(f"{len(found)} of {len(wanted)}: {describe(one)}")
    if missing := len(wanted) - len(found):
        raise HostError(f"{missing} of {len(wanted)} trainings are not done; the same command goes on with them")
    return [found[arch.arch_id, seed] for arch, seed in job.models]


def describe(one: Trained) -> str:
    from edge_lts_host.report import render

    reached = one.error or f"{render.nats(one.bits_per_byte)} bits per byte"
    return (
        f"{one.architecture.arch_id}, {render.count(one.architecture.decoder_params)} decoder parameters, "
        f"{render.count(one.tokens)} tokens in {render.duration(one.seconds)}: {reached}"
    )


def write_usable(path: Path, results: Sequence[Trained], warn: Say) -> int:
    """The labels that there are; says which models have none. Raises HostError where too few are left."""
    from edge_lts_host.calibration.labels import write_labels

    for one in results:
        if one.error is not None:
            warn(f"{one.architecture.arch_id} has no label: {one.error}")
    n_labels = write_labels(path, results)
    n_models = len({one.architecture.arch_id for one in results if one.loss_nats is not None})
    if n_models < LEAST_LABELS:
        raise HostError(f"only {n_models} models could be trained; {LEAST_LABELS} are needed to calibrate ({path})")
    return n_labels

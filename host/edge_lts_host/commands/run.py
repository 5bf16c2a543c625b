"""`edge-lts run`: start searches, each on its own board, detached; or here, waiting for the frontier."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge_lts.precision import PRECISIONS
from edge_lts_host import meters, on_boot, waiting
from edge_lts_host.commands import common
from edge_lts_host.pool import arguments as pool
from edge_lts_host.units import duration, size

if TYPE_CHECKING:
    from edge_lts.records import RunSpec
    from edge_lts_host.follow import Job
    from edge_lts_host.hosts import HostEntry

NAME = "run"
HELP = "search on a board, or on this machine"
EXAMPLE = "edge-lts run --target arm64 --budget 3h"
_REFUSED = (2, 5, 7)  # the spec makes no sense there, the board cannot do it, or another run has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_hosts(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--budget", metavar="TIME", type=duration("--budget"), required=True, help="time to search: 3h, 90m, 1h30m"
    )
    group.add_argument(
        "--space", metavar="NAME|FILE", help="what may be built (default: as large as the budget allows)"
    )
    group.add_argument(
        "--strategy",
        choices=("guided", "evolution", "random"),
        help="(default: guided; evolution with --objective-command)",
    )
    group.add_argument(
        "--widen", action="store_true", help="guided: go on beyond a bound of the space that the frontier leans on"
    )
    group.add_argument(
        "--objectives", metavar="A,B,...", help="(default: decoder_params,decode_latency_s,peak_memory_bytes)"
    )
    group.add_argument(
        "--proxy",
        metavar="FILE",
        help="search the quality of this proxy.json, not decoder_params (default: none)",
    )
    group.add_argument(
        "--objective-command",
        metavar="NAME=min|max:COMMAND",
        action="append",
        help="a further objective: the number that COMMAND prints last, given the architecture as JSON on stdin; it "
        "runs ON THE BOARD with the rights of its user, through /bin/sh, after each measurement; repeatable",
    )
    group.add_argument(
        "--baseline",
        metavar="NAME|FILE",
        action="append",
        help="measure these too, in a fifth of the budget: scaled-gpt2, scaled-transformer-xl, opt-350m, or JSON in a "
        "FILE; repeatable",
    )
    group.add_argument("--seed", metavar="N", type=int, default=1, help="same seed, same proposals (default: 1)")
    group.add_argument("--max-candidates", metavar="N", type=int, default=None, help="measure no more than that")
    group.add_argument(
        "--candidate-timeout",
        metavar="TIME",
        type=duration("--candidate-timeout"),
        default=None,
        help="give up on a candidate after that (default: 10m; emulated: 1h)",
    )
    group.add_argument("--run-id", metavar="ID", help="name of the run (default: made of time and target)")
    add_protocol(parser)
    parser.add_argument(
        "--tune", action="store_true", help="fastest CPU governor during the run, through sudo; always put back"
    )
    on_boot.add_argument(parser)
    pool.add_arguments(parser)
    add_constraints(parser)
    waiting.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be searched, as JSON, and end")
    common.add_ssh(parser)
    common.add_output(parser)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """What the numbers depend on; `measure` has the same."""
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--protocol", choices=("default", "lts"), default="default", help="lts is the paper's (default: default)"
    )
    group.add_argument("--prompt-tokens", metavar="N", type=int, help="tokens of a prefill (default: 192)")
    group.add_argument(
        "--context-tokens", metavar="N", type=int, help="tokens in the cache when decoding (default: 192)"
    )
    group.add_argument(
        "--mem-len", metavar="N", type=int, help="segment memory of transformer-xl (default: as --context-tokens)"
    )
    group.add_argument("--threads", metavar="N", type=int, help="(default: the target's; 0: as many as are fastest)")
    group.add_argument("--precision", choices=PRECISIONS, help="(default: float32)")
    group.add_argument(
        "--heat", choices=("burst", "sustained"), help="measure a board that may cool down, or one kept busy"
    )
    meters.add_arguments(group)


def add_constraints(parser: argparse.ArgumentParser) -> None:
    from edge_lts_host.counts import count

    group = parser.add_argument_group("constraints")
    group.add_argument("--min-decoder-params", metavar="N", type=count("--min-decoder-params"), help="for example 6M")
    group.add_argument("--max-decoder-params", metavar="N", type=count("--max-decoder-params"), help="for example 100M")
    group.add_argument("--max-peak-memory", metavar="SIZE", type=size("--max-peak-memory"), help="for example 512MiB")
    group.add_argument("--max-decode-latency", metavar="TIME", type=duration("--max-decode-latency"), help="as 50ms")
    group.add_argument("--max-prefill-latency", metavar="TIME", type=duration("--max-prefill-latency"), help="as 2s")


def run(args: argparse.Namespace) -> int:
    from edge_lts_host import launch, store
    from edge_lts_host.errors import UsageError
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.report import render
    from edge_lts_host.targets import load_targets

    entries = select_hosts(args)
    if args.run_id is not None and len(entries) > 1 and not args.pool:
        raise UsageError(f"--run-id names one run, but {len(entries)} boards are chosen")
    pool.check(args, entries)
    targets = load_targets(args.target_file or ())
    specs = []
    for entry in [pool.smallest(entries)] if args.pool else entries:
        target = launch.target_of(entry, targets)
        run_id = args.run_id or store.new_run_id(target.name)
        specs.append(launch.make_spec(args, entry, target, run_id, render.talk))
    chosen = [launch.meter(args, entry) for entry in entries]
    is_waiting = waiting.is_waiting(args, all(entry.is_local for entry in entries))
    meters.check(chosen, is_waiting=is_waiting or args.dry_run, objectives=specs[0].objectives)
    if args.dry_run:
        documents = [spec.to_json() for spec in specs]
        render.emit(render.dump_json(documents[0] if len(documents) == 1 else documents))
        return 0
    if args.pool:
        from edge_lts_host.pool import command

        return command.start(args, entries, specs[0], common.ssh_options(args))
    for text in chosen:
        if meters.is_on_host(text):
            name, reading = meters.try_meter(text)  # a wrong port is known before the run begins
            render.talk(f"{name}: {reading.power_w:.2f} W now")
    return _start(args, list(zip(entries, specs, strict=True)))


def _start(args: argparse.Namespace, work: list[tuple[HostEntry, RunSpec]]) -> int:
    import shutil

    from edge_lts.errors import EdgeLtsError
    from edge_lts_host import launch
    from edge_lts_host.errors import TransportError
    from edge_lts_host.fleet import Links, exit_code
    from edge_lts_host.follow import Job
    from edge_lts_host.payload import payload_for
    from edge_lts_host.report import render
    from edge_lts_host.session import Place, Session, local_place, open_transport
    from edge_lts_host.store import RunFolder, runs_root

    options = common.ssh_options(args)
    links = Links()

    def start(item: tuple[HostEntry, RunSpec]) -> Job:
        entry, spec = item
        payload = payload_for(spec)
        place = local_place(payload) if entry.is_local else Place.of(entry, payload)
        folder = RunFolder(runs_root() / spec.run_id)
        with links.add(open_transport(entry, options)) as transport:
            folder.create()
            folder.write_spec(spec.to_json())
            folder.write_host_meta(
                {
                    "host": None if entry.is_local else entry.name,
                    "destination": entry.destination,
                    "target": spec.target,
                    "run_dir": place.run_dir(spec.run_id),
                    "meter": launch.meter(args, entry),
                    **place.to_json(),
                }
            )
            session = Session(transport, place)

            def prepare() -> None:
                on_boot.arrange(session, spec.run_id)

            try:
                session.start(spec, payload, on_prepared=prepare if args.on_boot else lambda: None)
            except TransportError:
                render.warn(f"{entry.name}: it is not known whether the run began: edge-lts status {spec.run_id}")
                raise
            except EdgeLtsError as exc:
                if exc.exit_code in _REFUSED:  # nothing runs and nothing was measured: leave no empty run behind
                    if args.on_boot:
                        on_boot.cancel(session, spec.run_id)
                    session.discard(spec.run_id)
                    shutil.rmtree(folder.path, ignore_errors=True)
                raise
        return Job(folder=folder, entry=entry, place=place)

    results = common.on_each(args, work, start, links, lambda item: item[0].name)
    jobs = [result.value for result in results if result.value is not None]
    if not jobs:
        return exit_code(results, args.fail_percent)
    is_waiting = waiting.is_waiting(args, all(job.is_local for job in jobs))
    announce = render.talk if is_waiting else render.emit
    if args.output in ("json", "jsonl") and not is_waiting:
        rows = [{"run_id": job.run_id, "host": job.entry.name, "target": job.entry.target} for job in jobs]
        render.emit(render.records(rows, args.output, (), "runs"))
    else:
        for job in jobs:
            announce(job.run_id)
    status = waiting.after_start(args, jobs)
    return exit_code(results, args.fail_percent) or status

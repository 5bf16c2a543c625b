"""`edge-lts measure`: one architecture, on a board or on this machine, in a fresh process."""

from __future__ import annotations

import argparse

from edge_lts_host.commands import common
from edge_lts_host.commands import run as run_verb
from edge_lts_host.units import duration

NAME = "measure"
HELP = "measure one architecture"
EXAMPLE = "edge-lts measure ARCH.json --target local -o json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", metavar="ARCH.json", help="architecture file, or - for stdin")
    common.add_hosts(parser)
    run_verb.add_protocol(parser)
    parser.add_argument(
        "--candidate-timeout",
        metavar="TIME",
        type=duration("--candidate-timeout"),
        default=None,
        help="give up after that (default: 10m; emulated: 1h)",
    )
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    import tempfile
    from pathlib import Path

    from edge_lts_host import launch, meters
    from edge_lts_host.arch_files import load_architecture
    from edge_lts_host.errors import UsageError
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.payload import build_payload
    from edge_lts_host.report import render, single
    from edge_lts_host.session import Place, Session, local_place, open_transport
    from edge_lts_host.targets import LOCAL, load_targets

    architecture = load_architecture(args.architecture)
    entries = select_hosts(args, default=LOCAL)
    if len(entries) > 1:
        raise UsageError(f"{len(entries)} boards are chosen; narrow it to one with --host or --limit")
    (entry,) = entries
    target = launch.target_of(entry, load_targets(args.target_file or ()))
    emulated = launch.is_emulated(entry, target)
    payload = build_payload(architecture.backbone)
    place = local_place(payload) if entry.is_local else Place.of(entry, payload)
    timeout_s = args.candidate_timeout or (launch.EMULATED_TIMEOUT_S if emulated else launch.DEFAULT_TIMEOUT_S)
    meter = launch.meter(args, entry)
    with tempfile.TemporaryDirectory() as scratch:
        with (
            open_transport(entry, common.ssh_options(args)) as transport,
            meters.recording(meter, Path(scratch), render.warn),
        ):
            session = Session(transport, place)
            session.push_agent(payload)
            record = session.measure(
                architecture,
                launch.protocol(args, target),
                timeout_s=timeout_s,
                memory_headroom=target.memory_headroom,
                is_emulated=emulated,
                meter=meters.board_meter(meter),
            )
        if meters.is_on_host(meter):
            from edge_lts_host.meters.energy import with_energy

            record = with_energy(record, Path(scratch) / "meter.jsonl")
    if record.get("kind") == "failure":
        error = record.get("error", {})
        render.warn(f"it could not be measured ({error.get('kind')}): {error.get('message')}")
    render.emit(single.page(record, args.output))
    return 0 if record.get("kind") == "evaluation" else 1

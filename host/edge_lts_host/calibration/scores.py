"""Scores of proxies that need the model, from an agent here or on a board: `edge-lts proxies ARCH.json ...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_lts.arch import Architecture
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.transport.ssh_config import SshOptions

NAMES = ("synflow", "snip", "grad_norm", "jacob_cov")  # of edge_lts.proxies.model_based
AT_ONCE = 500  # architectures of one request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb `proxies` has beside the boards to choose from."""
    parser.add_argument(
        "architectures", metavar="ARCH.json", nargs="*", help="score these, instead of listing the proxies"
    )
    parser.add_argument(
        "--proxy", metavar="NAME,...", help="which of those that need the model (default: all four; needs torch there)"
    )
    parser.add_argument(
        "--init-seed", metavar="N", type=int, default=0, help="seed of the initial weights (default: 0)"
    )


def run(args: argparse.Namespace, options: SshOptions | None = None) -> int:
    """Score `args.architectures` on the chosen device and print a row for each."""
    from edge_lts_host.arch_files import load_architecture
    from edge_lts_host.errors import UsageError
    from edge_lts_host.hosts import select_hosts
    from edge_lts_host.report import render
    from edge_lts_host.targets import LOCAL

    names = NAMES if args.proxy is None else tuple(name.strip() for name in args.proxy.split(","))
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"--proxy: {unknown[0]!r:.40} is none that needs the model; there are {', '.join(NAMES)}")
    archs = [load_architecture(name) for name in args.architectures]
    entries = select_hosts(args, default=LOCAL)
    if len(entries) > 1:
        raise UsageError(f"{len(entries)} boards are chosen; narrow it to one with --host or --limit")
    found = events(archs, names, seed=args.init_seed, entry=entries[0], options=options)
    rows = []
    for arch, event in zip(archs, found, strict=True):
        if event["error"]:
            render.warn(f"{arch.arch_id} could not be scored: {event['error']}")
        rows.append(
            {
                "arch_id": arch.arch_id,
                "decoder_params": arch.decoder_params,
                **{name: event["scores"].get(name) for name in names},
                "seconds": round(sum(event["seconds"].values()), 4),
                "error": event["error"],
            }
        )
    render.emit(_page(rows, names, args.output))
    return 0 if any(row["error"] is None for row in rows) else 1


def _page(rows: Sequence[Mapping[str, Any]], names: Sequence[str], output: str) -> str:
    from edge_lts_host.report import render

    columns: list[tuple[str, str, render.Cell]] = [
        ("arch_id", "arch_id", render.text),
        ("decoder_params", "decoder_params", "{:,}".format),
        *((name, name, render.score) for name in names),
        ("seconds", "took", render.duration),
    ]
    return render.records(rows, output, columns, "architectures")


def events(
    archs: Sequence[Architecture],
    names: Sequence[str],
    *,
    seed: int = 0,
    entry: HostEntry | None = None,
    options: SshOptions | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """What the agent says of each: `scores`, `seconds`, `error`. One agent, one architecture after the other.

    Raises PreflightError where this machine has no torch.
    """
    from edge_lts_host.errors import AgentProtocolError
    from edge_lts_host.hosts import LOCAL_HOST
    from edge_lts_host.payload import build_payload
    from edge_lts_host.session import Place, Session, local_place, open_transport

    entry = LOCAL_HOST if entry is None else entry
    payload = build_payload("score")
    place = local_place(payload) if entry.is_local else Place.of(entry, payload)
    found: dict[int, dict[str, Any]] = {}
    with open_transport(entry, options) as transport:
        session = Session(transport, place)
        session.push_agent(payload)
        for first in range(0, len(archs), AT_ONCE):
            part = archs[first : first + AT_ONCE]
            request = {"architectures": [arch.to_json() for arch in part], "proxies": list(names), "seed": seed}
            for event in session.converse(["score", "--root", place.root], [json.dumps(request).encode("ascii")]):
                index = event.get("index")
                if event["event"] != "score" or not isinstance(index, int):
                    continue
                found[first + index] = _checked(event)
                say(f"{len(found)} of {len(archs)} scored")
    if sorted(found) != list(range(len(archs))):
        raise AgentProtocolError(f"{place.name}: the agent scored {len(found)} of {len(archs)} architectures")
    return [found[index] for index in range(len(archs))]


def _checked(event: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers where numbers belong: a board is not trusted."""

    def numbers(value: object) -> dict[str, float]:
        pairs = value.items() if isinstance(value, Mapping) else ()
        return {str(key): float(one) for key, one in pairs if isinstance(one, (int, float))}

    error = event.get("error")
    return {
        "scores": numbers(event.get("scores")),
        "seconds": numbers(event.get("seconds")),
        "error": None if error is None else str(error)[:300],
    }

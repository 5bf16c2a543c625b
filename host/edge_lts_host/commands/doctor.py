"""`edge-lts doctor`: everything that would spoil a run, on boards and on this workstation, worst first."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_lts_host.commands import common

if TYPE_CHECKING:
    from edge_lts.errors import EdgeLtsError
    from edge_lts_host.hosts import HostEntry
    from edge_lts_host.payload import Payload
    from edge_lts_host.targets import Target

NAME = "doctor"
HELP = "find what would spoil a run on a board or on this machine, and how to mend it"
EXAMPLE = "edge-lts doctor --target arm64"
FOUND_ERRORS = 5
MIN_DISK_BYTES = 200 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_hosts(parser)
    common.add_ssh(parser)
    common.add_output(parser)


def run(args: argparse.Namespace) -> int:
    from edge_lts_host.errors import StoreError
    from edge_lts_host.fleet import Links, is_too_many, side_by_side
    from edge_lts_host.hosts import LOCAL_HOST, load_hosts, select_hosts
    from edge_lts_host.payload import build_payload
    from edge_lts_host.report import doctor, render
    from edge_lts_host.session import Place, Session, local_place, open_transport
    from edge_lts_host.targets import LOCAL, load_targets

    findings = _workstation()
    try:
        load_hosts()
        entries = select_hosts(args, default=LOCAL)
    except StoreError as exc:
        findings.append(doctor.finding("state_damaged", "error", {"message": str(exc)}))
        entries = [] if args.host or args.target not in (None, LOCAL) else [LOCAL_HOST]
    targets = load_targets(args.target_file or ())
    payload = build_payload()
    options = common.ssh_options(args)
    links = Links()

    def examine(entry: HostEntry) -> list[dict[str, Any]]:
        place = local_place(payload) if entry.is_local else Place.of(entry, payload)
        with links.add(open_transport(entry, options)) as transport:
            session = Session(transport, place)
            session.push_agent(payload)
            return session.doctor()

    n_parallel = common.n_parallel(args, len(entries))
    results = side_by_side(entries, examine, n_parallel=n_parallel, links=links, fail_percent=args.fail_percent)
    hosts: list[dict[str, Any]] = [{"host": doctor.WORKSTATION, "findings": doctor.worst_first(findings)}]
    for result in results:
        entry = result.item
        address = None if entry.is_local else entry.destination
        said = result.value if result.error is None else [_failure(result.error)]
        found = [*(said or ()), *_remembered(entry, payload, targets)]
        worded = [doctor.finding(*_checked(each), host=address) for each in found]
        hosts.append({"host": entry.name, "findings": doctor.worst_first(worded)})
    render.emit(doctor.show(hosts, args.output))
    here, *boards = [any(each["severity"] == "error" for each in host["findings"]) for host in hosts]
    may_fail = 0.0 if args.fail_percent is None else args.fail_percent
    return FOUND_ERRORS if here or is_too_many(sum(boards), len(boards), may_fail) else 0


def _workstation() -> list[dict[str, Any]]:
    """What is wrong with the folder of runs."""
    import os
    import shutil

    from edge_lts_host.report.doctor import finding
    from edge_lts_host.store import runs_root

    root = runs_root()
    folder = next(path for path in (root, *root.parents) if path.exists())
    found = []
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "permission denied" if folder.is_dir() else f"{folder} is no directory"
        found.append(finding("runs_unwritable", "error", {"path": str(root), "message": problem}))
    free = shutil.disk_usage(folder).free
    if free < MIN_DISK_BYTES:
        found.append(finding("runs_disk_small", "warning", {"path": str(root), "free_bytes": free}))
    return found


def _failure(error: EdgeLtsError) -> dict[str, Any]:
    from edge_lts_host.errors import PreflightError, TransportError

    code, message, remedy = "agent_failed", str(error), ""
    if isinstance(error, TransportError):
        code, message, remedy = "unreachable", error.problem, error.remedy or "is it on, and is its name right?"
    elif isinstance(error, PreflightError):
        code, message, remedy = "preflight", error.missing, error.remedy
    return {"code": code, "severity": "error", "data": {"message": message, "remedy": remedy}}


def _remembered(entry: HostEntry, payload: Payload, targets: Mapping[str, Target]) -> list[dict[str, Any]]:
    """Where what deploy remembers of a board does not fit this edge-lts."""
    if entry.is_local:
        return []
    target = targets.get(entry.target or "")
    found = []
    if target is None:
        found.append({"code": "target_unknown", "severity": "warning", "data": {"target": entry.target}})
    torch = str((entry.device or {}).get("torch") or "").partition("+")[0]
    if target is not None and target.torch and torch and torch != target.torch.partition("+")[0]:
        data = {"torch": torch, "target": target.name, "wanted": target.torch}
        found.append({"code": "torch_skew", "severity": "warning", "data": data})
    if entry.agent is not None and not entry.agent.endswith(payload.name):
        found.append({"code": "agent_skew", "severity": "note", "data": {"agent": entry.agent}})
    return found


def _checked(finding: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """(code, severity, data) of a finding, whatever a board sent."""
    data = finding.get("data")
    return str(finding.get("code"))[:80], str(finding.get("severity")), dict(data) if isinstance(data, dict) else {}

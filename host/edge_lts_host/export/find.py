"""Which architecture is meant: a file, or how the arch_id of one that a run measured begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.frontier import members
from edge_lts.records import Evaluation
from edge_lts_host.errors import UsageError
from edge_lts_host.store import RunFolder

_ID = re.compile(r"[0-9a-f]{1,12}")
_SHOWN = 8


def is_arch_id(name: str) -> bool:
    """Whether `name` can be (the beginning of) an arch_id; a file of that name goes before."""
    return _ID.fullmatch(name) is not None and not Path(name).is_file()


def find_member(folder: RunFolder, prefix: str) -> tuple[Architecture, dict[str, Any]]:
    """The one architecture of the run whose arch_id begins so, members of the frontier first, and what was measured.

    The second is `run_id`, `target`, `is_member`, and of a member its `objectives` and `flags` as `report` has them.
    Imports numpy. Raises UsageError that lists who else might be meant.
    """
    spec = folder.read_spec()
    outcomes = folder.outcomes()
    found = members(outcomes, spec.resolved_objectives, spec.constraints)
    everyone = {
        outcome.architecture.arch_id: outcome.architecture for outcome in outcomes if isinstance(outcome, Evaluation)
    }
    ids = [member.arch_id for member in found if member.arch_id.startswith(prefix)]
    ids = ids or [arch_id for arch_id in everyone if arch_id.startswith(prefix)]
    if not ids:
        known = ", ".join(member.arch_id for member in found[:_SHOWN]) or "none yet"
        raise UsageError(f"{folder.run_id} measured no architecture {prefix}; its frontier begins with: {known}")
    if len(ids) > 1:
        raise UsageError(f"{prefix} may be any of {len(ids)} in {folder.run_id}: {', '.join(ids[:_SHOWN])}")
    evidence: dict[str, Any] = {"run_id": folder.run_id, "target": spec.target, "is_member": False}
    for member in found:
        if member.arch_id == ids[0]:
            data = member.to_json()
            evidence |= {"is_member": True, "objectives": data["objectives"], "flags": data["flags"]}
    return everyone[ids[0]], evidence

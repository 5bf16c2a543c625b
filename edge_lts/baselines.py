"""Architectures that a run measures beside its search, to hold its frontier against (`--baseline`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.errors import ArchitectureError, SpecError

MAX_BASELINES = 64
_FAMILY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One of them. `family` is what it was asked for as; several may share it."""

    family: str
    architecture: Architecture

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or not _FAMILY.fullmatch(self.family):
            raise SpecError(f"{self.family!r:.80} names no baseline: up to 60 of a-z, 0-9, '.', '_' and '-'")

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, data: object) -> "Baseline":
        if not isinstance(data, Mapping) or set(data) != {"family", "architecture"}:
            raise SpecError(f"a baseline must be an object with family and architecture, not {data!r:.80}")
        try:
            architecture = Architecture.from_json(data["architecture"])
        except ArchitectureError as error:
            raise SpecError(f"baseline {data['family']!r:.80}: {error}") from error
        return cls(family=data["family"], architecture=architecture)


def check_baselines(baselines: Sequence[Baseline]) -> None:
    """Raises SpecError for more than can be meant, and for one that stands there twice."""
    if len(baselines) > MAX_BASELINES:
        raise SpecError(f"{len(baselines)} baselines are more than {MAX_BASELINES}")
    ids = [one.architecture.arch_id for one in baselines]
    twice = next((arch_id for arch_id in ids if ids.count(arch_id) > 1), None)
    if twice is not None:
        raise SpecError(f"baseline {twice} stands there twice")

"""The calibrated proxy of a run, as plain data and in words: what its `quality` means, and who shares it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_lts.objectives import QUALITY
from edge_lts.preparation import load_proxy
from edge_lts.records import RunSpec
from edge_lts_host.report import render

LEGEND = (
    "quality: negative log-perplexity as the run's calibrated proxy expects it after training, nothing was trained:\n"
    "mean {low, high}, each bound with 90 %; members are compared by low. 0.01 nats are 1 % of perplexity."
)
_LONGEST_NAME = 60


def facts(spec: RunSpec) -> dict[str, Any] | None:
    """`name`, `digest` (which proxy it is), `unit` and `backbone`; None for a run without one."""
    proxy = load_proxy(spec)
    if proxy is None:
        return None
    return {"name": proxy.name, "digest": proxy.digest, "unit": proxy.unit, "backbone": proxy.backbone}


def words(found: Mapping[str, Any]) -> str:
    """Such as `16 of panel.csv (5f3a...), nats per token, gpt2`."""
    backbone = "unknown backbone" if found["backbone"] is None else render.text(found["backbone"], 40)
    unit = render.text(found["unit"], 40).replace("/", " per ")
    return f"{render.text(found['name'], _LONGEST_NAME)} ({render.text(found['digest'], 12)}), {unit}, {backbone}"


def is_shared(runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `quality` means the same in all of these runs."""
    return len({(run.get("proxy") or {}).get("digest") for run in runs}) == 1


def extrapolated(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A note like those of `health` where members lie beyond everything that the proxy was calibrated on."""
    ids = [entry["arch_id"] for entry in entries if is_extrapolated(entry["objectives"].get(QUALITY))]
    return [{"kind": "extrapolated", "members": ids}] if ids else []


def is_extrapolated(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("is_extrapolated") is True

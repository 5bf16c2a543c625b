"""What has to be settled before a run can search: the board it began on, its memory, its space, its searcher."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_lts import __version__, device
from edge_lts.errors import DiskError, LedgerError, SpecError
from edge_lts.records import METHOD_VERSION, DeviceInfo, RunSpec
from edge_lts.runfolder import DEVICE, RunFolder, to_bytes, write_atomic

if TYPE_CHECKING:
    from edge_lts.proxies.calibrated import CalibratedProxy
    from edge_lts.search import Searcher

MUST_NOT_CHANGE = ("machine", "torch", "page_size_bytes")


def check_spec(folder: RunFolder, spec: RunSpec) -> "CalibratedProxy | None":
    """The run's proxy, if any. Raises SpecError for a spec of another run or of another method of measuring."""
    if spec.run_id != folder.run_id:
        raise SpecError(f"{folder / 'spec.json'} is of run {spec.run_id}, but its folder is named {folder.run_id}")
    if spec.protocol.method_version != METHOD_VERSION:
        raise SpecError(
            f"the run measures by method {spec.protocol.method_version}, this agent by {METHOD_VERSION}: "
            "use the edge-lts that began it, or begin a new run"
        )
    return load_proxy(spec)


def load_proxy(spec: RunSpec) -> "CalibratedProxy | None":
    """The run's calibrated proxy, None where it has none. Raises SpecError for one that cannot judge its space."""
    if spec.proxy is None:
        return None
    with single_threaded_numpy():
        from edge_lts.proxies.calibrated import CalibratedProxy
    proxy, backbone = CalibratedProxy.from_json(spec.proxy), spec.space.get("backbone")
    if proxy.backbone not in (None, backbone):
        raise SpecError(
            f"the proxy was calibrated on models of backbone {proxy.backbone}, the space builds {backbone}: take a "
            "space of that backbone, or calibrate on labels of this one"
        )
    return proxy


def describe_device(
    folder: RunFolder,
    spec: RunSpec,
    probe: Callable[..., DeviceInfo] = device.probe,
    facts: Mapping[str, Any] | None = None,
) -> DeviceInfo:
    """device.json as the first start wrote it, or now if this is the first start; `facts` go into its `extra`.

    `extra["memory_limit_bytes"]` is what a candidate may take: free memory at the first start less the headroom. It
    decides what the space holds, so a resume must find the same number. Raises LedgerError where the board now
    measures differently than it did.
    """
    now = probe(is_emulated=spec.is_emulated or None)
    before = folder.read_device()
    if before is not None:
        for name in MUST_NOT_CHANGE:
            if getattr(before, name) != getattr(now, name):
                raise LedgerError(
                    f"{folder / DEVICE}: the run began with {name} {getattr(before, name)}, here it is "
                    f"{getattr(now, name)}; the numbers of the two cannot be compared: begin a new run"
                )
        return before
    available = now.memory_available_bytes
    limit = None if available is None else int(available * (1 - spec.memory_headroom))
    return add_facts(folder, now, memory_limit_bytes=limit, agent_version=__version__, **(facts or {}))


def add_facts(folder: RunFolder, info: DeviceInfo, **facts: Any) -> DeviceInfo:
    """Write device.json with more in its `extra`."""
    info = dataclasses.replace(info, extra={**info.extra, **facts})
    try:
        write_atomic(folder / DEVICE, to_bytes(info.to_json()), is_durable=True)
    except OSError as exc:
        raise DiskError(f"cannot write {folder / DEVICE}: {exc.strerror or exc}; free some space") from exc
    return info


def check_meter(spec: RunSpec, system_root: Path = device.SYSTEM) -> None:
    """Raises SpecError, with the remedy, for a meter that is not there, and where energy is searched without one."""
    is_searched = "energy_j_per_token" in spec.objectives
    if spec.meter == "external" or (spec.meter in ("auto", "none") and not is_searched):
        return
    from edge_lts.energy import find_meter

    if find_meter(spec.meter, system_root) is None and is_searched:
        raise SpecError(
            "energy_j_per_token is an objective, and nothing here measures energy: name a meter with --meter, or "
            "search without it (edge-lts doctor says what was looked for)"
        )


def memory_limit_now(spec: RunSpec, limit_bytes: int | None) -> int | None:
    """The limit for candidates from here on: the run's own, or less where less memory is free today."""
    available = device.memory_available_bytes()
    if limit_bytes is None or available is None:
        return limit_bytes
    return min(limit_bytes, int(available * (1 - spec.memory_headroom)))


def make_searcher(
    spec: RunSpec, memory_limit_bytes: int | None, last_level_cache_bytes: int | None = None
) -> "Searcher":
    """The run's searcher in its first state, over the part of the space whose weights fit the memory.

    Guided search is told the board's last-level cache, unless the run's settings say something else.

    Raises SpaceError naming the rule (`memory` when nothing fits) and SpecError for an unknown strategy or setting.
    """
    with single_threaded_numpy():
        from edge_lts.search import make_searcher as make
        from edge_lts.space import SearchSpace
    space = SearchSpace.from_json(spec.space)
    if memory_limit_bytes is not None:
        space = space.restricted(max_weight_bytes=memory_limit_bytes, precision=spec.protocol.precision)
    settings = dict(spec.settings)
    if spec.strategy == "guided" and last_level_cache_bytes is not None:
        settings.setdefault("cache_bytes", last_level_cache_bytes)
    objectives, proxy = spec.resolved_objectives, load_proxy(spec)
    return make(spec.strategy, space, objectives, spec.seed, settings, spec.constraints, spec.protocol, proxy)


@contextlib.contextmanager
def single_threaded_numpy() -> Iterator[None]:
    """Keep OpenBLAS from starting threads and buffers in the supervisor, without telling the measuring server so.

    OpenBLAS reads the variable once, while numpy is loaded; left in place it would cap torch's own OpenBLAS.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401  (loaded for its effect)

        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

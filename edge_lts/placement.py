"""Which cores the measuring processes may use, and how many threads they start.

On a board with several kinds of cores, work that is split evenly waits for the slowest of them, so the measurements are
kept on the fastest kind. Cores are compared by what the scheduler itself uses, `cpu_capacity`; where that says nothing,
by kind (an in-order core is slower than any other of its chip, whatever its clock: an Odroid-N2's A53 runs at 1.9 GHz
beside A73 at 1.8) and then by `cpuinfo_max_freq`.

`sweep` finds out how many threads decode fastest. Every count gets a server of its own: torch's Arm Compute Library
keeps the OMP_NUM_THREADS of its start and is deaf to `torch.set_num_threads` (torch 2.9.1, aarch64).

Sources: Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/scheduler/sched-capacity.rst,
Documentation/arch/arm64/cpu-feature-registers.rst (midr_el1).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.device import ARM_PARTS, SYSTEM, children, cpu_count, read_integer, read_processors, read_text
from edge_lts.errors import Interrupted
from edge_lts.records import Evaluation, Outcome, Protocol, Purpose, central

# 3.1 million decoder parameters behind the usual vocabulary: small enough for any board, large enough to be split.
REFERENCE = Architecture(backbone="gpt2", d_model=256, layers=(LayerSpec(d_inner=1024, n_head=4),) * 4)
TOLERANCE = 0.05
_SWEEP: dict[str, Any] = {"prompt_tokens": 16, "prefill_samples": 2, "decode_samples": 12, "max_retries": 6}
_SWEEP_CONTEXT_TOKENS = 128
_N_PASSES = 2
_SAME_SPEED = 0.9  # cores of one kind, of which each chip has its own best clock
_IN_ORDER = ("Cortex-A35", "Cortex-A53", "Cortex-A55", "Cortex-A510", "Cortex-A520")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Cores of one kind and nearly one speed. None: the kernel does not say."""

    cpus: tuple[int, ...]
    core: str | None
    capacity: int | None
    max_frequency_hz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`policy`: `all-cores` (there is one kind, nothing is pinned), `fastest-cluster`, or `more-than-fastest` when more
    threads were asked for than the fastest cluster has cores. `n_clusters` is how many the machine has."""

    cpus: tuple[int, ...]
    threads: int
    n_clusters: int
    policy: str

    def to_json(self) -> dict[str, Any]:
        return {"cpus": list(self.cpus), "policy": self.policy, "n_clusters": self.n_clusters, "threads": self.threads}


class MeasurerLike(Interface):
    """What `sweep` needs: measuring by another protocol, with a server made for its thread count."""

    def measure(
        self, candidate_id: int, architecture: Architecture, purpose: Purpose = ..., *, protocol: Protocol | None = ...
    ) -> Outcome: ...


def clusters(root: Path = SYSTEM) -> tuple[Cluster, ...]:
    """The cores that this process may use, by kind, the fastest first."""
    cpus = usable_cpus()
    kinds, frequencies = _kinds(root, cpus), _max_frequencies_hz(root)
    capacities = {cpu: read_integer(_folder(root, cpu) / "cpu_capacity") for cpu in cpus}
    # One capacity for all is also what a kernel says that was told nothing about its cores.
    says_capacity = None not in capacities.values() and len(set(capacities.values())) > 1

    def speed(cpu: int) -> tuple[bool, int]:
        if says_capacity:
            return True, capacities[cpu] or 0
        return kinds[cpu] not in _IN_ORDER, frequencies.get(cpu, 0)

    groups: list[list[int]] = []
    for cpu in sorted(cpus, key=lambda cpu: (speed(cpu), -cpu), reverse=True):
        for group in groups:
            if kinds[group[0]] == kinds[cpu] and speed(cpu)[1] >= _SAME_SPEED * speed(group[0])[1]:
                group.append(cpu)
                break
        else:
            groups.append([cpu])
    return tuple(
        Cluster(
            cpus=tuple(sorted(group)),
            core=kinds[group[0]],
            capacity=capacities[group[0]],
            max_frequency_hz=frequencies.get(group[0]),
        )
        for group in groups
    )


def place(threads_wanted: int = 0, root: Path = SYSTEM) -> Placement:
    """Where to measure with so many threads; 0: as many as the fastest cluster has cores and the CPU quota allows.

    Never more threads than cores. Ask before `apply`: afterwards the cores left are all there is.
    """
    found = clusters(root)
    cpus: list[int] = []
    n_taken = 0
    while n_taken == 0 or (len(cpus) < threads_wanted and n_taken < len(found)):
        cpus += found[n_taken].cpus
        n_taken += 1
    policy = "all-cores" if len(found) == 1 else "fastest-cluster" if n_taken == 1 else "more-than-fastest"
    threads = min(threads_wanted or cpu_count(root), len(cpus))
    return Placement(cpus=tuple(sorted(cpus)), threads=threads, n_clusters=len(found), policy=policy)


def apply(placement: Placement) -> bool:
    """Keep this thread and every process that it starts from now on on these cores; False where that is refused."""
    try:
        if os.sched_getaffinity(0) != set(placement.cpus):
            os.sched_setaffinity(0, placement.cpus)
    except (AttributeError, OSError):  # no such call here; cores that went offline
        return False
    return True


def usable_cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def thread_counts(n_max: int) -> tuple[int, ...]:
    """Which counts are worth a try: all up to 8, beyond it powers of two, half of them, and all of them."""
    if n_max <= 8:
        return tuple(range(1, n_max + 1))
    return tuple(sorted({1 << i for i in range(n_max.bit_length())} | {n_max // 2, n_max}))


def choose_threads(decode_s: Mapping[int, float]) -> int:
    """The largest count that no smaller one beats by more than 5 %: prefill gains from threads that decode ignores.

    Raises ValueError without a single time.
    """
    if not decode_s:
        raise ValueError("there is nothing to choose from")
    return max(
        threads
        for threads, seconds in decode_s.items()
        if all(seconds <= (1 + TOLERANCE) * other for fewer, other in decode_s.items() if fewer < threads)
    )


def sweep(
    measurer: MeasurerLike, protocol: Protocol, n_max: int, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Decode the reference with each count: {"threads": the best, "decode_s": {"1": s, ...}}, JSON.

    A count that fails is left out; if all do, `threads` is `n_max`. Raises Interrupted when `should_stop` says so, and
    what the measurer raises.
    """
    context_tokens = min(protocol.context_tokens, _SWEEP_CONTEXT_TOKENS)
    quick = replace(protocol, context_tokens=context_tokens, **_SWEEP)
    decode_s: dict[int, float] = {}
    for threads in thread_counts(n_max):
        for _ in range(_N_PASSES):
            if should_stop():
                raise Interrupted("the thread sweep was stopped")
            outcome = measurer.measure(0, REFERENCE, "search", protocol=replace(quick, threads=threads))
            value = outcome.objectives.get("decode_latency_s") if isinstance(outcome, Evaluation) else None
            seconds = central(value)
            if seconds is not None:
                decode_s[threads] = min(seconds, decode_s.get(threads, seconds))
    chosen = choose_threads(decode_s) if decode_s else n_max
    return {"threads": chosen, "decode_s": {str(threads): seconds for threads, seconds in decode_s.items()}}


def _folder(root: Path, cpu: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{cpu}"


def _max_frequencies_hz(root: Path) -> dict[int, int]:
    found = {}
    for policy in children(root / "sys/devices/system/cpu/cpufreq", "policy"):
        frequency_khz = read_integer(policy / "cpuinfo_max_freq")
        for cpu in (read_text(policy / "related_cpus") or "").split():
            if frequency_khz and cpu.isdigit():
                found[int(cpu)] = frequency_khz * 1000
    return found


def _kinds(root: Path, cpus: tuple[int, ...]) -> dict[int, str | None]:
    """`Cortex-A76` from each core's own register, or else from /proc/cpuinfo, which some containers renumber."""
    listed = {entry["processor"]: entry for entry in read_processors(root)}
    found: dict[int, str | None] = {}
    for cpu in cpus:
        try:
            midr = int(read_text(_folder(root, cpu) / "regs/identification/midr_el1") or "", 16)
            implementer, part = f"{midr >> 24 & 0xFF:#04x}", f"{midr >> 4 & 0xFFF:#05x}"
        except ValueError:
            entry = listed.get(str(cpu), {})
            implementer, part = entry.get("cpu implementer", ""), entry.get("cpu part", "").lower()
        name = ARM_PARTS.get(part) if implementer == "0x41" else None
        found[cpu] = name or (f"{implementer}/{part}" if part else None)
    return found

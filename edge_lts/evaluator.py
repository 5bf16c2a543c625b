"""One architecture to one Evaluation, in this very process: build, fill, run, read the watermark.

Meant for the child of the fork server (`edge_lts.profile.server`), which has computed nothing before and ends
afterwards; called twice in one process, the second memory value is worthless, since the heap is warm. The order is

    threads -> anchor -> memory baseline and limit -> load -> watermark (loading)
    -> KV cache, one prefill, one token -> watermark (running) -> warm-ups, then rounds of samples and anchor
    -> dispatching -> energy

The anchor (`edge_lts.profile.anchor`) goes through the same operators, so that what a process pays once (thread stacks,
code pages read from disk, the matrix library's smallest buffers) lies in the baseline and not in the candidate's
account. Buffers that the matrix library makes for this candidate's shapes are the candidate's.
"""

import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import torch

from edge_lts import stats
from edge_lts.arch import Architecture
from edge_lts.device import cpu_count, cpu_features
from edge_lts.energy import find_meter
from edge_lts.errors import EdgeLtsError, EvaluationError
from edge_lts.footprint import cache_tokens, precision_of, predicted_bytes
from edge_lts.health import Sensors
from edge_lts.model import Cache, Model, build_model
from edge_lts.precision import is_emulated_precision
from edge_lts.profile.anchor import Anchor
from edge_lts.profile.energy import measure_energy
from edge_lts.profile.framework import BOUND_SHARE, framework_json
from edge_lts.profile.latency import (
    Timer,
    make_timers,
    resting_garbage_collector,
    shallow_tokens,
    take_samples,
    take_shallow_samples,
)
from edge_lts.profile.memory import MemoryMeter, require_available, run_twice, set_malloc
from edge_lts.profile.weights import fill_tensors, fill_weights
from edge_lts.quality import Gate
from edge_lts.records import METHOD_VERSION, Evaluation, Measurement, Protocol, Purpose, Value

# torch has one exception for a failed allocation on a GPU and none on a CPU: only the text tells.
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")


def evaluate(
    arch: Architecture,
    protocol: Protocol,
    *,
    candidate_id: int = 0,
    purpose: Purpose = "search",
    memory_limit_bytes: int | None = None,
    memory_headroom: float = 0.0,
    is_emulated: bool = False,
    meter: str = "none",
    system_root: Path = Path("/"),
) -> Evaluation:
    """Measure `arch` as `protocol` says. `threads` 0 means all cores that this process may use.

    `memory_limit_bytes` bounds what the candidate may add to the process, `memory_headroom` is the share of the memory
    available now that it must leave. `meter` (edge_lts.energy) makes it take the energy of a token too, which takes
    some 20 s. Sensors are read below `system_root`. Raises EvaluationError with its kind: oom, nonfinite, or
    unsupported for what this model, these positions or this precision cannot do.
    """
    started = time.perf_counter()
    _check_positions(arch, protocol)
    threads = protocol.threads or cpu_count()
    torch.set_num_threads(threads)
    set_malloc(keeps_freed=False)  # before the warm-up, which otherwise leaves free blocks behind that get reused
    with torch.inference_mode():
        gate = Gate(protocol, threads, Sensors(system_root))
        anchor = Anchor(arch, protocol)
        warm = time.perf_counter()
        memory = MemoryMeter()
        require_available(predicted_bytes(arch, protocol), memory_headroom)
        hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        if memory_limit_bytes is not None and memory.data_bytes is not None:
            _set_soft_limit(memory.data_bytes + memory_limit_bytes, hard_limit[1])
        try:
            subject = _Subject(arch, protocol, threads, memory)
            loaded = time.perf_counter()
            evaluation = subject.time(gate, anchor, is_emulated=is_emulated)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                limit = "" if memory_limit_bytes is None else f" (limit {memory_limit_bytes} bytes)"
                raise EvaluationError("oom", f"out of memory{limit}: {_first_line(error)}") from error
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, hard_limit)
        gate.clocks.close()
        subject.look_closer(evaluation, meter, system_root, stream_s=anchor.medians_s().get("stream_s"))
    seconds = {
        "forward_s": subject.forward_s,
        "process_warmup_s": warm - started,
        "load_s": loaded - warm,
        "child_s": time.perf_counter() - started,
    }
    return dataclasses.replace(
        evaluation,
        candidate_id=candidate_id,
        purpose=purpose,
        conditions={**evaluation.conditions, **seconds},
        flags=(*evaluation.flags, *_notes(arch, protocol, evaluation.conditions)),
    )


class _Subject:
    """One candidate, built and filled: what is measured of it, in the order in which that must happen."""

    def __init__(self, arch: Architecture, protocol: Protocol, threads: int, memory: MemoryMeter) -> None:
        self._arch, self._protocol, self._threads, self._memory = arch, protocol, threads, memory
        self._precision = precision_of(arch, protocol)
        self._model: Model = build_model(arch, self._precision)
        self._weights_bytes = fill_weights(self._model)
        memory.end_loading()
        self._cache: Cache = self._model.new_cache(capacity=cache_tokens(arch, protocol))
        fill_tensors(self._cache.tensors())
        self._timers: list[Timer] = []

    @property
    def forward_s(self) -> float:
        """Seconds in forward passes so far."""
        return sum(timer.forward_ns for timer in self._timers) * 1e-9

    def time(self, gate: Gate, anchor: Anchor, *, is_emulated: bool) -> Evaluation:
        """Memory and latencies, with the record's conditions as far as they are known then."""
        protocol, memory = self._protocol, self._memory
        self._timers += make_timers(self._model, self._cache, protocol)
        prefill, decode, shallow = self._timers
        run_twice(prefill, decode)
        memory.end_running()
        clocks = _Clocks()
        take_samples(prefill, decode, protocol, between=anchor.sample, gate=gate)
        take_shallow_samples(shallow, protocol, gate)
        gate.settle()
        memory.end_timing()
        peak = memory.running_peak_bytes
        timed = {"decode_latency_s": decode, "prefill_latency_s": prefill}
        samples = {name: timer.samples_s for name, timer in timed.items()}
        caps = {"decode_latency_s": protocol.decode_samples, "prefill_latency_s": protocol.prefill_samples}
        verdicts = {name: timer.judge(caps[name]) for name, timer in timed.items()}
        objectives: dict[str, Value] = {
            "decoder_params": self._arch.decoder_params,
            **{name: stats.summarise(timer.kept_samples()) for name, timer in timed.items()},
            "peak_memory_bytes": None if peak is None else Measurement(median=peak, n=1),
        }
        conditions: dict[str, Any] = {
            "threads": self._threads,
            "torch": str(torch.__version__),
            "method_version": METHOD_VERSION,
            "precision": self._precision,
            **clocks.since(),
            "quality": gate.summary(verdicts),
            "health": gate.health(),
            "block_sizes": {"decode": decode.repeats, "prefill": prefill.repeats},
            "n_forwards": {"decode": decode.n_forwards, "prefill": prefill.n_forwards},
            "anchor_s": anchor.medians_s(),
            "shallow_decode": {
                "context_tokens": shallow_tokens(protocol),
                "median_s": stats.median(shallow.kept_samples()),
            },
            "memory": {
                **memory.to_json(),
                "weights_bytes": self._weights_bytes,
                "cache_bytes": self._cache.n_bytes,
                "predicted_bytes": predicted_bytes(self._arch, protocol),
                "precision": self._precision,
                "is_emulator_counted": is_emulated,
            },
        }
        return Evaluation(
            candidate_id=0,
            architecture=self._arch,
            objectives=objectives,
            samples=samples,
            conditions=conditions,
            flags=gate.flags(verdicts, samples, swapped=memory.swapped_bytes > 0),
        )

    def look_closer(self, evaluation: Evaluation, meter: str, system_root: Path, *, stream_s: float | None) -> None:
        """What comes behind the watermark and the samples: dispatching and energy. Adds to the record."""
        conditions, objectives = evaluation.conditions, evaluation.objectives
        decode = objectives["decode_latency_s"]
        assert isinstance(decode, Measurement)
        conditions["framework"] = framework_json(
            self._arch, self._protocol, self._precision, decode_s=decode.median, stream_s=stream_s
        )
        if meter != "none":
            value, about = self._energy(meter, system_root)
            objectives["energy_j_per_token"] = value
            if about is not None:
                conditions["energy"] = about

    def _energy(self, meter: str, system_root: Path) -> tuple[Measurement | None, dict[str, Any] | None]:
        """(None, None) where `auto` finds no meter."""
        try:
            found = None if meter == "external" else find_meter(meter, system_root)
        except EdgeLtsError as error:
            return None, {"meter": meter, "error": str(error)}
        if found is None and meter != "external":
            return None, None
        decode = make_timers(self._model, self._cache, self._protocol)[1]
        self._timers.append(decode)
        decode.warm_up(1, 0.0)
        with resting_garbage_collector():
            return measure_energy(lambda: decode.run(1), found)


def _notes(arch: Architecture, protocol: Protocol, conditions: dict[str, Any]) -> tuple[str, ...]:
    """Flags that are no taints: true of the candidate here, whoever measures."""
    notes = []
    if conditions["framework"]["dispatch_share"] > BOUND_SHARE:
        notes.append("framework_bound")
    if is_emulated_precision(precision_of(arch, protocol), cpu_features()):
        notes.append("emulated_precision")
    return tuple(notes)


def _check_positions(arch: Architecture, protocol: Protocol) -> None:
    if arch.position == "relative":
        return  # none is too many
    for name, needed in (("prompt_tokens", protocol.prompt_tokens), ("context_tokens", protocol.context_tokens + 1)):
        if needed > arch.max_seq_len:
            raise EvaluationError(
                "unsupported",
                f"{name} {getattr(protocol, name)} needs {needed} positions; max_seq_len is {arch.max_seq_len}",
            )


def _set_soft_limit(limit_bytes: int, hard_limit: int) -> None:
    """Bound private writable memory. Not RLIMIT_AS: torch maps far more than it ever touches."""
    if hard_limit != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard_limit))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Clocks:
    """Wall and CPU time of this process from here on."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def since(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall_s, "cpu_s": time.process_time() - self._cpu_s}

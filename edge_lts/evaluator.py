"""One architecture to one Evaluation, in this very process: build, fill, run, read the watermark.

Meant for the child of the fork server (`edge_lts.profile.server`), which has computed nothing before and ends
afterwards; called twice in one process, the second memory value is worthless, since the heap is warm. The order is

    threads -> anchor -> memory baseline and limit -> load -> watermark (loading)
    -> KV cache, one prefill, one token -> watermark (running) -> warm-ups, then rounds of samples and anchor

The anchor (`edge_lts.profile.anchor`) goes through the same operators, so that what a process pays once (thread stacks,
code pages read from disk, the matrix library's smallest buffers) lies in the baseline and not in the candidate's
account. Buffers that the matrix library makes for this candidate's shapes are the candidate's.
"""

import os
import resource
import time
from typing import Any

import torch

from edge_lts import stats
from edge_lts.arch import Architecture
from edge_lts.device import cpu_count
from edge_lts.errors import EvaluationError
from edge_lts.footprint import cache_tokens
from edge_lts.model import build_model
from edge_lts.profile.anchor import Anchor
from edge_lts.profile.latency import Timer, make_timers, shallow_tokens, take_samples, take_shallow_samples
from edge_lts.profile.memory import MemoryMeter, set_malloc
from edge_lts.profile.weights import fill_tensors, fill_weights
from edge_lts.records import METHOD_VERSION, Evaluation, Measurement, Protocol, Purpose, Value

NOISY_RELATIVE_MAD = 0.10
CONTENDED_SHARE = 0.10
# torch has one exception for a failed allocation on a GPU and none on a CPU: only the text tells.
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")


def evaluate(
    arch: Architecture,
    protocol: Protocol,
    *,
    candidate_id: int = 0,
    purpose: Purpose = "search",
    memory_limit_bytes: int | None = None,
    is_emulated: bool = False,
) -> Evaluation:
    """Measure `arch` as `protocol` says. `threads` 0 means all cores that this process may use.

    `memory_limit_bytes` bounds what the candidate may add to the process. Raises EvaluationError with its kind: oom,
    nonfinite, or unsupported for what this model or these positions cannot do.
    """
    started = time.perf_counter()
    _check_positions(arch, protocol)
    threads = protocol.threads or cpu_count()
    torch.set_num_threads(threads)
    set_malloc(keeps_freed=False)  # before the warm-up, which otherwise leaves free blocks behind that get reused
    with torch.inference_mode():
        anchor = Anchor(arch, protocol)
        warm = time.perf_counter()
        meter = MemoryMeter()
        hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        if memory_limit_bytes is not None and meter.data_bytes is not None:
            _set_soft_limit(meter.data_bytes + memory_limit_bytes, hard_limit[1])
        try:
            return _measure(
                arch, protocol, candidate_id, purpose, meter, threads, is_emulated, anchor, started=started, warm=warm
            )
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                limit = "" if memory_limit_bytes is None else f" (limit {memory_limit_bytes} bytes)"
                raise EvaluationError("oom", f"out of memory{limit}: {_first_line(error)}") from error
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, hard_limit)


def _measure(
    arch: Architecture,
    protocol: Protocol,
    candidate_id: int,
    purpose: Purpose,
    meter: MemoryMeter,
    threads: int,
    is_emulated: bool,
    anchor: Anchor,
    *,
    started: float,
    warm: float,
) -> Evaluation:
    model = build_model(arch)
    weights_bytes = fill_weights(model)
    meter.end_loading()
    loaded = time.perf_counter()
    cache = model.new_cache(capacity=cache_tokens(arch, protocol))
    fill_tensors(cache.tensors())
    load_before, clocks_before = os.getloadavg(), _Clocks()
    prefill, decode, shallow = make_timers(model, cache, protocol)
    prefill.check()
    decode.check()
    meter.end_running()
    take_samples(prefill, decode, protocol, between=anchor.sample)
    take_shallow_samples(shallow, protocol)
    meter.end_timing()
    clocks, load_after = _Clocks().since(clocks_before), os.getloadavg()

    samples = {"decode_latency_s": decode.samples_s, "prefill_latency_s": prefill.samples_s}
    timings = {name: stats.summarise(values) for name, values in samples.items()}
    peak = meter.running_peak_bytes
    objectives: dict[str, Value] = {
        "decoder_params": arch.decoder_params,
        **timings,
        "peak_memory_bytes": None if peak is None else Measurement(median=peak, n=1),
    }
    memory = {
        **meter.to_json(),
        "weights_bytes": weights_bytes,
        "cache_bytes": cache.n_bytes,
        "is_emulator_counted": is_emulated,
    }
    conditions: dict[str, Any] = {
        "threads": threads,
        "torch": str(torch.__version__),
        "method_version": METHOD_VERSION,
        "load_before": load_before[0],
        "load_after": load_after[0],
        **clocks,
        "block_sizes": {"decode": decode.repeats, "prefill": prefill.repeats},
        "n_forwards": {"decode": decode.n_forwards, "prefill": prefill.n_forwards},
        "anchor_s": anchor.medians_s(),
        "shallow_decode": {"context_tokens": shallow_tokens(protocol), "median_s": stats.median(shallow.samples_s)},
        "forward_s": _seconds_in(decode, prefill, shallow),
        "process_warmup_s": warm - started,
        "load_s": loaded - warm,
        "child_s": time.perf_counter() - started,
        "memory": memory,
    }
    return Evaluation(
        candidate_id=candidate_id,
        architecture=arch,
        objectives=objectives,
        samples=samples,
        conditions=conditions,
        flags=_taints(timings, conditions, meter),
        purpose=purpose,
    )


def _check_positions(arch: Architecture, protocol: Protocol) -> None:
    if not arch.parameter_count.position:
        return  # relative positions: none is too many
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


def _seconds_in(*timers: Timer) -> float:
    return sum(timer.forward_ns for timer in timers) * 1e-9


class _Clocks:
    """What the scheduler did to this process: CPU time, wall time, time spent ready but not running, preemptions."""

    def __init__(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.wall_s = time.perf_counter()
        self.cpu_s = time.process_time()
        self.involuntary_switches = usage.ru_nivcsw
        self.run_delay_s = _run_delay_s()

    def since(self, before: "_Clocks") -> dict[str, float | int | None]:
        has_delay = self.run_delay_s is not None and before.run_delay_s is not None
        return {
            "wall_s": self.wall_s - before.wall_s,
            "cpu_s": self.cpu_s - before.cpu_s,
            "involuntary_switches": self.involuntary_switches - before.involuntary_switches,
            "run_delay_s": (self.run_delay_s or 0.0) - (before.run_delay_s or 0.0) if has_delay else None,
        }


def _run_delay_s() -> float | None:
    """Seconds that this process's threads waited for a core (second field of schedstat); None where not kept."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/schedstat", "rb") as schedstat:
                total += int(schedstat.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total * 1e-9


def _taints(timings: dict[str, Measurement], conditions: dict[str, Any], meter: MemoryMeter) -> tuple[str, ...]:
    """Reasons for doubt that this process can see itself: `noisy`, `contended`, `swapped`."""
    flags = []
    if any(value.mad is not None and value.mad > NOISY_RELATIVE_MAD * value.median for value in timings.values()):
        flags.append("noisy")
    delay, wall = conditions["run_delay_s"], conditions["wall_s"]
    if delay is not None and delay > CONTENDED_SHARE * wall * conditions["threads"]:
        flags.append("contended")
    if meter.swapped_bytes > 0:
        flags.append("swapped")
    return tuple(flags)

"""One measurement in a forked child that its parent may disturb. Shared by the benchmarks of the quality gate.

The parent has imported torch and never runs an operator, as the fork server does. `Trial` starts the child, tells when
it has warmed up and each time it is between prefills and decodes, and collects samples and verdicts as JSON.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from edge_lts import stats
from edge_lts.arch import Architecture
from edge_lts.footprint import cache_tokens
from edge_lts.health import Sensors
from edge_lts.model import build_model
from edge_lts.profile import latency, weights
from edge_lts.quality import Gate
from edge_lts.records import Protocol

NAMES = ("prefill_latency_s", "decode_latency_s")


class Trial:
    """A child that measures `arch`; a context manager that leaves no process behind.

    `slowdown` is a shared byte: while it is set, every forward is followed by as many per cent of its time in busy
    waiting, which is what a lower clock looks like to all other clocks. `sensors_root` is where the sensors' files are.
    """

    def __init__(
        self,
        arch: Architecture,
        protocol: Protocol,
        *,
        has_gate: bool = True,
        slowdown: mmap.mmap | None = None,
        sensors_root: Path | None = None,
        job: Callable[[Trial], dict[str, Any]] | None = None,
    ) -> None:
        self.arch, self.protocol, self.has_gate = arch, protocol, has_gate
        self.slowdown, self.sensors_root = slowdown, sensors_root
        self._job = job or Trial.measure
        read_fd, self._write_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read_fd)
            self._become_child()
        os.close(self._write_fd)
        self._read_fd, self._rest, self.result = read_fd, b"", None

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so still this child's number
        os.waitpid(self.pid, 0)
        os.close(self._read_fd)

    def wait(self, timeout_s: float | None = None) -> str | None:
        """The next event: `begun`, `between` or `done`; None at the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read_fd], [], [], left)[0]:
                return None
            chunk = os.read(self._read_fd, 1 << 16)
            if not chunk:
                raise RuntimeError("a trial ended without a result")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        if not line.startswith(b"{"):
            return line.decode()
        self.result = json.loads(line)
        return "done"

    def finish(self) -> dict[str, Any]:
        while self.wait() != "done":
            pass
        assert self.result is not None
        return self.result

    def tell(self, event: str) -> None:
        os.write(self._write_fd, event.encode() + b"\n")

    def timers(self) -> tuple[latency.Timer, latency.Timer, latency.Timer]:
        model = build_model(self.arch)
        weights.fill_weights(model)
        cache = model.new_cache(capacity=cache_tokens(self.arch, self.protocol))
        weights.fill_tensors(cache.tensors())
        made = latency.make_timers(model, cache, self.protocol)
        for timer in made[:2]:
            timer.check()
            if self.slowdown is not None:
                timer.step = _slowed(timer.step, self.slowdown)
        return made

    def gate(self) -> Gate:
        sensors = Sensors() if self.sensors_root is None else Sensors(self.sensors_root)
        return Gate(self.protocol, self.protocol.threads, sensors)

    def measure(self) -> dict[str, Any]:
        gate = self.gate() if self.has_gate else None
        prefill, decode, _ = self.timers()
        self.tell("begun")
        started = time.perf_counter()
        latency.take_samples(prefill, decode, self.protocol, lambda: self.tell("between"), gate)
        wall_s = time.perf_counter() - started
        timers = dict(zip(NAMES, (prefill, decode), strict=True))
        samples = {name: timer.samples_s for name, timer in timers.items()}
        result: dict[str, Any] = {
            "all_s": {name: stats.median(values) for name, values in samples.items()},
            "kept_s": {name: stats.median(timer.kept_samples()) for name, timer in timers.items()},
            "n": {name: len(values) for name, values in samples.items()},
            "n_kept": {name: len(timer.kept_samples()) for name, timer in timers.items()},
            "cpu_s": time.process_time(),  # of the whole child: building, warm-ups, samples
            "wall_s": wall_s,
        }
        if gate is not None:
            verdicts = {name: timer.verdict for name, timer in timers.items() if timer.verdict is not None}
            quality = gate.summary(verdicts)
            del quality["tainted_samples"]
            result |= {"flags": list(gate.flags(verdicts, samples, swapped=False)), "quality": quality}
        return result

    def _become_child(self) -> None:
        try:
            torch.set_num_threads(self.protocol.threads)
            with torch.inference_mode():
                result = self._job(self)
            self.tell(json.dumps(result))
            os._exit(0)
        except BaseException:  # noqa: BLE001  nothing may escape into the parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)


def _slowed(step: Callable[[], Any], slowdown: mmap.mmap) -> Callable[[], Any]:
    def slower() -> Any:
        started = time.perf_counter()
        result = step()
        percent = slowdown[0]
        if percent:
            until = started + (time.perf_counter() - started) * (1 + percent / 100)
            while time.perf_counter() < until:
                pass
        return result

    return slower


def lower_bound(n_hits: int, n: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson: the share of hits below which so many are less likely than 1 - `confidence`; one-sided."""
    if not n_hits:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = math.fsum(math.comb(n, k) * middle**k * (1 - middle) ** (n - k) for k in range(n_hits, n + 1))
        low, high = (middle, high) if tail < 1 - confidence else (low, middle)
    return low


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    low, high = stats.ci95_of_median(values) or (math.nan, math.nan)
    return stats.median(values), low, high

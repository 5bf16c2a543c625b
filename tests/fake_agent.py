"""A board without a board: a clock that moves only when something is measured, and a measurer that makes up numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from edge_lts.agent import Supervisor
from edge_lts.arch import Architecture
from edge_lts.errors import Interrupted
from edge_lts.objectives import Constraint
from edge_lts.records import DeviceInfo, Evaluation, Failure, Measurement, Outcome, Protocol, Purpose, RunSpec
from edge_lts.runfolder import RunFolder, to_bytes
from edge_lts.stats import summarise

SPACE: dict[str, Any] = {
    "name": "tiny",
    "backbone": "gpt2",
    "genes": {"n_layer": [1, 2, 3], "d_model": [32, 48, 64], "d_inner": [64, 128], "n_head": [1, 2]},
    "fixed": {"vocab_size": 256, "max_seq_len": 512},
}
MEMORY_BYTES = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def noise(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone, whatever the hash seed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


class FakeMeasurer:
    """Measures in `duration_s` of the fake clock; `before` may change the outcome, raise, or press Ctrl-C."""

    def __init__(self, clock: Clock, *, duration_s: float = 10.0, start_s: float = 5.0) -> None:
        self.clock = clock
        self.duration_s = duration_s
        self.start_s = start_s
        self.measured: list[tuple[str, str]] = []
        self.threads: list[int | None] = []
        self.is_cancelled = self.is_closed = False
        self.memory_limit_bytes: int | None = None
        self.before: Callable[[FakeMeasurer, Architecture, int], Outcome | None] = lambda *_: None

    def make(self, spec: RunSpec, memory_limit_bytes: int | None, log: IO[bytes]) -> FakeMeasurer:
        self.memory_limit_bytes = memory_limit_bytes
        log.write(b"made\n")
        return self

    def start(self) -> dict[str, Any]:
        self.clock.now_s += self.start_s
        return {"torch": "9.9", "import_s": self.start_s}

    def measure(
        self,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose = "search",
        protocol: Protocol | None = None,
    ) -> Outcome:
        special = self.before(self, architecture, candidate_id)
        if self.is_cancelled:
            raise Interrupted("cancelled")
        self.clock.now_s += self.duration_s
        own = architecture.arch_id
        self.measured.append((own, purpose))
        self.threads.append(None if protocol is None else protocol.threads)
        if special is not None:
            return special
        process = sum(arch_id == own for arch_id, _ in self.measured)
        return evaluation(architecture, candidate_id=candidate_id, process=process)

    def cancel(self) -> None:
        self.is_cancelled = True

    def close(self) -> None:
        self.is_closed = True


def evaluation(
    arch: Architecture, *, candidate_id: int = 0, process: int = 1, purpose: Purpose = "search"
) -> Evaluation:
    own = arch.arch_id
    latency_s = 1e-9 * arch.total_params * (1 + 0.3 * noise(own)) * (1 + 0.01 * noise(own, process))
    samples = [latency_s * (1 + 0.001 * noise(own, process, index)) for index in range(8)]
    return Evaluation(
        candidate_id=candidate_id,
        architecture=arch,
        objectives={
            "decoder_params": arch.decoder_params,
            "decode_latency_s": summarise(samples),
            "prefill_latency_s": summarise([10 * sample for sample in samples]),
            "peak_memory_bytes": Measurement(median=arch.total_params * 4 + 4096 * process),
        },
        samples={"decode_latency_s": samples, "prefill_latency_s": [10 * sample for sample in samples]},
        conditions={"threads": 1},
        purpose=purpose,
    )


def failure(arch: Architecture, candidate_id: int, kind: str = "crash") -> Failure:
    return Failure(candidate_id=candidate_id, architecture=arch, kind=kind, message="it fell over")  # type: ignore[arg-type]


def device_info(**changes: Any) -> DeviceInfo:
    info = DeviceInfo(
        model="fake board",
        machine="aarch64",
        kernel="6.0",
        cpu_model="4x Cortex-A72",
        cpu_features=("asimd",),
        n_cores=4,
        memory_total_bytes=2 * MEMORY_BYTES,
        memory_available_bytes=MEMORY_BYTES,
        page_size_bytes=4096,
        governor="ondemand",
        python="3.11.2",
        python_bits=64,
        platform="linux-aarch64",
        libc="glibc 2.36",
        torch="9.9",
        numpy="2.0",
        boot_id="boot",
        is_emulated=None,
    )
    return replace(info, **changes)


def write_spec(root: Path, run_id: str = "run", **changes: Any) -> RunFolder:
    """A run folder below `root` holding only spec.json."""
    settings: dict[str, Any] = {"budget_s": 1000.0, "target": "local", "strategy": "random"}
    settings["protocol"] = Protocol(threads=1)  # no sweep of threads, and nothing to measure on one
    settings.update(changes)
    if "constraints" in settings:
        settings["constraints"] = tuple(Constraint.from_json(item) for item in settings["constraints"])
    spec = RunSpec(run_id=run_id, space=settings.pop("space", SPACE), **settings)
    folder = RunFolder(root / "runs" / run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_bytes(to_bytes(spec.to_json()))
    return folder


class Board:
    """Runs supervisors over one folder, life after life, and keeps their events."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.clock = Clock()
        self.events: list[dict[str, Any]] = []
        self.info = device_info()
        self.measurer = FakeMeasurer(self.clock)

    def new_measurer(self, **settings: Any) -> FakeMeasurer:
        self.measurer = FakeMeasurer(self.clock, **settings)
        return self.measurer

    def emit(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def supervisor(self) -> Supervisor:
        return Supervisor(
            self.folder,
            emit=self.emit,
            make_measurer=self.measurer.make,
            clock=self.clock,
            probe=lambda **_: self.info,
            heartbeat_s=3600,
        )

    def run(self) -> int:
        return self.supervisor().run()

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def json(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / name).read_text())
        return data

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "ledger.jsonl").read_text().splitlines()]

"""Clocks and sensors that say what a test tells them to."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_lts.clocks import Mark, System
from edge_lts.health import Health

MS = 1_000_000
START = Mark(0, 0, 0, None, 0, 0, 0)
IDLE_MACHINE = System(ticks=0, swap_ins=0, cpu_pressure_s=0.0, memory_pressure_s=0.0, load_1min=0.1)


@dataclass
class FakeClocks:
    """Stands still until somebody spends time."""

    n_workers: int = 0
    now: Mark = START
    machine: System = IDLE_MACHINE
    slept_s: list[float] = field(default_factory=list)

    def find_workers(self, threads: int) -> int:
        self.n_workers = threads - 1
        return self.n_workers

    def mark(self) -> Mark:
        return self.now

    def system(self, last: System | None = None) -> System:
        return self.machine

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)

    def spend(self, wall_ms: float, lost_ms: float = 0.0, **more: int) -> None:
        wall, main = int(wall_ms * MS), int((wall_ms - lost_ms) * MS)
        now = self.now
        changes = {name: getattr(now, name) + n for name, n in more.items()}
        self.now = now._replace(
            wall_ns=now.wall_ns + wall,
            main_ns=now.main_ns + main,
            workers_ns=now.workers_ns + main * self.n_workers,
            **changes,
        )


class FakeSensors:
    throttle_source = "sysfs"
    governor = "ondemand"

    def __init__(self, readings: list[Health]) -> None:
        self.readings = readings

    def read(self) -> Health:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

"""A pool without boards: a crew with a clock of its own, whose boards take as long as they are told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from edge_lts.records import DeviceInfo, Evaluation, Measurement, Outcome
from edge_lts.runfolder import RunFolder
from edge_lts_host.pool.crew import Back, Began, Done, Happening, Lost, Task
from edge_lts_host.pool.supervisor import PoolSupervisor
from tests.fake_agent import Clock, device_info, evaluation, noise


class FakeCrew:
    """`slowness` by board multiplies its times. `script` happens at its second: a board lost, back, ..."""

    def __init__(self, clock: Clock, slowness: Mapping[str, float], *, duration_s: float = 10.0) -> None:
        self.clock = clock
        self.slowness = dict(slowness)
        self.duration_s = duration_s
        self.infos = {name: device_info() for name in slowness}
        self.script: list[tuple[float, Callable[[], Happening | None]]] = []
        self.measured: list[tuple[str, str, str, float]] = []  # board, arch_id, purpose, when
        self.outcome: Callable[[Task, str], Outcome | None] = lambda task, board: None
        self.most_at_once = 0
        self.is_closed = self.is_cancelled = False
        self.swept = False
        self._alive: list[str] = []
        self._began: list[Happening] = []
        self._running: list[tuple[float, float, str, Task]] = []  # end, begin, board, task
        self._homeless: list[Task] = []

    def connect(self, *, may_lack: bool) -> dict[str, DeviceInfo]:
        self._alive = list(self.slowness)
        return dict(self.infos)

    def prepare(self, threads: int | None, *, is_sweeping: bool) -> tuple[int, dict[str, Any]]:
        self.swept = is_sweeping
        return threads or 1, {}

    def alive(self) -> list[str]:
        return list(self._alive)

    def submit(self, task: Task) -> None:
        assert task.board in self._alive
        assert all(board != task.board for _, _, board, _ in self._running), "a board measures one candidate at a time"
        self._begin(task, task.board)

    def wait(self, timeout_s: float) -> list[Happening]:
        if self._began:
            began, self._began = self._began, []
            return began
        ends = [self._running[0][0]] if self._running else []
        ends += [self.script[0][0]] if self.script else []
        end = min([self.clock() + timeout_s, *ends])
        self.clock.now_s = max(self.clock.now_s, end)
        if self.script and self.script[0][0] <= self.clock():
            happening = self.script.pop(0)[1]()
            return [] if happening is None else [happening]
        if not self._running or self._running[0][0] > self.clock():
            return []
        _, begun_s, board, task = self._running.pop(0)
        if self._homeless:
            self._begin(self._homeless.pop(0), board)
        self.measured.append((board, task.architecture.arch_id, task.purpose, self.clock()))
        outcome = self.outcome(task, board) or self.measure(task, board)
        return [Done(key=task.key, board=board, outcome=outcome, duration_s=self.clock() - begun_s)]

    def cancel(self) -> None:
        self.is_cancelled = True

    def close(self) -> None:
        self.is_closed = True

    # -- what a test does to it --------------------------------------------------------------------------------------

    def lose(self, board: str) -> Happening:
        """The link breaks; what the board was measuring goes to the next that is free."""
        self._alive.remove(board)
        lost = [task for _, _, name, task in self._running if name == board]
        self._running = [one for one in self._running if one[2] != board]
        busy = {name for _, _, name, _ in self._running}
        for task in lost:
            free = [name for name in self._alive if name not in busy]
            if free:
                self._begin(task, free[0])
            else:
                self._homeless.append(task)
        return Lost(board=board, why="the connection is lost")

    def bring_back(self, board: str) -> Happening:
        self._alive.append(board)
        while self._homeless:
            self._begin(self._homeless.pop(0), board)
        return Back(board=board)

    def measure(self, task: Task, board: str) -> Outcome:
        arch = task.architecture
        process = 1 + sum(one[:2] == (board, arch.arch_id) for one in self.measured)
        made = evaluation(arch, candidate_id=task.candidate_id, process=process, purpose=task.purpose)
        slow = self.slowness[board]
        objectives = {
            name: dataclasses.replace(value, median=value.median * slow, ci95=None)
            if isinstance(value, Measurement) and name.endswith("_s")
            else value
            for name, value in made.objectives.items()
        }
        usual = {"prefill_latency_s": 2e-3, "decode_latency_s": 1e-3, "stream_s": 3e-3}
        anchors = {name: seconds * slow * (1 + 0.002 * noise(board, arch.arch_id)) for name, seconds in usual.items()}
        return dataclasses.replace(
            made, objectives=objectives, samples={}, conditions={**made.conditions, "anchor_s": anchors}
        )

    def _begin(self, task: Task, board: str) -> None:
        now = self.clock()
        self._began.append(Began(key=task.key, board=board))
        self._running.append((now + self.duration_s * self.slowness[board], now, board, task))
        self._running.sort(key=lambda one: (one[0], one[2]))
        self.most_at_once = max(self.most_at_once, len(self._running))


class Pool:
    """Supervisors over one folder with a crew each, life after life."""

    def __init__(self, folder: RunFolder, *, tolerance: float = 0.1) -> None:
        self.folder = folder
        self.tolerance = tolerance
        self.clock = Clock()
        self.events: list[dict[str, Any]] = []

    def crew(self, **slowness: float) -> FakeCrew:
        return FakeCrew(self.clock, slowness)

    def supervisor(self, crew: FakeCrew) -> PoolSupervisor:
        return PoolSupervisor(
            self.folder,
            crew,
            emit=lambda event: self.events.append(dict(event)),
            tolerance=self.tolerance,
            clock=self.clock,
            heartbeat_s=3600,
        )

    def run(self, crew: FakeCrew) -> float:
        """The seconds that it took."""
        begun_s = self.clock()
        self.supervisor(crew).run()
        return self.clock() - begun_s

    def json(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / name).read_text())
        return data

    def records(self, purpose: str | None = None) -> list[dict[str, Any]]:
        lines = (self.folder / "ledger.jsonl").read_text().splitlines()
        return [one for one in map(json.loads, lines) if purpose in (None, one["purpose"])]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


def objective(record: Mapping[str, Any], name: str = "decode_latency_s") -> float:
    return float(record["objectives"][name]["median"])


def is_evaluation(outcome: Outcome) -> bool:
    return isinstance(outcome, Evaluation)

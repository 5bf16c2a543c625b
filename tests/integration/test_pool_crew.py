"""The engine of a pool, dask.distributed, with boards that are objects of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EdgeLtsError, Interrupted
from edge_lts.records import DeviceInfo, Failure, Outcome, Purpose
from edge_lts_host.errors import AuthenticationError, ConnectionLostError, PreflightError
from edge_lts_host.pool.board import Board
from edge_lts_host.pool.crew import MOST_LOSSES, Back, Began, Crew, Done, Happening, Lost, Task
from edge_lts_host.reconnect import Pauses
from tests.fake_agent import device_info, evaluation
from tests.integration.sshd import wait_until

PATIENCE_S = 20.0


def arch(n_layer: int = 1) -> Architecture:
    return Architecture(backbone="gpt2", d_model=32, layers=(LayerSpec(n_head=2, d_inner=64),) * n_layer)


class PretendedBoard:
    """Measures by waiting for `release`; `cut` breaks its link. Duck-typed: what Crew uses of a Board."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.info = device_info()
        self.threads = 4
        self.release = threading.Event()
        self.release.set()
        self.error: EdgeLtsError | None = None
        self.refusals: list[EdgeLtsError] = []  # of the next attempts to connect
        self.n_connections = 0
        self.began: list[tuple[int, int]] = []  # candidate, threads
        self.is_open = False
        self.n_at_once = self.most_at_once = 0

    def connect(self) -> DeviceInfo:
        if self.refusals:
            raise self.refusals.pop(0)
        self.n_connections += 1
        self.error, self.is_open = None, True
        return self.info

    def ready(self) -> dict[str, Any]:
        return {"threads": self.threads}

    def settle(self, threads: int | None, *, is_sweeping: bool = False) -> dict[str, Any]:
        return {"threads": 2 if is_sweeping else threads, "thread_sweep": {"threads": 2} if is_sweeping else {}}

    def measure(
        self, candidate_id: int, architecture: Architecture, purpose: Purpose, *, threads: int, timeout_s: float
    ) -> Outcome:
        self.began.append((candidate_id, threads))
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            while not self.release.wait(0.01):
                if self.error is not None:
                    raise self.error
            if self.error is not None:
                raise self.error
            return evaluation(architecture, candidate_id=candidate_id, purpose=purpose)
        finally:
            self.n_at_once -= 1

    def cut(self) -> None:
        self.error = ConnectionLostError(self.name, "the cable is out")

    def cancel(self) -> None:
        self.error = Interrupted("interrupted")

    def close(self) -> None:
        self.is_open = False
        if self.error is None:
            self.error = ConnectionLostError(self.name, "closed")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pauses, "after_loss", lambda self: 0.05)


@contextlib.contextmanager
def made_of(*boards: PretendedBoard, threads: int | None = 3) -> Iterator[Crew]:
    crew = Crew(cast(list[Board], list(boards)), timeout_s=5.0)
    try:
        crew.connect(may_lack=False)
        crew.prepare(threads, is_sweeping=False)
        yield crew
    finally:
        crew.close()
        assert not any(board.is_open for board in boards)


def task(key: int, board: str, n_layer: int = 1) -> Task:
    return Task(key=key, board=board, candidate_id=key, architecture=arch(n_layer), purpose="search")


def until(crew: Crew, condition: Callable[[list[Happening]], bool]) -> list[Happening]:
    happened: list[Happening] = []
    end = time.monotonic() + PATIENCE_S
    while not condition(happened):
        assert time.monotonic() < end, happened
        happened += [one for one in crew.wait(0.1) if not isinstance(one, Began)]
    return happened


def closed(happened: list[Happening]) -> list[Done]:
    return [one for one in happened if isinstance(one, Done)]


def test_each_board_measures_what_it_was_given_one_at_a_time() -> None:
    a, b = PretendedBoard("a"), PretendedBoard("b")
    with made_of(a, b) as crew:
        for key in range(6):
            crew.submit(task(key, "ab"[key % 2]))
        happened = until(crew, lambda happened: len(happened) == 6)
        assert {(one.key, one.board) for one in closed(happened)} == {(key, "ab"[key % 2]) for key in range(6)}
        assert all(one.outcome.candidate_id == one.key for one in closed(happened))
    assert sorted(a.began) == [(0, 3), (2, 3), (4, 3)], "with the crew's threads"
    assert (a.most_at_once, b.most_at_once) == (1, 1)


def test_what_a_lost_board_was_measuring_goes_to_another() -> None:
    a, b = PretendedBoard("a"), PretendedBoard("b")
    b.release.clear()
    with made_of(a, b) as crew:
        b.refusals = [ConnectionLostError("b", "no route")] * 1000
        crew.submit(task(1, "b"))
        assert wait_until(lambda: b.began)
        b.cut()
        happened = until(crew, closed)
        assert [(type(one), one.board) for one in happened] == [(Lost, "b"), (Done, "a")]
        assert crew.alive() == ["a"]


def test_a_lost_board_comes_back_and_measures_again() -> None:
    a, b = PretendedBoard("a"), PretendedBoard("b")
    b.release.clear()
    with made_of(a, b) as crew:
        b.refusals = [ConnectionLostError("b", "still rebooting")] * 2
        crew.submit(task(1, "b"))
        assert wait_until(lambda: b.began)
        b.cut()
        until(crew, lambda happened: any(isinstance(one, Back) for one in happened))
        b.release.set()
        assert sorted(crew.alive()) == ["a", "b"]
        crew.submit(task(2, "b"))
        (done,) = closed(until(crew, closed))
        assert (done.key, done.board, b.n_connections) == (2, "b", 2)


def test_work_waits_for_a_board_when_all_are_lost() -> None:
    a = PretendedBoard("a")
    a.release.clear()
    with made_of(a) as crew:
        a.refusals = [ConnectionLostError("a", "no route")] * 5
        crew.submit(task(1, "a"))
        assert wait_until(lambda: a.began)
        a.cut()
        until(crew, lambda happened: any(isinstance(one, Lost) for one in happened))
        a.release.set()
        (done,) = closed(until(crew, closed))
        assert (done.key, done.board) == (1, "a")


def test_a_candidate_that_takes_boards_with_it_is_a_failure() -> None:
    boards = [PretendedBoard(name) for name in "abcd"]
    with made_of(*boards) as crew:
        for board in boards:
            board.release.clear()
            board.refusals = [ConnectionLostError(board.name, "burnt")] * 1000
        crew.submit(task(1, "a"))
        n_lost = 0
        happened: list[Happening] = []
        while not closed(happened):
            wait_until(lambda: any(board.n_at_once for board in boards), 1)
            for board in boards:
                if board.n_at_once:
                    board.cut()
            happened += crew.wait(0.2)
            n_lost = sum(isinstance(one, Lost) for one in happened)
        (done,) = closed(happened)
        assert isinstance(done.outcome, Failure)
        assert done.outcome.kind == "crash"
        assert n_lost == MOST_LOSSES
        assert len(crew.alive()) == 1


def test_a_board_that_refuses_us_is_given_up() -> None:
    a, b = PretendedBoard("a"), PretendedBoard("b")
    b.release.clear()
    with made_of(a, b) as crew:
        b.refusals = [AuthenticationError("b", "no key fits")] * 1000
        crew.submit(task(1, "b"))
        assert wait_until(lambda: b.began)
        b.cut()
        happened = until(crew, lambda happened: sum(isinstance(one, Lost) for one in happened) == 2)
        assert [one.why.split(":")[0] for one in happened if isinstance(one, Lost)] == ["b", "for good"]
        n_left = len(b.refusals)
        time.sleep(0.3)
        assert len(b.refusals) == n_left


def test_boards_that_are_not_identical_are_refused() -> None:
    a, b = PretendedBoard("pi5-a"), PretendedBoard("pi5-b")
    b.info = device_info(n_cores=2)
    differs = "pi5-a and pi5-b are not identical: n_cores is 4 and 2"
    with pytest.raises(PreflightError, match=differs), made_of(a, b):
        pass
    assert not a.is_open
    b.info = device_info(python="3.11.9")
    b.threads = 3
    with pytest.raises(PreflightError, match="different numbers of threads"), made_of(a, b, threads=None):
        pass


def test_a_board_that_does_not_answer_stops_a_first_start_and_not_a_resume() -> None:
    a, b = PretendedBoard("a"), PretendedBoard("b")
    b.refusals = [ConnectionLostError("b", "no route")]
    with pytest.raises(ConnectionLostError), made_of(a, b):
        pass
    b.refusals = [ConnectionLostError("b", "no route")] * 1000
    crew = Crew(cast(list[Board], [a, b]), timeout_s=5.0)
    try:
        assert list(crew.connect(may_lack=True)) == ["a"]
        crew.prepare(2, is_sweeping=False)
        assert crew.alive() == ["a"]
        b.refusals = []
        until(crew, lambda happened: any(isinstance(one, Back) for one in happened))
        assert crew.alive() == ["a", "b"]
    finally:
        crew.close()


def test_one_board_finds_the_threads_of_all() -> None:
    boards = [PretendedBoard(name) for name in "ab"]
    crew = Crew(cast(list[Board], boards), timeout_s=5.0)
    try:
        crew.connect(may_lack=False)
        assert crew.prepare(None, is_sweeping=True) == (2, {"threads": 2})
    finally:
        crew.close()


def test_cancelling_ends_whatever_waits_and_closing_leaves_nothing() -> None:
    before = set(threading.enumerate())
    a, b = PretendedBoard("a"), PretendedBoard("b")
    a.release.clear()
    b.release.clear()
    with made_of(a, b) as crew:
        crew.submit(task(1, "a"))
        crew.submit(task(2, "b"))
        assert wait_until(lambda: a.began and b.began)
        crew.cancel()
    assert crew.alive() == []
    wait_until(lambda: not left(before), 10)
    assert not left(before)


def left(before: set[threading.Thread]) -> set[str]:
    names = {thread.name for thread in set(threading.enumerate()) - before}
    return {name for name in names if not name.startswith(("Dask-Offload", "asyncio", "IO loop"))}


def test_nothing_listens_beyond_this_machine() -> None:
    psutil = pytest.importorskip("psutil")
    with made_of(PretendedBoard("a")):
        found = [
            one for one in psutil.Process().net_connections() if one.status == "LISTEN" and one.family != socket.AF_UNIX
        ]
        assert {one.laddr.ip for one in found} <= {"127.0.0.1"}

"""The verb that measures for a search on the workstation, without torch: what it answers and when it ends."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import LockedError, SpecError
from edge_lts.job import Lock, is_locked
from edge_lts.records import METHOD_VERSION, Protocol, outcome_from_json
from edge_lts.runfolder import BOARD_LOCK
from edge_lts.worker import Worker
from tests.fake_agent import Clock, FakeMeasurer, write_spec

ARCH = Architecture(backbone="gpt2", d_model=32, layers=(LayerSpec(n_head=2, d_inner=64),))


class Talk:
    """What the workstation says, line by line; each is handed out when the one before is answered."""

    def __init__(self, root: Path, **spec: Any) -> None:
        self.root = root
        self.events: list[dict[str, Any]] = []
        self.measurer = FakeMeasurer(Clock())
        self.lines = [json.dumps(write_spec(root, **spec).read_spec().to_json()).encode()]
        self.worker = Worker(lambda event: self.events.append(dict(event)), self.measurer.make, root)
        self.before: Callable[[], None] = lambda: None

    def ask(self, candidate_id: int = 0, **changes: Any) -> None:
        request = {"candidate_id": candidate_id, "architecture": ARCH.to_json(), "purpose": "search", "threads": 1}
        self.lines.append(json.dumps({**request, **changes}).encode())

    def work(self) -> list[str]:
        def next_line() -> bytes | None:
            self.before()
            return self.lines.pop(0) if self.lines else None

        self.worker.work(next_line)
        return [event["event"] for event in self.events]


def test_it_says_what_it_is_and_measures_what_it_is_asked(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.ask(7)
    talk.ask(7, purpose="confirm", threads=2)
    assert talk.work() == ["device", "ready", "outcome", "outcome"]
    assert talk.events[0]["machine"]
    assert talk.events[0]["placement"]["threads"] >= 1
    assert talk.events[1]["torch"] == "9.9"
    outcome = outcome_from_json({key: value for key, value in talk.events[2].items() if key != "event"})
    assert (outcome.candidate_id, outcome.architecture) == (7, ARCH)
    assert talk.measurer.threads == [1, 2]
    assert talk.measurer.is_closed
    assert not list((tmp_path / "runs" / "run").glob("ledger*")), "nothing of a run is on the board"


def test_it_holds_the_board_meanwhile(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.ask()
    held: list[bool] = []
    talk.before = lambda: held.append(is_locked(tmp_path / BOARD_LOCK))
    talk.work()
    assert held == [False, True, True]
    assert not is_locked(tmp_path / BOARD_LOCK)
    with Lock(tmp_path / BOARD_LOCK, run_id="other", what="this board"), pytest.raises(LockedError, match="run other"):
        Talk(tmp_path).work()


def test_settling_finds_the_threads(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.lines.append(json.dumps({"do": "settle", "threads": 3, "is_sweeping": False}).encode())
    talk.work()
    assert talk.events[-1] == {"event": "settled", "threads": 3, "thread_sweep": {}}


def test_the_end_of_the_conversation_gives_up_the_measurement_in_flight(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    talk.ask(1)
    talk.ask(2)
    talk.measurer.before = lambda measurer, arch, candidate_id: talk.worker.end() if candidate_id == 2 else None
    assert talk.work() == ["device", "ready", "outcome"]
    assert talk.measurer.is_closed
    assert not is_locked(tmp_path / BOARD_LOCK)


@pytest.mark.parametrize(
    "line", [b"not json", b"[1]", b'{"purpose": "search"}', b'{"candidate_id": 1, "purpose": "fun"}']
)
def test_a_request_that_makes_no_sense_ends_it(tmp_path: Path, line: bytes) -> None:
    talk = Talk(tmp_path)
    talk.lines.append(line)
    with pytest.raises(SpecError):
        talk.work()
    assert talk.measurer.is_closed


def test_a_spec_of_another_method_is_refused(tmp_path: Path) -> None:
    talk = Talk(tmp_path, protocol=Protocol(threads=1, method_version=METHOD_VERSION - 1))
    with pytest.raises(SpecError, match="measures by method"):
        talk.work()


@pytest.mark.parametrize("how", ["ends", "is silent"])
def test_stdin_that_ends_or_is_silent_ends_the_verb(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process as it is, except for signals, which belong to the main thread, and torch."""
    import edge_lts.worker

    measurer = FakeMeasurer(Clock())
    begun = threading.Event()

    def hang(measurer: FakeMeasurer, arch: Architecture, candidate_id: int) -> None:
        begun.set()
        while not measurer.is_cancelled:
            threading.Event().wait(0.01)

    measurer.before = hang
    monkeypatch.setattr(edge_lts.worker, "make_measurer", lambda command: measurer.make)
    monkeypatch.setattr(edge_lts.worker.signal, "signal", lambda *_: None)
    receiver, sender = os.pipe()
    talk = Talk(tmp_path)
    talk.ask()
    os.write(sender, b"\n".join([*talk.lines, b""]))
    events: list[Mapping[str, Any]] = []
    quiet_s = 0.3 if how == "is silent" else 60.0
    thread = threading.Thread(
        target=lambda: edge_lts.worker.serve(events.append, receiver, ["agent"], root=tmp_path, quiet_s=quiet_s)
    )
    thread.start()
    assert begun.wait(10)
    if how == "ends":
        os.close(sender)
    thread.join(10)
    assert not thread.is_alive()
    assert [event["event"] for event in events] == ["device", "ready"]
    assert measurer.is_closed
    for fd in (receiver, *([] if how == "ends" else [sender])):
        os.close(fd)

"""A link to one board of a pool, and what --pool refuses, without any board."""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EdgeLtsError, Interrupted, LockedError, SpecError
from edge_lts_host.errors import (
    AgentProtocolError,
    CommandError,
    ConnectionLostError,
    TransportTimeoutError,
    UsageError,
)
from edge_lts_host.hosts import LOCAL_HOST, HostEntry
from edge_lts_host.pool import arguments
from edge_lts_host.pool.board import KEEPALIVE_S, Board, Outbox
from edge_lts_host.session import Place
from edge_lts_host.transport.base import Deadline, Process, Transport
from tests.fake_agent import device_info, evaluation

ARCH = Architecture(backbone="gpt2", d_model=32, layers=(LayerSpec(n_head=2, d_inner=64),))
OTHER = Architecture(backbone="gpt2", d_model=64, layers=(LayerSpec(n_head=2, d_inner=64),))
Answer = Callable[[dict[str, Any]], Iterable[dict[str, Any]]]


class Conversation(Process):
    """A worker that answers line by line. `end` closes it with a status; a raised error is the link's."""

    def __init__(self, stdin: Iterable[bytes], answer: Answer) -> None:
        self._stdin = iter(stdin)
        self._answer = answer
        self._out = [{"protocol": 1, "event": "hello", "verb": "worker"}]
        self.is_killed = False

    def pump(self, wait_s: float) -> tuple[bytes, bytes]:
        chunk = next(self._stdin, None)
        if chunk is None:
            self.exit_status = 0
        elif chunk.strip():
            self._out += self._answer(json.loads(chunk))
        else:
            threading.Event().wait(0.001)
        out, self._out = self._out, []
        if out and out[-1]["event"] == "error":
            self.exit_status = int(out[-1]["exit_code"])
        return b"".join(json.dumps(event).encode() + b"\n" for event in out), b""

    def kill(self) -> None:
        self.is_killed = True

    def release(self) -> None:
        pass


class Link(Transport):
    def __init__(self, answer: Answer) -> None:
        self.name = "pi5-a"
        self._answer = answer
        self.argv: list[Sequence[str]] = []
        self.processes: list[Conversation] = []
        self.is_closed = False

    def _start(self, argv: Sequence[str], stdin: Iterable[bytes], deadline: Deadline) -> Process:
        self.argv.append(argv)
        self.processes.append(Conversation(stdin, self._answer))
        return self.processes[-1]

    def close(self) -> None:
        self.is_closed = True


def outcome(request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = evaluation(ARCH, candidate_id=request["candidate_id"], purpose=request["purpose"])
    return {"event": "outcome", **dataclasses.replace(made, **changes).to_json()}


def usual(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "run_id" in message:
        yield {"event": "device", **device_info().to_json(), "placement": {"threads": 4}}
        yield {"event": "governor_restored", "governors": {"0": "ondemand"}}
        yield {"event": "ready", "torch": "9.9", "threads": 4}
    elif message.get("do") == "settle":
        yield {"event": "settled", "threads": message["threads"], "thread_sweep": {}}
    else:
        yield outcome(message)


class Made:
    def __init__(self, answer: Answer = usual) -> None:
        self.link = Link(answer)
        self.said: list[tuple[str, str]] = []
        place = Place(name="pi5-a", root="/root", python="python3", site="/site", agent="/root/agents/a.pyz")
        entry = HostEntry(name="pi5-a", destination="pi@pi5-a", target="rpi5")
        self.board = Board(
            entry,
            place,
            {"run_id": "run"},
            on_event=lambda name, event: self.said.append((name, str(event["event"]))),
            opener=lambda entry, options: self.link,
        )


def measure(board: Board, timeout_s: float = 10.0) -> Any:
    return board.measure(3, ARCH, "search", threads=2, timeout_s=timeout_s)


def test_a_board_says_what_it_is_and_measures() -> None:
    made = Made()
    info = made.board.connect()
    assert (info.cpu_model, info.extra["placement"]) == ("4x Cortex-A72", {"threads": 4})
    assert made.board.ready()["threads"] == 4
    assert made.board.settle(2) == {"threads": 2, "thread_sweep": {}}
    assert measure(made.board).candidate_id == 3
    assert made.said == [("pi5-a", "governor_restored")]
    (argv,) = made.link.argv
    assert list(argv)[-7:] == ["-I", "/root/agents/a.pyz", "--site", "/site", "worker", "--root", "/root"]
    made.board.close()
    assert made.link.is_closed
    assert not made.link.processes[0].is_killed, "it ended by itself when its stdin did"
    made.board.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda message: [{"event": "error", "type": "LockedError", "message": "in use", "exit_code": 7}], LockedError),
        (lambda message: [{"event": "error", "type": "SpecError", "message": "no", "exit_code": 2}], SpecError),
    ],
)
def test_what_the_agent_refuses_is_raised(answer: Answer, error: type[EdgeLtsError]) -> None:
    made = Made(answer)
    with pytest.raises(error, match="pi5-a: "):
        made.board.connect()
    assert made.link.is_closed


def test_a_link_that_breaks_is_known_to_whoever_waits_and_to_whoever_asks_next() -> None:
    def answer(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if "candidate_id" in message:
            raise ConnectionLostError("pi5-a", "the cable is out")
        yield from usual(message)

    made = Made(answer)
    made.board.connect()
    made.board.ready()
    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            measure(made.board)
    made.board.close()


def test_a_board_may_be_connected_again() -> None:
    made = Made()
    made.board.connect()
    made.board.close()
    made.board.connect()
    made.board.ready()
    assert measure(made.board).candidate_id == 3
    made.board.close()


def test_a_board_that_does_not_answer_times_out_and_is_killed_when_closed() -> None:
    made = Made(lambda message: usual(message) if "run_id" in message else [])
    made.board.connect()
    made.board.ready()
    with pytest.raises(TransportTimeoutError, match=r"no answer within 0\.05 s"):
        measure(made.board, timeout_s=0.05)
    made.board.close()


@pytest.mark.parametrize("changes", [{"architecture": OTHER}, {"candidate_id": 4}])
def test_an_answer_for_another_candidate_is_no_answer(changes: dict[str, Any]) -> None:
    made = Made(lambda message: usual(message) if "run_id" in message else [outcome(message, **changes)])
    made.board.connect()
    with pytest.raises(AgentProtocolError, match="another candidate"):
        measure(made.board)
    made.board.close()


def test_cancelling_ends_the_waiting_at_once() -> None:
    made = Made(lambda message: usual(message) if "run_id" in message else [])
    made.board.connect()
    timer = threading.Timer(0.05, made.board.cancel)
    timer.start()
    with pytest.raises(Interrupted):
        measure(made.board, timeout_s=60)
    made.board.close()
    timer.join()


def test_an_agent_without_the_verb_says_so() -> None:
    class Old(Conversation):
        def pump(self, wait_s: float) -> tuple[bytes, bytes]:
            self.exit_status = 3
            return b"", b"what?\n"

    made = Made()
    made.link._start = lambda argv, stdin, deadline: Old(stdin, usual)  # type: ignore[method-assign]
    with pytest.raises(CommandError, match="status 3"):
        made.board.connect()


def test_the_outbox_stays_in_touch_and_ends() -> None:
    now = 0.0
    outbox = Outbox(lambda: now)
    assert next(outbox) == b""
    outbox.put({"a": 1})
    outbox.put({"b": 2})
    assert [next(outbox), next(outbox), next(outbox)] == [b'{"a": 1}\n', b'{"b": 2}\n', b""]
    now = KEEPALIVE_S - 1
    assert next(outbox) == b""
    now = KEEPALIVE_S
    assert [next(outbox), next(outbox)] == [b"\n", b""]
    outbox.put({"c": 3})
    outbox.end()
    assert list(outbox) == [b'{"c": 3}\n']
    outbox.abandon()
    with pytest.raises(ConnectionLostError):
        next(outbox)


# -- the command line --------------------------------------------------------------------------------------------------


def entry(name: str, **changes: Any) -> HostEntry:
    return HostEntry(**{"name": name, "destination": f"pi@{name}", "target": "rpi5", **changes})


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    for flag in ("--detach",):
        parser.add_argument(flag, action="store_true")
    for flag in ("--wait-timeout", "--meter", "--objectives"):
        parser.add_argument(flag)
    return parser.parse_args(words)


def test_identical_boards_may_be_pooled() -> None:
    arguments.check(parsed("--pool"), [entry("a"), entry("b")])
    arguments.check(parsed(), [entry("a")])


@pytest.mark.parametrize(
    ("words", "entries", "said"),
    [
        (["--pool"], [entry("a")], "only a is chosen"),
        (["--pool"], [entry("a"), entry("b", target="rpi4")], "boards of one kind; these are rpi4, rpi5"),
        (["--pool"], [entry("a"), entry("b", destination="serial:/dev/ttyUSB0")], "b has a serial console only"),
        (["--pool", "--detach"], [entry("a"), entry("b")], "cannot be left"),
        (["--pool", "--wait-timeout", "3"], [entry("a"), entry("b")], "cannot be left"),
        (["--pool", "--meter", "um25c:x"], [entry("a"), entry("b")], "does not measure energy"),
        (["--pool", "--objectives", "energy_j_per_token"], [entry("a"), entry("b")], "does not measure energy"),
        (["--pool-tolerance", "5"], [entry("a")], "are for --pool"),
    ],
)
def test_what_cannot_be_pooled_is_refused_before_a_board_is_asked(
    words: list[str], entries: list[HostEntry], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        arguments.check(parsed(*words), entries)


def test_without_dask_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'edge-lts\[pool\]'"):
        arguments.check(parsed("--pool"), [entry("a"), entry("b")])


def test_a_tolerance_is_a_percentage() -> None:
    assert (arguments.percent("10"), arguments.percent("2.5%")) == (0.1, 0.025)
    for text in ("0", "-1", "x", "", "nan", "inf", "5000"):
        with pytest.raises(UsageError, match="--pool-tolerance"):
            arguments.percent(text)


def test_the_spec_is_made_for_the_smallest_board() -> None:
    entries = [
        entry("a", device={"memory_available_bytes": 4e9}),
        entry("b", device={"memory_total_bytes": 2e9}),
        entry("c", device={"memory_available_bytes": 3e9}),
        LOCAL_HOST,
    ]
    assert arguments.smallest(entries).name == "b"

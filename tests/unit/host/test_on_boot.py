"""`--on-boot` on the workstation: what the board is asked, in which order, and what remains when it cannot."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from edge_lts.reservation import OWNER_VARIABLE
from edge_lts_host import follow, locks
from edge_lts_host import session as session_module
from edge_lts_host.agent_protocol import PROTOCOL
from edge_lts_host.cli import main
from edge_lts_host.hosts import HostEntry, remember
from edge_lts_host.payload import build_payload
from edge_lts_host.store import RunFolder, runs_root
from edge_lts_host.transport.fake import FakeCall, FakeTransport, Pause

RUN = ["run", "--host", "pi@board", "--budget", "1h", "--space", "tiny", "--run-id", "run-1", "--on-boot"]


def lines(verb: str, *events: dict[str, Any]) -> bytes:
    hello = {"protocol": PROTOCOL, "event": "hello", "verb": verb}
    return b"".join(json.dumps(event).encode() + b"\n" for event in (hello, *events))


@pytest.fixture
def agent() -> list[str]:
    owner = f"{OWNER_VARIABLE}={locks.owner()}"  # who may use a reserved board, after the reboot as well
    return ["env", owner, "/py", "-I", f"/r/agents/{build_payload().name}"]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, agent: list[str]) -> FakeTransport:
    place = {"root": "/r", "python": "/py", "agent": agent[-1], "deployed_at": "2026-11-22T00:00:00Z"}
    remember(HostEntry(name="pi@board", destination="pi@board", target="rpi5", **place))  # type: ignore[arg-type]
    transport = FakeTransport("pi@board")
    transport.reply(["rm"])

    def open_again(entry: HostEntry, options: object) -> FakeTransport:
        transport.mend()
        return transport

    monkeypatch.setattr(session_module, "open_transport", open_again)
    monkeypatch.setattr(follow, "open_transport", open_again)
    return transport


def verbs(board: FakeTransport) -> list[str]:
    return [call[5] for call in board.calls if call[0] == "env"]


def answer(event: dict[str, Any], status: int = 0) -> Any:
    def handler(call: FakeCall) -> Generator[bytes | Pause, None, int]:
        yield lines(call.argv[5], event)
        return status

    return handler


def test_the_entry_is_made_before_the_search_begins(
    board: FakeTransport, agent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    board.on([*agent, "on-boot"], answer({"event": "on_boot", "run_id": "run-1", "how": "systemd"}))
    board.on([*agent, "search"], answer({"event": "started", "run_id": "run-1"}))
    assert main(RUN) == 0
    assert verbs(board) == ["on-boot", "search"]
    assert [*agent, "on-boot", "/r/runs/run-1", "--root", "/r"] in [list(call) for call in board.calls]
    assert "goes on by itself (a systemd user unit)" in capsys.readouterr().err


def test_a_board_that_starts_nothing_at_boot_gets_no_run(
    board: FakeTransport, agent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"event": "error", "type": "OnBootError", "message": "sudo loginctl enable-linger pi", "exit_code": 5}
    board.on([*agent, "on-boot"], answer(error, 5))
    assert main(RUN) == 5
    assert "search" not in verbs(board)
    assert not (runs_root() / "run-1").exists()
    assert "enable-linger" in capsys.readouterr().err


def test_a_run_that_never_began_leaves_no_entry(board: FakeTransport, agent: list[str]) -> None:
    board.on([*agent, "on-boot"], answer({"event": "on_boot", "run_id": "run-1", "how": "cron"}))
    error = {"event": "error", "type": "LockedError", "message": "in use", "exit_code": 7}
    board.on([*agent, "search"], answer(error, 7))
    assert main(RUN) == 7
    calls = [list(call) for call in board.calls]
    removing, discarding = [*agent, "on-boot", "/r/runs/run-1", "--remove"], ["rm", "-r", "-f", "--", "/r/runs/run-1"]
    assert calls.index(removing) < calls.index(discarding)  # what to remove stands in the run's folder


def test_resume_makes_it_too(board: FakeTransport, agent: list[str]) -> None:
    board.on([*agent, "on-boot"], answer({"event": "on_boot", "run_id": "run-1", "how": "cron"}))
    board.on([*agent, "search"], answer({"event": "started", "run_id": "run-1"}))
    assert main(RUN) == 0
    assert RunFolder(runs_root() / "run-1").exists
    board.calls.clear()
    assert main(["resume", "run-1", "--on-boot"]) == 0
    assert verbs(board) == ["on-boot", "search"]
    board.calls.clear()
    assert main(["resume", "run-1"]) == 0
    assert verbs(board) == ["search"]


def test_a_run_goes_on_with_the_agent_that_it_began_with(board: FakeTransport, agent: list[str]) -> None:
    """Which of the two it was follows from its spec; a board that lost it gets that one again."""
    full = build_payload("train")
    began = [*agent[:-1], f"/r/agents/{full.name}"]
    for command in (agent, began):
        board.on([*command, "search"], answer({"event": "started", "run_id": "run-1"}))
    assert main(RUN[:-1]) == 0
    folder = RunFolder(runs_root() / "run-1")
    folder.write_spec({**folder.read_spec().to_json(), "strategy": "evolve"})
    folder.write_host_meta({**folder.host_meta(), "agent": began[-1]})
    board.files.clear()
    assert main(["resume", "run-1"]) == 0
    assert {path: file.data for path, file in board.files.items()} == {began[-1]: full.data}
    assert board.calls[-1][:6] == (*began, "search")

"""The agent's protocol as it is read, and sessions on a scripted board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.errors import EdgeLtsError, LedgerError, LockedError
from edge_lts.records import Protocol, RunSpec
from edge_lts_host import locks
from edge_lts_host import session as session_module
from edge_lts_host.agent_protocol import MAX_LINE_BYTES, PROTOCOL, AgentError, AgentReader
from edge_lts_host.errors import AgentProtocolError, CommandError, ConnectionLostError, PreflightError, StoreError
from edge_lts_host.hosts import HostEntry
from edge_lts_host.payload import Payload
from edge_lts_host.session import Place, Session, place_of_run
from edge_lts_host.store import RunFolder
from edge_lts_host.transport.fake import FakeCall, FakeTransport, Pause

HELLO = {"protocol": PROTOCOL, "event": "hello", "verb": "x"}
PAYLOAD = Payload(data=b"the agent", sha256="5bb0" + "0" * 60)
PLACE = Place(name="pi", root="/r", python="/py", site="/r/env/e", agent=f"/r/agents/{PAYLOAD.name}")
AGENT = ["/py", "-I", PLACE.agent, "--site", "/r/env/e"]
OWNED = ["env", f"EDGE_LTS_OWNER={locks.owner()}", *AGENT]  # verbs that take the board's lock

Handler = Generator[bytes | Pause, None, int]


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def read(*chunks: bytes) -> list[dict[str, Any]]:
    return list(AgentReader(chunks, "pi"))


# The protocol


def test_events_come_out_whatever_the_chunks() -> None:
    data = lines(HELLO, {"event": "a", "n": 1}, {"event": "b"})
    assert read(data) == read(*(bytes([byte]) for byte in data))
    assert [event["event"] for event in read(data)] == ["hello", "a", "b"]


def test_a_chatty_login_shell_is_no_harm() -> None:
    assert read(b"Linux raspberrypi 6.12\n\n{not json\n[1]\n", lines(HELLO)) == [HELLO]


def test_unknown_events_are_handed_out_to_be_ignored() -> None:
    assert read(lines(HELLO, {"event": "from the future", "x": [1]}))[1]["x"] == [1]


@pytest.mark.parametrize(
    "junk",
    [
        b"Killed\n",
        b"{}\n",
        b'{"event": 5}\n',
        b'{"event": "a", "x": NaN}\n',
        b'{"event": "a", "x": Infinity}\n',
        b'{"event": "a',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"event": "a", "x": ' + b"[" * 100 + b"]" * 100 + b"}\n",
    ],
)
def test_junk_after_the_hello_is_a_protocol_error(junk: bytes) -> None:
    with pytest.raises(AgentProtocolError, match="not its protocol"):
        read(lines(HELLO), junk)


def test_limits_hold() -> None:
    with pytest.raises(AgentProtocolError, match="a line of more than"):
        read(lines(HELLO), *([b"x" * 65536] * (MAX_LINE_BYTES // 65536 + 2)))
    with pytest.raises(AgentProtocolError, match="greeting"):
        read(*([b"noise\n" * 10_000] * 25))


def test_another_version_of_the_protocol_says_what_to_do() -> None:
    with pytest.raises(AgentProtocolError, match="deploy again"):
        read(lines({**HELLO, "protocol": PROTOCOL + 1}))


def test_strings_from_a_board_cannot_drive_a_terminal() -> None:
    event = read(lines(HELLO, {"event": "a", "x": ["\x1b[2J", {"k\u202e": "\x07"}], "fine": "Grüße"}))[1]
    assert event["x"] == ["\\x1b[2J", {"k\\u202e": "\\x07"}]
    assert event["fine"] == "Grüße"


def test_errors_are_raised_as_what_they_are() -> None:
    with pytest.raises(LockedError, match="pi: in use") as locked:
        read(lines(HELLO, {"event": "error", "type": "LockedError", "message": "in use", "exit_code": 7}))
    assert locked.value.exit_code == 7
    with pytest.raises(LedgerError):
        read(lines({"event": "error", "type": "LedgerError", "message": "bad", "exit_code": 1}))
    with pytest.raises(AgentError, match=r"pi: odd \\x1b") as odd:
        read(lines(HELLO, {"event": "error", "type": "New", "message": "odd \x1b\nmore", "exit_code": 124}))
    assert odd.value.exit_code == 124
    assert "\n" not in str(odd.value)
    with pytest.raises(AgentError) as strange:
        read(lines(HELLO, {"event": "error", "exit_code": 0}))
    assert strange.value.exit_code == 1


def test_raw_bytes_follow_their_event() -> None:
    data = lines(HELLO, {"event": "file", "size": 7}) + b"a\nb{}\xff\n" + lines({"event": "end"})
    for step in (1, 3, len(data)):
        reader = AgentReader((data[i : i + step] for i in range(0, len(data), step)), "pi")
        found = []
        for event in reader:
            found.append(event["event"])
            if event["event"] == "file":
                assert b"".join(reader.read(7)) == b"a\nb{}\xff\n"
        assert found == ["hello", "file", "end"]


def test_raw_bytes_that_end_too_early_are_a_protocol_error() -> None:
    reader = AgentReader([lines(HELLO) + b"abc"], "pi")
    next(iter(reader))
    with pytest.raises(AgentProtocolError, match="2 bytes too early"):
        b"".join(reader.read(5))


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_whatever_arrives_only_our_errors_come_out(chunks: list[bytes]) -> None:
    try:
        for event in AgentReader([lines(HELLO), *chunks], "pi"):
            assert isinstance(event["event"], str)
    except EdgeLtsError as error:
        assert "\n" not in str(error)


# Sessions


@pytest.fixture
def board() -> FakeTransport:
    return FakeTransport("pi@board")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "run-1")


def test_start_pushes_the_agent_if_missing_and_the_spec_and_launches(board: FakeTransport) -> None:
    started = {"event": "started", "run_id": "run-1", "pid": 7}
    board.reply([*OWNED, "search"], stdout=lines(HELLO, started))
    spec = RunSpec(run_id="run-1", space={"name": "tiny"}, budget_s=60.0, target="rpi5")
    for _ in range(2):
        assert Session(board, PLACE).start(spec, PAYLOAD) == started
    assert board.files[PLACE.agent].data == b"the agent"
    assert RunSpec.from_json(json.loads(board.files["/r/runs/run-1/spec.json"].data)) == spec
    launches = [call for call in board.calls if "search" in call]
    assert launches[0] == (*OWNED, "search", "/r/runs/run-1", "--root", "/r", "--detach")


def test_a_broken_link_never_says_that_a_run_failed(board: FakeTransport) -> None:
    board.cut()
    with pytest.raises(ConnectionLostError, match="goes on on the board") as lost:
        Session(board, PLACE).status(["run-1"])
    assert lost.value.exit_code == 4


def test_an_agent_that_is_gone_says_to_deploy_again(board: FakeTransport) -> None:
    board.reply(AGENT, stderr=b"/py: can't open file\n", exit_status=2)
    with pytest.raises(PreflightError, match=r"did not start: /py: can't open file.*deploy to it again"):
        Session(board, PLACE).status(["run-1"])


def test_an_agent_that_dies_in_the_middle_is_a_failed_command(board: FakeTransport) -> None:
    board.reply(AGENT, stdout=lines(HELLO), stderr=b"boom\n", exit_status=137)
    with pytest.raises(CommandError, match="137"):
        Session(board, PLACE).status(["run-1"])
    board.reply(AGENT, stdout=lines(HELLO))
    with pytest.raises(AgentProtocolError, match="without saying stopped"):
        Session(board, PLACE).stop("run-1", timeout_s=1)


def test_status_asks_once_for_all_runs(board: FakeTransport) -> None:
    events = [{"event": "status", "run_id": name, "state": "running"} for name in ("a", "b")]
    board.reply(AGENT, stdout=lines(HELLO, *events))
    assert set(Session(board, PLACE).status(["a", "b"])) == {"a", "b"}
    assert board.calls == [(*AGENT, "status", "/r/runs/a", "/r/runs/b")]


def test_measure_sends_architecture_and_protocol(board: FakeTransport) -> None:
    from edge_lts.arch import Architecture

    seen: list[dict[str, Any]] = []

    def measure(call: FakeCall) -> Handler:
        seen.append(json.loads(call.stdin))
        yield lines(HELLO, {"event": "ready"}, {"event": "outcome", "kind": "evaluation", "flags": ["noisy"]})
        return 0

    board.on(OWNED, measure)
    architecture = Architecture.from_json({"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": 64}]})
    record = Session(board, PLACE).measure(architecture, Protocol(), timeout_s=60, is_emulated=True)
    assert record == {"kind": "evaluation", "flags": ["noisy"]}
    assert seen[0]["architecture"] == architecture.to_json()
    assert seen[0]["is_emulated"] is True


class Remote:
    """The files of a run on a scripted board, sent as the agent sends them."""

    def __init__(self, board: FakeTransport) -> None:
        self.files: dict[str, bytes] = {
            "ledger.jsonl": b"",
            "events.jsonl": b"",
            "status.json": b'{"state": "running"}',
        }
        self.asked: list[dict[str, int]] = []
        self.limit: int | None = None
        board.on([*AGENT, "pull"], self._pull)

    def _pull(self, call: FakeCall) -> Handler:
        offsets = json.loads(call.argv[call.argv.index("--offsets") + 1])
        self.asked.append(offsets)
        out = lines(HELLO)
        for name, data in self.files.items():
            offset = offsets.get(name, 0)
            if offset > len(data):
                offset = 0
            event = {"event": "file", "name": name, "offset": offset, "size": len(data) - offset}
            if name in offsets:
                event["n_prefix_bytes"] = min(offset, 65536)
                event["sha256_prefix"] = hashlib.sha256(data[offset - event["n_prefix_bytes"] : offset]).hexdigest()
            out += lines(event) + data[offset:]
        out += lines({"event": "pulled"})
        for start in range(0, len(out if self.limit is None else out[: self.limit]), 50):
            yield out[start : start + 50]
        return 0


def test_pull_copies_only_what_is_new(board: FakeTransport, folder: RunFolder) -> None:
    remote = Remote(board)
    session = Session(board, PLACE)
    remote.files["ledger.jsonl"] = b'{"a": 1}\n' * 3
    assert session.pull(folder)["ledger.jsonl"] == 27
    remote.files["ledger.jsonl"] += b'{"b": 2}\n' * 1000
    remote.files["status.json"] = b'{"state": "done"}'
    assert session.pull(folder)["ledger.jsonl"] == 9000
    assert remote.asked[1]["ledger.jsonl"] == 27
    assert (folder / "ledger.jsonl").read_bytes() == remote.files["ledger.jsonl"]
    assert folder.status() == {"state": "done"}
    assert session.pull(folder)["ledger.jsonl"] == 0


@pytest.mark.parametrize("data", [b'{"x": 1}\n' * 3, b'{"x": 1}\n', b'{"x": 1}\n' * 9])
def test_a_ledger_that_was_replaced_is_noticed_and_ours_is_kept(
    board: FakeTransport, folder: RunFolder, data: bytes
) -> None:
    remote = Remote(board)
    remote.files["ledger.jsonl"] = ours = b'{"a": 1}\n' * 3
    Session(board, PLACE).pull(folder)
    remote.files["ledger.jsonl"] = data
    with pytest.raises(StoreError, match=r"no longer the one that was pulled before.*move"):
        Session(board, PLACE).pull(folder)
    assert (folder / "ledger.jsonl").read_bytes() == ours


@pytest.mark.parametrize("data", [b"other\n", b"other event\n" * 50])
def test_a_log_that_a_power_cut_took_back_is_copied_anew(board: FakeTransport, folder: RunFolder, data: bytes) -> None:
    remote = Remote(board)
    remote.files["events.jsonl"] = b"event\n" * 10
    Session(board, PLACE).pull(folder)
    remote.files["events.jsonl"] = data
    Session(board, PLACE).pull(folder)
    assert (folder / "events.jsonl").read_bytes() == data


def test_a_pull_that_is_cut_keeps_what_arrived_and_goes_on(board: FakeTransport, folder: RunFolder) -> None:
    remote = Remote(board)
    remote.files = {"ledger.jsonl": b'{"a": 1}\n' * 10, "events.jsonl": b"event\n" * 1000}
    remote.limit = 600
    with pytest.raises(AgentProtocolError):
        Session(board, PLACE).pull(folder)
    assert (folder / "ledger.jsonl").read_bytes() == remote.files["ledger.jsonl"]
    remote.limit = None
    Session(board, PLACE).pull(folder)
    assert remote.asked[1]["ledger.jsonl"] == 90
    assert (folder / "events.jsonl").read_bytes() == remote.files["events.jsonl"]


@pytest.mark.parametrize(
    "event",
    [
        {"name": "../../.bashrc", "offset": 0, "size": 1},
        {"name": "host.json", "offset": 0, "size": 1},
        {"name": "ledger.jsonl", "offset": 0, "size": 1 << 60},
        {"name": "ledger.jsonl", "offset": -1, "size": 1},
        {"name": "ledger.jsonl", "offset": 5, "size": 1},
        {"name": 5, "offset": 0, "size": 1},
        {"name": "ledger.jsonl", "offset": "0", "size": None},
    ],
)
def test_a_hostile_board_cannot_write_elsewhere(board: FakeTransport, folder: RunFolder, event: dict[str, Any]) -> None:
    board.reply([*AGENT, "pull"], stdout=lines(HELLO, {"event": "file", **event}) + b"x" * 100)
    with pytest.raises((StoreError, AgentProtocolError)):
        Session(board, PLACE).pull(folder)
    written = [path for path in folder.path.parent.rglob("*") if path.is_file()] if folder.path.parent.exists() else []
    assert written == []


def test_place_of_run_prefers_what_deploy_knows_now(folder: RunFolder) -> None:
    with pytest.raises(StoreError, match=r"no host\.json"):
        place_of_run(folder, {})
    folder.create()
    meta = {"host": "pi", "destination": "pi@board", "target": "rpi5", "run_dir": "/r/runs/run-1", **PLACE.to_json()}
    folder.write_host_meta(meta)
    known = HostEntry(name="pi", destination="pi@board", target="rpi5", deployed_at="now")
    entry, place = place_of_run(folder, {"pi": known})
    assert entry == known
    assert place == PLACE
    elsewhere = HostEntry(name="pi", destination="other@board")
    assert place_of_run(folder, {"pi": elsewhere})[0].destination == "pi@board"


def test_without_torch_here_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreflightError, match=r"pip install 'edge-lts\[local\]'"):
        session_module.local_place(PAYLOAD)

"""The agent's command line: protocol, status, stop, pull, clean, the proof of torch, and locks."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts import job, status, transfer, verbs
from edge_lts.__main__ import main
from edge_lts.errors import EdgeLtsError, LockedError, SpecError
from edge_lts.job import Identity, Lock
from edge_lts.runfolder import RunFolder, to_bytes
from tests.fake_agent import Board, write_spec

# Another process that holds a lock file until its stdin closes.
HOLDER = """
import sys
from pathlib import Path
from edge_lts.job import Lock
with Lock(Path(sys.argv[1]), run_id="other", what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def finished(tmp_path: Path) -> Board:
    one = Board(write_spec(tmp_path, max_candidates=4))
    one.run()
    return one


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that holds the given lock; ends it afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def hold(path: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def run_main(capfdbinary: pytest.CaptureFixture[bytes], *argv: object) -> tuple[int, list[dict[str, Any]]]:
    code = main([str(argument) for argument in argv])
    return code, [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_the_first_line_is_a_hello_and_the_last_one_an_error(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    code, lines = run_main(capfdbinary, "search", tmp_path / "runs/none")
    assert code == 2
    assert lines[0] == {"protocol": 1, "event": "hello", "verb": "search"}
    assert lines[-1]["event"] == "error"
    assert (lines[-1]["type"], lines[-1]["exit_code"]) == ("SpecError", 2)
    assert "does not exist" in lines[-1]["message"]


@pytest.mark.parametrize("argv", [[], ["dance"], ["search"], ["stop", "x", "--timeout", "soon"], ["status"]])
def test_a_wrong_command_line_is_an_error_event_and_exit_2(
    capfdbinary: pytest.CaptureFixture[bytes], argv: list[str]
) -> None:
    code, lines = run_main(capfdbinary, *argv)
    assert (code, lines[-1]["event"], lines[-1]["exit_code"]) == (2, "error", 2)


def test_probe_reports_the_board(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    code, lines = run_main(capfdbinary, "probe", "--root", tmp_path)
    assert code == 0
    assert lines[1]["event"] == "device"
    assert lines[1]["python_bits"] == 64
    assert lines[1]["disk_free_bytes"] > 0


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        ("import os; os.kill(os.getpid(), 4)", {"ok": False, "signal": 4, "exit_status": None}),
        ("import no_such_module", {"ok": False, "signal": None, "exit_status": 1}),
        ("print('noise')", {"ok": False, "exit_status": 0}),
        ("print('[1]')", {"ok": False, "exit_status": 0}),
        (
            'print(\'noise\\n{"version": "9", "import_s": 1, "is_right": true, "is_cuda_build": false}\')',
            {"ok": True, "version": "9", "signal": None, "exit_status": 0, "is_cuda_build": False},
        ),
        ('print(\'{"version": "9", "is_right": false}\')', {"ok": False, "version": "9"}),
    ],
)
def test_torch_is_proven_in_a_child_whose_end_is_reported(proof: str, expected: dict[str, Any]) -> None:
    result = verbs.prove_torch(None, proof=proof)
    assert result.items() >= expected.items()
    assert result["event"] == "torch"


def test_a_proof_that_hangs_is_given_up() -> None:
    result = verbs.prove_torch(None, timeout_s=0.2, proof="import threading; threading.Event().wait()")
    assert not result["ok"]
    assert "not proven within" in result["message"]


def test_the_agent_can_start_itself_from_anywhere(tmp_path: Path) -> None:
    command = verbs.own_command(tmp_path / "site")
    done = subprocess.run([*command, "status", "x"], cwd="/", capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[0])["event"] == "hello"
    assert command[-2:] == ["--site", str(tmp_path / "site")]


# -- status and stop -----------------------------------------------------------------------------------------------


def described(folder: RunFolder, **changes: Any) -> dict[str, Any]:
    data = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_bytes(to_bytes({**data, **changes}))
    return status.describe(folder)


def test_a_finished_run_is_done_and_not_alive(finished: Board) -> None:
    one = status.describe(finished.folder)
    assert (one["state"], one["is_alive"]) == ("done", False)
    assert one["sizes"]["ledger.jsonl"] == (finished.folder / "ledger.jsonl").stat().st_size


def test_a_running_run_that_is_dead_is_interrupted(finished: Board) -> None:
    for state in ("starting", "running", "confirming"):
        assert described(finished.folder, state=state)["state"] == "interrupted"


def test_a_held_lock_of_a_living_process_is_alive(finished: Board, holder: Any) -> None:
    process = holder(finished.folder / "lock")
    one = described(finished.folder, state="running")
    assert (one["state"], one["is_alive"]) == ("running", True)
    process.kill()
    process.wait()
    assert status.describe(finished.folder)["state"] == "interrupted"


def test_a_lock_that_names_a_process_of_another_boot_is_not_alive(finished: Board, holder: Any) -> None:
    process = holder(finished.folder / "lock")
    name = json.loads((finished.folder / "lock").read_text())
    for change in ({"boot_id": "another"}, {"start_time_ticks": 1}):
        (finished.folder / "lock").write_text(json.dumps({**name, "pid": process.pid, **change}))
        assert not status.is_alive(finished.folder)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "{", '{"schema_version": 1, "state": "happy"}', '{"schema_version": 99}', "[" * 9000],
)
def test_a_malformed_status_is_unknown_with_a_message(finished: Board, text: str) -> None:
    (finished.folder / "status.json").write_text(text)
    one = status.describe(finished.folder)
    assert one["state"] == "unknown"
    assert "status.json" in one["message"]


def test_asking_for_a_status_imports_little() -> None:
    """A hundred boards on one machine, or one slow board: most of what an answer costs is what it imports."""
    code = "import sys, edge_lts.status; print(' '.join(name for name in sys.modules if name.startswith('edge_lts.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert set(done.stdout.split()) == {
        f"edge_lts.{name}" for name in ("errors", "job", "reservation", "runfolder", "status", "values")
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(status_data=st.binary(max_size=80), lock_data=st.binary(max_size=80))
def test_fuzzed_files_never_break_status(finished: Board, status_data: bytes, lock_data: bytes) -> None:
    (finished.folder / "status.json").write_bytes(status_data)
    (finished.folder / "lock").write_bytes(lock_data)
    assert status.describe(finished.folder)["state"] in (*status.STATES, "unknown")


def test_status_of_a_root_shows_what_is_not_over_and_the_newest(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    for name, state, when in (("a", "done", "2026-01-03"), ("b", "done", "2026-01-02"), ("c", "running", "2026-01-01")):
        one = Board(write_spec(tmp_path, name, max_candidates=1))
        one.run()
        described(one.folder, state=state, updated_at=when)
    (tmp_path / "runs/not-a-run").mkdir()
    status.answer(lambda event: events.append(dict(event)), [tmp_path], show_all=False)
    assert events.pop(0)["event"] == "board"
    assert [(event["run_id"], event["state"]) for event in events] == [("a", "done"), ("c", "interrupted")]
    events.clear()
    status.answer(lambda event: events.append(dict(event)), [tmp_path], show_all=True)
    assert [event["run_id"] for event in events[1:]] == ["a", "b", "c"]


def test_status_of_nothing_is_unknown(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    status.answer(lambda event: events.append(dict(event)), [tmp_path / "gone"], show_all=False)
    assert (events[0]["state"], events[0]["message"]) == ("unknown", "there is no run here")


def test_stop_ends_the_process_that_holds_the_lock(finished: Board, holder: Any, events: list[dict[str, Any]]) -> None:
    process = holder(finished.folder / "lock")
    verbs.stop(lambda event: events.append(dict(event)), finished.folder.path, timeout_s=30)
    assert process.wait() == -signal.SIGTERM
    assert (events[0]["was_alive"], events[0]["is_alive"]) == (True, False)
    verbs.stop(lambda event: events.append(dict(event)), finished.folder.path, timeout_s=30)
    assert events[1]["was_alive"] is False


def test_stop_gives_up_on_time_with_124(finished: Board, monkeypatch: pytest.MonkeyPatch, holder: Any) -> None:
    holder(finished.folder / "lock")
    monkeypatch.setattr(Identity, "terminate", lambda self: True)
    with pytest.raises(EdgeLtsError, match="has not ended within 0 s") as info:
        verbs.stop(lambda event: None, finished.folder.path, timeout_s=0)
    assert info.value.exit_code == 124


# -- locks and identity --------------------------------------------------------------------------------------------


def test_a_held_lock_names_its_holder(tmp_path: Path, holder: Any) -> None:
    process = holder(tmp_path / "lock")
    with pytest.raises(LockedError, match=rf"the board is in use by run other \(pid {process.pid}, for \d+ s\)"):
        Lock(tmp_path / "lock", run_id="mine", what="the board", patience_s=0)
    process.kill()
    process.wait()
    Lock(tmp_path / "lock", run_id="mine", what="the board", patience_s=0).release()


def test_a_lock_is_not_inherited_by_what_is_executed(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock", run_id="mine", what="it")
    code = "print(flush=True); input()"  # a word first: exec closes descriptors after Popen returns
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    )
    assert child.stdout is not None
    child.stdout.readline()
    lock.release()
    assert not job.is_locked(tmp_path / "lock")
    child.communicate(b"\n")


def test_an_identity_is_pid_start_time_and_boot() -> None:
    me = Identity.current()
    assert me.matches_a_process()
    assert Identity.from_json(me.to_json()) == me
    for change in ({"pid": 1 << 22}, {"start_time_ticks": 1}, {"boot_id": "x"}):
        other = Identity.from_json({**me.to_json(), **change})
        assert other is not None
        assert not other.matches_a_process()
        assert not other.terminate()
    for wrong in ({}, {"pid": True}, {"pid": 0}, {"pid": 1}, {"pid": -1}, {"pid": "1"}, {"pid": 1 << 40}):
        assert Identity.from_json(wrong) is None


def run_python(code: str, log: Path) -> subprocess.CompletedProcess[bytes]:
    """A program that finds this checkout, with `log` as its argument."""
    return subprocess.run(
        [sys.executable, "-c", code, str(log)],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_detach_returns_the_first_message_of_a_process_of_its_own_session(tmp_path: Path) -> None:
    code = (
        "import json, os, sys, signal; from pathlib import Path; from edge_lts.job import detach\n"
        "def body(announce):\n"
        "    announce({'pid': os.getpid(), 'sid': os.getsid(0), 'fds': sorted(os.listdir('/proc/self/fd'), key=int),\n"
        "              'hup': signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, 'cwd': os.getcwd()})\n"
        "    announce({'second': 1}); print('to the log', file=sys.stderr); return 3\n"
        "leak = os.open('/dev/null', os.O_RDONLY)\n"
        "print(json.dumps({'sid': os.getsid(0), **{'job': detach(Path(sys.argv[1]), body)}}))"
    )
    done = run_python(code, tmp_path / "log.txt")
    result = json.loads(done.stdout)
    assert result["job"]["sid"] != result["sid"]
    assert result["job"]["hup"]
    assert result["job"]["cwd"] == "/"
    assert len(result["job"]["fds"]) == 5  # three standard ones, the pipe, and the listing itself
    deadline = time.monotonic() + 30
    while "to the log" not in (tmp_path / "log.txt").read_text() and time.monotonic() < deadline:
        os.sched_yield()
    assert "to the log" in (tmp_path / "log.txt").read_text()


def test_detach_without_a_word_is_an_error(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edge_lts.job import detach\n"
        "from edge_lts.errors import EdgeLtsError\n"
        "try: detach(Path(sys.argv[1]), lambda announce: 1)\n"
        "except EdgeLtsError as exc: print(exc)"
    )
    done = run_python(code, tmp_path / "log.txt")
    assert b"the run ended before it began; see " in done.stdout


# -- pull ----------------------------------------------------------------------------------------------------------


def pulled(folder: RunFolder, offsets: Mapping[str, int] | None = None) -> dict[str, tuple[dict[str, Any], bytes]]:
    """What a reader on the other side of the link makes of it."""
    stream = io.BytesIO()

    def emit(event: Mapping[str, Any]) -> None:
        stream.write(json.dumps(event).encode() + b"\n")

    transfer.pull(emit, stream, folder.path, json.dumps(offsets or {}))
    stream.seek(0)
    files: dict[str, tuple[dict[str, Any], bytes]] = {}
    while True:
        event = json.loads(stream.readline())
        if event["event"] == "pulled":
            assert stream.read() == b""
            assert event["n_files"] == len(files)
            return files
        files[event["name"]] = (event, stream.read(event["size"]))


def test_pull_sends_every_file_of_the_run(finished: Board) -> None:
    files = pulled(finished.folder)
    assert set(files) == {
        "spec.json",
        "device.json",
        "status.json",
        "frontier.json",
        "ledger.jsonl",
        "events.jsonl",
        "log.txt",
    }
    for name, (event, data) in files.items():
        assert data == (finished.folder / name).read_bytes()
        if "sha256" in event:
            assert event["sha256"] == hashlib.sha256(data).hexdigest()


def test_pull_goes_on_from_an_offset_and_proves_the_prefix(finished: Board) -> None:
    whole = (finished.folder / "ledger.jsonl").read_bytes()
    offset = whole.find(b"\n") + 1
    event, data = pulled(finished.folder, {"ledger.jsonl": offset})["ledger.jsonl"]
    assert data == whole[offset:]
    assert event["offset"] == offset
    assert event["sha256_prefix"] == hashlib.sha256(whole[:offset][-event["n_prefix_bytes"] :]).hexdigest()
    event, data = pulled(finished.folder, {"ledger.jsonl": len(whole)})["ledger.jsonl"]
    assert (event["size"], data) == (0, b"")


def test_pull_starts_again_where_the_board_has_less(finished: Board) -> None:
    whole = (finished.folder / "ledger.jsonl").read_bytes()
    event, data = pulled(finished.folder, {"ledger.jsonl": len(whole) + 1})["ledger.jsonl"]
    assert (event["is_reset"], event["offset"], data) == (True, 0, whole)


@pytest.mark.parametrize("tail", [b"", b'{"half', b"x" * 200_000])
def test_pull_sends_whole_lines_only(finished: Board, tail: bytes) -> None:
    path = finished.folder / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert pulled(finished.folder)["ledger.jsonl"][1] == whole
    assert pulled(finished.folder, {"ledger.jsonl": len(whole)})["ledger.jsonl"][1] == b""


@pytest.mark.parametrize(
    "offsets", ["", "[]", '{"x": 1}', '{"ledger.jsonl": -1}', '{"ledger.jsonl": true}', "[" * 9000]
)
def test_wrong_offsets_are_refused(finished: Board, offsets: str) -> None:
    with pytest.raises(SpecError, match="offset"):
        transfer.pull(lambda event: None, io.BytesIO(), finished.folder.path, offsets)
    with pytest.raises(SpecError, match="does not exist"):
        transfer.pull(lambda event: None, io.BytesIO(), finished.folder.path / "gone", "{}")


# -- clean ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(finished: Board, tmp_path: Path) -> Path:
    for name in ("env/lock1/torch", "agents", "trainings/0123456789ab"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x" * 1000)
    return tmp_path


def test_clean_removes_all_that_is_ours(root: Path, events: list[dict[str, Any]]) -> None:
    transfer.clean(lambda event: events.append(dict(event)), root, keep_runs=False, is_dry_run=True)
    assert events[0]["sizes"]["env"] == 1000
    assert events[0]["removed"] == []
    assert (root / "env").exists()
    transfer.clean(lambda event: events.append(dict(event)), root, keep_runs=False, is_dry_run=False)
    assert events[1]["removed"] == ["runs", "trainings", "env", "agents"]
    assert not root.exists()
    transfer.clean(lambda event: events.append(dict(event)), root, keep_runs=False, is_dry_run=False)
    assert events[2]["removed"] == []


def test_clean_can_keep_the_runs(root: Path, events: list[dict[str, Any]]) -> None:
    transfer.clean(lambda event: events.append(dict(event)), root, keep_runs=True, is_dry_run=False)
    assert (root / "runs/run/ledger.jsonl").exists()
    assert (root / "trainings/0123456789ab/file").exists()
    assert not (root / "env").exists()


@pytest.mark.parametrize("lock", ["board.lock", "runs/run/lock"])
def test_clean_refuses_while_a_run_is_alive(
    root: Path, holder: Any, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(Lock.__init__, "__kwdefaults__", {"patience_s": 0.0})
    holder(root / lock)
    with pytest.raises(LockedError) as info:
        transfer.clean(lambda event: None, root, keep_runs=False, is_dry_run=False)
    assert info.value.exit_code == 7
    assert (root / "env/lock1/torch/file").exists()


def test_clean_refuses_what_is_not_ours(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def refuse(path: Path, match: str) -> None:
        with pytest.raises(SpecError, match=match):
            transfer.clean(lambda event: None, path, keep_runs=False, is_dry_run=False)

    (elsewhere / "link").symlink_to(root)
    refuse(elsewhere / "link", "is not a folder")
    refuse(elsewhere, "does not look like a folder of edge-lts")
    (root / "thesis.tex").write_text("years of work")
    refuse(root, r"holds 'thesis\.tex'")
    (root / ".edge-lts-root").touch()
    (root / "agents/file").unlink()
    (root / "agents").rmdir()
    (root / "agents").symlink_to(elsewhere)
    refuse(root, "is a symbolic link")
    (root / "agents").unlink()
    transfer.clean(lambda event: None, root, keep_runs=False, is_dry_run=False)
    assert os.listdir(root) == ["thesis.tex"]


def test_clean_does_not_follow_links_inside(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("precious")
    (precious / "file").touch()
    (root / "env/link").symlink_to(precious)
    transfer.clean(lambda event: None, root, keep_runs=False, is_dry_run=False)
    assert (precious / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own a folder as somebody else")
def test_clean_refuses_a_folder_of_somebody_else(root: Path) -> None:
    os.chown(root, 12345, 12345)
    with pytest.raises(SpecError, match="belongs to another user"):
        transfer.clean(lambda event: None, root, keep_runs=False, is_dry_run=False)

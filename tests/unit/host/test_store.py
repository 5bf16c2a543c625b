"""Run folders on this machine: names, atomic files, what is accepted from a board, finding a run."""

from __future__ import annotations

import datetime
import errno
import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts.errors import LedgerError
from edge_lts.records import check_run_id
from edge_lts_host import store
from edge_lts_host.errors import StoreError, UsageError
from edge_lts_host.store import RunFolder
from tests.unit.host.sample_runs import write_run


def test_a_run_id_says_when_and_what_and_sorts_by_time() -> None:
    now = datetime.datetime(2026, 11, 22, 10, 15, 30, tzinfo=datetime.timezone.utc)
    first = store.new_run_id("local", now, random.Random(1))
    assert first == "20261122-101530-local-" + first[-4:]
    assert check_run_id(first) == first
    later = store.new_run_id("arm64", now + datetime.timedelta(seconds=1), random.Random(1))
    assert first < later
    assert store.new_run_id("local") != store.new_run_id("local")


def test_the_runs_root_is_the_variable_or_the_platforms_data_folder(home: Path) -> None:
    assert store.runs_root({"EDGE_LTS_RUNS": "/somewhere/runs"}) == Path("/somewhere/runs")
    assert store.runs_root({}).parts[-2:] == ("edge-lts", "runs")
    assert store.local_root() == home / "share"


@pytest.mark.parametrize("inner", ["", "agents"])
@pytest.mark.parametrize(("mode", "is_refused"), [(0o755, False), (0o1777, False), (0o777, True)])
def test_a_local_root_in_which_others_may_write_is_refused(
    tmp_path: Path, inner: str, mode: int, is_refused: bool
) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / inner).chmod(mode)
    environ = {"EDGE_LTS_RUNS": str(tmp_path / "runs")}
    if is_refused:
        with pytest.raises(StoreError, match=f"could change what is run in {tmp_path / inner}; set EDGE_LTS_RUNS"):
            store.local_root(environ)
    else:
        assert store.local_root(environ) == tmp_path


def test_agents_of_somebody_else_are_refused_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agents").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StoreError, match="other users"):
        store.local_root({"EDGE_LTS_RUNS": str(tmp_path / "runs")})


def test_what_the_board_says_of_a_run_is_safe_to_show_and_to_reckon_with(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name, read in (("status.json", folder.status), ("frontier.json", folder.frontier)):
        (tmp_path / name).write_text('{"message": "\\u001b[2J", "spent_s": 1.5}')
        assert read() == {"message": "\\x1b[2J", "spent_s": 1.5}
        for number in ("1e999", "NaN", str(1 << 63)):
            (tmp_path / name).write_text(f'{{"spent_s": {number}}}')
            assert read() == {}


def test_a_written_file_is_whole_private_if_asked_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    store.write_atomic(path, b"one", mode=0o600)
    store.write_atomic(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    store.write_atomic(path, b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(StoreError, match=r"cannot write .*status\.json: No space left"):
        folder.append_pulled("status.json", 0, b"{}")


def test_what_is_pulled_goes_on_where_it_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.offsets() == {"ledger.jsonl": 0, "events.jsonl": 0, "log.txt": 0}
    assert folder.append_pulled("ledger.jsonl", 0, b"one\n") == 4
    assert folder.append_pulled("ledger.jsonl", 4, b"two\n") == 8
    assert folder.append_pulled("ledger.jsonl", 8, b"") == 8
    assert folder.append_pulled("ledger.jsonl", 4, b"two\nthree\n") == 14
    assert (folder.path / "ledger.jsonl").read_bytes() == b"one\ntwo\nthree\n"
    assert folder.offsets()["ledger.jsonl"] == 14
    assert folder.append_pulled("status.json", 0, b'{"a": 1}') == 8
    assert folder.append_pulled("status.json", 0, b"{}") == 2
    assert folder.status() == {}


def test_what_contradicts_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append_pulled("ledger.jsonl", 0, b"measured\n")
    for offset, data, words in (
        (0, b"MEASURED\n", "contradicts"),
        (4, b"xxxxxxxxxx", "contradicts"),
        (10, b"more\n", "only 9 are here"),
    ):
        with pytest.raises(StoreError, match=words):
            folder.append_pulled("ledger.jsonl", offset, data)
    assert (folder.path / "ledger.jsonl").read_bytes() == b"measured\n"
    with pytest.raises(StoreError, match="must come whole"):
        folder.append_pulled("spec.json", 5, b"{}")


@pytest.mark.parametrize(
    "name", ["../../.ssh/authorized_keys", "lock", "host.json", "", "/etc/passwd", "ledger.jsonl\0", "a/b"]
)
def test_a_board_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="that no run has"):
        RunFolder(tmp_path / "run").append_pulled(name, 0, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_board_cannot_fill_this_disk() -> None:
    with pytest.raises(StoreError, match=r"status\.json has 1048577 bytes"):
        store.check_pulled("status.json", (1 << 20) + 1)
    store.check_pulled("status.json", 1 << 20)


def test_a_disk_that_fills_up_in_the_middle_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append_pulled("ledger.jsonl", 0, b"one\n")
    write = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[:2], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="what was pulled before is kept"):
        folder.append_pulled("ledger.jsonl", 4, b"two\n")
    assert (folder.path / "ledger.jsonl").read_bytes() == b"one\n"


def test_where_a_run_is_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.host_meta() == {}
    folder.write_host_meta({"host": "pi5-a", "target": "rpi5"})
    assert folder.host_meta() == {"host": "pi5-a", "target": "rpi5"}
    (folder.path / "host.json").write_text('{"schema_version": 99}')
    with pytest.raises(StoreError, match="schema_version 99"):
        folder.host_meta()
    (folder.path / "host.json").write_text("[")
    with pytest.raises(StoreError, match=r"cannot read .*host\.json"):
        folder.host_meta()


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a-run")
    folder.create()
    with pytest.raises(StoreError, match="cannot make"):
        folder.create()


def test_a_torn_last_line_is_left_out_and_damage_before_it_is_not(home: Path) -> None:
    folder = RunFolder(write_run(store.runs_root(), "20261122-101530-rpi5-ab12"))
    n_outcomes = len(folder.outcomes())
    ledger = folder.path / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"schema_version": 1, "kind": "eval')
    assert len(folder.outcomes()) == n_outcomes
    ledger.write_bytes(b"garbage\n" + whole)
    with pytest.raises(LedgerError, match="line 1"):
        folder.outcomes()


RUNS = ("20261120-080000-arm64-aaaa", "20261121-080000-rpi4-bbbb", "20261122-101530-rpi5-ab12")


@pytest.fixture
def runs(home: Path) -> Path:
    root = store.runs_root()
    for run_id in reversed(RUNS):
        write_run(root, run_id)
    (root / "not a run").mkdir()
    (root / "20261123-000000-no-spec").mkdir()
    (root / "file").write_text("")
    return root


def test_runs_are_listed_oldest_first(runs: Path) -> None:
    assert [folder.run_id for folder in store.list_runs()] == list(RUNS)


def test_a_run_is_found_by_id_beginning_end_or_path(runs: Path) -> None:
    assert store.resolve().run_id == RUNS[2]
    assert store.resolve(RUNS[0]).run_id == RUNS[0]
    assert store.resolve("20261121").run_id == RUNS[1]
    assert store.resolve("ab12").run_id == RUNS[2]
    assert store.resolve(str(runs / RUNS[1])).run_id == RUNS[1]


def test_a_run_that_is_not_there_is_answered_with_the_nearest(runs: Path) -> None:
    with pytest.raises(UsageError, match=f"did you mean {RUNS[2]}"):
        store.resolve("20261122-101530-rpi5-ab21")
    with pytest.raises(UsageError, match=f"the newest: {RUNS[2]}, {RUNS[1]}"):
        store.resolve("zzz")
    with pytest.raises(UsageError, match=r"any of 3 runs"):
        store.resolve("2026")
    with pytest.raises(UsageError, match="no run is called ''"):
        store.resolve("")
    with pytest.raises(UsageError, match="no run folder"):
        store.resolve(str(runs / "file"))


def test_without_runs_it_says_how_to_start_one(home: Path) -> None:
    assert store.list_runs() == []
    with pytest.raises(UsageError, match="edge-lts run --target local"):
        store.resolve()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=6)), max_size=8))
def test_however_pieces_arrive_the_file_is_always_a_beginning_of_the_boards(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    truth = bytes(range(256)) * 2
    here = 0
    for offset, noise in pieces:
        data = truth[offset : offset + len(noise)]
        if offset <= here:
            here = max(here, folder.append_pulled("log.txt", offset, data))
        else:
            with pytest.raises(StoreError):
                folder.append_pulled("log.txt", offset, data)
        path = folder.path / "log.txt"
        assert (path.read_bytes() if path.exists() else b"") == truth[:here]

import contextlib
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture
from edge_lts.errors import DiskError, EdgeLtsError, LedgerError
from edge_lts.ledger import Ledger, LedgerReader, read, read_outcomes
from edge_lts.records import Outcome, outcome_from_json
from tests.fake_agent import evaluation, failure

ARCH = Architecture.from_json({"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": 64}]})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def append(path: Path, *records: dict[str, object]) -> None:
    with Ledger(path) as ledger:
        for record in records:
            ledger.append(record)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    outcomes: list[Outcome] = [evaluation(ARCH), failure(ARCH, 1)]
    append(path, *(outcome.to_json() for outcome in outcomes))
    assert read_outcomes(path) == (outcomes, 0)
    assert [record["kind"] for record in read(path)[0]] == ["evaluation", "failure"]


@pytest.mark.parametrize("n_writable", [0, 1])
def test_a_disk_that_became_read_only_is_noticed_although_writing_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_writable: int
) -> None:
    """Seen on ext4 after an emergency remount: what is written to an open file stays in memory, and fsync returns 0."""
    path = tmp_path / "ledger.jsonl"
    append(path, {"a": 1})
    whole = path.read_bytes()
    answers = [0] * n_writable  # before the write, then after its fsync
    real = os.fstatvfs

    def fstatvfs(fd: int) -> object:
        flag = answers.pop() if answers else os.ST_RDONLY
        return SimpleNamespace(f_flag=real(fd).f_flag | flag)

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    with Ledger(path) as ledger, pytest.raises(DiskError, match="Read-only file system; make it writable and resume"):
        ledger.append({"a": 2})
    assert path.read_bytes() == whole


def test_a_missing_ledger_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "nothing") == ([], 0)


def test_an_unreadable_ledger_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=str(tmp_path)):
        read(tmp_path)
    with pytest.raises(LedgerError, match=str(tmp_path)):
        Ledger(tmp_path)


@pytest.mark.parametrize("tail", [b'{"torn', b"{}", b"\0\0\0\0", b"garbage\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"a": 1}, {"a": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    reader = LedgerReader(path)
    assert [record["a"] for _, record in reader.lines()] == [1, 2]
    assert (reader.dropped_tail, reader.valid_bytes) == (len(tail), len(whole))
    with Ledger(path) as ledger:
        assert ledger.cut_tail(reader.valid_bytes) == tail
        ledger.append({"a": 3})
    assert path.read_bytes() == whole + b'{"a":3}\n'


def test_every_cut_of_a_ledger_reads_as_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"a": 1}, {"b": "x" * 20}, {"c": [1, 2]})
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        records, dropped = read(path)
        n_lines = whole[:size].count(b"\n")
        assert len(records) == n_lines
        assert dropped == size - (whole[:size].rfind(b"\n") + 1)


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\0\0\n", b"[1]\n", b"\n"])
def test_garbage_in_the_middle_names_file_line_and_remedy(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"a":1}\n' + garbage + b'{"a":2}\n')
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 2: .*head -n 1 "):
        read(path)
    assert path.read_bytes() == before


def test_a_record_that_is_no_outcome_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, evaluation(ARCH).to_json(), {**evaluation(ARCH).to_json(), "schema_version": 99})
    with pytest.raises(LedgerError, match=r"line 2: .*upgrade edge-lts"):
        read_outcomes(path)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"a": 1})
    with Ledger(path) as ledger, pytest.raises(ValueError, match="JSON"):
        ledger.append({"a": float("nan")})
    assert path.read_bytes() == b'{"a":1}\n'


@pytest.mark.parametrize("n_written", [0, 5])
def test_a_full_disk_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    path = tmp_path / "ledger.jsonl"
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if n_written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:n_written], offset)

    with Ledger(path) as ledger:
        ledger.append({"a": 1})
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(LedgerError, match=r"ledger\.jsonl: No space left on device; free some space and resume"):
            ledger.append({"a": 2})
        monkeypatch.undo()
        ledger.append({"a": 3})
    assert path.read_bytes() == b'{"a":1}\n{"a":3}\n'


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.lists(JSON, max_size=4).map(lambda v: "\n".join(map(json.dumps, v)).encode()))
def test_fuzzed_ledgers_raise_only_ledger_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzzed.jsonl"
    path.write_bytes(data)
    for function in (read, read_outcomes):
        with contextlib.suppress(LedgerError):
            function(path)
    assert path.read_bytes() == data


@settings(max_examples=150)
@given(st.data())
def test_fuzzed_records_raise_only_declared_errors(data: st.DataObject) -> None:
    valid = (evaluation(ARCH) if data.draw(st.booleans()) else failure(ARCH, 1)).to_json()
    record: dict[str, object] = json.loads(json.dumps(valid))
    for key in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=3)):
        record[key] = data.draw(JSON | st.integers(min_value=10**400, max_value=10**401))
    with contextlib.suppress(EdgeLtsError):
        outcome_from_json(record)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_beyond_floats_are_refused(value: int) -> None:
    with pytest.raises(EdgeLtsError):
        outcome_from_json({**evaluation(ARCH).to_json(), "spent_s": value})

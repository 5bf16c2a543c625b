"""`edge-lts bench`: what all ledgers say of an architecture and of boards, and all of it as one file."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_lts.records import Protocol
from edge_lts_host import api, store
from edge_lts_host.errors import StoreError
from edge_lts_host.index import tabular
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, architecture, write_run
from tests.unit.host.test_compare import confirm_all

A, B = "20261122-101530-rpi5-ab12", "20261123-101530-rpi4-cd34"
RPI4 = replace(RPI5, model="Raspberry Pi 4 Model B", cpu_model="Cortex-A72")
MEMBER = architecture(4, 128, 512)


@pytest.fixture(autouse=True)
def two_boards() -> None:
    confirm_all(write_run(store.runs_root(), A))
    confirm_all(write_run(store.runs_root(), B, target="rpi4", host="pi4-a", device=RPI4, scale=2.0))


def answer(run: Run, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("bench", "query", *words, "-o", "json"))
    return found


# Asking for an architecture -------------------------------------------------------------------------------------------


def test_an_architecture_is_answered_from_every_board_that_measured_it(run: Run) -> None:
    found = answer(run, MEMBER.arch_id)
    assert found["architecture"] == MEMBER.to_json()
    by_model = {board["device"]["model"]: board for board in found["boards"]}
    assert set(by_model) == {RPI5.model, RPI4.model}
    quick, slow = (by_model[model]["objectives"]["decode_latency_s"] for model in (RPI5.model, RPI4.model))
    assert slow["median"] / quick["median"] == pytest.approx(2)
    low, high = quick["pi95"]
    assert low < quick["median"] < high
    assert by_model[RPI5.model]["n_processes"] == 5
    assert by_model[RPI5.model]["run_ids"] == [A]


def test_it_may_be_given_as_file_json_or_the_beginning_of_its_id(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({"backbone": "gpt2", **MEMBER.to_json()}))
    wanted = answer(run, MEMBER.arch_id)
    for spelling in (str(path), json.dumps(MEMBER.to_json()), MEMBER.arch_id[:6]):
        assert answer(run, spelling) == wanted


def test_device_keeps_those_that_match(run: Run) -> None:
    for pattern in ("pi 4", "RPI4", "*4-cd34", "cortex-a72", "pi4-a"):
        [board] = answer(run, MEMBER.arch_id, "--device", pattern)["boards"]
        assert board["device"]["model"] == RPI4.model
    assert "no board matches 'riscv'" in run("bench", "boards", "--device", "riscv", status=2)


def test_what_nobody_measured_is_said(run: Run) -> None:
    unknown = json.dumps(architecture(5, 64, 64).to_json())
    assert "measured by no run" in run("bench", "query", unknown, status=1)
    assert "no architecture 000000" in run("bench", "query", "000000", status=1)
    failed = architecture(12, 512, 2048)  # a failure is no measurement
    assert "measured by no run" in run("bench", "query", json.dumps(failed.to_json()), status=1)


def test_the_table_says_values_with_intervals_and_how_they_were_measured(run: Run) -> None:
    text = run("bench", "query", MEMBER.arch_id)
    assert text.startswith(f"{MEMBER.arch_id}: gpt2")
    assert "decode ms" in text
    assert "Raspberry Pi 4 Model B" in text
    assert "prompt 192, context 192, logits last, 4 threads, float32" in text
    rows = list(csv.DictReader(io.StringIO(run("bench", "query", MEMBER.arch_id, "-o", "csv"))))
    assert [row["model"] for row in rows] == [
        board["device"]["model"] for board in answer(run, MEMBER.arch_id)["boards"]
    ]
    assert all(float(row["decode_latency_s"]) > 0 for row in rows)


def test_hostile_names_of_a_board_reach_no_terminal(run: Run) -> None:
    device = replace(RPI5, model="Pi\x1b[31m | <script>")
    write_run(store.runs_root(), "20261124-101530-rpi5-zz99", device=device)
    for output in ("table", "md"):
        text = run("bench", "query", MEMBER.arch_id, "-o", output)
        assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<", "")


def test_wrong_words_are_explained(run: Run) -> None:
    assert "needs ARCH" in run("bench", "query", status=2)
    assert "takes no 'x'" in run("bench", "boards", "x", status=2)
    assert "cannot be set aside" in run("bench", "compare", "--across", "torch", status=2)


def test_without_any_measurement_it_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "none"))
    assert "edge-lts pull" in run("bench", "boards", status=2)


# All boards -----------------------------------------------------------------------------------------------------------


def test_boards_says_what_was_measured_where_and_its_frontier(run: Run) -> None:
    found = json.loads(run("bench", "boards", "-o", "json"))["boards"]
    assert [board["n_measurements"] for board in found] == [15, 15]
    assert [board["n_failed"] for board in found] == [1, 1]
    assert [len(board["frontier"]) for board in found] == [4, 4]
    assert "Raspberry Pi 5" in run("bench", "boards")


def test_compare_sets_boards_against_one_another_as_compare_does_runs(run: Run) -> None:
    data = json.loads(run("bench", "compare", "-o", "json"))
    runs = json.loads(run("compare", A, B, "-o", "json"))
    [pair], [expected] = data["groups"][0]["pairs"], runs["groups"][0]["pairs"]
    assert data["groups"][0]["runs"] == sorted(data["groups"][0]["runs"])  # the slower Raspberry Pi 4 first
    ratios = [one["ratios"]["decode_latency_s"]["median"] for one in (pair, expected)]
    assert ratios == [pytest.approx(0.5, rel=0.02), pytest.approx(2.0, rel=0.02)]
    for name in ("decode_latency_s", "prefill_latency_s"):
        assert pair["rank_correlation"][name]["n"] == expected["rank_correlation"][name]["n"] == 5
        assert pair["rank_correlation"][name]["kendall"] == expected["rank_correlation"][name]["kendall"]
    assert data["groups"][0]["hypervolume"] is not None


def test_boards_that_measured_otherwise_are_not_compared(run: Run) -> None:
    assert "two boards or more" in run("bench", "compare", "--device", "rpi4", status=2)
    write_run(store.runs_root(), "20261124-101530-rpi5-ef56", protocol=Protocol(threads=4, precision="bfloat16"))
    assert "left out" not in run("bench", "compare", "--by", "run", "--device", "rpi")
    wide = json.loads(run("bench", "compare", "--across", "precision", "-o", "json"))
    assert len(wide["groups"][0]["runs"]) == 3


# One file -------------------------------------------------------------------------------------------------------------


def exported(run: Run, path: Path) -> Path:
    run("bench", "export", str(path))
    return path


def test_an_exported_file_answers_as_the_ledgers_do(run: Run, tmp_path: Path) -> None:
    path = exported(run, tmp_path / "measured.jsonl.gz")
    here, there = answer(run, MEMBER.arch_id), answer(run, MEMBER.arch_id, "--from", str(path))
    for board in here["boards"]:
        board["hosts"] = []  # names of hosts stay at home
    assert there == here
    data, again = (json.loads(run("bench", "compare", *words, "-o", "json")) for words in ((), ("--from", str(path))))
    for one in data["runs"]:
        one["host"] = None
    assert again == data


def test_two_exports_are_equal_byte_by_byte_and_say_what_they_hold(run: Run, tmp_path: Path) -> None:
    one, other = exported(run, tmp_path / "a.gz"), exported(run, tmp_path / "b.gz")
    assert one.read_bytes() == other.read_bytes()
    lines = gzip.decompress(one.read_bytes()).splitlines(keepends=True)
    end = json.loads(lines[-1])
    assert end["sha256"] == hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    assert (end["n_runs"], end["n_architectures"], end["n_measurements"]) == (2, 5, 30)
    assert b"pi4-a" not in b"".join(lines)
    assert b"boot_id" not in b"".join(lines)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: lines[:-1], "cut short"),
        (lambda lines: [line.replace(b'"median":', b'"median":1', 1) for line in lines], "checksum"),
        (lambda lines: [*lines[:5], *lines[6:]], "checksum|stands before"),
        (lambda lines: [*lines, b"{}\n"], "checksum"),
        (lambda lines: [b'{"kind":"header","format":"other"}\n', *lines[1:]], "no file that"),
        (lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]], "version 2"),
        (lambda lines: [*lines[:3], b'{"kind":"run"}\n', *lines[3:]], "line 4"),
        (lambda lines: [lines[0], b"[" * 100_000 + b"\n"], "line 2"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    run: Run, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    path = exported(run, tmp_path / "a.gz")
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(damage(lines))))
    with pytest.raises(StoreError, match=words):
        tabular.read(path)
    assert str(path) in run("bench", "boards", "--from", str(path), status=1)


def test_bytes_that_are_no_gzip_are_refused(run: Run, tmp_path: Path) -> None:
    path = exported(run, tmp_path / "a.gz")
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in run("bench", "boards", "--from", str(path), status=1)
    path.write_text("hello")
    assert "cannot be read" in run("bench", "boards", "--from", str(path), status=1)
    assert "cannot be read" in run("bench", "boards", "--from", str(tmp_path / "none"), status=1)


# As functions ---------------------------------------------------------------------------------------------------------


def test_the_api_answers_as_the_command_line(run: Run, tmp_path: Path) -> None:
    assert api.query(MEMBER.arch_id) == answer(run, MEMBER.arch_id)
    assert api.query(MEMBER, device="pi 4") == answer(run, MEMBER.arch_id, "--device", "pi 4")
    assert api.boards() == json.loads(run("bench", "boards", "-o", "json"))["boards"]
    path = tmp_path / "measured.jsonl.gz"
    assert api.export_measurements(path)["n_measurements"] == 30
    assert api.query(MEMBER.to_json(), source=path)["arch_id"] == MEMBER.arch_id
    assert len(api.measurements(source=path)) == len(api.measurements()) == 30
    assert api.compare_boards() == json.loads(run("bench", "compare", "-o", "json"))

"""Reports: what they contain, what they look like (golden files in tests/data), and that a board cannot abuse them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts.records import METHOD_VERSION, Protocol
from edge_lts_host import store
from edge_lts_host.cli import main
from edge_lts_host.commands import common
from edge_lts_host.report import compare, pages, render
from edge_lts_host.store import RunFolder
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import RPI5, write_run

DATA = Path(__file__).resolve().parents[2] / "data"
RUN = "20261122-101530-rpi5-ab12"
OLDER = "20261121-080000-emulated-arm64-cd34"
FORMATS = ("table", "md", "csv", "json", "jsonl", "latex")


@pytest.mark.parametrize("output", FORMATS)
def test_the_report_of_the_kept_runs_reads_as_it_always_did(run: Run, output: str) -> None:
    """EDGE_LTS_REWRITE_GOLDEN=1 writes them anew; a change of them needs a reason in its commit."""
    folders = [str(path) for path in sorted((DATA / "runs").iterdir())]
    text = run("report", *folders, "-o", output)
    golden = DATA / f"report.{output}"
    if os.environ.get("EDGE_LTS_REWRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_json_holds_what_the_design_promises(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    report = json.loads(run("report", "-o", "json"))
    assert report["schema_version"] == 1
    [entry] = report["runs"]
    assert {"run_id", "target", "host", "device", "spec", "n_measured", "frontier"} <= set(entry)
    assert (entry["run_id"], entry["target"], entry["host"], entry["n_measured"]) == (RUN, "rpi5", "pi5-a", 5)
    assert entry["device"]["model"] == RPI5.model
    assert entry["spec"]["budget_s"] == 3600.0
    assert entry["failures"] == {"oom": 1}
    for member in entry["frontier"]:
        keys = {"arch_id", "architecture", "objectives", "predicted", "flags", "probably_dominated"}
        assert keys <= set(member)
        assert set(member["objectives"]["decode_latency_s"]) >= {"median", "ci95", "pi95", "n"}
        assert isinstance(member["objectives"]["decoder_params"], int)
    sizes = [member["objectives"]["decoder_params"] for member in entry["frontier"]]
    assert sizes == sorted(sizes)
    assert len(sizes) == 4
    confirmed = entry["frontier"][1]
    assert confirmed["n_processes"] == 3
    assert confirmed["flags"] == []  # one of three processes does not move a median
    assert confirmed["objectives"]["decode_latency_s"]["pi95"] is not None


def test_csv_and_jsonl_read_back_unrounded(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    report = json.loads(run("report", "-o", "json"))
    lines = run("report", "-o", "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == report["runs"]
    rows = list(csv.DictReader(io.StringIO(run("report", "-o", "csv"))))
    members = report["runs"][0]["frontier"]
    assert [row["arch_id"] for row in rows] == [member["arch_id"] for member in members]
    for row, member in zip(rows, members, strict=True):
        decode = member["objectives"]["decode_latency_s"]
        assert float(row["decode_latency_s"]) == decode["median"]
        assert float(row["decode_latency_s_ci95_low"]) == decode["ci95"][0]
        assert row["decode_latency_s_pi95_low"] == ("" if decode["pi95"] is None else repr(decode["pi95"][0]))
        assert row["d_inner"].split(";") == [str(layer["d_inner"]) for layer in member["architecture"]["layers"]]
        assert row["is_emulated"] == "false"


def test_without_arguments_it_is_the_newest_run_and_all_means_all_oldest_first(run: Run) -> None:
    for run_id in (RUN, OLDER):
        write_run(store.runs_root(), run_id)
    assert [entry["run_id"] for entry in json.loads(run("report", "-o", "json"))["runs"]] == [RUN]
    assert [entry["run_id"] for entry in json.loads(run("report", "--all", "-o", "json"))["runs"]] == [OLDER, RUN]
    twice = json.loads(run("report", RUN, "cd34", RUN, "-o", "json"))
    assert [entry["run_id"] for entry in twice["runs"]] == [OLDER, RUN]
    assert "leave out the RUN" in run("report", RUN, "--all", status=2)


def test_of_many_measurements_it_says_what_answers_sooner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id in (RUN, OLDER):
        write_run(store.runs_root(), run_id)
    assert main(["report", "--all"]) == 0
    assert "bench boards" not in capsys.readouterr().err
    monkeypatch.setattr(common, "MANY_BYTES", 1000)
    assert main(["report", "--all"]) == 0
    assert "of 2 runs; of many runs, edge-lts bench boards --by run" in capsys.readouterr().err


def test_a_run_that_goes_on_is_reported_as_far_as_its_ledger_goes(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN, state="running")
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    text = run("report")
    assert "running as of 2026-11-22T11:15:30Z" in text
    assert "2 candidates" in text
    (folder / "ledger.jsonl").unlink()
    (folder / "status.json").unlink()
    (folder / "device.json").unlink()
    (folder / "host.json").unlink()
    text = run("report")
    assert "Nothing measured yet" in text
    assert "this machine" in text
    assert run("report", "-o", "csv").count("\n") == 1


def test_emulated_timings_are_marked(run: Run) -> None:
    write_run(store.runs_root(), RUN, is_emulated=True)
    text = run("report")
    assert "emulated: timings are not performance" in text
    assert "decode ms (emulated)" in text
    assert "prefill ms (emulated)" in text
    assert "peak MiB (emulated)" not in text


def test_a_board_that_was_found_to_be_emulated_is_marked_too(run: Run) -> None:
    write_run(store.runs_root(), RUN, device=replace(RPI5, is_emulated=True))
    assert "decode ms (emulated)" in run("report")


def test_runs_that_measured_differently_stand_apart(run: Run) -> None:
    root = store.runs_root()
    write_run(root, OLDER)
    write_run(root, RUN, protocol=Protocol.named("lts"))
    write_run(root, "20261123-000000-rpi5-ee55")
    report = json.loads(run("report", "--all", "-o", "json"))
    assert report["comparable"] == [[OLDER, "20261123-000000-rpi5-ee55"], [RUN]]
    text = run("report", "--all")
    assert text.startswith("These runs measured differently")
    assert (
        f"== group 2: lts: prompt 192, context 192, logits all, 1 thread, float32, method {METHOD_VERSION} ==" in text
    )
    assert "These runs" not in run("report", RUN)


def test_threads_are_those_that_measured_when_the_protocol_says_all(run: Run) -> None:
    write_run(store.runs_root(), RUN)
    assert "logits last, 4 threads, float32" in run("report")


def test_it_warns_when_most_bytes_lie_outside_the_decoder(run: Run) -> None:
    write_run(store.runs_root(), RUN, vocab_size=50257)
    report = json.loads(run("report", "-o", "json"))
    [warning] = report["runs"][0]["warnings"]
    assert warning.startswith("in 4 of 4 members more than 40% of the bytes is embedding and head")
    assert warning in run("report")
    split = report["runs"][0]["frontier"][0]["split"]["bytes"]
    assert set(split) == {"embedding", "head", "decoder", "cache"}
    assert split["embedding"] == 4 * 64 * (50257 + 1024)
    assert compare.outside_share(split) > 0.9


def test_the_decode_time_is_split_where_the_profiler_says_so(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN)
    ledger = folder / "ledger.jsonl"
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            record["conditions"]["decode_split_s"] = {"embedding": 0.001, "head": 0.008, "decoder": 0.001, "cache": 0.0}
    ledger.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = json.loads(run("report", "-o", "json"))
    assert any("of the decode time is embedding" in warning for warning in report["runs"][0]["warnings"])
    text = run("report")
    assert "time outside" in text
    assert "90%" in text


def test_damage_is_one_line_that_names_the_file(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN)
    whole = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(b"\x00garbage\n" + whole)
    error = run("report", status=1)
    assert error.startswith(f"edge-lts: {folder / 'ledger.jsonl'}, line 1")
    assert error.count("\n") == 1
    (folder / "ledger.jsonl").write_bytes(whole)
    (folder / "spec.json").write_text("{}")
    error = run("report", status=2)
    assert "spec.json" in error
    assert error.count("\n") == 1


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202eexe\u2066\n| --- | `rm` <script>\x9b1;31m"


@pytest.mark.parametrize("output", FORMATS)
def test_a_board_cannot_drive_the_terminal(run: Run, output: str) -> None:
    device = replace(RPI5, model=HOSTILE, cpu_model=HOSTILE, torch=HOSTILE, governor=HOSTILE, machine=HOSTILE)
    folder = write_run(store.runs_root(), RUN, device=device, host=HOSTILE)
    ledger = folder / "ledger.jsonl"
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            record["flags"] = [HOSTILE]
    ledger.write_text("".join(json.dumps(record) + "\n" for record in records))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(
        json.dumps({**status, "state": HOSTILE, "reasons": [HOSTILE], "updated_at": HOSTILE})
    )
    text = run("report", "-o", output)
    assert all(character == "\n" or character.isprintable() for character in text)
    if output == "json":
        assert json.loads(text)["runs"][0]["device"]["model"] == HOSTILE
    if output == "csv":
        assert len(list(csv.DictReader(io.StringIO(text)))) == 4
    if output == "md":
        assert not re.search(r"(?<!\\)[<`]", text)
        for block in text.split("\n\n"):
            tables = [line for line in block.splitlines() if line.startswith("|")]
            assert len({re.sub(r"\\.", "", line).count("|") for line in tables}) <= 1


def test_a_folder_under_another_name_is_refused(run: Run) -> None:
    folder = write_run(store.runs_root(), RUN)
    folder.rename(folder.with_name("20261122-101530-rpi5-zzzz"))
    assert "rename the folder" in run("report", status=1)


@pytest.mark.parametrize(
    ("form", "value", "words"),
    [
        (render.count, 12610560, "12.6 M"),
        (render.count, 999, "999"),
        (render.count, None, "-"),
        (render.size, 512 << 20, "512 MiB"),
        (render.size, 100, "100 B"),
        (render.duration, 0.0123, "12.3 ms"),
        (render.duration, 0.0000123, "12.3 µs"),
        (render.duration, 95.5, "95.5 s"),
        (render.duration, 3600, "1h"),
        (render.duration, 5400, "1h30m"),
        (render.duration, 3599, "60m"),
        (render.duration, 0, "0.00 ms"),
        (render.percent, 0.412, "41%"),
    ],
)
def test_numbers_as_people_read_them(form: Callable[[float | None], str], value: float | None, words: str) -> None:
    assert form(value) == words


def test_an_interval_says_which_it_is() -> None:
    value = {"median": 0.0123, "ci95": [0.0121, 0.0126], "pi95": None, "n": 10}
    assert render.objective("decode_latency_s", value) == "12.3 (12.1, 12.6)"
    value["pi95"] = [0.0115, 0.013]
    assert render.objective("decode_latency_s", value) == "12.3 [11.5, 13.0]"
    assert render.objective("decode_latency_s", None) == "-"
    assert render.objective("decoder_params", 12610560) == "12.6"


def test_talk_goes_to_stderr_and_quiet_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    render.set_talk()
    render.talk("hello")
    render.talk("details", level=1)
    render.set_talk(quiet=True)
    render.talk("nothing")
    render.warn("careful \x1b[0m")
    render.set_talk()
    render.emit("data\n")
    captured = capsys.readouterr()
    assert captured.out == "data\n"
    assert captured.err == "hello\nedge-lts: warning: careful \\x1b[0m\n"


@given(st.text(max_size=60))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = render.text(text)
    assert shown.isprintable()
    assert len(shown) <= 80


def test_pages_and_compare_agree_on_the_keys_of_csv() -> None:
    folder = RunFolder(write_run(store.runs_root(), RUN))
    report = compare.build_report([folder])
    for member in report["runs"][0]["frontier"]:
        assert set(pages.csv_row(report["runs"][0], member)) <= set(pages.CSV_KEYS)


def test_a_long_frontier_is_cut_evenly_in_tables_and_nowhere_else() -> None:
    assert list(pages._spread(range(5), 0)) == list(pages._spread(range(5), 9)) == [0, 1, 2, 3, 4]
    assert list(pages._spread(range(101), 5)) == [0, 25, 50, 75, 100]
    assert list(pages._spread(range(7), 1)) == [0]

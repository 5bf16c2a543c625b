"""edge-lts as functions: the same answers as the command line, errors as exceptions, results in a data frame."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import api, store
from edge_lts_host.commands import VERBS
from edge_lts_host.errors import UsageError
from edge_lts_host.follow import Job
from tests.support import require
from tests.unit.host.conftest import Run
from tests.unit.host.sample_runs import architecture, write_run

RUN, OTHER = "20261122-101530-rpi5-ab12", "20261123-101530-rpi5-cd34"
DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(autouse=True)
def one_run() -> None:
    write_run(store.runs_root(), RUN)


def printed(run: Run, *words: str) -> Any:
    return json.loads(run(*words, "-o", "json"))


def test_results_are_what_the_command_line_prints(run: Run) -> None:
    write_run(store.runs_root(), OTHER, scale=2.0)
    assert api.report(RUN, OTHER) == printed(run, "report", RUN, OTHER)
    assert api.report() == printed(run, "report", OTHER)
    assert api.compare(RUN, OTHER, levels=3) == printed(run, "compare", RUN, OTHER, "--levels", "3")
    limit_s = api.report(RUN)["runs"][0]["frontier"][2]["objectives"]["decode_latency_s"]["median"] * 1.01
    found = api.pick(RUN, limits={"decode_latency_s": limit_s}, train_tokens=2e9)
    assert found["best"]["architecture"]["d_model"] == 192
    words = ("--max-decode-latency", f"{limit_s:.9f}", "--train-tokens", "2G")
    assert found["best"]["arch_id"] == printed(run, "pick", RUN, *words)["best"]["arch_id"]


def test_an_architecture_may_be_given_in_any_form(tmp_path: Path) -> None:
    arch = architecture(2, 64, 128)
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(arch.to_json()))
    for given in (arch, arch.to_json(), path, str(path), json.dumps(arch.to_json())):
        assert api.params(given)["decoder_params"] == arch.decoder_params


def test_runs_are_listed_with_what_was_heard_last() -> None:
    [found] = api.runs()
    assert (found.run_id, found.state, found.target, found.host) == (RUN, "done", "rpi5", "pi5-a")
    assert found.path == store.runs_root() / RUN


def test_any_verb_can_be_called_and_raises_instead_of_ending(capsys: pytest.CaptureFixture[str]) -> None:
    assert {one["name"] for one in api.call("targets")["targets"]} >= {"arm64", "local"}
    assert api.call("report", RUN, members=1) == api.report(RUN)
    with pytest.raises(UsageError, match="unknown verb"):
        api.call("repotr")
    with pytest.raises(UsageError, match="unrecognized arguments: --no-such-flag=3"):
        api.call("report", no_such_flag=3)
    with pytest.raises(UsageError, match="no run is called"):
        api.report("nonsense")
    assert capsys.readouterr().out == ""


def test_flags_are_spelled_as_on_the_command_line() -> None:
    flags = {"max_peak_memory": "1GiB", "host": ["a", "b"], "wait": True, "detach": False, "seed": None, "limit": "-x"}
    assert list(api._words(flags)) == ["--max-peak-memory=1GiB", "--host=a", "--host=b", "--wait", "--limit=-x"]


def test_another_exit_code_is_an_error_that_keeps_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_lts_host.commands import params

    def fails(args: Any) -> int:
        print('{"kind": "failure"}')
        return 3

    monkeypatch.setattr(params, "run", fails)
    with pytest.raises(api.CallError) as caught:
        api.call("params", "x.json")
    assert (caught.value.exit_code, caught.value.data) == (3, {"kind": "failure"})


def test_pull_says_how_many_bytes_came(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_lts_host import follow
    from edge_lts_host.fleet import Result

    def each(jobs: list[Job], work: Any, *_: Any, **__: Any) -> list[Result[Job, Any]]:
        class Session:
            def pull(self, folder: store.RunFolder) -> dict[str, int]:
                return {"ledger.jsonl": 5}

        return [Result(job, work(job, Session())) for job in jobs]

    monkeypatch.setattr(follow, "each", each)
    folder = store.RunFolder(store.runs_root() / RUN)
    place = {"root": "/r", "python": "/py", "site": None, "agent": "/r/agents/a.pyz"}
    folder.write_host_meta({"host": "pi5-a", "destination": "pi@pi5-a", "target": "rpi5", **place})
    assert api.pull(RUN) == {RUN: {"ledger.jsonl": 5}}


def test_results_are_a_data_frame_in_one_line() -> None:
    try:
        import pandas
    except ImportError:
        pandas = None
    require("pandas", pandas is not None, "pip install pandas")
    assert pandas is not None
    frontier = pandas.DataFrame(api.frontier(RUN))
    assert list(frontier["decode_latency_s"]) == sorted(frontier["decode_latency_s"])
    assert frontier["decode_latency_s"].dtype == "float64"
    processes = pandas.DataFrame(api.measurements())
    assert len(processes) == 7
    assert set(processes["arch_id"]) >= set(frontier["arch_id"])


def test_the_page_names_every_function_and_every_verb_has_a_way() -> None:
    page = (DOCS / "api.md").read_text()
    functions = [
        name
        for name, one in vars(api).items()
        if inspect.isfunction(one) and one.__module__ == api.__name__ and not name.startswith("_")
    ]
    assert [name for name in functions if f"`{name}(" not in page] == []
    assert [verb for verb in VERBS if not re.search(rf"`{verb}`", page)] == []


def test_the_example_imports_what_the_page_promises() -> None:
    source = (DOCS / "examples" / "decide.py").read_text()
    compile(source, "decide.py", "exec")
    used = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "api"
    }
    assert used >= {"run", "report", "pick", "query", "export", "frontier", "measurements"}
    assert all(hasattr(api, name) for name in used)


def test_the_api_is_imported_without_anything_heavy() -> None:
    import os
    import subprocess

    root = DOCS.parent
    code = "import edge_lts_host.api, sys; print(sorted(sys.modules.keys() & {'torch', 'numpy', 'pandas', 'paramiko'}))"
    environ = {**os.environ, "PYTHONPATH": f"{root}:{root / 'host'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

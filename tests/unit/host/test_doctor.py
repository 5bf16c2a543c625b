"""`doctor`: every code has its words and remedy; what a board says is shown, and never trusted."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import session
from edge_lts_host.agent_protocol import PROTOCOL
from edge_lts_host.cli import main
from edge_lts_host.errors import ConnectError, PreflightError
from edge_lts_host.hosts import HostEntry, hosts_file, remember
from edge_lts_host.payload import Payload
from edge_lts_host.report import doctor
from edge_lts_host.transport.base import Transport
from edge_lts_host.transport.fake import FakeTransport

ROOT = Path(__file__).resolve().parents[3]
PAYLOAD = Payload(data=b"agent", sha256="ab" * 32)


def entry(name: str, **changes: Any) -> HostEntry:
    data: dict[str, Any] = {
        "name": name,
        "destination": f"pi@{name}",
        "target": "rpi5",
        "root": "/r",
        "python": "/py",
        "agent": f"/r/agents/{PAYLOAD.name}",
        "deployed_at": "2026-11-22T00:00:00Z",
        "device": {"torch": "2.9.1+cpu"},
    }
    return HostEntry(**{**data, **changes})


Boards = dict[str, "FakeTransport | Exception"]


@pytest.fixture(autouse=True)
def payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_lts_host.payload.build_payload", lambda *asked: PAYLOAD)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> Boards:
    """What answers on the other side of each name."""
    links: Boards = {}

    def open_transport(entry: HostEntry, options: object = None) -> Transport:
        link = links[entry.name]
        if isinstance(link, Exception):
            raise link
        link.mend()
        return link

    monkeypatch.setattr(session, "open_transport", open_transport)
    return links


def answering(*findings: object, name: str = "pi") -> FakeTransport:
    link = FakeTransport(name)
    events = [
        {"event": "hello", "protocol": PROTOCOL, "verb": "doctor"},
        {"event": "findings", "findings": list(findings)},
    ]
    stdout = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    link.reply(["/py"], stdout=stdout)
    return link


def found(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    status = main(["doctor", *words, "-o", "json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    return status, {host["host"]: host["findings"] for host in document["hosts"]}


def codes_said() -> set[str]:
    """Every code that the board or the workstation can say, read from the sources."""
    codes = set()
    for path in (ROOT / "edge_lts/checkup.py", ROOT / "host/edge_lts_host/commands/doctor.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".say"):
                code = node.args[1]
                if isinstance(code, ast.Constant):
                    codes.add(str(code.value))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("finding"):
                codes |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
            if isinstance(node, ast.Dict) and isinstance(node.keys[0] if node.keys else None, ast.Constant):
                first = node.values[0]
                if ast.unparse(node.keys[0] or ast.Constant(0)) == "'code'" and isinstance(first, ast.Constant):
                    codes.add(str(first.value))
    made = {"torch_missing", "numpy_missing", "pressure_cpu", "pressure_memory", "updates_running", "desktop_running"}
    made |= {f"{kind}_{when}" for kind in ("undervolted", "throttled") for when in ("now", "since_boot")}
    return codes | made | {"agent_failed", "unreachable", "preflight"}


def test_every_code_has_words_and_a_remedy_and_every_word_a_code() -> None:
    assert set(doctor.WORDS) == codes_said()
    for code in doctor.WORDS:
        for host in ("pi@board", None):
            shown = doctor.finding(code, "error", {}, host=host)
            assert shown["what"]
            assert shown["remedy"]
            assert "{" not in shown["what"] + shown["remedy"]
            assert host is not None or "ssh" not in shown["remedy"]


def test_the_words_use_only_data_that_the_board_sends() -> None:
    source = (ROOT / "edge_lts/checkup.py").read_text() + (ROOT / "host/edge_lts_host/commands/doctor.py").read_text()
    known = {"host", "run", "deploy", "reason", "remedy"}
    for code, words in doctor.WORDS.items():
        for key in re.findall(r"\{(\w+)\}", " ".join(words)):
            assert key in known or f"{key}=" in source or f'"{key}":' in source, f"{code} shows {key}"


def test_data_is_shown_in_units_for_people() -> None:
    memory = doctor.finding("memory_full", "warning", {"available_bytes": 512 << 20, "total_bytes": 2 << 30})
    assert memory["what"] == "only 512 MiB of its 2.00 GiB of memory is free"
    assert doctor.finding("hot", "warning", {"temperature_c": 71.4, "limit_c": 80.0})["what"].startswith("it is 71 °C")
    bits = doctor.finding("throttled_now", "warning", {"bits": 5}, host="pi@a")
    assert bits["what"] == "it throttles right now: undervoltage, throttled"
    assert "edge-lts run --host pi@a --heat sustained" in bits["remedy"]
    signal = doctor.finding("torch_broken", "error", {"signal": 4, "message": ""}, host="pi@a")
    assert signal["what"] == "torch does not work there: signal 4 (built for another CPU)"
    assert signal["remedy"] == "edge-lts deploy --host pi@a"
    assert doctor.finding("torch_missing", "error", {})["remedy"] == "pip install -U 'edge-lts[local]'"
    assert doctor.finding("updates_running", "warning", {"names": ["apt", "dpkg"]})["what"].endswith("(apt, dpkg)")


def test_boards_are_examined_and_their_findings_worded_worst_first(
    boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(entry("a"))
    remember(entry("b"))
    boards["a"] = answering(
        {"code": "no_meter", "severity": "note", "data": {}},
        {"code": "disk_full", "severity": "error", "data": {"path": "/r", "free_bytes": 1 << 20}},
    )
    boards["b"] = answering()
    status, hosts = found(capsys, "--target", "arm64")
    assert status == 5
    assert list(hosts) == ["workstation", "a", "b"]
    assert [each["code"] for each in hosts["a"]] == ["disk_full", "no_meter"]
    assert hosts["a"][0]["what"] == "/r has 1.00 MiB left; a run needs ?"
    assert hosts["a"][0]["remedy"] == "make room: edge-lts clean --host pi@a"
    assert hosts["a"][0]["data"] == {"path": "/r", "free_bytes": 1 << 20}
    assert hosts["b"] == hosts["workstation"] == []
    asked = boards["a"]
    assert isinstance(asked, FakeTransport)
    assert next(call for call in asked.calls if call[0] == "/py")[3:] == ("doctor", "--root", "/r")


def test_warnings_alone_are_no_failure(boards: Boards, capsys: pytest.CaptureFixture[str]) -> None:
    remember(entry("pi"))
    boards["pi"] = answering({"code": "hot", "severity": "warning", "data": {"temperature_c": 75, "limit_c": 80}})
    assert found(capsys, "--host", "pi")[0] == 0


def test_a_board_that_cannot_be_asked_does_not_stop_the_others(
    boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        remember(entry(name))
    boards["a"] = ConnectError("a", "no route to host", "is it on?")
    boards["b"] = PreflightError("its Python is gone", "deploy again")
    boards["c"] = answering(name="c")
    broken = FakeTransport("d")
    broken.reply(["/py"], stdout=b"", stderr=b"boom\n", exit_status=9)
    boards["d"] = broken
    status, hosts = found(capsys, "--target", "rpi5")
    assert status == 5
    (a,), (b,), (d,) = hosts["a"], hosts["b"], hosts["d"]
    assert (a["code"], a["severity"], a["what"]) == ("unreachable", "error", "it cannot be reached: no route to host")
    assert a["remedy"] == "is it on?"
    assert (b["what"], b["remedy"]) == ("its Python is gone", "deploy again")
    assert d["code"] == "agent_failed"
    assert "boom" in d["what"]
    assert hosts["c"] == []


def test_a_board_may_say_anything(boards: Boards, capsys: pytest.CaptureFixture[str]) -> None:
    remember(entry("pi"))
    boards["pi"] = answering(
        {"code": "brand_new", "severity": "fatal", "data": {"x": [1]}},
        {"code": "hot", "severity": "warning", "data": ["not", "an", "object"]},
        {"code": "cannot_pin", "severity": "warning", "data": {"fastest": [], "allowed": None, "{host}": 1}},
        {"code": "busy_process", "severity": "warning", "data": {"name": "\x1b[31m{run}", "share": "all", "pid": {}}},
        "nonsense",
        {},
    )
    status, hosts = found(capsys, "--host", "pi")
    assert status == 0
    new, hot, pin, busy, empty = hosts["pi"]
    assert (new["severity"], new["what"]) == ("warning", "brand new")
    assert "upgrade edge-lts" in new["remedy"]
    assert hot["what"] == "it is ? and throttles at ?"
    assert pin["what"] == "its fastest cores (none) cannot be chosen; allowed: -"
    assert busy["what"] == "\\x1b[31m{run} (pid {}) uses all of a core"
    assert (empty["code"], empty["what"]) == ("None", "None")
    boards["pi"] = FakeTransport("pi")
    boards["pi"].reply(["/py"], stdout=b'{"event": "hello", "protocol": 1}\n{"event": "findings", "findings": 7}\n')
    assert found(capsys, "--host", "pi") == (0, {"workstation": [], "pi": []})


def test_what_deploy_remembers_is_held_against_this_edge_lts(
    boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(entry("pi", agent="/r/agents/000000000000.pyz", device={"torch": "2.8.0"}))
    remember(entry("odd", target="gone", device=None))
    boards |= {"pi": answering(), "odd": answering(name="odd")}
    _, hosts = found(capsys, "--host", "pi", "--host", "odd")
    assert [each["code"] for each in hosts["pi"]] == ["torch_skew", "agent_skew"]
    assert hosts["pi"][0]["what"].startswith("it has torch 2.8.0, its target rpi5 wants 2.9.1")
    assert [each["code"] for each in hosts["odd"]] == ["target_unknown"]


def test_the_folder_of_runs_must_be_writable(
    boards: Boards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remember(entry("pi"))
    boards["pi"] = answering()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "file" / "runs"))
    status, hosts = found(capsys, "--host", "pi")
    assert status == 5
    assert hosts["workstation"][0]["code"] == "runs_unwritable"
    monkeypatch.setenv("EDGE_LTS_RUNS", str(tmp_path / "new" / "runs"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    status, hosts = found(capsys, "--host", "pi")
    assert (status, hosts["workstation"][0]["code"]) == (0, "runs_disk_small")


def test_a_damaged_file_of_hosts_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    hosts_file().parent.mkdir(parents=True)
    hosts_file().write_text("{")
    status, hosts = found(capsys, "--target", "arm64")
    assert status == 5
    assert list(hosts) == ["workstation"]
    assert hosts["workstation"][0]["code"] == "state_damaged"
    assert "hosts.json is damaged" in hosts["workstation"][0]["what"]


def test_every_format_shows_what_and_remedy(boards: Boards, capsys: pytest.CaptureFixture[str]) -> None:
    remember(entry("a"))
    remember(entry("b"))
    boards |= {"a": answering({"code": "swap_used", "severity": "warning", "data": {"used_bytes": 1 << 30}})}
    boards |= {"b": answering(name="b")}
    words = ["doctor", "--target", "rpi5"]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[:2] == ["workstation: nothing found", "a"]
    assert table[2] == "  warning  it is swapping: 1.00 GiB in use"
    assert table[3].strip().startswith("end what needs memory")
    assert table[4] == "b: nothing found"
    assert main([*words, "-o", "csv"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "host,severity,code,what,remedy"
    assert row.startswith("a,warning,swap_used,it is swapping")
    assert main([*words, "-o", "jsonl"]) == 0
    assert [json.loads(line)["host"] for line in capsys.readouterr().out.splitlines()] == ["workstation", "a", "b"]
    assert main([*words, "-o", "md"]) == 0
    assert "| swap_used" in capsys.readouterr().out

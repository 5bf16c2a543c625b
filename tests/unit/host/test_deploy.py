"""Deploying to a scripted board: what is refused, what is pushed, what is remembered."""

from __future__ import annotations

import ast
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts.errors import EdgeLtsError
from edge_lts_host import deploy, environment, fleet, onboard, wheelhouse
from edge_lts_host.agent_protocol import PROTOCOL
from edge_lts_host.board_facts import BoardFacts
from edge_lts_host.errors import AgentProtocolError, ConnectError, PreflightError, TransferError
from edge_lts_host.hosts import HostEntry, load_hosts
from edge_lts_host.payload import Payload
from edge_lts_host.progress import Stages
from edge_lts_host.targets import load_targets
from edge_lts_host.transport import files
from edge_lts_host.transport.fake import FakeCall, FakeTransport, Pause

ROOT = "/home/pi/.local/share/edge-lts"
PAYLOAD = Payload(data=b"the agent", sha256="5bb0" + "0" * 60)
LOCK_ID = wheelhouse.load_lock()["3.11", "aarch64"].lock_id
GB = 1_000_000_000

Handler = Generator[bytes | Pause, None, int]


def facts(**changes: Any) -> dict[str, Any]:
    root = {
        "path": ROOT,
        "exists": False,
        "is_blocked": False,
        "ancestor": "/home/pi",
        "is_writable": True,
        "free_bytes": 8 * GB,
        "owner": None,
        "mode": None,
    }
    root.update(changes.pop("root", {}))
    return {
        "python": "3.11.2",
        "implementation": "cpython",
        "executable": "/usr/bin/python3",
        "python_bits": 64,
        "platform": "linux-aarch64",
        "soabi": "cpython-311-aarch64-linux-gnu",
        "system": "Linux",
        "machine": "aarch64",
        "kernel": "6.12.1",
        "libc": "glibc 2.36",
        "is_emulated": False,
        "has_lzma": True,
        "board_model": "Raspberry Pi 5 Model B Rev 1.0",
        "cpu_model": "Cortex-A76",
        "n_cores": 4,
        "memory_total_bytes": 4 * GB,
        "memory_available_bytes": 3 * GB,
        "boot_id": "b",
        "uid": 1000,
        "root": root,
        "environments": {},
        "agents": {},
        "staged": [],
        "runs": [],
        "installed": {"torch": None, "numpy": None, "pip": None},
        **changes,
    }


def torch_event(**changes: Any) -> dict[str, Any]:
    good = {"ok": True, "version": "2.9.1+cpu", "import_s": 2.0, "exit_status": 0, "signal": None, "message": ""}
    return {"event": "torch", "is_cuda_build": False, **good, **changes}


class Board:
    """A FakeTransport that answers like a board of these facts; `installs` are the orders it was given."""

    def __init__(self, **changes: Any) -> None:
        self.facts = facts(**changes)
        self.torch = torch_event()
        self.agent_status = 0
        self.install_answer: dict[str, Any] = {"ok": True, "is_new": True, "size_bytes": 1}
        self.installs: list[dict[str, Any]] = []
        self.transport = FakeTransport("pi@board")
        self.transport.on(["sh", "-c", deploy.PROBE_SCRIPT], self._probe)
        self.transport.reply(["sh", "-c", deploy.MAKE_ROOT_SCRIPT])
        self.transport.on(["/usr/bin/python3", "-I", "-", ROOT], self._install)
        self.transport.on(["/usr/bin/python3", "-I", f"{ROOT}/agents/{PAYLOAD.name}"], self._agent)
        self.transport.reply(["df"], stdout=b"F 1K U A C M\n/dev/x 9 9 5 100% /\n")

    def _probe(self, call: FakeCall) -> Handler:
        assert call.stdin == onboard.source("probe")
        yield b"Welcome to this board!\n"
        yield f"{onboard.MARKER}{json.dumps(self.facts)}\nbye\n".encode()
        return 0

    def _install(self, call: FakeCall) -> Handler:
        first, _, rest = call.stdin.partition(b"\n")
        assert rest == onboard.source("install")
        name, _, value = first.decode().partition(" = ")
        assert name == "ORDER"
        order = json.loads(ast.literal_eval(value))
        self.installs.append(order)
        yield f"{onboard.MARKER}{json.dumps(self.install_answer)}\n".encode()
        if self.install_answer["ok"]:
            self.facts["environments"][order["lock_id"]] = order["manifest"]
        return 0

    def _agent(self, call: FakeCall) -> Handler:
        hello = {"protocol": PROTOCOL, "event": "hello", "verb": "probe"}
        device = {
            "event": "device",
            **BoardFacts.from_json("board", self.facts).device_json(),
            "disk_free_bytes": 1,
        }
        if not self.agent_status:
            yield "".join(json.dumps(event) + "\n" for event in (hello, device, self.torch)).encode()
        return self.agent_status

    @property
    def puts(self) -> list[str]:
        return [call[4] for call in self.transport.calls if call[:3] == ("sh", "-c", files.STORE_SCRIPT)]

    def settle(self) -> None:
        """The facts that a second probe finds."""
        self.facts["root"] |= {"exists": True, "owner": 1000, "mode": 0o700}
        self.facts["agents"] = {PAYLOAD.name: PAYLOAD.sha256}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(autouse=True)
def small_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Wheels of a few bytes in place of 122 MB; the names of those that were asked for."""
    asked: list[str] = []

    def obtain(wheels: Any, python: str, machine: str, **options: Any) -> dict[wheelhouse.Wheel, Path]:
        found = {}
        for wheel in wheels:
            asked.append(wheel.name)
            found[wheel] = tmp_path / wheel.file
            found[wheel].write_bytes(wheel.file.encode())
        return found

    monkeypatch.setattr(wheelhouse, "obtain", obtain)
    return iter([asked])


def run(board: Board, entry: HostEntry | None = None, **options: Any) -> deploy.Outcome:
    entry = entry or load_hosts().get("pi@board") or HostEntry(name="pi@board", destination="pi@board")
    stages = Stages(entry.name, lambda text: None)
    settings = environment.Options(targets=load_targets(), **options)
    return deploy.Deployment(board.transport, entry, PAYLOAD, settings, stages).run()


def test_a_fresh_board_gets_wheels_agent_and_a_proof_and_is_remembered() -> None:
    board = Board()
    outcome = run(board)
    wheels = wheelhouse.load_lock()["3.11", "aarch64"]
    staged = [f"{ROOT}/env/wheels.part/{wheel.file}" for wheel in wheels.all_wheels]
    assert board.puts == [*staged, f"{ROOT}/agents/{PAYLOAD.name}"]
    (order,) = board.installs
    assert order["lock_id"] == LOCK_ID
    assert order["files"] == {wheel.file: wheel.sha256 for wheel in wheels.all_wheels}
    assert order["install"] == [wheel.file for wheel in wheels.wheels]
    assert order["online"] is None
    entry = load_hosts()["pi@board"]
    assert (entry.target, entry.root, entry.site) == ("rpi5", ROOT, f"{ROOT}/env/{LOCK_ID}")
    assert entry.is_deployed
    assert entry == outcome.entry
    assert outcome.n_bytes_sent > 0


def test_a_second_deploy_with_nothing_to_do_takes_one_command_and_moves_no_file() -> None:
    board = Board()
    run(board)
    board.settle()
    board.transport.calls.clear()
    before = load_hosts()["pi@board"]
    outcome = run(board)
    assert outcome.steps == ()
    assert len(board.transport.calls) == 1
    assert board.puts == []
    assert load_hosts()["pi@board"] == before


def test_a_new_agent_is_all_that_is_pushed_after_an_upgrade() -> None:
    board = Board()
    run(board)
    board.settle()
    board.facts["agents"] = {PAYLOAD.name: "0" * 64}
    board.transport.files[f"{ROOT}/agents/{PAYLOAD.name}"].data = b"damaged"
    board.transport.calls.clear()
    outcome = run(board)
    assert board.puts == [f"{ROOT}/agents/{PAYLOAD.name}"]
    assert outcome.steps == (f"pushed the agent {PAYLOAD.name}",)


def test_a_deploy_that_ended_before_the_proof_proves_torch_next_time() -> None:
    board = Board()
    board.torch = torch_event(ok=False, signal=4, exit_status=None)
    with pytest.raises(PreflightError, match="SIGILL"):
        run(board)
    assert load_hosts() == {}
    board.settle()
    board.torch = torch_event()
    board.transport.calls.clear()
    assert run(board).steps == ("proved torch 2.9.1",)
    assert board.puts == []


def test_a_disk_in_another_board_is_proved_again() -> None:
    board = Board()
    run(board)
    board.settle()
    board.facts["board_model"] = "Raspberry Pi 3 Model B"
    outcome = run(board)
    assert outcome.steps == ("proved torch 2.9.1",)
    assert outcome.target.name == "arm64"


def test_a_dry_run_asks_once_and_changes_nothing() -> None:
    board = Board()
    outcome = run(board, is_dry_run=True)
    assert len(board.transport.calls) == 1
    assert [step.split()[0] for step in outcome.steps] == ["push", "push", "prove"]
    assert load_hosts() == {}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"python_bits": 32, "platform": "linux-aarch64"}, r"32-bit.*64-bit system"),
    ({"platform": "linux-armv7l", "machine": "armv7l"}, r"linux-armv7l"),
    ({"platform": "linux-riscv64", "machine": "riscv64"}, r"linux-riscv64"),
    ({"python": "3.9.2"}, r"Python 3\.9\.2, older than 3\.10.*--python"),
    ({"libc": "glibc 2.27"}, r"glibc 2\.27.*2\.28"),
    ({"libc": "", "soabi": "cpython-311-aarch64-linux-musl"}, r"musl"),
    ({"has_lzma": False}, r"/usr/bin/python3 was built without lzma.*--python"),
    ({"system": "Darwin", "platform": "macosx-14-arm64"}, r"Darwin.*--target local"),
    ({"memory_total_bytes": 430_000_000}, r"430 MB of memory.*700 MB"),
    ({"root": {"free_bytes": GB}}, r"1000 MB of free disk.*1500 MB.*free 500 MB"),
    ({"root": {"exists": True, "owner": 0, "mode": 0o755}}, r"belongs to another user \(uid 0, we are 1000\).*--root"),
    ({"root": {"is_blocked": True}}, r"not a directory"),
    ({"root": {"is_writable": False}}, r"may not write.*--root"),
    ({"python": "3.15.0"}, r"no locked wheels for Python 3\.15"),
    ({"platform": "linux-x86_64", "machine": "x86_64", "board_model": None}, r"CUDA build.*--wheelhouse"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_a_board_that_cannot_do_it_is_told_why_before_anything_is_pushed(changes: dict[str, Any], message: str) -> None:
    board = Board(**changes)
    with pytest.raises(PreflightError, match=message) as caught:
        run(board)
    assert caught.value.exit_code == 5
    assert len(board.transport.calls) == 1
    assert load_hosts() == {}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"signal": 4, "exit_status": None}, r"illegal instruction \(SIGILL\)"),
        ({"exit_status": 132}, r"illegal instruction"),
        ({"signal": 9, "exit_status": None}, r"too little memory"),
        ({"exit_status": 1, "message": "Traceback\nValueError: libcublasLt.so.13 not found"}, r"CUDA build.*libcublas"),
        ({"exit_status": 1, "message": "x\nImportError: libgomp.so.1: cannot open"}, r"cannot be used.*libgomp"),
    ],
)
def test_a_torch_that_does_not_work_is_told_apart(event: dict[str, Any], message: str) -> None:
    board = Board()
    board.torch = torch_event(ok=False, **event)
    with pytest.raises(PreflightError, match=message):
        run(board)
    assert load_hosts() == {}


def test_an_agent_that_dies_of_sigill_itself_is_the_same_message() -> None:
    board = Board()
    board.agent_status = 132
    with pytest.raises(PreflightError, match="SIGILL"):
        run(board)


def test_no_python_at_all() -> None:
    board = Board()
    board.transport.reply(["sh", "-c", deploy.PROBE_SCRIPT], exit_status=127)
    with pytest.raises(PreflightError, match="sudo apt install python3"):
        run(board)
    with pytest.raises(PreflightError, match=r"no /usr/bin/python3\.12"):
        run(board, python="/usr/bin/python3.12")


@pytest.mark.parametrize(
    "stdout", [b"", b"hello\n", b"edge-lts-answer {]\n", b"edge-lts-answer 5\n", b"edge-lts-answer {}\n"]
)
def test_a_probe_without_an_answer_is_a_protocol_error(stdout: bytes) -> None:
    board = Board()
    board.transport.reply(["sh", "-c", deploy.PROBE_SCRIPT], stdout=stdout)
    with pytest.raises(AgentProtocolError):
        run(board)


def test_a_full_disk_while_pushing_is_named() -> None:
    board = Board()
    board.transport.free_bytes = 10
    with pytest.raises(PreflightError, match=r"disk is full \(0 MB left\).*free 1500 MB"):
        run(board)
    assert load_hosts() == {}


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"ok": False, "kind": "disk", "message": "ENOSPC"}, PreflightError, "disk is full"),
        ({"ok": False, "kind": "hash", "message": "torch.whl is damaged"}, TransferError, "damaged; deploy again"),
        ({"ok": False, "kind": "pip", "message": "ERROR: \x1b[31mno"}, PreflightError, r"pip could not .*\\x1b\[31mno"),
    ],
)
def test_an_install_that_fails_says_why(answer: dict[str, Any], error: type[EdgeLtsError], message: str) -> None:
    board = Board()
    board.install_answer = answer
    with pytest.raises(error, match=message):
        run(board)


def test_a_named_python_with_torch_is_used_as_it_is() -> None:
    board = Board(platform="linux-x86_64", machine="x86_64", board_model=None)
    board.facts["installed"] = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "pip": "26"}
    outcome = run(board, python="/usr/bin/python3")
    assert outcome.entry.site is None
    assert outcome.target.name == "x86_64"
    assert board.installs == []
    assert board.puts == [f"{ROOT}/agents/{PAYLOAD.name}"]


def test_online_lets_the_board_fetch_and_pushes_only_pip(small_wheels: Iterator[list[str]]) -> None:
    board = Board()
    outcome = run(board, is_online=True)
    (order,) = board.installs
    assert order["online"] == {
        "requirements": ["torch==2.9.1", "numpy==2.4.6", "typing_extensions==4.16.0"],
        "index": None,
    }
    assert next(small_wheels) == ["pip"]
    assert outcome.entry.site == f"{ROOT}/env/{order['lock_id']}"


def test_online_on_x86_needs_an_index_of_cpu_builds() -> None:
    board = Board(platform="linux-x86_64", machine="x86_64", board_model=None)
    board.facts["installed"]["pip"] = "26"
    with pytest.raises(PreflightError, match="--torch-index"):
        run(board, is_online=True)
    run(board, is_online=True, torch_index="file:///index")
    assert board.installs[0]["online"]["index"] == "file:///index"
    assert board.installs[0]["installer"] is None


def test_a_target_for_another_machine_is_refused() -> None:
    board = Board()
    targets = load_targets()
    with pytest.raises(PreflightError, match="is for x86_64, the board is aarch64"):
        run(board, target=targets["x86_64"])
    assert run(board, target=targets["arm64"]).target.name == "arm64"


def test_the_emulated_board_is_recognised() -> None:
    assert run(Board(is_emulated=True, board_model=None)).target.name == "emulated-arm64"


def test_the_probe_is_python_3_6() -> None:
    ast.parse(onboard.source("probe"), feature_version=(3, 6))


def test_side_by_side_failures_stay_apart_and_the_exit_code_tells() -> None:
    def work(item: str) -> str:
        if item == "dead":
            raise ConnectError(item, "no answer")
        if item == "old":
            raise PreflightError("too old", "")
        return item

    def code(*items: str) -> int:
        return fleet.exit_code(fleet.side_by_side(items, work, n_parallel=4))

    assert code("a", "b") == 0
    assert code("a", "dead", "b") == 3
    assert code("dead", "dead") == 4
    assert code("dead", "old") == 3
    assert code("old") == 5
    results = fleet.side_by_side(("a", "dead", "b"), work, n_parallel=1)
    assert [result.value for result in results] == ["a", None, "b"]


def test_stages_are_lines_with_times() -> None:
    clock = iter(range(100))
    lines: list[str] = []
    stages = Stages("pi", lines.append, clock=lambda: float(next(clock)))
    with stages.stage("probe"):
        pass
    with pytest.raises(PreflightError), stages.stage("push"):
        raise PreflightError("no", "")
    assert len(lines) == 1
    assert lines[0].startswith("pi: probe (")
    assert set(stages.times_s) == {"probe", "push"}

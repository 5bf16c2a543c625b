"""The fork server and its client with evaluators that misbehave. No torch: the real evaluator has its own tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EvaluationError, Interrupted
from edge_lts.footprint import predicted_bytes
from edge_lts.measurer import LineReader, Measurer
from edge_lts.records import Evaluation, Failure, Protocol

ROOT = Path(__file__).parents[2]
ARCH = Architecture(backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=128, n_head=2),), vocab_size=100)
PROTOCOL = Protocol(threads=1)
WAIT_S = 30.0

# candidate_id chooses what the child does.
GOOD, HANG, SEGV, KILL, EXIT, RAISE, MEMORY, NONFINITE, PRINT, ORPHAN, DEAF = range(11)
SERVER = """
import os, signal, subprocess, sys, time
from edge_lts.errors import EvaluationError
from edge_lts.profile.server import serve
from edge_lts.records import Evaluation

def evaluate(request):
    kind = request.candidate_id
    if kind == 1: time.sleep(1000)
    if kind == 2: os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 3: os.kill(os.getpid(), signal.SIGKILL)
    if kind == 4: os._exit(3)
    if kind == 5: raise ValueError("something odd")
    if kind == 6: raise MemoryError
    if kind == 7: raise EvaluationError("nonfinite", "prefill: the logits are not finite")
    if kind == 8: print("noise on stdout", flush=True); os.write(1, b"more noise\\n")
    if kind == 9:
        sleeper = subprocess.Popen(["sleep", "1000"])
        open(os.environ["TEST_NOTE"], "w").write(str(sleeper.pid))
        time.sleep(1000)
    if kind == 10:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        open(os.environ["TEST_NOTE"], "w").write(str(os.getpid()))
        while True: pass
    return Evaluation(
        candidate_id=request.candidate_id, architecture=request.architecture, objectives={"decode_latency_s": 1.0},
        samples={}, purpose=request.purpose, conditions={
            "forward_s": 0.0, "pid": os.getpid(), "server": os.getppid(), "session": os.getsid(0),
            "threads": request.protocol.threads, "omp": os.environ["OMP_NUM_THREADS"],
            "arenas": os.environ["MALLOC_ARENA_MAX"],
            "files": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in sorted(os.listdir("/proc/self/fd"))
                      if os.path.exists(f"/proc/self/fd/{fd}")},
            "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
        })

sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer, evaluate=evaluate))
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")
pytestmark = linux


def command(code: str = SERVER) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.01)
    return False


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Setup:
    """A Measurer with its log, and what it leaves behind."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed by the fixture
        arguments = {"candidate_timeout_s": WAIT_S, "memory_limit_bytes": None, "code": SERVER, **options}
        self.measurer = Measurer(command(arguments.pop("code")), PROTOCOL, log=self.log, **arguments)
        self.note = folder / "note"

    def log_text(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Setup]]:
    """Makes Setups; afterwards no process may be left of them."""
    monkeypatch.setenv("TEST_NOTE", str(tmp_path / "note"))
    before = set(children_of(os.getpid()))
    made: list[Setup] = []

    def make_one(**options: object) -> Setup:
        made.append(Setup(tmp_path, **options))
        return made[-1]

    yield make_one
    for setup in made:
        setup.measurer.close()
        setup.log.close()
    assert set(children_of(os.getpid())) <= before


def test_importing_client_and_server_loads_no_torch() -> None:
    code = "import sys, edge_lts.measurer, edge_lts.profile.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run(command(code), timeout=60).returncode == 0


def test_each_candidate_has_a_process_of_its_own(make: Callable[..., Setup]) -> None:
    measurer = make().measurer
    first, second = measurer.measure(GOOD, ARCH), measurer.measure(GOOD, ARCH, "confirm")
    assert isinstance(first, Evaluation)
    assert isinstance(second, Evaluation)
    assert first.conditions["pid"] != second.conditions["pid"]
    assert first.conditions["server"] == second.conditions["server"] == measurer.start()["pid"]
    assert (first.purpose, second.purpose) == ("search", "confirm")
    assert first.architecture == ARCH
    assert first.conditions["total_s"] > 0
    assert first.conditions["overhead_s"] == first.conditions["total_s"]
    assert not is_alive(second.conditions["pid"])


def test_child_stands_apart_and_holds_only_its_own_files(make: Callable[..., Setup], tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)
        outcome = make().measurer.measure(GOOD, ARCH)
    assert isinstance(outcome, Evaluation)
    conditions = outcome.conditions
    assert conditions["session"] == conditions["pid"]
    assert conditions["oom_score_adj"] == "1000"
    assert (conditions["threads"], conditions["omp"], conditions["arenas"]) == (1, "1", "2")
    files = conditions["files"]
    assert files["0"] == "/dev/null"
    assert files["1"] == files["2"]  # the log
    others = [name for fd, name in files.items() if int(fd) > 2 and not name.startswith("/proc/")]
    assert len(others) == 1
    assert others[0].startswith("pipe:")  # for its result


@pytest.mark.parametrize(
    ("candidate", "kind", "words"),
    [
        (SEGV, "crash", "SIGSEGV"),
        (KILL, "oom", "SIGKILL"),
        (EXIT, "crash", "exit status 3"),
        (RAISE, "crash", "ValueError: something odd"),
        (MEMORY, "oom", "out of memory"),
        (NONFINITE, "nonfinite", "prefill: the logits are not finite"),
    ],
)
def test_every_way_to_fail_is_a_failure_and_the_next_works(
    make: Callable[..., Setup], candidate: int, kind: str, words: str
) -> None:
    measurer = make().measurer
    server = measurer.start()["pid"]
    outcome = measurer.measure(candidate, ARCH, "single")
    assert isinstance(outcome, Failure)
    assert (outcome.candidate_id, outcome.kind, outcome.purpose) == (candidate, kind, "single")
    assert words in outcome.message
    assert isinstance(measurer.measure(GOOD, ARCH), Evaluation)
    assert measurer.start()["pid"] == server


@pytest.mark.parametrize("candidate", [HANG, ORPHAN, DEAF])
def test_hanging_candidate_is_killed_with_all_it_started(make: Callable[..., Setup], candidate: int) -> None:
    setup = make(candidate_timeout_s=0.5)
    setup.measurer.start()
    started = time.monotonic()
    outcome = setup.measurer.measure(candidate, ARCH)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "timeout"
    assert "0.5 s" in outcome.message
    assert time.monotonic() - started < 10
    if candidate != HANG:
        assert eventually(lambda: not is_alive(int(setup.note.read_text())))
    server = setup.measurer.start()["pid"]
    assert children_of(server) == []


def test_noise_on_stdout_goes_to_the_log(make: Callable[..., Setup]) -> None:
    setup = make()
    assert isinstance(setup.measurer.measure(PRINT, ARCH), Evaluation)
    assert "noise on stdout" in setup.log_text()
    assert "more noise" in setup.log_text()


def test_child_killed_from_outside_is_a_failure(make: Callable[..., Setup]) -> None:
    measurer = make().measurer
    killer = threading.Thread(target=lambda: eventually(lambda: kill_if_there(measurer, signal.SIGABRT)))
    killer.start()
    outcome = measurer.measure(HANG, ARCH)
    killer.join()
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.message) == ("crash", "killed by SIGABRT")


def kill_if_there(measurer: Measurer, number: int) -> bool:
    pid = measurer.child_pid
    if pid is not None:
        os.kill(pid, number)
    return pid is not None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_that_dies_takes_its_child_along_and_is_replaced(make: Callable[..., Setup], number: int) -> None:
    measurer = make().measurer
    server = measurer.start()["pid"]
    seen: list[int] = []

    def kill_server() -> None:
        assert eventually(lambda: measurer.child_pid is not None)
        seen.append(measurer.child_pid or 0)
        os.kill(server, number)

    killer = threading.Thread(target=kill_server)
    killer.start()
    outcome = measurer.measure(HANG, ARCH)
    killer.join()
    assert isinstance(outcome, Failure)
    assert outcome.kind in ("oom", "crash")
    assert eventually(lambda: not is_alive(seen[0]))
    assert isinstance(measurer.measure(GOOD, ARCH), Evaluation)
    assert measurer.start()["pid"] != server


def test_server_that_died_between_two_candidates_is_replaced(make: Callable[..., Setup]) -> None:
    measurer = make().measurer
    os.kill(measurer.start()["pid"], signal.SIGKILL)
    assert isinstance(measurer.measure(GOOD, ARCH), Evaluation)


def test_cancel_raises_interrupted_and_leaves_nothing(make: Callable[..., Setup]) -> None:
    measurer = make().measurer
    server = measurer.start()["pid"]
    seen: list[int] = []

    def cancel_in_handler(*_: object) -> None:
        seen.append(measurer.child_pid or 0)
        measurer.cancel()

    def ring() -> None:
        assert eventually(lambda: measurer.child_pid is not None)
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, cancel_in_handler)
    try:
        threading.Thread(target=ring).start()
        with pytest.raises(Interrupted):
            measurer.measure(DEAF, ARCH)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert eventually(lambda: not is_alive(seen[0]))
    assert not is_alive(server)
    with pytest.raises(Interrupted):
        measurer.measure(GOOD, ARCH)


def test_nothing_outlives_an_agent_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    agent = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from edge_lts.measurer import Measurer
from tests.integration.test_measurer import ARCH, DEAF, PROTOCOL, command
measurer = Measurer(command(), PROTOCOL, candidate_timeout_s=1000, memory_limit_bytes=None, log=sys.stderr.buffer)
print(measurer.start()["pid"], flush=True)
measurer.measure(DEAF, ARCH)
"""
    environment = {**os.environ, "TEST_NOTE": str(note)}
    process = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert eventually(lambda: note.exists() and note.read_text() != "")
    finally:
        process.kill()
        process.communicate()
    assert eventually(lambda: not is_alive(server))
    assert eventually(lambda: not is_alive(int(note.read_text())))


def test_closing_stdin_ends_the_server_in_the_middle_of_a_candidate(make: Callable[..., Setup]) -> None:
    setup = make()
    process = subprocess.Popen(
        [*command(), "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    request = {
        "candidate_id": DEAF,
        "architecture": ARCH.to_json(),
        "protocol": PROTOCOL.to_json(),
        "purpose": "search",
        "timeout_s": 1000.0,
        "memory_limit_bytes": None,
        "is_emulated": False,
        "isolation": "fork",
    }
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "ready"
    child = json.loads(process.stdout.readline())["pid"]
    assert eventually(setup.note.exists)
    process.stdin.close()
    assert process.wait(WAIT_S) == 0
    process.stdout.close()
    assert eventually(lambda: not is_alive(child))


def test_candidate_beyond_the_memory_is_refused_before_any_process_starts(make: Callable[..., Setup]) -> None:
    needed = predicted_bytes(ARCH, PROTOCOL)
    measurer = make(memory_limit_bytes=needed - 1, code="raise SystemExit(9)").measurer
    outcome = measurer.measure(GOOD, ARCH)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "oom"
    assert str(needed) in outcome.message
    assert isinstance(make(memory_limit_bytes=needed).measurer.measure(GOOD, ARCH), Evaluation)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(9)", "exit status 9"),
        ("import os; os.kill(os.getpid(), 4)", "SIGILL"),
        ('print(\'{"event": "hello"}\'); print("no json")', "exit status 0"),
    ],
)
def test_server_that_cannot_start_is_an_error_of_the_board(make: Callable[..., Setup], code: str, words: str) -> None:
    measurer = make(code=code).measurer
    for action in (measurer.start, lambda: measurer.measure(GOOD, ARCH)):
        with pytest.raises(EvaluationError, match=words) as caught:
            action()
        assert caught.value.kind == "crash"


def test_words_before_ready_are_skipped(make: Callable[..., Setup]) -> None:
    greeting = 'print(\'{"protocol": 1, "event": "hello", "verb": "serve"}\', flush=True); print("?", flush=True)\n'
    assert isinstance(make(code=greeting + SERVER).measurer.measure(GOOD, ARCH), Evaluation)


def test_process_isolation_uses_a_fresh_process_for_each(make: Callable[..., Setup]) -> None:
    measurer = make(is_fork_safe=False, candidate_timeout_s=10.0).measurer
    first, second = measurer.measure(GOOD, ARCH), measurer.measure(GOOD, ARCH)
    assert isinstance(first, Evaluation)
    assert isinstance(second, Evaluation)
    assert first.conditions["pid"] != second.conditions["pid"]
    assert first.conditions["server"] == os.getpid()
    assert first.conditions["isolation"] == "process"
    crashed = measurer.measure(SEGV, ARCH)
    assert isinstance(crashed, Failure)
    assert crashed.kind == "crash"
    hanging = make(is_fork_safe=False, candidate_timeout_s=0.3).measurer.measure(HANG, ARCH)
    assert isinstance(hanging, Failure)
    assert hanging.kind == "timeout"


def test_threads_are_resolved_before_anything_is_measured() -> None:
    with tempfile.TemporaryFile() as log:
        measurer = Measurer(command(), Protocol(threads=0), candidate_timeout_s=1, memory_limit_bytes=None, log=log)
    assert 1 <= measurer.protocol.threads <= (os.cpu_count() or 1)


def test_line_reader_splits_what_arrives_in_pieces() -> None:
    read_fd, write_fd = os.pipe()
    reader = LineReader(read_fd)
    try:
        os.write(write_fd, b"one\ntw")
        assert reader.read_line(None) == b"one"
        with pytest.raises(TimeoutError):
            reader.read_line(time.monotonic() + 0.01)
        os.write(write_fd, b"o\n\nend")
        os.close(write_fd)
        assert [reader.read_line(None) for _ in range(3)] == [b"two", b"", None]
        assert reader.fill() is False
    finally:
        os.close(read_fd)
        with contextlib.suppress(OSError):
            os.close(write_fd)

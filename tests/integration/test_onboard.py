"""The programs that a board's own Python runs, run by this one: real pip, tiny wheels, no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import onboard
from edge_lts_host.board_facts import BoardFacts, check_root
from edge_lts_host.deploy import MAKE_ROOT_SCRIPT
from edge_lts_host.errors import AgentProtocolError, PreflightError


def run(program: bytes, *argv: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", "-", *argv],
        input=program,
        capture_output=True,
        check=True,
        env={**os.environ, **environment},
    )
    return onboard.read_answer("here", done.stdout)


def make_wheel(folder: Path, name: str, content: str = "value = 1\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    members = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD")))
    return path


class Board:
    """A data directory with staged wheels, and the order to install them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "env" / "wheels.part"
        self.wheels = [make_wheel(self.staging, name) for name in ("one", "two")]
        self.order: dict[str, Any] = {
            "lock_id": "abc",
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.wheels},
            "install": [path.name for path in self.wheels],
            "installer": None,
            "online": None,
            "manifest": {"schema_version": 1, "lock_id": "abc"},
        }

    def install(self, **environment: str) -> dict[str, Any]:
        program = f"ORDER = {json.dumps(self.order)!r}\n".encode() + onboard.source("install")
        return run(program, str(self.root), **environment)

    @property
    def left(self) -> set[str]:
        return {path.name for path in (self.root / "env").iterdir()} - {"deploy.lock"}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "root")


def test_wheels_become_an_environment_and_are_gone(board: Board) -> None:
    hostile = {"PIP_TARGET": "/nowhere", "PIP_INDEX_URL": "file:///nowhere", "PIP_REQUIRE_VIRTUALENV": "1"}
    answer = board.install(**hostile)
    assert answer["ok"] is True, answer
    assert answer["is_new"] is True
    assert board.left == {"abc"}
    site = board.root / "env" / "abc"
    assert json.loads((site / "edge-lts-env.json").read_text()) == board.order["manifest"]
    program = f"import sys; sys.path.insert(0, {str(site)!r}); import one, two; print(one.value + two.value)"
    assert subprocess.check_output([sys.executable, "-I", "-c", program]) == b"2\n"


def test_an_environment_that_is_there_is_left_alone(board: Board) -> None:
    board.install()
    (board.root / "env" / "abc" / "mark").touch()
    answer = board.install()
    assert (answer["ok"], answer["is_new"]) == (True, False)
    assert (board.root / "env" / "abc" / "mark").exists()


def test_an_interrupted_install_is_never_taken_for_whole(board: Board) -> None:
    for name in ("abc", "abc.part"):
        (board.root / "env" / name / "torch").mkdir(parents=True)
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), str(board.root)))
    assert facts.environments == {}
    assert board.install()["ok"] is True
    assert board.left == {"abc"}
    assert not (board.root / "env" / "abc" / "torch").exists()
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), str(board.root)))
    assert facts.environments == {"abc": board.order["manifest"]}


def test_a_damaged_wheel_is_refused_and_removed(board: Board) -> None:
    board.wheels[1].write_bytes(b"PK damaged")
    answer = board.install()
    assert (answer["ok"], answer["kind"]) == (False, "hash")
    assert board.wheels[1].name in answer["message"]
    assert not board.wheels[1].exists()
    assert board.wheels[0].exists(), "what is whole is kept for the next deploy"
    assert "abc" not in board.left


def test_a_wheel_that_pip_refuses_leaves_nothing_half_done(board: Board) -> None:
    board.wheels[1].write_bytes(b"no zip at all")
    board.order["files"][board.wheels[1].name] = hashlib.sha256(b"no zip at all").hexdigest()
    answer = board.install()
    assert (answer["ok"], answer["kind"]) == (False, "pip")
    assert board.left == {"wheels.part"}


def test_the_probe_describes_this_python(tmp_path: Path) -> None:
    root = tmp_path / "root"
    agents = root / "agents"
    agents.mkdir(parents=True)
    (agents / "a.pyz").write_bytes(b"agent")
    (agents / "b.pyz.part").write_bytes(b"half")
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), str(root)))
    assert facts.python_tag == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert facts.python_bits == 64
    assert facts.agents == {"a.pyz": hashlib.sha256(b"agent").hexdigest()}
    assert facts.root["owner"] == os.geteuid() == facts.uid
    assert facts.root["free_bytes"] > 0


def test_the_probe_finds_the_home_and_room_for_a_root_that_is_not_there(tmp_path: Path) -> None:
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), "~/a/b", HOME=str(tmp_path)))
    assert facts.root_path == str(tmp_path / "a" / "b")
    assert facts.root["ancestor"] == str(tmp_path)
    assert facts.root["exists"] is False


def probe_as(uid: int, root: Path) -> BoardFacts:
    """What the probe says of `root` to a user with another number than ours."""
    program = f"import os\nos.geteuid = lambda: {uid}\n".encode() + onboard.source("probe")
    return BoardFacts.from_json("here", run(program, str(root)))


def test_a_data_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    facts = probe_as(os.geteuid() + 1, root)
    with pytest.raises(PreflightError, match="belongs to another user"):
        check_root(facts, 0)


@pytest.mark.parametrize("name", ["agents", "env", "runs"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_directory_of_somebody_else_inside_is_refused(tmp_path: Path, name: str, is_link: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    root, foreign = tmp_path / "root", tmp_path / "foreign"
    root.mkdir(mode=0o700)
    foreign.mkdir()
    (root / name).symlink_to(foreign) if is_link else (root / name).mkdir()
    os.chown(foreign if is_link else root / name, 4711, 4711)
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), str(root)))
    with pytest.raises(PreflightError, match=f"root/{name} on the board belongs to another user"):
        check_root(facts, 0)
    made = subprocess.run(["sh", "-c", MAKE_ROOT_SCRIPT, "sh", str(root)], capture_output=True, check=False)
    assert made.returncode == 77
    assert made.stderr == f"{root}/{name} belongs to somebody else\n".encode()


@pytest.mark.parametrize(("mode", "is_refused"), [(0o755, False), (0o775, False), (0o1777, False), (0o777, True)])
@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_that_others_could_exchange_is_refused(
    tmp_path: Path, mode: int, is_refused: bool, exists: bool
) -> None:
    shared = tmp_path / "shared"
    root = shared / "a" / "root"
    root.mkdir(parents=True) if exists else shared.mkdir()
    shared.chmod(mode)
    facts = BoardFacts.from_json("here", run(onboard.source("probe"), str(root)))
    if is_refused:
        with pytest.raises(PreflightError, match=f"other users .* may write to {shared}; "):
            check_root(facts, 0)
    else:
        check_root(facts, 0)


def test_the_data_directory_is_made_private(tmp_path: Path) -> None:
    root = tmp_path / "with space" / "-root"
    for _ in range(2):
        subprocess.run(["sh", "-c", MAKE_ROOT_SCRIPT, "sh", str(root)], check=True)
        for path in (root, root / "agents", root / "env", root / "runs"):
            assert path.stat().st_mode & 0o7777 == 0o700
            path.chmod(0o777)


def test_a_broken_link_among_the_agents_is_no_agent(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "gone.pyz").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "agents" / "pipe.pyz")
    assert BoardFacts.from_json("here", run(onboard.source("probe"), str(tmp_path))).agents == {}


def test_the_password_of_an_index_is_in_no_argv_and_no_answer(board: Board, tmp_path: Path) -> None:
    """pip is replaced by a program that writes down how it was started, and complains."""
    fake = tmp_path / "pip"
    fake.mkdir()
    (fake / "__main__.py").write_text(
        "import os, sys\n"
        f"open({str(tmp_path / 'argv')!r}, 'w').write(open('/proc/self/cmdline').read())\n"
        "sys.exit('ERROR: cannot reach ' + os.environ['PIP_INDEX_URL'])\n"
    )
    board.order["online"] = {"requirements": ["torch==2.9.1"], "index": "https://me:hunter2@wheels.example/simple"}
    board.order["installer"] = "../../../pip"
    program = onboard.source("install").replace(b"}/pip", b"}/__main__.py")
    order = f"ORDER = {json.dumps(board.order)!r}\n".encode()
    answer = run(order + program, str(board.root))
    assert answer["message"] == "ERROR: cannot reach https://****@wheels.example/simple"
    assert "torch==2.9.1" in (tmp_path / "argv").read_text()
    assert "hunter2" not in (tmp_path / "argv").read_text()


def test_answers_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(AgentProtocolError, match="no usable python"):
        BoardFacts.from_json("board", {"python": 3})

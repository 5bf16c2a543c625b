"""What a deploy over a serial console refuses to push, and what it makes of wheels that came on the SD card."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import deploy, environment, wheelhouse
from edge_lts_host.errors import PreflightError
from edge_lts_host.hosts import HostEntry, load_hosts
from edge_lts_host.progress import Stages
from edge_lts_host.serial_deploy import SerialDeployment
from edge_lts_host.targets import load_targets
from edge_lts_host.transport.fake import FakeCall, FakeFile
from tests.unit.host.test_deploy import LOCK_ID, PAYLOAD, ROOT, Board

ENTRY = HostEntry(name="bench", destination="serial:pi@/dev/ttyUSB0")
STAGED = f"{ROOT}/env/wheels.part"
WHEELS = wheelhouse.load_lock()["3.11", "aarch64"].all_wheels


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def obtain(wheels: Any, *_: Any, **__: Any) -> dict[Any, Path]:
        found = {}
        for wheel in wheels:
            found[wheel] = tmp_path / wheel.file
            found[wheel].write_bytes(b"")
        return found

    monkeypatch.setattr(wheelhouse, "obtain", obtain)


def deploying(board: Board, **options: Any) -> tuple[deploy.Outcome, list[str]]:
    said: list[str] = []
    chosen = environment.Options(targets=load_targets(), **options)
    stages = Stages("bench", said.append)
    return SerialDeployment(board.transport, ENTRY, PAYLOAD, chosen, stages).run(), said


def hashes(board: Board, contents: dict[str, str]) -> None:
    """Let the board have wheels: their SHA-256 by name."""

    def sha256sum(call: FakeCall) -> Generator[bytes, None, int]:
        yield "".join(f"{contents[path.rpartition('/')[2]]}  {path}\n" for path in call.argv[2:]).encode()
        return 0

    board.facts["staged"] = list(contents)
    board.transport.on(["sha256sum", "--"], sha256sum)


def test_torch_that_is_there_is_used_and_only_the_agent_goes_over_the_line() -> None:
    board = Board(environments={LOCK_ID: {"lock_id": LOCK_ID}})
    outcome, _ = deploying(board)
    assert board.puts == [f"{ROOT}/agents/{PAYLOAD.name}"]
    assert outcome.n_bytes_sent == len(PAYLOAD.data)
    assert load_hosts()["bench"].destination == ENTRY.destination


def test_torch_is_not_pushed_and_the_time_it_would_take_is_said(tmp_path: Path) -> None:
    board = Board()
    with pytest.raises(PreflightError) as caught:
        deploying(board)
    size = sum(wheel.size_bytes for wheel in WHEELS)
    hours = size / (0.72 * 11520) / 3600
    assert f"{size / 1e6:.0f} MB of wheels would take {int(hours)}h" in str(caught.value)
    assert STAGED in str(caught.value)
    assert all(str(tmp_path / wheel.file) in str(caught.value) for wheel in WHEELS)
    assert board.puts == []


def test_a_slower_line_takes_longer() -> None:
    times = []
    for baud in ("", ",9600"):
        entry = HostEntry(name="bench", destination=f"serial:pi@/dev/ttyUSB0{baud}")
        options = environment.Options(targets=load_targets(), is_dry_run=True)
        outcome = SerialDeployment(Board().transport, entry, PAYLOAD, options, Stages("b", lambda _: None)).run()
        times.append(outcome.steps[0])
    assert times[0] != times[1]
    assert all("over this line: not without the wheels on the board" in step for step in times)


def test_wheels_from_the_sd_card_are_installed_without_another_byte(tmp_path: Path) -> None:
    board = Board()
    hashes(board, {wheel.file: wheel.sha256 for wheel in WHEELS})
    empty = hashlib.sha256(b"").hexdigest()
    for wheel in WHEELS:  # what `obtain` above pretends to have, so that `put` finds the same there
        board.transport.files[f"{STAGED}/{wheel.file}"] = FakeFile(b"")
        assert wheel.sha256 != empty
    outcome, _ = deploying(board)
    assert board.puts == [f"{ROOT}/agents/{PAYLOAD.name}"]
    assert len(board.installs) == 1
    assert any("installed torch" in step for step in outcome.steps)


def test_wheels_that_are_damaged_on_the_card_do_not_count() -> None:
    board = Board()
    torch = max(WHEELS, key=lambda wheel: wheel.size_bytes)
    hashes(board, {wheel.file: "0" * 64 if wheel is torch else wheel.sha256 for wheel in WHEELS})
    with pytest.raises(PreflightError) as caught:
        deploying(board)
    assert torch.file in str(caught.value)
    assert str(caught.value).count(".whl") == 1

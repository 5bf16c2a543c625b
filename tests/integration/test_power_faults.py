"""What a board's disk may do to a run: forget what was not forced onto it, fill up, become read-only."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_lts import device, on_boot, runfolder, transfer, verbs
from edge_lts.errors import DiskError
from edge_lts.ledger import Ledger
from edge_lts.runfolder import RunFolder, sync_folder
from edge_lts.status import describe
from edge_lts_host.transport.files import LOOK_SCRIPT, STORE_SCRIPT
from tests.fake_agent import Board, write_spec
from tests.support import require


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_available_bytes", lambda: 1 << 40)


@pytest.fixture
def finished(tmp_path: Path) -> Board:
    one = Board(write_spec(tmp_path, max_candidates=4))
    one.run()
    return one


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was forced onto the disk, in order."""
    names: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_a_new_ledger_has_its_name_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert synced == [tmp_path.name]
        ledger.append({"a": 1})
    assert synced == [tmp_path.name, "ledger.jsonl"]


def test_nothing_is_pulled_that_a_power_cut_could_take_back(finished: Board, synced: list[str]) -> None:
    """A record between its write and its fsync can be read already."""
    stdout = io.BytesIO()
    sent: list[int] = []

    def emit(event: Any) -> None:
        if event.get("name") == "ledger.jsonl":
            sent.append(len(synced))

    transfer.pull(emit, stdout, finished.folder.path, "{}")
    assert synced == ["ledger.jsonl"]
    assert sent == [1]


def test_what_was_pushed_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    said = tmp_path / "said"
    for name in ("sync", "mv"):
        (commands / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{said}\nexec /bin/{name} "$@"\n')
        (commands / name).chmod(0o755)
    target, digest = tmp_path / "file", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    subprocess.run(
        ["sh", "-c", STORE_SCRIPT, "sh", str(target), "0", "5", digest, "644"],
        input=b"hello",
        env={"PATH": f"{commands}:{os.environ['PATH']}"},
        check=True,
    )
    assert target.read_bytes() == b"hello"
    assert said.read_text().splitlines() == [
        f"sync {target}.part",
        f"mv -f -- {target}.part {target}",
        f"sync {tmp_path}",
    ]


def test_an_event_that_a_power_cut_tore_stays_alone_on_its_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_event({"event": "a"})
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "to')
    folder.append_event({"event": "b"})
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert lines == ['{"event":"a"}', '{"event": "to', '{"event":"b"}']


def test_the_entry_of_a_run_goes_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with a life of it: a shutdown ends that by a signal too."""
    removed: list[str] = []
    monkeypatch.setattr(on_boot.Boot, "drop", lambda self, run_id, how: removed.append(f"{how} {run_id}"))
    one = Board(write_spec(tmp_path, max_candidates=4))
    entry = one.folder / on_boot.ENTRY
    entry.write_text('{"how": "cron"}')

    def before(measurer: object, arch: object, candidate_id: int) -> None:
        if candidate_id == 2 and not removed:
            os.kill(os.getpid(), 15)

    one.measurer.before = before
    one.run()
    assert one.json("status.json")["state"] == "stopped"
    assert (removed, entry.exists()) == ([], True)
    again = Board(one.folder)
    again.run()
    assert again.json("status.json")["state"] == "done"
    assert removed == [f"cron {one.folder.run_id}"]
    assert not entry.exists()


def test_stop_and_clean_remove_the_entry(finished: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(on_boot.Boot, "drop", lambda self, run_id, how: removed.append(str(how)))
    (finished.folder / on_boot.ENTRY).write_text('{"how": "systemd"}')
    verbs.stop(lambda event: None, finished.folder.path, timeout_s=1)
    assert removed == ["systemd"]
    (finished.folder / on_boot.ENTRY).write_text('{"how": "systemd"}')
    root = finished.folder.default_root
    (root / runfolder.ROOT_MARKER).touch()
    transfer.clean(lambda event: None, root, keep_runs=True, is_dry_run=False)
    assert removed == ["systemd", "systemd"]
    assert not (finished.folder / on_boot.ENTRY).exists()


# Disks that take nothing any more -----------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small file system in memory, which can be remounted read-only; needs root."""
    require("arm64", os.geteuid() == 0, "mounting needs root")
    points: list[Path] = []

    def mount(size: str = "2m") -> Path:
        point = tmp_path / "disk"
        point.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "disk", point], check=False)
        require("arm64", done.returncode == 0, "nothing can be mounted here")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", "--lazy", point], check=True)


def read_only(point: Path, option: str = "ro") -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", point], check=True)


def snapshot(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name not in ("lock", "log.txt")}


def test_a_read_only_disk_is_named_and_nothing_is_changed(mounted: Callable[..., Path], tmp_path: Path) -> None:
    point = mounted()
    one = Board(write_spec(point, max_candidates=4))

    def before(measurer: object, arch: object, candidate_id: int) -> None:
        if candidate_id == 2:
            os.kill(os.getpid(), 15)

    one.measurer.before = before
    one.run()
    status = one.json("status.json")
    (one.folder / "status.json").write_text(json.dumps({**status, "state": "running"}))  # as after a power cut
    held = snapshot(one.folder)
    read_only(point)
    found = describe(one.folder)
    assert found["state"] == "interrupted"
    assert "read-only" in found["message"]
    with pytest.raises(DiskError, match=r"read-only.*repair or replace the card") as raised:
        verbs.search(lambda event: None, one.folder.path, [sys.executable], root=None, is_detached=True)
    assert raised.value.exit_code == 5
    stdout = io.BytesIO()
    assert transfer.pull(lambda event: None, stdout, one.folder.path, "{}") == 0  # what is there can be saved
    assert held["ledger.jsonl"] in stdout.getvalue()
    assert snapshot(one.folder) == held
    read_only(point, "rw")
    again = Board(one.folder)
    again.run()
    assert again.json("status.json")["state"] == "done"
    assert (one.folder / "ledger.jsonl").read_bytes().startswith(held["ledger.jsonl"])


def test_what_is_there_already_is_no_write(mounted: Callable[..., Path]) -> None:
    """A run on a read-only disk is refused for that reason, and not because its agent could not be pushed."""
    point = mounted()
    target, digest = point / "agent", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    target.write_bytes(b"hello")
    look = ["sh", "-c", LOOK_SCRIPT, "sh", str(target), "5", digest]
    assert subprocess.run([*look, "600"], capture_output=True, check=True).stdout == b"same\n"
    assert target.stat().st_mode & 0o777 == 0o600
    read_only(point)
    assert subprocess.run([*look, "600"], capture_output=True, check=True).stdout == b"same\n"
    assert subprocess.run([*look, "644"], capture_output=True, check=False).returncode != 0


def test_a_full_disk_ends_the_run_with_the_remedy_and_what_was_recorded_stays(mounted: Callable[..., Path]) -> None:
    point = mounted()
    one = Board(write_spec(point, max_candidates=6))
    filler = point / "filler"
    held: list[bytes] = []

    def before(measurer: object, arch: object, candidate_id: int) -> None:
        if candidate_id == 3 and not filler.exists():
            held.append((one.folder / "ledger.jsonl").read_bytes())
            done = subprocess.run(["dd", "if=/dev/zero", f"of={filler}"], stderr=subprocess.PIPE, check=False)
            assert b"No space left" in done.stderr

    one.measurer.before = before
    with pytest.raises(DiskError, match="free some space and resume: nothing recorded so far is lost"):
        one.run()
    assert (one.folder / "ledger.jsonl").read_bytes() == held[0]
    found = describe(one.folder)
    assert (found["state"], "No space left" in found["message"]) == ("failed", True)
    with pytest.raises(DiskError, match="is full: free some space"):
        verbs.search(lambda event: None, one.folder.path, [sys.executable], root=None, is_detached=True)
    filler.unlink()
    again = Board(one.folder)
    again.run()
    assert again.json("status.json")["state"] == "done"
    records = again.records()
    assert (one.folder / "ledger.jsonl").read_bytes().startswith(held[0])
    searched = [record["arch_id"] for record in records if record["purpose"] == "search"]
    assert len(searched) == len(set(searched)) == 6


def test_a_folder_is_synced_through_its_descriptor(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(OSError, match="nothing"):
        sync_folder(tmp_path / "nothing")

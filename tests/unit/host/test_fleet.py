"""Many boards: how many are served at a time, when it is enough, and what a broken link costs."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge_lts.errors import EdgeLtsError, LockedError
from edge_lts_host import follow, locks
from edge_lts_host.cli import build_parser, main
from edge_lts_host.commands import common
from edge_lts_host.errors import (
    AuthenticationError,
    CommandError,
    ConnectError,
    ConnectionLostError,
    PreflightError,
    TransportError,
    TransportTimeoutError,
    UsageError,
)
from edge_lts_host.fleet import Links, NotTriedError, Result, exit_code, side_by_side
from edge_lts_host.hosts import HostEntry, remember
from edge_lts_host.reconnect import LONGEST_PAUSE_S, N_IN_VAIN, Pauses, insist
from edge_lts_host.session import Place, Session, Survey
from edge_lts_host.transport.base import Transport
from edge_lts_host.transport.fake import FakeTransport
from edge_lts_host.transport.local import LocalTransport
from edge_lts_host.transport.ssh_config import SshOptions

# Side by side


def failing(*bad: int) -> Any:
    def work(number: int) -> int:
        if number in bad:
            raise ConnectError(f"board{number}", "no answer")
        return number

    return work


def test_no_more_boards_are_served_at_a_time_than_asked_for() -> None:
    together = most = 0
    guard = threading.Lock()
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        nonlocal together, most
        with guard:
            together += 1
            most = max(most, together)
        gate.wait(10)  # four are there at once, or this breaks
        with guard:
            together -= 1

    assert all(result.error is None for result in side_by_side(range(20), work, n_parallel=4))
    assert most == 4


def test_one_that_fails_stops_nobody_and_results_keep_their_order() -> None:
    told: list[int] = []
    results = side_by_side(range(6), failing(1, 4), n_parallel=3, on_error=lambda item, error: told.append(item))
    assert [result.item for result in results] == list(range(6))
    assert [result.value for result in results] == [0, None, 2, 3, None, 5]
    assert sorted(told) == [1, 4]
    assert exit_code(results) == 3


def test_beyond_the_percentage_no_further_board_is_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        raise ConnectError(f"board{number}", "no answer")

    told: list[int] = []
    results = side_by_side(
        range(10), work, n_parallel=1, fail_percent=20, on_error=lambda item, error: told.append(item)
    )
    assert begun == [0, 1, 2]  # the third failure is more than 20 % of ten
    assert sorted(told) == begun
    assert [isinstance(result.error, NotTriedError) for result in results] == [False] * 3 + [True] * 7
    assert "3 of 10 had failed already" in str(results[9].error)
    assert exit_code(results, 20) == 4  # none succeeded, and those that were tried failed alike


@pytest.mark.parametrize(
    ("n_failed", "fail_percent", "code"),
    [
        (0, None, 0),
        (1, None, 3),
        (10, None, 4),
        (1, 10, 0),
        (2, 10, 3),
        (1, 0, 3),
        (0, 0, 0),
        (10, 100, 0),
        (1, 9.9, 3),
    ],
)
def test_the_exit_code_says_whether_more_failed_than_may(n_failed: int, fail_percent: float | None, code: int) -> None:
    lost = ConnectError("board", "no answer")
    results: list[Result[int, None]] = [
        Result(number, None, lost if number < n_failed else None) for number in range(10)
    ]
    assert exit_code(results, fail_percent) == code


def test_boards_that_fail_each_in_its_own_way_are_some_that_failed() -> None:
    errors: list[EdgeLtsError] = [ConnectError("a", "x"), PreflightError("no torch", "")]
    assert exit_code([Result(error, None, error) for error in errors]) == 3


def test_closing_the_links_wakes_whoever_waits_for_one() -> None:
    links = Links()
    threading.Timer(0.05, links.close).start()
    begun = time.monotonic()
    links.sleep(30)
    assert time.monotonic() - begun < 10
    assert links.is_closed
    late = FakeTransport()
    links.add(late)
    with pytest.raises(ConnectionLostError):
        late.run(["true"], timeout_s=1)


@pytest.mark.parametrize("text", ["-1", "101", "x", "nan", ""])
def test_a_percentage_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-percent"):
        common.percentage(text)


def test_the_flags_of_a_fleet_are_where_boards_are_served() -> None:
    for verb in ("deploy", "run", "doctor", "clean", "status", "devices", "pull", "stop"):
        words = [verb, "--parallel", "3", "--fail-percent", "25%"] + (["--budget", "1h"] if verb == "run" else [])
        args = build_parser((verb,)).parse_args(words)
        assert common.n_parallel(args, 100) == 3
        assert args.fail_percent == 25


def test_without_parallel_it_is_bounded() -> None:
    args = argparse.Namespace(parallel=None)
    assert common.n_parallel(args, 500) == common.MAX_PARALLEL == 32
    assert common.n_parallel(args, 2) == 2
    with pytest.raises(UsageError):
        common.n_parallel(argparse.Namespace(parallel=0), 5)


# A broken link


class Download:
    """`work` that copies so many bytes with each connection, and then ends as told."""

    def __init__(self, *attempts: tuple[int, TransportError | None]) -> None:
        self.attempts = list(attempts)
        self.n_bytes = 0
        self.naps: list[float] = []
        self.said: list[str] = []

    def work(self) -> str:
        n_bytes, error = self.attempts.pop(0)
        self.n_bytes += n_bytes
        if error is not None:
            raise error
        return "all"

    def insist(self) -> str:
        return insist(
            self.work,
            n_bytes_here=lambda: self.n_bytes,
            say=self.said.append,
            sleep=self.naps.append,
            pauses=Pauses(uniform=lambda: 1.0),
        )


LOST = ConnectionLostError("board", "the connection is lost")
SILENT = TransportTimeoutError("board", "port 22 did not answer")


def test_copying_goes_on_as_long_as_bytes_come() -> None:
    download = Download(*[(100, LOST)] * 20, (50, None))
    assert download.insist() == "all"
    assert download.naps == [4.0] * 20  # each brought something: no reason to wait longer
    assert download.said[1] == "board: the connection is lost; 200 bytes came so far; again in 4 s"


def test_copying_ends_when_nothing_comes_any_more() -> None:
    download = Download((100, LOST), *[(0, SILENT)] * 20)
    with pytest.raises(TransportTimeoutError):
        download.insist()
    assert download.naps == [4.0, 8.0, 16.0, 32.0, 60.0]
    assert len(download.naps) == N_IN_VAIN


@pytest.mark.parametrize("error", [ConnectError("board", "is closed"), SILENT, AuthenticationError("board", "no key")])
def test_a_connection_that_never_was_is_not_tried_for_long(error: TransportError) -> None:
    download = Download((0, error), (9, None))
    with pytest.raises(type(error)):
        download.insist()
    assert download.naps == []


def test_a_host_that_refuses_us_later_is_not_asked_again() -> None:
    download = Download((100, LOST), (0, AuthenticationError("board", "the key was taken away")))
    with pytest.raises(AuthenticationError):
        download.insist()


def test_ctrl_c_ends_the_trying() -> None:
    download = Download((100, LOST), (9, None))
    with pytest.raises(ConnectionLostError):
        insist(
            download.work,
            n_bytes_here=lambda: download.n_bytes,
            say=download.said.append,
            sleep=download.naps.append,
            is_given_up=lambda: True,
        )


def test_pauses_grow_are_bounded_and_differ() -> None:
    longest = Pauses(uniform=lambda: 1.0)
    shortest = Pauses(uniform=lambda: 0.0)
    pairs = [(longest.after_loss(), shortest.after_loss()) for _ in range(10)]
    assert pairs[0] == (4.0, 2.0)
    assert pairs[-1] == (LONGEST_PAUSE_S, LONGEST_PAUSE_S / 2)
    drawn = Pauses()
    assert len({drawn.after_loss() for _ in range(10)}) == 10


# Locks of people


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board" / "edge-lts"


@pytest.fixture
def here() -> Any:
    with LocalTransport() as transport:
        yield transport


def as_owner(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EDGE_LTS_OWNER", name)


def test_a_lock_is_its_owners_until_it_is_given_back(
    here: Transport, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_owner(monkeypatch, "ann@desk")
    assert locks.lock(here, str(root), 'until "Friday"')
    assert not locks.lock(here, str(root))  # ours already
    record = json.loads((root / "reserved.json").read_text())
    assert (record["owner"], record["note"]) == ("ann@desk", 'until "Friday"')
    as_owner(monkeypatch, "bob@lap")
    with pytest.raises(LockedError, match=r'locked by ann@desk since 20.*until "Friday"') as caught:
        locks.lock(here, str(root))
    assert caught.value.exit_code == 7
    with pytest.raises(LockedError, match="unlock --force"):
        locks.unlock(here, str(root))
    assert (root / "reserved.json").exists()
    as_owner(monkeypatch, "ann@desk")
    assert (locks.unlock(here, str(root)) or {})["owner"] == "ann@desk"
    assert locks.unlock(here, str(root)) is None


def test_force_takes_a_lock_away_even_a_damaged_one(
    here: Transport, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir(parents=True)
    (root / "reserved.json").write_bytes(b"\x1b[2Jjunk")
    with pytest.raises(LockedError, match="locked by somebody"):
        locks.lock(here, str(root))
    assert locks.unlock(here, str(root), is_forced=True) == {}
    assert not (root / "reserved.json").exists()


def test_two_who_lock_at_once_are_not_both_let_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"user{number}@desk" for number in range(6)]
    monkeypatch.setattr(locks, "owner", lambda: threading.current_thread().name)
    got: list[str] = []

    def race() -> None:
        with LocalTransport() as transport:
            try:
                if locks.lock(transport, str(root)):
                    got.append(threading.current_thread().name)
            except LockedError:
                pass

    threads = [threading.Thread(target=race, name=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert json.loads((root / "reserved.json").read_text())["owner"] == got[0]


def test_a_board_that_cannot_be_written_says_so(here: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError):
        locks.lock(here, str(tmp_path / "file" / "edge-lts"))


def test_an_owner_is_one_harmless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    as_owner(monkeypatch, "ann\x1b[2J\n@desk" + "x" * 500)
    assert locks.owner().startswith(r"ann\x1b[2J @desk")
    assert len(locks.owner()) == 100
    monkeypatch.delenv("EDGE_LTS_OWNER")
    assert "@" in locks.owner()
    with pytest.raises(UsageError, match="--note"):
        locks.lock(FakeTransport(), "/r", "two\nlines")


def test_the_agent_is_told_who_asks_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    as_owner(monkeypatch, "ann@desk")
    session = Session(FakeTransport(), Place(name="pi", root="/r", python="/py", site=None, agent="/a.pyz"))
    for verb in ("search", "measure", "worker", "clean"):
        assert session.argv([verb])[:2] == ["env", "EDGE_LTS_OWNER=ann@desk"]
    assert session.argv(["status"])[0] == "/py"


# What the verbs show


def shelf(*names: str) -> None:
    for name in names:
        remember(
            HostEntry(
                name=name,
                destination=f"pi@{name}",
                target="rpi5",
                root="/r",
                python="/py",
                agent="/r/agents/a.pyz",
                deployed_at="2026-11-22T00:00:00Z",
            )
        )


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards a, b and c: a is busy and locked, b is idle, c does not answer."""
    shelf("a", "b", "c")
    busy = Survey(
        runs=[{"event": "status", "run_id": "run-1", "state": "running", "spent_s": 5, "budget_s": 10}],
        run_holder={"run_id": "run-1", "owner": "bob@lap", "age_s": 5},
        reserved={"owner": "ann@desk", "age_s": 7200.0, "note": "demo"},
    )
    idle = Survey(runs=[], run_holder=None, reserved=None)

    def survey(
        entries: list[HostEntry], options: SshOptions, n_parallel: int, fail_percent: float | None = None
    ) -> list[Result[HostEntry, Survey]]:
        lost = ConnectError("pi@c", "no answer")
        found: dict[str, Any] = {"a": (busy, None), "b": (idle, None), "c": (None, lost)}
        return [Result(entry, *found[entry.name]) for entry in entries]

    monkeypatch.setattr(follow, "survey", survey)


@pytest.mark.usefixtures("surveyed")
def test_status_of_boards_has_a_row_for_each_also_for_one_that_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--limit", "*", "-o", "json"]) == 3
    captured = capsys.readouterr()
    rows = {row["host"]: row for row in json.loads(captured.out)["runs"]}
    assert (rows["a"]["run_id"], rows["a"]["state"], rows["a"]["reserved_by"]) == ("run-1", "running", "ann@desk")
    assert (rows["b"]["run_id"], rows["b"]["state"], rows["b"]["is_reachable"]) == (None, "idle", True)
    assert (rows["c"]["state"], rows["c"]["is_reachable"]) == ("unknown", False)
    assert "no answer" in captured.err
    assert main(["status", "--limit", "*", "--fail-percent", "50"]) == 0
    assert "ann@desk" in capsys.readouterr().out


@pytest.mark.usefixtures("surveyed")
def test_devices_say_who_has_locked_them_and_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "list", "--locks"]) == 3
    out = capsys.readouterr().out
    assert "ann@desk" in out
    assert "2h" in out
    assert "demo" in out
    assert "bob@lap" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "run-1", "--limit", "a"], "not both"),
        (["status", "--all", "--host", "a"], "not both"),
        (["status", "--target", "local"], "this machine"),
        (["devices", "lock"], "say where"),
        (["devices", "list", "--force"], "--force is for devices unlock"),
        (["devices", "scan", "--note", "x"], "--note is for devices lock"),
        (["devices", "lock", "--locks"], "--locks is for devices list"),
        (["devices", "borrow"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    shelf("a")
    assert main(words) == 2
    assert message in capsys.readouterr().err

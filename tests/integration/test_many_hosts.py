"""Many boards in one command line, each a real sshd; benchmarks/bench_fleet.py asks a hundred."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.shelf import Outcome, Shelf
from tests.integration.sshd import require_sshd

pytestmark = [pytest.mark.sshd]

N = 8
# A thread that serves a board, paramiko's, the pulse, and a watchdog each for the call and for starting it.
THREADS_PER_BOARD = 5


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    require_sshd()
    with Shelf(tmp_path_factory.mktemp("shelf"), N) as shelf:
        yield shelf


def rows(outcome: Outcome) -> dict[str, Any]:
    return {row["host"]: row for row in json.loads(outcome.stdout)["runs"]}


@pytest.mark.parametrize("chosen", [["--all"], ["--limit", "*"]])
def test_status_asks_every_board_with_one_command_each(shelf: Shelf, chosen: list[str]) -> None:
    before = shelf.n_commands()
    outcome = shelf.command("status", *chosen, "-o", "json")
    assert outcome.status == 0, outcome.stderr
    found = rows(outcome)
    assert set(found) == set(shelf.servers)
    assert {(row["run_id"], row["state"], row["n_measured"]) for row in found.values()} == {
        (f"run-of-{name}", "stopped", 7) for name in shelf.servers
    }
    assert {name: n - before[name] for name, n in shelf.n_commands().items()} == dict.fromkeys(shelf.servers, 1)


def test_threads_are_bounded_by_parallel_and_not_by_the_boards(shelf: Shelf) -> None:
    outcome = shelf.command("status", "--all", "--parallel", "2", "-o", "json")
    assert outcome.status == 0, outcome.stderr
    assert len(rows(outcome)) == N
    assert 2 < outcome.peak_threads <= 2 * THREADS_PER_BOARD + 2


def test_groups_and_patterns_choose_boards_of_an_inventory(shelf: Shelf) -> None:
    inventory = ["--inventory", str(shelf.inventory), "-o", "json"]
    assert len(rows(shelf.command("status", *inventory, "--limit", "half"))) == N // 2
    assert set(rows(shelf.command("status", *inventory, "--limit", "board00[01]"))) == {"board000", "board001"}
    outcome = shelf.command("status", *inventory, "--limit", "attic")
    assert outcome.status == 2
    assert "matches none of" in outcome.stderr


def test_locks_are_seen_from_everywhere_and_respected(shelf: Shelf) -> None:
    one = ["--limit", "board003"]
    assert shelf.command("devices", "lock", *one, "--note", "demo").status == 0
    try:
        listed = shelf.command("devices", "list", "--locks", "-o", "json")
        assert listed.status == 0, listed.stderr
        held = {row["name"]: row for row in json.loads(listed.stdout)["devices"] if row["reserved_by"]}
        assert set(held) == {"board003"}
        assert held["board003"]["reserved_note"] == "demo"
        assert 0 <= held["board003"]["reserved_for_s"] < 600
        shelf.environ["EDGE_LTS_OWNER"] = "somebody@else"
        for words in (["devices", "lock"], ["devices", "unlock"], ["clean", "--yes"]):
            refused = shelf.command(*words, *one)
            assert refused.status == 7, refused.stderr
            assert "locked by" in refused.stderr
        assert shelf.command("devices", "unlock", "--force", *one).status == 0
        assert shelf.command("devices", "lock", *one).status == 0
    finally:
        shelf.environ.pop("EDGE_LTS_OWNER", None)
        shelf.command("devices", "unlock", "--force", *one)


def test_some_that_are_off_are_shown_beside_the_others(shelf: Shelf) -> None:
    dead = ["board001", "board006"]
    for name in dead:
        shelf.servers[name].stop()
    asking = ["status", "--all", "-o", "json", "--connect-timeout", "2s"]
    outcome = shelf.command(*asking)
    assert outcome.status == 3
    found = rows(outcome)
    assert len(found) == N
    assert sorted(name for name, row in found.items() if not row["is_reachable"]) == dead
    assert all(shelf.servers[name].destination in outcome.stderr for name in dead)
    assert "is closed" in outcome.stderr
    assert shelf.command(*asking, "--fail-percent", "25").status == 0
    assert shelf.command(*asking, "--fail-percent", "10").status == 3

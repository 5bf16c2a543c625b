"""Remembered hosts, inventories, and which boards a command line means."""

from __future__ import annotations

import argparse
import json
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts_host.cli import main
from edge_lts_host.commands import common
from edge_lts_host.errors import StoreError, TargetError, UsageError
from edge_lts_host.hosts import (
    LOCAL_HOST,
    HostEntry,
    forget,
    hosts_file,
    load_hosts,
    parse_destination,
    remember,
    select_hosts,
)
from edge_lts_host.inventory import load_inventory


def deployed(name: str, target: str, destination: str | None = None) -> HostEntry:
    return HostEntry(
        name=name,
        destination=destination or name,
        target=target,
        root="/home/pi/.local/share/edge-lts",
        python="/usr/bin/python3",
        site="/home/pi/.local/share/edge-lts/env/abc/site",
        device={"model": "Raspberry Pi 5", "torch": "2.9.1"},
        deployed_at="2026-11-22T10:00:00Z",
    )


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    common.add_hosts(parser)
    return parser.parse_args(words)


@pytest.fixture
def shelf() -> None:
    remember(deployed("pi@pi5-a", "rpi5"))
    remember(deployed("pi@pi4-a", "rpi4"))
    remember(deployed("emu", "emulated-arm64", "root@10.0.0.2:2222"))
    remember(deployed("nuc", "x86_64"))


def names(hosts: list[HostEntry]) -> list[str]:
    return [entry.name for entry in hosts]


def inventory(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return path


LAB = """
[defaults]
parallel = 4
target = "arm64"
[devices.kitchen]
host = "pi@pi5-a"
tags = ["hot"]
[devices.new]
host = "pi@pi9"
target = "rpi5"
[devices.bare]
[groups]
lab = ["kitchen", "n*"]
"""


def test_hosts_are_remembered_privately_and_replaced_by_name() -> None:
    assert load_hosts() == {}
    remember(deployed("a", "rpi4"))
    remember(deployed("b", "rpi5"))
    remember(deployed("a", "rpi5"))
    assert {name: entry.target for name, entry in load_hosts().items()} == {"a": "rpi5", "b": "rpi5"}
    assert stat.S_IMODE(hosts_file().stat().st_mode) == 0o600
    forget("a")
    forget("a")
    assert list(load_hosts()) == ["b"]


def test_many_deploys_that_end_at_once_are_all_remembered() -> None:
    threads = [threading.Thread(target=remember, args=(deployed(f"board-{index}", "rpi5"),)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_hosts()) == 12


def test_an_entry_survives_json() -> None:
    entry = replace(deployed("a", "rpi5"), tags=("x",), extra={"note": 1})
    assert HostEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"hosts": []}',
        '{"schema_version": 2, "hosts": {}}',
        '{"hosts": {"a": 1}}',
        '{"hosts": {"a": {"name": "a", "destination": "a", "password": "x"}}}',
        '{"hosts": {"a": {"name": "b", "destination": "a"}}}',
        '{"hosts": {"a": {"name": "a", "destination": "a b"}}}',
        '{"hosts": {"a": {"name": "a", "destination": "a", "tags": "x"}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_state_file_is_one_line_with_a_remedy(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    hosts_file().parent.mkdir(parents=True)
    hosts_file().write_text(text)
    with pytest.raises(StoreError, match=r"hosts\.json is damaged: .*; move it away and deploy again"):
        load_hosts()
    assert main(["devices"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    with pytest.raises(StoreError):
        remember(deployed("a", "rpi5"))
    assert hosts_file().read_text() == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pi@raspberrypi", ("pi", "raspberrypi", None)),
        ("raspberrypi.local:2222", (None, "raspberrypi.local", 2222)),
        ("root@[fe80::1%eth0]:22", ("root", "fe80::1%eth0", 22)),
        ("10.0.0.7", (None, "10.0.0.7", None)),
    ],
)
def test_destinations(text: str, parts: tuple[Any, ...]) -> None:
    assert parse_destination(text) == parts


@pytest.mark.parametrize(
    "text", ["", "a b", "-oProxyCommand=x", "pi@", "@pi", "pi:0", "pi:99999", "pi:x", "fe80::1", "a;b", "a\n"]
)
def test_what_is_no_destination_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--host: "):
        parse_destination(text)


@pytest.mark.usefixtures("shelf")
def test_a_target_selects_every_board_that_is_it_or_extends_it() -> None:
    assert sorted(names(select_hosts(parse("--target", "arm64")))) == ["emu", "pi@pi4-a", "pi@pi5-a"]
    assert names(select_hosts(parse("--target", "rpi5"))) == ["pi@pi5-a"]
    assert sorted(names(select_hosts(parse("--target", "arm64", "--limit", "pi*")))) == ["pi@pi4-a", "pi@pi5-a"]
    assert names(select_hosts(parse("--target", "arm64", "--host", "pi@pi4-a"))) == ["pi@pi4-a"]
    assert len(select_hosts(parse(), default="all")) == 4


@pytest.mark.usefixtures("shelf")
def test_a_host_is_meant_by_name_destination_or_bare_host() -> None:
    for text in ("emu", "root@10.0.0.2:2222", "10.0.0.2", "root@10.0.0.2"):
        assert names(select_hosts(parse("--host", text))) == ["emu"]
    assert names(select_hosts(parse("--host", "pi5-a", "--host", "pi@pi5-a"))) == ["pi@pi5-a"]
    remember(deployed("root@pi5-a", "rpi5"))
    with pytest.raises(UsageError, match=r"may be pi@pi5-a or root@pi5-a; say which"):
        select_hosts(parse("--host", "pi5-a"))


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "pi@new"], "pi@new has not been deployed to from here; first: edge-lts deploy --host pi@new"),
        (["--target", "rpi4", "--host", "pi@pi5-a"], "pi@pi5-a was deployed as rpi5, which is no rpi4"),
        (["--target", "nope"], "no target is called 'nope'"),
        (["--limit", "zzz", "--target", "arm64"], "--limit: 'zzz' matches none of"),
        (["--target", "local", "--host", "emu"], "--target local is this machine"),
        ([], "say where: --target NAME"),
    ],
)
def test_what_cannot_be_selected_is_said(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        select_hosts(parse(*words))
    assert message in str(caught.value)


def test_without_any_board_it_says_how_to_get_one() -> None:
    with pytest.raises(UsageError, match="edge-lts deploy --host"):
        select_hosts(parse("--target", "arm64"))
    with pytest.raises(UsageError, match="edge-lts deploy --host"):
        select_hosts(parse(), default="all")


def test_this_machine_needs_no_deploy(tmp_path: Path) -> None:
    assert select_hosts(parse("--target", "local")) == [LOCAL_HOST]
    assert select_hosts(parse(), default="local") == [LOCAL_HOST]
    mine = tmp_path / "mine.toml"
    mine.write_text("extends = 'local'\nthreads = 1\n")
    [entry] = select_hosts(parse("--target", "mine", "--target-file", str(mine)))
    assert entry.is_local
    assert entry.target == "mine"


@pytest.mark.usefixtures("shelf")
def test_deploy_may_name_new_boards_and_says_what_they_become(tmp_path: Path) -> None:
    args = parse("--host", "pi@new", "--host", "pi@pi5-a", "--target", "rpi4")
    hosts = select_hosts(args, must_be_deployed=False)
    assert [(entry.name, entry.is_deployed) for entry in hosts] == [("pi@new", False), ("pi@pi5-a", True)]
    with pytest.raises(UsageError, match="say which board"):
        select_hosts(parse("--target", "rpi4"), must_be_deployed=False)
    mine = tmp_path / "mine.toml"
    mine.write_text("extends = 'rpi4'\nssh_alias = 'bench-pi'\n")
    words = ["--target", "mine", "--target-file", str(mine)]
    assert names(select_hosts(parse(*words), must_be_deployed=False)) == ["bench-pi"]
    assert names(select_hosts(parse(*words, "--host", "pi@new"), must_be_deployed=False)) == ["pi@new"]
    lab = inventory(tmp_path, LAB)
    assert names(select_hosts(parse("-i", str(lab)), must_be_deployed=False)) == ["kitchen", "new", "bare"]
    assert names(select_hosts(parse("-i", str(lab), "--host", "new"), must_be_deployed=False)) == ["new"]


@pytest.mark.usefixtures("shelf")
def test_an_inventory_names_boards_and_knows_what_deploy_found_out(tmp_path: Path) -> None:
    lab = inventory(tmp_path, LAB)
    read = load_inventory(lab)
    assert [(entry.destination, entry.target) for entry in read.devices.values()] == [
        ("pi@pi5-a", "arm64"),
        ("pi@pi9", "rpi5"),
        ("bare", "arm64"),
    ]
    assert common.n_parallel(parse("-i", str(lab)), 10) == 4
    assert common.n_parallel(parse("-i", str(lab), "--parallel", "2"), 10) == 2
    assert common.n_parallel(parse(), 3) == 3
    [kitchen] = select_hosts(parse("-i", str(lab), "--limit", "hot"))
    assert (kitchen.name, kitchen.target, kitchen.python) == ("kitchen", "rpi5", "/usr/bin/python3")
    assert names(select_hosts(parse("-i", str(lab), "--limit", "lab"), must_be_deployed=False)) == ["kitchen", "new"]
    with pytest.raises(UsageError, match="new has not been deployed to"):
        select_hosts(parse("-i", str(lab)))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[device.a]", "key 'device': is unknown"),
        ("devices = 1", "key 'devices': must be a table"),
        ("[devices]\na = 1", "key 'devices.a': must be a table"),
        ("[devices.a]\nhsot = 'x'", "key 'devices.a.hsot': is unknown"),
        ("[devices.a]\nhost = 5", "key 'devices.a.host'"),
        ("[devices.a]\nhost = 'a b'", "key 'devices.a.host'"),
        ("[devices.a]\npassword = 'raspberry'", "holds no passwords"),
        ("[devices.a]\nhost = 'x'\n[devices.b]\nhost = 'x'", "key 'devices.b.host': is 'x', as in devices.a"),
        ("[devices.a]\n[devices.a]", "not TOML"),
        ("[devices.local]", "is no device name"),
        ("[devices.'a b']", "is no device name"),
        ("[defaults]\nparallel = 0", "key 'defaults.parallel'"),
        ("[defaults]\nparallel = true", "key 'defaults.parallel'"),
        ("[defaults]\ntarget = 3", "key 'defaults.target'"),
        ("[devices.a]\ntags = 'x'", "key 'devices.a.tags'"),
        ("[devices.a]\ntags = ['x', 'x']", "names an entry twice"),
        ("[devices.a]\n[groups]\nlab = ['b']", "'b' matches no device; devices: a"),
        ("[devices.a]\n[groups]\na = ['a']", "is a device's name, too"),
        ("[groups]\nlab = 'a'", "key 'groups.lab': must be a list"),
    ],
)
def test_a_bad_inventory_is_one_line_naming_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, where: str
) -> None:
    path = inventory(tmp_path, text)
    with pytest.raises(TargetError) as caught:
        load_inventory(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert where in str(caught.value)
    assert main(["devices", "-i", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "raspberry" not in captured.err


@pytest.mark.usefixtures("shelf")
def test_devices_lists_boards_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--target", "arm64", "--limit", "pi*"]) == 0
    out = capsys.readouterr().out
    assert "pi@pi5-a" in out
    assert "Raspberry Pi 5" in out
    assert "nuc" not in out
    assert main(["devices", "-o", "json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert [device["name"] for device in devices] == ["emu", "nuc", "pi@pi4-a", "pi@pi5-a"]
    assert devices[0]["destination"] == "root@10.0.0.2:2222"
    assert main(["devices", "--target", "local", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["hosts", "a", "name", "destination", "tags", "device", "schema_version"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_hosts_or_a_store_error(data: object) -> None:
    hosts_file().parent.mkdir(parents=True, exist_ok=True)
    hosts_file().write_text(json.dumps(data))
    try:
        load_hosts()
    except StoreError as exc:
        assert "\n" not in str(exc)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(LAB)), st.text(max_size=12), st.integers(0, 12))
def test_a_damaged_inventory_is_read_or_refused(tmp_path: Path, at: int, noise: str, n_lost: int) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_text(LAB[:at] + noise + LAB[at + n_lost :], encoding="utf-8", errors="replace")
    try:
        load_inventory(path)
    except TargetError as exc:
        assert exc.path == str(path)

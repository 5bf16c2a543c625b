"""Target files: lookup, inheritance, recognition, and one line for each way a file can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts_host.cli import main
from edge_lts_host.errors import TargetError, UsageError
from edge_lts_host.targets import get_target, load_targets, most_specific
from tests.unit.host.sample_runs import RPI5

BUILT_IN = {"local", "x86_64", "arm64", "rpi4", "rpi5", "emulated-arm64"}


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_the_built_in_targets_are_all_there_and_valid() -> None:
    targets = load_targets()
    assert set(targets) == BUILT_IN
    assert all(target.origin == "built-in" for target in targets.values())
    assert targets["arm64"].torch == "2.9.1"
    assert "manylinux_2_28_aarch64" in targets["arm64"].platform_tags
    assert targets["emulated-arm64"].is_emulated
    assert [target.name for target in targets.values() if target.is_emulated] == ["emulated-arm64"]
    assert all(target.min_memory_bytes == 700_000_000 for target in targets.values())
    assert targets["local"].is_local
    assert not targets["arm64"].is_local
    assert all(target.description for target in targets.values())


def test_a_target_inherits_what_it_does_not_say_but_not_the_description(home: Path) -> None:
    write(home / "config/edge-lts/targets", "shelf", 'extends = "rpi5"\n[memory]\nheadroom = 0.3\n')
    shelf = load_targets()["shelf"]
    assert shelf.chain == ("shelf", "rpi5", "arm64")
    assert (shelf.torch, shelf.threads, shelf.arch, shelf.memory_headroom) == ("2.9.1", 0, "aarch64", 0.3)
    assert shelf.description == ""
    assert shelf.is_a("shelf")
    assert shelf.is_a("arm64")
    assert not shelf.is_a("rpi4")


def test_lookup_order_is_file_then_config_then_built_in(home: Path, tmp_path: Path) -> None:
    config = write(home / "config/edge-lts/targets", "rpi5", 'extends = "arm64"\nthreads = 2\n')
    assert load_targets()["rpi5"].threads == 2
    assert load_targets()["rpi5"].origin == str(config)
    given_file = write(tmp_path / "elsewhere", "rpi5", 'extends = "arm64"\nthreads = 1\n')
    assert load_targets([given_file])["rpi5"].threads == 1


@pytest.mark.parametrize(
    ("model", "is_emulated", "machine", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", False, "aarch64", "rpi5"),
        ("Raspberry Pi 500 Rev 1.0", False, "aarch64", "rpi5"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", None, "aarch64", "rpi4"),
        ("Raspberry Pi 400 Rev 1.0", False, "aarch64", "rpi4"),
        ("Raspberry Pi Zero 2 W Rev 1.0", False, "aarch64", "arm64"),
        (None, None, "aarch64", "arm64"),
        (None, True, "aarch64", "emulated-arm64"),
        (None, False, "x86_64", "x86_64"),
        (None, False, "riscv64", None),
    ],
)
def test_the_most_specific_target_is_recognised(
    model: str | None, is_emulated: bool | None, machine: str, expected: str | None
) -> None:
    device = replace(RPI5, model=model, is_emulated=is_emulated, machine=machine)
    found = most_specific(load_targets(), device)
    assert (found.name if found else None) == expected


def test_a_target_without_rules_of_its_own_is_never_recognised(home: Path) -> None:
    write(home / "config/edge-lts/targets", "shelf", 'extends = "rpi5"\n')
    found = most_specific(load_targets(), RPI5)
    assert found is not None
    assert found.name == "rpi5"


def test_rules_of_what_is_extended_hold_too(home: Path) -> None:
    write(home / "config/edge-lts/targets", "any5", "extends = 'rpi5'\n[match]\nmodel = '5'\n")
    found = most_specific(load_targets(), replace(RPI5, model="Orange Pi 5"))
    assert found is not None
    assert found.name == "arm64"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("threads = 'four'", "threads", "must be an integer"),
        ("threads = true", "threads", "must be an integer"),
        ("threads = -1", "threads", "from 0 to 1024"),
        ("torch = 2.9", "torch", "a version such as 2.9.1"),
        ("speed = 3", "speed", "is unknown; known keys: extends"),
        ("password = 'raspberry'", "password", "ssh_alias"),
        ("[wheels]\nplatform_tags = []", "wheels.platform_tags", "must be a list"),
        ("[wheels]\nplatform_tags = ['a', 'a']", "wheels.platform_tags", "twice"),
        ("[wheels]\npython_versions = [3.11]", "wheels.python_versions", "3.11"),
        ("[memory]\nheadroom = 1.0", "memory.headroom", "below 1"),
        ("[memory]\nheadroom = nan", "memory.headroom", "below 1"),
        ("memory = 5", "memory", "must be a table"),
        ("[match]\nmodel = '('", "match.model", "regular expression"),
        ("[match]\nkernel = '6'", "match.kernel", "is unknown"),
        ("extends = 'nobody'", "extends", "unknown target 'nobody'; known: "),
        ("extends = 'bad'", "extends", "circle (bad -> bad)"),
        ("arch = 'mips'", "arch", "aarch64, x86_64, any"),
        ("is_emulated = 1", "is_emulated", "true or false"),
        ('description = "a\\u001b[31mb"', "description", "one line of text"),
        ("threads = 1\nthreads = 2", None, "not TOML"),
        ("threads = ", None, "not TOML"),
        ("\x00", None, "not TOML"),
    ],
)
def test_a_bad_file_is_one_line_naming_file_and_key(
    home: Path, capsys: pytest.CaptureFixture[str], text: str, key: str | None, words: str
) -> None:
    path = write(home / "config/edge-lts/targets", "bad", text)
    with pytest.raises(TargetError) as caught:
        load_targets()
    assert caught.value.path == str(path)
    assert caught.value.key == key
    assert words in str(caught.value)
    assert main(["targets"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"edge-lts: {path}: ")
    assert captured.err.count("\n") == 1
    assert "raspberry" not in captured.err


def test_a_longer_circle_is_shown(home: Path) -> None:
    folder = home / "config/edge-lts/targets"
    write(folder, "a", "extends = 'b'")
    write(folder, "b", "extends = 'a'")
    with pytest.raises(TargetError, match=r"a -> b -> a"):
        load_targets()


def test_a_missing_or_huge_or_badly_named_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"gone\.toml: it cannot be read"):
        load_targets([tmp_path / "gone.toml"])
    with pytest.raises(TargetError, match="larger than"):
        load_targets([write(tmp_path, "huge", "#" * (1 << 20) + "\n")])
    with pytest.raises(TargetError, match="no target name"):
        load_targets([write(tmp_path, "My Board", "")])
    with pytest.raises(TargetError, match="describes the target 'twin' already"):
        load_targets([write(tmp_path / "1", "twin", ""), write(tmp_path / "2", "twin", "")])
    path = tmp_path / "latin.toml"
    path.write_bytes(b"description = '\xe9'")
    with pytest.raises(TargetError, match="UTF-8"):
        load_targets([path])


def test_an_unknown_target_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"--target: no target is called 'rpi6'; known: arm64, "):
        get_target(load_targets(), "rpi6")


def test_targets_prints_origin_and_parent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, "mine", "extends = 'rpi4'")
    assert main(["targets", "mine", "rpi4", "--target-file", str(path), "-o", "json"]) == 0
    mine, rpi4 = json.loads(capsys.readouterr().out)["targets"]
    assert (mine["name"], mine["extends"], mine["origin"]) == ("mine", "rpi4", str(path))
    assert rpi4["origin"] == "built-in"
    assert main(["targets"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in BUILT_IN)


_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["extends", "threads", "torch", "arch", "wheels", "memory", "match", "is_emulated", "ssh_alias", "description"]
) | st.text(max_size=8)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return str(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_any_toml_is_a_target_or_a_target_error(tmp_path: Path, data: dict[str, object]) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_text(
        "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in data.items()),
        encoding="utf-8",
        errors="replace",
    )
    try:
        assert "fuzz" in load_targets([path])
    except TargetError as exc:
        assert str(exc).startswith(f"{path}: ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_are_a_target_or_a_target_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(data)
    try:
        load_targets([path])
    except TargetError as exc:
        assert exc.path == str(path)

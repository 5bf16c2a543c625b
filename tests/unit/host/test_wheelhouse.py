"""Which wheels a board gets and where they come from; no network."""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from pathlib import Path

import pytest

from edge_lts_host import wheelhouse
from edge_lts_host.errors import PreflightError
from edge_lts_host.wheelhouse import Wheel, WheelhouseError

GLIBC = (2, 36)


def make_wheel(folder: Path, name: str, version: str, tags: str, requires: tuple[str, ...] = ()) -> Path:
    """The smallest file that pip takes for a wheel."""
    path = folder / f"{name}-{version}-{tags}.whl"
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tags}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def as_wheel(path: Path) -> Wheel:
    name, version = path.name.split("-")[:2]
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Wheel(name=name, version=version, file=path.name, sha256=digest, size_bytes=len(data))


def test_the_lock_has_the_three_packages_and_the_installer_for_every_python() -> None:
    lock = wheelhouse.load_lock()
    assert set(lock) == {(f"3.{minor}", "aarch64") for minor in range(10, 15)}
    for (python, machine), wheels in lock.items():
        assert tuple(wheel.name for wheel in wheels.wheels) == wheelhouse.DEVICE_PACKAGES
        assert wheels.version("torch") == "2.9.1"
        assert wheels.installer.name == "pip"
        for wheel in wheels.all_wheels:
            parsed = wheelhouse._WheelName.parse(wheel.file)
            assert parsed is not None
            assert parsed.fits(python, machine, (2, 28))
            assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
    assert len({wheels.lock_id for wheels in lock.values()}) == len(lock)


def test_the_lock_names_no_address() -> None:
    text = wheelhouse.LOCK_FILE.read_text()
    assert "://" not in text
    assert "http" not in text


def test_the_lock_id_changes_with_any_hash() -> None:
    wheels = wheelhouse.load_lock()["3.11", "aarch64"]
    first = wheels.wheels[0]
    other = Wheel(**{**{name: getattr(first, name) for name in first.__slots__}, "sha256": "0" * 64})
    changed = wheelhouse.WheelSet(
        python="3.11", machine="aarch64", wheels=(other, *wheels.wheels[1:]), installer=wheels.installer
    )
    assert changed.lock_id != wheels.lock_id


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str] | None:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(wheelhouse, "pip_command", refuse)


@pytest.mark.usefixtures("no_network")
def test_whole_wheels_in_the_cache_are_not_fetched_again(tmp_path: Path) -> None:
    wheel = as_wheel(make_wheel(tmp_path, "numpy", "2.4.6", "cp311-cp311-manylinux_2_28_aarch64"))
    assert wheelhouse.obtain([wheel], "3.11", "aarch64", cache=tmp_path) == {wheel: tmp_path / wheel.file}


def test_a_damaged_wheel_in_the_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = make_wheel(source, "numpy", "2.4.6", "cp311-cp311-manylinux_2_28_aarch64")
    wheel = as_wheel(path)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / wheel.file).write_bytes(b"x" * wheel.size_bytes)
    copy = f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[-1])"
    monkeypatch.setattr(wheelhouse, "pip_command", lambda: [sys.executable, "-c", copy])
    said: list[str] = []
    found = wheelhouse.obtain([wheel], "3.11", "aarch64", cache=cache, say=said.append)
    assert found[wheel].read_bytes() == path.read_bytes()
    assert "numpy==2.4.6" in said[0]
    assert [each.name for each in cache.iterdir()] == [wheel.file]


def test_a_wheel_that_is_not_the_locked_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_wheel(tmp_path, "numpy", "2.4.6", "cp311-cp311-manylinux_2_28_aarch64")
    wheel = as_wheel(path)
    other = Wheel(name="numpy", version="2.4.6", file=wheel.file, sha256="0" * 64, size_bytes=wheel.size_bytes)
    copy = f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[-1])"
    monkeypatch.setattr(wheelhouse, "pip_command", lambda: [sys.executable, "-c", copy])
    with pytest.raises(WheelhouseError, match=r"another numpy-.* than was locked"):
        wheelhouse.obtain([other], "3.11", "aarch64", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / wheel.file).exists()


def test_without_pip_and_uv_the_message_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "pip_command", lambda: None)
    with pytest.raises(WheelhouseError, match=r"neither pip nor uv .*--wheelhouse DIR.*--online"):
        wheelhouse.obtain(wheelhouse.load_lock()["3.11", "aarch64"].wheels, "3.11", "aarch64", cache=tmp_path)


def test_uv_runs_pip_where_pip_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(wheelhouse.importlib.util, "find_spec", lambda name: None)
    assert wheelhouse.pip_command() == [str(uv), "tool", "run", "--quiet", "pip"]
    uv.unlink()
    assert wheelhouse.pip_command() is None


def test_what_pip_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.stderr.write('WARNING: a\\nERROR: no such \\x1b[31mthing\\nhint\\n'); sys.exit(1)"
    monkeypatch.setattr(wheelhouse, "pip_command", lambda: [sys.executable, "-c", program])
    with pytest.raises(WheelhouseError, match=r"ERROR: no such \\x1b\[31mthing; try again"):
        wheelhouse.obtain(wheelhouse.load_lock()["3.11", "aarch64"].wheels, "3.11", "aarch64", cache=tmp_path)


def fill(folder: Path, *torches: str, machine: str = "x86_64", python: str = "cp312") -> None:
    for version in torches:
        make_wheel(folder, "torch", version, f"{python}-{python}-manylinux_2_28_{machine}")
    make_wheel(folder, "numpy", "2.4.6", f"{python}-{python}-manylinux_2_27_{machine}.manylinux_2_28_{machine}")
    make_wheel(folder, "typing_extensions", "4.16.0", "py3-none-any")


def test_a_named_directory_gives_the_newest_torch_of_the_accepted_range(tmp_path: Path) -> None:
    fill(tmp_path, "2.8.0", "2.9.1", "2.13.0+cpu", "3.0.0")
    found = wheelhouse.choose_set("3.12", "x86_64", GLIBC, wheelhouse=tmp_path)
    assert found.version("torch") == "2.13.0+cpu"
    assert found.installer.name == "pip"


@pytest.mark.parametrize(
    ("versions", "python", "glibc"),
    [(("2.8.0", "3.1.0"), "3.12", GLIBC), (("2.9.1",), "3.13", GLIBC), (("2.9.1",), "3.12", (2, 27))],
)
def test_a_directory_without_a_fitting_torch_is_refused(
    tmp_path: Path, versions: tuple[str, ...], python: str, glibc: tuple[int, int]
) -> None:
    fill(tmp_path, *versions)
    with pytest.raises(WheelhouseError, match=r"has no wheel of torch>=2\.9\.1,<3"):
        wheelhouse.choose_set(python, "x86_64", glibc, wheelhouse=tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_missing_directory_file_is_not_fetched(tmp_path: Path) -> None:
    wheels = wheelhouse.load_lock()["3.11", "aarch64"]
    with pytest.raises(WheelhouseError, match="lacks torch-2"):
        wheelhouse.obtain(wheels.wheels, "3.11", "aarch64", wheelhouse=tmp_path, cache=tmp_path / "cache")


def test_machines_without_a_lock_get_a_clear_message() -> None:
    with pytest.raises(PreflightError, match=r"no list of wheels for x86_64 .*CUDA.*--python.*--wheelhouse.*--online"):
        wheelhouse.choose_set("3.12", "x86_64", GLIBC)
    with pytest.raises(PreflightError, match=r"no locked wheels for Python 3\.15 on aarch64 \(known: 3\.10, .*3\.14\)"):
        wheelhouse.choose_set("3.15", "aarch64", GLIBC)


def test_a_target_that_asks_for_another_torch_is_an_error() -> None:
    assert wheelhouse.choose_set("3.11", "aarch64", GLIBC, torch_pin="2.9.1").version("torch") == "2.9.1"
    with pytest.raises(PreflightError, match=r"asks for torch 2\.10\.0, the locked list has 2\.9\.1"):
        wheelhouse.choose_set("3.11", "aarch64", GLIBC, torch_pin="2.10.0")


def test_a_damaged_lock_says_to_reinstall(tmp_path: Path) -> None:
    for text in ("", "[]", '{"schema_version": 1, "sets": [{}]}'):
        path = tmp_path / "lock.json"
        path.write_text(text)
        with pytest.raises(WheelhouseError, match="reinstall edge-lts"):
            wheelhouse.load_lock(path)


@pytest.mark.parametrize(
    ("version", "is_accepted"),
    [("2.9.0", False), ("2.9.1", True), ("2.9.1+cpu", True), ("2.13.0", True), ("3.0.0", False), ("junk", False)],
)
def test_the_accepted_range_of_torch(version: str, is_accepted: bool) -> None:
    assert wheelhouse.is_torch_accepted(version) is is_accepted

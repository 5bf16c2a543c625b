"""Whatever comes from outside is read, or refused with a declared error; in millions: benchmarks/bench_fuzz.py."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_lts.arch import Architecture
from edge_lts.errors import ArchitectureError
from edge_lts.runfolder import read_json
from edge_lts_host import follow, onboard
from edge_lts_host.agent_protocol import MAX_LINES, AgentReader, clean
from edge_lts_host.board_facts import BoardFacts
from edge_lts_host.errors import AgentProtocolError
from edge_lts_host.toml_files import BadToml, read_toml
from tests.fuzz import targets as fuzzing
from tests.fuzz.seeds import PROBE

TARGETS = fuzzing.all_targets()
FINE_SEEDS = [(name, seed) for name, target in TARGETS.items() for seed in target.seeds if b'"error"' not in seed]


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_input_raises_nothing_but_declared_errors(name: str) -> None:
    rng = random.Random(name)
    for _ in range(150):
        fuzzing.judge(TARGETS[name], fuzzing.mutated(rng, TARGETS[name]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_declared_errors(name: str, data: bytes) -> None:
    fuzzing.judge(TARGETS[name], data)


@pytest.mark.parametrize(("name", "seed"), FINE_SEEDS)
def test_what_is_damaged_was_sound_before(name: str, seed: bytes) -> None:
    """Else the inputs would only ever be refused at the door."""
    assert fuzzing.judge(TARGETS[name], seed) is None


# What fuzzing found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "9" * 5000, "it is not TOML: Exceeds the limit"),
        ("threads = 0x" + "f" * 5000, "threads is an integer of more than 64 bits"),
        ("a = [1, {b = 0xffff_ffff_ffff_ffff}]", "b is an integer of more than 64 bits"),
        (".".join("a" * 30) + " = 1", "a is nested too deeply"),
        ("a = " + "[" * 30 + "]" * 30, "a is nested too deeply"),
    ],
)
def test_toml_with_endless_numbers_or_depth_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadToml, match=said) as caught:
        read_toml(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1 << 63, -(1 << 63) - 1])
def test_a_number_that_no_board_can_mean_is_refused(value: float) -> None:
    for data in (value, [value], {"a": {"b": value}}):
        with pytest.raises(ValueError, match=r"number|integer"):
            clean(data)
    assert clean((1 << 63) - 1) == (1 << 63) - 1
    assert clean(True) is True


def test_infinity_written_as_a_number_is_refused() -> None:
    hello = b'{"event":"hello","protocol":1}\n'
    with pytest.raises(AgentProtocolError, match="not finite"):
        list(AgentReader([hello, b'{"event":"status","budget_s":1e999}\n'], "pi"))


def test_an_endless_stream_of_blank_lines_comes_to_an_end() -> None:
    with pytest.raises(AgentProtocolError, match=f"more than {MAX_LINES} lines"):
        list(AgentReader((b"\n" * 100_000 for _ in iter(int, 1)), "pi"))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + "0" * 400, str(1 << 64)])
def test_a_file_of_a_run_with_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "device.json"
    path.write_text(f'{{"a": [1.5, -7, {number}]}}')
    with pytest.raises(ValueError, match=r"is no finite number|needs more than 64 bits") as caught:
        read_json(path)
    assert len(str(caught.value)) < 100
    path.write_text(f'{{"a": [1.5, -7, {(1 << 64) - 1}]}}')
    assert read_json(path) == {"a": [1.5, -7, (1 << 64) - 1]}


@pytest.mark.parametrize(
    ("key", "value"),
    [("python", "three"), ("python", "3"), ("python", "9" * 5000 + ".1"), ("n_cores", 10**30), ("uid", 1 << 64)],
)
def test_a_probe_that_answers_nonsense_is_refused(key: str, value: object) -> None:
    text = onboard.MARKER + json.dumps({**PROBE, key: value})
    with pytest.raises(AgentProtocolError):
        BoardFacts.from_json("pi", onboard.read_answer("pi", text.encode()))


def test_progress_is_one_line_whatever_a_board_says() -> None:
    assert follow.progress_line({"state": "d\nne", "n_failed": "1\t2"}).isprintable()


def test_a_probe_with_a_strange_libc_has_no_glibc() -> None:
    for libc in ("glibc ²", "glibc " + "9" * 5000 + ".1", "glibc 2", "musl 1.2"):
        assert BoardFacts.from_json("pi", {**PROBE, "libc": libc}).glibc is None
    assert BoardFacts.from_json("pi", PROBE).glibc == (2, 36)


def test_what_a_probe_says_is_safe_to_show() -> None:
    text = onboard.MARKER + json.dumps({**PROBE, "board_model": "\x1b]0;owned\x07"})
    facts = BoardFacts.from_json("pi", onboard.read_answer("pi", text.encode()))
    assert facts.board_model == r"\x1b]0;owned\x07"


@pytest.mark.parametrize("value", ["A" * 5000, 10**4000, ["x"] * 2000, True])
def test_an_error_about_an_architecture_is_short(value: object) -> None:
    good = {"backbone": "gpt2", "d_model": 32, "layers": [{"n_head": 2, "d_inner": 64}]}
    for bad in ({**good, "d_model": value}, {**good, "tie_embeddings": [value]}, {**good, "x" * 5000: 1}):
        with pytest.raises(ArchitectureError) as caught:
            Architecture.from_json(bad)
        assert len(str(caught.value)) < 400

"""Space files on the workstation: lookup, one-line errors, and the choice when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_lts.errors import SpaceError
from edge_lts.records import Protocol
from edge_lts.space import SearchSpace
from edge_lts_host.errors import UsageError
from edge_lts_host.spaces import MIN_CANDIDATES, default_space, list_spaces, load_space, seconds_per_candidate
from edge_lts_host.toml_files import builtin_dir


def test_every_built_in_space_is_valid_and_called_as_its_file() -> None:
    spaces = list_spaces()
    assert {"lts-gpt2", "demo"} <= set(spaces)
    for name in spaces:
        data, origin = load_space(name)
        assert origin == "built-in"
        assert SearchSpace.from_json(data).name == name


def test_a_file_is_given_by_its_path_and_a_copy_in_the_config_comes_first(home: Path, tmp_path: Path) -> None:
    text = (builtin_dir("spaces") / "demo.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "demo"', 'name = "mine"'))
    assert load_space(str(path))[0]["name"] == "mine"
    folder = home / "config/edge-lts/spaces"
    folder.mkdir(parents=True)
    (folder / "demo.toml").write_text(text.replace("description = ", "description = 'edited' # "))
    data, origin = load_space("demo")
    assert data["description"] == "edited"
    assert origin == str(folder / "demo.toml")


def test_an_unknown_space_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"--space: no space is called 'dmeo'; known: demo, "):
        load_space("dmeo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[genes]", "[gnes]"), "gnes"),
        (("n_head = [2, 4, 8]", "n_head = '8'"), "n_head"),
        (("n_head = [2, 4, 8]", "n_head = [2, 2]"), "n_head"),
        (("n_head = [2, 4, 8]", "n_head = [nan]"), "n_head"),
        (("n_head = [2, 4, 8]", "n_head = 2026-11-22"), "genes.n_head must be a finite number"),
        (("n_head = [2, 4, 8]", "n_head = [2]\nn_head = [4]"), "not TOML"),
        (
            ("n_head = [2, 4, 8]", "n_head = [2]\nvocab_size = [512, 4096]"),
            "genes.vocab_size: vocab_size is in [fixed] too",
        ),
    ],
)
def test_a_bad_space_names_file_and_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text((builtin_dir("spaces") / "demo.toml").read_text().replace(*change))
    with pytest.raises(SpaceError) as caught:
        load_space(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_make_vocabulary_and_embedding_genes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (builtin_dir("spaces") / "demo.toml").read_text().replace("vocab_size = 4096\n", "")
    path.write_text(
        text.replace("[genes]", "[genes]\nvocab_size = [512, 4096]\nd_embed = { min = 64, max = 192, step = 64 }")
    )
    space = SearchSpace.from_json(load_space(str(path))[0])
    assert {(table.d_embed, table.vocab_size) for table in space.tables} == {
        (d_embed, vocab_size) for d_embed in (64, 128, 192) for vocab_size in (512, 4096)
    }


def test_a_missing_space_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"none\.toml: it cannot be read"):
        load_space(str(tmp_path / "none.toml"))


def test_a_larger_budget_never_gets_a_smaller_space() -> None:
    order = {name: load_space(name)[0].get("rank", 0) for name in list_spaces()}
    ranks = [order[default_space(budget_s, 4 << 30).name] for budget_s in (10, 60, 300, 1800, 3600, 86400)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_memory_and_emulation_make_the_choice_smaller_and_it_says_why() -> None:
    choice = default_space(3600, 4 << 30)
    assert "of its candidates fit the budget" in choice.reason
    emulated = default_space(600, 4 << 30, is_emulated=True)
    assert (emulated.space.get("rank") or 0) < (choice.space.get("rank") or 0)
    with pytest.raises(SpaceError, match="memory"):
        default_space(3600, 1000)


def test_the_lts_protocol_costs_more_than_the_default_one() -> None:
    assert seconds_per_candidate(10**7, 10**7, Protocol.named("lts")) > seconds_per_candidate(10**7, 10**7, Protocol())
    assert MIN_CANDIDATES == 30


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.integers(0, 400))
def test_a_damaged_space_is_read_or_refused(tmp_path: Path, noise: bytes, at: int) -> None:
    whole = (builtin_dir("spaces") / "tiny.toml").read_bytes()
    path = tmp_path / "fuzz.toml"
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        load_space(str(path))
    except SpaceError as exc:
        assert str(exc).startswith(f"{path}: ")

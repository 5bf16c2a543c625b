"""What a training is, without doing one: values, their JSON, their keys and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import SpecError
from edge_lts.training import JOB, Job, Point, Recipe, Text, Trained, Training

ARCH = Architecture(
    backbone="gpt2", d_model=32, layers=(LayerSpec(d_inner=64, n_head=2),), vocab_size=256, max_seq_len=128
)
JOB_VALUE = Job(
    job_id="0123456789ab",
    models=((ARCH, 1), (ARCH, 2)),
    recipe=Recipe(tokens=1000),
    text=Text(vocab_size=256, bytes_per_token=1.0),
    budget_s=60.0,
    processes=2,
)


def test_steps_cover_the_tokens_and_are_unknown_where_time_decides() -> None:
    assert Recipe(tokens=1000, batch=4, sequence_tokens=32).steps == 8  # 7.8 batches of 128
    assert Recipe(tokens=1000, seconds=5.0).steps is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 0),
        ("tokens", 10.5),
        ("batch", True),
        ("learning_rate", float("nan")),
        ("learning_rate", "0.1"),
        ("warmup", 1.5),
        ("seconds", 0.0),
        ("seconds", -1),
        ("threads", 0),
        ("curve_points", 0),
    ],
)
def test_a_recipe_refuses_what_cannot_be_and_names_it(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=name):
        Recipe.from_json({name: value})


def test_values_survive_json() -> None:
    point = Point(tokens=100, seconds=0.5, training_loss=3.0, validation_loss=3.1)
    trained = Trained(
        key="0" * 12, architecture=ARCH, seed=3, recipe=Recipe(), loss_nats=3.1, bits_per_byte=4.47, steps=10,
        tokens=100, seconds=0.5, curve=(point,), conditions={"torch": "2"},
    )  # fmt: skip
    for value in (Recipe(seconds=3.0), JOB_VALUE, trained, dataclasses.replace(trained, loss_nats=None, error="oom")):
        again = type(value).from_json(json.loads(json.dumps(value.to_json())))  # type: ignore[arg-type]
        assert again == value


def test_a_key_says_what_is_trained_and_not_on_how_many_threads() -> None:
    one = Training(architecture=ARCH, seed=1, recipe=Recipe())
    assert len(one.key) == 12
    assert dataclasses.replace(one, recipe=Recipe(threads=4)).key == one.key
    others = (
        dataclasses.replace(one, seed=2),
        dataclasses.replace(one, recipe=Recipe(tokens=7)),
        dataclasses.replace(one, recipe=Recipe(seconds=7.0)),
        dataclasses.replace(one, architecture=ARCH.replace(d_model=64)),
    )
    assert len({one.key, *(other.key for other in others)}) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"job_id": "../../etc"}, "job_id"),
        ({"models": []}, "trainings"),
        ({"models": [3]}, "models"),
        ({"models": [{"architecture": {"backbone": "gpt2"}}]}, "lacks"),
        ({"models": [{"architecture": ARCH.to_json(), "seed": -1}]}, "seed"),
        ({"models": [{"architecture": ARCH.replace(vocab_size=100).to_json(), "seed": 1}]}, "tokens"),
        ({"models": [{"architecture": ARCH.replace(max_seq_len=16).to_json(), "seed": 1}]}, "max_seq_len"),
        ({"recipe": {"speed": 1}}, "speed"),
        ({"text": {"vocab_size": 256, "bytes_per_token": 0}}, "bytes_per_token"),
        ({"text": {"vocab_size": 256, "bytes_per_token": 1, "training": "/etc/passwd"}}, "name for a file"),
        ({"text": None}, "text"),
        ({"budget_s": -1}, "budget_s"),
        ({"processes": 0}, "processes"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_a_job_refuses_what_makes_no_sense(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / JOB).write_text(json.dumps(JOB_VALUE.to_json() | change))
    with pytest.raises(SpecError, match=says) as caught:
        Job.read(tmp_path)
    assert str(tmp_path / JOB) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"loss_nats": "low"}, {"curve": None}, {"curve": [{}]}, {"seconds": None}, {"recipe": 3}, {"conditions": []}],
)
def test_a_result_that_is_none_is_refused(change: dict[str, Any]) -> None:
    whole = Trained(
        key="0" * 12, architecture=ARCH, seed=3, recipe=Recipe(), loss_nats=3.1, bits_per_byte=4.47, steps=10,
        tokens=100, seconds=0.5,
    )  # fmt: skip
    with pytest.raises(SpecError):
        Trained.from_json(whole.to_json() | change)

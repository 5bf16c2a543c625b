"""`calibrate --corpus` up to the device and behind it: what is asked for, what is believed, what becomes a label."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_lts.errors import SpecError
from edge_lts.training import Job, Recipe, Trained, Training
from edge_lts_host.calibration import labels, training
from edge_lts_host.errors import AgentProtocolError, HostError, UsageError
from edge_lts_host.hosts import LOCAL_HOST, HostEntry

BOARD = HostEntry(
    name="pi", destination="pi", device={"n_cores": 4, "memory_total_bytes": 2 << 30}, root="/r", python="p", agent="a"
)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    parser.add_argument("--models", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="proxy.json")
    return parser.parse_args(words)


def plan(*words: str, entry: HostEntry = BOARD) -> training.Plan:
    return training.make_plan(arguments(*words), entry, lambda text: None)


def trained(job: Job, index: int = 0, **changes: Any) -> Trained:
    arch, seed = job.models[index]
    one = Trained(
        key=Training(architecture=arch, seed=seed, recipe=job.recipe).key,
        architecture=arch,
        seed=seed,
        recipe=job.recipe,
        loss_nats=1.5,
        bits_per_byte=2.1,
        steps=10,
        tokens=10_000,
        seconds=3.0,
    )
    return dataclasses.replace(one, **changes)


def test_a_plan_has_the_models_their_repeats_and_a_quarter_from_a_frontier() -> None:
    found = plan("--models", "8", "--repeats", "2")
    ids = [arch.arch_id for arch, _ in found.job.models]
    assert (len(ids), len(set(ids))) == (10, 8)
    assert len(found.frontier_ids) >= 2
    assert {seed for _, seed in found.job.models} == {0, 1}
    sizes = [arch.decoder_params for arch, _ in found.job.models]
    assert sizes == sorted(sizes, reverse=True)
    assert all((arch.vocab_size, arch.max_seq_len) == (256, 64) for arch, _ in found.job.models)
    assert (found.job.budget_s, found.job.text.bytes_per_token) == (7200.0, 1.0)


def test_the_same_command_is_the_same_job_and_any_difference_another() -> None:
    base = ("--models", "6", "--repeats", "1")
    first = plan(*base).job
    assert plan(*base).job == first
    others = [
        plan(*base, *more).job.job_id
        for more in (
            ("--seed", "1"),
            ("--budget", "1h"),
            ("--tokens", "5000"),
            ("--time-each", "9m"),
            ("--repeats", "2"),
        )
    ]
    assert len({first.job_id, *others}) == 6


def test_tokens_that_are_given_need_no_budget_and_time_each_keeps_it() -> None:
    assert plan("--models", "6", "--tokens", "5000").job.budget_s is None
    timed = plan("--models", "6", "--time-each", "5m").job
    assert (timed.recipe.seconds, timed.budget_s) == (300.0, 7200.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--models", "5"), "--models"),
        (("--repeats", "-1"), "--repeats"),
        (("--seed", "-1"), "--seed"),
        (("--seed", "99999999"), "--seed"),
        (("--processes", "0"), "--processes"),
        (("--tokens", "0"), "--tokens"),
        (("--corpus", "/nowhere/text"), "--corpus"),
        (("--vocabulary", "many"), "--vocabulary"),
        (("--budget", "5s"), "--budget"),
        (("--space", "nonesuch"), "nonesuch"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_board_is_asked(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(*words)


def test_models_at_a_time_follow_the_cores_and_the_memory() -> None:
    assert training.workers(None, BOARD) == (4, 2)  # 2 GiB have room for two
    assert training.workers(3, BOARD) == (4, 3)
    unknown = dataclasses.replace(BOARD, device=None)
    assert training.workers(None, unknown) == (1, 1)
    cores, processes = training.workers(None, LOCAL_HOST)
    assert 1 <= processes <= cores
    assert plan("--models", "6", "--processes", "2").job.recipe.threads == 2


def test_a_result_that_nobody_asked_for_is_not_believed() -> None:
    job = plan("--models", "6", "--repeats", "0").job
    other = trained(job, architecture=job.models[0][0].replace(d_embed=8))
    with pytest.raises(AgentProtocolError, match="nobody asked for"):
        training.follow(job, [{"event": "trained", **other.to_json()}], lambda text: None)
    with pytest.raises(SpecError):
        training.follow(job, [{"event": "trained", "schema_version": 1}], lambda text: None)


def test_results_are_told_once_and_an_incomplete_job_says_how_to_go_on() -> None:
    job = plan("--models", "6", "--repeats", "0").job
    said: list[str] = []
    events = [{"event": "trained", **trained(job, index).to_json()} for index in (0, 1, 0)]
    with pytest.raises(HostError, match="4 of 6 trainings are not done; the same command goes on"):
        training.follow(job, [*events, {"event": "news"}], said.append)
    assert [line.partition(":")[0] for line in said] == ["1 of 6", "2 of 6"]
    assert "2.100 bits per byte" in said[0]
    whole = training.follow(
        job, [{"event": "trained", **trained(job, index).to_json()} for index in (5, 4, 3, 2, 1, 0)], said.append
    )
    assert whole == [trained(job, index) for index in range(6)]


def test_a_plan_is_said_in_words() -> None:
    job = plan("--models", "6", "--repeats", "0").job
    said: list[str] = []
    events = [
        {"event": "timing", "n_models": 6},
        {"event": "plan", "recipe": Recipe(tokens=250_000).to_json()},
        {"event": "plan", "recipe": Recipe(seconds=90.0).to_json()},
    ]
    with pytest.raises(HostError):
        training.follow(job, events, said.append)
    assert said[1:] == ["each is trained on 250 k tokens", "each is trained for 90.0 s"]


def test_a_terminal_shows_how_far_each_training_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that changes, erased before each line that stays; what makes no sense moves nothing."""
    job = plan("--models", "6", "--repeats", "0", "--tokens", "80000").job
    (first, seed), (second, _) = job.models[:2]
    said: list[str] = []
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def drawn(*events: dict[str, Any]) -> list[str]:
        capsys.readouterr()
        with pytest.raises(HostError, match="are not done"):
            training.follow(job, events, said.append)
        return capsys.readouterr().err.split("\r\x1b[K")[1:]

    def point(arch_id: object, share: float, **changes: Any) -> dict[str, Any]:
        return {"event": "point", "arch_id": arch_id, "seed": seed, "tokens": 80000 * share, **changes}

    lines = drawn(
        point(first.arch_id, 0.25),
        point(second.arch_id, 0.5),
        point("gpt2-unknown", 0.5),
        point(first.arch_id, 0.25, seed=seed + 1),
        point(second.arch_id, 0.0, tokens="many"),
        point(second.arch_id, -1.0),
        {"event": "trained", **trained(job, 0).to_json()},
    )
    assert lines == [
        f"[#.......................]   4%: 0 of 6 trained, {first.arch_id} 25%",
        f"[###.....................]  12%: 0 of 6 trained, {first.arch_id} 25%, {second.arch_id} 50%",
        "",
        f"[######..................]  25%: 1 of 6 trained, {second.arch_id} 50%",
        "",
    ]
    assert len(said) == 1
    by_time = drawn({"event": "plan", "recipe": Recipe(seconds=90.0).to_json()}, point(first.arch_id, 1, seconds=45.0))
    assert by_time[-2].endswith(f"0 of 6 trained, {first.arch_id} 50%")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert drawn(point(first.arch_id, 0.25)) == []


def test_labels_are_a_panel_with_a_row_for_each_training(tmp_path: Path) -> None:
    job = plan("--models", "6", "--repeats", "1").job
    results = [trained(job, index, bits_per_byte=2.0 + index / 10) for index in range(7)]
    results[3] = dataclasses.replace(results[3], loss_nats=None, bits_per_byte=None, error="nonfinite: the loss")
    warned: list[str] = []
    path = tmp_path / "x.labels.csv"
    with pytest.raises(HostError, match="only 5 models could be trained"):
        training.write_usable(path, results[:3] + results[3:4] * 2 + results[5:], warned.append)
    warned.clear()
    results[3] = dataclasses.replace(results[3], seed=5)
    n_labels = training.write_usable(path, [*results, trained(job, 3)], warned.append)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert n_labels == len(rows) == 7
    assert warned == [f"{job.models[3][0].arch_id} has no label: nonfinite: the loss"]
    assert tuple(rows[0]) == labels.COLUMNS
    arch = job.models[0][0]
    assert (rows[0]["name"], int(rows[0]["decoder_params"])) == (arch.arch_id, arch.decoder_params)
    assert rows[0]["d_inner"] == ";".join(str(layer.d_inner) for layer in arch.layers)
    assert int(rows[0]["attention_params"]) == arch.n_layer * 4 * arch.d_model * (arch.d_model + 1)
    assert float(rows[0]["valid_ppl"]) == pytest.approx(4.4817, abs=1e-4)

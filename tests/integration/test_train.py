"""Training: what a recipe says is done, an interrupted one ends as if it had not been, and every backbone learns."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_lts.arch import BACKBONES, Architecture, LayerSpec
from edge_lts.errors import EvaluationError, SpecError
from edge_lts.job import Lock
from edge_lts.training import CHECKPOINT, JOB, LOCK, PLAN, RESULT, Job, Point, Recipe, Text, Trained, Training
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.train import loop, work  # noqa: E402
from edge_lts.train.data import Data, read_data  # noqa: E402
from edge_lts.train.initial import groups, initialise  # noqa: E402
from edge_lts.train.loop import mean_loss, rate_at, seconds_per_token, train  # noqa: E402

pytestmark = pytest.mark.torch

VOCABULARY = 32
FEW = Recipe(tokens=1280, sequence_tokens=16, batch=4, curve_points=4, point_tokens=64, learning_rate=0.01)
LAYERS = (LayerSpec(d_inner=48, n_head=2), LayerSpec(d_inner=64, n_head=4))


def tiny(backbone: str = "gpt2", **changes: Any) -> Architecture:
    base = Architecture(backbone=backbone, d_model=32, layers=LAYERS, vocab_size=VOCABULARY, max_seq_len=16)
    return base.replace(**changes)


def text(n: int, seed: int) -> Any:
    """Each token is the one before plus one, or, one time in eight, any."""
    rng = np.random.default_rng(seed)
    jumps = np.where(rng.random(n) < 0.125, rng.integers(0, VOCABULARY, n), 1)
    return (np.cumsum(jumps) % VOCABULARY).astype("<u2")


@pytest.fixture
def data() -> Data:
    return Data(text(4000, 1), text(700, 2), 2.0)


def result(training: Training, data: Data, **how: Any) -> Trained:
    *_, last = train(training, data, **how)
    assert isinstance(last, Trained)
    return last


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_and_the_gradient_reaches_all_of_it(backbone: str, data: Data) -> None:
    arch = tiny(backbone)
    model = build_model(arch)
    initialise(model, arch, 1)
    mean_loss(model.train(), data.batch(1, 0, 4, 16)).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]
    first, *_, last = result(Training(architecture=arch, seed=1, recipe=FEW), data).curve
    assert last.validation_loss < first.validation_loss < math.log(VOCABULARY) + 0.3
    assert last.validation_loss < 0.9 * math.log(VOCABULARY)


def test_what_came_of_it_says_how_much_was_done(data: Data) -> None:
    training = Training(architecture=tiny(), seed=1, recipe=FEW)
    found = result(training, data)
    assert (found.steps, found.tokens, len(found.curve)) == (20, 1280, 4)
    assert [point.tokens for point in found.curve] == [320, 640, 960, 1280]
    assert found.loss_nats == found.curve[-1].validation_loss
    assert found.bits_per_byte == pytest.approx(found.loss_nats / math.log(2) / 2.0)
    assert (found.key, found.error, found.conditions["threads"]) == (training.key, None, 1)


def test_the_same_seed_gives_the_same_loss_and_another_does_not(data: Data) -> None:
    one, again, other = (
        result(Training(architecture=tiny(), seed=seed, recipe=FEW), data).loss_nats for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_an_interrupted_training_ends_as_if_it_had_not_been(data: Data, tmp_path: Path) -> None:
    training = Training(architecture=tiny(), seed=1, recipe=FEW)
    whole = result(training, data)
    running = train(training, data, checkpoint=tmp_path / CHECKPOINT, save_every_s=0.0)
    for point in whole.curve[:2]:
        assert _timeless(next(running)) == _timeless(point)
    running.close()
    steps: list[int] = []

    def counted(self: Any) -> None:
        steps.append(self.n_steps)
        original(self)

    original = loop._Run.step
    loop._Run.step = counted  # type: ignore[method-assign]
    try:
        resumed = result(training, data, checkpoint=tmp_path / CHECKPOINT)
    finally:
        loop._Run.step = original  # type: ignore[method-assign]
    assert steps == list(range(steps[0], 20))
    assert steps[0] >= 9  # the step before the second point was saved
    assert resumed.loss_nats == whole.loss_nats
    assert [_timeless(point) for point in resumed.curve] == [_timeless(point) for point in whole.curve]


def _timeless(point: Any) -> tuple[int, float, float]:
    return point.tokens, point.training_loss, point.validation_loss


def test_a_damaged_checkpoint_and_that_of_another_training_are_as_good_as_none(data: Data, tmp_path: Path) -> None:
    training = Training(architecture=tiny(), seed=1, recipe=FEW)
    expected = result(training, data).loss_nats
    path = tmp_path / CHECKPOINT
    path.write_bytes(b"PK\x03\x04 torn")
    assert result(training, data, checkpoint=path, save_every_s=math.inf).loss_nats == expected
    other = Training(architecture=tiny(), seed=2, recipe=FEW)
    next(train(other, data, checkpoint=path, save_every_s=0.0))
    assert path.stat().st_size > 1000
    assert result(training, data, checkpoint=path, save_every_s=math.inf).loss_nats == expected


def test_with_equal_time_the_clock_ends_it(data: Data) -> None:
    now = iter(range(10_000))
    recipe = Recipe(seconds=7.5, sequence_tokens=16, batch=4, curve_points=3, point_tokens=64)
    found = result(Training(architecture=tiny(), seed=1, recipe=recipe), data, clock=lambda: float(next(now)))
    assert (found.steps, found.seconds) == (8, 8.0)  # of one second each, by this clock; validation is not counted
    assert [point.seconds for point in found.curve] == [3.0, 5.0, 8.0]


def test_a_loss_that_is_not_finite_is_an_error_and_no_label(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    right = loop.mean_loss
    monkeypatch.setattr(loop, "mean_loss", lambda model, windows: right(model, windows) * math.nan)
    found = result(Training(architecture=tiny(), seed=1, recipe=FEW), data)
    assert (found.loss_nats, found.bits_per_byte, found.steps) == (None, None, 1)
    assert found.error is not None
    assert "nonfinite" in found.error
    json.dumps(found.to_json(), allow_nan=False)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = Recipe(warmup=0.1, final_rate=0.05)
    assert [rate_at(share, recipe) for share in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.5, 1.0])
    assert rate_at(0.55, recipe) == pytest.approx(0.525)
    assert rate_at(1.0, recipe) == pytest.approx(0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_has_one_rate_and_matrices_a_lower_one_in_wider_models(tied: bool) -> None:
    recipe = Recipe(learning_rate=0.004, table_rate=0.5, width_exponent=1.0)
    for width, peak in ((128, 0.004), (256, 0.002)):
        arch = tiny("primer-ez", d_model=width, tie_embeddings=tied)
        model = build_model(arch)
        matrices, others = groups(model, arch, recipe)
        listed = [id(weight) for group in (matrices, others) for weight in group["params"]]
        assert sorted(listed) == sorted(id(weight) for weight in model.parameters())
        assert (matrices["peak"], others["peak"]) == pytest.approx((peak, 0.002))
        assert (matrices["weight_decay"], others["weight_decay"]) == (recipe.weight_decay, 0.0)
        assert id(model.head.weight) in [id(weight) for weight in others["params"]]
        assert id(model.decoder.blocks[0].feed_forward.up.weight) in [id(weight) for weight in matrices["params"]]


def test_initial_values_depend_on_the_seed_alone_and_are_of_the_size_they_should_have() -> None:
    arch = tiny("primer-ez", d_model=64, vocab_size=512)
    one, again, other = (build_model(arch) for _ in range(3))
    for model, seed in ((one, 1), (again, 1), (other, 2)):
        initialise(model, arch, seed)
    pairs = list(zip(one.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    block = one.decoder.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(64**-0.5 / 2, rel=0.05)  # 2 layers
    assert one.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.conv.weight[:, 0].tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6])
    assert block.attention_norm.weight.tolist() == [1.0] * 64
    assert not block.attention.qkv.bias.any()


def test_the_held_out_text_is_covered_once_and_a_part_of_it_evenly(data: Data) -> None:
    windows = data.held_out(16, None)
    assert len(windows) == 699 // 16
    assert torch.equal(windows[:, 1:].flatten(), torch.from_numpy(data.validation[1 : 1 + 43 * 16].astype(np.int64)))
    part = data.held_out(16, 160)
    assert len(part) == 10
    assert torch.equal(part[5], windows[5 * 43 // 10])


def test_batches_are_the_same_for_every_model_and_differ_between_steps_and_seeds(data: Data) -> None:
    one, again = data.batch(1, 5, 4, 16), data.batch(1, 5, 4, 16)
    assert torch.equal(one, again)
    assert one.shape == (4, 17)
    assert not torch.equal(one, data.batch(1, 6, 4, 16))
    assert not torch.equal(one, data.batch(2, 5, 4, 16))


def test_a_text_that_is_too_short_or_of_another_vocabulary_is_refused(tmp_path: Path, data: Data) -> None:
    with pytest.raises(SpecError, match="too few"):
        next(train(Training(architecture=tiny(), seed=1, recipe=FEW), Data(text(17, 1), data.validation, 1.0)))
    for name in ("training", "validation"):
        (tmp_path / f"{name}.bin").write_bytes(text(100, 1).tobytes())
    assert (
        read_data(tmp_path, Text(vocab_size=VOCABULARY, bytes_per_token=1.0)).training.tolist() == text(100, 1).tolist()
    )
    with pytest.raises(SpecError, match="beyond its vocabulary of 4"):
        read_data(tmp_path, Text(vocab_size=4, bytes_per_token=1.0))
    (tmp_path / "training.bin").write_bytes(b"odd")
    with pytest.raises(SpecError, match="whole number"):
        read_data(tmp_path, Text(vocab_size=VOCABULARY, bytes_per_token=1.0))
    (tmp_path / "training.bin").unlink()
    with pytest.raises(SpecError, match=r"training\.bin"):
        read_data(tmp_path, Text(vocab_size=VOCABULARY, bytes_per_token=1.0))


# --- jobs ---


def make_job(folder: Path, *, n: int = 2, **changes: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("training", 1), ("validation", 2)):
        (folder / f"{name}.bin").write_bytes(text(1500, seed).tobytes())
    fields: dict[str, Any] = {
        "job_id": "0123456789ab",
        "models": tuple((tiny(d_model=32 + 32 * index), 1) for index in range(n)),
        "recipe": FEW,
        "text": Text(vocab_size=VOCABULARY, bytes_per_token=2.0),
    }
    job = Job(**{**fields, **changes})
    (folder / JOB).write_text(json.dumps(job.to_json()))
    return job


def test_work_trains_what_is_left_and_nothing_twice(tmp_path: Path) -> None:
    job = make_job(tmp_path, n=3)
    events: list[Mapping[str, Any]] = []
    first, second, third = job.trainings()
    (tmp_path / first.key).mkdir()
    with Lock(tmp_path / first.key / LOCK, run_id="another", what="it"):  # as another process would
        assert work.work(tmp_path, events.append) == 2
    assert not (tmp_path / first.key / RESULT).exists()
    assert [event["arch_id"] for event in events if event["event"] == "point"] == [
        training.architecture.arch_id for training in (second, third) for _ in range(4)
    ]
    stored = Trained.from_json(json.loads((tmp_path / second.key / RESULT).read_bytes()))
    assert stored.to_json() == {key: value for key, value in events[4].items() if key != "event"}
    assert not (tmp_path / second.key / CHECKPOINT).exists()
    assert work.work(tmp_path, events.append) == 1
    assert work.work(tmp_path, events.append) == 0


def test_a_model_that_cannot_be_trained_is_a_result_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    bad, good = job.trainings()
    right = work.train

    def fails(training: Training, data: Data, **how: Any) -> Iterator[Point | Trained]:
        if training == bad:
            raise EvaluationError("unsupported", "no such thing")
        yield from right(training, data, **how)

    monkeypatch.setattr(work, "train", fails)
    assert work.work(tmp_path, lambda event: None) == 2
    found = [Trained.from_json(json.loads((tmp_path / one.key / RESULT).read_bytes())) for one in (bad, good)]
    assert [one.error for one in found] == ["unsupported: no such thing", None]


def test_a_budget_becomes_tokens_once_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, budget_s=10.0, processes=2, recipe=Recipe(**{**FEW.to_json(), "tokens": 1 << 40}))
    speeds = {job.models[0][0].arch_id: 0.001, job.models[1][0].arch_id: 0.003}
    monkeypatch.setattr(work, "seconds_per_token", lambda one, data, clock: speeds[one.architecture.arch_id])
    done: list[Training] = []
    monkeypatch.setattr(work, "work_on", lambda folder, trainings, *rest, **how: done.extend(trainings) or 0)
    work.work(tmp_path, lambda event: None)
    assert {one.recipe.tokens for one in done} == {int(10.0 * 0.85 * 2 / 0.004)}
    monkeypatch.setattr(work, "seconds_per_token", None)  # never again
    plan = (tmp_path / PLAN).read_bytes()
    work.work(tmp_path, lambda event: None)
    assert (tmp_path / PLAN).read_bytes() == plan
    assert len({one.key for one in done}) == 2


def test_a_budget_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job(tmp_path, budget_s=0.1)
    monkeypatch.setattr(work, "seconds_per_token", lambda one, data, clock: 0.01)
    with pytest.raises(SpecError, match="too few to learn anything"):
        work.work(tmp_path, lambda event: None)


def test_a_budget_of_equal_time_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_job(tmp_path, budget_s=100.0, recipe=Recipe(**{**FEW.to_json(), "seconds": 1e6}))
    done: list[Training] = []
    monkeypatch.setattr(work, "work_on", lambda folder, trainings, *rest, **how: done.extend(trainings) or 0)
    work.work(tmp_path, lambda event: None)
    assert {one.recipe.seconds for one in done} == {42.5}


def test_timing_takes_the_quickest_step_but_the_first(data: Data) -> None:
    ticks = iter([0.0, 9.0, 10.0, 13.0, 20.0, 22.0, 30.0, 34.0])
    training = Training(architecture=tiny(), seed=1, recipe=FEW)
    assert seconds_per_token(training, data, lambda: next(ticks)) == 2.0 / 64


# --- the agent's verb ---


def agent(*words: object, stdin: bytes = b"") -> tuple[int, list[dict[str, Any]]]:
    argv = [sys.executable, "-m", "edge_lts", *map(str, words)]
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_agent_trains_a_job_in_two_processes_and_tells_it_again_for_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", n=2, processes=2)
    code, events = agent("train", tmp_path / "job", "--root", tmp_path)
    assert code == 0, events
    trained = [event for event in events if event["event"] == "trained"]
    assert {event["key"] for event in trained} == {training.key for training in job.trainings()}
    assert events[-1] == {"event": "trainings", "job_id": job.job_id, "n_done": 2, "n": 2}
    assert sum(event["event"] == "hello" for event in events) == 1
    code, again = agent("train", tmp_path / "job", "--root", tmp_path)
    assert code == 0
    assert [event["event"] for event in again] == ["hello", "trained", "trained", "trainings"]
    assert sorted(again[1:3], key=lambda event: event["key"]) == sorted(trained, key=lambda event: event["key"])


def test_the_agent_says_why_a_training_process_ended(tmp_path: Path) -> None:
    make_job(tmp_path / "job")
    (tmp_path / "job/validation.bin").write_bytes(b"x")
    code, events = agent("train", tmp_path / "job", "--root", tmp_path)
    assert (code, events[-1]["type"]) == (1, "TrainingError")
    assert "validation.bin holds no whole number of token ids" in events[-1]["message"]


def test_the_agent_does_not_train_while_a_run_has_the_board(tmp_path: Path) -> None:
    make_job(tmp_path / "job")
    with Lock(tmp_path / "board.lock", run_id="a_run", what="it"):
        code, events = agent("train", tmp_path / "job", "--root", tmp_path)
    assert (code, events[-1]["type"]) == (7, "LockedError")
    assert "a_run" in events[-1]["message"]


def test_a_reader_who_goes_away_ends_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    argv = [sys.executable, "-m", "edge_lts", "train", str(tmp_path / "job"), "--root", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as trainer:
        assert trainer.stdout is not None
        assert b"hello" in trainer.stdout.readline()
        trainer.stdout.close()
        trainer.wait(timeout=300)
    assert all((tmp_path / "job" / training.key / RESULT).exists() for training in job.trainings())


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    make_job(tmp_path / "job", recipe=Recipe(**{**FEW.to_json(), "tokens": 1 << 40}))
    argv = [sys.executable, "-m", "edge_lts", "train", str(tmp_path / "job"), "--worker"]
    worker = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=120) == 130


def test_the_optimizer_is_torchs_adamw_and_does_not_import_its_compiler() -> None:
    """A board has no sympy, which torch._dynamo needs and torch.optim imports."""
    code = """
import sys
import torch
from edge_lts.train.adamw import AdamW

def run(make, read):
    torch.manual_seed(0)
    parameters = [torch.randn(shape, requires_grad=True) for shape in ((4, 3), (3,), (2,))]
    decays = ((parameters[:1], 0.1), (parameters[1:], 0.0))
    optimizer = make([{"params": some, "weight_decay": decay, "lr": 0.0} for some, decay in decays])
    for step in range(1, 6):
        for group in read(optimizer):
            group["lr"] = 0.01 * step
        optimizer.zero_grad()
        (torch.tanh(parameters[0]).sum() * parameters[1].square().sum()).backward()
        optimizer.step()
    return parameters

own = run(lambda groups: AdamW(groups, (0.9, 0.95)), lambda one: one.groups)
assert "torch._dynamo" not in sys.modules
theirs = run(lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True), lambda one: one.param_groups)
assert all(torch.equal(a, b) for a, b in zip(own, theirs))
assert not torch.equal(own[0], run(lambda groups: AdamW(groups, (0.9, 0.99)), lambda one: one.groups)[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

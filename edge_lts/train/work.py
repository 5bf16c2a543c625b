"""The trainings of a job's folder, one after the other, shared with any number of other processes that do the same.

A training belongs to whoever holds the lock in its folder; the kernel drops it with its process. What is done is in
`result.json`, what is not goes on from its checkpoint. How many tokens a budget has room for is settled once, by
whoever comes first, and written into the job's `plan.json`.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_lts.errors import EvaluationError, LockedError, SpecError
from edge_lts.job import Lock
from edge_lts.runfolder import read_json, to_bytes, write_atomic
from edge_lts.train.data import Data, read_data
from edge_lts.train.loop import SAVE_EVERY_S, seconds_per_token, train
from edge_lts.training import CHECKPOINT, LOCK, PLAN, RESULT, Job, Point, Recipe, Trained, Training

BUDGET_SHARE = 0.85  # of the budget is for steps; the rest for validation, start and a machine that slows down
PLAN_PATIENCE_S = 3600.0  # while another process times the models
LEAST_STEPS = 20

Emit = Callable[[Mapping[str, Any]], None]


def work(folder: Path, emit: Emit, *, save_every_s: float = SAVE_EVERY_S) -> int:
    """Train whatever of the job nobody has or has had; returns how many that were.

    Raises SpecError for a job or a text that makes no sense, and for a budget that has room for nothing.
    """
    job = Job.read(folder)
    data = read_data(folder, job.text)
    recipe = _plan(folder, job, data, emit)
    return work_on(folder, job.trainings(recipe), data, emit, save_every_s=save_every_s)


def work_on(
    folder: Path, trainings: Sequence[Training], data: Data, emit: Emit, *, save_every_s: float = SAVE_EVERY_S
) -> int:
    """The same for trainings that no job.json lists."""
    n_done = 0
    for training in trainings:
        place = folder / training.key
        place.mkdir(parents=True, exist_ok=True)
        if (place / RESULT).exists():
            continue
        try:
            lock = Lock(place / LOCK, run_id=training.key, what="the training", patience_s=0.0)
        except LockedError:
            continue
        with lock:
            if not (place / RESULT).exists():
                _train_one(place, training, data, emit, save_every_s)
                n_done += 1
    return n_done


def _train_one(place: Path, training: Training, data: Data, emit: Emit, save_every_s: float) -> None:
    about = {"key": training.key, "arch_id": training.architecture.arch_id, "seed": training.seed}
    try:
        for record in train(training, data, checkpoint=place / CHECKPOINT, save_every_s=save_every_s):
            if isinstance(record, Point):
                emit({"event": "point", **about, **record.to_json()})
                continue
            outcome = record
    except EvaluationError as exc:  # of this model, not of the job: the others go on
        outcome = Trained(
            key=training.key, architecture=training.architecture, seed=training.seed, recipe=training.recipe,
            loss_nats=None, bits_per_byte=None, steps=0, tokens=0, seconds=0.0, error=f"{exc.kind}: {exc}",
        )  # fmt: skip
    write_atomic(place / RESULT, to_bytes(outcome.to_json()), is_durable=True)
    (place / CHECKPOINT).unlink(missing_ok=True)
    emit({"event": "trained", **outcome.to_json()})


def _plan(folder: Path, job: Job, data: Data, emit: Emit) -> Recipe:
    """The recipe that the budget has room for."""
    if job.budget_s is None:
        return job.recipe
    with Lock(folder / PLAN.replace(".json", ".lock"), run_id=job.job_id, what="the plan", patience_s=PLAN_PATIENCE_S):
        if not (folder / PLAN).exists():
            emit({"event": "timing", "n_models": len({arch.arch_id for arch, _ in job.models})})
            write_atomic(folder / PLAN, to_bytes(_timed(job, data)), is_durable=True)
    try:
        plan = read_json(folder / PLAN)
        recipe = Recipe.from_json(plan.get("recipe"))
    except (OSError, ValueError) as exc:
        raise SpecError(f"{folder / PLAN}: {exc}") from exc
    emit({"event": "plan", **plan})
    return recipe


def _timed(job: Job, data: Data, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Time every architecture; tokens such that all trainings, `processes` at a time, fill their share of the budget.

    With equal time the budget is simply divided. Several processes slow one another down by some: they share memory.
    """
    assert job.budget_s is not None
    room_s = job.budget_s * BUDGET_SHARE * min(job.processes, len(job.models))
    if job.recipe.seconds is not None:
        each_s = min(job.recipe.seconds, room_s / len(job.models))
        return {"recipe": dataclasses.replace(job.recipe, seconds=each_s).to_json(), "seconds_per_token": {}}
    speeds: dict[str, float] = {}
    for training in job.trainings():
        name = training.architecture.arch_id
        if name not in speeds:
            speeds[name] = seconds_per_token(training, data, clock)
    total = sum(speeds[architecture.arch_id] for architecture, _ in job.models)
    tokens = min(job.recipe.tokens, int(room_s / total))
    if tokens < LEAST_STEPS * job.recipe.batch_tokens:
        raise SpecError(
            f"the budget has room for {tokens} tokens for each of {len(job.models)} models, too few to learn anything: "
            "give more, or train fewer or smaller models"
        )
    return {"recipe": dataclasses.replace(job.recipe, tokens=tokens).to_json(), "seconds_per_token": speeds}

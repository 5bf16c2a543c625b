"""Training one model on one text, from a checkpoint where there is one.

AdamW, linear warm-up, cosine, gradients clipped to a norm: what `edge_lts.training.Recipe` says and nothing else. The
same training gives the same result: initial values and batches are functions of the seed and the step alone, and a
checkpoint holds all the rest, so that one that was interrupted ends as if it had not been (equal tokens; with equal
time the number of steps is the machine's).
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_lts.model import build_model
from edge_lts.train.adamw import AdamW
from edge_lts.train.data import Data
from edge_lts.train.initial import groups, initialise
from edge_lts.training import Point, Recipe, Trained, Training

SAVE_EVERY_S = 60.0
VALIDATION_BATCH_TOKENS = 4096
N_TIMED_STEPS = 3

Clock = Callable[[], float]


def train(
    training: Training,
    data: Data,
    *,
    checkpoint: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    clock: Clock = time.perf_counter,
) -> Iterator[Point | Trained]:
    """Yields a Point each time the loss on held-out text is taken, and at last what came of it.

    `checkpoint` is a file that is read if it is there and replaced every `save_every_s` seconds; whoever called removes
    it. Raises SpecError for a text that is too short and EvaluationError for a model that cannot be built.
    """
    recipe = training.recipe
    data.check(recipe.sequence_tokens)
    torch.set_num_threads(recipe.threads)
    run = _Run(training, data, clock)
    if checkpoint is not None:
        run.load(checkpoint)
    saved_s = clock()
    while (error := run.error) is None and not run.is_over:
        n_passed = run.n_passed
        run.step()
        if run.n_passed > n_passed and run.error is None and (point := run.take_point()) is not None:
            yield point
        if checkpoint is not None and clock() - saved_s >= save_every_s:
            run.save(checkpoint)
            saved_s = clock()
    loss = None if error else run.curve[-1].validation_loss
    yield Trained(
        key=training.key,
        architecture=training.architecture,
        seed=training.seed,
        recipe=recipe,
        loss_nats=loss,
        bits_per_byte=None if loss is None else loss / math.log(2) / data.bytes_per_token,
        steps=run.n_steps,
        tokens=run.n_steps * recipe.batch_tokens,
        seconds=round(run.spent_s, 3),
        curve=tuple(run.curve),
        conditions={"torch": str(torch.__version__), "threads": recipe.threads},
        error=error,
    )


def seconds_per_token(training: Training, data: Data, clock: Clock = time.perf_counter) -> float:
    """The quickest of a few training steps, after one that is not counted."""
    torch.set_num_threads(training.recipe.threads)
    run = _Run(training, data, clock)
    taken = []
    for _ in range(N_TIMED_STEPS + 1):
        before = run.spent_s
        run.step()
        taken.append(run.spent_s - before)
    return min(taken[1:]) / training.recipe.batch_tokens


def rate_at(share: float, recipe: Recipe) -> float:
    """The learning rate, as a share of its peak, when `share` of the training is done."""
    if share < recipe.warmup:
        return share / recipe.warmup
    rest = (share - recipe.warmup) / max(1e-9, 1 - recipe.warmup)
    return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


def mean_loss(model: nn.Module, windows_BT: Tensor) -> Tensor:
    """Nats per token. What an adaptive head returns is normalised already, which changes nothing."""
    scores_BTV = model(windows_BT[:, :-1], None, "all")
    return functional.cross_entropy(scores_BTV.flatten(0, 1), windows_BT[:, 1:].flatten())


class _Run:
    """A training under way."""

    def __init__(self, training: Training, data: Data, clock: Clock) -> None:
        self._training, self._recipe, self._data, self._clock = training, training.recipe, data, clock
        arch = training.architecture.replace(precision=None)
        self.model = build_model(arch)
        initialise(self.model, arch, training.seed)
        self.model.train()
        recipe = self._recipe
        self._optimizer = AdamW(groups(self.model, arch, recipe), (recipe.beta1, recipe.beta2))
        self.n_steps = 0
        self.spent_s = 0.0
        self.curve: list[Point] = []
        self.error: str | None = None
        self._since = (0.0, 0)  # sum of training losses since the last point, and of how many steps

    @property
    def share(self) -> float:
        """Of the training that is done."""
        if self._recipe.seconds is not None:
            return min(1.0, self.spent_s / self._recipe.seconds)
        assert self._recipe.steps is not None
        return self.n_steps / self._recipe.steps

    @property
    def is_over(self) -> bool:
        return self.share >= 1.0

    @property
    def n_passed(self) -> int:
        """Points of the curve that lie behind; one step may pass several."""
        return int(self.share * self._recipe.curve_points + 1e-9)

    def step(self) -> None:
        recipe, begun = self._recipe, self._clock()
        windows = self._data.batch(self._training.seed, self.n_steps, recipe.batch, recipe.sequence_tokens)
        step_share = 0.0 if recipe.steps is None else 1.0 / recipe.steps
        rate = rate_at(self.share + step_share / 2, recipe) if step_share else max(1e-3, rate_at(self.share, recipe))
        for group in self._optimizer.groups:
            group["lr"] = group["peak"] * rate
        self._optimizer.zero_grad()
        loss = mean_loss(self.model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self._optimizer.step()
        value = loss.item()
        self.n_steps += 1
        self.spent_s += self._clock() - begun
        total, n = self._since
        self._since = (total + value, n + 1)
        if not math.isfinite(value):
            self.error = f"nonfinite: the loss at step {self.n_steps}"

    def loss(self, n_tokens: int | None) -> float:
        """On the held-out text, or `n_tokens` of it."""
        length = self._recipe.sequence_tokens
        windows = self._data.held_out(length, n_tokens)
        n_at_once = max(1, VALIDATION_BATCH_TOKENS // length)
        total = 0.0
        self.model.eval()
        with torch.inference_mode():
            for first in range(0, len(windows), n_at_once):
                part = windows[first : first + n_at_once]
                total += mean_loss(self.model, part).item() * len(part)
        self.model.train()
        return total / len(windows)

    def take_point(self) -> Point | None:
        """The next point of the curve, the last one of the whole held-out text; None for a loss that is not finite."""
        total, n = self._since
        found = self.loss(None if self.is_over else self._recipe.point_tokens)
        if not math.isfinite(found):
            self.error = f"nonfinite: the loss on the held-out text at step {self.n_steps}"
            return None
        point = Point(
            tokens=self.n_steps * self._recipe.batch_tokens,
            seconds=round(self.spent_s, 3),
            training_loss=total / max(1, n),
            validation_loss=found,
        )
        self._since = (0.0, 0)
        self.curve.append(point)
        return point

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        state = {
            "key": self._training.key,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "n_steps": self.n_steps,
            "spent_s": self.spent_s,
            "since": list(self._since),
            "curve": [point.to_json() for point in self.curve],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from there; a file that a power cut damaged, or another training's, is as good as none."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            return
        if state.get("key") != self._training.key:
            return
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.n_steps, self.spent_s = state["n_steps"], state["spent_s"]
        self._since = (state["since"][0], state["since"][1])
        self.curve = [Point.from_json(point) for point in state["curve"]]

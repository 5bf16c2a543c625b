"""What training a model means: the recipe, one training, a job of many, and what came of each. Free of torch.

A job is a folder: `job.json` (a `Job`), the token ids that it names, and for every training a folder called by its key
with a checkpoint while it goes on and `result.json` when it is over. Keys are hashes of what determines a training, so
a job that is asked for again goes on where it was. `edge_lts.train` does the work.

The recipe's defaults are those of the sweep benchmarks/bench_recipe.py. Sources: Loshchilov and
Hutter 2019 (AdamW, arXiv 1711.05101); Yang et al. 2021 (arXiv 2203.03466, table 8) for a matrix's learning rate that
falls with the model's width, so that one value serves all widths.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edge_lts.arch import Architecture
from edge_lts.errors import SpecError
from edge_lts.runfolder import read_json
from edge_lts.values import SCHEMA_VERSION, check_schema, number

JOB, PLAN, RESULT, CHECKPOINT, LOCK = "job.json", "plan.json", "result.json", "checkpoint.pt", "lock"
BASE_WIDTH = 128  # the d_model at which `Recipe.learning_rate` holds for matrices as it stands
MAX_TRAININGS = 4096
TOKEN_BYTES = 2  # ids are stored as little-endian uint16
_KEY = re.compile(r"[0-9a-f]{12}")
_FILE = re.compile(r"[a-z][a-z0-9_-]{0,40}\.bin")

# (least, most) of each number of a recipe; whole where both are.
_RANGES: Mapping[str, tuple[float, float]] = {
    "tokens": (1, 1 << 50),
    "sequence_tokens": (2, 1 << 16),
    "batch": (1, 1 << 16),
    "learning_rate": (0.0, 10.0),
    "width_exponent": (0.0, 2.0),
    "table_rate": (0.0, 100.0),
    "warmup": (0.0, 1.0),
    "final_rate": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "clip": (0.0, 1e6),
    "curve_points": (1, 1000),
    "point_tokens": (1, 1 << 40),
    "threads": (1, 1024),
}
_Own = TypeVar("_Own", bound="_Values")


@dataclass(frozen=True, slots=True)
class _Values:
    """JSON of a flat value. Raises SpecError for keys that it does not know."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls: type[_Own], data: object) -> _Own:
        what = cls.__name__.lower()
        if not isinstance(data, Mapping):
            raise SpecError(f"a {what} must be an object, not {data!r:.80}")
        known = {one.name for one in dataclasses.fields(cls)}
        if unknown := sorted(str(key) for key in data if key not in known):
            raise SpecError(f"a {what} has no {unknown[0]!r:.60}; it has {', '.join(sorted(known))}")
        try:
            return cls(**data)
        except TypeError as exc:
            raise SpecError(f"a {what} is incomplete: {exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(_Values):
    """How every model of a job is trained; the same for all, or their losses could not be compared.

    tokens: how many are trained on (equal tokens), or, where `seconds` is set, ignored: then each model has that much
    time (equal time; validation is not counted). learning_rate: of matrices at width 128; others have it times
    (128 / d_model) ** width_exponent. table_rate: of embeddings, positions, biases and norms, as a multiple of
    learning_rate, at every width. warmup: share of the training; then a cosine down to `final_rate` of the peak.
    point_tokens: of the held-out text, at each of the `curve_points`; all of it at the last.
    """

    tokens: int = 1_000_000
    seconds: float | None = None
    sequence_tokens: int = 64
    batch: int = 4
    learning_rate: float = 0.001
    width_exponent: float = 1.0
    table_rate: float = 1.0
    warmup: float = 0.05
    final_rate: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    curve_points: int = 8
    point_tokens: int = 16_384
    threads: int = 1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = number(name, getattr(self, name), SpecError)
            if isinstance(low, int) and not isinstance(value, int):
                raise SpecError(f"{name} of a recipe must be an integer, not {value!r:.40}")
            if not low <= value <= high:
                raise SpecError(f"{name} of a recipe must lie between {low} and {high}, not {value!r:.40}")
        if self.seconds is not None and not 0 < number("seconds", self.seconds, SpecError) <= 1e9:
            raise SpecError(f"seconds of a recipe must be positive, not {self.seconds!r:.40}")

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.sequence_tokens

    @property
    def steps(self) -> int | None:
        """None where time decides."""
        return None if self.seconds is not None else -(-self.tokens // self.batch_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One model to be trained. `seed` decides initial values and the order of the text."""

    architecture: Architecture
    seed: int
    recipe: Recipe

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 31:
            raise SpecError(f"a training's seed must be an integer from 0 to 2^31 - 1, not {self.seed!r:.40}")
        rows = self.architecture.max_seq_len
        if rows < self.recipe.sequence_tokens:
            raise SpecError(f"{self.recipe.sequence_tokens} tokens do not fit the max_seq_len of {rows}")

    def to_json(self) -> dict[str, Any]:
        return {"architecture": self.architecture.to_json(), "seed": self.seed, "recipe": self.recipe.to_json()}

    @property
    def key(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of what determines it, threads left aside."""
        data = self.to_json()
        del data["recipe"]["threads"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(_Values):
    """Token ids on disk, in the job's folder, and what they stand for. `bytes_per_token` is the held-out text's."""

    training: str = "training.bin"
    validation: str = "validation.bin"
    vocab_size: int
    bytes_per_token: float

    def __post_init__(self) -> None:
        for name in (self.training, self.validation):
            if not isinstance(name, str) or not _FILE.fullmatch(name):
                raise SpecError(f"{name!r:.60} is no name for a file of token ids")
        if not isinstance(self.vocab_size, int) or not 1 <= number("vocab_size", self.vocab_size, SpecError) <= 1 << 16:
            raise SpecError(f"vocab_size must be at most 65,536 to be trained on, not {self.vocab_size!r:.40}")
        if number("bytes_per_token", self.bytes_per_token, SpecError) <= 0:
            raise SpecError("bytes_per_token must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Trainings that belong together. With `budget_s`, the seconds that all of them may take, the number of tokens is
    decided on the device, where the speed is known, and never exceeds the recipe's."""

    job_id: str
    models: tuple[tuple[Architecture, int], ...]
    recipe: Recipe
    text: Text
    budget_s: float | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.job_id, str) or not _KEY.fullmatch(self.job_id):
            raise SpecError(f"job_id must be 12 hexadecimal digits, not {self.job_id!r:.40}")
        if not 1 <= len(self.models) <= MAX_TRAININGS:
            raise SpecError(f"a job has 1 to {MAX_TRAININGS} trainings, not {len(self.models)}")
        if self.budget_s is not None and number("budget_s", self.budget_s, SpecError) <= 0:
            raise SpecError("budget_s must be positive")
        if isinstance(self.processes, bool) or not isinstance(self.processes, int) or not 1 <= self.processes <= 256:
            raise SpecError(f"processes must be an integer from 1 to 256, not {self.processes!r:.40}")
        for architecture, _ in self.models:
            if architecture.vocab_size < self.text.vocab_size:
                raise SpecError(f"the text has {self.text.vocab_size} tokens, a model {architecture.vocab_size}")

    def trainings(self, recipe: Recipe | None = None) -> list[Training]:
        """With the job's recipe, or the one that a plan made of it."""
        chosen = recipe or self.recipe
        return [Training(architecture=arch, seed=seed, recipe=chosen) for arch, seed in self.models]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "job_id": self.job_id,
            "models": [{"architecture": arch.to_json(), "seed": seed} for arch, seed in self.models],
            "recipe": self.recipe.to_json(),
            "text": self.text.to_json(),
            "budget_s": self.budget_s,
            "processes": self.processes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """Raises SpecError or ArchitectureError."""
        check_schema("job.json", data, SpecError)
        models = data.get("models")
        if not isinstance(models, list) or not all(isinstance(one, Mapping) for one in models):
            raise SpecError("models of a job must be a list of objects with architecture and seed")
        job = cls(
            job_id=data.get("job_id", ""),
            models=tuple((Architecture.from_json(one.get("architecture")), one.get("seed", 0)) for one in models),
            recipe=Recipe.from_json(data.get("recipe", {})),
            text=Text.from_json(data.get("text")),
            budget_s=data.get("budget_s"),
            processes=data.get("processes", 1),
        )
        job.trainings()  # which checks what they have of their own
        return job

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Raises SpecError naming the file."""
        path = folder / JOB
        try:
            return cls.from_json(read_json(path))
        except (OSError, ValueError) as exc:
            raise SpecError(f"{path}: {exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(_Values):
    """A moment of a training: losses in nats per token, `training_loss` the mean since the point before."""

    tokens: int
    seconds: float
    training_loss: float
    validation_loss: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            number(f"{name} of a point", getattr(self, name), SpecError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a training. A model whose loss became infinite has no loss, and `error` says so.

    loss_nats: per token of the held-out text; bits_per_byte: the same per byte of it, comparable across vocabularies.
    seconds: spent in training steps, all attempts together.
    """

    key: str
    architecture: Architecture
    seed: int
    recipe: Recipe
    loss_nats: float | None
    bits_per_byte: float | None
    steps: int
    tokens: int
    seconds: float
    curve: tuple[Point, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {
            "schema_version": SCHEMA_VERSION,
            "architecture": self.architecture.to_json(),
            "recipe": self.recipe.to_json(),
            "curve": [point.to_json() for point in self.curve],
            "conditions": dict(self.conditions),
        }

    @classmethod
    def from_json(cls, data: object) -> "Trained":
        """Raises SpecError or ArchitectureError for anything else."""
        if not isinstance(data, Mapping):
            raise SpecError(f"the result of a training must be an object, not {data!r:.80}")
        check_schema("the result of a training", data, SpecError)
        numbers = {name: number(name, data.get(name), SpecError) for name in ("seed", "steps", "tokens", "seconds")}
        losses = {name: data.get(name) for name in ("loss_nats", "bits_per_byte")}
        curve, conditions, error = data.get("curve"), data.get("conditions"), data.get("error")
        if not isinstance(curve, list) or not isinstance(conditions, Mapping):
            raise SpecError("the result of a training lacks its curve or its conditions")
        return cls(
            key=str(data.get("key"))[:12],
            architecture=Architecture.from_json(data.get("architecture")),
            recipe=Recipe.from_json(data.get("recipe")),
            curve=tuple(Point.from_json(point) for point in curve),
            conditions=conditions,
            error=None if error is None else str(error)[:300],
            seed=int(numbers["seed"]),
            steps=int(numbers["steps"]),
            tokens=int(numbers["tokens"]),
            seconds=numbers["seconds"],
            loss_nats=_loss("loss_nats", losses["loss_nats"]),
            bits_per_byte=_loss("bits_per_byte", losses["bits_per_byte"]),
        )


def _loss(name: str, value: object) -> float | None:
    return None if value is None else number(name, value, SpecError)

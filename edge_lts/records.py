"""Everything that is stored or crosses the link, as frozen values with `to_json` beside `from_json`.

Schema history (`schema_version` of spec.json, device.json, ledger.jsonl, status.json, frontier.json):
    1   first version; `commands` of spec.json came later and is left out where there are none; so did `heat`,
        `ci_fraction` and `max_retries` of a protocol (method 1 sampled without them), `meter` and `is_tuned` of
        spec.json, `quality`, `health`, `framework` and `energy` among the conditions of a record, the purpose
        `one_thread`, `board` of a record, which only pools of boards write, and `baselines` of spec.json, left out
        where there are none, with the purpose `baseline`; so did `proxy` of spec.json, left out where there is none,
        with the objective `quality` and its value (edge_lts.values.Estimate)

Readers accept every version listed here, refuse newer ones with a message that says to upgrade, and ignore no key
silently: an unknown key of a known version is an error, except in `conditions`, `device.extra` and `settings`, which
are open by design.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from edge_lts.arch import Architecture
from edge_lts.baselines import Baseline, check_baselines
from edge_lts.errors import FailureKind, LedgerError, SpecError
from edge_lts.objectives import (
    DEFAULT_OBJECTIVES,
    QUALITY,
    CommandObjective,
    Constraint,
    Objective,
    resolve_objectives,
)
from edge_lts.precision import PRECISIONS
from edge_lts.values import SCHEMA_VERSION as SCHEMA_VERSION
from edge_lts.values import Estimate as Estimate
from edge_lts.values import Interval as Interval
from edge_lts.values import Measurement as Measurement
from edge_lts.values import Value as Value
from edge_lts.values import central as central
from edge_lts.values import check_schema as check_schema
from edge_lts.values import number
from edge_lts.values import value_from_json as value_from_json
from edge_lts.values import value_to_json as value_to_json

# A change that can move a number bumps this; reports refuse to mix versions unless told to.
#   1   a fixed number of samples
#   2   samples are judged, tainted ones taken again; sampling ends when the interval is narrow enough
METHOD_VERSION = 2

Purpose = Literal["search", "confirm", "one_thread", "single", "baseline"]
ASIDE = ("one_thread", "baseline")  # measured beside the search: part of no frontier and of no ranking

# Flags of a record. Taints are doubts about its values; notes are true of the candidate, whoever measures it.
TAINTS = (
    "noisy",
    "contended",
    "frozen",
    "stolen",
    "swapped",
    "memory_pressure",
    "throttled",
    "slowed_clock",
    "undervolted",
)
NOTES = ("framework_bound", "emulated_precision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What the numbers depend on. Numbers that differ in any of these are never compared.

    `threads` 0 means: all cores this process may use, resolved on the board before anything is measured. The sampling
    fields bound the time that one candidate takes; they are recorded because they set the width of `ci95`: sampling
    ends when `ci95` reaches no farther than `ci_fraction` of the median to either side, or at `prefill_samples` and
    `decode_samples` of them (up to four times as many, for a second more, while it reaches farther than a tenth;
    `ci_fraction` 0 takes exactly these numbers). `max_retries` samples of a candidate may be taken again because
    something disturbed them. `heat`: `burst` measures a board that was given time to cool, `sustained` one that has
    been kept busy. `mem_len` is the segment memory of a Transformer-XL in tokens, None for as many as `context_tokens`;
    other backbones have none.
    """

    name: Literal["default", "lts"] = "default"
    prompt_tokens: int = 192
    context_tokens: int = 192
    logits: Literal["last", "all"] = "last"
    threads: int = 0
    precision: str = "float32"
    token_seed: int = 1
    warmup: int = 2
    prefill_samples: int = 20
    decode_samples: int = 40
    min_sample_s: float = 0.002
    method_version: int = METHOD_VERSION
    mem_len: int | None = None
    heat: Literal["burst", "sustained"] = "burst"
    ci_fraction: float = 0.02
    max_retries: int = 30

    def __post_init__(self) -> None:
        if self.name not in ("default", "lts"):
            raise SpecError(f"unknown protocol {self.name!r:.40}; known: default, lts")
        if self.logits not in ("last", "all"):
            raise SpecError(f"logits must be last or all, not {self.logits!r:.40}")
        if self.precision not in PRECISIONS:
            raise SpecError(f"unknown precision {self.precision!r:.40}; known: {', '.join(PRECISIONS)}")
        if self.heat not in ("burst", "sustained"):
            raise SpecError(f"heat must be burst or sustained, not {self.heat!r:.40}")
        for name, minimum in (
            ("prompt_tokens", 1),
            ("context_tokens", 1),
            ("threads", 0),
            ("token_seed", 0),
            ("warmup", 1),
            ("prefill_samples", 1),
            ("decode_samples", 1),
            ("method_version", 1),
            ("mem_len", 1),
            ("max_retries", 0),
        ):
            value = getattr(self, name)
            if name == "mem_len" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise SpecError(f"{name} must be an integer of at least {minimum}, not {value!r:.40}")
        if not 0 <= number("min_sample_s", self.min_sample_s, SpecError) <= 10:
            raise SpecError(f"min_sample_s must lie between 0 and 10 seconds, not {self.min_sample_s}")
        if not 0 <= number("ci_fraction", self.ci_fraction, SpecError) < 1:
            raise SpecError(f"ci_fraction must lie in [0, 1), not {self.ci_fraction}")

    @classmethod
    def named(cls, name: str, **changes: Any) -> "Protocol":
        """`default`, or `lts`: the paper's prefill of 192 tokens with logits of all positions on one thread."""
        if name == "lts":
            return cls(**{"name": "lts", "logits": "all", "threads": 1, **changes})
        return cls(**{"name": name, **changes})

    @property
    def memory_tokens(self) -> int:
        """Tokens that a segment memory holds at most."""
        return self.context_tokens if self.mem_len is None else self.mem_len

    def to_json(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_json(cls, data: object) -> "Protocol":
        return cls(**_known_fields("protocol", data, cls))

    @property
    def comparison_key(self) -> tuple[Any, ...]:
        """Numbers are comparable if and only if these are equal; sample counts only change precision."""
        return (
            self.name,
            self.prompt_tokens,
            self.context_tokens,
            self.logits,
            self.threads,
            self.precision,
            self.method_version,
            self.memory_tokens,
            self.heat,
        )


def _known_fields(what: str, data: object, cls: type[Any]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise SpecError(f"{what} must be a JSON object, not {type(data).__name__}")
    known = {item.name for item in fields(cls)}
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise SpecError(f"{what} has the unknown key {unknown[0]!r}")
    return dict(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One measurement of one architecture in one process: a line of the ledger.

    `objectives` holds every objective that could be measured, searched or not. `samples` keeps each sample in seconds
    (already divided by the tokens of a block). `conditions` say how and where: threads, load, temperature, memory
    split, block sizes, wall time, overhead. `flags` name taints; words for them are made in the report. `board` names
    the one of several boards that measured; empty in a run on one.
    """

    candidate_id: int
    architecture: Architecture
    objectives: dict[str, Value]
    samples: dict[str, list[float]]
    conditions: dict[str, Any]
    flags: tuple[str, ...] = ()
    purpose: Purpose = "search"
    spent_s: float = 0.0
    measured_at: str = ""
    predicted: dict[str, float] = field(default_factory=dict)
    board: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "evaluation",
            "purpose": self.purpose,
            "candidate_id": self.candidate_id,
            "arch_id": self.architecture.arch_id,
            "architecture": self.architecture.to_json(),
            "objectives": {name: value_to_json(value) for name, value in self.objectives.items()},
            "predicted": self.predicted,
            "flags": list(self.flags),
            "conditions": self.conditions,
            "samples": self.samples,
            "spent_s": self.spent_s,
            "measured_at": self.measured_at,
            **({"board": self.board} if self.board else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A candidate that could not be measured; told to the searcher and kept in the ledger."""

    candidate_id: int
    architecture: Architecture
    kind: FailureKind
    message: str
    purpose: Purpose = "search"
    spent_s: float = 0.0
    measured_at: str = ""
    board: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "failure",
            "purpose": self.purpose,
            "candidate_id": self.candidate_id,
            "arch_id": self.architecture.arch_id,
            "architecture": self.architecture.to_json(),
            "error": {"kind": self.kind, "message": self.message},
            "spent_s": self.spent_s,
            "measured_at": self.measured_at,
            **({"board": self.board} if self.board else {}),
        }


Outcome = Evaluation | Failure


def outcome_from_json(data: object) -> Outcome:
    """A ledger line as a value. Raises LedgerError (or ArchitectureError) saying what is wrong with it."""
    if not isinstance(data, Mapping):
        raise LedgerError("a ledger record must be a JSON object")
    check_schema("a ledger record", data, LedgerError)
    architecture = Architecture.from_json(data.get("architecture"))
    if data.get("arch_id") != architecture.arch_id:
        raise LedgerError(f"arch_id {data.get('arch_id')!r:.40} does not belong to its architecture")
    candidate_id = data.get("candidate_id")
    if isinstance(candidate_id, bool) or not isinstance(candidate_id, int):
        raise LedgerError(f"candidate_id must be an integer, not {candidate_id!r:.40}")
    purpose = data.get("purpose")
    if purpose not in get_args(Purpose):
        raise LedgerError(f"unknown purpose {purpose!r:.40}")
    common: dict[str, Any] = {
        "candidate_id": candidate_id,
        "architecture": architecture,
        "purpose": purpose,
        "spent_s": number("spent_s", data.get("spent_s"), LedgerError),
        "measured_at": str(data.get("measured_at", "")),
        "board": str(data.get("board", "")),
    }
    if data.get("kind") == "failure":
        error = data.get("error")
        if not isinstance(error, Mapping) or error.get("kind") not in get_args(FailureKind):
            raise LedgerError(f"a failure must say its kind, not {error!r:.80}")
        return Failure(kind=cast(FailureKind, error["kind"]), message=str(error.get("message", "")), **common)
    if data.get("kind") != "evaluation":
        raise LedgerError(f"unknown kind of record {data.get('kind')!r:.40}")
    for key in ("objectives", "samples", "conditions", "predicted"):
        if not isinstance(data.get(key), Mapping):
            raise LedgerError(f"{key} of an evaluation must be an object")
    flags = data.get("flags")
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise LedgerError("flags of an evaluation must be a list of names")
    return Evaluation(
        objectives={str(name): value_from_json(value) for name, value in data["objectives"].items()},
        samples={
            str(name): [number("a sample", sample, LedgerError) for sample in samples]
            for name, samples in data["samples"].items()
            if isinstance(samples, list)
        },
        conditions=dict(data["conditions"]),
        predicted={str(name): number("a prediction", value, LedgerError) for name, value in data["predicted"].items()},
        flags=tuple(flags),
        **common,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What this board is, as far as its kernel and its Python say; None where they do not."""

    model: str | None
    machine: str
    kernel: str
    cpu_model: str | None
    cpu_features: tuple[str, ...]
    n_cores: int
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    page_size_bytes: int
    governor: str | None
    python: str
    python_bits: int
    platform: str
    libc: str
    torch: str | None
    numpy: str | None
    boot_id: str | None
    is_emulated: bool | None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"schema_version": SCHEMA_VERSION, **data, "cpu_features": list(self.cpu_features)}

    @classmethod
    def from_json(cls, data: object) -> "DeviceInfo":
        if not isinstance(data, Mapping):
            raise LedgerError("device.json must hold a JSON object")
        check_schema("device.json", data, LedgerError)
        values: dict[str, Any] = {item.name: data.get(item.name) for item in fields(cls)}
        features, extra = values["cpu_features"], values["extra"]
        values["cpu_features"] = tuple(str(feature) for feature in features) if isinstance(features, list) else ()
        values["extra"] = dict(extra) if isinstance(extra, Mapping) else {}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that determines a run: with torch's version, the run is a function of it up to measured values.

    `space` is the resolved space as JSON (see edge_lts.space). `settings` belong to the strategy. `commands` define
    those of the `objectives` that are not built in; they run on the board, as its user. `confirm_fraction` of the
    budget is kept for measuring the frontier's members again in fresh processes, which is what `pi95` needs.
    `memory_headroom` is the share of the board's memory that a candidate must leave free. `meter` says what measures
    energy on the board: `auto` (whatever is there), `none`, or a kind with its argument (edge_lts.energy). `is_tuned`
    asks the board's kernel for its fastest governor while the run goes on. `baselines` are measured too, in a share of
    the budget (edge_lts.baselining). `proxy` is the content of a proxy.json (edge_lts.proxies.calibrated), which gives
    every architecture of its backbone a `quality`; what it says is checked where it is used, because that needs numpy.
    """

    run_id: str
    space: dict[str, Any]
    budget_s: float
    target: str
    seed: int = 1
    strategy: str = "evolution"
    settings: dict[str, Any] = field(default_factory=dict)
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    constraints: tuple[Constraint, ...] = ()
    commands: tuple[CommandObjective, ...] = ()
    protocol: Protocol = field(default_factory=Protocol)
    max_candidates: int | None = None
    candidate_timeout_s: float = 600.0
    confirm_fraction: float = 0.2
    memory_headroom: float = 0.2
    is_emulated: bool = False
    meter: str = "auto"
    is_tuned: bool = False
    baselines: tuple[Baseline, ...] = ()
    proxy: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        resolve_objectives(self.objectives, self.commands)
        check_baselines(self.baselines)
        if self.proxy is not None and not isinstance(self.proxy, Mapping):
            raise SpecError(f"proxy must be an object, the content of a proxy.json, not {self.proxy!r:.40}")
        used = (*self.objectives, *(constraint.name for constraint in self.constraints))
        if self.proxy is None and QUALITY in used:
            raise SpecError(f"{QUALITY} comes from a calibrated proxy, and this run has none: run --proxy FILE")
        if not isinstance(self.space, Mapping):
            raise SpecError("space must be an object")
        for name, kind, noun in (
            ("target", str, "a name"),
            ("strategy", str, "a name"),
            ("settings", Mapping, "an object"),
            ("is_emulated", bool, "true or false"),
            ("is_tuned", bool, "true or false"),
            ("meter", str, "a name"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise SpecError(f"{name} must be {noun}, not {getattr(self, name)!r:.40}")
        for name, value, minimum in (("seed", self.seed, 0), ("max_candidates", self.max_candidates, 1)):
            if name == "max_candidates" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise SpecError(f"{name} must be an integer of at least {minimum}, not {value!r:.40}")
        for name in ("budget_s", "candidate_timeout_s"):
            if number(name, getattr(self, name), SpecError) <= 0:
                raise SpecError(f"{name} must be positive")
        for name in ("confirm_fraction", "memory_headroom"):
            if not 0 <= number(name, getattr(self, name), SpecError) < 1:
                raise SpecError(f"{name} must lie in [0, 1)")

    @property
    def resolved_objectives(self) -> tuple[Objective, ...]:
        return resolve_objectives(self.objectives, self.commands)

    def to_json(self) -> dict[str, Any]:
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("commands", "baselines"):
            data[name] = [item.to_json() for item in data[name]]
            if not data[name]:
                del data[name]
        if self.proxy is None:
            del data["proxy"]
        return {
            "schema_version": SCHEMA_VERSION,
            **data,
            "objectives": list(self.objectives),
            "constraints": [constraint.to_json() for constraint in self.constraints],
            "protocol": self.protocol.to_json(),
        }

    @classmethod
    def from_json(cls, data: object) -> "RunSpec":
        if not isinstance(data, Mapping):
            raise SpecError("spec.json must hold a JSON object")
        check_schema("spec.json", data, SpecError)
        values = _known_fields("spec.json", {key: data[key] for key in data if key != "schema_version"}, cls)
        missing = [name for name in ("run_id", "space", "budget_s", "target") if name not in values]
        if missing:
            raise SpecError(f"spec.json lacks {missing[0]!r}")
        for name in ("constraints", "commands", "baselines"):
            if not isinstance(values.get(name, []), list):
                raise SpecError(f"{name} must be a list")
        values["constraints"] = tuple(Constraint.from_json(item) for item in values.get("constraints", []))
        values["commands"] = tuple(CommandObjective.from_json(item) for item in values.get("commands", []))
        values["baselines"] = tuple(Baseline.from_json(item) for item in values.get("baselines", []))
        objectives = values.get("objectives", DEFAULT_OBJECTIVES)
        values["objectives"] = tuple(objectives) if isinstance(objectives, list) else objectives
        values["protocol"] = Protocol.from_json(values.get("protocol", {}))
        return cls(**values)


RUN_ID_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def check_run_id(run_id: object) -> str:
    """A run id is a plain file name: it becomes a folder on two machines. Raises SpecError otherwise."""
    if (
        not isinstance(run_id, str)
        or not 1 <= len(run_id) <= 100
        or run_id[0] in ".-"
        or not RUN_ID_ALPHABET.issuperset(run_id)
    ):
        raise SpecError(
            f"{run_id!r:.120} is no run id: up to 100 of a-z, 0-9, '-', '_' and '.', none of the signs first"
        )
    return run_id

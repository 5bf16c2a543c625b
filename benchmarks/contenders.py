"""The searches that bench_search.py compares: the product's strategies as runs (search, then confirm), optuna's, and
three that never measure: a frontier by operations and bytes, a homogeneous grid, and NSGA-II on the learned costs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import ONE_THREAD

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.footprint import cache_bytes
from edge_lts.frontier import Frontier, members
from edge_lts.objectives import resolve_objectives
from edge_lts.pareto import nondominated
from edge_lts.records import Evaluation, central
from edge_lts.search import make_searcher
from edge_lts.search.predictor import Predictor
from edge_lts.search.solver import LayerTable, solve
from edge_lts.space import SearchSpace
from edge_lts.stats import MIN_PROCESSES_PI95
from edge_lts_host.spaces import CONFIRM_FRACTION

FLOPS, BYTES_PER_S = 50e9, 10e9  # of one core, for the frontier without any timing; only their ratio matters
NSGA_TRIALS = 1500


@dataclass
class Contender:
    """One strategy with one seed and a clock of its own, which counts proposing, measuring and telling."""

    strategy: str
    seed: int
    cost: str
    ask: Callable[[], tuple[int, Architecture] | None]
    tell: Callable[[int, Evaluation], None]
    budget_s: float
    max_candidates: int | None = None
    spent_s: float = 0.0
    stopped_after_s: float | None = None
    n_searched: int = 0
    n_processes: Counter[str] = field(default_factory=Counter)
    by_id: dict[str, Architecture] = field(default_factory=dict)
    found: Frontier = field(init=False)

    def __post_init__(self) -> None:
        self.found = Frontier(resolve_objectives(["decoder_params", self.cost]))

    def next(self) -> tuple[str, int, Architecture] | None:
        """(purpose, id, what to measure); None when there is nothing left to do or no time."""
        if self.spent_s >= self.budget_s:
            return None
        is_full = self.max_candidates is not None and self.n_searched >= self.max_candidates
        if self.stopped_after_s is None and (is_full or self.spent_s >= (1 - CONFIRM_FRACTION) * self.budget_s):
            self.stopped_after_s = self.spent_s
        if self.stopped_after_s is None:
            begun = time.perf_counter()
            asked = self.ask()
            self.spent_s += time.perf_counter() - begun
            if asked is not None:
                return ("search", *asked)
            self.stopped_after_s = self.spent_s
        waiting = [arch_id for arch_id in self.found.member_ids() if self.n_processes[arch_id] < MIN_PROCESSES_PI95]
        if not waiting:
            return None
        return ("confirm", -1, self.by_id[min(waiting, key=lambda arch_id: self.n_processes[arch_id])])

    def add(self, purpose: str, number: int, outcome: Evaluation, seconds: float) -> None:
        self.spent_s += seconds
        arch_id = outcome.architecture.arch_id
        self.by_id[arch_id] = outcome.architecture
        self.n_processes[arch_id] += 1
        self.found.add(arch_id, outcome)
        if purpose == "search":
            self.n_searched += 1
            begun = time.perf_counter()
            self.tell(number, outcome)
            self.spent_s += time.perf_counter() - begun


def reported(evaluations: Iterable[Evaluation], cost: str) -> dict[Architecture, float]:
    """The frontier as a run reports it, with its seconds at the machine's usual speed."""
    found = members(evaluations, resolve_objectives(["decoder_params", cost]))
    return {
        member.architecture: float(central(member.objectives[cost]) or 0.0)
        for member in found
        if not member.probably_dominated
    }


def frontier_of(seconds: dict[Architecture, float]) -> list[Architecture]:
    archs = list(seconds)
    losses = np.array([[-arch.decoder_params, seconds[arch]] for arch in archs], dtype=np.float64)
    return [archs[index] for index in np.flatnonzero(nondominated(losses))]


def product(strategy: str, space: SearchSpace, cost: str, seed: int, budget_s: float) -> Contender:
    objectives = resolve_objectives(["decoder_params", cost])
    searcher = make_searcher(strategy, space, objectives, seed, protocol=ONE_THREAD)

    def ask() -> tuple[int, Architecture] | None:
        found = searcher.ask(1)
        return (found[0].candidate_id, found[0].architecture) if found else None

    return Contender(strategy, seed, cost, ask, searcher.tell, budget_s)


def suggest(trial: Any, space: SearchSpace) -> Architecture:
    """An architecture from an optuna trial: depth, width, and each layer's shape as a position in what is allowed."""
    tables = space.tables
    table = tables[trial.suggest_int("d_model", 0, len(tables) - 1)]
    depth = trial.suggest_int("n_layer", space.genes.n_layer[0], space.genes.n_layer[-1])
    picks = []
    for index in range(depth):
        inner = trial.suggest_float(f"d_inner_{index}", 0, 1)
        head = trial.suggest_categorical(f"n_head_{index}", list(space.genes.n_head))
        allowed_inner = table.d_inner[min(len(table.d_inner) - 1, int(inner * len(table.d_inner)))]
        allowed_head = min(table.n_head, key=lambda value: abs(value - head))
        picks.append(table.index(allowed_inner, allowed_head))
    return space.build(table, picks)


def optuna_study(sampler_name: str, seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {
        "optuna NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "optuna TPE": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=False),
    }
    return optuna.create_study(directions=["maximize", "minimize"], sampler=samplers[sampler_name]())


def optuna_contender(sampler: str, space: SearchSpace, cost: str, seed: int, budget_s: float) -> Contender:
    """optuna proposes; what the rules of the space forbid or was measured before costs it no measurement."""
    study = optuna_study(sampler, seed)
    trials: dict[int, Any] = {}
    values: dict[Architecture, float] = {}

    def ask() -> tuple[int, Architecture] | None:
        for _ in range(1000):
            trial = study.ask()
            arch = suggest(trial, space)
            if not space.contains(arch):
                study.tell(trial, values=[0.0, 1e6])
            elif arch in values:
                study.tell(trial, values=[float(arch.decoder_params), values[arch]])
            else:
                trials[trial.number] = trial
                return trial.number, arch
        return None

    def tell(number: int, outcome: Evaluation) -> None:
        arch = outcome.architecture
        values[arch] = float(central(outcome.objectives[cost]) or 0.0)
        study.tell(trials.pop(number), values=[float(arch.decoder_params), values[arch]])

    return Contender(sampler, seed, cost, ask, tell, budget_s)


def by_operations(space: SearchSpace, cost: str) -> list[Architecture]:
    """(a) The exact frontier of a machine that computes and moves bytes at fixed rates; nothing is timed."""
    found: dict[Architecture, float] = {}
    for table in space.tables:
        d, one = table.d_model, space.build(table, [0])

        def seconds(weights: np.ndarray | float, heads: np.ndarray | float) -> Any:
            tokens = ONE_THREAD.prompt_tokens if cost == "prefill_latency_s" else 1
            context = ONE_THREAD.prompt_tokens if cost == "prefill_latency_s" else ONE_THREAD.context_tokens
            flops = 2 * tokens * weights + 4 * tokens * context * d * (heads > 0)  # noqa: B023
            moved = 4 * weights + cache_bytes(one, context) * (heads > 0)  # noqa: B023
            return flops / FLOPS + moved / BYTES_PER_S

        weights = np.array(table.costs, dtype=np.float64)
        layers = seconds(weights, np.ones(len(weights)))
        base = seconds(float(d * one.vocab_size), 0.0)
        solved = solve(
            LayerTable(
                d_model=d,
                step=math.gcd(*table.d_inner),
                depths=table.depths,
                layers=table.shapes,
                costs=np.asarray(layers)[:, None],
                features=np.zeros((len(table.shapes), 0), dtype=np.int64),
            )
        )
        size = table.decoder_params(solved.depth, solved.d_inner_sum)
        losses = np.column_stack([-size.astype(np.float64), solved.costs[:, 0] + base])
        losses[(size < table.low) | (size > table.high)] = np.inf
        for row in np.flatnonzero(np.isfinite(losses[:, 0]) & nondominated(losses)):
            picks = [table.index(layer.d_inner, layer.n_head) for layer in solved.layers(int(row))]
            found[space.build(table, picks)] = float(losses[row, 1])
    return frontier_of(found)


def homogeneous_grid(space: SearchSpace, cost: str, predictor: Predictor) -> list[Architecture]:
    """(b) Every stack of equal layers, at the learned costs."""
    found = {}
    for table in space.tables:
        for depth in table.depths:
            for index in range(len(table.shapes)):
                if table.is_within([index] * depth):
                    arch = space.build(table, [index] * depth)
                    found[arch] = predictor.predict(arch)[cost]
    return frontier_of(found)


def nsga_on_the_model(space: SearchSpace, cost: str, predictor: Predictor, seed: int) -> list[Architecture]:
    """(c) optuna's NSGA-II with predictions instead of measurements."""
    study = optuna_study("optuna NSGA-II", seed)
    found: dict[Architecture, float] = {}
    for _ in range(NSGA_TRIALS):
        trial = study.ask()
        arch = suggest(trial, space)
        if space.contains(arch):
            found[arch] = predictor.predict(arch)[cost]
            study.tell(trial, values=[float(arch.decoder_params), found[arch]])
        else:
            study.tell(trial, values=[0.0, 1e6])
    return frontier_of(found)


def compact(arch: Architecture) -> list[Any]:
    return [arch.d_model, [[layer.d_inner, layer.n_head] for layer in arch.layers]]


def expand(space: SearchSpace, data: list[Any]) -> Architecture:
    width, layers = data
    table = next(table for table in space.tables if table.d_model == width)
    shapes = [LayerSpec(d_inner=inner, n_head=head) for inner, head in layers]
    return space.build(table, [table.index(layer.d_inner, layer.n_head) for layer in shapes])

"""Latency of one forward: prefill of a prompt, and one decoded token behind a filled cache.

A sample is a block of as many equal forwards as take `min_sample_s`, timed with perf_counter_ns and divided by their
number; every sample is kept, and outliers are somebody else's judgement. Both kinds of sample are taken in alternating
rounds, so that a change of the machine's speed meets both; a decode chunk begins with one untimed token, because the
prefill before it leaves other data in the CPU's caches than a decode does. The garbage collector rests meanwhile.

Tokens are drawn from a Zipf law: token k of the vocabulary with a probability proportional to 1 / (k + 1), the same
ones for the same seed. The decode position does not move: the cache is set back before each token, so that every sample
sees exactly `context_tokens` tokens of context. Prefill writes the cache, as generating does.
"""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter_ns

import numpy as np
import torch
from torch import Tensor

from edge_lts.errors import EvaluationError
from edge_lts.model import Cache, Model
from edge_lts.records import Protocol

N_ROUNDS = 5
N_DECODE_TOKENS = 16
_NS = 1e-9


def zipf_tokens(n: int, vocab_size: int, seed: int) -> Tensor:
    """n token ids (1, n) with P(k) proportional to 1 / (k + 1)."""
    cumulative = np.cumsum(1.0 / np.arange(1, vocab_size + 1))
    uniform = np.random.default_rng(seed).random(n) * cumulative[-1]
    ids = np.minimum(np.searchsorted(cumulative, uniform, side="right"), vocab_size - 1)
    return torch.from_numpy(ids.astype(np.int64)).view(1, n)


@contextmanager
def resting_garbage_collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(slots=True)
class Timer:
    """Samples of one kind of forward. `step` runs it once and returns the logits."""

    name: str
    step: Callable[[], Tensor]
    repeats: int = 1
    samples_s: list[float] = field(default_factory=list)
    forward_ns: int = 0  # all passes, warm-ups included
    n_forwards: int = 0

    def run(self, repeats: int) -> int:
        """Nanoseconds that `repeats` forwards take; no result outlives the next forward."""
        step = self.step
        started = perf_counter_ns()
        for _ in range(repeats):
            step()
        elapsed = perf_counter_ns() - started
        self.forward_ns += elapsed
        self.n_forwards += repeats
        return elapsed

    def check(self) -> None:
        """One forward whose logits must be finite."""
        started = perf_counter_ns()
        logits = self.step()
        self.forward_ns += perf_counter_ns() - started
        self.n_forwards += 1
        total = logits.sum().item()  # not isfinite(): that allocates as much again and would move the memory peak
        if not math.isfinite(total):
            raise EvaluationError("nonfinite", f"{self.name}: the logits are not finite")

    def warm_up(self, n: int, min_sample_s: float) -> None:
        """n forwards; then make the block as large as `min_sample_s` asks."""
        fastest = max(1, min(self.run(1) for _ in range(n)))
        shortest_ns = min_sample_s / _NS
        while fastest * self.repeats < shortest_ns:
            self.repeats = math.ceil(shortest_ns / fastest)
            fastest = max(1, min(fastest, self.run(self.repeats) // self.repeats))

    def sample(self) -> None:
        self.samples_s.append(self.run(self.repeats) * _NS / self.repeats)


def make_timers(model: Model, cache: Cache, protocol: Protocol) -> tuple[Timer, Timer, Timer]:
    """Timers of prefill, decode, and decode with a shallower cache (`shallow_tokens`), in this order.

    `cache` must have room for the prompt and for context_tokens + 1, and hold real numbers throughout.
    """
    vocabulary = model.arch.vocab_size
    prompt = zipf_tokens(protocol.prompt_tokens, vocabulary, protocol.token_seed)
    singles = zipf_tokens(N_DECODE_TOKENS, vocabulary, protocol.token_seed + 1)
    decode_tokens = cycle([singles[:, i : i + 1] for i in range(N_DECODE_TOKENS)])

    def prefill_once() -> Tensor:
        cache.set_length(0)
        logits: Tensor = model(prompt, cache, protocol.logits)
        return logits

    def decode_behind(context_tokens: int) -> Tensor:
        cache.set_length(context_tokens)
        logits: Tensor = model(next(decode_tokens), cache, "last")
        return logits

    shallow = shallow_tokens(protocol)
    return (
        Timer("prefill", prefill_once),
        Timer("decode", lambda: decode_behind(protocol.context_tokens)),
        Timer("shallow decode", lambda: decode_behind(shallow)),
    )


def shallow_tokens(protocol: Protocol) -> int:
    """The second cache depth at which decoding is timed: what the cache costs is the difference, linear between."""
    return protocol.context_tokens // 4


def take_samples(prefill: Timer, decode: Timer, protocol: Protocol, between: Callable[[], None] = lambda: None) -> None:
    """Warm both up and take the protocol's samples of each, in alternating rounds.

    `between` is called once a round, after its prefills; the untimed token that follows hides it from the decodes.
    """
    with resting_garbage_collector():
        prefill.warm_up(protocol.warmup, protocol.min_sample_s)
        decode.warm_up(protocol.warmup, protocol.min_sample_s)
        rounds = min(N_ROUNDS, protocol.prefill_samples, protocol.decode_samples)
        n_prefills, n_decodes = _shares(protocol.prefill_samples, rounds), _shares(protocol.decode_samples, rounds)
        for n_prefill, n_decode in zip(n_prefills, n_decodes, strict=True):
            for _ in range(n_prefill):
                prefill.sample()
            between()
            decode.run(1)
            for _ in range(n_decode):
                decode.sample()


def take_shallow_samples(shallow: Timer, protocol: Protocol) -> None:
    """A quarter of decode's samples, at least three, when everything else was timed."""
    with resting_garbage_collector():
        shallow.warm_up(1, protocol.min_sample_s)
        for _ in range(max(3, protocol.decode_samples // 4)):
            shallow.sample()


def _shares(n: int, parts: int) -> list[int]:
    """n split into `parts` nearly equal numbers."""
    return [n * (i + 1) // parts - n * i // parts for i in range(parts)]

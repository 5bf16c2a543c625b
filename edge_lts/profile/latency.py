"""Latency of one forward: prefill of a prompt, and one decoded token behind a filled cache.

A sample is a block of as many equal forwards as take `min_sample_s`, timed with perf_counter_ns and divided by their
number; every sample is kept, and no value makes one an outlier. Both kinds of sample are taken in alternating rounds,
so that a change of the machine's speed meets both; a decode chunk begins with untimed tokens, because the prefill
before it leaves other data in the CPU's caches than a decode does: 50 MB of weights take three to eight tokens until a
decode is as fast as the next. The garbage collector rests meanwhile.

Rounds end when the interval of both medians is narrow enough or the protocol's numbers of samples are reached; on a
machine so unsteady that the value is not known to a tenth then, they go on a little longer. Samples that the gate
(edge_lts.quality) found disturbed do not count, as long as there are retries; they stay in the record.

Tokens are drawn from a Zipf law: token k of the vocabulary with a probability proportional to 1 / (k + 1), the same
ones for the same seed. The decode position does not move: the cache is set back before each token, so that every sample
sees exactly `context_tokens` tokens of context. Prefill writes the cache, as generating does.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter_ns

import numpy as np
import torch
from torch import Tensor

from edge_lts import stats
from edge_lts.errors import EvaluationError
from edge_lts.model import Cache, Model
from edge_lts.quality import NOISY_REACH, Gate, Verdict, Watch, reach
from edge_lts.records import Protocol

N_ROUNDS = 10
MIN_ROUNDS = 3
MIN_PREFILLS, MIN_DECODES = 6, 12  # before an interval is believed
MAX_SHALLOW_SAMPLES = 6
DECODE_CHUNK = 4
MIN_SETTLING_S, MAX_SETTLING_TOKENS, SETTLED_SHARE = 0.010, 8, 0.02
MAX_EXTENSION, EXTENSION_S = 4, 1.0  # while the value is noisy: times the number of samples, seconds of forwards
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
    gate: Gate | None = None
    watches: list[Watch] = field(default_factory=list)  # one for each sample, if there is a gate
    verdict: Verdict | None = None

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

    def settle(self) -> None:
        """Untimed forwards, until caches hold what this one needs: as fast as usual, or no faster than the last."""
        usual_ns = stats.median(self.samples_s) / _NS if self.samples_s else 0.0
        spent_ns, last_ns = 0, math.inf
        for _ in range(MAX_SETTLING_TOKENS):
            took_ns = self.run(1)
            spent_ns += took_ns
            is_settled = took_ns <= (1 + SETTLED_SHARE) * usual_ns or took_ns >= (1 - SETTLED_SHARE) * last_ns
            if is_settled and spent_ns >= MIN_SETTLING_S / _NS:
                break
            last_ns = min(last_ns, took_ns)

    def sample(self) -> None:
        gate = self.gate
        if gate is None:
            self.samples_s.append(self.run(self.repeats) * _NS / self.repeats)
            return
        before = gate.mark()
        elapsed = self.run(self.repeats)
        self.watches.append(gate.watch(before))
        self.samples_s.append(elapsed * _NS / self.repeats)

    def judge(self, cap: int) -> Verdict:
        """What the samples so far are worth when `cap` untainted ones are wanted."""
        if self.gate is not None:
            self.verdict = self.gate.verdict(self, cap)
        else:
            n = len(self.samples_s)
            self.verdict = Verdict([()] * n, list(range(n)))
        return self.verdict

    @property
    def n_tainted(self) -> int:
        return 0 if self.verdict is None else self.verdict.n_tainted

    def kept_samples(self) -> list[float]:
        """Those that make the value: the untainted ones if they are enough."""
        if self.verdict is None:
            return self.samples_s
        return [self.samples_s[index] for index in self.verdict.kept]


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


def take_samples(
    prefill: Timer,
    decode: Timer,
    protocol: Protocol,
    between: Callable[[], None] = lambda: None,
    gate: Gate | None = None,
) -> None:
    """Warm both up and take samples of each in alternating rounds, as many as the protocol and the gate ask for.

    `between` is called once a round, after its prefills; the untimed tokens that follow hide it from the decodes.
    """
    with resting_garbage_collector():
        prefill.warm_up(protocol.warmup, protocol.min_sample_s)
        decode.warm_up(protocol.warmup, protocol.min_sample_s)
        caps = (protocol.prefill_samples, protocol.decode_samples)
        n_rounds = min(N_ROUNDS, *caps, max(MIN_ROUNDS, caps[1] // DECODE_CHUNK))
        batches = [math.ceil(cap / n_rounds) for cap in caps]
        prefill.gate = decode.gate = gate
        if gate is not None:
            gate.begin()
        batch, n_done, n_tainted, extension = batches, 0, 0, None
        while True:
            for _ in range(batch[0]):
                prefill.sample()
            between()
            decode.settle()
            for _ in range(batch[1]):
                decode.sample()
            n_done += 1
            lacking = _lacking((prefill, decode), caps, protocol, n_done)
            if gate is not None and not any(lacking):
                gate.settle()  # the last reading may say that the board throttled
                lacking = _lacking((prefill, decode), caps, protocol, n_done)
            if not any(lacking):
                extension = extension or Extension(prefill, decode)
                lacking = extension.wanted(batches) if protocol.ci_fraction else (0, 0)
                if not any(lacking):
                    return
                caps = (caps[0] + lacking[0], caps[1] + lacking[1])
            batch = [min(few, lack) for few, lack in zip(batches, lacking, strict=True)]
            if gate is not None:
                n_before, n_tainted = n_tainted, prefill.n_tainted + decode.n_tainted
                gate.n_retried = min(n_tainted, protocol.max_retries)
                if gate.pause(n_tainted > n_before):
                    prefill.run(1)  # wakes the workers and the clock


def _lacking(timers: tuple[Timer, Timer], caps: tuple[int, int], protocol: Protocol, n_done: int) -> tuple[int, int]:
    """Samples still wanted of each kind. Without retries left, a tainted one counts like any other.

    Judged from the round on in which sampling may end: judging takes longer than a short sample's clocks.
    """
    untaken = [cap - len(timer.samples_s) for timer, cap in zip(timers, caps, strict=True)]
    if n_done < MIN_ROUNDS and min(untaken) > 0:
        return untaken[0], untaken[1]
    verdicts = [timer.judge(cap) for timer, cap in zip(timers, caps, strict=True)]
    is_exhausted = sum(verdict.n_tainted for verdict in verdicts) > protocol.max_retries
    counted = [len(verdict.taints) if is_exhausted else verdict.n_clean for verdict in verdicts]
    lacking = [max(0, cap - n) for cap, n in zip(caps, counted, strict=True)]
    least = [min(n, cap) for n, cap in zip((MIN_PREFILLS, MIN_DECODES), caps, strict=True)]
    has_enough = n_done >= MIN_ROUNDS and all(n >= low for n, low in zip(counted, least, strict=True))
    if has_enough and all(_is_narrow(timer.kept_samples(), protocol.ci_fraction) for timer in timers):
        return 0, 0
    return lacking[0], lacking[1]


class Extension:
    """More samples of what is still noisy, within bounds that begin now."""

    def __init__(self, *timers: Timer) -> None:
        self._timers = timers
        self._ends_ns = self._spent_ns() + EXTENSION_S / _NS
        self._most = [MAX_EXTENSION * len(timer.samples_s) for timer in timers]

    def wanted(self, batches: Sequence[int]) -> tuple[int, int]:
        """How many more of prefill and of decode; (0, 0) when neither is noisy or the bounds are reached."""
        if self._spent_ns() >= self._ends_ns:
            return 0, 0
        prefills, decodes = (
            batch if len(timer.samples_s) < most and _is_noisy(timer) else 0
            for timer, most, batch in zip(self._timers, self._most, batches, strict=True)
        )
        return prefills, decodes

    def _spent_ns(self) -> int:
        return sum(timer.forward_ns for timer in self._timers)


def _is_noisy(timer: Timer) -> bool:
    """Scattered for no reason that a clock could tell: then more samples help."""
    is_fallback = timer.verdict is not None and timer.verdict.is_fallback
    return not is_fallback and reach(timer.kept_samples()) > NOISY_REACH


def _is_narrow(samples: list[float], fraction: float) -> bool:
    return len(samples) >= stats.MIN_SAMPLES_CI95 and reach(samples) <= fraction


def take_shallow_samples(shallow: Timer, protocol: Protocol, gate: Gate | None = None) -> None:
    """A quarter of decode's samples, three to six, when everything else was timed; disturbed ones once more."""
    n = min(max(3, protocol.decode_samples // 4), MAX_SHALLOW_SAMPLES)
    with resting_garbage_collector():
        shallow.warm_up(1, protocol.min_sample_s)
        shallow.gate = gate
        for taken in range(n if gate is None else 2 * n):
            if taken >= n and shallow.judge(n).n_clean >= n:
                break
            shallow.sample()
        shallow.judge(n)

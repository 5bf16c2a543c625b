"""Tokens, weights, blocks and watermarks: the parts of the profiler, in this process."""

import gc
import importlib
import itertools
import json
import math
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EvaluationError
from edge_lts.quality import Gate
from edge_lts.records import Protocol
from edge_lts.speed import ANCHORS
from tests.fake_clocks import MS, FakeClocks
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.profile import anchor, latency, memory, weights  # noqa: E402

pytestmark = pytest.mark.torch

ARCH = Architecture(
    backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=128, n_head=2),), vocab_size=300, max_seq_len=64
)
SHORT = Protocol(
    prompt_tokens=12, context_tokens=20, prefill_samples=3, decode_samples=7, min_sample_s=0.0, ci_fraction=0.0
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def timers(protocol: Protocol, arch: Architecture = ARCH):
    model = build_model(arch)
    weights.fill_weights(model)
    cache = model.new_cache(capacity=max(protocol.context_tokens + 1, protocol.prompt_tokens))
    weights.fill_tensors(cache.tensors())
    return model, cache, *latency.make_timers(model, cache, protocol)


def test_tokens_follow_the_zipf_law_and_the_seed() -> None:
    tokens = latency.zipf_tokens(200_000, 50257, 5)
    assert tokens.shape == (1, 200_000)
    assert torch.equal(tokens, latency.zipf_tokens(200_000, 50257, 5))
    assert not torch.equal(tokens, latency.zipf_tokens(200_000, 50257, 6))
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < 50257
    harmonic = (1 / np.arange(1, 50258)).sum()
    counts = np.bincount(tokens.numpy()[0], minlength=50257) / 200_000
    for k in (0, 1, 9, 99):
        expected = 1 / (k + 1) / harmonic
        assert abs(counts[k] - expected) < 5 * math.sqrt(expected / 200_000)
    assert latency.zipf_tokens(10, 1, 0).tolist() == [[0] * 10]


def test_samples_are_taken_as_the_protocol_says() -> None:
    _, cache, prefill, decode, _ = timers(SHORT)
    prefill.check()
    decode.check()
    n_between = 0

    def between() -> None:
        nonlocal n_between
        n_between += 1

    latency.take_samples(prefill, decode, SHORT, between)
    assert n_between == 3  # once a round
    assert (len(prefill.samples_s), len(decode.samples_s)) == (3, 7)
    assert all(0 < sample < 10 for sample in prefill.samples_s + decode.samples_s)
    # one check, two warm-ups, the samples, and before each of three rounds one to eight untimed tokens
    assert prefill.n_forwards == 1 + 2 + 3
    assert 1 + 2 + 7 + 3 <= decode.n_forwards <= 1 + 2 + 7 + 3 * latency.MAX_SETTLING_TOKENS
    assert cache.length == SHORT.context_tokens + 1
    total = (prefill.forward_ns + decode.forward_ns) * 1e-9
    assert total >= sum(prefill.samples_s) + sum(decode.samples_s)


def test_decode_position_and_prompt_never_move() -> None:
    model, cache, prefill, decode, shallow = timers(SHORT)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[1].length, inputs[0].shape[1])))
    latency.take_samples(prefill, decode, SHORT)
    assert set(seen) == {(0, SHORT.prompt_tokens), (SHORT.context_tokens, 1)}
    seen.clear()
    latency.take_shallow_samples(shallow, SHORT)
    handle.remove()
    assert set(seen) == {(SHORT.context_tokens // 4, 1)}
    assert len(shallow.samples_s) == 3
    assert torch.isfinite(torch.stack([tensor.sum() for tensor in cache.tensors()])).all()


def test_short_forwards_are_timed_in_blocks() -> None:
    timer = latency.Timer("decode", lambda: torch.zeros(1))
    timer.warm_up(2, 0.002)
    timer.sample()
    assert timer.repeats > 10
    assert 0.0005 < timer.samples_s[0] * timer.repeats < 1
    slow = latency.Timer("decode", lambda: time.sleep(0.003) or torch.zeros(1))
    slow.warm_up(1, 0.002)
    assert slow.repeats == 1


@pytest.mark.parametrize(
    ("before_ms", "script_ms", "n"),
    [
        ((), [6, 6, 6], 2),  # no faster than the last
        ((), [1] * 20, latency.MAX_SETTLING_TOKENS),  # ten milliseconds at least, eight tokens at most
        ((), [9, 7, 5, 4, 4, 4], 5),
        ((4, 4, 4), [9, 7, 4, 4], 3),  # as fast as usual
        ((4, 4, 4), [9, 9, 4, 4], 2),
        ((50,), [50, 50], 1),
    ],
)
def test_decodes_settle_until_they_are_no_longer_faster(
    before_ms: tuple[float, ...], script_ms: list[float], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, script = 0, iter(script_ms)

    def step() -> torch.Tensor:
        nonlocal now_ns
        now_ns += int(next(script) * 1e6)
        return torch.zeros(1)

    monkeypatch.setattr(latency, "perf_counter_ns", lambda: now_ns)
    timer = latency.Timer("decode", step, samples_s=[ms * 1e-3 for ms in before_ms])
    timer.settle()
    assert timer.n_forwards == n
    assert len(timer.samples_s) == len(before_ms)


def test_no_result_is_kept_into_the_next_forward() -> None:
    class Result:
        n_alive = 0

        def __init__(self) -> None:
            assert Result.n_alive == 0
            Result.n_alive += 1

        def __del__(self) -> None:
            Result.n_alive -= 1

    latency.Timer("decode", Result).run(5)  # type: ignore[arg-type]


class ScriptedTimer(latency.Timer):
    """Its forwards take no time; the fake clocks are told (milliseconds, of them lost) for each sample."""

    def __init__(self, name: str, clocks: FakeClocks, script: Iterator[tuple[float, float]]) -> None:
        super().__init__(name, lambda: torch.zeros(1))
        self.clocks, self.script = clocks, script

    def run(self, repeats: int) -> int:
        wall_ms, lost_ms = next(self.script)
        self.clocks.spend(wall_ms, lost_ms, involuntary=bool(lost_ms))
        return int(wall_ms * MS)

    def settle(self) -> None:
        self.run(1)


def run_script(prefills: Iterator, decodes: Iterator, protocol: Protocol):
    clocks = FakeClocks()
    gate = Gate(protocol, 1, None, clocks)
    made = ScriptedTimer("prefill", clocks, prefills), ScriptedTimer("decode", clocks, decodes)
    latency.take_samples(*made, protocol, gate=gate)
    verdicts = {timer.name: timer.verdict for timer in made}
    samples = {timer.name: timer.samples_s for timer in made}
    return *made, gate, gate.flags(verdicts, samples, swapped=False), clocks


STEADY, SCATTERED = [(10.0, 0.0)], [(10.0 + i, 0.0) for i in range(3)]
DISTURBED = (20.0, 9.0)


def test_sampling_ends_when_both_intervals_are_narrow() -> None:
    prefill, decode, gate, flags, clocks = run_script(itertools.cycle(STEADY), itertools.cycle(STEADY), Protocol())
    assert (len(prefill.samples_s), len(decode.samples_s)) == (6, 12)
    assert (gate.n_retried, flags, clocks.slept_s) == (0, (), [])


@pytest.mark.parametrize("scattered", [0, 1])
def test_sampling_ends_at_the_caps_when_one_interval_stays_wide(scattered: int) -> None:
    scripts = [itertools.cycle(STEADY), itertools.cycle(STEADY)]
    scripts[scattered] = itertools.cycle(SCATTERED)
    prefill, decode, _, flags, _ = run_script(*scripts, Protocol())
    assert (len(prefill.samples_s), len(decode.samples_s)) == (20, 40)
    assert flags == ()
    prefill, decode, *_ = run_script(itertools.cycle(STEADY), itertools.cycle(STEADY), Protocol(ci_fraction=0.0))
    assert (len(prefill.samples_s), len(decode.samples_s)) == (6, 12)  # all equal: no interval could be narrower


def test_a_noisy_value_gets_more_samples_within_bounds() -> None:
    noisy = [(10.0, 0.0), (14.0, 0.0)]
    prefill, decode, _, flags, _ = run_script(itertools.cycle(STEADY), itertools.cycle(noisy), Protocol())
    assert len(prefill.samples_s) == 20
    assert len(decode.samples_s) == 160
    assert flags == ("noisy",)
    calmer = itertools.chain(itertools.islice(itertools.cycle(noisy), 40), itertools.repeat((12.0, 0.0)))
    _, decode, _, flags, _ = run_script(itertools.cycle(STEADY), calmer, Protocol())
    assert 40 < len(decode.samples_s) < 100
    assert flags == ()
    exactly = Protocol(ci_fraction=0.0)
    assert len(run_script(itertools.cycle(STEADY), itertools.cycle(noisy), exactly)[1].samples_s) == 40


def test_the_extension_ends_after_a_second_of_forwards() -> None:
    slow = latency.Timer("decode", lambda: torch.zeros(1), samples_s=[1.0, 2.0] * 3)
    extension = latency.Extension(slow, slow)
    assert extension.wanted((2, 4)) == (2, 4)
    slow.forward_ns = int(0.6e9)
    assert extension.wanted((2, 4)) == (0, 0)  # 0.6 s of each


def test_disturbed_samples_are_taken_again_and_pauses_lie_between() -> None:
    disturbed = itertools.cycle([(10.0, 0.0), DISTURBED])
    prefill, decode, gate, flags, clocks = run_script(itertools.cycle(STEADY), disturbed, Protocol())
    assert flags == ()
    assert set(decode.kept_samples()) == {0.010}
    assert len(decode.kept_samples()) >= 12
    assert len(decode.samples_s) - len(decode.kept_samples()) >= 10
    assert 0 < gate.n_retried <= len(decode.samples_s) - len(decode.kept_samples())
    assert clocks.slept_s
    assert len(prefill.kept_samples()) == len(prefill.samples_s)


def test_retries_end_and_then_the_value_is_of_all_and_flagged() -> None:
    always = itertools.cycle([DISTURBED, (24.0, 9.0), (28.0, 9.0)])
    prefill, decode, gate, flags, _ = run_script(itertools.cycle(STEADY), always, Protocol())
    assert gate.n_retried == 30
    assert len(decode.samples_s) == 40
    assert decode.kept_samples() == decode.samples_s
    assert "contended" in flags
    assert len(prefill.samples_s) == 20
    patient = Protocol(max_retries=100)
    assert len(run_script(itertools.cycle(STEADY), always, patient)[1].samples_s) > 100
    hasty = Protocol(max_retries=0, ci_fraction=0.0)
    once = itertools.chain([(10.0, 0.0)] * 3, [DISTURBED], itertools.cycle(SCATTERED))
    _, decode, gate, flags, _ = run_script(itertools.cycle(SCATTERED), once, hasty)
    assert (len(decode.samples_s), len(decode.kept_samples()), gate.n_retried, flags) == (40, 39, 0, ())


def test_a_gate_watches_each_real_sample_at_little_cost() -> None:
    protocol = Protocol(prompt_tokens=12, context_tokens=20, min_sample_s=0.005)
    _, _, prefill, decode, shallow = timers(protocol)
    gate = Gate(protocol, 1)
    started = time.process_time()
    latency.take_samples(prefill, decode, protocol, gate=gate)
    latency.take_shallow_samples(shallow, protocol, gate)
    assert gate.monitoring_ns * 1e-9 < 0.1 * (time.process_time() - started) + 0.05
    for timer in (prefill, decode, shallow):
        assert len(timer.watches) == len(timer.samples_s) == len(timer.verdict.taints)
        for watch, sample in zip(timer.watches, timer.samples_s, strict=True):
            assert watch.wall_ns >= sample * timer.repeats * 1e9 - 1
    summary = gate.summary({"decode_latency_s": decode.verdict})
    assert summary["monitoring_s"] > 0
    json.dumps(summary)


BUSY = "while True: pass"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to share one core")
def test_a_busy_neighbour_on_the_same_core_is_seen() -> None:
    protocol = Protocol(prompt_tokens=12, context_tokens=20, min_sample_s=0.02, max_retries=5)
    _, _, prefill, decode, _ = timers(protocol)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", BUSY])
    try:
        gate = Gate(protocol, 1)
        latency.take_samples(prefill, decode, protocol, gate=gate)
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, before)
    verdicts = {timer.name: timer.verdict for timer in (prefill, decode)}
    samples = {timer.name: timer.samples_s for timer in (prefill, decode)}
    assert "contended" in gate.flags(verdicts, samples, swapped=False)
    assert decode.verdict.n_tainted > 0.8 * len(decode.samples_s)


MEASURING = """
import json, sys, time
sys.path.insert(0, {root!r})
import torch
from edge_lts.profile import latency
from edge_lts.quality import Gate
from edge_lts.records import Protocol

def spin():
    until = time.perf_counter() + 0.02
    while time.perf_counter() < until:
        pass
    return torch.zeros(1)

protocol = Protocol(ci_fraction=0.0)
gate = Gate(protocol, 1)
timers = latency.Timer("prefill", spin), latency.Timer("decode", spin)
latency.take_samples(*timers, protocol, lambda: print("round", flush=True), gate)
print(json.dumps([[len(timer.samples_s), timer.verdict.taints] for timer in timers]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_process_that_was_stopped_knows_which_samples_were_frozen() -> None:
    root = str(Path(latency.__file__).parents[2])
    child = subprocess.Popen([sys.executable, "-c", MEASURING.format(root=root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "round\n"
        for _ in range(3):
            time.sleep(0.1)
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.15)
            os.kill(child.pid, signal.SIGCONT)
        lines = child.communicate(timeout=60)[0].splitlines()
    finally:
        child.kill()
        child.wait()
    found = json.loads(lines[-1])
    n_frozen = sum("frozen" in taints for _, samples in found for taints in samples)
    assert 1 <= n_frozen <= 4  # a stop may fall between two samples


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_logits_that_are_not_finite_fail_the_candidate(value: float) -> None:
    model, _, prefill, decode, _ = timers(SHORT)
    model.decoder.norm.bias.fill_(value)
    for timer in (prefill, decode):
        with pytest.raises(EvaluationError, match=timer.name) as caught:
            timer.check()
        assert caught.value.kind == "nonfinite"


@pytest.mark.parametrize("arch", [ARCH, ARCH.replace(backbone="transformer-xl", embedding_factor=2)])
def test_the_anchor_is_timed_once_a_round(arch: Architecture) -> None:
    found = anchor.Anchor(arch, SHORT)
    for _ in range(2):
        found.sample()
    assert {name: len(timer.samples_s) for name, timer in found._timers.items()} == {
        "prefill_latency_s": 2,
        "decode_latency_s": 6,
        "stream_s": 2,
    }
    medians = found.medians_s()
    assert set(medians) == set(ANCHORS)
    assert all(0 < seconds < 10 for seconds in medians.values())


def test_garbage_collector_rests_and_wakes() -> None:
    with latency.resting_garbage_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), latency.resting_garbage_collector():
        raise KeyError
    assert gc.isenabled()


def test_cheap_weights_are_as_fast_as_initialised_ones() -> None:
    """Latency within 3 %: paired, interleaved, in random order; the machine gets five tries to be quiet."""
    layers = (LayerSpec(d_inner=1024, n_head=4),) * 3
    arch = Architecture(backbone="gpt2", d_model=256, layers=layers, vocab_size=4000, max_seq_len=128)
    protocol = Protocol(prompt_tokens=48, context_tokens=48)
    cheap, proper = timers(protocol, arch), timers(protocol, arch)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in proper[0].named_parameters():  # as GPT-2 is initialised
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    rng = np.random.default_rng(1)
    for kind in (2, 3):  # prefill, decode
        assert any(abs(relative_cost(cheap[kind], proper[kind], rng) - 1) < 0.03 for _ in range(5))


def relative_cost(one: latency.Timer, other: latency.Timer, rng: np.random.Generator) -> float:
    """Median over pairs of neighbours of (time of one / time of the other)."""
    for timer in (one, other):
        timer.warm_up(2, 0.004)
        timer.repeats = max(one.repeats, other.repeats)
    ratios = []
    for _ in range(40):
        times = {}
        for index in rng.permutation(2):
            times[int(index)] = (one, other)[index].run(one.repeats)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def test_filling_costs_far_less_than_drawing_numbers() -> None:
    arch = Architecture(backbone="gpt2", d_model=512, layers=(LayerSpec(d_inner=2048, n_head=8),) * 2)
    model = build_model(arch)
    weights.fill_weights(model)  # every page is there now, for both

    def fastest(fill) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            fill()
            times.append(time.perf_counter() - started)
        return min(times)

    copying = fastest(lambda: weights.fill_weights(model))
    drawing = fastest(lambda: [parameter.normal_() for parameter in model.parameters()])
    assert copying < drawing / 3


STATUS = """Name:\tpython3
VmPeak:\t 9000 kB
VmHWM:\t 5000 kB
VmRSS:\t 4000 kB
VmData:\t 3000 kB
VmSwap:\t 100 kB
Threads:\t2
"""


def test_status_is_read_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text(STATUS)
    expected = memory.MemoryStatus(
        rss_bytes=4000 * 1024, peak_rss_bytes=5000 * 1024, swap_bytes=100 * 1024, data_bytes=3000 * 1024
    )
    assert memory.read_status(str(path)) == expected
    path.write_text(STATUS.replace("VmSwap", "VmOther"))
    swapless = memory.read_status(str(path))
    assert swapless is not None
    assert swapless.swap_bytes == 0


@pytest.mark.parametrize("text", [None, "", "VmRSS: many kB\nVmHWM: 1 kB\n", "VmRSS: 1 kB\n", "VmHWM:\nVmRSS:\n"])
def test_status_that_says_nothing_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "status"
    if text is not None:
        path.write_text(text)
    assert memory.read_status(str(path)) is None
    assert memory.read_exact_rss(str(path)) is None
    assert memory.reset_watermark(str(tmp_path / "missing" / "clear_refs")) is False


def test_without_proc_nothing_is_measured_and_nothing_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_status", lambda: None)
    monkeypatch.setattr(memory, "read_exact_rss", lambda: None)
    monkeypatch.setattr(memory, "reset_watermark", lambda: False)
    meter = memory.MemoryMeter()
    meter.end_loading()
    meter.end_running()
    meter.end_timing()
    data = meter.to_json()
    assert meter.running_peak_bytes is None
    assert meter.data_bytes is None
    assert not meter.swapped_bytes
    for name, value in data.items():
        assert value is None or not name.endswith("_bytes") or name == "page_size_bytes", name
    assert data["is_watermark_reset"] is False


def test_swapped_pages_count_as_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(rss: int, peak: int, swap: int) -> memory.MemoryStatus:
        return memory.MemoryStatus(rss_bytes=rss, peak_rss_bytes=peak, swap_bytes=swap, data_bytes=0)

    readings = iter([status(100, 100, 5), status(300, 320, 5), status(250, 330, 65), status(250, 400, 75)])
    monkeypatch.setattr(memory, "read_status", lambda: next(readings))
    monkeypatch.setattr(memory, "read_exact_rss", lambda: None)
    monkeypatch.setattr(memory, "reset_watermark", lambda: True)
    meter = memory.MemoryMeter()
    meter.end_loading()
    meter.end_running()
    meter.end_timing()
    data = meter.to_json()
    assert data["loading_peak_bytes"] == 220
    assert meter.running_peak_bytes == data["running_peak_bytes"] == 230 + 60
    assert data["rss_exact_bytes"] is None
    assert data["timed_peak_bytes"] == 300 + 70
    assert meter.swapped_bytes == data["swap_bytes"] == 70


@pytest.mark.parametrize(
    ("baseline", "behind", "peak"), [(100, 250, 230), (80, 250, 250), (104, 250, 226), (100, 263, 243)]
)
def test_the_peak_is_moved_by_what_the_kernels_counter_is_off(
    monkeypatch: pytest.MonkeyPatch, baseline: int, behind: int, peak: int
) -> None:
    readings = iter([(100, 100), (250, 330)])  # the counter: resident, watermark
    exact = iter([baseline, behind])

    def status() -> memory.MemoryStatus:
        rss, high = next(readings)
        return memory.MemoryStatus(rss_bytes=rss, peak_rss_bytes=high, swap_bytes=0, data_bytes=0)

    monkeypatch.setattr(memory, "read_status", status)
    monkeypatch.setattr(memory, "read_exact_rss", lambda: next(exact))
    monkeypatch.setattr(memory, "reset_watermark", lambda: True)
    meter = memory.MemoryMeter()
    meter.end_running()
    assert meter.running_peak_bytes == peak
    assert meter.to_json()["rss_exact_bytes"] == behind


def test_the_peak_is_taken_over_two_rounds() -> None:
    order: list[str] = []

    class Job:
        def __init__(self, name: str) -> None:
            self.name = name

        def check(self) -> None:
            order.append(self.name)

    memory.run_twice(Job("prefill"), Job("decode"))
    assert order == ["prefill", "decode"] * 2


def test_a_candidate_larger_than_what_is_available_is_refused_with_the_numbers(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemFree:  10 kB\nMemAvailable:  1000 kB\n")
    memory.require_available(819_200, 0.2, str(meminfo))
    with pytest.raises(EvaluationError, match=r"not built.*819201 bytes.*1024000 are available.*0\.2") as caught:
        memory.require_available(819_201, 0.2, str(meminfo))
    assert caught.value.kind == "oom"
    meminfo.write_text("MemTotal:  4000 kB\n")
    memory.require_available(1 << 40, 0.2, str(meminfo))
    memory.require_available(1 << 40, 0.2, str(tmp_path / "nowhere"))


@pytest.mark.skipif(memory.read_status() is None, reason="needs /proc/self/status")
def test_meter_sees_what_is_written_and_forgets_what_was_loaded() -> None:
    def pages(n_bytes: int) -> mmap.mmap:  # not malloc: this process's heap may have free blocks of any size
        area = mmap.mmap(-1, n_bytes)
        area[:: mmap.PAGESIZE] = b"1" * (n_bytes // mmap.PAGESIZE)
        return area

    size = 64 << 20
    meter = memory.MemoryMeter()
    kept = pages(size)
    pages(size).close()
    meter.end_loading()
    pages(size // 2).close()
    meter.end_running()
    data = meter.to_json()
    assert abs(int(data["loading_peak_bytes"] or 0) - 2 * size) < 3 << 20
    if data["is_watermark_reset"]:
        assert abs((meter.running_peak_bytes or 0) - 1.5 * size) < 3 << 20
    kept.close()

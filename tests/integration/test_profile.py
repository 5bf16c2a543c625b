"""Tokens, weights, blocks and watermarks: the parts of the profiler, in this process."""

import gc
import importlib
import math
import mmap
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EvaluationError
from edge_lts.records import Protocol
from edge_lts.speed import ANCHORS
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

from edge_lts.model import build_model  # noqa: E402  (after the check that torch is there)
from edge_lts.profile import anchor, latency, memory, weights  # noqa: E402

pytestmark = pytest.mark.torch

ARCH = Architecture(
    backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=128, n_head=2),), vocab_size=300, max_seq_len=64
)
SHORT = Protocol(prompt_tokens=12, context_tokens=20, prefill_samples=3, decode_samples=7, min_sample_s=0.0)


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
    # one check, two warm-ups, the samples, and before each of three rounds one untimed token
    assert (prefill.n_forwards, decode.n_forwards) == (1 + 2 + 3, 1 + 2 + 7 + 3)
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


def test_no_result_is_kept_into_the_next_forward() -> None:
    class Result:
        n_alive = 0

        def __init__(self) -> None:
            assert Result.n_alive == 0
            Result.n_alive += 1

        def __del__(self) -> None:
            Result.n_alive -= 1

    latency.Timer("decode", Result).run(5)  # type: ignore[arg-type]


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
    assert medians["decode_latency_s"] < medians["prefill_latency_s"]


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
    monkeypatch.setattr(memory, "reset_watermark", lambda: True)
    meter = memory.MemoryMeter()
    meter.end_loading()
    meter.end_running()
    meter.end_timing()
    data = meter.to_json()
    assert data["loading_peak_bytes"] == 220
    assert meter.running_peak_bytes == data["running_peak_bytes"] == 230 + 60
    assert data["timed_peak_bytes"] == 300 + 70
    assert meter.swapped_bytes == data["swap_bytes"] == 70


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

"""The whole way of one candidate: a real fork server, real torch, real watermarks."""

import importlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.errors import EvaluationError
from edge_lts.footprint import cache_bytes, cache_tokens, predicted_bytes, weight_bytes, working_set_bytes
from edge_lts.measurer import Measurer
from edge_lts.profile.memory import read_status
from edge_lts.records import NOTES, TAINTS, Evaluation, Failure, Measurement, Protocol, outcome_from_json
from tests.support import is_required

torch = importlib.import_module("torch") if is_required("torch") else pytest.importorskip("torch")

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
MB = 1_000_000
PROTOCOL = Protocol(threads=2, prompt_tokens=64, context_tokens=40, prefill_samples=6, decode_samples=8)
SMALL = Architecture(
    backbone="gpt2",
    d_model=128,
    layers=(LayerSpec(d_inner=256, n_head=2), LayerSpec(d_inner=320, n_head=4)),
    max_seq_len=128,
)
# The real evaluator, except that candidate 1 is allowed too little memory: the client would refuse it by formula.
SERVER = """
import dataclasses, sys
from edge_lts.profile import server
version, evaluate = server._load_evaluator()

def with_limit(request):
    limit = 4 << 20 if request.candidate_id == 1 else request.memory_limit_bytes
    return evaluate(dataclasses.replace(request, memory_limit_bytes=limit))

sys.exit(server.serve(sys.stdin.buffer, sys.stdout.buffer, evaluate=with_limit))
"""
needs_proc = pytest.mark.skipif(read_status() is None, reason="needs /proc/self/status")


def command(code: str = SERVER) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    with tempfile.TemporaryFile() as log:
        with Measurer(command(), PROTOCOL, candidate_timeout_s=240, memory_limit_bytes=2 << 30, log=log) as started:
            yield started
        log.seek(0)
        assert b"Traceback" not in log.read()


def measured(measurer: Measurer, arch: Architecture) -> Evaluation:
    outcome = measurer.measure(0, arch)
    assert isinstance(outcome, Evaluation), outcome
    return outcome


def test_two_threads_work_in_every_child_and_the_record_is_whole(measurer: Measurer) -> None:
    for _ in range(2):
        outcome = measured(measurer, SMALL)
    assert outcome_from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    assert outcome.objectives["decoder_params"] == SMALL.decoder_params
    quality = outcome.conditions["quality"]
    for name, fewest in (("decode_latency_s", 8), ("prefill_latency_s", 6)):
        samples, value = outcome.samples[name], outcome.objectives[name]
        assert isinstance(value, Measurement)
        assert len(samples) >= fewest
        n_tainted = len(quality["tainted_samples"][name])
        assert value.n == len(samples) - n_tainted or set(outcome.flags) & set(quality["taints"])
        assert value.ci95 is not None
        assert min(samples) <= value.ci95[0] <= value.median <= value.ci95[1] <= max(samples)
        assert value.pi95 is None
    conditions = outcome.conditions
    assert conditions["threads"] == 2
    assert conditions["torch"] == str(torch.__version__)
    assert conditions["method_version"] == PROTOCOL.method_version
    assert conditions["block_sizes"]["decode"] >= 1
    assert 0 < conditions["forward_s"] < conditions["child_s"] < conditions["total_s"]
    assert math.isclose(conditions["overhead_s"], conditions["total_s"] - conditions["forward_s"])
    assert conditions["cpu_s"] > 0
    assert 0 < quality["monitoring_s"] < conditions["wall_s"]
    assert conditions["health"]["throttle"].keys() == {"now", "before", "after", "source"}
    assert conditions["memory"]["predicted_bytes"] == predicted_bytes(SMALL, PROTOCOL)
    assert 0 < conditions["framework"]["dispatch_share"] <= 1
    assert conditions["framework"]["bandwidth_floor_s"] > 0
    assert set(outcome.flags) <= {*TAINTS, *NOTES}


def test_out_of_memory_is_a_failure_and_the_next_candidate_works(measurer: Measurer) -> None:
    outcome = measurer.measure(1, SMALL)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "oom"
    assert "out of memory" in outcome.message
    assert str(4 << 20) in outcome.message
    measured(measurer, SMALL)


def test_a_prompt_beyond_the_positions_is_unsupported(measurer: Measurer) -> None:
    outcome = measurer.measure(0, SMALL.replace(max_seq_len=63))
    assert isinstance(outcome, Failure)
    assert outcome.kind == "unsupported"
    assert "prompt_tokens 64" in outcome.message


@pytest.mark.parametrize("backbone", ["gpt2", "opt", "transformer-xl"])
def test_adaptive_and_relative_positions_are_measured_like_the_rest(measurer: Measurer, backbone: str) -> None:
    arch = SMALL.replace(backbone=backbone, embedding_factor=5, vocab_size=50257)
    if backbone == "transformer-xl":
        arch = arch.replace(max_seq_len=1)  # of no consequence: positions are relative
    memory = measured(measurer, arch).conditions["memory"]
    assert memory["weights_bytes"] == weight_bytes(arch)
    assert memory["cache_bytes"] == cache_bytes(arch, cache_tokens(arch, PROTOCOL))


def test_context_beyond_the_positions_is_unsupported() -> None:
    from edge_lts.evaluator import evaluate

    protocol = Protocol(prompt_tokens=8, context_tokens=128)
    with pytest.raises(EvaluationError, match="context_tokens 128 needs 129 positions; max_seq_len is 128") as caught:
        evaluate(SMALL, protocol)
    assert caught.value.kind == "unsupported"


@needs_proc
@pytest.mark.parametrize(
    "arch",
    [
        SMALL,
        Architecture(
            backbone="gpt2",
            d_model=512,
            layers=(LayerSpec(d_inner=1024, n_head=8), LayerSpec(d_inner=2048, n_head=4)),
            d_embed=256,
            vocab_size=20_000,
            tie_embeddings=False,
        ),
    ],
)
def test_peak_is_weights_and_cache_and_little_else(measurer: Measurer, arch: Architecture) -> None:
    memory = measured(measurer, arch).conditions["memory"]
    weights, cache = weight_bytes(arch), cache_bytes(arch, PROTOCOL.prompt_tokens)
    assert memory["weights_bytes"] == weights
    assert memory["cache_bytes"] == cache
    assert memory["is_emulator_counted"] is False
    batching = 64 * memory["page_size_bytes"] * (os.cpu_count() or 1)
    assert memory["loading_peak_bytes"] >= weights - batching
    assert memory["running_peak_bytes"] >= weights + cache - batching
    assert memory["timed_peak_bytes"] >= memory["running_peak_bytes"]
    assert memory["running_peak_bytes"] >= memory["rss_bytes"] - memory["baseline_bytes"]
    assert abs(memory["rss_bytes"] - memory["rss_exact_bytes"]) <= batching
    expected = weights + cache + working_set_bytes(arch, PROTOCOL)
    # Beyond the tensors there are only the matrix library's buffers, a few MB.
    assert memory["running_peak_bytes"] - expected < 0.05 * expected + 6 * MB


@needs_proc
def test_peak_repeats_from_process_to_process(measurer: Measurer) -> None:
    arch = Architecture(backbone="gpt2", d_model=256, layers=(LayerSpec(d_inner=1024, n_head=4),) * 2, max_seq_len=128)
    peaks = [measured(measurer, arch).conditions["memory"]["running_peak_bytes"] for _ in range(3)]
    assert max(peaks) - min(peaks) < 2.5 * MB


@needs_proc
def test_an_observer_from_outside_sees_the_same_peak(measurer: Measurer) -> None:
    arch = Architecture(backbone="gpt2", d_model=384, layers=(LayerSpec(d_inner=768, n_head=4),) * 4, vocab_size=30_000)
    seen = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            pid = measurer.child_pid
            status = None if pid is None else read_status(f"/proc/{pid}/status")
            if status is not None:
                seen[0] = max(seen[0], status.peak_rss_bytes)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        memory = measured(measurer, arch).conditions["memory"]
    finally:
        is_over.set()
        watcher.join()
    own = memory["baseline_bytes"] + max(memory["loading_peak_bytes"], memory["timed_peak_bytes"])
    assert abs(seen[0] - own) < 2 * MB + 0.02 * own


def test_the_papers_protocol_computes_all_logits_on_one_thread() -> None:
    protocol = Protocol.named("lts", prompt_tokens=64, context_tokens=40, prefill_samples=3, decode_samples=3)
    code = "import sys; from edge_lts.profile.server import serve; sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer))"
    with (
        tempfile.TemporaryFile() as log,
        Measurer(
            command(code), protocol, candidate_timeout_s=240, memory_limit_bytes=None, log=log, is_fork_safe=False
        ) as measurer,
    ):
        assert measurer.start()["torch"] == str(torch.__version__)
        outcome = measured(measurer, SMALL)
    assert outcome.conditions["threads"] == 1
    assert outcome.conditions["isolation"] == "process"
    memory = outcome.conditions["memory"]
    if memory["running_peak_bytes"] is not None:
        logits = 4 * 64 * SMALL.vocab_size
        assert memory["running_peak_bytes"] > memory["weights_bytes"] + memory["cache_bytes"] + 0.95 * logits

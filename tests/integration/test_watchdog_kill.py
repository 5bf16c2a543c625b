"""The server ends a child that exhausts the board's memory, and serves the next."""

import importlib
import sys
import tempfile
from pathlib import Path

import pytest

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.measurer import Measurer
from edge_lts.records import Evaluation, Failure, Protocol
from tests.integration.test_measurer import linux

ROOT = Path(__file__).parents[2]
ARCH = Architecture(backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=64, n_head=1),))
# The machine that the watchdog sees has 1000 MB; whatever a child has beyond 100 MB is taken from its last 200.
SERVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import dataclasses, time
from edge_lts.profile import watchdog
from edge_lts.profile.server import serve
from edge_lts.records import Evaluation

MB = 1 << 20

def small_machine(pid):
    found = watchdog.read(pid)
    if found is None:
        return None
    size = found.rss_bytes + found.swap_bytes
    return dataclasses.replace(found, total_bytes=1000 * MB, available_bytes=200 * MB - max(0, size - 100 * MB))

def evaluate(request):
    kept = []
    if request.candidate_id == 1:
        for _ in range(400):
            kept.append(b"x" * (4 * MB))
            time.sleep(0.01)
    common = dict(candidate_id=request.candidate_id, architecture=request.architecture, purpose=request.purpose)
    return Evaluation(objectives={{}}, samples={{}}, conditions={{"forward_s": 0.0}}, **common)

sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer, evaluate=evaluate,
               watch=lambda pid: watchdog.Watchdog(pid, small_machine)))
"""


@linux
def test_a_child_that_eats_the_memory_is_killed_as_out_of_memory_and_the_next_one_lives() -> None:
    if not importlib.import_module("edge_lts.profile.watchdog").read(1):
        pytest.skip("needs /proc")
    with tempfile.TemporaryFile() as log:
        protocol = Protocol(threads=1)
        command = [sys.executable, "-c", SERVER]
        with Measurer(command, protocol, candidate_timeout_s=60, memory_limit_bytes=None, log=log) as measurer:
            eaten = measurer.measure(1, ARCH)
            assert isinstance(eaten, Failure), eaten
            assert eaten.kind == "oom"
            assert "killed by edge-lts" in eaten.message
            assert "still grew" in eaten.message
            assert isinstance(measurer.measure(0, ARCH), Evaluation)

"""A whole arm64 board with its own kernel: what needs swap, zram and memory that really runs out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.board.emulated import REPOSITORY
from tests.board.whole import WholeBoard, required_parts

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

MEMORY_BYTES = 512 << 20
PATIENCE_S = 180  # zram boards without a watchdog have stood still for ten minutes
# Runs on the board, beside the sources. The fork server and its watchdog are real; what they measure is a pretence that
# needs neither torch nor numpy: candidate 0 fills memory with what zram cannot compress, the others do nothing.
SCRIPT = """
import json, os, sys, time
sys.path.insert(0, os.getcwd())
from edge_lts.arch import Architecture, LayerSpec
from edge_lts.measurer import Measurer
from edge_lts.records import Evaluation, Protocol

def evaluate(request):
    if request.candidate_id == 0:
        block, kept = os.urandom(1 << 20), []
        while True:
            kept.append(bytearray(block))
    return Evaluation(candidate_id=request.candidate_id, architecture=request.architecture,
                      objectives={"decoder_params": 1}, samples={}, conditions={})

if sys.argv[1:] == ["serve"]:
    from edge_lts.profile.server import serve
    sys.exit(serve(sys.stdin.buffer, sys.stdout.buffer, evaluate=evaluate))

arch = Architecture(backbone="gpt2", d_model=64, layers=(LayerSpec(d_inner=64, n_head=1),))
with open("log.txt", "ab") as log, Measurer([sys.executable, __file__], Protocol(threads=1), candidate_timeout_s=900,
                                            memory_limit_bytes=None, log=log) as measurer:
    for number in (0, 1):
        begun = time.monotonic()
        outcome = measurer.measure(number, arch)
        print(json.dumps({"kind": getattr(outcome, "kind", None), "message": getattr(outcome, "message", ""),
                          "took_s": time.monotonic() - begun}), flush=True)
"""


@pytest.fixture(scope="module")
def board() -> Iterator[WholeBoard]:
    with WholeBoard(required_parts(), memory_bytes=MEMORY_BYTES) as board:
        yield board


def test_it_is_a_machine_of_its_own_and_keeps_its_disk_when_the_plug_is_pulled(board: WholeBoard) -> None:
    first = board.ssh("cat /proc/sys/kernel/random/boot_id; uname -m; echo kept > note; sync").stdout.split()
    assert first[1] == "aarch64"
    board.reboot()
    second = board.ssh("cat /proc/sys/kernel/random/boot_id note").stdout.split()
    assert second[0] != first[0]
    assert second[1] == "kept"


def test_a_candidate_that_fills_the_memory_ends_before_a_board_with_zram_hangs(
    board: WholeBoard, tmp_path: Path
) -> None:
    board.ssh(
        "sudo modprobe zram && echo 512M | sudo tee /sys/block/zram0/disksize && "
        "sudo mkswap -q /dev/zram0 && sudo swapon -p 100 /dev/zram0"
    )
    script = tmp_path / "fill_memory.py"
    script.write_text(SCRIPT)
    board.copy_to_board(REPOSITORY / "edge_lts", script)
    done = board.ssh("python3 fill_memory.py", timeout_s=900)
    filled, next_one = (json.loads(line) for line in done.stdout.splitlines())
    assert filled["kind"] == "oom", filled
    assert filled["took_s"] < PATIENCE_S
    assert next_one["kind"] is None, next_one
    assert board.ssh("true").returncode == 0

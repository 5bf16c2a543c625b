"""Dockerfile.arm64 holds what boards get, builds, and its torch runs as on a Cortex-A72."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.board.emulated import REPOSITORY, has_command
from tests.support import require

DOCKERFILE = REPOSITORY / "Dockerfile.arm64"
LOCK = REPOSITORY / "host" / "edge_lts_host" / "data" / "wheels.lock.json"


def test_pins_the_wheels_that_deploy_gives_a_board_with_python_3_11() -> None:
    pinned = set(re.findall(r"'(\w+)==(\S+) --hash=sha256:(\w{64})'", DOCKERFILE.read_text(encoding="utf-8")))
    (locked,) = (each for each in json.loads(LOCK.read_text(encoding="utf-8"))["sets"] if each["python"] == "3.11")
    assert pinned == {(wheel["name"], wheel["version"], wheel["sha256"]) for wheel in locked["wheels"]}


# Building takes some minutes and is cached by the content of everything it is built from; the import runs every time.
@pytest.mark.arm64
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("arm64_root")
def test_the_image_imports_the_pinned_torch_on_aarch64() -> None:
    require("arm64", has_command("buildah"), "missing buildah; run scripts/system_packages.sh")
    script = REPOSITORY / "scripts" / "build_image.sh"
    built = subprocess.run([script, "WITH_SSHD=1"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert built.stdout.split() == ["torch", "2.9.1+cpu", "on", "aarch64"]

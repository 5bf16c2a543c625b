"""Write host/edge_lts_host/data/wheels.lock.json: which wheels a 64-bit ARM board gets, by Python version.

Asks pip for exactly the files that such a board would take, downloads them to a temporary directory and records name,
version, file name, SHA-256 and size; no address is stored, so that whoever fetches them uses the indexes their own pip
is configured for. torch 2.9.1 is the last PyPI wheel for aarch64 that is built for the CPU and runs on ARMv8.0
(docs/targets.md): change it only with a run on such a board. numpy 2.2 is the last for Python 3.10. About 620 MB of
downloads.

usage: python scripts/lock_wheels.py [--check]     --check: compare with the file in the repository, write nothing
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge_lts_host.wheelhouse import LOCK_FILE, download_options

MACHINE = "aarch64"
INSTALLER = "pip==26.3"
DEVICE = {
    "3.10": ("torch==2.9.1", "numpy==2.2.6", "typing_extensions==4.16.0"),
    "3.11": ("torch==2.9.1", "numpy==2.4.6", "typing_extensions==4.16.0"),
    "3.12": ("torch==2.9.1", "numpy==2.4.6", "typing_extensions==4.16.0"),
    "3.13": ("torch==2.9.1", "numpy==2.4.6", "typing_extensions==4.16.0"),
    "3.14": ("torch==2.9.1", "numpy==2.4.6", "typing_extensions==4.16.0"),
}


def fetch(python: str, requirement: str) -> dict[str, Any]:
    """The one wheel that answers `requirement` on such a board."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", *download_options(python, MACHINE), "-d", directory]
        subprocess.run([*argv, requirement], check=True)
        (path,) = Path(directory).iterdir()
        data = path.read_bytes()
    name, version = requirement.split("==")
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "version": version, "file": path.name, "sha256": digest, "size_bytes": len(data)}


def main() -> int:
    sets = [
        {
            "python": python,
            "machine": MACHINE,
            "installer": fetch(python, INSTALLER),
            "wheels": [fetch(python, requirement) for requirement in requirements],
        }
        for python, requirements in DEVICE.items()
    ]
    text = json.dumps({"schema_version": 1, "sets": sets}, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        is_same = LOCK_FILE.read_text(encoding="utf-8") == text
        sys.stderr.write("the lock is up to date\n" if is_same else f"{LOCK_FILE} differs from what pip serves\n")
        return 0 if is_same else 1
    LOCK_FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

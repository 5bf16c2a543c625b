r"""The payload: modules of `edge_lts` and a `__main__.py` that imports them, as one zipapp, the same bytes from a wheel
or a checkout.

There are two of one set of sources. The base one searches and measures and has what every other verb needs; the full
one has the rooms of ENTRIES as well, for those who ask for them: trainings, for example. What belongs to which is
computed from the imports (closure.py, docs/decisions/0007-two-payloads.md).

All sources are one member, a JSON object of names and texts compressed by LZMA, because together they take a third less
than one by one (docs/decisions/0005-one-member-payload.md, 0006-lzma-payload.md); `onboard/agent_main.py` imports from
it.

Comments and docstrings stay here: they are half of the sources, nothing reads them on the board, and a serial line is
slow. What is left keeps its line numbers, so a traceback from a board still points into the checkout. Entries are
sorted by name and carry the earliest timestamp zip knows, mode 0644 and no extra fields; only the sources count. Two
versions of liblzma may compress the same sources to different bytes. That is accepted: the name is the hash of the
bytes, so anybody can check it with sha256sum, and a workstation with another liblzma pushes the agent once more, beside
the first, and never mistakes one for the other. What decides whether numbers may be compared is
`METHOD_VERSION`, not this hash.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import itertools
import json
import sys
import threading
import tokenize
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_lts_host import onboard
from edge_lts_host.closure import closure, modules
from edge_lts_host.errors import HostError

if TYPE_CHECKING:
    from edge_lts.records import RunSpec

BEGIN = "edge_lts.__main__"
# What only the full payload has: how it is asked for (a verb of the agent, a strategy, a backbone), and the modules or
# rooms that the rest of the agent enters it by, in functions. What is behind follows from the imports.
ENTRIES = {
    "train": ("edge_lts.trainer",),
    "score": ("edge_lts.trainer",),
    "evolve": ("edge_lts.evolution",),
    "program": ("edge_lts.program", "edge_lts.model.program"),
}
MAX_PAYLOAD_BYTES = 128 * 1024
MAX_FULL_BYTES = 192 * 1024
SOURCES = "edge_lts.json.xz"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The zipapp, its SHA-256 in hexadecimal, and its name on the board."""

    data: bytes
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.sha256[:12]}.pyz"


def source_dir() -> Path:
    """Where this interpreter finds `edge_lts`, without importing it. Raises HostError when it is not a plain folder."""
    spec = importlib.util.find_spec("edge_lts")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if len(folders) != 1 or not (Path(folders[0]) / "__main__.py").is_file():
        raise HostError(f"cannot make the payload: {folders} is not one folder with an agent; install edge-lts anew")
    return Path(folders[0])


def build_payload(*asked: str) -> Payload:
    """The agent of the installed edge_lts: the full one where a word of ENTRIES is `asked` for, else the base one.

    Made once in a process. Raises HostError.
    """
    with _LOCK:  # boards are served by threads: the first makes it for all
        return _installed(not ENTRIES.keys().isdisjoint(asked))


@functools.lru_cache(maxsize=2)
def _installed(is_full: bool) -> Payload:
    return make_payload(source_dir(), is_full=is_full)


def payload_for(spec: RunSpec) -> Payload:
    """The agent that does this run: asked again, as by `resume`, it is the one that began it."""
    backbones = [each.architecture.backbone for each in spec.baselines]
    return build_payload(spec.strategy, str(spec.space.get("backbone")), *backbones)


def make_payload(folder: Path, *, is_full: bool = False) -> Payload:
    """One from the package in `folder`. Raises HostError when it is too large."""
    paths = modules(folder)
    texts = {name: path.read_bytes() for name, path in paths.items()}
    limit_bytes, kind = (MAX_FULL_BYTES, "full") if is_full else (MAX_PAYLOAD_BYTES, "base")
    names = closure(texts, BEGIN, without=() if is_full else {room for rooms in ENTRIES.values() for room in rooms})
    sources = {
        paths[name].relative_to(folder.parent).as_posix(): strip_talk(texts[name]).decode("utf-8") for name in names
    }
    text = json.dumps(sources, sort_keys=True, ensure_ascii=False, indent=0)
    files = {SOURCES: _compressed(text.encode("utf-8")), "__main__.py": strip_talk(onboard.source("agent_main"))}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=_EARLIEST)
            info.create_system = 3  # Unix, also on macOS: it says how to read the mode
            info.external_attr = _MODE << 16
            info.compress_type = zipfile.ZIP_STORED if name == SOURCES else zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])
    data = buffer.getvalue()
    if len(data) > limit_bytes:
        raise HostError(
            f"the {kind} payload has {len(data)} bytes, more than {limit_bytes}: is there anything else in {folder}?"
        )
    return Payload(data=data, sha256=hashlib.sha256(data).hexdigest())


@functools.lru_cache(maxsize=2)
def _compressed(text: bytes) -> bytes:
    try:
        import lzma
    except ImportError as exc:
        raise HostError(
            f"the Python at {sys.executable} was built without lzma, which packs the agent: use one that has it, such "
            "as the system's own"
        ) from exc
    return lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)


@functools.lru_cache(maxsize=512)  # pure, and a process may build the payload more than once
def strip_talk(source: bytes) -> bytes:
    """A Python source without its comments and docstrings, every other token on its old line.

    A docstring is a string that is a whole statement; it becomes `""`, so that a body of nothing else stays valid.
    """
    lines = source.decode("utf-8").splitlines(keepends=True)
    tokens = [token for token in tokenize.tokenize(io.BytesIO(source).readline) if token.type != tokenize.NL]
    layout = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}
    cuts: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    previous = tokenize.ENCODING
    for token, following in itertools.pairwise(tokens):
        if token.type == tokenize.COMMENT:
            cuts.append((token.start, token.end, ""))
            continue
        is_last = following.type in (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER)
        if token.type == tokenize.STRING and previous in layout and is_last:
            cuts.append((token.start, token.end, '""'))
        previous = token.type
    for (first, start), (last, end), text in reversed(cuts):
        head, tail = lines[first - 1][:start], lines[last - 1][end:]
        lines[first - 1 : last] = [(head + text + tail).rstrip() + "\n", *["\n"] * (last - first)]
    return "".join(lines).encode("utf-8")

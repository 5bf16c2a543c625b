"""Text to train on: read, cleared of repeats, split into what is trained on and what is held out, made token ids.

`pydoc`, the default, is `pydoc_data.topics`, which every Python brings: the language reference of that version, some
380 kB of English once repeats are gone (PSF licence). Anything else is a file or a folder of UTF-8 text, plain or
gzip (`.gz`, `.dz`). docs/quality.md names larger ones that Debian packages.

Held out is every tenth section of `SECTION_CHARACTERS`, so that it is spread over the whole text. A paragraph of some
length that has occurred before is dropped wherever it comes again: what is held out was never trained on.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_lts_host.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.uint16]

DEFAULT = "pydoc"
MAX_TEXT_BYTES = 512 << 20
LEAST_TEXT_BYTES = 20_000
SECTION_CHARACTERS = 4096
HELD_OUT_EVERY = 10
REPEATED_BYTES = 40  # shorter paragraphs may come again: headings, "See also"
BYTES = "bytes"
N_BYTES = 256
MAX_VOCABULARY = 1 << 16
_COMPRESSED = (".gz", ".dz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """`training` and `validation` are UTF-8. `dropped_bytes` came a second time; `skipped_files` were no UTF-8."""

    name: str
    training: bytes
    validation: bytes
    dropped_bytes: int = 0
    skipped_files: int = 0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.training + b"\0" + self.validation).hexdigest()


class Vocabulary(Protocol):
    """Text to ids from 0 to size - 1."""

    name: str
    size: int

    def encode(self, text: bytes) -> Ids: ...

    def decode(self, ids: Ids) -> bytes: ...


def load_corpus(name: str = DEFAULT) -> Corpus:
    """`name` as --corpus gives it. Raises UsageError for what cannot be read, is no text or is too short."""
    skipped = 0
    if name == DEFAULT:
        texts = list(_topics())
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(f"--corpus: there is no {name!s:.200}; name a text file or a folder, or {DEFAULT}")
        texts, skipped = _folder(path) if path.is_dir() else ([_file(path)], 0)
    return split(texts, Path(name).name or name, skipped_files=skipped)


def split(texts: list[str], name: str, *, skipped_files: int = 0) -> Corpus:
    """Both parts of these documents. Raises UsageError where hardly anything is left."""
    paragraphs, dropped = _first_time(texts)
    parts: tuple[list[str], list[str]] = ([], [])
    for index, section in enumerate(_sections(paragraphs)):
        parts[index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(section)
    training, validation = ("".join(part).encode("utf-8") for part in parts)
    if len(training) < LEAST_TEXT_BYTES or not validation:
        raise UsageError(
            f"--corpus: {name!s:.100} has {len(training) + len(validation)} bytes of text without repeats; "
            f"at least {LEAST_TEXT_BYTES * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1)} are needed"
        )
    return Corpus(
        name=name, training=training, validation=validation, dropped_bytes=dropped, skipped_files=skipped_files
    )


def make_vocabulary(wanted: str, corpus: Corpus) -> Vocabulary:
    """`bytes`, or byte-pair encoding of so many tokens, learned from the text that is trained on. Raises UsageError."""
    if wanted == BYTES:
        return ByteVocabulary()
    try:
        size = int(wanted)
    except ValueError:
        size = 0
    if not N_BYTES < size <= MAX_VOCABULARY:
        raise UsageError(
            f"--vocabulary: must be {BYTES}, or a number of tokens from {N_BYTES + 1} to {MAX_VOCABULARY}, "
            f"not {wanted!r:.40}"
        )
    return BpeVocabulary.learned(corpus.training, size)


class ByteVocabulary:
    """Every byte a token: nothing to learn, nothing unknown."""

    name = BYTES
    size = N_BYTES

    def encode(self, text: bytes) -> Ids:
        import numpy as np

        return np.frombuffer(text, dtype=np.uint8).astype("<u2")

    def decode(self, ids: Ids) -> bytes:
        import numpy as np

        return ids.astype(np.uint8).tobytes()


class BpeVocabulary:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's on bytes) by the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size = int(tokenizer.get_vocab_size())
        self.name = f"bpe-{self.size}"

    @classmethod
    def learned(cls, text: bytes, size: int) -> BpeVocabulary:
        """From `text`; of fewer tokens where the text has no more pairs. Raises UsageError without the library."""
        try:
            import tokenizers
        except ImportError as exc:
            raise UsageError(
                "--vocabulary: byte-pair encoding needs the extra corpus: pip install 'edge-lts[corpus]', or take bytes"
            ) from exc
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.decode("utf-8").splitlines(keepends=True), trainer)
        return cls(tokenizer)

    def encode(self, text: bytes) -> Ids:
        import numpy as np

        ids = self._tokenizer.encode(text.decode("utf-8")).ids
        return np.array(ids, dtype="<u2")

    def decode(self, ids: Ids) -> bytes:
        decoded: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return decoded.encode("utf-8")


def _topics() -> Iterator[str]:
    from pydoc_data import topics

    for key in sorted(topics.topics):
        yield topics.topics[key]


def _folder(path: Path) -> tuple[list[str], int]:
    """All files below a folder that are UTF-8, in the order of their names; hidden ones are left out."""
    texts, skipped, n_bytes = [], 0, 0
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if hidden or file.is_symlink() or not file.is_file():
            continue
        try:
            texts.append(_file(file, MAX_TEXT_BYTES - n_bytes))
        except _NoTextError:
            skipped += 1
            continue
        n_bytes += len(texts[-1])
    if not texts:
        raise UsageError(f"--corpus: {path} holds no file of UTF-8 text")
    return texts, skipped


class _NoTextError(UsageError):
    """A file that is no UTF-8."""


def _file(path: Path, limit_bytes: int | None = None) -> str:
    """At most `limit_bytes` (MAX_TEXT_BYTES). Raises _NoTextError, or UsageError for what is unreadable or larger."""
    limit_bytes = MAX_TEXT_BYTES if limit_bytes is None else limit_bytes
    try:
        with gzip.open(path) if path.suffix in _COMPRESSED else path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except (OSError, EOFError) as exc:
        raise UsageError(f"--corpus: {path} cannot be read: {exc}") from exc
    if len(raw) > limit_bytes:
        raise UsageError(f"--corpus: {path}: more than {MAX_TEXT_BYTES >> 20} MiB of text are not read; give a part")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _NoTextError(f"--corpus: {path} is not UTF-8 (byte {exc.start})") from exc
    if "\0" in text[:4096]:
        raise _NoTextError(f"--corpus: {path} is no text")
    return text.replace("\r\n", "\n")


def _first_time(texts: list[str]) -> tuple[list[str], int]:
    """Paragraphs without those that were there before, and the bytes of the latter."""
    seen: set[bytes] = set()
    kept, dropped = [], 0
    for text in texts:
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split()).encode("utf-8")
            if len(words) >= REPEATED_BYTES:
                digest = hashlib.blake2b(words, digest_size=12).digest()
                if digest in seen:
                    dropped += len(words)
                    continue
                seen.add(digest)
            if words:
                kept.append(f"{paragraph.strip(chr(10))}\n\n")
    return kept, dropped


def _sections(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs joined to at least SECTION_CHARACTERS; long ones are cut at lines."""
    held: list[str] = []
    n_characters = 0
    for paragraph in paragraphs:
        lines = [paragraph] if len(paragraph) < 2 * SECTION_CHARACTERS else paragraph.splitlines(keepends=True)
        for line in lines:
            held.append(line)
            n_characters += len(line)
            if n_characters >= SECTION_CHARACTERS:
                yield "".join(held)
                held, n_characters = [], 0
    if held:
        yield "".join(held)


def write_ids(folder: Path, corpus: Corpus, vocabulary: Vocabulary) -> dict[str, Any]:
    """Both parts as files of ids in `folder`; returns what job.json says of them (`edge_lts.training.Text`)."""
    ids = {"training": vocabulary.encode(corpus.training), "validation": vocabulary.encode(corpus.validation)}
    for name, found in ids.items():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                file.write(found.tobytes())
                Path(file.name).replace(folder / f"{name}.bin")
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(file.name).unlink()
                raise
    return {
        "training": "training.bin",
        "validation": "validation.bin",
        "vocab_size": vocabulary.size,
        "bytes_per_token": len(corpus.validation) / len(ids["validation"]),
    }

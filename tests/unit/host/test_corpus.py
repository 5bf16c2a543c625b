"""Text for training: nothing held out was trained on, ids stand for the very bytes, and what is no text is refused."""

from __future__ import annotations

import builtins
import gzip
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from edge_lts_host import corpus
from edge_lts_host.corpus import ByteVocabulary, Corpus, load_corpus, make_vocabulary, split, write_ids
from edge_lts_host.errors import UsageError
from tests.support import require

PROSE = "\n\n".join(
    f"Paragraph {n} tells of {n * n} things, more than the {n} before it, naïve as it is." for n in range(900)
)


def paragraphs(text: bytes) -> set[str]:
    found = {" ".join(part.split()) for part in text.decode().split("\n\n")}
    return {one for one in found if len(one) >= corpus.REPEATED_BYTES}


def test_the_default_needs_nothing_and_holds_out_a_tenth_that_occurs_nowhere_else() -> None:
    found = load_corpus()
    assert found.name == "pydoc"
    assert len(found.training) > 200_000
    assert 0.08 < len(found.validation) / (len(found.training) + len(found.validation)) < 0.13
    assert not paragraphs(found.training) & paragraphs(found.validation)
    assert found.dropped_bytes > 20_000  # topics quote one another
    assert load_corpus() == found


def test_a_paragraph_that_comes_again_is_dropped_however_it_is_broken() -> None:
    again = PROSE.replace("more than", "more\n than")
    found = split([PROSE, again], "twice")
    alone = split([PROSE], "once")
    assert (found.training, found.validation) == (alone.training, alone.validation)
    assert found.dropped_bytes > 0 == alone.dropped_bytes


def test_a_paragraph_without_end_is_cut_at_lines_and_spread_over_both_parts() -> None:
    found = split(["".join(f"line {n} of a text without blank lines\n" for n in range(5000))], "log")
    assert 0.08 < len(found.validation) / len(found.training) < 0.14


def test_a_file_a_gzip_of_it_and_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PROSE)
    (tmp_path / "b.dict.dz").write_bytes(gzip.compress(PROSE.encode()))
    whole = load_corpus(str(tmp_path / "a.txt"))
    assert load_corpus(str(tmp_path / "b.dict.dz")).training == whole.training
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/one.txt").write_text(PROSE.replace("\n", "\r\n"))
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\x00")
    (folder / "zeros").write_bytes(b"\0" * 100)
    (folder / ".hidden").write_text("secret " * 9000)
    found = load_corpus(str(folder))
    assert (found.training, found.skipped_files) == (whole.training, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.write_text("too little"), "bytes of text without repeats"),
        (lambda path: path.write_text("the same again and again, forty bytes and more\n\n" * 9000), "without repeats"),
        (lambda path: path.write_bytes(b"\xff\xfe" * 50_000), "not UTF-8"),
        (lambda path: path.mkdir(), "no file of UTF-8"),
    ],
)
def test_what_is_no_corpus_is_refused_by_name(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "text"
    make(path)
    with pytest.raises(UsageError, match=says) as caught:
        load_corpus(str(path))
    assert "text" in str(caught.value)


def test_a_broken_gzip_and_too_much_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(PROSE.encode())[:500])
    with pytest.raises(UsageError, match="cannot be read"):
        load_corpus(str(tmp_path / "x.gz"))
    (tmp_path / "x.txt").write_text(PROSE)
    monkeypatch.setattr(corpus, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(UsageError, match="give a part"):
        load_corpus(str(tmp_path / "x.txt"))


def test_bytes_are_ids_and_back(tmp_path: Path) -> None:
    found = split([PROSE], "prose")
    vocabulary = make_vocabulary("bytes", found)
    ids = vocabulary.encode(found.validation)
    assert isinstance(vocabulary, ByteVocabulary)
    assert vocabulary.decode(ids) == found.validation
    assert write_ids(tmp_path, found, vocabulary) == {
        "training": "training.bin", "validation": "validation.bin", "vocab_size": 256, "bytes_per_token": 1.0,
    }  # fmt: skip
    assert (tmp_path / "validation.bin").read_bytes() == ids.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.bin", "validation.bin"]


def test_byte_pairs_are_learned_the_same_each_time_and_lose_nothing() -> None:
    require("tokenizers", importlib.util.find_spec("tokenizers"), "tokenizers is not installed")
    found = split([PROSE], "prose")
    one, again = (make_vocabulary("400", found) for _ in range(2))
    text = "naïve \N{SNOWMAN}\ttabs,  spaces and a word it never saw\n".encode()
    assert one.size == 400
    assert one.decode(one.encode(text)) == text
    assert one.encode(found.validation).tolist() == again.encode(found.validation).tolist()
    assert len(one.encode(found.validation)) < 0.6 * len(found.validation)
    assert int(one.encode(found.training).max()) < one.size


@pytest.mark.parametrize("wanted", ["256", "0", "70000", "words", "-1", "1e4"])
def test_a_vocabulary_that_cannot_be_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="--vocabulary"):
        make_vocabulary(wanted, Corpus(name="x", training=b"", validation=b""))


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = builtins.__import__

    def no_tokenizers(name: str, *rest: Any, **named: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return right(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_tokenizers)
    with pytest.raises(UsageError, match=r"edge-lts\[corpus\]"):
        make_vocabulary("400", Corpus(name="x", training=b"text", validation=b""))

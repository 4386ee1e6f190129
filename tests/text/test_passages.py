"""Passages: drawn from the text alone, of the lengths wanted, the same every time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import REPOSITORY
from tokinfo.io.errors import DamagedError
from tokinfo.io.tokenizers import read_tokenizer
from tokinfo.study.sources import Passages
from tokinfo.text.documents import SEPARATOR, documents, read_passages
from tokinfo.text.passages import draw, write_passages
from tokinfo.text.tokenizer import train_tokenizer

TEXT = (REPOSITORY / "studies" / "data" / "harbour.txt").read_text(encoding="utf-8")
DOCUMENTS = [" ".join(part.split()) for part in documents(TEXT)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("passages")
    (directory / "text.txt").write_text(TEXT, encoding="utf-8")
    train_tokenizer(directory / "text.txt", 512, directory / "small")
    return directory / "small" / "tokenizer.json"


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_passages_are_whole_words_of_the_text_of_exactly_the_lengths_wanted(
    tokenizer: Path, seed: int
) -> None:
    wanted = Passages(corpus="c", tokenizer="t", count=20, tokens=[8, 16], seed=seed)
    loaded = read_tokenizer(tokenizer)
    found = draw(DOCUMENTS, loaded, wanted.lengths, seed)
    assert [passage.tokens for passage in found] == list(wanted.lengths)
    for passage in found:
        assert len(loaded.encode(passage.text).ids) == passage.tokens
        around = f" {DOCUMENTS[passage.document]} "
        before = passage.start
        assert around[before : before + len(passage.text) + 2] == f" {passage.text} "
    assert len({passage.text for passage in found}) == 20
    spans = [(p.document, p.start, p.start + len(p.text)) for p in found]
    for one, (document, start, stop) in enumerate(spans):
        for other, begin, end in spans[:one]:
            assert document != other or stop <= begin or end <= start


def test_the_seed_decides_and_nothing_else(tokenizer: Path) -> None:
    lengths = [8, 9, 10, 11]
    first = draw(DOCUMENTS, read_tokenizer(tokenizer), lengths, 0)
    assert draw(DOCUMENTS, read_tokenizer(tokenizer), lengths, 0) == first
    assert draw(DOCUMENTS, read_tokenizer(tokenizer), lengths, 1) != first


def test_every_part_of_the_text_is_drawn_from(tokenizer: Path) -> None:
    found = draw(DOCUMENTS, read_tokenizer(tokenizer), [8] * 60, 0)
    assert len({passage.document for passage in found}) > len(DOCUMENTS) / 2


@given(
    count=st.integers(1, 80),
    ends=st.tuples(st.integers(1, 40), st.integers(0, 40)),
)
def test_lengths_are_spread_from_the_fewest_to_the_most(count: int, ends: tuple[int, int]) -> None:
    fewest, most = ends[0], ends[0] + ends[1]
    wanted = Passages(corpus="c", tokenizer="t", count=count, tokens=[fewest, most])
    lengths = wanted.lengths
    assert len(lengths) == count
    assert list(lengths) == sorted(lengths)
    assert all(fewest <= length <= most for length in lengths)
    if count > 1:
        assert (lengths[0], lengths[-1]) == (fewest, most)
        steps = [later - earlier for earlier, later in pairwise(lengths)]
        assert max(steps) - min(steps) <= 1


def test_the_file_says_where_each_passage_was_found(tokenizer: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "c.held-out.txt"
    held_out.write_text(SEPARATOR.join(["one\ntwo  three", *DOCUMENTS]), encoding="utf-8")
    wanted = Passages(corpus="c", tokenizer="t", count=3, tokens=[8, 9])
    write_passages(wanted, held_out, tokenizer, tmp_path / "p.json")
    record = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert record["settings"] == wanted.model_dump()
    texts = read_passages(tmp_path / "p.json")
    assert texts == [passage["text"] for passage in record["passages"]]
    for passage in record["passages"]:
        document = DOCUMENTS[passage["document"] - 1]
        assert document[passage["start"] :].startswith(passage["text"])


@pytest.mark.parametrize("text", ["", "one two three", "word " * 200])
def test_too_little_text_is_an_error_of_one_line(
    tokenizer: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.held-out.txt").write_text(text, encoding="utf-8")
    wanted = Passages(corpus="bible", tokenizer="t", count=3, tokens=[8, 9])
    with pytest.raises(ValueError, match=r"only \d of 3 passages of 8 to 9 .*corpus bible: hold"):
        write_passages(wanted, tmp_path / "c.held-out.txt", tokenizer, tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def test_passages_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "held-out.json"
    for content in ("", "{}", '{"passages": [{}]}'):
        file.write_text(content)
        with pytest.raises(DamagedError, match=rf"{file}: damaged or cut short"):
            read_passages(file)

"""The byte-level tokenizer: any string comes back, training is deterministic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tokinfo.text.tokenizer import SPECIAL, encode_corpus, load_tokenizer, train_tokenizer

TEXT = "\n<|endoftext|>\n".join(
    f"the cat number {i} sat on the mat, and the dog looked at it; nobody said anything at all."
    for i in range(60)
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    train_tokenizer(root / "text.txt", 300, root / "out")
    return root / "out"


def test_the_vocabulary_has_the_size_wanted_and_the_special_tokens_first(
    directory: Path,
) -> None:
    tokenizer = load_tokenizer(directory)
    assert tokenizer.get_vocab_size() == 300
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1]


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_string_round_trips(directory: Path, text: str) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_training_twice_gives_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    train_tokenizer(directory.parent / "text.txt", 300, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes()


def test_transformers_reads_the_same_tokens(directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    text = " The cat, 猫\n  sat"
    assert theirs(text)["input_ids"] == load_tokenizer(directory).encode(text).ids
    assert theirs.pad_token_id == 1
    assert theirs.eos_token_id == 0


def test_a_corpus_is_encoded_with_an_end_after_each_document(
    directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "held.txt").write_text("the cat\n<|endoftext|>\nthe dog\n", encoding="utf-8")
    encode_corpus(
        directory, directory.parent / "text.txt", tmp_path / "held.txt", tmp_path / "tokens"
    )
    tensors = load_file(tmp_path / "tokens")
    tokenizer = load_tokenizer(directory)
    expected = [*tokenizer.encode("the cat").ids, 0, *tokenizer.encode("the dog").ids, 0]
    assert tensors["held_out"].tolist() == expected
    assert str(tensors["train"].dtype) == "torch.int32"
    assert int((tensors["train"] == 0).sum()) == 60


def test_a_text_too_short_for_the_vocabulary_is_an_error(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text.txt: gives \d+ tokens, the study asks for 5000"):
        train_tokenizer(directory.parent / "text.txt", 5000, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json: no tokenizer here"):
        load_tokenizer(tmp_path)

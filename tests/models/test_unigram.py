"""The unigram prior counts a text's tokens, each once more than it occurs."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.io.test_damaged import flip
from tokinfo.io.atomic import new_directory
from tokinfo.io.errors import DamagedError
from tokinfo.models.checkpoint import FACTS
from tokinfo.models.unigram import count, entropy, read_unigrams, smoothed, write_unigrams
from tokinfo.text.documents import SEPARATOR
from tokinfo.text.tokenizer import load_tokenizer, train_tokenizer

DOCUMENTS = ["some words and others"] * 40 + ["others and some"] * 5


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the prior reads of a checkpoint: a tokenizer, and a number of embeddings above its."""
    (tmp_path / "text.txt").write_text(SEPARATOR.join(DOCUMENTS) + "\n")
    train_tokenizer(tmp_path / "text.txt", 270, tmp_path / "words")
    with new_directory(tmp_path / "model") as model:
        shutil.copyfile(tmp_path / "words" / "tokenizer.json", model / "tokenizer.json")
        (model / FACTS).write_text(json.dumps({"vocabulary": 280}))
    return tmp_path / "model"


def test_probabilities_are_add_one_counts_of_the_texts_tokens(checkpoint: Path) -> None:
    text, out = checkpoint.parent / "text.txt", checkpoint.parent / "unigrams.safetensors"
    write_unigrams(checkpoint, text, out)
    words = load_tokenizer(checkpoint)
    seen = Counter(token for document in DOCUMENTS for token in words.encode(document).ids)
    total = seen.total()
    expected = [(seen[token] + 1) / (total + 280) for token in range(280)]
    assert read_unigrams(out).tolist() == pytest.approx(expected, abs=1e-15)
    assert seen[words.token_to_id("<|endoftext|>")] == 0, "separators are no part of the text"
    with safe_open(out, "pt") as file:
        assert file.metadata()["tokens"] == str(total)
    flip(out, -1)
    with pytest.raises(DamagedError, match="not as it was written"):
        read_unigrams(out)


def test_a_text_longer_than_one_batch_is_counted_whole(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = checkpoint.parent / "text.txt"
    whole = count(checkpoint, text, 280)
    monkeypatch.setattr("tokinfo.models.unigram.ENCODE_AT_ONCE", 7)
    assert torch.equal(count(checkpoint, text, 280), whole)


def test_entropy_is_that_of_known_distributions() -> None:
    assert entropy(torch.full((1024,), 1 / 1024)) == pytest.approx(10.0)
    assert entropy(torch.tensor([0.5, 0.25, 0.125, 0.125])) == pytest.approx(1.75)
    assert entropy(torch.tensor([1.0, 0.0])) == 0.0


def test_entropy_of_a_counted_text_is_the_mean_surprise_of_its_smoothed_tokens() -> None:
    """Three tokens, 6, 1 and 0 times: (7, 2, 1) of 10."""
    probability = smoothed(torch.tensor([6, 1, 0]))
    assert probability.tolist() == pytest.approx([0.7, 0.2, 0.1])
    surprise = -(0.7 * math.log2(0.7) + 0.2 * math.log2(0.2) + 0.1 * math.log2(0.1))
    assert entropy(probability) == pytest.approx(surprise)

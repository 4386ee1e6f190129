"""The unigram prior: how probable each of a model's tokens is before any activation is read."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokinfo.io.atomic import save_sealed
from tokinfo.io.damaged import check, check_seal, reading
from tokinfo.models.checkpoint import FACTS
from tokinfo.text.documents import read_documents
from tokinfo.text.tokenizer import ENCODE_AT_ONCE, load_tokenizer


def write_unigrams(checkpoint: Path, text: Path, out: Path) -> None:
    """Write the probability of each of a model's tokens in a text.

    Args:
        checkpoint: a checkpoint of the model, for its tokenizer and its number of embeddings.
        text: documents as `tokinfo.text.corpus.write_corpus` writes them.
        out: safetensors file with ``probability``, float64 [V], and in its metadata the number of
            ``tokens`` that were counted.
    """
    check(checkpoint, FACTS)
    with reading(checkpoint / FACTS):
        facts = json.loads((checkpoint / FACTS).read_text(encoding="utf-8"))
        vocabulary = int(facts["vocabulary"])
    counts = count(checkpoint, text, vocabulary)
    save_sealed({"probability": smoothed(counts)}, out, {"tokens": str(int(counts.sum()))})


def count(tokenizer: Path, text: Path, vocabulary: int) -> Tensor:
    """Return how often each token occurs in the documents of a text, int64 [vocabulary].

    The text alone is counted: no token that a tokenizer puts around it, none between documents.
    """
    loaded = load_tokenizer(tokenizer)
    documents = read_documents(text)
    found = torch.zeros(vocabulary, dtype=torch.int64)
    while part := list(islice(documents, ENCODE_AT_ONCE)):
        ids = [
            token
            for encoding in loaded.encode_batch_fast(part, add_special_tokens=False)
            for token in encoding.ids
        ]
        found += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocabulary)
    return found


def smoothed(counts: Tensor) -> Tensor:
    """Return probabilities by Laplace's rule of succession: (count + 1) / (all + V), float64.

    No token has probability 0 for not occurring in the text. C. D. Manning and H. Schütze,
    Foundations of Statistical Natural Language Processing (1999), section 6.2.2.
    """
    more = counts.double() + 1
    return more / more.sum()


def read_unigrams(path: Path) -> Tensor:
    """Read what `write_unigrams` wrote: float64 [V]; raises DamagedError."""
    with reading(path):
        check_seal(path)
        return load_file(str(path))["probability"]


def entropy(probability: Tensor) -> float:
    """Return the entropy of a distribution [V] in bits (C. E. Shannon 1948, section 6)."""
    return float(torch.special.entr(probability.double()).sum() / torch.log(torch.tensor(2.0)))

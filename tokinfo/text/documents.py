"""Files of documents and of passages: their layout, and reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokinfo.io.damaged import reading

END_OF_TEXT = "<|endoftext|>"
SEPARATOR = f"\n{END_OF_TEXT}\n"


def documents(text: str) -> list[str]:
    r"""Split a text into documents: at ``<|endoftext|>`` where it has any, else at blank lines.

    >>> documents("one\n<|endoftext|>\ntwo\n\nstill two"), documents("one\n\n\ntwo")
    (['one', 'two\n\nstill two'], ['one', 'two'])
    """
    parts = text.split(END_OF_TEXT) if END_OF_TEXT in text else re.split(r"\n\s*\n", text)
    return [part.strip() for part in parts if part.strip()]


def read_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a file that `write_corpus` wrote."""
    for part in path.read_text(encoding="utf-8").split(END_OF_TEXT):
        if part.strip():
            yield part.strip()


def read_passages(path: Path) -> list[str]:
    """Return the texts of passages that `tokinfo.text.passages.write_passages` wrote."""
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        return [str(passage["text"]) for passage in record["passages"]]

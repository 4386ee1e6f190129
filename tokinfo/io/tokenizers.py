"""Reading a ``tokenizer.json``; the library is imported only where one is read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.io.damaged import reading

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(tokenizer: Path) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``, without truncation or padding."""
    return _load(str(tokenizer), tokenizer.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _load(path: str, changed: int) -> Tokenizer:
    """Load a tokenizer once per process and version of its file (``changed``, in ns)."""
    from tokenizers import Tokenizer

    with reading(Path(path)):
        loaded = Tokenizer.from_file(path)
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def vocabulary(tokenizer: Path) -> int | None:
    """Return the number of tokens of a ``tokenizer.json``; None if there is no readable one."""
    if not tokenizer.is_file():
        return None
    try:
        return int(read_tokenizer(tokenizer).get_vocab_size())
    except Exception:  # the library raises Exception itself for a file it cannot read
        return None


def count_tokens(
    tokenizer: Path, prompts: Sequence[str], *, special_tokens: bool = True
) -> list[int]:
    """Return the exact number of tokens of each prompt.

    Args:
        tokenizer: a ``tokenizer.json``.
        prompts: texts.
        special_tokens: add the tokenizer's special tokens.
    """
    loaded = read_tokenizer(tokenizer)
    encoded = loaded.encode_batch(list(prompts), add_special_tokens=special_tokens)
    return [len(encoding.ids) for encoding in encoded]

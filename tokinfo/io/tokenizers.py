"""Reading a ``tokenizer.json``, and prompts by it; the library is imported only where one is read.

A prompt is a text or a chat, which is a list of messages.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokinfo.io.chats import ChatTemplate, Message
from tokinfo.io.damaged import check, reading
from tokinfo.io.errors import InvalidError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Reading(NamedTuple):
    """A prompt as a model reads it.

    Attributes:
        text: the prompt; of a chat, what the chat template makes of it.
        ids: its tokens.
        spans: of a chat, the positions of the tokens that hold something of the contents of each
            role's messages; of a text, nothing.
    """

    text: str
    ids: list[int]
    spans: Mapping[str, Sequence[int]]


def read_tokenizer(tokenizer: Path) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``, without truncation or padding."""
    return _load(str(tokenizer), tokenizer.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _load(path: str, changed: int) -> Tokenizer:
    """Load a tokenizer once per process and version of its file (``changed``, in ns)."""
    from tokenizers import Tokenizer

    check(Path(path).parent, Path(path).name)
    with reading(Path(path)):
        loaded = Tokenizer.from_file(path)
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a tokenizer's special tokens, in order."""
    added = tokenizer.get_added_tokens_decoder()
    return sorted(token for token, what in added.items() if what.special)


def vocabulary(tokenizer: Path) -> int | None:
    """Return the number of tokens of a ``tokenizer.json``; None if there is no readable one."""
    if not tokenizer.is_file():
        return None
    try:
        return int(read_tokenizer(tokenizer).get_vocab_size())
    except Exception:  # the library raises Exception itself for a file it cannot read
        return None


def read_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    prompt: str | Sequence[Message],
    *,
    special_tokens: bool = True,
) -> Reading:
    """Return a prompt's tokens, and where in them a chat's contents are.

    Args:
        tokenizer: the model's.
        template: the model's chat template, where it has one.
        prompt: a text, or the messages of a chat.
        special_tokens: add the tokenizer's special tokens to a text. To a chat nothing is added:
            its template writes them.

    Raises:
        InvalidError: the prompt is a chat, and there is no template or it does not suit.
    """
    if isinstance(prompt, str):
        return Reading(prompt, tokenizer.encode(prompt, add_special_tokens=special_tokens).ids, {})
    if template is None:
        raise InvalidError("is a list of messages, and the model has no chat template")
    rendered = template.render(prompt)
    # A byte-level post-processor takes the white space out of a token's offsets.
    processor, tokenizer.post_processor = tokenizer.post_processor, None
    try:
        encoded = tokenizer.encode(rendered.text, add_special_tokens=False)
    finally:
        tokenizer.post_processor = processor
    spans: dict[str, set[int]] = {}
    for role, first, last in rendered.spans:
        held = spans.setdefault(role, set())
        held.update(
            position
            for position, (start, end) in enumerate(encoded.offsets)
            # A token of no characters, such as a space put in, is of the content that it touches.
            if (start < last and first < end) or (start == end and first <= start <= last)
        )
    return Reading(rendered.text, encoded.ids, {role: sorted(held) for role, held in spans.items()})

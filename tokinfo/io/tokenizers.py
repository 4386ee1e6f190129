"""Reading a ``tokenizer.json``, and prompts by it; the library is imported only where one is read.

A prompt is a text or a chat, which is a list of messages.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokinfo.io.chats import ChatTemplate, Message
from tokinfo.io.damaged import check, reading
from tokinfo.io.errors import InvalidError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Spans(Mapping[str, Sequence[int]]):
    """Positions of the tokens that hold something of what a mask names.

    By a role they are those of its messages' contents; by a text, written as a JSON string, those
    of all places inside a content (or the prompt) where it stands. Roles alone are iterated.

    Args:
        text: the prompt; of a chat, what the chat template makes of it.
        offsets: of each token, first character and end; of one that stands for none, None.
        contents: role, first character and end of each content; of a text, one without a role.
    """

    def __init__(
        self,
        text: str,
        offsets: Sequence[tuple[int, int] | None],
        contents: Sequence[tuple[str, int, int]],
    ) -> None:
        self._text, self._offsets, self._contents = text, offsets, contents

    def __getitem__(self, name: str) -> list[int]:
        if not name.startswith('"'):
            places = [(first, last) for role, first, last in self._contents if role == name]
        else:
            sought = re.escape(json.loads(name))
            places = [
                (found.start(1), found.end(1))
                for _, first, last in self._contents
                # Looked for ahead, so that places may overlap.
                for found in re.finditer(f"(?=({sought}))", self._text[:last])
                if found.start(1) >= first
            ]
        if not places or not name:
            raise KeyError(name)
        held = (self._holding(first, last) for first, last in places)
        return sorted(set().union(*held))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(role for role, _, _ in self._contents if role))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _holding(self, first: int, last: int) -> set[int]:
        return {
            position
            for position, offset in enumerate(self._offsets)
            # A token of no characters, such as a space put in, is of the content that it touches.
            if offset is not None
            and (
                (offset[0] < last and first < offset[1])
                or (offset[0] == offset[1] and first <= offset[0] <= last)
            )
        }


class Reading(NamedTuple):
    """A prompt as a model reads it.

    Attributes:
        text: the prompt; of a chat, what the chat template makes of it.
        ids: its tokens.
        spans: where in them is what a mask may name.
    """

    text: str
    ids: list[int]
    spans: Spans


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


def last_id(tokenizer: Path) -> int:
    """Return the largest id of a ``tokenizer.json``; -1 without tokens.

    Raises InvalidError of a file that holds no tokenizer.
    """
    return max(read_tokenizer(tokenizer).get_vocab().values(), default=-1)


def read_prompt(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    prompt: str | Sequence[Message],
    *,
    special_tokens: bool = True,
) -> Reading:
    """Return a prompt's tokens, and where in them is what a mask may name.

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
        encoded = tokenizer.encode(prompt, add_special_tokens=special_tokens)
        bare = _untrimmed(tokenizer, prompt)
        special = encoded.special_tokens_mask
        offsets: list[tuple[int, int] | None] = [None] * len(encoded.ids)
        if special.count(0) == len(bare.ids):
            inside = iter(bare.offsets)
            offsets = [None if added else next(inside) for added in special]
        return Reading(prompt, encoded.ids, Spans(prompt, offsets, [("", 0, len(prompt))]))
    if template is None:
        raise InvalidError("is a list of messages, and the model has no chat template")
    rendered = template.render(prompt)
    encoded = _untrimmed(tokenizer, rendered.text)
    return Reading(
        rendered.text, encoded.ids, Spans(rendered.text, encoded.offsets, rendered.spans)
    )


def _untrimmed(tokenizer: Tokenizer, text: str) -> Encoding:
    """Encode a text without special tokens, each token with all of its characters."""
    # A byte-level post-processor takes the white space out of a token's offsets.
    processor, tokenizer.post_processor = tokenizer.post_processor, None
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    finally:
        tokenizer.post_processor = processor

"""Passages: prompts drawn from the part of a text that no model is trained on.

A headline that rests on one sentence says as much about the sentence as about the model. These
prompts are many, of real text and of exact lengths. The text, the tokenizer and a seed choose
them, the same ones on any machine.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import InvalidError
from tokinfo.io.tokenizers import read_tokenizer
from tokinfo.text.documents import read_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from tokinfo.study.sources import Passages

ATTEMPTS = 2000
"""Places tried for one passage before the text is called too short."""


class Passage(NamedTuple):
    """One prompt, and where it was found."""

    text: str
    tokens: int
    document: int  # index of its document in the held-out text
    start: int  # of its first character there, runs of white space taken as one space


def write_passages(settings: Passages, held_out: Path, tokenizer: Path, out: Path) -> None:
    """Draw passages and write them as JSON, with where each was found.

    Args:
        settings: how many, how long, and the seed.
        held_out: text of documents that `tokinfo.text.corpus.write_corpus` wrote.
        tokenizer: the ``tokenizer.json`` that counts.
        out: file to write; `tokinfo.text.documents.read_passages` reads its texts.

    Raises:
        ValueError: the text has too few passages of these lengths.
    """
    documents = [" ".join(text.split()) for text in read_documents(held_out)]
    try:
        found = draw(documents, read_tokenizer(tokenizer), settings.lengths, settings.seed)
    except InvalidError as error:
        raise InvalidError(
            f"{error} in the held-out part of corpus {settings.corpus}: hold out more of it, or "
            "ask for fewer or shorter ones"
        ) from None
    record = {
        "settings": settings.model_dump(),
        "passages": [passage._asdict() for passage in found],
    }
    with new_file(out) as partial:
        text = json.dumps(record, indent=2, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def draw(
    documents: Sequence[str], tokenizer: Tokenizer, lengths: Sequence[int], seed: int
) -> list[Passage]:
    """Return one passage of each length: whole words of one document, none overlapping another.

    The first passage that a pseudo-random sequence of places gives is taken, each character of
    the text being as likely a place as any other; it starts at the next word and must have exactly
    as many tokens when it is encoded alone, as a prompt is. Same input, same passages.

    Raises:
        ValueError: there is no passage of some length.
    """
    ends = list(accumulate(len(text) for text in documents))
    taken: dict[int, list[tuple[int, int]]] = {}
    passages: list[Passage] = []
    for number, length in enumerate(lengths):
        for attempt in range(ATTEMPTS if ends else 0):
            place = _place(f"{seed}/{number}/{attempt}", ends[-1])
            document = bisect_right(ends, place)
            text = documents[document]
            found = _passage(text, place - (ends[document] - len(text)), length, tokenizer)
            if found is None:
                continue
            start, stop = found
            spans = taken.setdefault(document, [])
            words = text[start:stop]
            if any(start < end and begin < stop for begin, end in spans):
                continue
            if words in {passage.text for passage in passages}:
                continue
            spans.append(found)
            passages.append(Passage(words, length, document, start))
            break
        else:
            raise InvalidError(
                f"only {len(passages)} of {len(lengths)} passages of {min(lengths)} to "
                f"{max(lengths)} tokens"
            )
    return passages


def _place(name: str, size: int) -> int:
    """Return a number below ``size`` that the name alone decides, on any machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % size


def _passage(text: str, place: int, length: int, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return start and end of ``length`` tokens of whole words from ``place`` on, if there are."""
    start = place if place == 0 or text[place - 1] == " " else text.find(" ", place) + 1
    if text[start : start + 1] in ("", " ") or (start == 0 and place > 0):
        return None
    # A token of more than 64 characters is no word.
    encoded = tokenizer.encode(text[start : start + 64 * length], add_special_tokens=False)
    if len(encoded.ids) < length:
        return None
    stop = start + encoded.offsets[length - 1][1]
    if text[stop : stop + 1] not in ("", " "):
        return None
    alone = tokenizer.encode(text[start:stop])
    return (start, stop) if len(alone.ids) == length else None

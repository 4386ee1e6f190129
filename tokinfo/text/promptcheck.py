"""The exact check of a study's prompts, made as soon as there is a tokenizer to count with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.io.atomic import new_file
from tokinfo.io.chats import read_template
from tokinfo.io.errors import InvalidError, TokinfoError
from tokinfo.io.tokenizers import Reading, read_prompt, read_tokenizer, special_ids
from tokinfo.study.known import NONE, Known
from tokinfo.study.lengths import Finding, findings, sentence
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import show
from tokinfo.text.documents import read_passages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Written = str | Sequence[Mapping[str, str]]


class PromptError(TokinfoError):
    """Prompts that do not suit a model or a mask; the message names all of them."""


def check_prompts(
    tokenizer: Path,
    out: Path,
    passages: Sequence[Path] = (),
    *,
    prompts: Mapping[str, Sequence[Written]],
    uses: Iterable[Sequence[str]],
    n_ctx: int,
    special_tokens: bool = True,
) -> None:
    """Count the tokens of every prompt and write the counts, if every prompt can be used.

    Args:
        tokenizer: directory with a ``tokenizer.json``; for chats, with a chat template too.
        out: JSON file to write: number of tokens of each prompt, by set.
        passages: files of sets that are drawn from a text, each named for its set.
        prompts: by the name of their set, texts or the messages of chats.
        uses: (set, mask, padding, known) of every combination that is probed.
        n_ctx: most positions of the models.
        special_tokens: whether texts get those that the tokenizer adds.

    Raises:
        PromptError: a chat cannot be read, a prompt is too long, a mask leaves no position of one
            visible or hidden, or what is known of one is nothing or all that is to be found.
    """
    drawn = {path.stem: read_passages(path) for path in passages}
    sets: dict[str, Sequence[Written]] = {**prompts, **drawn}
    loaded, template = read_tokenizer(tokenizer / "tokenizer.json"), read_template(tokenizer)
    read: dict[str, list[Reading]] = {}
    wrong: list[str] = []
    for name, given in sets.items():
        read[name] = []
        for index, prompt in enumerate(given):
            try:
                one = read_prompt(loaded, template, prompt, special_tokens=special_tokens)
                read[name].append(one)
            except InvalidError as error:
                wrong.append(f"prompts.{name}[{index}] = {show(prompt)}: {error}")
    counts = {name: [len(one.ids) for one in found] for name, found in read.items()}
    if not wrong:
        exact = {name: [(count, count) for count in found] for name, found in counts.items()}
        spans = {name: [one.spans for one in found] for name, found in read.items()}
        combinations = [(name, mask, padding, known) for name, mask, padding, known in uses]
        wrong = [
            _line(found, "passages" if found.prompts in drawn else "prompts", sets, n_ctx)
            for found in findings(exact, combinations, n_ctx, spans)
        ] or [
            _line(found, "passages" if found.prompts in drawn else "prompts", sets, n_ctx)
            for found in _of_special_tokens(set(special_ids(loaded)), read, combinations, n_ctx)
        ]
    if wrong:
        raise PromptError("; ".join(wrong))
    with new_file(out) as partial:
        partial.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def _of_special_tokens(
    special: set[int],
    read: Mapping[str, Sequence[Reading]],
    combinations: Iterable[Sequence[str]],
    n_ctx: int,
) -> Iterator[Finding]:
    """Yield the prompts that have nothing left to find but special tokens, which are known."""
    for name, text, padding, known in dict.fromkeys(map(tuple, combinations)):
        mask = Mask(text)
        for index, one in enumerate(read[name] if mask.hides else ()):
            length = len(one.ids)
            seen = n_ctx if padding == "n_ctx" else length
            given = {
                *mask.positions(seen, one.spans),
                *Known(known).positions(mask, length, seen, one.spans),
            }
            left = {token for place, token in enumerate(one.ids) if place not in given}
            if left and left <= special:
                stated = "" if known == NONE else known
                yield Finding("special", name, index, text, (length, length), stated)


def _line(found: Finding, section: str, sets: Mapping[str, Sequence[Written]], n_ctx: int) -> str:
    where = f"{section}.{found.prompts}[{found.index}]"
    text = show(sets[found.prompts][found.index])
    reason = sentence(found, n_ctx)
    if found.known:
        who = f"known {found.known!r} under mask {found.mask!r}"
        return f"{who} {reason} of {where} = {text} ({found.length})"
    if found.mask:
        return f"mask {found.mask!r} {reason} of {where} = {text} ({found.length})"
    return f"{where} = {text} {reason}"

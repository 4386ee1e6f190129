"""The exact check of a study's prompts, made as soon as there is a tokenizer to count with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import TokinfoError
from tokinfo.io.tokenizers import count_tokens
from tokinfo.study.lengths import Finding, findings, sentence
from tokinfo.text.documents import read_passages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class PromptError(TokinfoError):
    """Prompts that do not suit a model or a mask; the message names all of them."""


def check_prompts(
    tokenizer: Path,
    out: Path,
    passages: Sequence[Path] = (),
    *,
    prompts: Mapping[str, Sequence[str]],
    uses: Iterable[Sequence[str]],
    n_ctx: int,
    special_tokens: bool = True,
) -> None:
    """Count the tokens of every prompt and write the counts, if every prompt can be used.

    Args:
        tokenizer: directory with a ``tokenizer.json``.
        out: JSON file to write: number of tokens of each prompt, by set.
        passages: files of sets that are drawn from a text, each named for its set.
        prompts: texts by the name of their set.
        uses: (set, mask, padding, known) of every combination that is probed.
        n_ctx: most positions of the models.
        special_tokens: whether prompts get those that the tokenizer adds.

    Raises:
        PromptError: a prompt is too long, a mask leaves no position of one visible or hidden, or
            what is known of one is nothing or all that is to be found.
    """
    drawn = {path.stem: read_passages(path) for path in passages}
    sets = {**prompts, **drawn}
    file = tokenizer / "tokenizer.json"
    counts = {
        name: count_tokens(file, texts, special_tokens=special_tokens)
        for name, texts in sets.items()
    }
    exact = {name: [(count, count) for count in found] for name, found in counts.items()}
    combinations = [(name, mask, padding, known) for name, mask, padding, known in uses]
    wrong = [
        _line(found, "passages" if found.prompts in drawn else "prompts", sets, n_ctx)
        for found in findings(exact, combinations, n_ctx)
    ]
    if wrong:
        raise PromptError("; ".join(wrong))
    with new_file(out) as partial:
        partial.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def _line(found: Finding, section: str, sets: Mapping[str, Sequence[str]], n_ctx: int) -> str:
    where = f"{section}.{found.prompts}[{found.index}]"
    text = sets[found.prompts][found.index]
    reason = sentence(found, n_ctx)
    if found.known:
        who = f"known {found.known!r} under mask {found.mask!r}"
        return f"{who} {reason} of {where} = {text!r} ({found.length})"
    if found.mask:
        return f"mask {found.mask!r} {reason} of {where} = {text!r} ({found.length})"
    return f"{where} = {text!r} {reason}"

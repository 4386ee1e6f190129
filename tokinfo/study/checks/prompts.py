"""Whether a study's prompts suit its models, its masks and what is known of them.

Needs no tokenizer: it works with what is certain about a prompt's length, and with the exact
length as soon as an earlier run has left the tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tokinfo.io import tokenizers
from tokinfo.io.chats import read_template
from tokinfo.io.errors import InvalidError
from tokinfo.io.tokenizers import Reading, read_prompt, read_tokenizer
from tokinfo.study import lengths
from tokinfo.study.checks.draft import parsed
from tokinfo.study.known import NONE, Known
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import Keys, Mistake, show
from tokinfo.study.prompts import Prompt, contents, written
from tokinfo.study.sources import Built, LocalSource, Passages, located
from tokinfo.study.study import Study

Tokens = Mapping[str, Mapping[str, Sequence[lengths.Bounds]]]
"""Bounds on the number of tokens of every prompt, by model and prompt set."""

_FAULTS = {
    "blind": (
        "leaves no visible position",
        "a mask that leaves some position of every prompt of its grid visible",
    ),
    "open": (
        "hides no position",
        "a mask that hides some position of every prompt of its grid, or `:`",
    ),
    "idle": ("gives no token", "positions that every prompt of its grid has, or none"),
    "solved": (
        "leaves nothing to find",
        "positions that leave some hidden token of every prompt of its grid unknown (any token, "
        "where the mask is `:`), or none",
    ),
}
"""What is said of each fault, and what is allowed."""


def token_bounds(study: Study, models: Iterable[str]) -> tuple[Tokens, dict[str, str]]:
    """Return what is certain about the lengths of the prompts that each model is probed with.

    Returns:
        The bounds, and for models whose prompts could be counted a note that says how.
    """
    tokens: dict[str, Mapping[str, Sequence[lengths.Bounds]]] = {}
    notes: dict[str, str] = {}
    for name in models:
        tokenizer = _tokenizer_file(study, name)
        source = study.source_of(name)
        built = source.tokenizer if isinstance(source, Built) else None
        special = getattr(source, "special_tokens", True)
        wanted = {set_ for grid in study.grids if name in grid.models for set_ in grid.prompts}
        tokens[name] = {
            set_: _bounds(prompts, tokenizer, built is None, special)
            for set_, prompts in study.prompts.items()
            if set_ in wanted
        } | {
            set_: _drawn(passages, built)
            for set_, passages in study.passages.items()
            if set_ in wanted
        }
        if tokenizer is not None:
            notes[name] = f", counted with {tokenizer}"
    return tokens, notes


def _bounds(
    prompts: Sequence[Prompt], tokenizer: Path | None, pretrained: bool, special: bool
) -> list[lengths.Bounds]:
    if tokenizer is None:
        return [lengths.bounds(prompt, pretrained=pretrained) for prompt in prompts]
    found: list[lengths.Bounds] = []
    for prompt in prompts:
        try:
            count = len(read(tokenizer, prompt, special).ids)
            found.append((count, count))
        except InvalidError:  # `tokinfo.study.checks.chats` says so
            found.append(lengths.UNREAD)
    return found


def read(tokenizer: Path, prompt: Prompt, special_tokens: bool = True) -> Reading:
    """Return a prompt as the model of a ``tokenizer.json`` reads it.

    Raises:
        InvalidError: it is a chat that the model cannot read.
    """
    template = None if isinstance(prompt, str) else read_template(tokenizer.parent)
    loaded = read_tokenizer(tokenizer)
    return read_prompt(loaded, template, written(prompt), special_tokens=special_tokens)


def _drawn(passages: Passages, tokenizer: str | None) -> list[lengths.Bounds]:
    """Return the lengths of passages, which are certain for the tokenizer that counts them."""
    same = passages.tokenizer == tokenizer
    return [(count, count) if same else lengths.UNREAD for count in passages.lengths]


def _tokenizer_file(study: Study, model: str) -> Path | None:
    """Return the tokenizer of a model if an earlier run has left it (and it is the study's)."""
    name = study.models[model].source
    source = study.sources[name]
    results = Path(study.results)
    if isinstance(source, Built):
        tokenizer = study.tokenizers.get(source.tokenizer)
        path = results / "tokenizers" / source.tokenizer / "tokenizer.json"
        # A tokenizer of another size is a leftover: this study would replace it.
        current = tokenizer is not None and tokenizers.vocabulary(path) == tokenizer.vocabulary
        return path if current else None
    places = [results / "sources" / name / "config", results / "checkpoints" / model / "0"]
    if isinstance(source, LocalSource):
        places = [located(source.path)]
    paths = (place / "tokenizer.json" for place in places)
    return next((path for path in paths if tokenizers.vocabulary(path) is not None), None)


def mistakes(
    study: Study,
    tokens: Tokens,
    notes: Mapping[str, str] | None = None,
) -> Iterator[Mistake]:
    """Yield prompts that are too long, and masks and known positions that suit some prompt badly.

    Args:
        study: the study; only models named in ``tokens`` are looked at.
        tokens: bounds of every prompt, by model and prompt set.
        notes: how a model's prompts were counted, for its messages.
    """
    notes = notes or {}
    seen: set[Keys] = set()
    for index, grid in enumerate(study.grids):
        places = {"masks": _places(Mask, grid.masks), "known": _places(Known, grid.known)}
        grouped: dict[tuple[str, str, str], list[str]] = {}
        for model in dict.fromkeys(grid.models):
            if model not in tokens:
                continue
            n_ctx = study.source_of(model).n_ctx
            known = places["known"] or [NONE]
            uses = itertools.product(grid.prompts, places["masks"], grid.padding, known)
            for found in lengths.findings(tokens[model], uses, n_ctx):
                note = f"{notes.get(model, '')} (model `{model}`)"
                path: Keys = ("prompts", found.prompts, found.index)
                prompt: object = None
                if found.prompts in study.passages:
                    path = ("passages", found.prompts, "tokens")
                    prompt = study.passages[found.prompts].tokens
                    note = f" (model `{model}`)"
                elif not any(contents(one := study.prompts[found.prompts][found.index])):
                    continue  # a mistake of form, whatever the mask
                else:
                    prompt = written(one)
                if found.mask:
                    example = f"{Mistake(path, prompt, '').key} = {show(prompt)}"
                    example += f" of {found.length}{note}"
                    group = ("masks", found.mask, found.fault)
                    if found.known:
                        example += f" under mask {found.mask!r}"
                        group = ("known", found.known, found.fault)
                    grouped.setdefault(group, []).append(example)
                elif (*path, model) not in seen:
                    seen.add((*path, model))
                    message = lengths.sentence(found, n_ctx) + note
                    yield Mistake(path, prompt, message, f"1 to {n_ctx} tokens")
        for (axis, text, fault), examples in grouped.items():
            verb, allowed = _FAULTS[fault]
            more = f" and {len(examples) - 1} more" if len(examples) > 1 else ""
            where = ("grids", index, axis, places[axis][text])
            yield Mistake(where, text, f"{verb} of {examples[0]}{more}", allowed)


def _places(read: type[Mask] | type[Known], texts: Sequence[str]) -> dict[str, int]:
    """Return where each value of an axis is first named, in its canonical text."""
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        if (value := parsed(read, text)) is not None:
            places.setdefault(str(value), place)
    return places

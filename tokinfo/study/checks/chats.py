"""Whether chats have what is asked of them: roles for masks, and models with a chat template.

The template of a model that is not here yet is first read when it has been fetched.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokinfo.io.errors import InvalidError
from tokinfo.io.tokenizers import vocabulary
from tokinfo.study.checks.draft import Draft, parsed
from tokinfo.study.checks.prompts import read
from tokinfo.study.grid import Grid
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import Keys, Mistake
from tokinfo.study.prompts import Prompt, contents, roles, written
from tokinfo.study.sources import Built, Saved, located
from tokinfo.study.study import Study


def mistakes(draft: Draft) -> Iterator[Mistake]:
    """Yield masks of roles that some prompt lacks, and chats that some model cannot read."""
    for index, grid in enumerate(draft.study.grids):
        yield from _masks(("grids", index), grid, draft.study)
        yield from _built(("grids", index), grid, draft)
    yield from _refused(draft)


def _masks(path: Keys, grid: Grid, study: Study) -> Iterator[Mistake]:
    for place, text in enumerate(grid.masks):
        mask = parsed(Mask, text)
        if mask is None or not mask.named:
            continue
        yield from _texts((*path, "masks", place), text, mask, grid, study)
        if not mask.roles:
            continue
        lacking = [f"passages.{name}" for name in grid.prompts if name in study.passages]
        lacking += [
            f"prompts.{name}[{number}]"
            for name in grid.prompts
            for number, prompt in enumerate(study.prompts.get(name, ()))
            # Blank where it could not be read, which is a mistake of its own.
            if any(contents(prompt)) and not roles(prompt).issuperset(mask.roles)
        ]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            message = f"hides {' and '.join(mask.roles)}, which {lacking[0]}{more} does not have"
            allowed = "roles that every prompt of its grid has messages of, or a Python slice"
            yield Mistake((*path, "masks", place), text, message, allowed)


def _texts(path: Keys, text: str, mask: Mask, grid: Grid, study: Study) -> Iterator[Mistake]:
    """Yield a mask's text that some prompt lacks; of passages, a job says so."""
    for sought in mask.texts:
        lacking = [
            f"prompts.{name}[{number}]"
            for name in grid.prompts
            for number, prompt in enumerate(study.prompts.get(name, ()))
            if any(contents(prompt)) and not any(sought in said for said in contents(prompt))
        ]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            message = f"hides {sought!r}, which {lacking[0]}{more} does not have"
            yield Mistake(path, text, message, "a text that every prompt of its grid has")


def _chats(study: Study, name: str) -> list[tuple[int, Prompt]]:
    prompts = enumerate(study.prompts.get(name, ()))
    return [(number, prompt) for number, prompt in prompts if not isinstance(prompt, str)]


def _built(path: Keys, grid: Grid, draft: Draft) -> Iterator[Mistake]:
    built = [f"`{name}`" for name in grid.models if isinstance(draft.source(name), Built)]
    for place, name in enumerate(grid.prompts):
        if built and (chats := _chats(draft.study, name)):
            message = (
                f"has a chat, prompts.{name}[{chats[0][0]}], and models whose tokenizer is made "
                f"from a corpus have no chat template: {', '.join(built)}"
            )
            allowed = "sets of texts, or only models that come with a chat template"
            yield Mistake((*path, "prompts", place), name, message, allowed)


def _refused(draft: Draft) -> Iterator[Mistake]:
    """Yield the chats that a model in a directory on this machine cannot read.

    What an earlier run has left of a model is not looked at: this run may fetch another template.
    """
    uses = {(m, p): None for grid in draft.study.grids for m in grid.models for p in grid.prompts}
    for model, name in uses:
        source, chats = draft.source(model), _chats(draft.study, name)
        if not chats or not isinstance(source, Saved) or source.path is None:
            continue
        file = located(source.path) / "tokenizer.json"
        if vocabulary(file) is None:
            continue  # a job says so, or makes one from an older form
        for number, prompt in chats:
            try:
                read(file, prompt)
            except InvalidError as error:
                message = f"model `{model}` cannot read it: {error}"
                yield Mistake(("prompts", name, number), written(prompt), message)

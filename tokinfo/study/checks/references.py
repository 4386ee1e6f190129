"""Whether every name in a study is one that it defines, and every value of a list is there once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokinfo.study import targets
from tokinfo.study.checks.draft import Draft, parsed
from tokinfo.study.grid import Grid
from tokinfo.study.masks import Mask
from tokinfo.study.mistakes import MISSING, Keys, Mistake, listing, suggestion
from tokinfo.study.prompts import written
from tokinfo.study.study import Study

_OF_ENTRIES = (
    ("tokenizers", "corpus", "corpus", "corpora"),
    ("sources", "tokenizer", "tokenizer", "tokenizers"),
    ("models", "source", "source", "sources"),
    ("passages", "corpus", "corpus", "corpora"),
    ("passages", "tokenizer", "tokenizer", "tokenizers"),
)
"""Sections, keys of their entries that hold a name, what it is of, and the section that has it."""
_OF_GRIDS = (
    ("models", "model", ("models",)),
    ("solvers", "solver", ("solvers",)),
    ("identify", "solver", ("solvers",)),
    ("prompts", "prompt set", ("prompts", "passages")),
)
"""Axes of a grid that hold names, what they are, and the sections of the study that have them."""


def mistakes(draft: Draft) -> Iterator[Mistake]:
    """Yield names that nothing has, names that two things have, and values given twice."""
    study = draft.study
    for section, key, what, of in _OF_ENTRIES:
        for name, entry in getattr(study, section).items():
            if value := getattr(entry, key, None):
                yield from unknown(draft, (section, name, key), value, what, of)
    for name in filter(study.prompts.__contains__, study.passages):
        message = "names a set of `prompts` too: a cell's file could be either's"
        yield Mistake(("passages", name), MISSING, message, "another name")
    for index, grid in enumerate(study.grids):
        for axis, what, sections in _OF_GRIDS:
            for place, name in enumerate(getattr(grid, axis)):
                yield from unknown(draft, ("grids", index, axis, place), name, what, *sections)
        for place, target in enumerate(grid.targets):
            if other := targets.other_model(target):
                where = ("grids", index, "targets", place)
                yield from unknown(draft, where, other, "model", "models")
    if study.prior is not None:
        yield from unknown(draft, ("prior",), study.prior, "corpus", "corpora")
    yield from _repeated(study)


def unknown(draft: Draft, path: Keys, name: str, what: str, *sections: str) -> Iterator[Mistake]:
    """Yield a name that none of these sections has, unless one of them could not be read."""
    names = [other for section in sections for other in draft.names(section)]
    if name not in names and not draft.sections.intersection(sections):
        message = f"unknown {what}{suggestion(name, names)}"
        if what == "model" and "/" in name:
            message += (
                f"; a repository on the hub is a source, as in sources: {{it: {{kind: hub, "
                f"repository: {name}, blocks: N}}}} and models: {{it: {{source: it}}}}"
            )
        yield Mistake(path, name, message, listing(names))


def repeated(path: Keys, values: Sequence[object]) -> Iterator[Mistake]:
    """Yield every value of a list that stands in it before."""
    firsts: dict[str, int] = {}
    for place, value in enumerate(values):
        if (first := firsts.setdefault(repr(value), place)) != place:
            again = Mistake((*path, first), MISSING, "").key
            written = MISSING if isinstance(value, Grid) else value
            yield Mistake((*path, place), written, f"repeats {again}", "each value once")


def _repeated(study: Study) -> Iterator[Mistake]:
    yield from repeated(("grids",), study.grids)
    for name, prompts in study.prompts.items():
        yield from repeated(("prompts", name), list(map(written, prompts)))
    for index, grid in enumerate(study.grids):
        for axis in Grid.model_fields:
            values = getattr(grid, axis)
            if axis == "masks":
                values = [getattr(parsed(Mask, text), "text", text) for text in values]
            yield from repeated(("grids", index, axis), values)

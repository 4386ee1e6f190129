"""A study, or as much of one as could be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tokinfo.study.sources import Source
from tokinfo.study.study import Study

Parsed = TypeVar("Parsed")


def parsed(parse: Callable[[str], Parsed], text: str) -> Parsed | None:
    """Return what a text stands for; None: its form is wrong, a mistake reported elsewhere."""
    try:
        return parse(text)
    except ValueError:
        return None


@dataclass
class Draft:
    """A study, or as much of one as could be read.

    Attributes:
        study: the part that is valid in itself.
        broken: (section, name) of entries that are there but could not be read.
        repaired: (section, name, key) of wrong values that a default stands in for.
        sections: sections that are absent or no mapping: nothing refers to them in vain.
        complete: whether the study is valid in itself as a whole.
    """

    study: Study
    broken: set[tuple[str, str]] = field(default_factory=set)
    repaired: set[tuple[str, str, str]] = field(default_factory=set)
    sections: set[str] = field(default_factory=set)
    complete: bool = True

    def names(self, section: str) -> list[str]:
        """Return every name a section has, readable or not."""
        broken = [name for place, name in self.broken if place == section]
        return [*getattr(self.study, section), *broken]

    def sound(self, section: str, name: str, *keys: str) -> bool:
        """Return whether an entry's values of these keys were read as they were written."""
        there = name in getattr(self.study, section)
        return there and not any((section, name, key) in self.repaired for key in keys)

    def source(self, model: str) -> Source | None:
        """Return the source of a model, or None where either could not be read."""
        settings = self.study.models.get(model)
        return None if settings is None else self.study.sources.get(settings.source)

    def sound_source(self, model: str) -> Source | None:
        """Return the source of a model if all that decides its weights was read as written."""
        if not self.sound("models", model, "state", "seed"):
            return None
        name = self.study.models[model].source
        return self.source(model) if self.sound("sources", name, "n_ctx") else None

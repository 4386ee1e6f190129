"""Sites: where in a model activations are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from tokinfo.io.errors import InvalidError
from tokinfo.study.written import Written

Place = Literal["embedding", "attention", "mlp", "block"]
_PATTERN = re.compile(r"^(?:(embedding)|(attention|mlp|block)\.([1-9][0-9]{0,5}|last))\Z")
ALLOWED = "embedding, or attention.K, mlp.K, block.K with K = 1, 2, ... or last"


@dataclass(frozen=True)
class Site(Written):
    """A place in one block (1-based), or the embedding itself.

    ``block`` is 0 for the embedding and -1 for the last block of a model whose depth is
    not yet known (`resolve` replaces it).

    >>> Site.parse("block.last").resolve(8)
    Site(place='block', block=8)
    """

    place: Place
    block: int

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site from its name; raises ValueError naming what is allowed."""
        match = _PATTERN.match(text)
        if match is None:
            raise InvalidError(f"site {text!r}: allowed: {ALLOWED}")
        embedding, place, number = match.groups()
        if embedding:
            return cls("embedding", 0)
        return cls(cast(Place, place), -1 if number == "last" else int(number))

    def resolve(self, blocks: int) -> Site:
        """Return the same site with `last` replaced by the model's number of blocks."""
        return Site(self.place, blocks) if self.block == -1 else self

    def __str__(self) -> str:
        if self.place == "embedding":
            return "embedding"
        return f"{self.place}.{'last' if self.block == -1 else self.block}"

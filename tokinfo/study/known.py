"""Known tokens: the positions of a prompt whose token the observer is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokinfo.io.errors import InvalidError
from tokinfo.study import masks
from tokinfo.study.masks import Mask, Spans
from tokinfo.study.written import Written

NONE, VISIBLE = "none", "visible"
ALLOWED = f"none, visible, or {masks.SLICES}"


@dataclass(frozen=True)
class Known(Written):
    """The positions whose token is given: none, all visible ones, or a Python slice or index.

    A slice counts the prompt's own positions: pads are never known. Its text is kept in one
    canonical form, as a mask's is. Raises InvalidError when ``text`` is none of these.

    >>> Known("8:").positions(Mask("1:"), 10)
    [8, 9]
    >>> Known("visible").positions(Mask("1:"), 4)
    [1, 2, 3]
    """

    text: str

    def __post_init__(self) -> None:
        text = self.text.strip()
        if text not in (NONE, VISIBLE):
            try:
                if (mask := Mask(text)).named:
                    raise InvalidError(f"mask {text!r}: allowed: {masks.ALLOWED}")
                text = mask.text
            except InvalidError as error:
                message = str(error).replace("mask", "known", 1)
                raise InvalidError(message.replace(masks.ALLOWED, ALLOWED)) from None
        object.__setattr__(self, "text", text)

    @classmethod
    def parse(cls, text: str) -> Known:
        """Read it from its text."""
        return cls(text)

    def __str__(self) -> str:
        return self.text

    @property
    def slug(self) -> str:
        """It in letters that are safe in a file name, one-to-one.

        >>> [Known(text).slug for text in ("none", "visible", "8:", "-1")]
        ['none', 'visible', 'from8', 'at-1']
        """
        return self.text if self.text in (NONE, VISIBLE) else Mask(self.text).slug

    def positions(
        self, mask: Mask, length: int, seen: int | None = None, spans: Spans | None = None
    ) -> list[int]:
        """Return the known positions of a prompt, in order.

        Args:
            mask: the cell's, which leaves the visible positions.
            length: tokens of the prompt.
            seen: positions that the model sees, to which the mask applies; more than ``length``
                where the prompt is padded on purpose. None: ``length``.
            spans: of a chat, the positions of each role's contents, for a mask of roles.
        """
        return list(self._known(mask, length, seen, spans))

    def count(
        self, mask: Mask, length: int, seen: int | None = None, spans: Spans | None = None
    ) -> int:
        """Return how many positions of a prompt are known; arguments as `positions` takes them."""
        return len(self._known(mask, length, seen, spans))

    def left(
        self, mask: Mask, length: int, seen: int | None = None, spans: Spans | None = None
    ) -> int:
        """Return how many tokens in question are left to find.

        In question are a prompt's hidden tokens, or all of them where the mask is to hide none.
        Arguments as `positions` takes them.

        >>> Known("2:").left(Mask("1:"), 4), Known(":1").left(Mask("1:"), 4)
        (1, 0)
        >>> Known("1:").left(Mask(":"), 4), Known("visible").left(Mask(":"), 4)
        (1, 0)
        """
        known = self._known(mask, length, seen, spans)
        if not mask.hides:
            return length - len(known)
        visible = _below(mask.positions(length if seen is None else seen, spans), length)
        return length - len(visible) - len(known) + _shared(visible, known)

    def _known(
        self, mask: Mask, length: int, seen: int | None, spans: Spans | None
    ) -> Sequence[int]:
        if self.text == NONE:
            return range(0)
        if self.text == VISIBLE:
            return _below(mask.positions(length if seen is None else seen, spans), length)
        return Mask(self.text).positions(length)


def _below(positions: Sequence[int], end: int) -> Sequence[int]:
    if not isinstance(positions, range):
        return [position for position in positions if position < end]
    return range(positions.start, min(positions.stop, end), positions.step)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many positions two have in common, at once for ranges of step 1."""
    if isinstance(one, range) and isinstance(other, range) and one.step == other.step == 1:
        return max(0, min(one.stop, other.stop) - max(one.start, other.start))
    return len(set(one).intersection(other))

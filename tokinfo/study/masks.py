"""Masks: which token positions stay visible, as a Python slice or by what is hidden."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokinfo.io.errors import InvalidError
from tokinfo.study.prompts import ROLES
from tokinfo.study.written import Written

_INTEGER = re.compile(r"-?[0-9]{1,9}\Z")
SLICES = "a Python slice or index such as ':', '1:', ':2', '2:5', '::2' or '-1'"
HIDE = "hide="
ALLOWED = f"{SLICES}, or '{HIDE}' and roles of messages: {', '.join(ROLES)}"

Spans = Mapping[str, Sequence[int]]
"""Positions of the tokens that hold something of the contents of each role's messages."""


@dataclass(frozen=True)
class Mask(Written):
    """The visible positions of a sequence: a Python slice or index, or all but some contents.

    ``hide=`` names roles of a chat's messages: the tokens that hold something of their contents
    are hidden, and all others are visible. Where those tokens are, spans say.

    The text is kept in one canonical form (``0:`` and ``::1`` are ``:``): masks that leave the
    same positions visible at every length are equal and share one slug. Raises InvalidError when
    ``text`` is none of these.

    >>> Mask("1:").visible(4)
    [1, 2, 3]
    >>> Mask("-1").visible(4)
    [3]
    >>> Mask("hide=system").visible(4, {"system": [1, 2], "user": [3]})
    [0, 3]
    """

    text: str

    def __post_init__(self) -> None:
        text = self.text.strip()
        if text.startswith(HIDE):
            named = [role.strip() for role in text.removeprefix(HIDE).split(",")]
            if not set(named) <= set(ROLES):
                raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}")
            roles = ",".join(role for role in ROLES if role in named)
            object.__setattr__(self, "text", HIDE + roles)
            return
        parts = text.split(":")
        if len(parts) > 3 or not all(_INTEGER.match(p) or (p == "" and ":" in text) for p in parts):
            raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}")
        if len(parts) == 3 and parts[2] and int(parts[2]) <= 0:
            raise InvalidError(f"mask {text!r}: the step must be 1 or more")
        numbers = [str(int(part)) if part else "" for part in parts]
        if len(numbers) > 1:
            start, stop = numbers[0].removeprefix("0"), numbers[1]
            step = numbers[2] if len(numbers) == 3 and numbers[2] != "1" else ""
            numbers = [start, stop, step] if step else [start, stop]
        object.__setattr__(self, "text", ":".join(numbers))

    @classmethod
    def parse(cls, text: str) -> Mask:
        """Read a mask from its text."""
        return cls(text)

    def __str__(self) -> str:
        return self.text

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose contents it hides; of a slice, none."""
        hidden = self.text.startswith(HIDE)
        return tuple(self.text.removeprefix(HIDE).split(",")) if hidden else ()

    @property
    def slice(self) -> slice | int:
        """The mask as a Python slice, or an index where it has no colon; it hides no roles."""
        if ":" not in self.text:
            return int(self.text)
        return slice(*(int(part) if part else None for part in self.text.split(":")))

    @property
    def hides(self) -> bool:
        """Whether the mask hides positions of a long enough prompt: every mask but `:` does."""
        return self.text != ":"

    @property
    def slug(self) -> str:
        """The mask in letters that are safe in a file name, one-to-one.

        >>> [Mask(text).slug for text in (":", "1:", ":2", "2:5", "-1", "hide=system,user")]
        ['all', 'from1', 'to2', '2to5', 'at-1', 'hide-system-user']
        """
        if self.roles:
            return "-".join(("hide", *self.roles))
        parts = self.text.split(":")
        if len(parts) == 1:
            return f"at{parts[0]}"
        start, stop = parts[0], parts[1]
        if not start and not stop:
            body = "all"
        elif not stop:
            body = f"from{start}"
        else:
            body = f"{start}to{stop}"
        return f"{body}by{parts[2]}" if len(parts) == 3 and parts[2] else body

    @property
    def leading(self) -> int | None:
        """How many leading positions it hides, and nothing else; None: it is not such a mask.

        >>> [Mask(text).leading for text in ("3:", ":", "-3:", "3:5", ":2")]
        [3, None, None, None, None]
        """
        where = self.slice if not self.roles else None
        if not isinstance(where, slice) or where.stop is not None or where.step is not None:
            return None
        return where.start if where.start is not None and where.start > 0 else None

    def visible(self, length: int, spans: Spans | None = None) -> list[int]:
        """Return the visible positions of a sequence; arguments as `positions` takes them."""
        return list(self.positions(length, spans))

    def count(self, length: int, spans: Spans | None = None) -> int:
        """Return how many positions are visible, of a slice in constant time.

        Arguments as `positions` takes them.

        >>> Mask("1:").count(4)
        3
        """
        return len(self.positions(length, spans))

    def positions(self, length: int, spans: Spans | None = None) -> Sequence[int]:
        """Return the visible positions of a sequence in order, of a slice as a range.

        Args:
            length: tokens of the sequence.
            spans: of a chat, the positions of each role's contents; slices need none.

        Raises:
            InvalidError: the mask hides a role of which there is no message.
        """
        if self.roles:
            held = spans or {}
            if lacking := [role for role in self.roles if role not in held]:
                raise InvalidError(f"mask {self.text!r}: there is no message of role {lacking[0]}")
            hidden = {position for role in self.roles for position in held[role]}
            return [position for position in range(length) if position not in hidden]
        where = self.slice
        if isinstance(where, slice):
            return range(length)[where]
        index = where + length if where < 0 else where
        return range(index, index + 1) if 0 <= index < length else range(0)

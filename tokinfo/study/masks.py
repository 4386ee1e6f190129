"""Masks: which token positions stay visible, as Python slices or by what is hidden."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokinfo.io.errors import InvalidError
from tokinfo.study.prompts import ROLES
from tokinfo.study.written import Written

_INTEGER = re.compile(r"-?[0-9]{1,9}\Z")
_PUBLISHED = re.compile(r"\[\s*:\s*,([^\[\],]*),\s*:\s*\]\Z")
"""A mask as the chapter writes it, of an array of prompts, positions and components."""
_ITEM = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[a-z]*)\s*(?:,|\Z)""")
SLICES = "a Python slice or index such as ':', '1:', ':2', '2:5', '::2' or '-1', or several ':2,4:'"
HIDE = "hide="
ALLOWED = (
    f"{SLICES}, or '{HIDE}' and what is hidden: roles of messages ({', '.join(ROLES)}), or text in "
    "quotes such as 'hide=\"seven years\"'"
)

Spans = Mapping[str, Sequence[int]]
"""Positions of the tokens that hold something of what a mask hides by name: of the contents of each
role's messages, by the role; of a text, by the text as a JSON string."""


@dataclass(frozen=True)
class Mask(Written):
    """The visible positions of a sequence: slices and indices, or all but what is named.

    Several slices or indices joined by commas leave visible what any of them does. ``hide=`` names
    roles of a chat's messages, or texts in quotes: the tokens that hold something of these roles'
    contents, or of any place where the text stands, are hidden, and all others are visible. Where
    those tokens are, spans say. The published notation ``[:, 1:, :]`` means ``1:``.

    The text is kept in one canonical form (``0:`` and ``::1`` are ``:``), so that one slice is
    equal to another that leaves the same positions visible at every length. Raises InvalidError
    when ``text`` is none of these.

    >>> Mask("1:").visible(4)
    [1, 2, 3]
    >>> Mask(":2,-1").visible(5)
    [0, 1, 4]
    >>> Mask("hide=system").visible(4, {"system": [1, 2], "user": [3]})
    [0, 3]
    >>> Mask('hide="seven years"').visible(4, {'"seven years"': [1, 2]})
    [0, 3]
    """

    text: str

    def __post_init__(self) -> None:
        text = self.text.strip()
        if text.startswith(HIDE):
            object.__setattr__(self, "text", HIDE + ",".join(_named(text)))
            return
        if published := _PUBLISHED.match(text):
            text = published[1].strip()
        parts = dict.fromkeys(_canonical(part.strip(), text) for part in text.split(","))
        object.__setattr__(self, "text", ":" if ":" in parts else ",".join(parts))

    @classmethod
    def parse(cls, text: str) -> Mask:
        """Read a mask from its text."""
        return cls(text)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def named(self) -> tuple[str, ...]:
        """What it hides by name: roles, and texts as JSON strings; of slices, nothing."""
        return tuple(_named(self.text)) if self.text.startswith(HIDE) else ()

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose contents it hides."""
        return tuple(name for name in self.named if name in ROLES)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts whose tokens it hides, as they are written in a prompt."""
        return tuple(json.loads(name) for name in self.named if name not in ROLES)

    @cached_property
    def slices(self) -> tuple[slice | int, ...]:
        """The mask as Python slices, or indices where they have no colon; none where it names."""
        return () if self.named else tuple(map(_slice, self.text.split(",")))

    @property
    def hides(self) -> bool:
        """Whether the mask hides positions of a long enough prompt: every mask but `:` does."""
        return self.text != ":"

    @property
    def slug(self) -> str:
        """The mask in letters that are safe in a file name, one-to-one.

        >>> [Mask(text).slug for text in (":", "1:", ":2", "2:5", "-1", ":2,4:")]
        ['all', 'from1', 'to2', '2to5', 'at-1', 'to2+from4']
        >>> [Mask(text).slug for text in ("hide=system,user", "hide='A b'")]
        ['hide-system-user', 'hide-text-A-b-a760b0e1']
        """
        if self.named:
            return "-".join(("hide", *self.roles, *map(_text_slug, self.texts)))
        return "+".join(map(_slug, self.text.split(",")))

    @property
    def leading(self) -> int | None:
        """How many leading positions it hides, and nothing else; None: it is not such a mask.

        >>> [Mask(text).leading for text in ("3:", ":", "-3:", "3:5", ":2")]
        [3, None, None, None, None]
        """
        where = self.slices[0] if len(self.slices) == 1 else None
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
            spans: where in it is what the mask hides by name; slices need none.

        Raises:
            InvalidError: the mask hides a role of which there is no message, or a text that is not
                there.
        """
        if self.named:
            held = {} if spans is None else spans
            if lacking := [name for name in self.named if name not in held]:
                what = f"message of role {lacking[0]}" if lacking[0] in ROLES else lacking[0]
                raise InvalidError(f"mask {self.text!r}: there is no {what}")
            hidden = {position for name in self.named for position in held[name]}
            return [position for position in range(length) if position not in hidden]
        ranges = [_range(where, length) for where in self.slices]
        return ranges[0] if len(ranges) == 1 else sorted(set().union(*ranges))


def _canonical(part: str, whole: str) -> str:
    """Return one slice or index in its canonical form; raises InvalidError."""
    numbers = part.split(":")
    if len(numbers) > 3 or not all(
        _INTEGER.match(number) or (number == "" and ":" in part) for number in numbers
    ):
        raise InvalidError(f"mask {whole!r}: allowed: {ALLOWED}")
    if len(numbers) == 3 and numbers[2] and int(numbers[2]) <= 0:
        raise InvalidError(f"mask {whole!r}: the step must be 1 or more")
    numbers = [str(int(number)) if number else "" for number in numbers]
    if len(numbers) > 1:
        start, stop = numbers[0].removeprefix("0"), numbers[1]
        step = numbers[2] if len(numbers) == 3 and numbers[2] != "1" else ""
        numbers = [start, stop, step] if step else [start, stop]
    return ":".join(numbers)


def _named(text: str) -> list[str]:
    """Return what a mask hides by name, roles first; raises InvalidError."""
    found: list[str] = []
    rest = text.removeprefix(HIDE)
    place, more = 0, True
    while more:
        item = _ITEM.match(rest, place)
        if item is None:
            raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}")
        place, more = item.end(), item[0].endswith(",")
        word = item[0].removesuffix(",").strip()
        if word[:1] == "'":
            word = json.dumps(word[1:-1], ensure_ascii=False)
        elif word[:1] == '"':
            try:
                word = json.dumps(json.loads(word), ensure_ascii=False)
            except ValueError:
                raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}") from None
        elif word not in ROLES:
            raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}")
        if word == '""':
            raise InvalidError(f"mask {text!r}: allowed: {ALLOWED}")
        found.append(word)
    texts = dict.fromkeys(word for word in found if word not in ROLES)
    return [*(role for role in ROLES if role in found), *texts]


def _slice(part: str) -> slice | int:
    if ":" not in part:
        return int(part)
    return slice(*(int(number) if number else None for number in part.split(":")))


def _range(where: slice | int, length: int) -> range:
    if isinstance(where, slice):
        return range(length)[where]
    index = where + length if where < 0 else where
    return range(index, index + 1) if 0 <= index < length else range(0)


def _slug(part: str) -> str:
    numbers = part.split(":")
    if len(numbers) == 1:
        return f"at{numbers[0]}"
    start, stop = numbers[0], numbers[1]
    if not start and not stop:
        body = "all"
    elif not stop:
        body = f"from{start}"
    else:
        body = f"{start}to{stop}"
    return f"{body}by{numbers[2]}" if len(numbers) == 3 and numbers[2] else body


def _text_slug(text: str) -> str:
    letters = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:24].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "-".join(part for part in ("text", letters, digest) if part)

"""What is wrong with a study, in one line each."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from tokinfo.io.errors import TokinfoError

Keys = tuple[str | int, ...]
"""The keys and list indices that lead to a value."""


class _Missing:
    """Stands for a value that is not there, which `None` (YAML's null) would not."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxdict = 4
_SHORT.maxlevel = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in a study.

    Attributes:
        path: the keys and list indices that lead to the value.
        value: the value as written, or `MISSING`.
        message: what is wrong with it.
        allowed: what would be right, where that can be said.
        file: the configuration file that says it, where there is one.
        line: the line of a file that is wrong in form; 0: of no use, or not known.
    """

    path: Keys
    value: object
    message: str
    allowed: str = ""
    file: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """The path as a reader writes it.

        >>> Mistake(("grids", 0, "masks", 2), "x", "").key
        'grids[0].masks[2]'
        """
        text = ""
        for part in self.path:
            name = part if not isinstance(part, str) or part.isprintable() else repr(part)
            text += f"[{name}]" if isinstance(name, int) else f".{name}"
        return text.removeprefix(".") or "(the whole file)"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        if self.path or not self.file:
            where += f": {self.key}" if where else self.key
        if self.value is not MISSING:
            where += f" = {show(self.value)}"
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        return f"{where}: {' '.join(f'{self.message}{allowed}'.split())}"


class StudyError(TokinfoError):
    """A study that cannot run; its text lists every mistake, one a line."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


def show(value: object) -> str:
    """Return a value on one short line, as YAML would have it where that differs.

    >>> show(True), show("The sky is blue.")
    ('true', "'The sky is blue.'")
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and len(value) <= _SHORT.maxlist:
        return f"[{', '.join(map(show, value))}]"
    return _SHORT.repr(value)


SYNONYMS = {
    **dict.fromkeys(("8bit", "8-bit", "int-8", "llm.int8", "load_in_8bit"), "int8"),
    **dict.fromkeys(("4bit", "4-bit", "int4", "fp4", "load_in_4bit"), "nf4"),
    **dict.fromkeys(("fp16", "half", "f16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
    **dict.fromkeys(("fp32", "f32", "full", "float"), "float32"),
}
"""What other tools call the precisions."""


def suggestion(value: object, names: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant, or nothing.

    >>> suggestion("flta", ["flat", "expanded"])
    ' (did you mean `flat`?)'
    """
    listed = list(names)
    meant = SYNONYMS.get(str(value).lower(), "")
    close = [meant] if meant in listed else difflib.get_close_matches(str(value), listed, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def listing(names: Iterable[str], none: str = "none is defined") -> str:
    """Return names as one phrase, in the order given; ``none`` where there are none."""
    return ", ".join(names) or none

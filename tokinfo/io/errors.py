"""Failures that were foreseen: one base class, one line of text each.

Whoever starts a job or a command shows the line of a foreseen error (`foreseen`) and nothing else;
any other error is a defect and keeps its traceback. No result depends on this module, so no digest
of code counts it (`tokinfo.io.provenance`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

STAMP = ".snakemake_timestamp"
"""The file that Snakemake leaves in a directory that is one of its outputs."""


def plain(text: str) -> str:
    r"""Return a text as a terminal may show it: what cannot be printed is written as its escape.

    Names of tensors and files, values of headers and titles come from elsewhere; control
    characters in them would move the cursor, colour what follows, or hide a part of it. Line
    breaks stay.

    >>> print(plain("a\x1b[31m\u202eb\udcff"))
    a\x1b[31m\u202eb\udcff
    """
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


class TokinfoError(Exception):
    """A failure that was foreseen; its text is one line for the person who started the run."""

    def __str__(self) -> str:
        return plain(super().__str__())


class InvalidError(TokinfoError, ValueError):
    """A value, a file or a combination of them that cannot be used."""


class FetchError(TokinfoError):
    """Something that has to be fetched is not there, is unreachable or is not what it should be."""


class DamagedError(InvalidError):
    """A file that cannot be read; the message names it and, for an output, the cure."""


# How torch, whose error for it is a RuntimeError, says that there is no more memory.
_NO_MEMORY = ("DefaultCPUAllocator: ", "CUDA out of memory", "std::bad_alloc", "Cannot allocate")


def is_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up, in the words of Python or of torch."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def foreseen(error: BaseException) -> str | None:
    """Return the text for the person who started a job or a command; None: the error is a defect.

    The operating system's errors (no space, no such file) say what they are about by themselves.
    """
    text = plain(" ".join(str(error).split()))
    if is_memory(error):
        return (
            f"out of memory ({text or type(error).__name__}): free some, or let fewer jobs run at "
            "once (--cores), then the same command again"
        )
    return text if text and isinstance(error, TokinfoError | OSError) else None


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the error's name without one.

    A first line that ends in a colon has its reason on the next one.

    >>> first_line(ValueError("of field 'width':\n    it is a text"))
    "of field 'width': it is a text"
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[1].strip() if lines[0].endswith(":") and len(lines) > 1 else ""
    return f"{lines[0]} {reason}".strip()


def cure(path: Path) -> str:
    """Return what to type so that the next run makes a damaged file again.

    Only outputs of the workflow have such a cure: single files, and directories that bear
    Snakemake's stamp. A user's model has none: the text is empty.

    >>> cure(Path("results/cells/a b.parquet"))
    "; to have it made again: `rm 'results/cells/a b.parquet'`, then the same command"
    """
    if (path.parent / STAMP).is_file():
        remove = f"rm -r {shlex.quote(str(path.parent))}"
    elif (path.parent / "config.json").is_file():
        return ""
    else:
        remove = f"rm {shlex.quote(str(path))}"
    return f"; to have it made again: `{remove}`, then the same command"

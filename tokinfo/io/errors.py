"""Failures that were foreseen: one base class, one line of text each.

A job or a command prints the line of a `TokinfoError` and nothing else. Any other error is a
defect and keeps its traceback.
"""

from __future__ import annotations


class TokinfoError(Exception):
    """A failure that was foreseen; its text is one line for the person who started the run."""


class InvalidError(TokinfoError, ValueError):
    """A value, a file or a combination of them that cannot be used."""


class FetchError(TokinfoError):
    """Something that has to be fetched is not there, is unreachable or is not what it should be."""


class DamagedError(InvalidError):
    """A file that cannot be read; the message names it and, for an output, the cure."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name without one."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

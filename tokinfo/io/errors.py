"""Failures that were foreseen: one base class, one line of text each.

Whoever starts a job or a command shows the line of a `TokinfoError` and nothing else; any other
error is a defect and keeps its traceback. No result depends on this module, so no digest of code
counts it (`tokinfo.io.provenance`).
"""

from __future__ import annotations

import shlex
from pathlib import Path

STAMP = ".snakemake_timestamp"
"""The file that Snakemake leaves in a directory that is one of its outputs."""


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

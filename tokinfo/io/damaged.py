"""Damaged files: one line that names the file and the command that makes it again.

Outputs get their names when they are complete (`tokinfo.io.atomic`), so a damaged one was cut or
changed afterwards: by a full disk under a copy, a transfer that broke off, a file system.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokinfo.io.errors import DamagedError, first_line

STAMP = ".snakemake_timestamp"
"""The file that Snakemake leaves in a directory that is one of its outputs."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a library's error about a file that it cannot read into one line with the cure.

    Raises:
        DamagedError: for any error of the block, save those of the operating system (which name
            the file themselves) and of memory.
    """
    try:
        yield
    except (OSError, MemoryError, DamagedError):
        raise
    except Exception as error:
        reason = f"damaged or cut short ({first_line(error)})"
        raise DamagedError(f"{path}: {reason}{cure(path)}") from None


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

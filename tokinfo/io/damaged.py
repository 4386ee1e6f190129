"""Damaged files: one line that names the file and the command that makes it again.

Outputs get their names when they are complete (`tokinfo.io.atomic`), so a damaged one was cut or
changed afterwards: by a full disk under a copy, a transfer that broke off, a file system.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokinfo.io.errors import DamagedError, cure, first_line


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
        raise DamagedError(
            f"{path}: damaged or cut short ({first_line(error)}){cure(path)}"
        ) from None

"""One job at a time, where several make or use the same file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

PATIENCE = 10.0
"""Seconds that a job waits for a lock before it prints a line."""


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other jobs from making the same file while the block runs.

    The lock is the operating system's and ends with its process. On file systems without such
    locks it is a file that names its process. The lock of a job that died on another machine
    stays, so a job that waits for long prints what it waits for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _acquired(path.with_name(f".{path.name}.lock"))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            held.release()


def _acquired(name: Path) -> BaseFileLock:
    # Imported here: most jobs take no lock.
    from filelock import FileLock, Timeout

    lock = FileLock(name, mode=0o664)  # of a group that shares downloads
    patience = PATIENCE
    while True:
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            print(
                f"{name}: waiting for the job that holds it; if no job is at work: `rm {name}`",
                file=sys.stderr,
            )
            patience *= 10
        else:
            return lock

"""Outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_ROOM = 16_384  # bytes


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.partial")


def _flush(path: Path) -> None:
    """Bring a file to the disk: after a power cut a new name must not lead to half of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming_a_full_disk(path: Path) -> Iterator[None]:
    """Raise the system's error for a full disk where a library raises another one for it.

    A write that fails for lack of room fills the disk first, so that no room is left afterwards.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize >= _NO_ROOM:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; it becomes ``path`` when the block ends without an error.

    The name is in the same directory, so the change is one rename. What a killed attempt left
    under it is overwritten.
    """
    partial = _partial(path)
    partial.write_bytes(b"")
    mode = partial.stat().st_mode
    try:
        with _naming_a_full_disk(path):
            yield partial
        # Some writers (safetensors) make files that only their owner may read.
        partial.chmod(mode)
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; it becomes ``path`` when the block ends without an error.

    A directory already at ``path`` is removed just before the rename.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with _naming_a_full_disk(path):
            yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Outputs that appear whole or not at all, with digests by which a later change of them is seen.

Readers hold files to these digests by `tokinfo.io.damaged`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokinfo.io.errors import TokinfoError

_NO_ROOM = 1 << 20
"""Bytes left on a disk that counts as full where a library fails: it may write as many at once."""

SUMS = "tokinfo.sha256"
"""The file in an output directory with the SHA-256 of its other files; `sha256sum -c` reads it."""
UNSEALED = {"sha256": "0" * 64}
"""Metadata of a safetensors file that `seal` puts the file's own digest into."""
_SEAL = re.compile(rb'"sha256":"([^"]{64})"')


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
    except (OSError, TokinfoError):
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

    A directory already at ``path`` is removed just before the rename. The directory, and each one
    below it, gets the digests of its files (`SUMS`).
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with _naming_a_full_disk(path):
            yield partial
            for directory in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                _write_sums(directory)
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def files_of(directory: Path) -> dict[str, Path]:
    """Return the files of a directory that have digests, by name: all but hidden ones."""
    found = sorted(path for path in directory.iterdir() if path.is_file())
    return {path.name: path for path in found if path.name[0] != "." and path.name != SUMS}


def _write_sums(directory: Path) -> None:
    digests = {name: file_digest(path) for name, path in files_of(directory).items()}
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (directory / SUMS).write_text("".join(lines), encoding="utf-8")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Put the digest of a safetensors file, written with `UNSEALED`, into its metadata."""
    start, found, digest = sealed(path)
    if found is not None:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(digest.encode())


def save_sealed(
    tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file that holds its own digest, whole or not at all."""
    from safetensors.torch import save_file

    with new_file(path) as partial:
        save_file(dict(tensors), str(partial), metadata={**(metadata or {}), **UNSEALED})
        seal(partial)


def sealed(path: Path) -> tuple[int, str | None, str]:
    """Return where a safetensors file holds its digest, which it is, and which it should be.

    The digest is of the file's bytes with zeros in its own place. It is None in a file without.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        match = _SEAL.search(file.read(min(size, path.stat().st_size)))
        if match is None:
            return 0, None, ""
        start = 8 + match.start(1)
        file.seek(0)
        digest = hashlib.sha256(file.read(start) + UNSEALED["sha256"].encode())
        file.seek(start + 64)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return start, match[1].decode(errors="replace"), digest.hexdigest()

"""Files on this machine: parts of them, and model directories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokinfo.io.errors import FetchError


class LocalOrigin:
    """A model directory on this machine."""

    cache = None

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"model {directory}"

    def files(self) -> dict[str, int]:
        """Return the sizes of the files in the directory."""
        if not self.directory.is_dir():
            raise FetchError(f"{self.name}: there is no such directory")
        found = sorted(self.directory.iterdir())
        return {path.name: path.stat().st_size for path in found if path.is_file()}

    def whole(self, file: str) -> Path:
        """Return the path of a file."""
        return self.directory / file

    def prepare(self, file: str) -> None:
        """Do nothing: every part of a file is at hand."""

    def sha256(self, file: str) -> str | None:
        """Return None: there is no published hash of its files."""
        return None

    def doubt(self) -> None:
        """Do nothing: what is known of the files is read from the disk."""

    def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``end`` of a file."""
        return read(self.directory / file, start, end)


def read(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes ``start`` to ``end`` of a file."""
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            left -= len(chunk)
            yield chunk

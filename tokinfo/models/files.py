"""Files on this machine: parts of them, model directories, and one writer at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported when used

from tokinfo.wheel import FetchError


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
        """Return None: nobody says what its files must be."""
        return None

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


@contextmanager
def exclusive(path: Path) -> Generator[None, None, None]:
    """Keep other jobs from making the same file: those of several depths share what they fetch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        yield

"""Damaged files: one line that names the file and the command that makes it again.

Outputs get their names when they are complete (`tokinfo.io.atomic`), so a damaged one was cut or
changed afterwards: by a full disk under a copy, a transfer that broke off, a file system. One that
can still be read is told by its digest. SHA-256 takes half a second for each gigabyte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokinfo.io.atomic import SUMS, UNSEALED, file_digest, files_of, sealed
from tokinfo.io.errors import DamagedError, FetchError, TokinfoError, cure, first_line, is_memory


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a library's error about a file that it cannot read into one line with the cure.

    Raises:
        DamagedError: for any error of the block, save those that are such lines already, those of
            the operating system (which name the file themselves), and memory.
    """
    try:
        yield
    except (OSError, TokinfoError):
        raise
    except Exception as error:
        if is_memory(error):
            raise
        raise DamagedError(
            f"{path}: damaged or cut short ({first_line(error)}){cure(path)}"
        ) from None


def check(directory: Path, *names: str) -> None:
    """Hold the files of a directory to the digests that it was written with, where it has such.

    Args:
        directory: an output of ours, or one from elsewhere, which has none.
        names: its files that are read; none named: all of them.

    Raises:
        DamagedError: a file was changed, removed or added since.
    """
    if not (directory / SUMS).is_file():
        return
    with reading(directory / SUMS):
        lines = (directory / SUMS).read_text(encoding="utf-8").splitlines()
        digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        there = files_of(directory)
    for name in names or sorted(there.keys() | digests.keys()):
        path, wanted = there.get(name), digests.get(name)
        if (None if path is None else file_digest(path)) != wanted:
            what = "is missing" if path is None else f"is not as it was written ({SUMS})"
            raise DamagedError(f"{directory / name}: {what}{cure(directory / name)}")


def check_seal(path: Path) -> None:
    """Hold a safetensors file to the digest in it (`seal`), where it has one.

    Raises DamagedError where the file was changed since.
    """
    _, found, digest = sealed(path)
    if found not in (None, UNSEALED["sha256"], digest):
        raise DamagedError(f"{path}: is not as it was written{cure(path)}")


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn any error about what others wrote into one line.

    Raises:
        FetchError: for any error of the block, save those that are such lines already, those of
            the operating system (libraries raise OSError without a number), and memory.
    """
    try:
        yield
    except Exception as error:
        system = isinstance(error, OSError) and error.errno is not None
        if system or isinstance(error, TokinfoError) or is_memory(error):
            raise
        plain = isinstance(error, ValueError | OSError)
        reason = first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"
        raise FetchError(f"{what}: {reason}") from None


def parse_json(text: bytes, *, once: bool = False) -> dict[str, Any]:
    """Return a JSON object that others wrote.

    Raises ValueError, whatever is wrong: another encoding than UTF-8, another value than an
    object, too deep nesting, and with ``once`` what many readers let pass: a key that is written
    twice, NaN and infinity.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("a key is written twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        found = (
            json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant)
            if once
            else json.loads(text.decode())
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found

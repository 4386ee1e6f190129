"""Files filled from byte ranges: in parallel, resumable, and checked before they appear.

A file grows under a temporary name beside a journal of the bytes of it that have arrived,
with their SHA-256. An attempt that is cut leaves both; the next one requests the rest only. The
file gets its name when every byte is there and still is what arrived.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tokinfo.io.errors import FetchError

PIECE = 64 << 20  # bytes of one request: fast, and still several for the threads to share
STEP = 4 << 20  # bytes between two lines of a journal: what a killed process may lose, per thread
THREADS = 8
ATTEMPTS = 5  # in a row that brought nothing
LITTLE = 1 << 14  # bytes; a stream that broke off after fewer brought nothing
WAIT = 1.0  # seconds before the second attempt; doubled for each further one


class CutError(Exception):
    """A stream ended early; the bytes that it brought are good."""


class VerifyError(FetchError):
    """A file that has arrived is not what it should be; nothing of it is kept."""


class Streams(Protocol):
    """Where bytes come from: a hub repository, or a directory on this machine."""

    def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``end`` of a file; raises CutError, FetchError."""


@dataclass(frozen=True)
class Piece:
    """Bytes of a remote file, and where they go."""

    file: str
    start: int  # first byte in that file
    size: int
    at: int  # first byte in the file to be filled

    def part(self, skip: int, size: int) -> Piece:
        """Return ``size`` bytes of this piece, ``skip`` bytes into it."""
        return Piece(self.file, self.start + skip, size, self.at + skip)


@dataclass(frozen=True)
class Arrived:
    """A line of the journal: bytes that are in the file, and their digest."""

    at: int
    size: int
    sha256: str


def fill(
    target: Path,
    origin: Streams,
    pieces: Sequence[Piece],
    *,
    head: bytes = b"",
    parallel: bool = True,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Write ``head`` and then ``pieces`` to ``target``.

    Args:
        target: the file; left alone until all of it is there.
        origin: where the pieces are.
        pieces: what follows the head, without gaps, in order.
        head: first bytes, at hand already.
        parallel: False opens one stream only (a server without ranges sends all of it).
        verify: called on the whole file under its temporary name; may raise VerifyError.

    Raises:
        FetchError: a stream broke off again and again, the disk is full, or the file on the disk
            is not what arrived.
    """
    size = len(head) + sum(piece.size for piece in pieces)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    journal = _Journal(target.with_name(f".{target.name}.journal"), head, pieces)
    if not partial.exists() or partial.stat().st_size != size:
        journal.restart()
    try:
        with partial.open("r+b" if journal.arrived else "w+b") as file:
            _reserve(file.fileno(), size)
            os.pwrite(file.fileno(), head, 0)
            _run(origin, list(_missing(pieces, journal.arrived, parallel)), file.fileno(), journal)
            os.fsync(file.fileno())
        _check(partial, journal, target)
        if verify is not None:
            verify(partial)
    except CutError as error:
        raise FetchError(f"{target.name}: the connection broke off: {error}") from error
    except VerifyError:
        partial.unlink()
        journal.remove()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What is there cannot be completed here, and keeps the disk full.
        partial.unlink(missing_ok=True)
        journal.remove()
        raise FetchError(
            f"{target}: the disk is full; this file takes {size / 1e6:.1f} MB"
        ) from error
    os.replace(partial, target)
    journal.remove()


class _Journal:
    """The lines of one file's journal; void when they are about other bytes."""

    def __init__(self, path: Path, head: bytes, pieces: Sequence[Piece]) -> None:
        self.path = path
        self.lock = threading.Lock()
        places = json.dumps([asdict(piece) for piece in pieces]).encode()
        self.title = hashlib.sha256(head + places).hexdigest()
        self.arrived: list[Arrived] = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        title, *lines = text.split("\n")
        # A process that is killed while it writes leaves half a line, which the next one must not
        # go on with: what can be read is written anew. `_check` finds what is wrong.
        entries = [_arrived(line) for line in lines] if title == self.title else []
        self.restart([entry for entry in entries if entry is not None])

    def restart(self, arrived: Sequence[Arrived] = ()) -> None:
        self.arrived = list(arrived)
        lines = [self.title, *(json.dumps(asdict(line)) for line in arrived)]
        self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, line: Arrived) -> None:
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            self.arrived.append(line)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _arrived(line: str) -> Arrived | None:
    try:
        entry = json.loads(line)
        return Arrived(int(entry["at"]), int(entry["size"]), str(entry["sha256"]))
    except (ValueError, TypeError, KeyError):
        return None


def _reserve(file: int, size: int) -> None:
    """Take the space at once, so that a full disk is noticed before hours of fetching."""
    if size:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(file, size)


def _missing(
    pieces: Sequence[Piece], arrived: Sequence[Arrived], parallel: bool
) -> Iterator[Piece]:
    """Yield what has not arrived yet, cut to the size of one request."""
    there = sorted((line.at, line.size) for line in arrived)
    for piece in pieces:
        done = 0  # bytes of this piece looked at
        for at, size in [*there, (piece.at + piece.size, 0)]:
            if not piece.at + done <= at <= piece.at + piece.size:
                continue
            gap = at - piece.at - done
            longest = PIECE if parallel else max(gap, 1)
            for skip in range(0, gap, longest):
                yield piece.part(done + skip, min(longest, gap - skip))
            done += gap + size


def _run(origin: Streams, pieces: Sequence[Piece], file: int, journal: _Journal) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(_bring, origin, piece, file, journal, stop) for piece in pieces]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            # What the other threads' streams have brought stays in the journal.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _bring(
    origin: Streams, piece: Piece, file: int, journal: _Journal, stop: threading.Event
) -> None:
    """Fetch one piece; a stream that breaks off is taken up where it ended."""
    done, failures = 0, 0
    while done < piece.size and not stop.is_set():
        rest = piece.part(done, piece.size - done)
        try:
            brought = _stream(origin, rest, file, journal, stop)
        except _Broken as broken:
            brought = broken.brought
            failures = 0 if brought >= LITTLE else failures + 1
            if failures == ATTEMPTS:
                raise CutError(str(broken)) from None
            time.sleep(WAIT * 2**failures if failures else 0)
        done += brought


class _Broken(Exception):
    def __init__(self, brought: int, why: object) -> None:
        super().__init__(str(why))
        self.brought = brought


def _stream(
    origin: Streams, piece: Piece, file: int, journal: _Journal, stop: threading.Event
) -> int:
    """Write one stream's bytes to the file and its journal; returns how many they were."""
    written, noted = 0, 0
    digest = hashlib.sha256()

    def note() -> None:
        nonlocal noted, digest
        if written > noted:
            journal.add(Arrived(piece.at + noted, written - noted, digest.hexdigest()))
            noted, digest = written, hashlib.sha256()

    try:
        with contextlib.closing(_iterate(origin, piece)) as chunks:
            for chunk in chunks:
                os.pwrite(file, chunk, piece.at + written)
                digest.update(chunk)
                written += len(chunk)
                if written - noted >= STEP:
                    note()
                if stop.is_set():
                    break
    except CutError as error:
        note()
        raise _Broken(written, error) from None
    finally:
        note()
    if written < piece.size and not stop.is_set():
        raise _Broken(written, f"{piece.file} ended {piece.size - written} bytes early")
    return written


def _iterate(origin: Streams, piece: Piece) -> Generator[bytes, None, None]:
    """Yield no more bytes than the piece has."""
    left = piece.size
    for chunk in origin.stream(piece.file, piece.start, piece.start + piece.size):
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


def _check(partial: Path, journal: _Journal, target: Path) -> None:
    """Read the file again; raises VerifyError where the disk holds something else."""
    with partial.open("rb") as file:
        for line in sorted(journal.arrived, key=lambda line: line.at):
            digest = hashlib.sha256()
            file.seek(line.at)
            left = line.size
            while left and (chunk := file.read(min(left, STEP))):
                digest.update(chunk)
                left -= len(chunk)
            if digest.hexdigest() != line.sha256:
                raise VerifyError(f"{target}: the disk did not keep what arrived; run again")

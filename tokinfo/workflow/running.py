"""Who is at work in a directory: runs of Snakemake, and their jobs.

Snakemake's locks are files without an owner. A run that is killed (SIGKILL, power) leaves them,
and the next one refuses until somebody who knows that nothing runs says `--unlock`. Here each run
leaves a mark of its own that names it and its locks, and holds a lock of the operating system on it
(`flock`), which ends with its process whatever ends it. The locks that the mark of a dead run names
can then be taken away, and no others. Jobs hold such a lock too, because those of a killed run may
live on and write to the same files.

Where there are no such locks (some network file systems), or where a run on another machine left
its mark, nothing is concluded: Snakemake's lock stays, and a message says what to type.

This module imports nothing heavy: the Snakefile reads it again in every cluster job.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

KEPT = Path(".snakemake")
"""Where Snakemake keeps what it remembers of a directory."""

_RUNS, _JOBS = "tokinfo.runs", "tokinfo.jobs"
_SECOND, _PATIENCE = 1.0, 10.0  # to look at another process's lock, and to wait for a job's
_held: list[int] = []  # descriptors that stay open until the process ends


class _Mark(NamedTuple):
    """The mark of one run.

    Attributes:
        path: its file.
        record: who the run is.
        locks: those of Snakemake's locks that are the run's and are still there.
    """

    path: Path
    record: dict[str, Any]
    locks: list[Path]

    @property
    def who(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.record["begun"]))
        return f"process {self.record['process']} on {self.record['host']}, since {begun}"


def begin(directory: Path, locks: Iterable[str] = (), *, elsewhere: bool = False) -> None:
    """Say that this process runs Snakemake in a directory, until it ends, however it ends.

    Args:
        directory: where Snakemake runs.
        locks: the files that are its locks.
        elsewhere: its jobs are handed to a cluster.
    """
    with contextlib.suppress(OSError):
        record = {"host": socket.gethostname(), "process": os.getpid(), "begun": time.time()}
        record |= {"elsewhere": elsewhere, "locks": {Path(p).name: _identity(p) for p in locks}}
        path = directory / KEPT / _RUNS / uuid.uuid4().hex
        unfinished = path.with_suffix(".partial")
        mark = _open(unfinished)
        # Before it has its name, so that nobody sees a mark that says nothing or is not held.
        fcntl.flock(mark, fcntl.LOCK_SH)
        os.write(mark, json.dumps(record).encode())
        os.replace(unfinished, path)
        _held.append(mark)


@contextlib.contextmanager
def at_work(directory: Path) -> Iterator[None]:
    """Say that a job is at work in a directory while the block runs."""
    descriptor = -1
    if (directory / KEPT).is_dir():
        with contextlib.suppress(OSError):
            descriptor = _open(directory / KEPT / _JOBS)
            _lock(descriptor, fcntl.LOCK_SH, _PATIENCE)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def look(directory: Path, unlock: str = "snakemake --unlock") -> str | None:
    """Take away the lock of a run that is dead, and say in one line what was found.

    Args:
        directory: where Snakemake runs.
        unlock: what a user would type to take Snakemake's lock away.

    Returns:
        None when nothing is locked. Snakemake itself refuses wherever its lock is left.
    """
    try:
        return _look(directory, unlock)
    except OSError:  # no locks of the operating system here
        return None


def _look(directory: Path, unlock: str) -> str | None:
    with _marks(directory) as (living, dead):
        if living:
            return (
                f"a snakemake is running in {directory} ({living[0].who}): wait for it, or stop it"
            )
        here = [mark for mark in dead if mark.record["host"] == socket.gethostname()]
        if here and (left := _jobs(directory)):
            return left
        freed = [mark for mark in here if not mark.record["elsewhere"]]
        line = None
        for mark in freed:
            for lock in mark.locks:
                lock.unlink(missing_ok=True)
                line = f"a run that was killed ({mark.who}) had left {directory} locked: unlocked"
        kept = [mark for mark in dead if mark not in freed and mark.locks]
        for mark in dead:
            if mark not in kept:
                mark.path.unlink(missing_ok=True)
        if not any((directory / KEPT / "locks").glob("*.lock")):
            return line
        locked = f"{directory} is locked by a snakemake"
        again = f"`{unlock}`, then the same command again"
        if not kept:
            return f"{locked} that is starting or was killed; if none runs there: {again}"
        if kept[0] not in here:
            return f"{locked} on another machine ({kept[0].who}); if it is gone: {again}"
        return (
            f"{locked} that was killed ({kept[0].who}); its jobs may be waiting on the cluster "
            f"still (squeue): once none is, {again}"
        )


def busy(directory: Path) -> str | None:
    """Return one line about who is at work in a directory; None: no run or job is found."""
    try:
        with _marks(directory) as (living, _):
            if living:
                return f"a snakemake is running in {directory} ({living[0].who})"
            return _jobs(directory)
    except OSError:
        return None


@contextlib.contextmanager
def _marks(directory: Path) -> Iterator[tuple[list[_Mark], list[_Mark]]]:
    """Yield the marks of runs that live and of those that are dead, as far as this machine knows.

    While the block runs, no other process can conclude the same of those that are dead.
    """
    living: list[_Mark] = []
    dead: list[_Mark] = []
    with contextlib.ExitStack() as stack:
        for path in sorted((directory / KEPT / _RUNS).glob("*")):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                stack.callback(os.close, descriptor)
                record = _record(descriptor)
                if record is None:
                    continue
                locks = [
                    lock
                    for name, identity in record["locks"].items()
                    if _identity(lock := directory / KEPT / "locks" / name) == identity
                ]
                free = _lock(descriptor, fcntl.LOCK_EX)
                (dead if free else living).append(_Mark(path, record, locks))
        yield living, dead


def _identity(lock: str | Path) -> list[int] | None:
    """Return what tells a lock from a later one of the same name; None: it is not there."""
    try:
        status = os.stat(lock)
    except OSError:
        return None
    return [status.st_ino, status.st_mtime_ns]


def _jobs(directory: Path) -> str | None:
    """Return one line about jobs that are still at work although their run is dead."""
    path = directory / KEPT / _JOBS
    if not path.exists():
        return None
    descriptor = _open(path)
    try:
        if _lock(descriptor, fcntl.LOCK_EX):
            return None
        holders = _holders(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    numbers = " ".join(map(str, holders))
    stop = f", or stop them: `kill {numbers}`" if holders else ""
    return (
        f"jobs of a run that was killed are still at work in {directory}: wait for them{stop}; "
        "then the same command again"
    )


def _holders(status: os.stat_result) -> list[int]:
    """Return the processes of this machine that hold a lock on a file (Linux: /proc/locks)."""
    table = Path("/proc/locks")
    if not table.is_file():
        return []
    found = set()
    for line in table.read_text(encoding="ascii").splitlines():
        fields = line.split()
        if "->" in fields or fields[1] != "FLOCK" or not fields[5].endswith(f":{status.st_ino}"):
            continue
        # Files of other devices may have the same number.
        if _has_open(fields[4], status):
            found.add(int(fields[4]))
    return sorted(found)


def _has_open(process: str, status: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(descriptor.stat(), status):
                    return True
    return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _lock(descriptor: int, kind: int, seconds: float = _SECOND) -> bool:
    """Lock a file; False: another process holds it, and not only for a moment."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)


def _record(descriptor: int) -> dict[str, Any] | None:
    try:
        record = json.loads(os.pread(descriptor, 1 << 16, 0))
        whole = {"host", "process", "begun", "elsewhere", "locks"} <= set(record)
        return record if whole and isinstance(record["locks"], dict) else None
    except (ValueError, TypeError):
        return None

"""Who is at work in a directory: runs of Snakemake, and their jobs.

Snakemake's lock is a file without an owner. A run that is killed (SIGKILL, power) leaves it,
and the next one refuses until somebody who knows that nothing runs says `--unlock`. Here a run
says who it is and holds a lock of the operating system (`flock`), which ends with its process
whatever ends it. The lock of a run that is provably dead can then be taken away. Jobs hold one
too, because those of a killed run may live on and write to the same files.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT = Path(".snakemake")
"""Where Snakemake keeps what it remembers of a directory."""

_RUN, _JOBS = "tokinfo.run", "tokinfo.jobs"
_SECOND, _PATIENCE = 1.0, 10.0  # to look at another run's lock, and to wait for this run's
_MARK = 512  # bytes of a mark, as long as any
_held: list[int] = []  # descriptors that stay open until the process ends


def begin(directory: Path, *, elsewhere: bool = False) -> None:
    """Say that this process runs Snakemake in a directory, until it ends, however it ends.

    Args:
        directory: where Snakemake runs.
        elsewhere: its jobs are handed to a cluster.
    """
    with contextlib.suppress(OSError):
        mark = _open(directory / KEPT / _RUN)
        if not _lock(mark, fcntl.LOCK_SH, _PATIENCE):
            os.close(mark)
            return
        record = {"host": socket.gethostname(), "process": os.getpid(), "begun": time.time()}
        # In one piece: another run may begin at the same moment.
        os.pwrite(mark, json.dumps(record | {"elsewhere": elsewhere}).ljust(_MARK).encode(), 0)
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
    locks = sorted((directory / KEPT / "locks").glob("*.lock"))
    unknown = (
        f"{directory} is locked, by a snakemake that is starting or was killed; if none runs "
        f"there: `{unlock}`, then the same command again"
    )
    if not (directory / KEPT / _RUN).exists():
        return unknown if locks else None
    mark = _open(directory / KEPT / _RUN)
    try:
        if not _lock(mark, fcntl.LOCK_EX):
            return f"a snakemake is running in {directory} ({_runs(mark)}): wait for it, or stop it"
        record = _record(mark)
        if record is None:
            return unknown if locks else None
        if locks and record["host"] != socket.gethostname():
            return (
                f"{directory} is locked by a snakemake on another machine ({_who(record)}); if it "
                f"is gone: `{unlock}`, then the same command again"
            )
        if left := _jobs(directory):
            return left
        if locks and record.get("elsewhere"):
            return (
                f"{directory} is locked by a snakemake that was killed ({_who(record)}); its jobs "
                f"may be waiting on the cluster still (squeue): once none is, `{unlock}`, then the "
                "same command again"
            )
        for lock in locks:
            lock.unlink(missing_ok=True)
        # Under the lock that is held here, so that no other process concludes the same of a run
        # that has begun since: an empty mark belongs to no run.
        os.ftruncate(mark, 0)
        line = f"a run that was killed ({_who(record)}) had left {directory} locked: unlocked"
        return line if locks else None
    finally:
        os.close(mark)


def busy(directory: Path) -> str | None:
    """Return one line about who is at work in a directory; None: no run or job is found."""
    try:
        if (directory / KEPT / _RUN).exists():
            mark = _open(directory / KEPT / _RUN)
            try:
                if not _lock(mark, fcntl.LOCK_EX):
                    return f"a snakemake is running in {directory} ({_runs(mark)})"
            finally:
                os.close(mark)
        return _jobs(directory)
    except OSError:
        return None


def _who(record: dict[str, Any]) -> str:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["begun"]))
    return f"process {record['process']} on {record['host']}, since {begun}"


def _runs(mark: int) -> str:
    """Return who holds a mark: the run that wrote its name there, or another that is left."""
    record, holders = _record(mark), _holders(os.fstat(mark))
    if record is not None and (not holders or record["process"] in holders):
        return _who(record)
    return f"process {' '.join(map(str, holders))}" if holders else "it does not say which"


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
    path.parent.mkdir(exist_ok=True)
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
        record = json.loads(os.pread(descriptor, 4096, 0))
        return record if {"host", "process", "begun"} <= set(record) else None
    except (ValueError, TypeError):
        return None

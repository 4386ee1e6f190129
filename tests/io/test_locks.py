"""Locks: one job at a time, whatever the file system has for locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tokinfo.io import locks
from tokinfo.io.locks import exclusive


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


SOFT = pytest.mark.filterwarnings("ignore:flock not supported")


@SOFT
@pytest.mark.parametrize("locks", [True, False], ids=["flock", "no flock"])
def test_one_job_is_inside_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    inside: list[int] = []
    most: list[int] = []

    def job(number: int) -> None:
        with exclusive(tmp_path / "deep" / "file"):
            inside.append(number)
            most.append(len(inside))
            Event().wait(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(8)))
    assert most == [1] * 8


def test_a_job_that_fails_releases_its_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), exclusive(tmp_path / "file"):
        raise ValueError("mine")
    with exclusive(tmp_path / "file"):
        pass


@SOFT
def test_a_job_that_waits_for_long_names_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the system's locks, one of a job that died on another machine stays for ever."""
    lock = tmp_path / ".file.lock"
    lock.write_text(f"1\n{socket.gethostname()}-2\n")
    lines: list[str] = []

    def obeyed(message: str, **_: object) -> None:
        lines.append(message)
        lock.unlink()

    monkeypatch.setattr(fcntl, "flock", no_flock)
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    monkeypatch.setattr(locks, "print", obeyed, raising=False)
    with exclusive(tmp_path / "file"):
        pass
    (message,) = lines
    assert f"if no job is at work: `rm {lock}`" in message

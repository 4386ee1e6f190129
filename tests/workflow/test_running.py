from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY
from tokinfo.workflow import running

CODE = """
import sys, time
from pathlib import Path
from tokinfo.workflow import running
directory, *locks = sys.argv[1:]
elsewhere = "elsewhere" in locks
locks = [Path(directory, ".snakemake", "locks", name) for name in locks if name != "elsewhere"]
running.begin(Path(directory), locks, elsewhere=elsewhere)
print("begun", flush=True)
time.sleep(600)
"""


LOCK = "0.output.lock"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_lock(tmp_path)
    return tmp_path


def make_lock(directory: Path, name: str = LOCK) -> str:
    path = directory / ".snakemake" / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("results/a\n")
    return name


def locks(directory: Path) -> list[str]:
    return sorted(lock.name for lock in (directory / ".snakemake" / "locks").iterdir())


def marks(directory: Path) -> list[Path]:
    return sorted((directory / ".snakemake" / "tokinfo.runs").iterdir())


def another_run(directory: Path, *more: str, lock: str = LOCK) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, str(directory), lock, *more],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    return run


def test_the_lock_of_a_living_run_stays_and_it_is_named(directory: Path) -> None:
    run = another_run(directory)
    try:
        line = running.look(directory)
        assert line is not None
        assert line.startswith(f"a snakemake is running in {directory} (process {run.pid} on ")
        assert locks(directory) == [LOCK]
        assert (running.busy(directory) or "").startswith("a snakemake is running in ")
    finally:
        run.kill()
        run.wait()


def test_the_lock_of_a_run_that_was_killed_is_taken_away_once(directory: Path) -> None:
    run = another_run(directory)
    run.send_signal(signal.SIGKILL)
    run.wait()
    line = running.look(directory)
    assert line is not None
    assert line.startswith(f"a run that was killed (process {run.pid} on ")
    assert locks(directory) == []
    assert running.look(directory) is None
    # What another run locks from now on is not the dead one's.
    make_lock(directory)
    assert "starting or was killed" in (running.look(directory) or "")
    assert locks(directory) == [LOCK]


def test_the_run_that_is_left_of_two_is_seen(directory: Path) -> None:
    """Snakemake lets two run beside each other where they make different files."""
    first = another_run(directory)
    second = another_run(directory, lock=make_lock(directory, "1.output.lock"))
    try:
        for ended, left in ((second, first), (first, None)):
            ended.kill()
            ended.wait()
            line, busy = running.look(directory) or "", running.busy(directory)
            if left is None:
                assert (busy, locks(directory)) == (None, [])
            else:
                assert line.startswith(f"a snakemake is running in {directory} (process {left.pid}")
                assert f"(process {left.pid}" in (busy or "")
                assert locks(directory) == [LOCK, "1.output.lock"]
    finally:
        for run in (first, second):
            run.kill()
            run.wait()


def test_a_killed_run_whose_jobs_may_wait_on_a_cluster_is_not_unlocked(directory: Path) -> None:
    run = another_run(directory, "elsewhere")
    run.kill()
    run.wait()
    for _ in range(2):
        line = running.look(directory, "snakemake --profile slurm --unlock") or ""
        assert "may be waiting on the cluster still (squeue)" in line
        assert "once none is, `snakemake --profile slurm --unlock`, then the same" in line
        assert locks(directory) == [LOCK]
    (directory / ".snakemake" / "locks" / LOCK).unlink()
    assert running.look(directory) is None
    assert marks(directory) == []


def test_nothing_is_unlocked_while_a_job_of_the_dead_run_is_at_work(directory: Path) -> None:
    run = another_run(directory)
    run.kill()
    run.wait()
    with running.at_work(directory):
        line = running.look(directory)
        assert line is not None
        assert line.startswith("jobs of a run that was killed are still at work in ")
        assert f"`kill {os.getpid()}`" in line
        assert locks(directory) == [LOCK]
    assert "unlocked" in (running.look(directory) or "")


def of_another_machine(directory: Path) -> None:
    """Let the only mark be of another machine, whose locks of the system are not seen here."""
    run = another_run(directory)
    run.kill()
    run.wait()
    (mark,) = marks(directory)
    record = json.loads(mark.read_text()) | {"host": socket.gethostname() + "-2"}
    mark.write_text(json.dumps(record))


def test_a_run_on_another_machine_is_not_judged(directory: Path) -> None:
    of_another_machine(directory)
    line = running.look(directory, "snakemake --cores 1 --unlock")
    assert line is not None
    assert "another machine" in line
    assert "`snakemake --cores 1 --unlock`, then the same command" in line
    assert locks(directory) == [LOCK]


@pytest.mark.parametrize("first", ["elsewhere", "another machine", "starting", "later"])
def test_only_the_locks_of_the_dead_run_itself_are_taken_away(directory: Path, first: str) -> None:
    """Of two runs beside each other one is killed; the other may live, and its lock stays."""
    if first == "another machine":
        of_another_machine(directory)
    elif first == "elsewhere":
        run = another_run(directory, "elsewhere")
        run.kill()
        run.wait()
    second = another_run(directory, lock=make_lock(directory, "1.output.lock"))
    second.kill()
    second.wait()
    if first == "later":  # somebody unlocked, and a run that is starting has a lock of the name
        (directory / ".snakemake" / "locks" / "1.output.lock").unlink()
        os.utime(directory / ".snakemake" / "locks" / LOCK, (0, 0))
        os.rename(
            directory / ".snakemake" / "locks" / LOCK,
            directory / ".snakemake" / "locks" / "1.output.lock",
        )
    line = running.look(directory) or ""
    assert {"elsewhere": "squeue", "another machine": "another machine"}.get(
        first, "that is starting or was killed"
    ) in line
    assert locks(directory) == ["1.output.lock" if first == "later" else LOCK]


@pytest.mark.parametrize("content", ["", "[1]", "not JSON", '{"host": 1}'])
def test_a_mark_that_says_nothing_unlocks_nothing(directory: Path, content: str) -> None:
    (directory / ".snakemake" / "tokinfo.runs").mkdir()
    (directory / ".snakemake" / "tokinfo.runs" / "mark").write_text(content)
    assert "if none runs there" in (running.look(directory) or "")
    assert locks(directory) == [LOCK]


def test_where_nothing_ran_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert running.look(tmp_path) is None
    assert running.busy(tmp_path) is None
    with running.at_work(tmp_path):
        assert list(tmp_path.iterdir()) == []

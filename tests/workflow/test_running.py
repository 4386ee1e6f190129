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
running.begin(Path(sys.argv[1]), elsewhere="elsewhere" in sys.argv)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("results/a\n")
    return tmp_path


def locked(directory: Path) -> bool:
    return any((directory / ".snakemake" / "locks").iterdir())


def another_run(directory: Path, *more: str) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, str(directory), *more],
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
        assert locked(directory)
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
    assert not locked(directory)
    assert running.look(directory) is None
    # What another run locks from now on is not the dead one's.
    (directory / ".snakemake" / "locks" / "0.output.lock").write_text("results/a\n")
    assert "starting or was killed" in (running.look(directory) or "")
    assert locked(directory)


def test_the_run_that_is_left_of_two_is_seen(directory: Path) -> None:
    """Snakemake lets two run beside each other where they make different files."""
    first = another_run(directory)
    second = another_run(directory)
    try:
        for ended, left in ((second, first), (first, None)):
            ended.kill()
            ended.wait()
            line, busy = running.look(directory) or "", running.busy(directory)
            if left is None:
                assert (busy, locked(directory)) == (None, False)
            else:
                assert line.startswith(f"a snakemake is running in {directory} (process {left.pid}")
                assert f"(process {left.pid}" in (busy or "")
                assert locked(directory)
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
        assert locked(directory)
    (directory / ".snakemake" / "locks" / "0.output.lock").unlink()
    assert running.look(directory) is None


def test_nothing_is_unlocked_while_a_job_of_the_dead_run_is_at_work(directory: Path) -> None:
    run = another_run(directory)
    run.kill()
    run.wait()
    with running.at_work(directory):
        line = running.look(directory)
        assert line is not None
        assert line.startswith("jobs of a run that was killed are still at work in ")
        assert f"`kill {os.getpid()}`" in line
        assert locked(directory)
    assert "unlocked" in (running.look(directory) or "")


def test_a_run_on_another_machine_is_not_judged(directory: Path) -> None:
    record = {"host": socket.gethostname() + "-2", "process": 1, "begun": 0}
    (directory / ".snakemake" / "tokinfo.run").write_text(json.dumps(record))
    line = running.look(directory, "snakemake --cores 1 --unlock")
    assert line is not None
    assert "another machine" in line
    assert "`snakemake --cores 1 --unlock`, then the same command" in line
    assert locked(directory)


@pytest.mark.parametrize("content", ["", "[1]", "not JSON", '{"host": 1}'])
def test_a_mark_that_says_nothing_unlocks_nothing(directory: Path, content: str) -> None:
    (directory / ".snakemake" / "tokinfo.run").write_text(content)
    assert "if none runs there" in (running.look(directory) or "")
    assert locked(directory)


def test_where_nothing_ran_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert running.look(tmp_path) is None
    assert running.busy(tmp_path) is None
    with running.at_work(tmp_path):
        assert list(tmp_path.iterdir()) == []

"""Each job has other GPUs: real processes, and names that stand for GPUs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import REPOSITORY
from tokinfo.io.errors import InvalidError
from tokinfo.workflow import devices
from tokinfo.workflow.devices import claim, lock_directory, visible

JOB = """
import sys
from pathlib import Path
from tokinfo.workflow.devices import claim
names = claim(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]))
import os
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
{then}
"""
UNTIL_TOLD = "sys.stdin.readline()"


class Jobs:
    """Processes that take GPUs, ended with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[str]] = []

    def start(self, count: int, gpus: str, then: str = UNTIL_TOLD) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", JOB.format(then=then), str(count), gpus]
        job = subprocess.Popen(
            [*arguments, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(job)
        return job

    def end(self) -> None:
        for job in self.started:
            job.kill()
            job.communicate()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "locks")
    yield made
    made.end()


def taken(job: subprocess.Popen[str]) -> str:
    assert job.stdout is not None
    return job.stdout.readline().strip()


def waits(job: subprocess.Popen[str]) -> str:
    """Return the line by which a job says that it waits; by then it has tried every GPU."""
    assert job.stderr is not None
    line = job.stderr.readline().strip()
    assert line.startswith("waiting for"), line
    return line


def finish(job: subprocess.Popen[str]) -> None:
    assert job.stdin is not None
    job.stdin.write("\n")
    job.stdin.flush()
    assert job.wait(timeout=30) == 0


def test_two_jobs_at_once_have_different_gpus_and_a_third_waits_for_one(jobs: Jobs) -> None:
    first, second = jobs.start(1, "0,1"), jobs.start(1, "0,1")
    assert {taken(first), taken(second)} == {"0", "1"}
    third = jobs.start(1, "0,1")
    assert "1 of the GPUs 0, 1" in waits(third)
    time.sleep(2 * devices.POLL_SECONDS)
    assert third.poll() is None
    finish(second)
    finish(third)


def test_a_killed_jobs_gpu_is_free_at_once(jobs: Jobs) -> None:
    holder = jobs.start(1, "0")
    assert taken(holder) == "0"
    waiting = jobs.start(1, "0")
    waits(waiting)
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert taken(waiting) == "0"


def test_a_child_that_outlives_a_killed_job_does_not_keep_its_gpu(jobs: Jobs) -> None:
    forking = "if os.fork() == 0: import time; time.sleep(600)\nsys.stdin.readline()"
    holder = jobs.start(1, "0", then=f"import sys\n{forking}")
    assert taken(holder) == "0"
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    while not children.read_text():
        time.sleep(0.05)
    child = int(children.read_text().split()[0])
    holder.kill()
    holder.wait()
    try:
        os.kill(child, 0)  # still there
        assert taken(jobs.start(1, "0")) == "0"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_job_that_needs_two_is_not_overtaken_and_waits_for_both(jobs: Jobs) -> None:
    small = jobs.start(1, "0,1")
    assert taken(small) == "0"
    large = jobs.start(2, "0,1")
    assert "1 of the GPUs" in waits(large)  # the free one is kept, the other one waited for
    later = jobs.start(1, "0,1")
    time.sleep(2 * devices.POLL_SECONDS)
    finish(small)
    assert taken(large) == "0,1"
    assert later.poll() is None
    finish(large)
    assert taken(later) == "0"


def test_no_gpu_is_ever_used_twice_however_many_jobs_want_one(jobs: Jobs, tmp_path: Path) -> None:
    using = tmp_path / "using"
    using.mkdir()
    # A directory per GPU: making one that is there fails, and the job with it.
    busy = (
        (
            "import time\n"
            "for name in names: os.mkdir(f'{using}/{{name}}')\n"
            "time.sleep(0.05)\n"
            "for name in names: os.rmdir(f'{using}/{{name}}')\n"
        )
        .replace("{using}", str(using))
        .replace("{{name}}", "{name}")
    )
    started = [jobs.start(1 + number % 2, "0,1,2", then=busy) for number in range(12)]
    for job in started:
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors
    assert list(using.iterdir()) == []


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"granted 3 GPUs, and there are 2 here \(4, 5\)"):
        claim(3, ["4", "5"], tmp_path)


def test_nothing_is_hidden_where_nothing_is_granted_or_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert claim(0, ["0"], tmp_path) == []
    assert claim(1, [], tmp_path) == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_what_is_visible_is_what_was_chosen_or_else_what_the_driver_has(tmp_path: Path) -> None:
    assert visible({}, tmp_path) == []
    (tmp_path / "nvidiactl").touch()
    assert visible({}, tmp_path) == []
    (tmp_path / "nvidia3").touch()
    (tmp_path / "nvidia5").touch()
    assert visible({}, tmp_path) == ["0", "1"]
    for chosen, seen in {
        "": [],
        "-1": [],
        "NoDevFiles": [],
        "1": ["1"],
        "2, 0": ["2", "0"],
        "0,-1,1": ["0"],
        "GPU-8f1,MIG-3/1/0": ["GPU-8f1", "MIG-3/1/0"],
    }.items():
        assert visible({"CUDA_VISIBLE_DEVICES": chosen}, tmp_path) == seen


def test_jobs_of_a_scheduler_lock_among_themselves_alone() -> None:
    machine, one = lock_directory({}), lock_directory({"SLURM_JOB_ID": "1"})
    assert machine != one != lock_directory({"SLURM_JOB_ID": "2"})
    assert lock_directory({"PBS_JOBID": "../x"}).parent == machine.parent
    assert stat.S_IMODE(machine.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("script", ["invert", "train"])
def test_a_script_chooses_before_it_imports_what_imports_torch(script: str) -> None:
    import ast

    file = REPOSITORY / "rules" / "scripts" / f"{script}.py"
    (block,) = [s for s in ast.parse(file.read_text()).body if isinstance(s, ast.With)]
    first = block.body[0]
    assert isinstance(first, ast.Assign)
    assert ast.unparse(first.value).startswith("device(")

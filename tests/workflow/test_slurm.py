"""Studies through `profiles/slurm` and a real Slurm, judged by Slurm's records."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.workflow.run import RESULTS, smoke, snakemake
from tests.workflow.slurm import Slurm, alive, running, why_not
from tokinfo.study.study import Study
from tokinfo.workflow.memory import cell_mb
from tokinfo.workflow.runtime import cell_minutes

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(3600),
]

TABLE = f"{RESULTS}/tables/recovery.parquet"
# A cluster has accounting, which has records of jobs that are gone; a Slurm for a test has none.
HERE = (
    *("--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "8"),
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running(tmp_path_factory.mktemp("slurm") / "scratch") as started:
        yield started


def command(study: dict[str, Any], directory: Path, *arguments: str) -> list[str]:
    """Return the command of a run through Slurm, its study written beside it."""
    (directory / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return [
        *(sys.executable, "-m", "snakemake", *arguments),
        *("--workflow-profile", "profiles/slurm", *HERE, "--configfile", "study.yaml"),
    ]


def environment(slurm: Slurm) -> dict[str, str]:
    """Return that of a login node which, like the node, has a GPU: `device: auto` asks for it."""
    return slurm.environment | {"CUDA_VISIBLE_DEVICES": "0"}


def submit(
    slurm: Slurm, study: dict[str, Any], directory: Path, *arguments: str
) -> list[dict[str, str]]:
    """Run to the end; return Slurm's records of the jobs that it took."""
    before = {job["JobId"] for job in slurm.jobs()}
    done = subprocess.run(
        command(study, directory, *arguments),
        cwd=directory,
        env=environment(slurm),
        capture_output=True,
        text=True,
        timeout=3500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:] + slurm.log()
    return [job for job in slurm.jobs() if job["JobId"] not in before]


def minutes(limit: str) -> int:
    """Return a time limit in minutes.

    >>> minutes("1-01:02:00")
    1502
    """
    days, _, rest = limit.rpartition("-")
    hours, mins, _ = map(int, rest.split(":"))
    return 1440 * int(days or 0) + 60 * hours + mins


def same_table(one: Path, other: Path) -> None:
    """Two runs found the same, to the last bit of what they computed."""
    tables = [
        pl.read_parquet(directory / TABLE)
        .drop("seconds")
        .sort("model", "site", "mask", "metric", "solver", "target", "prompt_id", "position")
        for directory in (one, other)
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_jobs_ask_slurm_for_what_they_need_and_cells_share_submissions(
    slurm: Slurm, changed: Path
) -> None:
    study = smoke() | {"cells_per_submission": 3}
    study["sources"]["mixer-flat"]["training"]["learning_rate"] = 0.002
    masks = {"masks": [":", "1:", "2:"], "models": ["mixer-flat", "mixer-parallel-untrained"]}
    study["grids"] = [study["grids"][0] | masks, study["grids"][1]]
    made = Study.model_validate(study)
    jobs = submit(slurm, study, changed, "--until", "invert")
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    by_comment = {job["Comment"]: job for job in jobs}

    # Were that run killed, its jobs might wait on: its lock would not be taken away unasked.
    marks = (changed / ".snakemake" / "tokinfo.runs").iterdir()
    assert [json.loads(mark.read_text())["elsewhere"] for mark in marks] == [True]

    # A GPU for jobs that train or search, and for no other.
    for comment, job in by_comment.items():
        wants = "train" in comment or "invert" in comment
        assert job.get("TresPerJob") == ("gres:gpu:1" if wants else None), comment
        assert job["NumCPUs"] == "1"

    # The five cells of one model, all to be made again, in two submissions; the new one of another.
    cells = [job for job in jobs if job["Comment"].endswith("_invert")]
    by_model = sorted(job["Comment"].removeprefix("rule_cells.") for job in cells)
    assert by_model == [*["mixer-flat_invert"] * 2, "mixer-parallel-untrained_invert"]
    flat = [job for job in cells if "mixer-flat" in job["Comment"]]
    requested = [cell_minutes(made, cell) for cell in made.cells() if cell.model == "mixer-flat"]
    assert len(set(requested)) == 1  # so that it does not matter which cells went together
    assert sorted(minutes(job["TimeLimit"]) for job in flat) == [2 * requested[0], 3 * requested[0]]
    # One after another: the memory of the largest, not of all.
    largest = max(cell_mb(made, cell) for cell in made.cells())
    assert {int(job["MinMemoryNode"].removesuffix("M")) for job in flat} <= {largest, largest - 1}

    # Slurm showed each job one GPU, and each cell took it.
    logs = [
        (changed / RESULTS / "logs" / cell.path).with_suffix(".log")
        for cell in made.cells()
        if cell.model == "mixer-flat"
    ]
    assert {log.read_text().splitlines()[0] for log in logs} <= {"GPU 0 of 0", "GPU 1 of 1"}
    # What the node's completion log says of them agrees.
    ended = {job["JobId"]: job["JobState"] for job in slurm.completed()}
    assert {ended[job["JobId"]] for job in jobs} == {"COMPLETED"}


@pytest.mark.slow
def test_the_whole_smoke_study_gives_the_workstations_table(
    slurm: Slurm, changed: Path, finished: Path
) -> None:
    shutil.rmtree(changed / "results")
    shutil.rmtree(changed / ".snakemake")
    jobs = submit(slurm, smoke() | {"cells_per_submission": 4}, changed)
    rules = {job["Comment"].split("_wildcards_")[0] for job in jobs}
    assert {"rule_train", "rule_collect", "rule_page", "rule_figure"} <= rules
    cells = Study.model_validate(smoke()).cells()
    models = {cell.model for cell in cells}
    wanted = sum(-(-sum(cell.model == model for cell in cells) // 4) for model in models)
    assert sum(job["Comment"].endswith("_invert") for job in jobs) == wanted
    same_table(changed, finished)


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what}: not in {seconds} s"
        time.sleep(0.5)


def states(slurm: Slurm, since: int) -> dict[str, str]:
    return {job["JobId"]: job["JobState"] for job in slurm.jobs() if int(job["JobId"]) > since}


@pytest.mark.slow
def test_a_cancelled_job_and_a_drained_node_are_made_good_by_one_plain_rerun(
    slurm: Slurm, changed: Path, tmp_path: Path
) -> None:
    study = smoke()
    study["solvers"]["chapter"]["steps"] = 21
    masks = {"masks": [":", "1:", "2:", "3:"], "models": ["mixer-parallel-untrained"]}
    study["grids"] = [study["grids"][0] | masks]
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(changed, undisturbed)
    (undisturbed / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    done = snakemake(undisturbed, TABLE, "--cores", "2", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stderr[-3000:]

    since = max([0, *(int(job["JobId"]) for job in slurm.jobs())])
    arguments = command(study, changed, TABLE)
    with (tmp_path / "output").open("w") as output:
        # Without the profile's retries, which would submit the cancelled job again by itself.
        process = subprocess.Popen(
            [*arguments, "--retries", "0"],
            cwd=changed,
            env=environment(slurm),
            stdout=output,
            stderr=output,
        )
        try:
            # Snakemake submits nothing after a failure, so what shall wait has to wait before it.
            both = {"RUNNING", "PENDING"}
            until(lambda: both <= set(states(slurm, since).values()), "a running and a waiting job")
            slurm.ask("scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=test")
            victim = next(j for j, s in states(slurm, since).items() if s == "RUNNING")
            slurm.ask("scancel", victim)
            until(lambda: states(slurm, since)[victim] == "CANCELLED", "the cancelled job")
            until(lambda: "RUNNING" not in states(slurm, since).values(), "the drained node")
            waiting = [j for j, s in states(slurm, since).items() if s == "PENDING"]
            assert waiting, states(slurm, since)
            # Nothing starts any more, so the user stops Snakemake, which takes back what waits.
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) != 0
            until(lambda: "PENDING" not in states(slurm, since).values(), "jobs taken back", 60)
        finally:
            process.kill()
            process.wait()
            slurm.ask("scontrol", "update", "NodeName=localhost", "State=RESUME")
    until(lambda: slurm.node() == "idle", "the node")
    submit(slurm, study, changed, TABLE)
    same_table(changed, undisturbed)


def test_a_test_that_fails_leaves_no_daemon(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with running(tmp_path / "scratch") as started:
            pids.extend(int(p.read_text()) for p in (started.scratch / "run").glob("*.pid"))
            raise KeyError("a test that fails")

    with pytest.raises(KeyError):
        fail()
    assert len(pids) == 3
    assert not any(map(alive, pids))

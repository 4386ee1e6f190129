"""Runs that are cut off: the same command finishes them, with the table of an undisturbed run."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.workflow.faults import (
    COMMAND,
    RESULTS,
    STUDY,
    TABLE,
    again,
    can_mount,
    every_file_is_whole,
    finish,
    full_disk,
    has_ended,
    job_at_work,
    same_table,
    start,
)
from tests.workflow.run import copy_repository

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="finds its jobs by /proc"),
]

CELL = "cells/flat/block.1/from1/l1_embedding_chapter_sea_s0.parquet"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    copy_repository(directory)
    (directory / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    again(directory)
    return directory


@pytest.fixture
def directory(undisturbed: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run; a test takes away what is to be made once more."""
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory, symlinks=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def take_away(directory: Path, rule: str) -> None:
    """Take away what a rule made and all that was made of it, so that the same run makes it."""
    parts = {
        "collect": ("tables",),
        "invert": ("tables", CELL),
        "prepare": ("tables", "cells", "checkpoints/flat/1"),
        "train": ("tables", "cells", "checkpoints", "decoders", "sources", "training"),
    }
    for part in parts[rule]:
        path = directory / RESULTS / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def send(run_process: int, number: int, to: str) -> None:
    if to == "group":
        os.killpg(run_process, number)
    else:
        os.kill(run_process, number)


# --- Snakemake is stopped -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "number", "to"),
    [
        ("train", signal.SIGINT, "group"),
        ("train", signal.SIGTERM, "group"),
        ("train", signal.SIGKILL, "group"),
        ("invert", signal.SIGINT, "group"),
        ("invert", signal.SIGINT, "snakemake"),
        ("invert", signal.SIGTERM, "snakemake"),
        ("invert", signal.SIGKILL, "group"),
    ],
)
def test_a_run_that_is_stopped_is_finished_by_the_same_command(
    undisturbed: Path, directory: Path, rule: str, number: int, to: str
) -> None:
    take_away(directory, rule)
    run = start(directory)
    job = job_at_work(directory, run, rule)
    send(run.pid, number, to)
    output = finish(run)
    assert run.returncode != 0, output[-3000:]
    assert has_ended(job)
    every_file_is_whole(directory)
    output = again(directory)
    assert ("had left" in output and "unlocked" in output) == (number == signal.SIGKILL)
    same_table(undisturbed, directory)


def test_jobs_that_outlive_their_run_are_named_and_nothing_starts_beside_them(
    undisturbed: Path, directory: Path
) -> None:
    take_away(directory, "invert")
    run = start(directory)
    job = job_at_work(directory, run, "invert")
    os.kill(job, signal.SIGSTOP)  # so that it outlives its run for as long as this test needs
    os.kill(run.pid, signal.SIGKILL)
    run.wait(timeout=60)
    second = start(directory)
    output = finish(second)
    assert second.returncode != 0
    assert f"still at work in {directory}: wait for them, or stop them: `kill {job}`" in output
    assert "Directory cannot be locked" in output
    os.kill(job, signal.SIGTERM)
    os.kill(job, signal.SIGCONT)
    assert has_ended(job)
    again(directory)
    same_table(undisturbed, directory)


def test_a_second_run_beside_one_at_work_says_why_it_stops(
    undisturbed: Path, directory: Path
) -> None:
    take_away(directory, "invert")
    run = start(directory)
    job = job_at_work(directory, run, "invert")
    os.kill(job, signal.SIGSTOP)  # so that it is at work for as long as this test needs
    second = start(directory)
    output = finish(second)
    assert second.returncode != 0
    assert f"tokinfo: a snakemake is running in {directory} (process {run.pid} on " in output
    assert "Directory cannot be locked" in output
    # A dry run changes nothing, so it may look on.
    dry = start(directory, *COMMAND, "--dry-run")
    assert f"a snakemake is running in {directory}" in finish(dry)
    assert dry.returncode == 0
    os.kill(job, signal.SIGCONT)
    output = finish(run)
    assert run.returncode == 0, output[-3000:]
    same_table(undisturbed, directory)


def test_a_lock_of_nobody_known_is_left_with_the_command_that_takes_it_away(
    directory: Path,
) -> None:
    take_away(directory, "invert")
    lock = directory / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(f"{TABLE}\n", encoding="utf-8")
    run = start(directory)
    output = finish(run)
    assert run.returncode != 0
    found = re.search(r"if none runs there: `snakemake ([^`]*)`, then the same command", output)
    assert found, output
    assert found[1] == " ".join([*COMMAND, "--unlock"])
    unlock = start(directory, *found[1].split())
    output = finish(unlock)
    assert unlock.returncode == 0, output
    again(directory)


# --- a job is killed ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["train", "invert"])
def test_a_job_that_is_killed_as_the_kernel_does_for_memory_is_made_again(
    undisturbed: Path, directory: Path, rule: str
) -> None:
    take_away(directory, rule)
    run = start(directory)
    os.kill(job_at_work(directory, run, rule), signal.SIGKILL)
    output = finish(run)
    # A profile may let a failed job try again; then the run itself recovers.
    assert run.returncode == 0 or f"rule {rule}" in output
    every_file_is_whole(directory)
    again(directory)
    same_table(undisturbed, directory)
    log = (directory / RESULTS / "logs" / "train" / "flat.log").read_text(encoding="utf-8")
    assert "500 steps" in log


def test_a_cell_that_gets_no_more_memory_says_so_and_runs_when_there_is_some(
    directory: Path,
) -> None:
    large = {"kind": "adam", "steps": 1, "restarts": 100_000}
    study = STUDY | {"solvers": STUDY["solvers"] | {"adam": large}}
    study |= {"grids": [STUDY["grids"][0] | {"solvers": ["adam"], "masks": ["1:"]}]}
    (directory / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    limit = 2_500_000_000  # enough to import everything, too little for so many starts at once
    run = start(
        directory,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    output = finish(run)
    assert run.returncode != 0
    lines = {line for line in output.splitlines() if line.startswith("tokinfo: ")}
    assert len(lines) == 1, output[-4000:]
    cell = "results/faults/cells/flat/block.1/from1/l1_embedding_adam_sea_s0.parquet"
    line = lines.pop()
    assert line.startswith(f"tokinfo: invert {cell}: ")
    assert "out of memory" in line
    every_file_is_whole(directory)
    again(directory)


# --- the disk is full ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "rule", "size", "named"),
    [
        ("checkpoints", "train", 16_384, "prepare flat|embedding of flat"),
        ("cells", "invert", 8_192, "invert results/faults/cells/flat/block.1"),
        ("tables", "collect", 8_192, "collect"),
        (".state", "train", 8_192, "train flat"),
    ],
)
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(
    undisturbed: Path, directory: Path, folder: str, rule: str, size: int, named: str
) -> None:
    if not can_mount(directory / "probe"):
        pytest.skip("a small file system to fill can be mounted by root only")
    take_away(directory, rule)
    shutil.rmtree(directory / RESULTS / folder, ignore_errors=True)
    with full_disk(directory / RESULTS / folder, size) as make_room:
        run = start(directory)
        output = finish(run)
        assert run.returncode != 0, output[-3000:]
        lines = {line for line in output.splitlines() if re.match(f"tokinfo: ({named})", line)}
        assert lines, output[-5000:]
        assert all("space" in line or "full" in line for line in lines), lines
        every_file_is_whole(directory)
        make_room()
        again(directory)
        same_table(undisturbed, directory)


# --- a file was cut -----------------------------------------------------------------------


def cut(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        (CELL, "collect"),
        ("checkpoints/flat/1/*.safetensors", "invert"),
        ("checkpoints/flat/1/tokenizer.json", "invert"),
        ("decoders/flat.safetensors", "invert"),
        ("sources/flat/model.safetensors", "prepare"),
        ("tokens/small.safetensors", "train"),
    ],
)
def test_a_cut_file_is_named_with_the_command_that_heals_it(
    undisturbed: Path, directory: Path, file: str, rule: str
) -> None:
    path = next((directory / RESULTS).glob(file))
    cut(path)
    take_away(directory, rule)
    run = start(directory)
    output = finish(run)
    assert run.returncode != 0
    lines = [line for line in output.splitlines() if line.startswith(f"tokinfo: {rule}")]
    found = {
        match[1]
        for line in lines
        if path.name in line
        and (match := re.search(r"to have it made again: `(rm [^`]*)`, then the same", line))
    }
    assert len(found) == 1, output[-5000:]
    assert os.system(f"cd '{directory}' && {found.pop()}") == 0
    again(directory)
    same_table(undisturbed, directory)


def test_a_cut_resume_point_costs_the_time_it_stood_for_and_nothing_else(
    undisturbed: Path, directory: Path
) -> None:
    take_away(directory, "train")
    run = start(directory)
    job_at_work(directory, run, "train")
    os.killpg(run.pid, signal.SIGKILL)
    finish(run)
    cut(directory / RESULTS / ".state/training/flat/resume.safetensors")
    again(directory)
    same_table(undisturbed, directory)
    log = (directory / RESULTS / "logs" / "train" / "flat.log").read_text(encoding="utf-8")
    assert "damaged or cut short; training starts anew" in log

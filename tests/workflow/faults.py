"""The smallest study in which anything can be cut off in the middle, and how to do it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal
from safetensors import safe_open

RESULTS = Path("results/faults")
TABLE = RESULTS / "tables" / "recovery.parquet"
COMMAND = (str(TABLE), "--cores", "1", "--configfile", "study.yaml")
TIMES = ["seconds"]
"""Columns of the table that differ from run to run on any machine."""

STUDY: dict[str, Any] = {
    "name": "Faults",
    "results": str(RESULTS),
    "corpora": {"harbour": {"kind": "file", "path": "studies/data/harbour.txt", "held_out": 0.1}},
    "tokenizers": {"small": {"corpus": "harbour", "vocabulary": 400}},
    "sources": {
        "flat": {
            **{"kind": "mixer", "form": "flat", "tokenizer": "small"},
            **{"d_model": 32, "blocks": 1, "n_ctx": 16},
            # Resume points come early, and time enough is left to be killed after one.
            "training": {"steps": 500, "batch": 8, "warmup": 5, "checkpoint_every": 50},
        }
    },
    "models": {"flat": {"source": "flat"}},
    "prompts": {"sea": ["The harbour lay still."]},
    # Always as many steps as it says: no stopping rule that a fast machine would meet at once.
    "solvers": {"chapter": {"kind": "chapter", "steps": 2500}},
    "grids": [
        {
            **{"models": ["flat"], "sites": ["block.1"], "masks": [":", "1:"]},
            **{"solvers": ["chapter"], "prompts": ["sea"]},
        }
    ],
}


def start(directory: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the user's command as the leader of a process group, as a terminal does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *(arguments or COMMAND)],
        cwd=directory,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(run: subprocess.Popen[str]) -> str:
    """Wait for a run to end; returns its output."""
    try:
        output, _ = run.communicate(timeout=900)
        return output
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def again(directory: Path) -> str:
    """Give the same command once more, which must succeed; returns its output."""
    run = start(directory)
    output = finish(run)
    assert run.returncode == 0, output[-6000:]
    return output


def job_at_work(directory: Path, run: subprocess.Popen[str], rule: str) -> int:
    """Wait until a job of a rule is in the middle of its work; returns its process.

    Training is, once it has written a resume point; a cell, once its model is mapped into memory.
    """
    resume = directory / RESULTS / ".state" / "training" / "flat" / "resume.safetensors"
    signs: dict[str, Callable[[int], bool]] = {
        "train": lambda process: resume.exists(),
        "invert": lambda process: "/checkpoints/flat/1/" in _read(process, "maps"),
    }
    until = time.monotonic() + 400
    while time.monotonic() < until:
        for process in _children(run.pid):
            if f".{rule}.py" in _read(process, "cmdline") and signs[rule](process):
                return process
        assert run.poll() is None, finish(run)[-6000:]
        time.sleep(0.1)
    raise AssertionError(f"no {rule} at work")


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _children(process: int) -> Iterator[int]:
    # Children are listed by the thread that started them.
    for task in Path(f"/proc/{process}/task").glob("*"):
        for child in _read(process, f"task/{task.name}/children").split():
            yield int(child)
            yield from _children(int(child))


def has_ended(process: int) -> bool:
    """Return whether a process is gone, or will be; a dead one may wait to be collected."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        state = _read(process, "stat").rpartition(")")[2].split()[:1]
        if state in ([], ["Z"], ["X"]):
            return True
        time.sleep(0.05)
    return False


def every_file_is_whole(directory: Path) -> None:
    """Assert that whatever has a final name can be read to its end."""
    for path in (directory / RESULTS).rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                assert [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    tables = sorted((directory / TABLE).parent.glob("[!.]*"))
    assert [path.suffix for path in tables] in ([], [".parquet"])


def same_table(one: Path, other: Path) -> None:
    """Assert that two runs' tables are the same to the last bit, times left out."""
    tables = [pl.read_parquet(directory / TABLE).drop(TIMES) for directory in (one, other)]
    assert_frame_equal(*tables, check_exact=True)


@contextmanager
def full_disk(directory: Path, size: int) -> Iterator[Callable[[], None]]:
    """Put a file system of ``size`` bytes at a directory; yields what makes room on it."""
    directory.mkdir(parents=True, exist_ok=True)

    def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mount", *arguments, str(directory)], capture_output=True, text=True, check=True
        )

    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda: mount("-o", "remount,size=64m") and None
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def can_mount(directory: Path) -> bool:
    """Return whether this process may mount a small file system."""
    try:
        with full_disk(directory, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False

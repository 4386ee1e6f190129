"""What it costs to hand a cluster its cells one by one, and several at a time.

    PYTHONPATH=. python benchmarks/grouping.py docs/evidence/grouping.csv

Starts a Slurm on this machine (as root, with Debian's packages), prepares a model on the
workstation's profile, and runs the same trivial cells through `profiles/slurm` with every
requested number of cells a submission. Times are Slurm's: `seconds` from the first
submission to the last end, `allocated` what all submissions held a processor for. What a cell
itself takes, run as the workflow runs it but without Slurm, is taken off to give the overhead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml
from common import write

from tests.workflow.run import copy_repository, smoke, snakemake
from tests.workflow.slurm import Slurm, running

STUDY = "trivial.yaml"


def study(cells: int) -> str:
    """Return a study of as many cells of one model, each of which does next to nothing."""
    made = smoke()
    made["solvers"] = {"chapter": {"kind": "chapter", "steps": 1}}
    made["prior"] = None
    made["models"] = {"trivial": {"source": "mixer-parallel", "state": "untrained"}}
    grid = {"models": ["trivial"], "sites": ["block.1"], "masks": ["1:"], "prompts": ["sea"]}
    made["grids"] = [grid | {"solvers": ["chapter"], "seeds": list(range(cells))}]
    return yaml.safe_dump(made)


def through_slurm(directory: Path, slurm: Slurm, each: int) -> list[dict[str, str]]:
    """Run all cells, ``each`` to a submission; return Slurm's records of the submissions."""
    shutil.rmtree(directory / "results" / "smoke" / "cells", ignore_errors=True)
    before = len(slurm.jobs())
    subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--until", "invert"),
            *("--workflow-profile", "profiles/slurm", "--configfile", STUDY),
            *("--slurm-no-account", "--slurm-status-command", "squeue"),
            *("--slurm-init-seconds-before-status-checks", "8"),
            *("--config", f"cells_per_submission={each}"),
        ],
        cwd=directory,
        env=slurm.environment | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    return slurm.jobs()[before:]


def row(records: list[dict[str, str]], cells: int, each: int, alone: float) -> dict[str, object]:
    """Return the table's row for one number of cells a submission."""
    times = [
        [datetime.fromisoformat(job[name]) for name in ("SubmitTime", "StartTime", "EndTime")]
        for job in records
    ]
    seconds = (max(t[2] for t in times) - min(t[0] for t in times)).total_seconds()
    allocated = sum((end - start).total_seconds() for _, start, end in times)
    return {
        "cells_per_submission": each,
        "cells": cells,
        "submissions": len(records),
        "seconds": round(seconds),
        "allocated": round(allocated),
        "allocated_per_cell": round(allocated / cells, 2),
        "cell_alone": round(alone, 2),
        "overhead_per_cell": round(allocated / cells - alone, 2),
        "load_average": round(os.getloadavg()[1], 1),
    }


def main() -> None:
    """Measure every number of cells a submission and write the table after each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--cells", type=int, default=200)
    arguments.add_argument("--each", type=int, nargs="+", default=[20, 1])
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "study"
        directory.mkdir()
        copy_repository(directory)
        (directory / STUDY).write_text(study(options.cells), encoding="utf-8")
        shared = ("--configfile", STUDY, "--cores", "1")
        done = snakemake(directory, "--until", "prepare", "embedding", *shared)
        assert done.returncode == 0, done.stderr
        # Start-up of Snakemake is common to both runs, so their difference is nine cells.
        files = [f"results/smoke/cells/trivial/block.1/from1/l1_embedding_chapter_sea_s{n}.parquet"
                 for n in range(10)]  # fmt: skip
        spent = []
        for wanted in (files[:1], files[1:]):
            begun = time.perf_counter()
            done = snakemake(directory, *wanted, *shared)
            assert done.returncode == 0, done.stderr
            spent.append(time.perf_counter() - begun)
        alone = (spent[1] - spent[0]) / 8
        rows = []
        with running(Path(scratch) / "slurm") as slurm:
            for each in options.each:
                records = through_slurm(directory, slurm, each)
                rows.append(row(records, options.cells, each, alone))
                write(options.out, rows)


if __name__ == "__main__":
    main()

"""Two GPUs on a workstation: Snakemake runs two jobs at once, and each has another one."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from tests.workflow.run import RESULTS, smoke, snakemake
from tokinfo.study.study import Study


def test_jobs_that_run_side_by_side_have_different_gpus(changed: Path) -> None:
    study = smoke()
    study["solvers"]["chapter"]["steps"] = 21
    masks = {"masks": [":", "1:", "2:", "3:"], "models": ["mixer-parallel-untrained"]}
    study["grids"] = [study["grids"][0] | masks]
    (changed / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    names = [f"made-up-{os.getpid()}-{letter}" for letter in "ab"]
    done = snakemake(
        changed,
        *("--until", "invert", "--cores", "2", "--resources", "gpu=2"),
        *("--configfile", "study.yaml"),
        gpus=",".join(names),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    taken = []
    for cell in Study.model_validate(study).cells():
        log = (changed / RESULTS / "logs" / cell.path).with_suffix(".log")
        lines = log.read_text(encoding="utf-8").splitlines()
        # The scheduler keeps to the number of GPUs, so no job ever had to wait for one.
        assert lines[0].startswith("GPU made-up-"), lines
        taken.append(lines[0].removeprefix("GPU ").split(" of ")[0])
    assert set(taken) == set(names)
    assert len(taken) == 4

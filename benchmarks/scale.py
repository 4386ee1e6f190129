"""What many cells cost before the first of them runs: time and memory to plan a study.

    PYTHONPATH=. python benchmarks/scale.py docs/evidence/scale.csv --cells 1000 10000 50000

Each study is planned by one dry run (nothing of it has run yet). Times are processor
seconds, which a busy machine changes little; memory is the largest resident set. The last row is
extrapolated from the two largest studies as a straight line, and says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import write

from tests.workflow.run import copy_repository, smoke

AXES = {
    "sites": ["block.1", "block.2"],
    "masks": [":", "1:", "2:", "3:", "-1"],
    "metrics": ["l1", "l2", "cosine"],
    "solvers": ["chapter", "adam"],
    "prompts": ["sea"],
}


def study(cells: int) -> tuple[dict[str, Any], int]:
    """Return a study of at least so many cells, and how many it has."""
    made = smoke()
    models = [name for name, model in made["models"].items() if "quantization" not in model]
    product = len(models) * len(AXES["sites"]) * len(AXES["masks"])
    product *= len(AXES["metrics"]) * len(AXES["solvers"])
    seeds = -(-cells // product)
    made["grids"] = [{"models": models, **AXES, "seeds": list(range(seeds))}]
    return made, product * seeds


def planned(cells: int, directory: Path) -> dict[str, Any]:
    """Return what a dry run of so many cells takes."""
    made, count = study(cells)
    (directory / "scale.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    begun = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", "2"),
            *("--configfile", "scale.yaml"),
        ],
        cwd=directory,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""},
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    cpu = used.ru_utime + used.ru_stime
    return {
        "cells": count,
        "how": "measured",
        "cpu_seconds": round(cpu, 1),
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "cpu_ms_per_cell": round(1e3 * cpu / count, 2),
    }


def extrapolated(rows: list[dict[str, Any]], cells: int) -> dict[str, Any]:
    """Return the row of a larger study, on the line through the last two."""
    one, other = rows[-2:]
    share = (cells - one["cells"]) / (other["cells"] - one["cells"])
    cpu, peak = (
        one[name] + share * (other[name] - one[name]) for name in ("cpu_seconds", "peak_mb")
    )
    return {
        "cells": cells,
        "how": "extrapolated",
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(peak),
        "cpu_ms_per_cell": round(1e3 * cpu / cells, 2),
    }


def main() -> None:
    """Plan every size and write the table after each."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000, 50_000])
    arguments.add_argument("--extrapolate", type=int, default=100_000)
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        copy_repository(Path(scratch))
        for cells in options.cells:
            rows.append(planned(cells, Path(scratch)))
            further = [extrapolated(rows, options.extrapolate)] if len(rows) > 1 else []
            write(options.out, rows + further)


if __name__ == "__main__":
    main()

r"""Peak memory and time of everything that reads all cells, against the number of cells.

    python benchmarks/aggregation.py SCRATCH docs/evidence/aggregation.csv
    python benchmarks/aggregation.py SCRATCH docs/evidence/aggregation.csv --cells 100 1000 10000

Cells of made-up numbers (10 prompts of 4 to 12 tokens, every column filled) are written to the
directory SCRATCH, which must not exist and is removed at the end. Every stage is a process,
whose largest resident memory (VmHWM) is recorded, beside that of one that only imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from common import write

from tokinfo.report.figures.identifiable import rank_histogram
from tokinfo.report.figures.loss import loss_curves
from tokinfo.report.figures.recovery import found_by_mask
from tokinfo.report.pages.identifiability import write_identifiability
from tokinfo.report.pages.strips import write_strips
from tokinfo.study.masks import Mask
from tokinfo.tables.identifiability import write_noise_table
from tokinfo.tables.recovery import collect, write_csv
from tokinfo.tables.schema import METADATA_KEY, RECOVERY_SCHEMA
from tokinfo.tables.summary import summarise

MASKS = ("1:", "2:", "3:", ":")
SOLVERS = {"chapter": "chapter", "adam": "adam", "sweep": "sweep", "joint": "joint"}
PROMPTS, VOCABULARY, STEPS = 10, 4096, 12


def cells(count: int) -> list[dict[str, Any]]:
    """Return the coordinates of this many cells: 20 models, and as many seeds as it takes."""
    seeds = range(-(-count // (20 * 5 * len(MASKS) * len(SOLVERS))))
    axes = itertools.product(seeds, range(20), range(1, 6), MASKS, SOLVERS)
    return [
        {
            **{"model": f"model-{model:02d}", "site": f"block.{block}", "mask": mask},
            **{"solver": solver, "seed": seed, "metric": "l1", "target": "own"},
            "known": "none",
            **{"residual": True, "causal": True, "padding": "none", "prompts": "made-up"},
            "parametrisation": "embedding",
        }
        for seed, model, block, mask, solver in itertools.islice(axes, count)
    ]


def rows(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one cell."""
    chance = random.Random(repr(cell))
    sweeps = cell["solver"] in ("sweep", "joint")
    found = []
    for prompt in range(PROMPTS):
        length = 4 + prompt % 9
        visible = Mask(cell["mask"]).visible(length)
        of_prompt = {
            **cell,
            **{"source": cell["model"], "family": "llama", "state": "trained", "depth": 30},
            **{"quantization": "float32", "weights_note": "", "block": int(cell["site"][6:])},
            **{"device": "cpu", "dtype": "float32", "kind": SOLVERS[cell["solver"]]},
            **{"vocabulary": VOCABULARY, "restarts": 1, "model_digest": "0" * 64},
            **{"code_digest": "1" * 64, "prompt_id": prompt, "prior_entropy": 9.0},
            **{"prompt": " ".join(f"word{n}" for n in range(length)), "restart": 0},
            **{"loss": chance.random(), "first_loss": 10.0, "found_loss": chance.random()},
            **{"true_loss": 1e-4, "noise_floor": 1e-4, "verdict": "certified"},
            **{"steps": 300, "evaluations": 600, "seconds": chance.random()},
            **{"curve_steps": list(range(STEPS)), "curve": [chance.random()] * STEPS},
            "around": {"sweep": "true", "joint": "found"}.get(cell["solver"]),
        }
        for position in range(length):
            right, swept = chance.random() < 0.5, sweeps and position not in visible
            true = (prompt * 101 + position * 7) % VOCABULARY
            top = [true if right else (true + 1) % VOCABULARY, *range(4)]
            found.append(
                of_prompt
                | {
                    **{"position": position, "visible": position in visible, "true_id": true},
                    **{"given": False, "independent": position > max(visible)},
                    **{"true_token": f" word{position}", "found_id": top[0]},
                    **{"found_token": f" word{position + (not right)}", "top5_ids": top},
                    **{"top5_tokens": [f" w{token}" for token in top], "correct": right},
                    **{"in_top5": right, "in_prompt": right},
                    "identified": "identifiable" if swept else None,
                    "rank": 1 if swept else None,
                    "margin": 100.0 * chance.random() if swept else None,
                    "candidates": VOCABULARY if swept else None,
                    "bits": 12.0 if swept else None,
                    "bits_high": 12.0 if swept else None,
                    "prior_bits": 9.0 if swept else None,
                    "prior_bits_high": 9.0 if swept else None,
                    "noise_threshold": chance.random() if swept else None,
                }
            )
    return found


def make(scratch: Path, count: int) -> None:
    """Write the cells, and a list of their files."""
    paths = []
    nothing = dict.fromkeys(RECOVERY_SCHEMA)
    for number, cell in enumerate(cells(count)):
        path = scratch / "cells" / cell["model"] / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pl.DataFrame([nothing | row for row in rows(cell)], schema=RECOVERY_SCHEMA)
        settings = {"prompts": [f"prompt {n}" for n in range(PROMPTS)], "solver": cell["solver"]}
        metadata = {"cell": cell, "settings": settings, "versions": {"tokinfo": "0"}}
        frame.write_parquet(path, metadata={METADATA_KEY: json.dumps(metadata)})
        paths.append(str(path))
    (scratch / "cells.txt").write_text("\n".join(paths), encoding="utf-8")


def listed(scratch: Path) -> list[Path]:
    """Return the files of the cells."""
    return [Path(line) for line in (scratch / "cells.txt").read_text().split("\n")]


TABLE = "recovery.parquet"
STAGES: dict[str, Callable[[Path], object]] = {
    "imports alone": lambda at: None,
    "collect": lambda at: collect(listed(at), at / TABLE),
    "recovery_csv": lambda at: write_csv(at / TABLE, at / "recovery.csv"),
    "summarise": lambda at: summarise(at / TABLE, at / "summary.parquet", at / "summary.csv"),
    "noise_table": lambda at: write_noise_table(at / TABLE, at / "noise.csv"),
    "strips": lambda at: write_strips(at / TABLE, at / "strips.html"),
    "identifiability": lambda at: write_identifiability(at / TABLE, at / "page.html"),
    "loss_curves": lambda at: loss_curves(at / TABLE, at / "loss.svg", at / "loss.png"),
    "rank_histogram": lambda at: rank_histogram(at / TABLE, at / "r.svg", at / "r.png"),
    "found_by_mask": lambda at: found_by_mask(at / "summary.parquet", at / "m.svg", at / "m.png"),
}


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1.024e-3


def stage(name: str, scratch: Path) -> None:
    """Run one stage in this process and print its time and peak memory."""
    begun = time.perf_counter()
    STAGES[name](scratch)
    print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mb": peak_mb()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(options.stage, options.scratch)
        return
    table = []
    for count in options.cells:
        options.scratch.mkdir(parents=True)
        try:
            make(options.scratch, count)
            for name in options.stages:
                command = [sys.executable, __file__, str(options.scratch), "-", "--stage", name]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name}, {count} cells: {done.stderr[-3000:]}")
                measured = json.loads(done.stdout.splitlines()[-1])
                row = {"cells": count, "stage": name}
                row |= {
                    "peak_mb": f"{measured['peak_mb']:.0f}",
                    "seconds": f"{measured['seconds']:.2f}",
                }
                print(row, file=sys.stderr, flush=True)
                table.append(row)
        finally:
            shutil.rmtree(options.scratch)
    write(options.out, table)


if __name__ == "__main__":
    main()

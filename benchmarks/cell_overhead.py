"""The whole-process time of one warm cell beyond its optimisation.

    python benchmarks/cell_overhead.py RESULTS docs/evidence/cell_overhead.csv MODEL [MODEL ...]

RESULTS is the results directory of a study that has probed the models. Each cell is run a few times
as the workflow runs it, in a process each; the solver's time, as it reports it, is taken off. The
floor is a process that imports torch (and, for models that are not mixers, transformers) and ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from common import write

RUN = """
import json, sys
from pathlib import Path
from tokinfo.cell import run_cell
from tokinfo.study.cell import CellSettings
metadata = json.loads(Path(sys.argv[1]).read_text())
settings = CellSettings.model_validate({"cell": metadata["cell"], **metadata["settings"]})
run_cell(settings, Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
"""
FLOORS = {
    True: "import torch",
    False: "import torch; from transformers.modeling_utils import PreTrainedModel",
}


def timed(arguments: list[str]) -> float:
    """Return the wall time of a Python process; raises CalledProcessError where it fails."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Time one cell of each model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        cell = min((options.results / "cells" / model / "block.1" / "from1").glob("l1_*_adam_*"))
        metadata = json.loads(pl.read_parquet_metadata(cell)["tokinfo"])
        checkpoint = options.results / "checkpoints" / model / "1"
        decoder = options.results / "decoders" / f"{model}.safetensors"
        mixer = json.loads((checkpoint / "tokinfo.json").read_text())["family"].startswith("mixer")
        with tempfile.TemporaryDirectory() as scratch:
            settings, out = Path(scratch) / "cell.json", Path(scratch) / "cell.parquet"
            settings.write_text(json.dumps(metadata))
            arguments = ["-c", RUN, str(settings), str(checkpoint), str(decoder), str(out)]
            timed(arguments)  # warm: files in the cache, bytecode written
            beyond, solving = [], []
            for _ in range(options.repeats):
                whole = timed(arguments)
                frame = pl.read_parquet(out)
                solved = float(frame["seconds"][0]) * frame["prompt_id"].n_unique()
                beyond.append(whole - solved)
                solving.append(solved)
        floor = min(timed(["-c", FLOORS[mixer]]) for _ in range(options.repeats))
        rows.append(
            {
                "model": model,
                "seconds_beyond_solving_best": round(min(beyond), 2),
                "seconds_beyond_solving_median": round(sorted(beyond)[len(beyond) // 2], 2),
                "seconds_solving_median": round(sorted(solving)[len(solving) // 2], 2),
                "seconds_imports_alone": round(floor, 2),
                "times_the_floor": round(min(beyond) / floor, 2),
            }
        )
    write(options.out, rows)


if __name__ == "__main__":
    main()

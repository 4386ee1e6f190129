r"""Cells of a scaling study in one process, and the table of one axis with the machine in it.

    snakemake --configfile studies/scaling.yaml --config CONFIG -- \\
        results/scaling/sources/flat results/scaling/passages/held-out.json ...
    python benchmarks/scaling.py studies/scaling.yaml docs/evidence/scaling_training.csv \\
        --axis training --cells 'cells/flat*/block.1/from1/*' --config CONFIG

Corpus, tokenizer, passages and trained models are the workflow's, in the study's results; what
comes after them is done here as its rules do it (`prepare`, `embedding`, `invert`), without a
process for each cell. Cells whose file is there are not run again. CONFIG overrides the study, as
on Snakemake's command line: `passages={held-out: {count: 12}}`. The widest models are dear:
cells that ran with fewer passages, in other results (`results=results/few`), enter the table
with `--also FILES`; its column `prompts` says how many each point has.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from pathlib import Path

import torch
from common import write

from tokinfo.cell import run_cell
from tokinfo.models.preparing import Cut, cut_checkpoint
from tokinfo.solvers.decoding import write_inverse_gram
from tokinfo.study.cell import Cell, CellSettings
from tokinfo.study.files import parse
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import StudyError
from tokinfo.tables.scaling import AXES, points
from tokinfo.workflow.plan import Plan


def place(path: str, results: Path) -> Path:
    """Return a path of the plan below the results directory."""
    return results / path.removeprefix("<results>/")


def prepared(plan: Plan, cell: Cell, results: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the decoder of a cell, made where they are missing."""
    block = cell.block
    checkpoint = place(plan.checkpoint(cell), results)
    if not checkpoint.exists():
        origin = place(plan.origin(cell.model, block), results)
        cut = Cut.model_validate(plan.prepare_settings(cell.model, block))
        cut_checkpoint(cut, origin, checkpoint)
    decoder = results / "decoders" / f"{cell.model}.safetensors"
    if not decoder.exists():
        write_inverse_gram(checkpoint, decoder)
    return checkpoint, decoder


def main() -> None:
    """Run the requested cells and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--axis", choices=AXES, required=True)
    parser.add_argument("--cells", nargs="+", required=True, help="patterns of their files")
    parser.add_argument("--also", nargs="+", default=[], type=Path, help="files of other cells")
    parser.add_argument("--config", nargs="*", default=[], help="KEY=YAML, over the study")
    options = parser.parse_args()
    torch.set_num_threads(1)
    over = parse(options.config)
    try:
        study = load_study(options.study, over)
    except StudyError as error:
        parser.error(str(error))
    plan, results = Plan(study), Path(study.results)
    chosen = [
        cell
        for pattern in options.cells
        for path, cell in plan.cells.items()
        if fnmatch.fnmatch(path, pattern)
    ]
    files: list[Path] = list(options.also)
    for cell in dict.fromkeys(chosen):
        file = results / cell.path
        if not file.exists():
            begun = time.perf_counter()
            checkpoint, decoder = prepared(plan, cell, results)
            drawn = plan.passages([cell.prompts])
            run_cell(
                CellSettings.model_validate(plan.cell_settings(cell)),
                checkpoint,
                decoder,
                file,
                passages=place(drawn[0], results) if drawn else None,
                device="cpu",
                code_digest=plan.cell_code(cell),
            )
            print(f"{cell.path}: {time.perf_counter() - begun:.0f} s", flush=True)
        files.append(file)
        write(options.out, points(files, options.axis))


if __name__ == "__main__":
    main()

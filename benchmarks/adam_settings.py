"""What each setting of `adam` finds and costs, alone and together, beside its defaults.

    python benchmarks/adam_settings.py RESULTS TEXT docs/evidence/adam_settings.csv

RESULTS is the results directory of `benchmarks/study.yaml`, TEXT a file of prose. Every setting
descends on the same problems from the same starts, in one run: `times_baseline` is a ratio
inside it, of processor time, which other work on the machine disturbs less than wall time.
Where the decoding is `nearest` that differs from the baseline too, so one row has that alone.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from cells import chosen, parser
from common import write
from exact import alone_losses, pose

from tokinfo.solvers import adam
from tokinfo.solvers.decoding import Method
from tokinfo.solvers.problem import Problem
from tokinfo.study.solvers import AdamSolver

SETTINGS: tuple[tuple[str, Method, AdamSolver], ...] = (
    ("baseline", "pseudo-inverse", AdamSolver()),
    ("baseline", "nearest", AdamSolver()),
    ("nearest_penalty 0.01", "pseudo-inverse", AdamSolver(nearest_penalty=0.01)),
    ("clamp", "pseudo-inverse", AdamSolver(clamp=True)),
    ("window 16", "pseudo-inverse", AdamSolver(window=16)),
    ("window 64", "pseudo-inverse", AdamSolver(window=64)),
    (
        "nearest_penalty 0.01, clamp, window 64",
        "pseudo-inverse",
        AdamSolver(nearest_penalty=0.01, clamp=True, window=64),
    ),
    ("project", "nearest", AdamSolver(project="nearest")),
    ("project, window 16", "nearest", AdamSolver(project="nearest", window=16)),
)


def measure(problem: Problem, truth: torch.Tensor, settings: AdamSolver) -> dict[str, float]:
    """Return what one descent of all prompts found, and what it cost a prompt."""
    begun = time.process_time()
    result = adam.solve(problem, settings)
    spent = time.process_time() - begun
    layout = problem.layout
    ids = layout.padded(result.top_ids[..., 0])
    hit = ids == truth
    hidden = layout.scored & ~layout.visible
    return {
        "visible_found": int(hit[layout.visible].sum()),
        "visible": int(layout.visible.sum()),
        "hidden_found": int(hit[hidden].sum()),
        "hidden": int(hidden.sum()),
        "prompts_certified": int((alone_losses(problem, ids) <= problem.floor).sum()),
        "evaluations_per_prompt": round(float(result.evaluations.float().mean()), 1),
        "cpu_seconds_per_prompt": round(spent / len(ids), 3),
    }


def main() -> None:
    """Measure every setting on every cell and write the table after each cell."""
    cells = ["flat/1", "untrained-256/1", "transformer/1", "smollm2/1"]
    arguments = parser(__doc__, cells, prompts=12)
    arguments.add_argument("--masks", nargs="+", default=[":", "1:"])
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    for cell in chosen(options):
        for mask in options.masks:
            posed, truth = pose(options.results, cell.model, cell.block, cell.prompts, mask=mask)
            adam.solve(posed, AdamSolver(steps=2))  # warm up
            where = {
                "model": cell.model,
                "block": cell.block,
                "mask": mask,
                "prompts": len(cell.prompts),
            }
            baseline = 0.0
            for setting, decode, settings in SETTINGS:
                problem = replace(posed, decoder=replace(posed.decoder, method=decode))
                found = measure(problem, truth, settings)
                baseline = baseline or found["cpu_seconds_per_prompt"]
                ratio = round(found["cpu_seconds_per_prompt"] / baseline, 2)
                which = {"setting": setting, "decode": decode}
                rows.append({**where, **which, **found, "times_baseline": ratio})
            write(options.out, rows)


if __name__ == "__main__":
    main()

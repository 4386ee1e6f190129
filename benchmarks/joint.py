r"""Hidden leading tokens, nothing known: `joint` against `chapter` and `adam` on the same cells.

    python benchmarks/joint.py RESULTS TEXT docs/evidence/joint.csv \\
        --cells smollm2/1 flat/1 transformer/1 --hidden 1 3 --prompts 20

RESULTS is the results directory of a study with the checkpoints `model/blocks` asked for; TEXT
a file of real prose. For each cell the sweep around the true prompt says what is identifiable
at all, so that what a solver misses is told from what is not there.
"""

from __future__ import annotations

import time

import torch
from cells import chosen, parser
from common import write
from exact import alone_losses, pose

from tokinfo.invert import adam, chapter, joint, sweep
from tokinfo.invert.problem import Problem, Result
from tokinfo.solvers import AdamSolver, ChapterSolver, JointSolver, SweepSolver


def row_of(
    name: str, problem: Problem, result: Result, spent: float, identifiable: torch.Tensor
) -> dict[str, object]:
    """Return what one solver found on one cell; ``identifiable`` is [row, position]."""
    ids = torch.where(problem.batch.scored, result.top_ids[..., 0], problem.batch.ids)
    hit = ids == problem.batch.ids
    visible = problem.batch.visible
    certified = alone_losses(problem, ids) <= problem.floor
    whole = (hit | ~problem.batch.scored).all(1)
    return {
        "solver": name,
        "hidden_found": int(hit[~visible & problem.batch.scored].sum()),
        "hidden": int((~visible & problem.batch.scored).sum()),
        "hidden_identifiable": int(identifiable.sum()),
        "identifiable_found_and_certified": int((hit & identifiable & certified[:, None]).sum()),
        "visible_found": int(hit[visible].sum()),
        "visible": int(visible.sum()),
        "prompts_certified": int(certified.sum()),
        "prompts_exact": int(whole.sum()),
        "evaluations": int(result.evaluations.sum()),
        "seconds_per_prompt": round(spent / len(problem.target), 3),
    }


def main() -> None:
    """Run every solver on every cell and write the table after each."""
    arguments = parser(__doc__, ["smollm2/1"], prompts=20)
    arguments.add_argument("--hidden", type=int, nargs="+", default=[1, 3])
    asked = arguments.parse_args()
    rows: list[dict[str, object]] = []
    for cell in chosen(asked):
        rate = 2.0 if cell.checkpoint.facts["family"] == "llama" else 0.02
        for hidden in asked.hidden:
            problem = pose(asked.results, cell.model, cell.block, cell.prompts, mask=f"{hidden}:")
            swept = sweep.solve(problem, SweepSolver())
            identifiable = torch.zeros_like(problem.batch.visible)
            for row, found in enumerate(swept.identified or []):
                for position, judged in found.items():
                    identifiable[row, position] = judged.verdict == "identifiable"
            told = {
                "model": cell.model,
                "block": cell.block,
                "hidden_leading": hidden,
                "prompts": len(cell.prompts),
            }
            for solver, solve in (
                ("chapter", lambda p, r=rate: chapter.solve(p, ChapterSolver(learning_rate=r))),
                ("adam", lambda p: adam.solve(p, AdamSolver())),
                (
                    "joint",
                    lambda p: joint.solve(p, JointSolver(sweep_found=False)),
                ),
            ):
                begun = time.perf_counter()
                result = solve(problem)
                spent = time.perf_counter() - begun
                rows.append({**told, **row_of(solver, problem, result, spent, identifiable)})
            write(asked.out, rows)


if __name__ == "__main__":
    main()

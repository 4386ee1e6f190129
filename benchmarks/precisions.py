r"""The noise floor of every precision, and what it leaves of a hidden token's margin.

    snakemake --configfile benchmarks/study.yaml --cores all --until prepare embedding
    python benchmarks/precisions.py results/benchmarks TEXT docs/evidence/precisions.csv

For each cell the first position of every prompt is hidden, the others are known, and the true
token and ``--wrong`` others, drawn at random, are put there: the floor of the prompts, the true
token's residual and the best wrong one's, all L1 sums over the visible positions. Sweeps of the
whole vocabulary are in `noise.py`; its best wrong token is as good as these or better.

A second floor, ``repeated``, comes from the same batch computed twice. In int8 it is 0 where a
row's result depends on the rest of its batch: a floor has to be measured with other batches.
"""

from __future__ import annotations

import time

import torch
from cells import chosen, parser
from common import write
from exact import pose
from torch import Tensor

from tokinfo.probe.metrics import distance
from tokinfo.solvers.identification import Identification, identify
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution

PRECISIONS = (
    *("smollm2", "smollm2-bf16", "smollm2-bf16-float32", "smollm2-fp16"),
    *("smollm2-int8", "smollm2-int8-bf16", "smollm2-nf4", "smollm2-nf4-bf16"),
)
HIDDEN = 0


def drawn(problem: Problem, true: Tensor, row: int, wrong: int) -> Tensor:
    """Return the true token of a prompt's hidden position, and ``wrong`` others [1 + wrong]."""
    mixed = torch.randperm(problem.decoder.size, generator=torch.Generator().manual_seed(row))
    return torch.cat([true[None], mixed[mixed != true][:wrong]])


def judge(problem: Problem, truth: Tensor, row: int, wrong: int) -> Identification:
    """Try the candidates of one prompt."""
    one = problem.rows(torch.tensor([row]))
    around = Substitution(one, one.decoder.embedding[truth[row]], HIDDEN)
    candidates = drawn(problem, truth[row, HIDDEN], row, wrong)
    return identify(around.residuals(candidates), 0, float(one.slack[0]))


def repeated(problem: Problem, truth: Tensor) -> Tensor:
    """Return how far each prompt's activations are from themselves in the same batch again."""
    with torch.no_grad():
        embedded = problem.decoder.embedding[truth]
        one, other = (problem.probe(embedded, problem.layout.seen) for _ in range(2))
    return distance(one, other, problem.layout.visible, problem.metric, problem.weights)


def main() -> None:
    """Judge every cell and write the table after each."""
    cells = [f"{model}/{block}" for block in (1, 8) for model in PRECISIONS]
    arguments = parser(__doc__, cells, prompts=10)
    arguments.add_argument("--wrong", type=int, default=1023, help="wrong candidates a prompt")
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    for cell in chosen(options):
        mask = f"{HIDDEN + 1}:"
        problem, truth = pose(options.results, cell.model, cell.block, cell.prompts, mask)
        begun = time.perf_counter()
        found = [judge(problem, truth, row, options.wrong) for row in range(len(cell.prompts))]
        spent = time.perf_counter() - begun
        facts = cell.checkpoint.facts
        true = torch.tensor([judged.true_residual for judged in found], dtype=torch.float64)
        best = torch.tensor([judged.wrong_residual for judged in found], dtype=torch.float64)
        floor = problem.floor.double()
        rows.append(
            {
                "model": cell.model,
                "block": cell.block,
                "quantization": facts.quantization,
                "dtype": facts.dtype,
                "outlier_threshold": facts.outlier_threshold,
                "prompts": len(found),
                "tokens": options.tokens,
                "candidates": 1 + options.wrong,
                "repeated_greatest": float(repeated(problem, truth).max()),
                "floor_median": float(floor.median()),
                "floor_greatest": float(floor.max()),
                "true_median": float(true.median()),
                "true_greatest": float(true.max()),
                "true_over_floor_greatest": float((true / floor).max()),
                "best_wrong_median": float(best.median()),
                "best_wrong_least": float(best.min()),
                "best_wrong_over_floor_least": float((best / floor).min()),
                "rank_one": sum(judged.rank == 1 for judged in found),
                "rank_worst": max(judged.rank for judged in found),
                "identifiable": sum(judged.verdict == "identifiable" for judged in found),
                "ambiguous": sum(judged.verdict == "ambiguous" for judged in found),
                "excluded": sum(judged.verdict == "excluded" for judged in found),
                "seconds_per_prompt": round(spent / len(found), 3),
            }
        )
        write(options.out, rows)


if __name__ == "__main__":
    main()

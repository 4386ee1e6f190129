"""How near a sweep comes to the machine's matrix products of the same shapes.

    python benchmarks/sweep_rate.py RESULTS TEXT docs/evidence/sweep_rate.csv --cells smollm2/1

The floor of a sweep is the matrix products of its blocks: one of each linear layer's shape for
every batch of candidates. They are timed bare, in the same process and between two sweeps, and
their time over the sweep's is the share of the machine's rate that a sweep reaches, in the median
of some rounds. Times are of the processor, which other work on the machine lengthens least (by a
tenth or two still: a share may come out above 1); run it with one thread. Memory is the process's
peak, model and vocabulary included, and how much of it came with the sweep.
"""

from __future__ import annotations

import resource
import time

import torch
from cells import chosen, parser
from common import write
from exact import pose
from torch import nn

from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.substitution import Substitution


def products(problem: Problem, rows: int, repeats: int) -> tuple[float, float]:
    """Return seconds and operations of each linear layer's product, for ``rows`` rows."""
    layers = [layer for layer in problem.probe.decoder.modules() if isinstance(layer, nn.Linear)]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features) for layer in layers}
    begun = time.process_time()
    for _ in range(repeats):
        for layer in layers:
            inputs[layer.in_features] @ layer.weight.T
    spent = time.process_time() - begun
    work = sum(2 * rows * layer.in_features * layer.out_features for layer in layers)
    return spent / repeats, work


def peak_mb() -> float:
    """Return the most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Time products and sweeps alternately and write the table."""
    arguments = parser(__doc__, ["smollm2/1"], prompts=1)
    arguments.add_argument("--candidates", type=int, default=8192)
    arguments.add_argument("--turns", type=int, default=9)
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    for cell in chosen(options):
        problem, truth = pose(options.results, cell.model, cell.block, cell.prompts[:1], mask="1:")
        around = problem.decoder.embedding[truth[0]]
        candidates = problem.decoder.ids[: options.candidates]
        batcher = Batcher()
        before = peak_mb()
        # Once for the batch size to be found.
        Substitution(problem, around, 0, batcher).residuals(candidates)
        shares = []
        for _ in range(options.turns):
            bare, work = products(problem, batcher.size * options.tokens, 8)
            begun = time.process_time()
            Substitution(problem, around, 0, batcher).residuals(candidates)
            spent = (time.process_time() - begun) * batcher.size / len(candidates)
            shares.append((bare / spent, work / bare / 1e9))
        shares.sort()
        share, rate = shares[len(shares) // 2]
        rows.append(
            {
                "model": cell.model,
                "block": cell.block,
                "candidates": len(candidates),
                "positions": options.tokens,
                "batch": batcher.size,
                "matrix_gflops": round(rate, 1),
                "share_of_matrix_rate": round(share, 3),
                "share_least": round(shares[0][0], 3),
                "share_most": round(shares[-1][0], 3),
                "peak_mb": round(peak_mb()),
                "peak_mb_of_sweep": round(peak_mb() - before),
            }
        )
        write(options.out, rows)


if __name__ == "__main__":
    main()

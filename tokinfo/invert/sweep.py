"""Every token at one position, the others known: what could be found at best.

Run around the true prompt it bounds from above what any search could claim; run around a found
prompt it says what an observer without the truth can claim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokinfo.batches import Batcher
from tokinfo.identify import Identification, identify
from tokinfo.invert.problem import Problem, Result
from tokinfo.solvers import SweepSolver
from tokinfo.substitute import Substitution


def solve(problem: Problem, settings: SweepSolver) -> Result:
    """Sweep positions of every true prompt, one position at a time."""
    batch = problem.batch
    top = batch.ids[..., None].repeat(1, 1, 5)
    identified: list[dict[int, Identification]] = []
    evaluations = torch.zeros(len(batch), dtype=torch.int64)
    batcher = Batcher()
    for row in range(len(batch)):
        one = problem.rows(torch.tensor([row]))
        wanted = one.batch.scored[0]
        if settings.positions == "hidden":
            wanted = wanted & ~one.batch.visible[0]
        positions = wanted.nonzero()[:, 0].tolist()[: settings.first]
        found, best = sweep(one, one.batch.ids[0], positions, batcher)
        identified.append(found)
        for position, tokens in best.items():
            top[row, position] = tokens
        evaluations[row] = len(positions) * problem.decoder.size
    loss = problem.token_loss(top[..., 0])
    return Result(
        top_ids=top,
        loss=loss,
        first_loss=torch.full_like(loss, torch.nan),
        steps=torch.zeros(len(batch), dtype=torch.int64),
        restart=torch.zeros(len(batch), dtype=torch.int64),
        restarts=1,
        evaluations=evaluations,
        identified=identified,
        around="true",
    )


def sweep(
    problem: Problem, ids: Tensor, positions: Sequence[int], batcher: Batcher
) -> tuple[dict[int, Identification], dict[int, Tensor]]:
    """Try every candidate at each position of one prompt, the other tokens as in ``ids``.

    Args:
        problem: a problem of a single row.
        ids: int64 [position], the prompt around the candidates.
        positions: where to sweep.
        batcher: finds the batch size.

    Returns:
        what each position's sweep says of the TRUE token, and its five best tokens [5].
        A position whose true token is no candidate is left out.
    """
    candidates = problem.decoder.ids
    identified, best = {}, {}
    for position in positions:
        around = problem.decoder.embedding[ids]
        residuals = Substitution(problem, around, position, batcher).residuals(candidates)
        top = residuals.topk(min(5, len(residuals)), largest=False).indices
        best[position] = candidates[top[torch.arange(5).clamp_max(len(top) - 1)]]
        true = (candidates == problem.batch.ids[0, position]).nonzero()
        if len(true):
            identified[position] = identify(residuals, int(true), float(problem.floor[0]))
    return identified, best

"""The published protocol: plain gradient descent from N(0, 1).

Source: B. Badger, "Information between tokens" and "Model invertibility"; the code published
with arXiv 2409.01482. Kept as it was, so that what is better can be measured against it.
"""

from __future__ import annotations

import torch

from tokinfo.solvers import relaxed
from tokinfo.solvers.problem import Problem, Result, check_finite
from tokinfo.study.solvers import ChapterSolver

_POINTS = 20  # of the loss curve


def solve(problem: Problem, settings: ChapterSolver) -> Result:
    """Descend on a free variable by plain gradient descent, one start a prompt.

    free <- free - lr(step) * gradient of the row's loss, with lr falling linearly from
    ``learning_rate`` to ``final_share`` of it. A row's steps depend on that row alone, so a
    batch of prompts is the published one-at-a-time descent, up to rounding.

    Raises:
        SolverError: a loss became non-finite, or the model cannot be given the mixtures.
    """
    relaxed.check(problem)
    free = settings.start_scale * problem.start(restart=0)
    first = torch.empty(0)
    every = max(1, settings.steps // _POINTS)
    noted: list[torch.Tensor] = []
    for step in range(settings.steps):
        free.requires_grad_(True)
        loss = relaxed.loss(problem, free)
        check_finite(loss.detach(), problem, step)
        if step == 0:
            first = loss.detach()
        if step % every == 0:
            noted.append(loss.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), free)
        done = step / max(settings.steps - 1, 1)
        rate = settings.learning_rate * (1 - (1 - settings.final_share) * done)
        free = free.detach() - rate * gradient
        problem.watch.note(loss / problem.floor)
        if problem.watch.late(len(free)):
            break
    taken = step + 1
    with torch.no_grad():
        last = relaxed.loss(problem, free)
    check_finite(last, problem, taken)
    rows = len(problem.target)
    return Result(
        top_ids=problem.decode(free),
        loss=last,
        first_loss=first,
        steps=torch.full((rows,), taken),
        restart=torch.zeros(rows, dtype=torch.int64),
        restarts=1,
        evaluations=torch.full((rows,), taken + 1),
        curve=torch.stack([*noted, last], dim=1).tolist(),
        curve_steps=(*range(0, taken, every), taken),
        stopped=[problem.watch.stopped if taken < settings.steps else None] * rows,
    )

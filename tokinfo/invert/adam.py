"""Adam from the embedding's own mean and scale, all prompts and starts as one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.invert.problem import Problem, Result, check_finite
from tokinfo.solvers import AdamSolver

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def solve(problem: Problem, settings: AdamSolver) -> Result:
    """Descend by Adam from several starts and keep each prompt's best.

    A row stops when its decoded tokens have stayed the same for ``stable_checks`` checks and
    its loss is below ``tolerance`` of its first; stopped rows leave the batch, so the rest
    run faster. Kingma and Ba (arXiv 1412.6980), algorithm 1, with a linearly falling rate.

    Raises:
        SolverError: a loss became non-finite.
    """
    prompts = len(problem.target)
    # Row r of the descent is start r // prompts of prompt r % prompts.
    all_rows = problem.rows(torch.arange(prompts).repeat(settings.restarts))
    free = torch.cat([problem.start(restart) for restart in range(settings.restarts)])
    free, unit = _place(free, problem)
    end = _Ends(free, all_rows)

    active = torch.arange(len(free))
    rows = all_rows
    mean, square = torch.zeros_like(free), torch.zeros_like(free)
    stable = torch.zeros(len(free), dtype=torch.int64)
    before: Tensor | None = None
    for step in range(settings.steps):
        free.requires_grad_(True)
        loss = rows.loss(rows.embed(free))
        check_finite(loss.detach(), rows, step)
        if step == 0:
            end.first = loss.detach()
            end.note(0, active, loss.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), free)
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        squared = gradient.square()
        if settings.second_moment == "row":
            # A hidden position's gradient is far smaller than a visible one's; divided by its
            # own size it would move as fast, and wander off while the visible ones settle.
            squared = squared.mean((1, 2), keepdim=True).expand_as(gradient)
        square = _BETAS[1] * square + (1 - _BETAS[1]) * squared
        first_moment = mean / (1 - _BETAS[0] ** (step + 1))
        second_moment = square / (1 - _BETAS[1] ** (step + 1))
        done = step / max(settings.steps - 1, 1)
        rate = settings.learning_rate * unit * (1 - (1 - settings.final_share) * done)
        free = free.detach() - rate * first_moment / (second_moment.sqrt() + _EPSILON)

        if (step + 1) % settings.check_every and step + 1 < settings.steps:
            continue
        tokens = rows.decode(free, k=1)[..., 0].cpu()
        if before is None:
            before = torch.full_like(tokens, -1)
        same = ((tokens == before) | ~rows.batch.scored.cpu()).all(-1)
        stable = torch.where(same, stable + 1, 0)
        before = tokens
        end.note(step + 1, active, loss.detach())
        at_floor = (loss.detach() <= settings.tolerance * end.first[active]).cpu()
        stop = (stable >= settings.stable_checks) & at_floor
        if step + 1 == settings.steps:
            stop[:] = True
        if stop.any():
            end.leave(active[stop], free[stop], rows.rows(stop.nonzero()[:, 0]), step + 1)
            stay = (~stop).nonzero()[:, 0]
            if len(stay) == 0:
                break
            active, stable, before = active[stay], stable[stay], before[stay]
            free, mean, square = free[stay], mean[stay], square[stay]
            rows = all_rows.rows(active)
    return end.best(prompts, settings.restarts)


def _place(normal: Tensor, problem: Problem) -> tuple[Tensor, float]:
    """Return starts at the embedding's own mean and scale, and the unit of a step.

    The published N(0, 1) start is some fifty times an untrained Llama's embedding scale.
    In the vocabulary parametrisation a step changes all V coordinates at once; the unit is
    chosen so that the embedding moves about as far as in the embedding parametrisation.
    """
    matrix = problem.decoder.embedding
    vocabulary, width = matrix.shape
    if problem.parametrisation == "vocabulary":
        return normal / vocabulary**0.5 + 1 / vocabulary, width**0.5 / vocabulary
    return matrix.mean(0) + matrix.std(0) * normal, float(matrix.std())


class _Ends:
    """Where each row ended, filled in as rows leave the batch."""

    def __init__(self, free: Tensor, rows: Problem) -> None:
        count, positions = free.shape[:2]
        self.first = torch.zeros(count)
        self.loss = torch.zeros(count, dtype=torch.float32, device=free.device)
        self.steps = torch.zeros(count, dtype=torch.int64)
        self.top = torch.zeros(count, positions, 5, dtype=torch.int64, device=free.device)
        self.curve: list[list[float]] = [[] for _ in range(count)]
        self.curve_steps: list[int] = []

    def note(self, step: int, index: Tensor, loss: Tensor) -> None:
        """Add a point to the loss curves of the rows still in the batch."""
        self.curve_steps.append(step)
        for row, value in zip(index.tolist(), loss.tolist(), strict=True):
            self.curve[row].append(value)

    def leave(self, index: Tensor, free: Tensor, rows: Problem, steps: int) -> None:
        with torch.no_grad():
            loss = rows.loss(rows.embed(free))
        check_finite(loss, rows, steps)
        self.loss[index] = loss.to(self.loss)
        self.steps[index] = steps
        self.top[index] = rows.decode(free)

    def best(self, prompts: int, restarts: int) -> Result:
        by_start = self.loss.view(restarts, prompts)
        kept = by_start.argmin(0)
        row = (kept * prompts + torch.arange(prompts, device=kept.device)).cpu()
        return Result(
            top_ids=self.top[row],
            loss=self.loss[row],
            first_loss=self.first[row],
            steps=self.steps[row],
            restart=kept.cpu(),
            restarts=restarts,
            evaluations=(self.steps.view(restarts, prompts) + 1).sum(0),
            curve=[self.curve[index] for index in row.tolist()],
            curve_steps=tuple(self.curve_steps),
        )

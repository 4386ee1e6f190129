"""Relaxation: some positions stand at tokens, the embeddings of the others descend.

A hidden token is judged by what the rest of the hidden ones, free to be any embedding, can still
explain beside it: the right token leaves less unexplained than a wrong one, long before the
others are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.invert.problem import Problem
from tokinfo.objective import distance

_BETAS, _EPSILON = (0.9, 0.999), 1e-12
_ROWS = 256
"""Contexts that descend side by side, which bounds the memory."""


def relax(
    problem: Problem, contexts: Tensor, free: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Descend the free positions' embeddings by Adam; return contexts and what is unexplained.

    The 2-norm descends whatever the metric: it is smooth, and only orders the contexts.

    Args:
        problem: a problem of a single row.
        contexts: [context, position, d] embedded prompts, as long as the row's own.
        free: bool [context, position], which positions descend.
        steps: descent steps; 0 evaluates only.
        rate: first step, in units of the embedding's standard deviation; it falls to a tenth.

    Returns:
        contexts of the same shape, and the 2-norm [context] over the visible positions.
    """
    parts = [
        _relax(problem, some, mask, steps, rate)
        for some, mask in zip(torch.split(contexts, _ROWS), torch.split(free, _ROWS), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _relax(
    problem: Problem, contexts: Tensor, free: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    moves = free[..., None].to(contexts)
    unit = rate * float(problem.decoder.embedding.std())
    mean, square = torch.zeros_like(contexts), torch.zeros_like(contexts)
    for step in range(steps):
        contexts = contexts.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(_unexplained(problem, contexts).sum(), contexts)
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square()
        first = mean / (1 - _BETAS[0] ** (step + 1))
        second = square / (1 - _BETAS[1] ** (step + 1))
        falling = 1 - 0.9 * step / steps
        contexts = contexts.detach() - moves * unit * falling * first / (second.sqrt() + _EPSILON)
    with torch.no_grad():
        return contexts, _unexplained(problem, contexts)


def _unexplained(problem: Problem, contexts: Tensor) -> Tensor:
    length = contexts.shape[1]
    seen = problem.batch.seen.expand(len(contexts))
    return distance(
        problem.probe(contexts, seen),
        problem.target[:, :length],
        problem.batch.visible[:, :length].expand(len(contexts), -1),
        "l2",
    )

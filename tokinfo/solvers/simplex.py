"""Least squares over a product of simplices: one distribution over candidates for each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS = 60
_GAP, _SLACK = 1e-10, 1e-8
"""Complementarity and stationarity at which the minimum counts as found, in normal equations
whose diagonal is scaled to a mean of 1."""


def least_squares(columns: Tensor, target: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the weights x that minimise the norm of ``columns @ x - target``.

    Weights are at least 0, and those of each group of columns sum to 1. The problem is convex;
    where the columns are dependent it has many minima, and one of them is returned.

    A primal-dual interior-point method with a predictor and a corrector step (S. Mehrotra, SIAM
    Journal on Optimization 2, 1992; J. Nocedal and S. Wright, Numerical Optimization, 2006,
    algorithm 16.4). It needs some 15 Cholesky factorisations whatever the condition of the columns,
    at which projected gradients stall.

    Args:
        columns: [row, column].
        target: [row].
        sizes: columns of each group, in order.

    Returns:
        float64 [column].

    >>> least_squares(torch.eye(2), torch.tensor([0.2, 0.4]), [2]).round(decimals=6).tolist()
    [0.4, 0.6]
    """
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(target.device)
    count = len(group)
    gram = (columns.T @ columns).double()
    slope = (columns.T @ target).double()
    unit = gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    gram, slope = gram / unit, slope / unit
    member = torch.nn.functional.one_hot(group, len(sizes)).to(gram)
    x = (1 / member.sum(0))[group]
    gradient = gram @ x - slope
    prices = gram.new_zeros(len(sizes))
    slack = gradient - gradient.min() + gradient.abs().mean() + 1e-3
    for _ in range(_STEPS):
        stationary = gram @ x - slope + prices[group] - slack
        whole = member.T @ x - 1
        gap = float(x @ slack) / count
        if gap < _GAP and float(stationary.abs().max()) < _SLACK:
            break
        system = gram.clone()
        system.diagonal().add_(slack / x)
        lower, failed = torch.linalg.cholesky_ex(system)
        if failed:
            break  # what is left to gain is below the rounding of the normal equations
        solved = torch.cholesky_solve(member, lower)
        inner = torch.linalg.cholesky(member.T @ solved)

        def move(
            complement: Tensor,
            x: Tensor = x,
            slack: Tensor = slack,
            stationary: Tensor = stationary,
            whole: Tensor = whole,
            lower: Tensor = lower,
            solved: Tensor = solved,
            inner: Tensor = inner,
        ) -> tuple[Tensor, Tensor, Tensor]:
            free = torch.cholesky_solve((-stationary - complement / x)[:, None], lower)[:, 0]
            price = torch.cholesky_solve((member.T @ free + whole)[:, None], inner)[:, 0]
            moved = free - solved @ price
            return moved, price, -(complement + slack * moved) / x

        moved, _, freed = move(x * slack)
        far = min(_farthest(x, moved), _farthest(slack, freed))
        ahead = float((x + far * moved) @ (slack + far * freed)) / count
        centre = (ahead / gap) ** 3 * gap
        moved, price, freed = move(x * slack + moved * freed - centre)
        far = 0.99 * min(_farthest(x, moved), _farthest(slack, freed))
        x, prices, slack = x + far * moved, prices + far * price, slack + far * freed
    return x


def _farthest(values: Tensor, change: Tensor) -> float:
    """Return the largest step up to 1 / 0.99 that leaves all values at least 0."""
    down = change < 0
    return min(1 / 0.99, float((-values[down] / change[down]).min())) if bool(down.any()) else 1.0

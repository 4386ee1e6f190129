"""Metrics: how far the activations of a candidate are from the target's, where visible."""

from __future__ import annotations

import torch
from torch import Tensor

from tokinfo.io.errors import InvalidError
from tokinfo.study.fields import MetricName
from tokinfo.study.solvers import MetricWeights


def distance(
    found: Tensor,
    target: Tensor,
    visible: Tensor,
    metric: MetricName,
    weights: MetricWeights | None = None,
) -> Tensor:
    """Return the distance of each row over its visible positions.

    ``l1`` is the SUM of absolute differences (as published), ``l2`` the 2-norm of the
    difference, ``cosine`` is 1 - |cos| of the two flattened visible activations, and
    ``l1+cosine`` a weighted sum of the first and the third. The cosine is computed as half the
    squared difference of unit vectors, which is the same and loses no digits near 0.

    Args:
        found: [row, position, width] activations, any floating dtype.
        target: the same shape, or broadcastable to it.
        visible: bool [row, position].
        metric: name of the distance.
        weights: weights of ``l1+cosine``.

    Returns:
        float32 [row] (float64 where the activations are), in the activations' own units for
        l1 and l2, without unit for cosine.

    Raises:
        ValueError: unknown metric.
    """
    wide = torch.promote_types(found.dtype, torch.float32)
    mask = visible[..., None]
    # where(), not multiplication: a non-finite activation at a hidden position must not leak.
    a = torch.where(mask, found.to(wide), 0)
    b = torch.where(mask, target.to(wide), 0)
    if metric == "l1":
        return _l1(a, b)
    if metric == "l2":
        norm: Tensor = torch.linalg.vector_norm(a - b, dim=(-2, -1))
        return norm
    if metric == "cosine":
        return _cosine(a, b)
    if metric == "l1+cosine":
        weights = weights or MetricWeights()
        return weights.cosine * _cosine(a, b) + weights.l1 * _l1(a, b)
    raise InvalidError(f"metric {metric!r}: allowed: l1, l2, cosine, l1+cosine")


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum(dim=(-2, -1))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = _unit(a.flatten(-2)), _unit(b.flatten(-2))
    same = (a * b).sum(-1, keepdim=True) >= 0
    away: Tensor = (a - torch.where(same, b, -b)).square().sum(-1) / 2
    # To nothing, everything stands at a right angle.
    return torch.where((a == 0).all(-1) | (b == 0).all(-1), 1, away)


def _unit(vectors: Tensor) -> Tensor:
    # Squares of components near the ends of a dtype's range leave it.
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm == 0, 1, norm)


def doubled(metric: MetricName) -> float:
    """Return how many noise floors two errors of one floor each make together.

    Twice as many where a distance grows as the difference, four times where as its square.
    """
    return 4.0 if "cosine" in metric else 2.0


def position_distance(found: Tensor, target: Tensor) -> Tensor:
    """Return the 2-norm [row, position] of a difference of activations [row, position, width]."""
    wide = torch.promote_types(found.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(found.to(wide) - target.to(wide), dim=-1)
    return norm
